"""The model that everything is compared with: what it gives for an input is computed once."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.graph.copies import copied
from acfuse.graph.fx_read import is_norm
from acfuse.proof.leaves import Leaves
from acfuse.proof.noise import Noises, noises, own_rounding, responses_of
from acfuse.proof.running import (
    OTHERS,
    Image,
    Inputs,
    floating_dtype,
    images,
    is_empty,
    kinds_of,
    larger,
    named_shapes,
    other_batch,
    run,
    run_or_explain,
    smaller,
)
from acfuse.system.dispatch import DispatchMode
from acfuse.system.escape import one_line

FAR = ((10.0, 1.0), (0.0, 1e3))  # (mean, scale) of inputs far from what a model was trained on
LARGE = 32  # sizes of which a half is an image still
Shapes = Mapping[str, tuple[int, ...]]


class Original:
    """An original model and what it gives, as it ships and in float64.

    What was run is kept: running is what costs most, and several things are compared with it. A
    model of which a part is in training mode is copied, because a run changes what that holds.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model = copied(model) if is_trained(model) else model
        self.inputs, self.dtype = inputs, floating_dtype(model)
        self._images: dict[tuple[object, ...], Image] = {}
        self._shipped: dict[int, Leaves] = {}  # by the id of the image, which is kept
        self._true: dict[int, Leaves] = {}
        self._noises: dict[tuple[object, ...], list[Noises]] = {}
        self._exact: nn.Module | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input. Raises UsageError where what was given does not fit."""
        return named_shapes(self.model, self.inputs)

    @cached_property
    def takes_any(self) -> bool:
        """Whether some weight, or statistic of a BatchNorm, is NaN or Inf."""
        tensors: list[Tensor] = [*self.model.parameters()]
        norms = (m for m in self.model.modules() if is_norm(m))
        tensors += [b for m in norms for b in m.buffers(recurse=False)]
        return not all(bool(t.isfinite().all()) for t in tensors if t.is_floating_point())

    def image(
        self, shapes: Shapes, sample: int = 0, *, mean: float = 0.0, scale: float = 1.0
    ) -> Image:
        """Random inputs of these shapes, the same object for the same arguments."""
        key = (*shapes.items(), sample, mean, scale)
        if key not in self._images:
            kinds = kinds_of(self.shapes, self.inputs, self.model)
            seed = self.inputs.seed + sample
            self._images[key] = images(shapes, seed, kinds, mean=mean, scale=scale)
        return self._images[key]

    def shipped(self, image: Image) -> Leaves:
        """What the model gives for one of its images, in its own dtype."""
        if id(image) not in self._shipped:
            self._shipped[id(image)] = run(self.model, image, self.dtype)
        return self._shipped[id(image)]

    @cached_property
    def given(self) -> list[Image]:
        """Images of the given shapes, with several seeds. Raises InputError if it takes none."""
        given = [self.image(self.shapes, sample) for sample in range(max(1, self.inputs.samples))]
        for image in given:
            self._shipped[id(image)] = run_or_explain(self.model, image, self.dtype)
        return given

    @cached_property
    def of_other_sizes(self) -> list[Image]:
        """Images of another odd size, where the model takes them: half of it, or a little more."""
        sizes = [n for shape in self.shapes.values() for n in shape[2:]]
        changes = [smaller] * (min(sizes, default=0) >= LARGE) + [larger] * bool(sizes)
        for change in changes:
            if taken := self._taken([self.image(change(self.shapes))]):
                return taken
        return []

    @cached_property
    def of_other_batches(self) -> list[Image]:
        """Images of which there are more or fewer in a batch, where the model takes them."""
        return self._taken([self.image(other_batch(self.shapes))])

    @cached_property
    def showing_more(self) -> list[Image]:
        """Others on which something shows of outputs that are empty on all of those."""
        seen = (*self.given, *self.of_other_sizes, *self.of_other_batches)
        empty = set.intersection(*(is_empty(self.shipped(image)) for image in seen))
        found = []
        for i, (mean, scale) in enumerate(OTHERS):
            if not empty:
                break
            for image in self._taken([self.image(self.shapes, 100 + i, mean=mean, scale=scale)]):
                result = self.shipped(image)
                if shown := {name for name in empty if name in result} - is_empty(result):
                    empty -= shown
                    found.append(image)
        return found

    @cached_property
    def far(self) -> list[Image]:
        """Images far from what it was trained on, where it takes them: small ones, if it can."""
        shapes = [{n: tuple(x.shape) for n, x in image.items()} for image in self.of_other_sizes]
        shape = shapes[0] if shapes else self.shapes
        return self._taken([self.image(shape, mean=m, scale=s) for m, s in FAR])

    def _taken(self, given: Sequence[Image]) -> list[Image]:
        taken = []
        for image in given:
            try:
                self.shipped(image)
            except Exception:
                continue
            taken.append(image)
        return taken

    @cached_property
    def why_not_exact(self) -> str:
        """Why it cannot be run in float64; empty if it can be."""
        exact, narrowed, image = self.exact, _Narrowed(), self.given[0]
        try:
            with narrowed:
                self._true[id(image)] = run(exact, image, torch.float64)
        except Exception as error:
            return one_line(error, 200)
        if narrowed.by and self.dtype != torch.float64:
            return f"its forward computes in {narrowed.by}"
        return ""

    @property
    def exact(self) -> nn.Module:
        """A copy in float64."""
        if self._exact is None:
            self._exact = copied(self.model).double()
        return self._exact

    def forget_exact(self) -> None:
        """Gives the memory of the copy in float64 back; what it gave stays known."""
        self._exact = None

    def true(self, image: Image) -> Leaves:
        """What it gives in float64; as it ships, where it computes in its own dtype anyway."""
        if self.why_not_exact:
            return self.shipped(image)
        if id(image) not in self._true:
            self._true[id(image)] = run(self.exact, image, torch.float64)
        return self._true[id(image)]

    def own_rounding(self, given: Sequence[Image], usual: int) -> list[Noises]:
        """How far rounding moves what it gives: as far as it ships from float64, at the least.

        Nothing but images of the given shapes is run for it. The `usual` images are the first.
        """
        for image in self.given:
            self.true(image)
        shipped = [self.shipped(image) for image in given]
        true = [self._true.get(id(image), own) for image, own in zip(given, shipped, strict=True)]
        return own_rounding(true, shipped, usual, self.dtype)

    def noise(self, given: Sequence[Image], usual: int, *, each: bool = False) -> list[Noises]:
        """How far rounding moves what it gives: further runs show it, for `each` image by itself.

        The `usual` images are the first of them.
        """
        key = (*map(id, given), usual, each)
        if key not in self._noises:
            true = [self.true(image) for image in given]
            responses = responses_of(self.model, given, true, self.dtype, usual, each=each)
            for image, response in zip(given, responses, strict=True):
                response.add(self.shipped(image), 1)
            self._noises[key] = noises(responses, usual, self.dtype)
        return self._noises[key]


def is_trained(model: nn.Module) -> bool:
    """Whether some part of a model is in training mode."""
    return any(getattr(part, "training", False) for part in model.modules())


class _Narrowed(DispatchMode):
    """Notes whether some numbers in float64 become narrower ones."""

    def __init__(self) -> None:
        super().__init__()
        self.by = ""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, made = (_floating(values) for values in ((args, kwargs), result))
        if torch.float64 in read and made - {torch.float64}:
            self.by = self.by or str(min(made - {torch.float64}, key=str))
        return result


def _floating(values: Any) -> set[torch.dtype]:
    leaves = _pytree.tree_leaves(values)
    return {x.dtype for x in leaves if isinstance(x, Tensor) and x.is_floating_point()}
