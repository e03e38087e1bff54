"""Files of torch.save, read with `weights_only=True`, always: nothing runs that a file says."""

import argparse
import collections
import datetime
import decimal
import fractions
import inspect
import io
import pathlib
import sys
import sysconfig
import types
import uuid
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct, scalar
from torch import nn

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.files.opened_file import Opened
from acfuse.files.package_classes import in_package, own_class, package_of
from acfuse.files.pickle_scan import Contents, contents_of
from acfuse.files.user_code import resolve
from acfuse.files.zip_check import check_zip, is_zip, names_of, unzipped
from acfuse.system.escape import listed
from acfuse.system.limits import Limits


def read_torch(
    source: Opened, allow_classes: Sequence[str], limits: Limits
) -> tuple[Any, tuple[str, ...]]:
    """torch.load of tensors and plain values, and of what the user allowed by name.

    With what a user should know of the file.
    """
    contents, notes = _check_torch_file(source, limits)
    blocked = _blocked_globals(list(contents.names))
    known = [*_plain_globals(blocked), *_allowed_globals(blocked, allow_classes)]
    missing = {*blocked} - {_global_name(one) for one in known}
    packaged = {name: found for name in missing if (found := in_package(name, allow_classes))}
    if missing - packaged.keys():
        raise UnsafeError(_refusal(source.name, sorted(missing - packaged.keys())))
    allowed = [*known, *((own_class(module, name), name) for name, module in packaged.items())]
    plain = {name for kind, name in allowed[len(known) :] if not issubclass(kind, nn.Module)}
    called = sorted(contents.called & {*blocked} - CALLED - plain)
    if called:
        raise UnsafeError(
            f"{source.name} is refused: it calls {listed(called)}, and a pickled object is made "
            "without its constructor."
        )
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(allowed),
            torch.sparse.check_sparse_tensor_invariants(True),  # type: ignore[no-untyped-call]
        ):
            warnings.simplefilter("ignore")
            mapped = is_zip(source)
            whole = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        text = f"{source.name} is damaged or cut off: torch cannot read it."
        raise InputError(text) from error
    return whole, notes


# Layers, and the wrapper that computes what the model in it does.
TORCHS_OWN = ("torch.nn.modules.", "torch.nn.parallel.data_parallel.DataParallel")


def _refusal(name: str, missing: Sequence[str]) -> str:
    own = [g for g in missing if not g.startswith(TORCHS_OWN)] or list(missing)
    never = [g for g in own if g.partition(".")[0] in sys.stdlib_module_names]
    if never:  # no flag allows these: they may act when they are made
        return (
            f"{name} is a pickled object, not a state dict: it names {listed(never)}, which is "
            "never allowed. Whoever made it can save the model's state_dict()."
        )
    packages = sorted({p for g in own if (p := package_of(g))})
    named = [g for g in own if not package_of(g)]
    places = {g: "FILE.py" if g.startswith("__main__.") else g.rpartition(".")[0] for g in named}
    flags = [f"--allow-class {places[g]}:{g.rpartition('.')[2]}" for g in named]
    flags += [f"--allow-package {package}" for package in packages]
    whose = "you trust these packages" if packages else "these classes are your own code"
    both = packages and named
    is_script = "FILE.py" in places.values()
    script = ", with the script that defines them in place of FILE.py" if is_script else ""
    return (
        f"{name} is a pickled object, not a state dict: it names {listed(own)}. If "
        f"{whose}{' and the classes are your own code' if both else ''}, add "
        f"{' '.join(flags[:20])}{script}; or save the model's state_dict()."
    )


def _check_torch_file(source: Opened, limits: Limits) -> tuple[Contents, tuple[str, ...]]:
    """What the pickles of a file import and call, and what a user should know of it.

    Raises InputError or UnsafeError for a file that torch should not see.
    """
    if is_zip(source):
        if any(n.endswith("constants.pkl") for n in names_of(source, limits)):
            raise UnsafeError(
                f"{source.name} is a TorchScript archive, which is code. Where you trust it, save "
                f"its tensors: torch.save(torch.jit.load({source.name!r}).state_dict(), "
                "'weights.pth')."
            )
        notes = check_zip(source, limits)
        return _check_zipped(source, limits), notes
    return _check_legacy(source, limits), ()


def _check_legacy(source: Opened, limits: Limits) -> Contents:
    """The older format: pickles one after the other, then the storages, which must be there."""
    whole = Contents()
    names = whole.names
    with source.open() as file:
        begins = file.read(len(LEGACY_MAGIC))
        if not begins.startswith(b"\x80"):
            raise InputError(
                f"{source.name} is in torch's oldest format, which is no longer read. Save it "
                "again with a newer torch.save."
            )
        file.seek(0)
        claimed = 0
        for _ in range(LEGACY_PICKLES):
            found = contents_of(file, source.name, limits)
            names.update(found.names)
            whole.called.update(found.called)
            claimed += sum(found.storages.values())
            if begins != LEGACY_MAGIC:
                text = f"{source.name} is a pickle, and no file of torch.save"
                if names:
                    raise UnsafeError(f"{text}: it names {listed(names)}. Nothing of it is read.")
                raise InputError(f"{text}. Save the model's state_dict() with torch.save.")
        left = source.size - file.tell()
    if claimed > left:
        raise InputError(
            f"{source.name} is damaged or cut off: it holds {left:,} bytes of tensors, and says "
            f"that it has {claimed:,}."
        )
    return whole


def _check_zipped(source: Opened, limits: Limits) -> Contents:
    """The storages that the pickle names are the records of the file, each of its size."""
    with unzipped(source) as archive:
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
    return found


LEGACY_PICKLES = 5  # magic number, version, machine, the object, the keys of its storages
LEGACY_MAGIC = b"\x80\x02\x8a\x0a" + torch.serialization.MAGIC_NUMBER.to_bytes(10, "little") + b"."


def _blocked_globals(names: Sequence[str]) -> list[str]:
    """Those of some names that torch does not allow by itself.

    Torch answers this for a file, so here is one that only names them.
    """
    asked = b"".join(b"c%s\n%s\n" % tuple(n.encode().rpartition(b".")[::2]) for n in names)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + asked + b".")
        archive.writestr("a/version", b"3\n")
    buffer.seek(0)
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(buffer))


# Values that people keep beside weights. None of them does anything when it is made, however it is
# called, but to hold what it is given; `range` and `bytes` are not among them, because a number is
# enough for them to be of any size.
PLAIN: dict[str, Any] = {
    **{f"builtins.{kind.__name__}": kind
       for kind in (dict, list, set, frozenset, tuple, slice, bool, complex)},
    **{f"__builtin__.{kind.__name__}": kind
       for kind in (dict, list, set, frozenset, tuple, slice, bool, complex)},
    **{f"datetime.{kind.__name__}": kind
       for kind in (datetime.date, datetime.datetime, datetime.time, datetime.timedelta,
                    datetime.timezone)},
    **{f"{module}.{kind.__name__}": kind for module in ("pathlib", "pathlib._local")
       for kind in (pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath)},
    # A path of the other kind of system cannot be made: as text, both are the same.
    **{f"{module}.{name}": kind for module in ("pathlib", "pathlib._local")
       for name, kind in (("PosixPath", pathlib.PurePosixPath),
                          ("WindowsPath", pathlib.PureWindowsPath))},
    "collections.OrderedDict": collections.OrderedDict,
    # Torch fills no others than these: what they hold is the same.
    "collections.defaultdict": lambda *_: {},
    "collections.deque": lambda *_: [],
    "collections.Counter": collections.Counter,
    "decimal.Decimal": decimal.Decimal,
    "fractions.Fraction": fractions.Fraction,
    "uuid.UUID": uuid.UUID,
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
}  # fmt: skip
ARRAYS: dict[str, Any] = {  # of numpy; they are filled with what the file holds
    **{f"numpy.{core}.multiarray.{kind.__name__}": kind for core in ("core", "_core")
       for kind in (_reconstruct, scalar)},
    "numpy.dtype": np.dtype,
    "numpy.ndarray": np.ndarray,
}  # fmt: skip
CALLED = {*PLAIN, *ARRAYS} - {"numpy.ndarray"}


def _plain_globals(blocked: Sequence[str]) -> list[Any]:
    """Those of some names that are plain values of Python and numpy, which need not be allowed."""
    known = {**PLAIN, **ARRAYS}
    named: list[Any] = [(known[name], name) for name in blocked if name in known]
    # Torch asks by the class of what is filled: that of a dtype is one of its own.
    kinds = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"]
    return [*named, *kinds] if any(name in ARRAYS for name in blocked) else named


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
        if name.startswith(TORCHS_OWN):
            found = getattr(sys.modules.get(module), attribute, None)
            if inspect.isclass(found) and issubclass(found, nn.Module):
                allowed.append(found)
        for spec in allow_classes:
            if not spec.endswith(":*") and _names(spec, name):
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
