"""What mkdocs does not know of this repository: pages above docs/, notebooks, what is generated.

A link is written as the repository has it (`../SECURITY.md`), and given the way that it has in the
site. One that leads nowhere stays as it is, and mkdocs says so.
"""

import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from acfuse.cli import cli

ROOT = Path(__file__).parents[1]
# Files outside docs/ by the place that they have in the site.
ABOVE = {
    "index.md": "README.md",
    **{n: n for n in ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "SECURITY.md")},
}
PLACES = {name: place for place, name in ABOVE.items()}
NOTEBOOKS = {
    n.relative_to(ROOT).as_posix(): n.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
    for n in sorted((ROOT / "docs").rglob("*.ipynb"))
}
PLACES |= NOTEBOOKS
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that do not lie in docs/."""
    for place, name in ABOVE.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text("utf-8")))
    for name, place in NOTEBOOKS.items():
        text = "\n\n".join(notebook_as_page(json.loads((ROOT / name).read_text("utf-8"))))
        files.append(File.generated(config, place, content=text))
    made = File.generated(config, "reference/command-line.md", content="\n".join(command_line()))
    files.append(made)
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Gives each link to a file the way that it has in the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(ABOVE.get(here, f"docs/{here}"))

    def in_site(link: re.Match[str]) -> str:
        there = posixpath.normpath(posixpath.join(folder, link[1]))
        place = PLACES.get(there, there.removeprefix("docs/"))
        if place == there and there not in PLACES:  # it is not in the site
            return link[1]
        return posixpath.relpath(place, posixpath.dirname(here))

    return LINK.sub(in_site, markdown)


def notebook_as_page(notebook: Any) -> Iterator[str]:
    """A notebook as Markdown: its texts, its code, and what each cell shows."""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        for output in cell.get("outputs", ()):
            shown = output.get("data", {"text/plain": output.get("text", "")})
            if "text/html" in shown:
                yield f"<div>{''.join(shown['text/html'])}</div>"
            else:
                yield f"```text\n{''.join(shown['text/plain']).rstrip()}\n```"


def command_line() -> Iterator[str]:
    """The page of all commands, as --help has them."""
    yield "# Command line\n"
    yield "What `acfuse COMMAND --help` says. Each option is also a setting and a variable, as"
    yield "[install.md](../install.md#settings) tells.\n"
    yield from described(click.Context(cli, info_name="acfuse", **cli.context_settings))


def described(context: click.Context) -> Iterator[str]:
    """A command and those below it: its words, and a table of its options."""
    command = context.command
    if context.parent:
        yield f"## {context.command_path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield f"{prose(command.help or '')}\n"
    records = [r for p in command.get_params(context) if (r := p.get_help_record(context))]
    yield "| option | |\n|---|---|"
    for names, text in records:
        yield f"| `{cell(names)}` | {cell(plain(text))} |"
    yield ""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner
            yield from described(click.Context(inner, context, info_name=name))


def prose(text: str) -> str:
    r"""A help text as Markdown: what stands behind a \b is kept as it is."""
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        f"```text\n{part[1:].strip(chr(10))}\n```" if part.startswith("\b") else plain(part)
        for part in parts
    )


def plain(text: str) -> str:
    """A text in which nothing is Markdown."""
    return re.sub(r"([\\*_<\[\]])", r"\\\1", text)


def cell(text: str) -> str:
    """A text that stands in one cell of a table."""
    return " ".join(text.replace("|", "\\|").split())
