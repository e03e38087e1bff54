"""The blocks that are known by name: patterns, patterns show, patterns test."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from acfuse.commands.shown import progress_of
from acfuse.errors import Exit, UsageError
from acfuse.options import (
    COMMON_OPTIONS,
    KEY,
    PATTERN_FILES,
    takes,
)
from acfuse.system.limits import LIMITS


def _check(files: Sequence[Path]) -> None:
    """What cannot be read is said before PyTorch is loaded."""
    from acfuse.files.pattern_file import pattern_table

    for file in files:
        pattern_table(file)


@click.group("patterns", invoke_without_command=True)
@takes((PATTERN_FILES,), COMMON_OPTIONS)
def list_patterns(
    patterns: tuple[Path, ...],
    format: str,
    quiet: bool,
    verbose: int,
    **_: Any,
) -> None:
    """List the blocks that are known by name."""
    if click.get_current_context().invoked_subcommand:
        return
    _check(patterns)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.patterns import known_patterns

        known = known_patterns(patterns)
    if format == "json":
        names = ("name", "fused", "source", "bn_eps", "alone", "owner")
        report.print_json([{n: getattr(p, n) for n in names} for p in known])
    else:
        report.print_patterns(known)


@list_patterns.command("show")
@click.argument("name")
@takes((PATTERN_FILES,), COMMON_OPTIONS)
def show_pattern(
    name: str, patterns: tuple[Path, ...], format: str, quiet: bool, verbose: int, **_: Any
) -> None:
    """Show one pattern: its keys, what it assumes, and its source."""
    _check(patterns)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.patterns import known_patterns

        known = known_patterns(patterns)
    found = next((p for p in known if p.name == name), None)
    if found is None:
        families = sorted({p.name for p in known if p.family == name.partition("/")[0]})
        hint = f" Of this family: {', '.join(families)}." if families else ""
        raise UsageError(f"there is no pattern {name!r}.{hint} See `acfuse patterns`.")
    if format == "json":
        report.print_json(report.describe_pattern(found))
    else:
        report.print_pattern(found)


@list_patterns.command("test")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("checkpoint", type=click.Path(path_type=Path))
@takes((KEY,), COMMON_OPTIONS)
def try_patterns(
    file: Path, checkpoint: Path, key: str | None, format: str, quiet: bool, verbose: int, **_: Any
) -> None:
    """Try the patterns of FILE on a CHECKPOINT: what matches, what nearly does, and why not."""
    from acfuse.files.detect import check_source

    _check([file])
    check_source(checkpoint, LIMITS)
    with progress_of("Loading PyTorch", quiet=quiet, verbose=verbose):
        from acfuse import report
        from acfuse.files.read import read_tensors
        from acfuse.files.records import ReadOptions
        from acfuse.patterns import known_patterns
        from acfuse.patterns.trial import trials

        own = [pattern for pattern in known_patterns([file]) if pattern.file == file]
        found = trials(read_tensors(checkpoint, ReadOptions(key))[1], own)
    if format == "json":
        report.print_json(report.describe_trials(found))
    elif not quiet:
        report.print_trials(found, own, checkpoint)
    if all(trial.why for trial in found):
        sys.exit(Exit.NOTHING)
