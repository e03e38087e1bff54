"""A fused ONNX model in 8 bits, and what that loses: as it is written, and as it runs here."""

import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import onnx

from acfuse.errors import InputError, NotEqual, UsageError
from acfuse.graph.onnx_values import opset_of, replaceable
from acfuse.int8.culprits import Culprit, culprits
from acfuse.int8.data import Data
from acfuse.int8.equalize import equalized
from acfuse.int8.evened import evened
from acfuse.int8.figures import Figure
from acfuse.int8.grids import is_quantized
from acfuse.int8.quantized import (
    METHODS,
    Figures,
    Loss,
    Ranges,
    calibrated,
    figures_of,
    in_8_bits,
    prepared,
)
from acfuse.int8.saturation import Clipped, clipped, saturates
from acfuse.proof import Inputs
from acfuse.proof.trace_onnx import values_of
from acfuse.system.escape import listed, safe
from acfuse.system.limits import LIMITS, Limits

APART = 1.0  # dB between executed and written that are looked into, and that advice has to gain
EXACT = 100.0  # dB: what is nearer than that is near for float32 as well
TOO_MUCH = 1.0  # percent of a value's numbers past its range
WORST = 5
TRIED = 16  # images on which layers are looked at and advice is tried


@dataclass(frozen=True)
class Settings:
    """How a model is quantized. Without `reduce_range`, 7 bits are tried where sums saturate."""

    per_channel: bool = True
    calibrate: str = "minmax"
    reduce_range: bool | None = None
    keep: tuple[str, ...] = ()


@dataclass(frozen=True)
class Advice:
    """What would help: tried, with the dB of the worst output before and after.

    Both are those of the worse of written and executed, on the first images. `layers` are those to
    keep in float.
    """

    what: Literal["keep", "per channel", "per tensor", "equalize"]
    before: float
    after: float
    layers: tuple[str, ...] = ()

    @property
    def gain(self) -> float:
        """What it gains in dB."""
        return _near(self.after) - _near(self.before)


@dataclass(frozen=True)
class Quantized:
    """A model in 8 bits, and what it loses beside the float one.

    `written` and `executed` are how far each output is from the float one: with each value in
    float32 between its roundings, and by the kernels for integers of this processor. `worst` are
    the layers that lose most, `advice` is what was tried and helps, the best first.
    """

    model: onnx.ModelProto = field(repr=False)
    settings: Settings
    images: int
    is_random: bool
    reduced: bool  # weights have 7 bits
    saturates: bool  # sums of products of 8 bits are cut off by this processor
    figures: Figures
    otherwise: Figures | None  # with weights of the other width, where both were tried
    worst: tuple[Culprit, ...] = ()
    advice: tuple[Advice, ...] = ()
    tried_on: int = 0  # images
    clipped: tuple[Clipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def loss(self) -> Loss:
        """Signal over noise in dB of the worst output, as written and as executed."""
        return self.figures.loss

    @property
    def written(self) -> tuple[Figure, ...]:
        """Each output, as the file is written."""
        return self.figures.written

    @property
    def executed(self) -> tuple[Figure, ...]:
        """Each output, as the file is executed here."""
        return self.figures.executed

    @property
    def agreement(self) -> float | None:
        """For how many images the same class is largest, in percent: the worst of all outputs.

        None where no output gives classes.
        """
        found = [f.agreement for f in (*self.written, *self.executed) if f.agreement is not None]
        return min(found, default=None)

    def missed(
        self, min_sqnr: float | None = None, min_agreement: float | None = None
    ) -> tuple[str, ...]:
        """What falls short of a gate, each in one sentence; nothing where all is reached."""
        return tuple(self._missed(min_sqnr, min_agreement))

    def _missed(self, min_sqnr: float | None, min_agreement: float | None) -> Iterator[str]:
        for how, figures in (("as written", self.written), ("executed here", self.executed)):
            for figure in figures:
                name, same = safe(figure.output), figure.agreement
                if min_sqnr is not None and not figure.decibels >= min_sqnr:
                    found = _below(figure.decibels, min_sqnr)
                    yield f"output {name} has {found} dB {how}, wanted {min_sqnr:.15g}"
                if min_agreement is not None and same is not None and not same >= min_agreement:
                    found = _below(same, min_agreement)
                    yield f"output {name} agrees in {found} % {how}, wanted {min_agreement:.15g}"


def quantize_model(
    model: onnx.ModelProto,
    data: Data,
    settings: Settings,
    limits: Limits = LIMITS,
    progress: Callable[[str], None] = lambda _: None,
) -> Quantized:
    """Quantizes a float ONNX model, and measures what that loses.

    Raises InputError for a model that cannot be quantized, UsageError for settings that it has not.
    """
    check_float(model)
    settings = replace(settings, keep=layers_named(prepared(model), settings.keep))
    progress("the ranges of the values")
    ranges = calibrated(model, data.batches, settings.calibrate)
    make = partial(in_8_bits, ranges, per_channel=settings.per_channel)
    measure = partial(figures_of, model, data=data.batches, limits=limits)
    progress("the model in 8 bits")
    reduced = bool(settings.reduce_range)
    made = make(reduce_range=reduced, keep=settings.keep)
    if not is_quantized(made):
        raise InputError(
            f"the model has no layer{' but those to keep' if settings.keep else ''} that "
            "onnxruntime's quantizer takes: expected a Conv, Gemm or MatMul at least."
        )
    figures, otherwise = measure(made), None
    cuts = saturates(limits)
    if settings.reduce_range is None and _apart(figures) is not None:
        progress("the model with weights of 7 bits")
        other = make(reduce_range=True, keep=settings.keep)
        otherwise = measure(other)
        if _is_nearer(otherwise, figures):
            made, figures, otherwise, reduced = other, otherwise, figures, True
    progress("the layers one by one")
    few = data.first(TRIED)
    worst = culprits(ranges.model, made, few.batches, limits)[:WORST]
    past = clipped(ranges.model, made, few.batches, limits)
    progress("what would help")
    advice = _advice(model, ranges, made, few, settings, reduced, cuts, worst, limits)
    opsets = opset_of(model), opset_of(made)
    defaults = sorted(replaceable(model.graph, model.ir_version))
    notes = _notes(data, defaults, opsets, settings, cuts, figures, otherwise, reduced, past)
    return Quantized(
        made,
        settings,
        data.images,
        data.is_random,
        reduced,
        cuts,
        figures,
        otherwise,
        worst,
        advice,
        few.images,
        past,
        tuple(notes),
    )


def check_float(model: onnx.ModelProto) -> None:
    """Raises InputError for a model that is in 8 bits already."""
    if is_quantized(model):
        raise InputError(
            "the model is quantized already: it holds nodes that read or give small integers. "
            "Give the float model that it was made of."
        )


def layers_named(model: onnx.ModelProto, keep: Sequence[str]) -> tuple[str, ...]:
    """The nodes that these names mean: their own, or those of their weights or modules.

    Raises UsageError for a name that the model has not, with the nearest ones.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    known: dict[str, list[str]] = {node.name: [node.name] for node in model.graph.node}
    nodes = [*known]
    for node in model.graph.node:
        for weight in stored & {*node.input[1:2]}:
            for name in (weight, weight.removesuffix(".weight")):
                if name not in nodes:
                    known.setdefault(name, []).append(node.name)
    for name in keep:
        if name not in known:
            near = difflib.get_close_matches(name, [*known], 3, 0.3) or nodes[:3]
            raise UsageError(
                f"--keep: the model has no layer {safe(name)}; the nearest are "
                f"{listed([*map(safe, near)])}."
            )
    return tuple(dict.fromkeys(node for name in keep for node in known[name]))


def _below(found: float, wanted: float) -> str:
    """A figure that is not as large as wanted, in as few digits as show it."""
    texts = (f"{found:.{digits}f}" for digits in range(1, 16))
    return next((text for text in texts if not float(text) >= wanted), repr(found))


def _near(db: float) -> float:
    """A figure, where more would only be said of float32 itself."""
    return max(-EXACT, min(EXACT, db))


def _apart(figures: Figures) -> int | None:
    """The place of the output whose executed and written figures differ most, if by too much."""
    gaps = [abs(_near(w.decibels) - _near(e.decibels))
            for w, e in zip(figures.written, figures.executed, strict=True)]  # fmt: skip
    return gaps.index(max(gaps)) if max(gaps) > APART else None


def _is_nearer(one: Figures, other: Figures) -> bool:
    """Whether a file is nearer as it is executed: at the worst output, else at all of them."""
    gain = _near(one.loss.executed) - _near(other.loss.executed)
    sums = [sum(_near(f.decibels) for f in figures.executed) for figures in (one, other)]
    return gain > APART or (gain >= -APART and sums[0] > sums[1])


def _advice(
    model: onnx.ModelProto,
    ranges: Ranges,
    made: onnx.ModelProto,
    few: Data,
    settings: Settings,
    reduced: bool,
    cuts: bool,
    worst: Sequence[Culprit],
    limits: Limits,
) -> tuple[Advice, ...]:
    """What gains something, tried on a few images: the ranges stay those of all images."""
    measure = partial(figures_of, model, data=few.batches, limits=limits)
    make = partial(in_8_bits, per_channel=settings.per_channel, reduce_range=reduced)
    before = measure(made).loss.worst
    layers = tuple(one.layer for one in worst if one.layer not in settings.keep)
    found: list[Advice] = []
    near = [(one.layer, *one.readers) for one in worst[:2] if len(one.readers) < WORST]
    for names in (*((name,) for name in layers), *near, layers[:2], layers):
        names = tuple(dict.fromkeys(name for name in names if name not in settings.keep))
        if not names or names in [advice.layers for advice in found]:
            continue
        other = make(ranges, keep=(*settings.keep, *names))
        if is_quantized(other):
            found.append(Advice("keep", before, measure(other).loss.worst, names))
    if not settings.per_channel:
        other = in_8_bits(ranges, per_channel=True, reduce_range=reduced, keep=settings.keep)
        found.append(Advice("per channel", before, measure(other).loss.worst))
    elif cuts:  # what is large in one channel alone saturates less often
        other = in_8_bits(ranges, keep=settings.keep)
        found.append(Advice("per tensor", before, measure(other).loss.worst))
    if (evened := _equalized(model, few, limits)) is not None:
        again = calibrated(evened, few.batches, settings.calibrate)
        after = measure(make(again, keep=settings.keep)).loss.worst
        advice = Advice("equalize", before, after)
        if advice.gain >= APART and _is_taken(model, few, limits):
            found.append(advice)
    useful = [advice for advice in found if advice.gain >= APART + _without_some(advice, found)]
    return tuple(sorted(useful, key=lambda advice: -advice.gain))


def _without_some(advice: Advice, found: Sequence[Advice]) -> float:
    """What is gained with fewer layers kept: to keep more has to be worth it."""
    fewer = [a.gain for a in found if a.layers and {*a.layers} < {*advice.layers}]
    return max(0.0, *fewer) if fewer else 0.0


def _equalized(model: onnx.ModelProto, few: Data, limits: Limits) -> onnx.ModelProto | None:
    """The model with even channels; None where that changes nothing, or cannot be done."""
    shapes = {n: tuple(v.shape) for n, v in values_of(model, few.batches[0], limits)}
    try:
        made = equalized(model, shapes)
    except InputError:  # a weight would leave its range
        return None
    return made.model if made.changed else None


def _is_taken(model: onnx.ModelProto, few: Data, limits: Limits) -> bool:
    """Whether `acfuse equalize` would write its result, given one batch as --inputs."""
    image = few.batches[0]
    shapes = tuple((name, tuple(x.shape)) for name, x in image.items())
    try:
        return evened(model, Inputs(shapes, 0, 1, (), tuple(image.values())), limits).is_taken
    except (InputError, NotEqual):
        return False


def _notes(
    data: Data,
    defaults: Sequence[str],
    opsets: tuple[int, int],
    settings: Settings,
    cuts: bool,
    figures: Figures,
    otherwise: Figures | None,
    reduced: bool,
    past: Sequence[Clipped],
) -> Iterator[str]:
    """What has to be said of a result, in plain words."""
    yield from data.notes
    if defaults:
        told = listed([*map(safe, defaults)], 5)
        yield f"what has a default is a constant of the result, and no input: {told}"
    if opsets[0] != opsets[1]:
        yield f"the result is of opset {opsets[1]}, as 8 bits need it: the model is of {opsets[0]}"
    if data.is_random:
        yield (
            "the ranges of values come from random inputs (--random): this file is for trying "
            "things out, and is not to be shipped"
        )
    yield from _on_saturation(settings, cuts, figures, otherwise, reduced)
    for one in past:
        if one.percent > TOO_MUCH:
            yield (
                f"{one.percent:.1f} % of what {safe(one.layer)} gives lies past its range, and is "
                f"cut off: {settings.calibrate} chose the range"
            )


SATURATION = (
    "this processor saturates: it adds products of 8 bits in pairs, in 16 bits, and of 255 x 127 + "
    "255 x 127 gives less (tried here)"
)


def _on_saturation(
    settings: Settings, cuts: bool, figures: Figures, otherwise: Figures | None, reduced: bool
) -> Iterator[str]:
    """Which saturation was met, what was done about it, and what is left of it."""
    if otherwise is not None:
        wide, narrow = (otherwise, figures) if reduced else (figures, otherwise)
        place = _apart(wide) or 0
        why = SATURATION if cuts else (
            "what is executed is not what is written, and not by saturation, which was looked for "
            "and not found here: kernels for integers round elsewhere"
        )  # fmt: skip
        yield f"with weights of 8 bits, {_told(wide, place)}: {why}"
        taken = "were taken, as by --reduce-range" if reduced else "lose more, and were not taken"
        yield f"weights of 7 bits {taken}: {_told(narrow, place)}"
    if _apart(figures) is not None:
        why = _reason(settings, cuts, reduced)
        yield f"executed and written figures differ still: {why}"
    elif cuts and not reduced:
        yield f"{SATURATION}, which costs less than {APART:g} dB on this data"
    if not cuts and not reduced:
        yield (
            "this processor does not saturate; one of x86 without VNNI does, and may give other "
            "results by this file: for those, give --reduce-range"
        )


def _told(figures: Figures, place: int) -> str:
    """Both figures of one output; of several outputs, with its name."""
    written, executed = figures.written[place], figures.executed[place]
    name = f"output {safe(written.output)} has " if len(figures.written) > 1 else ""
    return f"{name}{written.decibels:.1f} dB as written, {executed.decibels:.1f} dB executed"


def _reason(settings: Settings, cuts: bool, reduced: bool) -> str:
    """Why figures differ after what could be done was done."""
    if reduced:
        return (
            "with weights of 7 bits no sum of two products saturates, so what is left is how "
            "kernels for integers round"
        )
    if settings.reduce_range is False:
        return (
            f"--no-reduce-range forbids weights of 7 bits, and {SATURATION}"
            if cuts
            else "kernels for integers round elsewhere, as no saturation is found here"
        )
    return "weights of 8 bits lose less, all in all, than those of 7 bits, which do not saturate"


def check_settings(settings: Settings) -> None:
    """Raises UsageError for a calibrator that the library has not."""
    if settings.calibrate not in METHODS:
        raise UsageError(
            f"calibrate is {settings.calibrate!r}; expected one of {', '.join(METHODS)}."
        )


def check_gates(min_sqnr: float | None, min_agreement: float | None) -> None:
    """Raises UsageError for a gate that no number could meet or miss."""
    for flag, number in (("--min-sqnr", min_sqnr), ("--min-agreement", min_agreement)):
        if number is not None and math.isnan(number):
            raise UsageError(f"{flag}: nan is no number to compare with; give one, as 20.")
