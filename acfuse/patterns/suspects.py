"""Tensors that look like parallel branches and match no pattern: shown, never fused.

Told from shapes, because names are unknown. Layers in sequence have such shapes, too, so a group
has to show more: that its layers cannot follow each other, or that a cross of kernels or a lone
BatchNorm lies beside them.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence, Set

from torch import Tensor

from acfuse.findings import Branch, Suspect
from acfuse.patterns.expr import Expr, seq
from acfuse.patterns.pattern import Pattern
from acfuse.patterns.toml_files import to_toml


def _stub(branches: Sequence[Branch], lone: Sequence[str]) -> str:
    """A pattern of these names, as TOML to start from."""
    arms = [seq(conv, norm) for conv, norm, _ in branches]
    block: Expr = sum(arms[1:], start=arms[0])
    for norm in lone:
        block = block + norm
    text = to_toml(Pattern("mine", block, "fused_conv", "", bn_eps=None))
    text += "bn_eps = 1e-05  # torch's own; put in what the training code has\n"
    for norm in map(ascii, lone):
        text += f"# {norm} may be a branch, as here, or stand behind the sum: ( ... ) > {norm}\n"
    return text


def suspects_in(tensors: Mapping[str, Tensor], known: Set[str]) -> tuple[Suspect, ...]:
    """The groups that look like branches, but for those with a layer that is already known."""
    below: dict[str, dict[str, list[str]]] = {}
    norms: dict[str, list[str]] = {}
    order = {key.removesuffix(".weight"): i for i, key in enumerate(tensors)}
    for key, tensor in tensors.items():
        layer, _, kind = key.rpartition(".")
        is_norm = kind == "running_var"
        if not is_norm and (kind != "weight" or tensor.ndim not in (3, 4, 5)):
            continue
        parts = layer.split(".")
        for depth in range(max(0, len(parts) - 3), len(parts)):
            prefix, child = ".".join(parts[:depth]), parts[depth]
            if is_norm:
                norms.setdefault(prefix, []).append(layer)
            else:
                below.setdefault(prefix, {}).setdefault(child, []).append(layer)
    found = []
    for prefix, children in below.items():
        lone = [layers[0] for layers in children.values() if len(layers) == 1]
        if len(lone) > 1 and known.isdisjoint(lone):
            group = _group(tensors, prefix, lone, norms.get(prefix, []), order)
            found += [group] if group is not None else []
    return tuple(found)


def _group(
    tensors: Mapping[str, Tensor],
    prefix: str,
    convs: list[str],
    norms: list[str],
    order: Mapping[str, int],
) -> Suspect | None:
    shapes = {conv: tuple(tensors[f"{conv}.weight"].shape) for conv in convs}
    sizes = {shape[2:] for shape in shapes.values()}
    if len({shape[:2] for shape in shapes.values()}) > 1 or len(sizes) < 2:
        return None
    if len({tuple(n % 2 for n in size) for size in sizes}) > 1 or len(set(map(len, sizes))) > 1:
        return None
    out, per_group = next(iter(shapes.values()))[:2]
    fitting = [n for n in norms if len(tensors[f"{n}.running_var"]) == out]
    pairs = dict(_paired(convs, fitting, order))
    if len(pairs) < len(convs):
        return None
    lone = [n for n in fitting if n not in pairs.values()]
    nested = all(conv.count(".") > prefix.count(".") + bool(prefix) for conv in convs)
    cannot_follow = out != per_group  # unless they were grouped
    if not (cannot_follow or _is_cross(sizes) or (nested and len(lone) == 1)):
        return None
    start = f"{prefix}." if prefix else ""
    branches = tuple(
        (conv.removeprefix(start), pairs[conv].removeprefix(start), shapes[conv]) for conv in convs
    )
    beside = tuple(n.removeprefix(start) for n in lone[:1])
    return Suspect(prefix, branches, beside, _stub(branches, beside))


def _paired(
    convs: list[str], norms: list[str], order: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Each convolution with its BatchNorm: of the same parent, or else the next of the file."""
    free = sorted(norms, key=lambda n: order.get(n, 0))
    for conv in sorted(convs, key=order.__getitem__):
        parent = conv.rpartition(".")[0]
        inside = [n for n in free if parent and n.rpartition(".")[0] == parent]
        choice = inside or free
        after = [n for n in choice if order.get(n, 0) > order[conv]]
        if choice:
            norm = (after or choice)[0]
            free.remove(norm)
            yield conv, norm


def _is_cross(sizes: Collection[tuple[int, ...]]) -> bool:
    """Whether a tall and a wide kernel lie beside a square one."""
    tall = any(size[0] > 1 and set(size[1:]) == {1} for size in sizes if len(size) > 1)
    wide = any(size[-1] > 1 and set(size[:-1]) == {1} for size in sizes if len(size) > 1)
    return tall and wide and any(len(set(size)) == 1 and size[0] > 1 for size in sizes)
