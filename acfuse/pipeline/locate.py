"""Where two programs part, and what that looks like: for a difference that no certificate names."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from acfuse.findings import Block
from acfuse.proof import Inputs, Proofs
from acfuse.proof.faults import told_by_numbers
from acfuse.proof.onnx_runtime import image_of
from acfuse.proof.parting import Parting, block_of, in_words, kind_of, parting, unlike_settings
from acfuse.proof.running import Image, floating_dtype
from acfuse.proof.trace import Step, Trace, trace_of_model
from acfuse.proof.trace_onnx import trace_of_onnx
from acfuse.sources.base import FindOptions, Fused, Source
from acfuse.system.devices import CPU
from acfuse.system.escape import one_line

LAYERS = ("convolution", "gemm")  # kinds of operators that have a kernel
SETTINGS = ("stride", "padding", "dilation", "groups")  # of one that a block has become
LOGGER = logging.getLogger("acfuse")
Traced = Callable[[Image, torch.dtype], Trace]  # a program's, run in a dtype if it can be


@dataclass(frozen=True)
class Place:
    """Where two programs part, in words, and what that looks like, with what to do; or nothing."""

    where: str = ""
    looks_like: str = ""


def diagnosed(
    proofs: Proofs,
    source: Source,
    fused: Fused,
    inputs: Inputs | None,
    traced: Traced | None = None,
) -> Proofs:
    """Proofs with the place where a difference begins, and what it looks like.

    A certificate that fails names its block itself. Where only outputs differ, both programs are
    run step by step: `traced` is what was compared, if that is not the fused form itself. What
    fails in here takes nothing away from the verdict, and is logged.
    """
    if proofs.passed:
        return proofs
    if proofs.worst is not None:
        is_folded = bool(proofs.certificates[proofs.worst].folded)
        told = fused.diagnose(fused.found[proofs.worst], folded=is_folded)
        return replace(proofs, looks_like=told)
    traced = traced or _traced(fused)
    if traced is None:
        return proofs
    try:
        place = _place(source, fused, inputs, traced)
    except Exception as error:  # of whatever runs there
        LOGGER.info("the first difference could not be looked for: %s", one_line(error, 200))
        return proofs
    return replace(proofs, place=place.where, looks_like=place.looks_like)


def _traced(fused: Fused) -> Traced | None:
    """The program that a fused form is, to be run beside the original; None where it has none."""
    network, file = fused.network, fused.onnx_file
    if network is not None:
        return lambda image, dtype: trace_of_model(network, image, dtype)
    return None if file is None else lambda image, _: trace_of_onnx(file.model, image)


def _place(source: Source, fused: Fused, inputs: Inputs | None, traced: Traced) -> Place:
    for image, original, rounded in _originals(source, fused, inputs):
        try:
            other = traced(image, torch.float64 if original.is_exact else _dtype(source))
        except Exception as error:  # it does not take this one
            LOGGER.info("it was not run on %s: %s", _sizes(image), one_line(error, 200))
            continue
        found = parting(original, other, _dtype(source), rounded)
        if found:
            folds = _with_folds(source, fused)
            names = [b.where for b in folds.found] if source.network is not None else []
            return Place(in_words(found, names), _looks_like(found, folds))
    return Place()


def _originals(
    source: Source, fused: Fused, inputs: Inputs | None
) -> Iterator[tuple[Image, Trace, Trace | None]]:
    """The original's traces, on images of each kind: in float64 if it can be, and as it ships.

    What only shows at other sizes or in other batches shows at the later ones.
    """
    if source.network is not None and inputs is not None:
        whole = source.original(inputs)
        others = (whole.of_other_sizes, whole.of_other_batches, whole.showing_more, whole.far)
        for image in (whole.given[0], *(image for some in others for image in some)):
            shipped = trace_of_model(whole.model, image, whole.dtype)
            if whole.why_not_exact:
                yield image, shipped, None
            else:
                yield image, trace_of_model(whole.model, image, torch.float64), shipped
    elif fused.onnx_original is not None:
        image = image_of(fused.onnx_original, inputs)
        yield image, trace_of_onnx(fused.onnx_original, image), None


def _dtype(source: Source) -> torch.dtype:
    return torch.float32 if source.network is None else floating_dtype(source.network)


def _sizes(image: Image) -> str:
    return ", ".join(str(tuple(x.shape)) for x in image.values())


def _with_folds(source: Source, fused: Fused) -> Fused:
    """The fused form whose blocks are all that a converter may have folded."""
    try:
        return source.fuse(source.find(FindOptions(fold_bn=True)))
    except Exception:  # what was found before is what there is
        return fused


def _looks_like(found: Parting, fused: Fused) -> str:
    """The known mistake at the place where two programs part, in words; "" where none is known."""
    original, other = found.original, found.other
    if original is None or other is None:
        return ""
    block = _block_with(original, fused)
    if block is not None and len(block.names) == 1 and kind_of(other) in LAYERS:
        return _in_block(block, other, fused)
    if kind_of(original) != kind_of(other):
        return _of_another_kind(found, original, other)
    return unlike_settings(original.settings, other.settings) or _by_weights(original, other)


def _in_block(block: Block, other: Step, fused: Fused) -> str:
    """What is wrong with a block, if another program's layer stands for all of it."""
    name, network = block.names[0], fused.network
    own = fused.weights[name]
    layer = None if network is None else network.get_submodule(name)
    settings = {n: getattr(layer, n) for n in SETTINGS if hasattr(layer, n)}
    if unlike := unlike_settings(settings, other.settings):
        return unlike
    given = _layer(other, own)
    if given is None:
        shapes = [list(w.shape) for w in (*other.weights[:1], own[0])]
        return f"a kernel of the shape {shapes[0]}, the block's is {shapes[-1]}"
    told = fused.with_weights({name: given})
    return told.diagnose(next(b for b in told.found if b.names == block.names), folded=True)


def _block_with(step: Step, fused: Fused) -> Block | None:
    inside = [b for b in fused.found if block_of(step, [b.where]) is not None and _holds(b, step)]
    return max(inside, key=lambda block: len(block.where), default=None)


def _holds(block: Block, step: Step) -> bool:
    """Whether a step is of a block: a sum of its module's own, or that of a layer in it."""
    prefix = f"{block.where}." if block.where else ""
    is_sum = step.where == block.where and kind_of(step) == "add"
    return is_sum or any(
        step.where == prefix + layer or step.where.startswith(f"{prefix}{layer}.")
        for layer in block.layers
    )


def _layer(step: Step, like: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """The kernel and bias of a step, if they are of these shapes, in their dtypes."""
    pair = _kernel_and_bias(step)
    if pair is None:
        return None
    kernel, bias = pair
    bias = torch.zeros_like(like[1]) if bias is None else bias
    if [kernel.shape, bias.shape] != [x.shape for x in like]:
        return None
    return kernel.to(like[0].dtype), bias.to(like[1].dtype)


def _kernel_and_bias(step: Step) -> tuple[Tensor, Tensor | None] | None:
    """Those of a convolution, or of a matrix as a linear layer has it: [out, in]."""
    kernels = [w for w in step.weights if w.ndim > 1]
    biases = [w for w in step.weights if w.ndim == 1]
    if len(kernels) != 1 or len(biases) > 1:
        return None
    is_turned = kind_of(step) == "gemm" and not step.settings.get("transB")
    return kernels[0].mT if is_turned else kernels[0], next(iter(biases), None)


def _of_another_kind(found: Parting, original: Step, other: Step) -> str:
    told = f"{other.operator} where the original has {original.operator}"
    pads = ["pad" in step.operator.lower() for step in (original, other)]
    if pads[0] != pads[1]:
        return f"another padding mode, {told}: pad as the original does"
    if found.lacks and not found.adds:
        return f"{original.operator} is missing before it: put it back"
    if found.adds and not found.lacks:
        return f"{other.operator} that the original does not have: take it out"
    return f"{told}: compute what the original computes there"


def _by_weights(original: Step, other: Step) -> str:
    """What the kernels and biases of two steps of one kind tell."""
    ours, theirs = (_kernel_and_bias(step) for step in (original, other))
    if ours is None or theirs is None or ours[0].shape != theirs[0].shape:
        return ""
    dtype, out = original.weights[0].dtype, len(ours[0])
    nothing = torch.zeros(out, dtype=torch.float64, device=CPU)
    pairs = [(k.double(), nothing if b is None else b.double()) for k, b in (ours, theirs)]
    return told_by_numbers([(pairs[0], pairs[1])], dtype)
