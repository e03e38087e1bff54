"""Every rewritten module, and the model around them, run beside the original.

Without inputs of the user's, images are made up: the layers tell how many channels they have.
"""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import Reason
from acfuse.findings import Block, Findings, Refused
from acfuse.graph.copies import copied
from acfuse.graph.fx_asserts import Rank
from acfuse.proof.leaves import as_numbers
from acfuse.proof.witness import Given, difference
from acfuse.system.devices import CPU, device_of, random_draws_of_its_own
from acfuse.system.escape import one_line

Group = Sequence[tuple[int, tuple[int, ...]]]  # (batch, sizes) of each image that is tried
Make = Callable[[], Iterable[Given]]  # inputs of one group: made when they are asked for
Images = Mapping[str, tuple[int, int]]  # (channels, spatial axes) of an argument

SMALL: Group = ((2, (5, 4, 3)), (1, (4, 5, 6)))
SINGLE: Group = ((0, (4, 5, 3)),)  # an image that is no batch
MIDDLE: Group = ((1, (33, 36, 8)), (2, (36, 35, 9)))
WHOLE: Group = ((2, (17, 20, 8)),)
SQUARE = (28, 32, 64, 96, 112, 128, 160, 192, 224, 256, 299, 384)  # that heads of rows are made for
LARGE: tuple[Group, ...] = tuple(((1, (size, size, 16)),) for size in SQUARE)
NOT_RUN = "no input is known with which it runs: give example inputs"


@dataclass(frozen=True)
class Evidence:
    """What running fused modules showed.

    `refused` are the blocks that do not do what the original does, `batched` the places of those
    that do it for batches of images only, where the original takes single images as well.
    """

    refused: tuple[Refused, ...] = ()
    batched: frozenset[str] = frozenset()


def evidence(
    model: nn.Module,
    fused: nn.Module,
    findings: Findings,
    exact: Callable[[Sequence[Block]], nn.Module],
    example: Given | None = None,
) -> Evidence:
    """What shows when the blocks of a fused model are run beside the original.

    `exact` gives the model with some blocks fused and no weight rounded, in float64. `example` is
    an input of the whole model. Neither model is changed.
    """
    if not findings.found:
        return Evidence()
    with random_draws_of_its_own(device_of(model)):
        try:
            trial = _Trial(model, copied(model), copied(fused), findings.found, exact)
        except Exception as error:  # of whatever its attributes are
            why = f"it cannot be copied, to be run ({one_line(error, 200)})"
            return Evidence(tuple(Refused(b.where, Reason.NOT_RUN, why) for b in findings.found))
        wholes: list[Make] = [lambda: (example,)] if example is not None else []
        sizes = (WHOLE, MIDDLE, *LARGE)
        wholes = wholes or _made_up(model, None, findings.images, *sizes, device=trial.device)
        said, calls = trial.whole(wholes)
        refused = [*_in_itself(model, trial, calls, whole_was_run=said is not None)]
        if said and not refused:
            refused = [*trial.traced_back(calls)]
        single = {path for path in trial.places if _takes_single_images(model, trial, path)}
        unseen = _changed(model, trial.original) ^ _changed(fused, trial.fused)
    if unseen and not refused:
        why = f"its call changes {min(unseen)}"
        refused = [Refused(b.where, Reason.UNLIKE, why, b.pattern) for b in findings.found]
    return Evidence(tuple(refused), frozenset(single))


def _in_itself(
    model: nn.Module,
    trial: "_Trial",
    calls: Mapping[str, Sequence[Given]],
    *,
    whole_was_run: bool,
) -> Iterator[Refused]:
    """What each rewritten module shows, called for itself.

    Of one that nobody was seen to call, only the whole model shows how it is called, and what
    those around it want of its layers.
    """
    for path, blocks in trial.places.items():
        module, site = model.get_submodule(path), blocks[0].site
        small = SMALL[1:] if path in calls else SMALL  # with the whole model it runs on others
        sizes = (small, MIDDLE, *LARGE)
        made = _made_up(module, site.call, site.images, *sizes, device=trial.device)
        said = trial.difference(path, [*made, partial(list, calls.get(path, ()))])
        if said == "" and path and site.call and site.call.guessed and not whole_was_run:
            said = None
        if said != "":
            code, why = (Reason.NOT_RUN, NOT_RUN) if said is None else (Reason.UNLIKE, said)
            yield from (Refused(path, code, why, block.pattern) for block in blocks)


def _takes_single_images(model: nn.Module, trial: "_Trial", path: str) -> bool:
    """Whether a module takes an image that is no batch, and makes another of it when fused."""
    module, site = model.get_submodule(path), trial.places[path][0].site
    if any(isinstance(value, Rank) for value in site.fixed.values()):  # which it refuses
        return False
    if not any(axes for _, axes in site.images.values()):  # rows are of any number of axes
        return False
    made = _made_up(module, site.call, site.images, SINGLE, device=trial.device)
    return bool(trial.difference(path, made))


def _changed(before: nn.Module, after: nn.Module) -> set[str]:
    """The tensors whose numbers a module changed without a trace, by name."""
    now = after.state_dict(keep_vars=True)
    changed = set()
    for name, tensor in before.state_dict(keep_vars=True).items():
        one, two = as_numbers(tensor), as_numbers(now.get(name))
        known = one is not None and two is not None
        if known and not torch.equal(one, two) and not bool(one.isnan().any()):  # type: ignore[union-attr, arg-type]
            changed.add(name)
    return changed


class _Trial:
    """The copies that are run, and what is known of them."""

    def __init__(
        self,
        model: nn.Module,
        original: nn.Module,
        fused: nn.Module,
        found: Sequence[Block],
        exact: Callable[[Sequence[Block]], nn.Module],
    ) -> None:
        self.model, self.original, self.fused = model, original, fused
        self.found, self.exact, self.device = found, exact, device_of(model)
        self.places: dict[str, list[Block]] = {}
        for block in found:
            self.places.setdefault(block.where, []).append(block)

    def difference(self, path: str, groups: Sequence[Make]) -> str | None:
        """What the first inputs that the original takes show of a module; None if it takes none."""
        original, fused = self.original.get_submodule(path), self.fused.get_submodule(path)
        fresh = partial(copied, self.model.get_submodule(path))

        def exact() -> nn.Module:
            return self.exact([b for b in self.found if _is_within(b.where, path)]).get_submodule(
                path
            )

        for group in groups:
            said = [difference(original, fused, given, exact, fresh) for given in group()]
            shown = [text for text in said if text is not None]
            if shown:
                return next(filter(None, shown), "")
        return None

    def whole(self, groups: Sequence[Make]) -> tuple[str | None, Mapping[str, Sequence[Given]]]:
        """What the whole model shows, and how the modules that are fused are called by it.

        So are those around them.
        """
        calls: dict[str, list[Given]] = {}

        def note(path: str, _: nn.Module, args: Any, kwargs: Any) -> None:
            calls.setdefault(path, []).append(Given(args, kwargs).cast(None))

        around = {p for path in self.places for p in _around(path)}
        modules = [(p, self.original.get_submodule(p)) for p in {*self.places, *around, ""}]
        hooks = [
            m.register_forward_pre_hook(partial(note, p), with_kwargs=True) for p, m in modules
        ]
        try:
            said = self.difference("", groups)
        finally:
            for hook in hooks:
                hook.remove()
        return said, {path: given for path, given in calls.items() if said is not None}

    def traced_back(self, calls: Mapping[str, Sequence[Given]]) -> Iterator[Refused]:
        """The blocks inside of the smallest modules that differ, where the whole model does."""
        inner: list[tuple[str, str]] = []
        for path in sorted(calls.keys() - {""}, key=len, reverse=True):
            said = self.difference(path, [partial(list, calls[path][:1])])
            if said and not any(_is_within(found, path) for found, _ in inner):
                inner.append((path, said))
        for block in self.found:
            within = [(path, said) for path, said in inner if _is_within(block.where, path)]
            path, said = within[0] if within else ("", "the whole model differs")
            if within or not inner:
                why = f"{path or 'the model'} around it, {said}"
                yield Refused(block.where, Reason.UNLIKE, why, block.pattern)


def _is_within(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(outer + ".")


def _around(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _made_up(
    module: nn.Module, call: Any, images: Images, *groups: Group, device: torch.device
) -> list[Make]:
    """Calls of a module with random images of the channels that its layers ask for.

    `call` says which arguments are tensors, and what the others are; without one, each argument
    that has no default is a tensor. What is not known of one image is taken from another. One image
    is for a call with gradients, several for one without: a forward may ask.
    """
    if not images:
        return []
    usual = next(iter(images.values()))
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    tensors = call.tensors if call else [p.name for p in parameters if p.default is p.empty]
    lists = {name: (kind, count) for name, kind, count in call.lists} if call else {}
    values = dict(call.values) if call else {}
    generator = torch.Generator().manual_seed(0)

    def image(name: str, batch: int, sizes: tuple[int, ...], between: int) -> Tensor:
        channels, axes = images.get(name, usual)
        inner = [channels, *sizes[:axes]] if axes else [*sizes[:between], channels]
        shape = ([batch] if batch else []) + inner
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device=CPU)
        return drawn.to(device)

    def made(between: int, batch: int, sizes: tuple[int, ...]) -> Given:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for p in parameters:
            if p.name in lists:
                kind, count = lists[p.name]
                value: Any = kind(image(p.name, batch, sizes, between) for _ in range(count))
            elif p.name in tensors and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                value = image(p.name, batch, sizes, between)
            elif p.name in values and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                value = copy.deepcopy(values[p.name])
            else:
                continue
            if p.kind is p.POSITIONAL_ONLY:
                args.append(value)
            else:
                kwargs[p.name] = value
        return Given(tuple(args), kwargs, gradients=batch == 1)

    # Rows are tried as tokens of a batch, as one for each of it, and in windows of images.
    has_rows = any(axes == 0 for _, axes in images.values())
    return [
        partial(starmap, partial(made, between), group)
        for group in groups
        for between in ((1, 0, 2) if has_rows else (0,))
    ]
