"""The network that --model names, and tensors put into it."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.files.packages import MAKERS
from acfuse.files.user_modules import imported, module_of, not_built, parts_of
from acfuse.system.escape import listed, one_line

WRAPPERS = ("module.", "_orig_mod.")


def build_model(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that --model names: a class, a function that makes one, or a module object.

    `package.module:name` or `path/to/file.py:name`, or the name of a network in a package that has
    many (`MAKERS`). Where a module has no such name but a `create_model`, that is called with it.
    """
    package, _, name = spec.partition(":")
    if package in MAKERS and name:
        found = partial(MAKERS[package], imported(package, "--model"), name, arguments)
        arguments = {}
    else:
        found = resolve(spec, "--model")
    try:
        network = found if isinstance(found, nn.Module) else found(**arguments)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise not_built(spec, error) from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--model {spec} gives {type(network).__name__}; expected a torch module.")
    return network


def resolve(spec: str, flag: str) -> Any:
    """What `package.module:name` or `file.py:name` on the command line means."""
    place, name = parts_of(spec, flag)
    module = module_of(place, name, flag)
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "create_model"):
        return lambda **arguments: module.create_model(name, **arguments)
    near = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
    known = f" It has {', '.join(near[:5])}." if near else ""
    raise UsageError(f"{flag} {spec}: {place} has no {name}.{known}")


def fit_prefix(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Strips what all keys of the model have in front, and leaves out the tensors without it.

    Raises UsageError if there are two such prefixes: nothing is chosen silently.
    """
    expected = {k for k in network.state_dict() if not k.endswith("num_batches_tracked")}
    found = _prefixes(tensors, expected)
    if len(found) > 1:
        told = listed([repr(prefix) for prefix in found])
        text = f"the model's keys stand below {told}. Choose one with --prefix."
        raise UsageError(text)
    if found:
        return found[0], stripped(tensors, found[0])
    prefix, fitting = "", dict(tensors)  # it does not fit; what is odd is told without wrappers
    while fitting and not expected & set(fitting):
        first = next(iter(fitting)).partition(".")[0] + "."
        inner = {k.removeprefix(first): v for k, v in fitting.items()}
        if not all(k.startswith(first) for k in fitting):
            break
        if not (first in WRAPPERS or expected & set(inner)):
            break
        prefix, fitting = prefix + first, inner
    return prefix, fitting


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _prefixes(tensors: Mapping[str, Tensor], expected: set[str]) -> list[str]:
    """What may stand in front of the model's keys, so that all of them are there."""
    if not expected:
        return [""]
    rarest = max(expected, key=len)  # few other keys end with it
    heads = [k.removesuffix(rarest) for k in tensors if k.endswith(rarest)]
    heads = [h for h in heads if not h or h.endswith(".")]
    return [h for h in heads if all(h + key in tensors for key in expected)]


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> tuple[str, ...]:
    """Puts tensors into a network as they are. Raises InputError where they do not fit.

    Whether they do is torch's word, with the model's own load hooks. Returns the keys that only
    these know, as they are no keys of the model.
    """
    expected = network.state_dict()
    unlike = [k for k, v in tensors.items() if k in expected and v.shape != expected[k].shape]
    if unlike:
        first = unlike[0]
        raise InputError(
            f"{name} does not fit the model: {len(unlike)} tensors have another shape, first "
            f"{first} with {tuple(tensors[first].shape)}, where the model has "
            f"{tuple(expected[first].shape)}. Are the --model-args right?"
        )
    whole = [
        k
        for k, v in tensors.items()
        if k in expected and expected[k].is_floating_point() and not v.is_floating_point()
    ]
    if whole:
        kind = str(tensors[whole[0]].dtype).removeprefix("torch.")
        raise InputError(f"{name}: {whole[0]} is {kind}; expected floating-point numbers.")
    try:
        said = assigned(network, tensors)
    except RuntimeError as error:  # of the model's own load hooks, or of what they give
        raise InputError(f"{name} does not fit the model: {one_line(error, 300)}") from error
    missing = [k for k in said.missing_keys if not k.endswith("num_batches_tracked")]
    unknown = list(said.unexpected_keys)
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys of the model are missing (first: {missing[0]})")
        if unknown:
            parts.append(f"{len(unknown)} keys are not the model's (first: {unknown[0]})")
        kinds = [f"{k} is of {what}" for k in unknown for end, what in KINDS.items()
                 if k.endswith(end)]  # fmt: skip
        usual = "Is --model the right one, with the right --model-args?"
        told = kinds[0] if kinds else usual
        raise InputError(f"{name} does not fit the model: {'; '.join(parts)}. {told}")
    return tuple(k for k in tensors if k not in expected)


# What is beside the weights, or in their place, while a network is trained.
KINDS = {
    "weight_mask": "torch's pruning: call torch.nn.utils.prune.remove(layer, 'weight') on each, "
    "and save the state_dict() again.",
    "weight_g": "weight_norm: build the model with it, or call "
    "torch.nn.utils.remove_weight_norm(layer) on each, and save the state_dict() again.",
    "parametrizations.weight.original0": "a parametrization: build the model with it, or call "
    "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') on each, and save again.",
    "fake_quant_enabled": "training for quantisation: build the model as it was prepared for that, "
    "or save the weights of the float model.",
}  # fmt: skip


def assigned(network: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """Puts tensors into a network. What was one tensor under several names stays one.

    Where a file has other numbers under one of these names, it becomes one of its own. Returns
    what torch says of the keys.
    """
    places: dict[int, list[tuple[Any, str]]] = {}
    for module in network.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    places.setdefault(id(tensor), []).append((held, name))
    said = network.load_state_dict(dict(tensors), strict=False, assign=True)
    for (first, name), *others in places.values():
        for held, other in others:
            one, two = first[name], held[other]
            if one is not None and two is not None and torch.equal(one, two):
                held[other] = one
    return said
