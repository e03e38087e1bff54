"""A run that ended with an error, as a report: what went wrong, and what to do."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from acfuse import __version__
from acfuse.errors import AcfuseError, Exit
from acfuse.reports.where import check_reports
from acfuse.system.atomic_write import write_all
from acfuse.system.escape import as_json, safe

LONGEST = 10_000  # characters of a message; hosts of reviews take some 65,000 in all


@dataclass(frozen=True)
class Failure:
    """What a run ended with, instead of a result. `source` is what it was about, if anything."""

    source: str
    message: str
    code: Exit

    @property
    def kind(self) -> str:
        """The exit code by its name."""
        return self.code.name.lower()

    @property
    def about(self) -> tuple[str, str, str]:
        """What such an end is called, and what it means, and what to do."""
        from acfuse.codes import EXITS  # long texts

        code = next(code for code in EXITS if code.code == self.code)
        return code.title, code.meaning, code.cure

    @property
    def data(self) -> Mapping[str, Any]:
        """What `--format json` prints."""
        _, meaning, cure = self.about
        return {
            "schema_version": 1,
            "acfuse": __version__,
            "source": self.source or None,
            "error": {
                "message": self.message,
                "kind": self.kind,
                "exit_code": int(self.code),
                "meaning": meaning,
                "cure": cure,
            },
        }


def write_failure(
    failure: Failure, paths: Sequence[Path], inputs: Sequence[Path], *, force: bool
) -> list[Path]:
    """Writes the reports that may be written, and gives these: the error itself is told anyway."""
    written = []
    for path in paths:
        with suppress(AcfuseError):
            check_reports([path], inputs, force=force)
            write_all({path: WRITERS[path.suffix](failure).encode()})
            written.append(path)
    return written


def failure_markdown(failure: Failure) -> str:
    """A few lines for a review, or for the page of a job."""
    title, meaning, cure = (safe(text, "markdown") for text in failure.about)
    message = safe(_cut(failure.message), "markdown")
    of = f": {safe(_cut(failure.source, 300), 'markdown')}" if failure.source else ""
    return (
        f"## acfuse{of}\n\n\u274c **{message}**\n\n"
        f"Exit code {int(failure.code)}, {title}. {meaning}\n\n{cure}\n"
    )


def _html(failure: Failure) -> str:
    from acfuse.reports.html import document

    title, meaning, cure = (safe(text, "html") for text in failure.about)
    source = safe(failure.source or "acfuse", "html")
    body = (
        f'<header><h1>acfuse report: {source}</h1></header><main id="main"><p class="verdict no">'
        f'<span aria-hidden="true">&#10007;</span> {safe(failure.message, "html")}</p>'
        f"<h2>Exit code {int(failure.code)}: {title}</h2><p>{meaning}</p><h2>What to do</h2>"
        f"<p>{cure}</p></main><footer>Made by acfuse {__version__}. This page loads nothing and "
        "sends nothing.</footer>"
    )
    return document(f"acfuse report: {source}", body)


def _junit(failure: Failure) -> str:
    from acfuse.reports.junit import suite_xml

    case = ElementTree.Element("testcase", classname="acfuse.run", name="the run", time="0")
    kind = "".join(word.capitalize() for word in failure.kind.split("_"))
    told = ElementTree.SubElement(case, "error", type=kind, message=safe(failure.message))
    told.text = safe(f"exit code {int(failure.code)}: {failure.message} {failure.about[2]}")
    return suite_xml(failure.source, [case], errors=1)


def _cut(text: str, most: int = LONGEST) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


WRITERS: Mapping[str, Callable[[Failure], str]] = {
    ".html": _html,
    ".md": failure_markdown,
    ".json": lambda failure: f"{as_json(failure.data)}\n",
    ".xml": _junit,
}
