"""doctor: what acfuse runs on, what is missing, and the command that installs it."""

import importlib
import platform
import re
import sys
from collections.abc import Iterator
from typing import Any

import click

from acfuse import __version__
from acfuse.options import RESULT_OPTIONS, takes
from acfuse.system.escape import as_json, columns, one_line, safe
from acfuse.system.processor import flags
from acfuse.system.threads import threads, usable_processors

REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?([^;]*)(?:;.*?extra == ['\"]([\w-]+)['\"])?")
FOR_DEVELOPERS = {"dev", "proof", "samples"}


@click.command()
@takes(RESULT_OPTIONS)
def doctor(format: str, **_: Any) -> None:
    """Show versions, processors and providers, and what is missing. Always exits 0."""
    told = diagnosis()
    if format == "json":
        click.echo(as_json(told))
        return
    packages = [(p["name"], p["version"] or "-", p["wanted"], p["cure"]) for p in told["packages"]]
    machine = [(name, safe(value)) for name, value in told["machine"].items()]
    click.echo("\n".join(columns(("", ""), machine)[1:]))
    click.echo("")
    click.echo("\n".join(columns(("package", "version", "wanted", "to install it"), packages)))


def diagnosis() -> dict[str, Any]:
    """What is here, as JSON has it. Nothing that is missing is an error."""
    return {"machine": machine(), "packages": [*packages()]}


def machine() -> dict[str, str]:
    """What computes, in words."""
    return {
        "acfuse": __version__,
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "platform": platform.platform(),
        "processor": f"{platform.machine()}, {usable_processors()} usable, {threads()} threads",
        "flags": ", ".join(flags()) or "not known",
        "torch": _asked("torch", _torch),
        "onnxruntime": _asked("onnxruntime", lambda m: ", ".join(m.get_available_providers())),
    }


def _torch(torch: Any) -> str:
    kernels = torch.backends.cpu.get_cpu_capability()
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return f"{torch.__version__}, {cuda}, kernels for {kernels}"


def _asked(name: str, ask: Any) -> str:
    """What a package says of itself, or why it cannot."""
    try:
        return str(ask(importlib.import_module(name)))
    except Exception as error:
        return f"cannot be imported: {one_line(error)}"


def packages() -> Iterator[dict[str, str | None]]:
    """Each package that acfuse needs, or an extra of it would, and how it can be had."""
    from importlib import metadata  # slow to import, for every `acfuse --help`

    for text in metadata.requires("acfuse") or ():
        match = REQUIREMENT.match(text)
        if match is None or match[3] in FOR_DEVELOPERS or match[1] == "acfuse":
            continue
        name, wanted, extra = match[1], match[2].strip(), match[3]
        try:
            version: str | None = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = None
        what = f"'acfuse[{extra}]'" if extra else f"'{name}{wanted}'"
        cure = "" if version else f"pip install {what}"
        yield {"name": name, "version": version, "wanted": wanted, "extra": extra, "cure": cure}
