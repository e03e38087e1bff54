"""What comes from a file is data: names made safe for a terminal, a log or a CI job."""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

# Marks that change the direction of the text around them.
DIRECTIONS = {chr(n) for n in (0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


# What each kind of document would obey beside what a terminal does, and how it is written there.
OBEYED = {
    "terminal": ("", ""),
    "markdown": ("\\`*_{}[]()<>#+-.!|~&:@", "&#{};"),
    "html": ("&<>\"'`=", "&#{};"),
    "xml": ("&<>\"'", "&#{};"),
    "ci": ("%:", "%{:02X}"),
}
# ##[error], ##vso[...], ##teamcity[...] are commands to some CI systems, anywhere in a line.
COMMAND = re.compile(r"##(?=\w*\[)")


def safe(name: object, form: str = "terminal") -> str:
    """A string that is only text, wherever it is shown: made visible, never obeyed.

    `form` is where: "terminal" (logs as well), "markdown", "html", "xml", "json" (inside the
    quotes), or "ci" (a value in a workflow command).
    """
    text = "".join(
        c if c.isprintable() and c not in DIRECTIONS else c.encode("unicode_escape").decode()
        for c in str(name)
    )
    if form == "json":
        return as_json(text)[1:-1].replace("::", "\\u003a\\u003a")
    text = COMMAND.sub(r"#\\x23", text)
    obeyed, escape = OBEYED[form]
    text = "".join(escape.format(ord(c)) if c in obeyed else c for c in text)
    # A line that begins so is a command to some CI systems, also behind spaces.
    return text.replace("::", ":\\x3a", 1) if text.lstrip().startswith("::") else text


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text in one line, without a full stop; its kind where it has none."""
    return " ".join(str(error).split())[:limit].rstrip(".") or type(error).__name__


def listed(names: Collection[str], most: int = 20) -> str:
    """Names in a sentence; of very many, the first."""
    first, more = ", ".join([*names][:most]), len(names) - most
    return f"{first} and {more:,} more" if more > 0 else first


def as_json(data: object, *, indent: int | None = 2) -> str:
    """A JSON document that no CI system obeys, whatever the names in it; None: in one line."""
    return json.dumps(plain(data), indent=indent, allow_nan=False).replace("##", "#\\u0023")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: numbers that are not finite become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value


def columns(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table, each column as wide as its widest cell. Nothing is ever cut off.

    A character of Chinese, Japanese or Korean takes two places of a terminal.
    """
    lines = [[(cell, _places(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(taken for _, taken in column) for column in zip(*lines, strict=True)]
    return [
        " ".join(
            cell + " " * (width - taken) for (cell, taken), width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def html_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same for a notebook: names are only text there, too."""
    head = "".join(f"<th>{safe(cell, 'html')}</th>" for cell in header)
    lines = ("".join(f"<td>{safe(cell, 'html')}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _places(text: str) -> int:
    """How many places of a terminal a text takes."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
