"""A rewritten module beside the original, as its user wrote it: one call of each, and all it shows.

A certificate proves that what was read of a forward is one convolution. That it was read right is
shown by running the forward: what it gives (structure, types, numbers, whether it has gradients),
what it writes into its inputs, and what it leaves behind in buffers, attributes and lists.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from acfuse.graph.copies import copied
from acfuse.graph.own_code import globals_in
from acfuse.graph.own_layers import is_layer
from acfuse.proof.leaves import as_numbers, leaves_of
from acfuse.proof.noise import along, sizes
from acfuse.proof.outputs import ALGEBRA_LIMIT, NOISE_FACTOR, OWN_FACTOR
from acfuse.proof.running import (
    Inputs,
    floating_dtype,
    images,
    kinds_of,
    moved_by_rounding,
    named_shapes,
)
from acfuse.proof.values import attributes, has_own_reduce, reduced
from acfuse.system.devices import device_of, exact_arithmetic, seed_draws
from acfuse.system.escape import one_line

LOOSE = 2.0**10  # units of rounding: a difference that is larger is looked at again
SMALL_CHANNEL = 2.0**-10  # of the largest: channels that hardly ever fire are mostly rounding
FLIPPED = 1e99  # the error of a decision that is another: float64 tells if rounding did it
DEPTH = 4  # of lists in lists, and objects in objects, that are looked at
INTERNAL = frozenset(vars(nn.Module())) - {"training"} | {"acfuse_graph", "_graph"}


@dataclass(frozen=True)
class Given:
    """What a module is called with, and whether that is done with gradients, if it can be."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    gradients: bool = False

    def cast(self, dtype: torch.dtype | None) -> "Given":
        """A copy, with floating tensors in a dtype (None: each in its own)."""

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            value = value.detach().clone()
            return value.to(dtype) if dtype and value.is_floating_point() else value

        args, kwargs = _pytree.tree_map(one, (self.args, dict(self.kwargs)))
        return Given(args, kwargs, self.gradients)

    def on(self, device: torch.device) -> "Given":
        """The same, its tensors on a device."""
        args, kwargs = _pytree.tree_map_only(
            Tensor, lambda value: value.to(device), (self.args, dict(self.kwargs))
        )
        return Given(args, kwargs, self.gradients)

    def moved(self, dtype: torch.dtype) -> "Given":
        """The same, every floating number one unit of rounding away."""
        eps = torch.finfo(dtype).eps

        def one(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value * (1 + eps) if floating else value

        args, kwargs = _pytree.tree_map(one, (self.args, dict(self.kwargs)))
        return Given(args, kwargs, self.gradients)


def example_of(model: nn.Module, inputs: Inputs) -> Given:
    """Random images of the shapes that a user gives, where the model is.

    Raises UsageError where these do not fit.
    """
    shapes = named_shapes(model, inputs)
    made = Given(kwargs=images(shapes, inputs.seed, kinds_of(shapes, inputs, model)))
    return made.on(device_of(model))


@dataclass(frozen=True)
class Seen:
    """What one call of a module shows. `failure` is the error with which it ended."""

    failure: str = ""
    results: Mapping[str, Any] = field(default_factory=dict)  # by name, as `leaves_of` gives them
    inputs: tuple[Any, ...] = ()
    left: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


def difference(
    original: nn.Module,
    fused: nn.Module,
    given: Given,
    exact: Callable[[], nn.Module],
    fresh: Callable[[], nn.Module] | None = None,
) -> str | None:
    """What one call shows of two modules that should not differ, in words; "" if nothing.

    None: the original does not take such a call, which shows nothing. Numbers may differ by
    rounding: what looks larger may be no more than the original's own noise, and is compared in
    float64, where `exact` gives the fused module with weights that were not rounded, and `fresh` a
    copy of the original: neither was called before, as a call may leave marks (a cache of sizes).
    The modules are left with whatever the call does to them.
    """
    dtype = floating_dtype(original)
    is_coarse = torch.finfo(dtype).bits < 32  # its own rounding hides too much
    before = seen(original, given.cast(dtype))
    after = seen(fused, given.cast(dtype))
    if before.failure:
        return None
    unlike, error = compared(before, after)
    if unlike or (error <= LOOSE * torch.finfo(dtype).eps and not is_coarse):
        return unlike
    said = f"its result differs by {error:.1e} of the largest number"
    near = seen(_moved(original, dtype), given.cast(dtype).moved(dtype))
    is_noise = error <= OWN_FACTOR * compared(before, near)[1]
    if not is_noise and not is_coarse and error != FLIPPED:
        return said
    fresh = fresh or partial(copied, original)
    true = seen(fresh().double(), given.cast(torch.float64))
    if true.failure:  # it pins a dtype
        return "" if is_noise else said
    wide = given.cast(torch.float64).moved(torch.float64)
    near = seen(fresh().double(), wide)
    unlike, error = compared(true, seen(exact(), given.cast(torch.float64)))
    limit = max(ALGEBRA_LIMIT, NOISE_FACTOR * compared(true, near)[1])
    return unlike or ("" if error <= limit else said)


def _moved(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy, each of its weights one unit of rounding away, up or down at random."""
    near, generator = copied(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in near.parameters():
            if tensor.is_floating_point():
                tensor.copy_(moved_by_rounding(tensor.double(), dtype, generator))
    return near


def seen(model: nn.Module, given: Given) -> Seen:
    """Calls a module; what it draws at random is the same each time."""
    before, device = _state(model), device_of(model)
    seed_draws(device)
    try:
        with exact_arithmetic(device):
            result = _called(model, given)
    except Exception as error:
        return Seen(failure=one_line(error, 200) or type(error).__name__)
    after = _state(model)
    changed = {k: v for k, v in after.items() if k not in before or before[k] != v}
    left = {key: tuple(_values(model, key)) for key in changed}
    left |= {f"{key} (gone)": () for key in before.keys() - after.keys()}
    return Seen("", leaves_of(result), tuple(_leaves(given)), left)


def _called(model: nn.Module, given: Given) -> Any:
    try:
        with torch.set_grad_enabled(given.gradients):
            return model(*given.args, **given.kwargs)
    except RuntimeError as error:
        if "requires grad" not in str(error):  # what writes into its weights runs without only
            raise
        with torch.no_grad():
            return model(*given.args, **given.kwargs)


def _leaves(given: Given) -> list[Any]:
    return _pytree.tree_leaves((given.args, dict(given.kwargs)))


def compared(before: Seen, after: Seen) -> tuple[str, float]:
    """What differs beyond numbers, in words, and by how much numbers differ, of the largest."""
    if after.failure:
        return f"it fails ({after.failure})", 0.0
    if before.results.keys() != after.results.keys():
        return "it gives a result of another structure", 0.0
    if before.left.keys() != after.left.keys():
        key = sorted(before.left.keys() ^ after.left.keys())[0]
        return f"its call changes {key}", 0.0
    worst = 0.0
    pairs = [("input", before.inputs, after.inputs)]
    pairs += [("result", (one,), (after.results[n],)) for n, one in before.results.items()]
    pairs += [(key, value, after.left[key]) for key, value in before.left.items()]
    for name, ours, theirs in pairs:
        if len(ours) != len(theirs):
            return f"its {name} is another", 0.0
        for one, other in zip(ours, theirs, strict=True):
            unlike, error = _compared_leaf(one, other)
            if unlike:
                return f"its {name} {unlike}", 0.0
            worst = max(worst, error)
    return "", worst


def _compared_leaf(one: Any, other: Any) -> tuple[str, float]:
    if type(one) is type(other) and isinstance(one, (float, complex, np.ndarray, np.generic)):
        a, b = as_numbers(one), as_numbers(other)  # that a forward gives as no tensors
        one, other = (one, other) if a is None or b is None else (a, b)
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        same = type(one) is type(other) and (one is other or _is_equal(one, other))
        return ("" if same else f"is {other!r:.40}, not {one!r:.40}"), 0.0
    for what in ("shape", "dtype", "requires_grad"):
        ours, theirs = getattr(one, what), getattr(other, what)
        if ours != theirs:
            return f"has the {what} {theirs}, not {ours}", 0.0
    a, b = as_numbers(one), as_numbers(other)
    if a is None or b is None or not a.numel():
        return "", 0.0
    if not a.is_floating_point():
        return "", 0.0 if torch.equal(a, b) else FLIPPED
    a, b = a.double(), b.double()
    # Images have channels second, and rows of boxes with their scores have them last.
    axes = (1, 2) if a.ndim == 3 else (1,) if a.ndim > 3 else ()
    apart, size = (a - b).abs(), sizes(a)
    if not bool(apart.isfinite().all()):
        apart = torch.where((a == b) | ~(a.isfinite() | b.isfinite()), 0.0, apart)
        apart = apart.nan_to_num(nan=torch.inf)
    whole = size.max()
    return "", max(
        float((error / torch.where(scale > 0, scale, 1.0)).max())
        for error, scale in [(apart.max(), whole)]
        + [(along(i, apart), along(i, size).maximum(SMALL_CHANNEL * whole)) for i in axes]
    )


def _is_equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return False


def _state(model: nn.Module) -> dict[str, Any]:
    """What a model holds beside its structure, by path, in a form that can be compared."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        if is_layer(module):
            state[f"{path}.*"] = tuple(map(id, vars(module).values()))
        for name, value in _held(module):
            state[f"{path}.{name}" if path else name] = _described(value, DEPTH)
        for name, value in () if is_layer(module) else _shared(module):
            state[name] = _described(value, DEPTH)
    return state


def _shared(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module's forward may change that no module holds: of its classes, and globals."""
    for kind in type(module).__mro__:
        if kind is object or kind.__module__.partition(".")[0] in ("torch", "acfuse"):
            continue
        for name, value in vars(kind).items():
            if not (name.startswith("__") or callable(value) or hasattr(value, "__get__")):
                yield f"{CLASS}{kind.__qualname__}:{name}", value
    forward = getattr(module.forward, "__func__", module.forward)
    code, known = getattr(forward, "__code__", None), getattr(forward, "__globals__", {})
    for name in globals_in(code) if code is not None else ():
        value = known.get(name)
        if name in known and not callable(value) and not isinstance(value, ModuleType):
            yield f"{CLASS}{known.get('__name__')}:{name}", value


CLASS = "what is shared by "


def _held(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module._parameters.items()
    yield from module._buffers.items()
    if not is_layer(module):
        for name, value in vars(module).items():
            if name not in INTERNAL and not isinstance(value, torch.ScriptMethod):  # a cache
                yield name, value


def _values(model: nn.Module, key: str) -> Iterator[Any]:
    """The leaves of what a model holds at a path."""
    if key.startswith(CLASS):  # one model after the other changes it: that both do has to do
        return
    path, _, name = key.rpartition(".")
    module = dict(model.named_modules(remove_duplicate=False))[path]
    value = dict(_held(module)).get(name)
    for leaf in _pytree.tree_leaves(value):
        yield leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _described(value: Any, depth: int, *, fresh: bool = False) -> Any:
    """A value as something that is equal if, and only if, nothing in it was changed.

    What is `fresh` was made to be asked, and is known by its class: another one is made each time.
    """
    name = type(value) if fresh else id(value)
    if isinstance(value, Tensor):  # of numbers that change unseen, the caller takes care
        return name, value.shape, 0 if value.is_inference() else value._version
    if value is None or isinstance(value, (bool, int, str, bytes, range)):
        return value
    if isinstance(value, (float, complex)):
        return repr(value)  # NaN is what it was
    if isinstance(value, (type, ModuleType)):
        return id(value)
    if depth == 0 or isinstance(value, nn.Module):
        return name
    inner = partial(_described, depth=depth - 1, fresh=fresh)
    if isinstance(value, Mapping):
        return [(repr(k), inner(v)) for k, v in value.items()]
    if isinstance(value, tuple) and all(type(v) is int for v in value):
        return value
    if isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        return [inner(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.dtype.str, value.shape, hash(value.tobytes())
    if isinstance(value, torch.Generator):
        return name, hash(value.get_state().numpy().tobytes())
    held = attributes(value)
    state = None if callable(value) or (held and not has_own_reduce(value)) else reduced(value)
    # What it would be pickled as: of a generator of numpy's, the state is two objects deeper.
    further = depth - 1 if fresh else 2 * DEPTH
    parts = [(key, inner(part)) for key, part in held.items()]
    return name, parts, _described(state, further, fresh=True)
