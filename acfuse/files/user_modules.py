"""The module that --model names: found, and imported. Without PyTorch, until it asks for it."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from acfuse.errors import InputError, UsageError
from acfuse.files.opened_file import check_given
from acfuse.files.packages import MAKERS
from acfuse.files.signatures import fault_of_call
from acfuse.system.escape import one_line


def parts_of(spec: str, flag: str) -> tuple[str, str]:
    """The module and the name of `package.module:name` or `path/to/file.py:name`."""
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise UsageError(f"{flag} {spec}: expected package.module:name or path/to/file.py:name.")
    return place, name


def check_model(spec: str, arguments: Mapping[str, Any] | None) -> None:
    """Raises what `build_model` will, as far as that is certain while nothing is imported.

    Without `arguments`, what it is called with is not known.
    """
    flag = "--model"
    package, _, name = spec.partition(":")
    place, name = (package, name) if package in MAKERS and name else parts_of(spec, flag)
    if not place.endswith(".py"):
        if not _may_exist(place.partition(".")[0]):
            imported(place, flag)
        return
    check_given(Path(place), flag)
    try:
        fault = None if arguments is None else fault_of_call(Path(place), name, arguments)
    except SyntaxError as error:
        raise _not_imported(place, flag, error) from error
    if fault is not None:
        raise not_built(spec, fault) from fault


def _may_exist(package: str) -> bool:
    """Whether there may be such a package; asked without importing it."""
    try:
        return bool((Path.cwd() / package).exists() or (Path.cwd() / f"{package}.py").exists()
                    or importlib.util.find_spec(package))  # fmt: skip
    except (ImportError, ValueError):
        return True


def not_built(spec: str, error: BaseException) -> InputError:
    """That --model was called, and what it raised."""
    text = one_line(error)
    wanted = re.search(r"missing \d+ required .*?'(\w+)'", text)
    advice = f""" Give --model-args, as '{{"{wanted[1]}": VALUE}}'.""" if wanted else ""
    return InputError(f"--model {spec} could not be built: {text}.{advice}")


def _not_imported(place: Path | str, flag: str, error: BaseException) -> InputError:
    why = one_line(error)
    if isinstance(error, SystemExit):  # a script that reads arguments, or ends when it is done
        why = "it ends the program. Put what it runs behind if __name__ == '__main__'"
    return InputError(f"{flag}: {place} could not be imported: {why}.")


def module_of(place: str, name: str, flag: str) -> ModuleType:
    """The module of a file, or of its own name. `name` is what will be taken from it."""
    return _import_file(Path(place), flag, name) if place.endswith(".py") else imported(place, flag)


def _import_file(path: Path, flag: str, wanted: str) -> ModuleType:
    check_given(path, flag)
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
        if isinstance(error, ImportError) and "relative import" in str(error):
            raise InputError(
                f"{flag}: {path} imports its neighbours; {_as_module(path, wanted)}"
            ) from error
        raise _not_imported(path, flag, error) from error
    finally:
        sys.path.remove(folder)
    return module


def _as_module(path: Path, wanted: str) -> str:
    """How a file of a package is named so that its relative imports work."""
    root = path.resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if root == path.resolve().parent:  # a package without that file
        root = Path.cwd() if path.resolve().is_relative_to(Path.cwd()) else root.parent
    name = ".".join(path.resolve().relative_to(root).with_suffix("").parts)
    folder = "" if root == Path.cwd() else f" in the folder {root}"
    return f"give it as a module: {name}:{wanted}{folder}."


def imported(name: str, flag: str) -> ModuleType:
    """A module by its name, as a flag names it."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: nothing there can stand for another module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        way = f" Install it: pip install {name}." if name in MAKERS else ""
        raise UsageError(f"{flag}: there is no module {name} ({one_line(error)}).{way}") from error
    except (Exception, SystemExit) as error:
        raise _not_imported(name, flag, error) from error
