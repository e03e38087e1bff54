"""The configuration: acfuse.toml, or a table of pyproject.toml, as defaults of the options."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


def defaults(folder: Path, commands: Mapping[str, click.Command]) -> dict[str, Any] | None:
    """The settings of a folder for each command; None where it has none.

    Raises click.UsageError for a file that cannot be read, and for a setting that no command has.
    """
    settings = configuration(folder)
    known = {p.name for c in commands.values() for p in c.params}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise click.UsageError(f"the configuration has no setting {unknown[0]!r}.")
    return {name: for_command(c, settings) for name, c in commands.items()} if settings else None


def configuration(folder: Path) -> dict[str, Any]:
    """The settings of acfuse.toml, or of pyproject.toml, by parameter name."""
    return configured(folder)[1]


def configured(folder: Path) -> tuple[str, dict[str, Any]]:
    """The name of the file that has settings ("" for none), and these by parameter name."""
    for name, table in (("acfuse.toml", ()), ("pyproject.toml", ("tool", "acfuse"))):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise click.UsageError(f"{name} cannot be read: {error}.") from error
        for part in table:
            data = data.get(part, {}) if isinstance(data, dict) else {}
        if data:
            return name, {key.replace("-", "_"): value for key, value in data.items()}
    return "", {}


def for_command(command: click.Command, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the parameters of one command take them; those of others are left out."""
    own = {}
    for parameter in command.params:
        if parameter.name in settings:
            value = settings[parameter.name]
            many = isinstance(parameter, click.Option) and parameter.multiple
            if parameter.name == "input_shape" and _is_shape(value):
                value = ",".join(map(str, value))
            if parameter.name == "input_shape" and isinstance(value, list) and not many:
                continue  # `init` asks for one, and these are several
            value = [value] if many and not isinstance(value, list) else value
            own[parameter.name] = value
            _check_kind(parameter, value if many else [value])
    return own


def _check_kind(parameter: click.Parameter, values: list[Any]) -> None:
    """Raises UsageError for what click would hand on as it is; other types look for themselves."""
    is_path = isinstance(parameter.type, click.Path)
    kinds, kind = ((str,), "a text") if is_path else ((str, int, float), "a text or number")
    wrong = [value for value in values if not isinstance(value, kinds)]
    if wrong and type(parameter.type).__module__.startswith("click."):
        name = str(parameter.name).replace("_", "-")
        raise click.UsageError(f"the configuration has {name} = {wrong[0]!r}; expected {kind}.")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) for n in value)
