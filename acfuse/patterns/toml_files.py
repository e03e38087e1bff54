"""Patterns as TOML: data that is read, checked key by key, and never run.

[[pattern]]
name = "house"
block = "main > main_bn + [side > side_bn]"
fused = "deploy"
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acfuse.errors import InputError
from acfuse.files.pattern_file import pattern_table
from acfuse.patterns.expr import Expr
from acfuse.patterns.notation import NotationError, parse
from acfuse.patterns.pattern import OLD_NAMES, Pattern, by_present_names
from acfuse.system.escape import safe

PATTERNS = 256
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}(/[\w.-]{1,64})?")
KINDS: Mapping[str, type] = {
    "name": str, "block": str, "fused": str, "ignore": list, "bn_eps": float, "usual_eps": str,
    "ambiguity": str, "assumption": str, "requires": str, "source": str,
}  # fmt: skip
REQUIRED = ("name", "block", "fused")
IN_WORDS = {str: "a string", list: "a list of strings", float: "a number"}


def read_patterns(path: Path) -> tuple[Pattern, ...]:
    """The patterns of a TOML file. Raises InputError, in one line, for what is none."""
    name, table = safe(path.name), pattern_table(path)
    unknown = sorted(set(table) - {"pattern"})
    entries = table.get("pattern")
    if unknown or not isinstance(entries, list) or not entries:
        found = f"it has {safe(repr(unknown[0]))}" if unknown else "it has none"
        raise InputError(f"{name}: {found}, expected tables [[pattern]]. See docs/patterns.md.")
    if len(entries) > PATTERNS:
        raise InputError(f"{name} has {len(entries):,} patterns, at most {PATTERNS} are read.")
    try:
        return tuple(
            _pattern(entry, f"pattern {i}", path) for i, entry in enumerate(entries, start=1)
        )
    except _Wrong as wrong:
        raise InputError(f"{name}: {safe(wrong)}.") from wrong


class _Wrong(Exception):
    """What is wrong with a pattern, and where."""


def _pattern(entry: Any, where: str, path: Path) -> Pattern:
    if not isinstance(entry, dict):
        raise _Wrong(f"{where}: expected a table [[pattern]]")
    name = entry.get("name")
    if isinstance(name, str) and NAME.fullmatch(name):
        where = f"{where} ({name})"
    for key, value in entry.items():
        kind = KINDS.get(OLD_NAMES.get(key) or key)
        if kind is None:
            raise _Wrong(f"{where}: unknown key {key!r}, expected one of {', '.join(KINDS)}")
        right = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        strings = all(isinstance(part, str) for part in value) if isinstance(value, list) else True
        if not (right and strings) or isinstance(value, bool):
            raise _Wrong(f"{where}: {key} is {_short(value)}, expected {IN_WORDS[kind]}")
    try:
        settings = {"source": path.name, "bn_eps": None, **by_present_names(entry)}
    except TypeError as error:
        raise _Wrong(f"{where}: {error}") from error
    for key in REQUIRED:
        if not settings.get(key):
            raise _Wrong(f"{where}: {key} is missing")
    name = settings.pop("name")
    family, _, dialect = name.partition("/")
    if not NAME.fullmatch(name) or dialect == "original":
        raise _Wrong(
            f"{where}: name is {_short(name)}, expected letters, digits and . _ - with at most "
            "one /"
        )
    settings["ignore"] = tuple(settings.get("ignore", ()))
    required = filter(None, [settings.get("requires")])
    for layer in (settings["fused"], *settings["ignore"], *required):
        if not all(layer.split(".")) or not layer.isprintable():
            raise _Wrong(f"{where}: {_short(layer)} is no name of a layer")
    eps = settings["bn_eps"]
    if eps is not None and not 0 <= eps <= 1:
        raise _Wrong(f"{where}: bn_eps is {_short(eps)}, expected a number from 0 to 1")
    settings["bn_eps"] = None if eps is None else float(eps)
    settings["block"] = _block(settings["block"], where)
    return Pattern(
        family=family, dialect=dialect or "original", owner=path.name, file=path, **settings
    )


def _block(text: str, where: str) -> Expr:
    try:
        block = parse(text)
    except NotationError as error:
        raise _Wrong(f"{where}: block: {error}") from error
    if not block.first():
        raise _Wrong(f"{where}: block: every layer may be absent; one must always be there")
    return block


def _quoted(value: object) -> str:
    """A string, number or list as TOML, which is JSON but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def to_toml(pattern: Pattern) -> str:
    """A pattern as `read_patterns` reads it."""
    values = {key: getattr(pattern, key) for key in KINDS} | {"block": str(pattern.block)}
    written = {key: v for key, v in values.items() if v or v == 0.0}
    lines = [f"{key} = {_quoted(value)}" for key, value in written.items()]
    return "\n".join(["[[pattern]]", *lines]) + "\n"
