"""From findings to a fused model: a copy in which each found block is its one convolution."""

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.algebra import ConvLayer, lower
from acfuse.errors import AcfuseError, InputError, NotFusable, Reason
from acfuse.findings import Block, Findings, Refused, Term
from acfuse.graph.copies import copied
from acfuse.graph.fx_in_place import without_norm
from acfuse.graph.fx_sites import LiveSite
from acfuse.graph.fx_write import NewLayer, rewrite_module, taken_up
from acfuse.system.memory import trim_heap


def fused_copy(
    model: nn.Module, found: Sequence[Block], *, dtype: torch.dtype | None = None
) -> nn.Module:
    """A fused copy of a live model, each part in the mode that it has. The given one stays.

    Fused weights are rounded once, to the dtype of the weights that they replace, or to `dtype`.
    They are where the model is. The weights that are replaced are not copied first.
    """
    borrowed = _replaced_weights(model, found)
    work = copied(model, borrowed)
    by_module: dict[str, list[Block]] = {}
    replaced: dict[int, nn.Module] = {}
    for block in found:
        if block.site.norm is None:
            by_module.setdefault(block.where, []).append(block)
        else:
            replaced |= _fold_in_place(work.get_submodule(block.where), block, dtype)
    places = {where: work.get_submodule(where) for where in by_module}
    replaced |= {
        id(module): _replacement(module, by_module[where], dtype)
        for where, module in places.items()
    }
    fused = _exchange(work, replaced)
    for module in fused.modules():  # whatever stays after all is its own
        for name, weight in module._parameters.items():
            if id(weight) in borrowed:
                module._parameters[name] = copy.deepcopy(weight)
    return fused


def _replaced_weights(model: nn.Module, found: Sequence[Block]) -> dict[int, nn.Parameter]:
    """The parameters that only layers have which are replaced, by id."""
    names = [
        f"{f.where}.{n}" if f.where else n for f in found for n in f.layers if n not in f.site.keep
    ]
    layers = {id(model.get_submodule(name)) for name in names}
    own: dict[int, nn.Parameter] = {}
    others: set[int] = set()
    for module in model.modules():
        for weight in module._parameters.values():
            if id(module) not in layers:
                others.add(id(weight))
            elif weight is not None:
                own[id(weight)] = weight
    return {key: weight for key, weight in own.items() if key not in others}


def _replacement(module: nn.Module, found: Sequence[Block], dtype: torch.dtype | None) -> nn.Module:
    layers = {
        block.site.output: _layers(block, dtype, trained=_is_trained(module, block))
        for block in found
    }
    site: LiveSite = found[0].site
    if site.forward is not None:
        keep = {name for block in found for name in block.site.keep}
        axes = {block.site.output: block.site.rows for block in found if block.site.rows}
        moves = {block.site.output: block.site.moves for block in found}
        fused = rewrite_module(module, site.forward, layers, site.fixed, keep, axes, moves)
        inner = dict(fused.named_modules())
        for name in {name for block in found for name in block.site.taken} & inner.keys():
            if type(inner[name]) is not nn.Module:  # that is all that is left of a norm
                object.__setattr__(inner[name], "forward", taken_up)
        return fused
    parts = OrderedDict((n, layer) for _, n, layer in layers[site.output] if n and layer)
    parts.update((n, module.get_submodule(n)) for n in site.ignore)
    return nn.Sequential(parts).eval()


def _fold_in_place(
    module: nn.Module, block: Block, dtype: torch.dtype | None
) -> dict[int, nn.Module]:
    """Gives a convolution that stays its new numbers; what takes the place of its norm, by id."""
    (term,), norm = block.terms, module.get_submodule(block.site.norm.name)
    convolution: Any = module.get_submodule(str(term.name))
    trained, layer = _is_trained(module, block), _lowered(block, term, dtype)
    if layer.weight.shape != convolution.weight.shape:
        raise AcfuseError(f"{block.label}: the kernel of {term.name} would have another shape.")
    for name, tensor in (("weight", layer.weight), ("bias", layer.bias)):
        convolution._parameters[name] = nn.Parameter(tensor, requires_grad=trained)
    return {id(norm): without_norm(norm, block.site.norm)}


def _is_trained(module: nn.Module, block: Block) -> bool:
    """Whether some weight that a block replaces is one that training changes."""
    layers = [module.get_submodule(name) for name in block.layers]
    weights = [p for layer in layers for p in layer.parameters(recurse=False)]
    return any(weight.requires_grad for weight in weights or module.parameters(recurse=False))


def _layers(block: Block, dtype: torch.dtype | None, *, trained: bool) -> list[NewLayer]:
    layers: list[NewLayer] = []
    for term in block.terms:
        if term.multiply is None or term.name is None:
            layers.append((term.source, None, None))
            continue
        layer = _lowered(block, term, dtype).module().requires_grad_(trained)
        layers.append((term.source, term.name, layer))
    return layers


def _lowered(block: Block, term: Term, dtype: torch.dtype | None = None) -> ConvLayer:
    try:
        layer = _rounded(block, term, dtype)
    except NotFusable as refusal:
        name = ".".join(filter(None, (block.where, term.name)))
        way = " Save the checkpoint in bfloat16 or float32, and convert that."
        hint = way if refusal.code == Reason.OVERFLOW and block.dtype == torch.float16 else ""
        raise InputError(f"{name}: {refusal.why} [{refusal.code}].{hint}") from refusal
    trim_heap(layer.weight.numel())
    return layer


def _rounded(block: Block, term: Term, dtype: torch.dtype | None = None) -> ConvLayer:
    assert term.multiply is not None
    return lower(term.multiply(), dtype or block.dtype)


def without_nonfinite(findings: Findings) -> Findings:
    """The findings, those refused whose fused weights are no numbers."""
    found, refused = [], [*findings.refused]
    for block in findings.found:
        try:
            for term in block.terms:
                if term.multiply is not None:
                    _rounded(block, term)
            found.append(block)
        except NotFusable as refusal:
            refused.append(Refused(block.where, refusal.code, refusal.why, block.pattern))
    return replace(findings, found=tuple(found), refused=tuple(refused))


def _exchange(root: nn.Module, replaced: Mapping[int, nn.Module]) -> nn.Module:
    """The tree with modules replaced wherever they stand, under all their names."""
    root = replaced.get(id(root), root)
    stack, seen = [root], {id(root)}
    while stack:
        module = stack.pop()
        for name, child in module._modules.items():
            if child is None:
                continue
            child = replaced.get(id(child), child)
            module._modules[name] = child
            if id(child) not in seen:
                seen.add(id(child))
                stack.append(child)
    return root


def fused_bare(tensors: Mapping[str, Tensor], found: Sequence[Block]) -> dict[str, Tensor]:
    """The tensors of a fused checkpoint whose code is not at hand."""
    owner = _owners(found)
    state = {
        key: t
        for key, t in tensors.items()
        if owner.keys().isdisjoint((key, key.rpartition(".")[0]))
    }
    for block in found:
        for name, term in zip(block.names, block.terms, strict=True):
            if term.multiply is not None:
                layer = _lowered(block, term)
                state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight, layer.bias
    return fused_tensors(tensors, state, found)


def _owners(found: Sequence[Block]) -> dict[str, Block]:
    """The block that replaces each layer, by the layer's full name."""
    owner: dict[str, Block] = {}
    for block in found:
        prefix = f"{block.where}." if block.where else ""
        owner.update((f"{prefix}{layer}", block) for layer in block.layers)
    return owner


def fused_tensors(
    tensors: Mapping[str, Tensor], fused: Mapping[str, Tensor], found: Sequence[Block]
) -> dict[str, Tensor]:
    """The tensors of a fused checkpoint, in the order of the original.

    `fused` are the tensors of the fused model. What was not fused is the original's own tensor; the
    new ones stand where the first one that they replace stood, and on the same device.
    """
    owner = _owners(found)
    new = {id(b): [k for n in b.names for k in (f"{n}.weight", f"{n}.bias")] for b in found}
    placed = {key for keys in new.values() for key in keys}
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        replaced = owner.get(key.rpartition(".")[0]) or owner.get(key)
        if replaced is not None:
            own = new.pop(id(replaced), ())
            result.update((k, fused[k].to(tensor.device)) for k in own)
        if key in fused and key not in placed:
            result[key] = tensor
    result.update((key, fused[key]) for keys in new.values() for key in keys)
    missing = sorted(set(fused) - set(result) - {k for k in fused if "num_batches" in k})
    if missing:
        raise AcfuseError(f"the fused model has keys of unknown origin: {', '.join(missing[:3])}.")
    return result
