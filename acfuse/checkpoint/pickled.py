"""Files of torch.save, read with `weights_only=True`, always: nothing runs that a file says."""

import inspect
import io
import re
import sys
import sysconfig
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acfuse.checkpoint.models import resolve
from acfuse.checkpoint.opened import Opened
from acfuse.checkpoint.pickles import contents_of
from acfuse.checkpoint.zips import check_zip, is_zip, names_of
from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.limits import Limits


def read_torch(source: Opened, allow_classes: Sequence[str], limits: Limits) -> Any:
    """torch.load of tensors and plain values, and of what the user allowed by name."""
    name = source.name
    _check_torch_file(source, limits)
    allowed = _allowed_globals(_blocked_globals(source), allow_classes)
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
                warnings.simplefilter("ignore")
                mapped = is_zip(source)
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
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


def _check_torch_file(source: Opened, limits: Limits) -> None:
    """Raises InputError or UnsafeError for a file that torch should not see."""
    if is_zip(source):
        if any(n.endswith("constants.pkl") for n in names_of(source)):
            raise UnsafeError(
                f"{source.name} is a TorchScript archive, which is code. Where you trust it, save "
                f"its tensors: torch.save(torch.jit.load({source.name!r}).state_dict(), "
                "'weights.pth')."
            )
        check_zip(source, limits)
        _check_zipped(source, limits)
        return
    with source.open() as file:
        if file.read(1) != b"\x80":
            raise InputError(
                f"{source.name} is in torch's oldest format, which is no longer read. Save it "
                "again with a newer torch.save."
            )
        file.seek(0)
        claimed = 0
        for _ in range(LEGACY_PICKLES):
            claimed += sum(contents_of(file, source.name, limits).storages.values())
        left = source.size - file.tell()
    if claimed > left:
        raise InputError(
            f"{source.name} is damaged or cut off: it holds {left:,} bytes of tensors, and says "
            f"that it has {claimed:,}."
        )


def _check_zipped(source: Opened, limits: Limits) -> None:
    """The storages that the pickle names are the records of the file, each of its size."""
    with zipfile.ZipFile(source) as archive:
        records = {i.filename.partition("/")[2]: i for i in archive.infolist()}
        pickled = records.get("data.pkl")
        if pickled is None:
            raise InputError(f"{source.name} is a zip file, and none of torch.save: no data.pkl.")
        found = contents_of(io.BytesIO(archive.read(pickled)), source.name, limits)
    for key, size in found.storages.items():
        record = records.get(f"data/{key}")
        if record is None or record.file_size != size:
            held = "none" if record is None else f"{record.file_size:,}"
            raise InputError(
                f"{source.name} is damaged: the storage {key!r} should have {size:,} bytes, and "
                f"has {held}."
            )


LEGACY_PICKLES = 5  # magic number, version, machine, the object, the keys of its storages


def _blocked_globals(source: Opened) -> list[str]:
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
    if not (_is_layer(found) or _is_own(found)):
        raise UsageError(
            f"--allow-class {spec}: {found.__module__}.{found.__qualname__} is no layer and not "
            "your own code: it may act when it is made. Only torch modules, and classes of your "
            "own code, can be allowed."
        )
    return found


def _is_layer(found: type) -> bool:
    """Whether a class is a torch module that is only its attributes.

    Torch's modules that hold code (of fx, of jit) are built by running it.
    """
    ours = not found.__module__.startswith("torch.") or found.__module__.startswith("torch.nn.")
    code = (torch.fx.GraphModule, torch.jit.ScriptModule)
    return ours and issubclass(found, nn.Module) and not issubclass(found, code)


def _is_own(found: type) -> bool:
    """Whether a class comes from a file that is not installed: neither Python's nor a package's."""
    file = getattr(sys.modules.get(found.__module__), "__file__", None)
    if file is None:
        return False
    path = Path(file).resolve()
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = [Path(sysconfig.get_path(kind)).resolve() for kind in kinds]
    parts = {"site-packages", "dist-packages"} & set(path.parts)
    return not parts and not any(folder in path.parents for folder in installed)
