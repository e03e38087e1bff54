"""Every rewritten module, and the model around them, run beside the original.

Without inputs of the user's, images are made up: the layers tell how many channels they have.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import Reason
from acfuse.findings import Block, Findings, Refused
from acfuse.graph.copies import copied
from acfuse.proof.witness import Given, difference

Group = Sequence[tuple[int, tuple[int, ...]]]  # (batch, sizes) of each image that is tried
Images = Mapping[str, tuple[int, int]]  # (channels, spatial axes) of an argument

SMALL: Group = ((2, (5, 4, 3)), (1, (4, 7, 6)), (0, (4, 5, 3)))  # a batch of 0: without that axis
MIDDLE: Group = ((1, (33, 36, 8)), (2, (36, 35, 9)))
LARGE: tuple[Group, ...] = (((1, (224, 224, 16)),), ((1, (256, 256, 16)),), ((1, (28, 28, 28)),),
                            ((1, (64, 64, 32)),), ((1, (299, 299, 16)),))  # fmt: skip
NOT_RUN = "no input is known with which it runs: give example inputs"


def unlike(
    model: nn.Module,
    fused: nn.Module,
    findings: Findings,
    exact: Callable[[Sequence[Block]], nn.Module],
    example: Given | None = None,
) -> tuple[Refused, ...]:
    """A refusal for each block of a fused model that does not do what the original does.

    `exact` gives the model with some blocks fused and no weight rounded, in float64. `example` is
    an input of the whole model. Neither model is changed.
    """
    places: dict[str, list[Block]] = {}
    for block in findings.found:
        places.setdefault(block.where, []).append(block)
    if not places:
        return ()
    trial = _Trial(copied(model), copied(fused), findings.found, exact)
    wholes = [[example]] if example else _made_up(model, None, findings.images, MIDDLE, *LARGE)
    calls = trial.calls_within(wholes, [*places])
    refused = []
    for path, blocks in places.items():
        module, site = model.get_submodule(path), blocks[0].site
        made = _made_up(module, site.call, site.images, SMALL, MIDDLE, *LARGE)
        said = trial.difference(path, [*made, calls.get(path, [])])
        if said != "":
            code, why = (Reason.NOT_RUN, NOT_RUN) if said is None else (Reason.UNLIKE, said)
            refused += [Refused(path, code, why, block.pattern) for block in blocks]
    if refused or "" in places or not trial.difference("", wholes):
        return tuple(refused)
    return tuple(trial.traced_back(calls))


class _Trial:
    """The copies that are run, and what is known of them."""

    def __init__(
        self,
        original: nn.Module,
        fused: nn.Module,
        found: Sequence[Block],
        exact: Callable[[Sequence[Block]], nn.Module],
    ) -> None:
        self.original, self.fused, self.found, self.exact = original, fused, found, exact

    def difference(self, path: str, groups: Sequence[Sequence[Given]]) -> str | None:
        """What the first inputs that the original takes show of a module; None if it takes none."""
        original, fused = self.original.get_submodule(path), self.fused.get_submodule(path)

        def exact() -> nn.Module:
            return self.exact([b for b in self.found if _is_within(b.where, path)]).get_submodule(
                path
            )

        for group in groups:
            said = [difference(original, fused, given, exact) for given in group]
            shown = [text for text in said if text is not None]
            if shown:
                return next(filter(None, shown), "")
        return None

    def calls_within(
        self, groups: Sequence[Sequence[Given]], paths: Sequence[str]
    ) -> dict[str, list[Given]]:
        """How the modules that are fused, and those around them, are called by the first input."""
        around = {p for path in paths for p in _around(path)}
        calls: dict[str, list[Given]] = {}
        hooks = [
            self.original.get_submodule(path).register_forward_pre_hook(
                lambda _, args, kwargs, path=path: calls.setdefault(path, []).append(
                    Given(args, kwargs).cast(None)
                ),
                with_kwargs=True,
            )
            for path in sorted({*paths, *around} - {""})
        ]
        try:
            for group in groups:
                for given in group[:1]:
                    calls.clear()
                    if _takes(self.original, given):
                        return calls
        finally:
            for hook in hooks:
                hook.remove()
        return {}

    def traced_back(self, calls: Mapping[str, list[Given]]) -> Iterator[Refused]:
        """The blocks inside of the smallest modules that differ, where the whole model does."""
        inner: list[tuple[str, str]] = []
        for path in sorted(calls, key=len, reverse=True):
            said = self.difference(path, [calls[path][:1]])
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


def _takes(model: nn.Module, given: Given) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            given = given.cast(None)
            model(*given.args, **given.kwargs)
    except Exception:
        return False
    return True


def _made_up(module: nn.Module, call: Any, images: Images, *groups: Group) -> list[list[Given]]:
    """Calls of a module with random images of the channels that its layers ask for.

    `call` says which arguments are tensors, and what the others are; without one, each argument
    that has no default is a tensor. What is not known of one image is taken from another.
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

    def image(name: str, batch: int, sizes: tuple[int, ...]) -> Tensor:
        channels, axes = images.get(name, usual)
        shape = ([batch] if batch else []) + [channels, *sizes[:axes]]
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def made(batch: int, sizes: tuple[int, ...]) -> Given:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for p in parameters:
            if p.name in lists:
                kind, count = lists[p.name]
                value: Any = kind(image(p.name, batch, sizes) for _ in range(count))
            elif p.name in tensors and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                value = image(p.name, batch, sizes)
            elif p.name in values and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                value = copy.deepcopy(values[p.name])
            else:
                continue
            if p.kind is p.POSITIONAL_ONLY:
                args.append(value)
            else:
                kwargs[p.name] = value
        return Given(tuple(args), kwargs)

    return [[made(batch, sizes) for batch, sizes in group] for group in groups]
