"""Where reports may be written: said before anything heavy is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acfuse.errors import UsageError
from acfuse.pipeline.paths import INDEX, MANIFEST
from acfuse.system.atomic_write import check_outputs

SUFFIXES = (".html", ".md", ".json", ".xml")


def check_reports(
    paths: Sequence[Path],
    inputs: Sequence[Path],
    outputs: Sequence[Path] = (),
    *,
    force: bool,
    option: str = "--report",
) -> None:
    """Raises UsageError for a format that there is not, OutputError for a file that must stay.

    `outputs` are what else is written, `option` is what names the reports.
    """
    for path in paths:
        if path.suffix not in SUFFIXES:
            known = ", ".join(SUFFIXES)
            raise UsageError(f"{path}: a report is one of {known}, by the suffix of its name.")
        if path.name.endswith((MANIFEST, INDEX)):
            raise UsageError(f"{path}: that is the name of a manifest or an index, not a report's.")
    check_apart([*paths, *outputs])
    if paths:
        check_outputs(paths, inputs, force=force, option=option)


def check_apart(paths: Sequence[Path]) -> None:
    """Raises UsageError if two files that are written are one."""
    named = [path.absolute() for path in paths]
    twice = next((path for path in paths if named.count(path.absolute()) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is written twice; give one of both another name.")


def inputs_among(options: Mapping[str, Any], *files: Path | None) -> list[Path]:
    """Every file that a command reads, as far as its options name them."""
    named = [*files, options.get("inputs"), options.get("cost"), *(options.get("patterns") or ())]
    front, _, behind = (options.get("model") or "").partition(":")
    named += [Path(front), Path(behind), Path(behind) / "config.json"] if behind else []
    return [path for path in named if path is not None]
