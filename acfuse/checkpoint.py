"""Files in and out: a live model or bare tensors, with the wrapper that they came in.

Loading runs nothing that a file says: `weights_only=True`, always, and no other way.
"""

import hashlib
import importlib
import importlib.util
import inspect
import io
import json
import re
import stat
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.text import one_line

WRAPPERS = ("module.", "_orig_mod.")
# Entries that may hold tensors by name, but not the weights of a network.
NOT_WEIGHTS = ("optim", "sched", "scaler", "grad", "loss", "metric", "hyper", "conf", "args")


@dataclass(frozen=True)
class Wrapper:
    """The form in which tensors came: the whole object, where in it they stood, their prefix."""

    kind: str  # "state_dict", "module" or "safetensors"
    whole: Any = field(default=None, repr=False)
    path: tuple[str, ...] = ()
    prefix: str = ""
    metadata: Mapping[str, str] | None = None

    @property
    def key(self) -> str:
        """The entry of the file that holds the tensors, as --key takes it."""
        return ".".join(self.path)


@dataclass(frozen=True)
class BareTensors:
    """A state dict without its code. `tensors` has the keys as the file has them, less `prefix`."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    wrapper: Wrapper
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LiveModel:
    """A model with the tensors of a checkpoint in it, in eval mode."""

    model: nn.Module = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    wrapper: Wrapper
    notes: tuple[str, ...] = ()


Checkpoint = LiveModel | BareTensors


def load(
    source: Path,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    key: str | None = None,
    allow_classes: Sequence[str] = (),
) -> Checkpoint:
    """Reads a checkpoint; with `model`, into the network that it names.

    Raises InputError for a file that cannot be used, UnsafeError for one that would run code.
    """
    wrapper, tensors = read_tensors(source, key=key, allow_classes=allow_classes)
    if wrapper.kind == "module":
        network = wrapper.whole.eval()
        if model is not None:
            raise UsageError(f"{source.name} holds a whole model; --model is for state dicts.")
        return LiveModel(network, tensors, wrapper)
    if model is None:
        return BareTensors(tensors, wrapper)
    network = build_model(model, model_args or {})
    prefix, fitting = fit_prefix(tensors, network)
    load_into(network, fitting, source.name)
    notes = (f"stripped the prefix {prefix!r} from every key",) if prefix else ()
    return LiveModel(network.eval(), fitting, replace(wrapper, prefix=prefix), notes)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------ reading


def read_tensors(
    source: Path, *, key: str | None = None, allow_classes: Sequence[str] = ()
) -> tuple[Wrapper, dict[str, Tensor]]:
    """The tensors of a file, and the wrapper around them."""
    kind = recognise(source)
    if kind == "safetensors":
        return _read_safetensors(source)
    whole = _torch_load(source, allow_classes)
    if isinstance(whole, nn.Module):
        return Wrapper("module", whole), dict(whole.state_dict())
    path, found = _tensor_entry(whole, key, source.name)
    tensors = {k: v for k, v in found.items() if isinstance(v, Tensor)}
    _check_dense(tensors, source.name)
    return Wrapper("state_dict", whole, path), tensors


def recognise(source: Path) -> str:
    """What a file is by its first bytes: "torch" or "safetensors". Raises InputError otherwise."""
    name = source.name
    try:
        if source.is_dir():
            raise InputError(f"{name} is a directory; expected a checkpoint file.")
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name} is not a regular file; expected a checkpoint file.")
        size = status.st_size
        with source.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise InputError(f"{source} does not exist; expected a checkpoint file.") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}.") from error
    text = head.lstrip().lower()
    if size == 0:
        raise InputError(f"{name} is empty; expected a checkpoint. Download it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{name} is a git-lfs pointer, not the file itself. Run `git lfs pull`.")
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        raise InputError(f"{name} is a web page, not a checkpoint. Download the file itself.")
    archives = {b"\x1f\x8b": "gzip", b"7z\xbc\xaf": "7-zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
    for magic, archive in archives.items():
        if head.startswith(magic):
            raise InputError(f"{name} is a {archive} archive. Unpack it and give the checkpoint.")
    if head.startswith(b"\x89HDF"):
        raise InputError(f"{name} is an HDF5 file; expected a torch or safetensors checkpoint.")
    if _is_safetensors(head, size):
        return "safetensors"
    if head.startswith((b"PK\x03\x04", b"\x80")) or head.startswith(b"ustar", 257):
        return "torch"
    if _is_onnx(head):
        raise InputError(f"{name} is an ONNX file; expected the checkpoint of a PyTorch model.")
    raise InputError(f"{name} is no checkpoint: it begins with {head[:8]!r}.")


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 9 and head[8:9] == b"{" and 2 <= length <= size - 8


def _is_onnx(head: bytes) -> bool:
    """A ModelProto begins with its ir_version (field 1, a small number), then the producer."""
    return (
        len(head) > 3 and head[0] == 0x08 and head[1] < 0x20 and head[2] in (0x12, 0x1A, 0x3A, 0x42)
    )


def _read_safetensors(source: Path) -> tuple[Wrapper, dict[str, Tensor]]:
    try:
        with safe_open(str(source), framework="pt") as file:
            metadata = file.metadata()
        tensors = safetensors.torch.load_file(str(source))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{source.name} is a damaged safetensors file: {one_line(error)}."
        ) from error
    with source.open("rb") as file:  # the library sorts by dtype: the file's header has the order
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    order = [name for name in header if name in tensors]
    return Wrapper("safetensors", metadata=metadata), {name: tensors[name] for name in order}


def _torch_load(source: Path, allow_classes: Sequence[str]) -> Any:
    """torch.load of tensors and plain values, and of what the user allowed by name."""
    name = source.name
    _check_records(source)
    allowed = _allowed_globals(_blocked_globals(source), allow_classes)
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")
                mapped = _is_zip(source)
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            if _is_torchscript(source):
                raise UnsafeError(
                    f"{name} is a TorchScript archive, which is code. Save its state_dict()."
                ) from error
            # Files of the older format name what they hold only while they are read.
            blocked = _blocked_globals(source) or re.findall(BLOCKED, str(error))
            more = _allowed_globals(blocked, allow_classes)
            if not more or {_global_name(m) for m in more} <= {_global_name(a) for a in allowed}:
                missing = {*blocked} - {_global_name(a) for a in (*allowed, *more)}
                if missing:
                    raise UnsafeError(_refusal(name, sorted(missing))) from error
                text = f"{name} is damaged or cut off: torch cannot read it."
                raise InputError(text) from error
            allowed = [*allowed, *more]


BLOCKED = r"Unsupported (?:global: GLOBAL|class|operand) (\w+\.[\w.]+)"


def _refusal(name: str, missing: Sequence[str]) -> str:
    own = [g for g in missing if not g.startswith("torch.nn.modules.")] or list(missing)
    flags = " ".join(f"--allow-class {g.rpartition('.')[0]}:{g.rpartition('.')[2]}" for g in own)
    return (
        f"{name} is a pickled object, not a state dict: it names {', '.join(own)}. If these "
        f"classes are your own code, add {flags}; or save the model's state_dict()."
    )


def _is_zip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_records(source: Path) -> None:
    """Raises InputError if a record of a zip file is not what its checksum says."""
    if not _is_zip(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            bad = archive.testzip()
    except Exception as error:
        raise InputError(
            f"{source.name} is damaged or cut off: {one_line(error)}. Download it again."
        ) from error
    if bad is not None:
        raise InputError(
            f"{source.name} is damaged: the checksum of {bad} is wrong. Download it again."
        )


def _is_torchscript(source: Path) -> bool:
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(n.endswith("constants.pkl") for n in archive.namelist())


def _blocked_globals(source: Path) -> list[str]:
    """The names in a pickle that torch does not allow by itself. Reads opcodes, runs nothing."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(source))
    except Exception:
        return []


def _allowed_globals(blocked: Sequence[str], allow_classes: Sequence[str]) -> list[Any]:
    """What a whole pickled module may name: the user's own classes, and torch's own layers.

    Torch's layers are looked through once: they are made without their constructor and given their
    attributes, which are tensors, numbers and modules. Classes come from the user's code, by the
    names that the user gave, never by a name that is only in the file.
    """
    if not allow_classes:
        return []
    allowed: list[Any] = [set, OrderedDict]
    for name in blocked:
        module, _, attribute = name.rpartition(".")
        if module.startswith("torch.nn.modules."):
            found = getattr(sys.modules.get(module), attribute, None)
            if inspect.isclass(found) and issubclass(found, nn.Module):
                allowed.append(found)
        for spec in allow_classes:
            if _names(spec, name):
                allowed.append((_own_class(spec), name))
    return allowed


def _global_name(allowed: Any) -> str:
    if isinstance(allowed, tuple):
        return str(allowed[1])
    return f"{allowed.__module__}.{allowed.__qualname__}"


def _names(spec: str, name: str) -> bool:
    """Whether --allow-class `spec` means the global `name` of a pickle."""
    module, _, attribute = spec.rpartition(":")
    if module.endswith(".py"):
        return name.rpartition(".")[2] == attribute
    return name == f"{module}.{attribute}"


def _own_class(spec: str) -> type:
    found = resolve(spec, "--allow-class")
    if not inspect.isclass(found):
        raise UsageError(f"--allow-class {spec}: that is no class. Only classes can be allowed.")
    if found.__module__.partition(".")[0] in sys.stdlib_module_names:
        raise UsageError(
            f"--allow-class {spec}: a class of Python itself may act when it is made. Only classes "
            "of your own code can be allowed."
        )
    return found


# ------------------------------------------------------------------------------ nests


def _tensor_entry(whole: Any, key: str | None, name: str) -> tuple[tuple[str, ...], Any]:
    """Where in a loaded object the tensors stand. Never chooses between two silently."""
    if not isinstance(whole, Mapping):
        raise InputError(f"{name} holds {type(whole).__name__}; expected a dict of tensors.")
    if key is not None:
        path = _path_of(whole, key)
        found: Any = whole
        for part in path:
            found = found[part]
        if not path or not _holds_tensors(found):
            raise UsageError(f"{name} holds no tensors under {key!r}. It has {_entries(whole)}.")
        return path, found
    if _holds_tensors(whole):
        return (), whole
    candidates = dict(_candidates(whole, ()))
    if not candidates:
        raise InputError(
            f"{name} holds {_entries(whole)} but no tensors. Give --key with the entry that "
            "holds the weights."
        )
    if len(candidates) > 1:
        keys = ", ".join(".".join(path) for path in candidates)
        raise UsageError(f"{name} holds several sets of weights: {keys}. Choose one with --key.")
    ((path, found),) = candidates.items()
    return path, found


def _path_of(whole: Any, key: str) -> tuple[str, ...]:
    """The entries that a dotted key leads through (an entry's own name may have dots); or none."""
    if not isinstance(whole, Mapping):
        return ()
    if key in whole:
        return (key,)
    for entry, value in whole.items():
        if isinstance(entry, str) and key.startswith(entry + "."):
            rest = _path_of(value, key.removeprefix(entry + "."))
            if rest:
                return (entry, *rest)
    return ()


def _candidates(whole: Mapping[Any, Any], path: tuple[str, ...]) -> Any:
    for key, value in whole.items():
        if not isinstance(key, str) or any(word in key.lower() for word in NOT_WEIGHTS):
            continue
        if _holds_tensors(value):
            yield (*path, key), value
        elif isinstance(value, Mapping) and len(path) < 3:
            yield from _candidates(value, (*path, key))


def _holds_tensors(value: Any) -> bool:
    """Whether this is a dict of tensors by name (a few other values may stand among them)."""
    if not isinstance(value, Mapping) or not value:
        return False
    tensors = sum(isinstance(v, Tensor) for v in value.values())
    return tensors * 2 > len(value) and all(isinstance(k, str) for k in value)


def _entries(whole: Mapping[Any, Any]) -> str:
    return "{" + ", ".join(repr(k) for k in list(whole)[:8]) + "}"


def _check_dense(tensors: Mapping[str, Tensor], name: str) -> None:
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            raise InputError(f"{name}: {key} is not a dense tensor of real numbers.")


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises InputError if a tensor holds NaN or Inf, with its name."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            kind = "NaN" if torch.isnan(tensor).any() else "Inf"
            raise InputError(
                f"{name}: {key} holds {kind}. Nothing can be proved about such a model."
            )


# ------------------------------------------------------------------------------ models


def build_model(spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that --model names: a class, a function that makes one, or a module object.

    `package.module:name` or `path/to/file.py:name`. Where the module has no such name but a
    `create_model` (as timm has), that is called with the name.
    """
    found = resolve(spec, "--model")
    try:
        network = found if isinstance(found, nn.Module) else found(**arguments)
    except (Exception, SystemExit) as error:
        raise InputError(f"--model {spec} could not be built: {one_line(error)}.") from error
    if not isinstance(network, nn.Module):
        raise UsageError(f"--model {spec} gives {type(network).__name__}; expected a torch module.")
    return network


def resolve(spec: str, flag: str) -> Any:
    """What `package.module:name` or `file.py:name` on the command line means."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"{flag} {spec}: expected package.module:name or path/to/file.py:name.")
    module = _import_file(Path(place), flag) if place.endswith(".py") else _import(place, flag)
    if hasattr(module, name):
        return getattr(module, name)
    if hasattr(module, "create_model"):
        return lambda **arguments: module.create_model(name, **arguments)
    near = [n for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)]
    known = f" It has {', '.join(near[:5])}." if near else ""
    raise UsageError(f"{flag} {spec}: {place} has no {name}.{known}")


def _import_file(path: Path, flag: str) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"{flag}: {path} does not exist.")
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{flag}: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.append(folder)
    if known is None:
        sys.modules[name] = module  # pickling and dataclasses look classes up by their module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if known is None:
            del sys.modules[name]
        raise InputError(f"{flag}: {path} could not be imported: {one_line(error)}.") from error
    finally:
        sys.path.remove(folder)
    return module


def _import(name: str, flag: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: nothing there can stand for another module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{flag}: there is no module {name} ({one_line(error)}).") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{flag}: {name} could not be imported: {one_line(error)}.") from error


def fit_prefix(tensors: Mapping[str, Tensor], network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Strips what all keys have in front, if the model's own keys do not have it."""
    expected = set(network.state_dict())
    prefix, fitting = "", dict(tensors)
    while fitting and not expected & set(fitting):
        first = next(iter(fitting)).partition(".")[0] + "."
        wrapped = all(k.startswith(first) for k in fitting)
        stripped = {k.removeprefix(first): v for k, v in fitting.items()}
        if not wrapped or not (first in WRAPPERS or expected & set(stripped)):
            break
        prefix, fitting = prefix + first, stripped
    return prefix, fitting


def load_into(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Puts tensors into a network as they are. Raises InputError where they do not fit."""
    expected = network.state_dict()
    missing = [k for k in expected if k not in tensors and not k.endswith("num_batches_tracked")]
    unknown = [k for k in tensors if k not in expected]
    if missing or unknown:
        parts = []
        if missing:
            parts.append(f"{len(missing)} keys of the model are missing (first: {missing[0]})")
        if unknown:
            parts.append(f"{len(unknown)} keys are not the model's (first: {unknown[0]})")
        raise InputError(
            f"{name} does not fit the model: {'; '.join(parts)}. Is --model the right one, with "
            "the right --model-args?"
        )
    whole = [
        k
        for k, v in tensors.items()
        if expected[k].is_floating_point() and not v.is_floating_point()
    ]
    if whole:
        kind = str(tensors[whole[0]].dtype).removeprefix("torch.")
        raise InputError(f"{name}: {whole[0]} is {kind}; expected floating-point numbers.")
    shapes = [k for k, v in tensors.items() if v.shape != expected[k].shape]
    if shapes:
        first = shapes[0]
        raise InputError(
            f"{name} does not fit the model: {len(shapes)} tensors have another shape, first "
            f"{first} with {tuple(tensors[first].shape)}, where the model has "
            f"{tuple(expected[first].shape)}. Are the --model-args right?"
        )
    network.load_state_dict(dict(tensors), strict=False, assign=True)


# ------------------------------------------------------------------------------ writing


def to_bytes(wrapper: Wrapper, fused: Mapping[str, Tensor] | nn.Module) -> bytes:
    """A fused checkpoint as the bytes of a file, in the form that the original came in."""
    if isinstance(fused, nn.Module):
        return _saved(fused)
    tensors = {wrapper.prefix + key: tensor for key, tensor in fused.items()}
    if wrapper.kind == "safetensors":
        own = {k: v.clone().contiguous() for k, v in tensors.items()}  # none may share memory
        return safetensors.torch.save(own, metadata=dict(wrapper.metadata or {"format": "pt"}))
    return _saved(_rewrapped(wrapper.whole, wrapper.path, tensors))


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _rewrapped(whole: Any, path: tuple[str, ...], tensors: Mapping[str, Tensor]) -> Any:
    """The object with other tensors in their place; the given one is not touched."""
    result: dict[Any, Any] = OrderedDict() if isinstance(whole, OrderedDict) else {}
    if path:
        for key, value in whole.items():
            result[key] = _rewrapped(value, path[1:], tensors) if key == path[0] else value
        return result
    new = list(tensors)
    for key, value in whole.items():
        if not isinstance(value, Tensor):
            result[key] = value
            continue
        while new and (new[0] not in whole or new[0] == key):  # the new ones stand before it
            name = new.pop(0)
            result[name] = tensors[name]
            if name == key:
                break
    result.update((name, tensors[name]) for name in new)
    if hasattr(whole, "_metadata"):  # the versions of the layers, which torch keeps there
        result._metadata = whole._metadata  # type: ignore[attr-defined]
    return result
