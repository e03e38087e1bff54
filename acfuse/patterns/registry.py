"""Patterns of installed packages, and patterns that the user takes at their word."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from acfuse.errors import InputError, UsageError
from acfuse.patterns.pattern import Pattern
from acfuse.system.escape import one_line, safe

GROUP = "acfuse.patterns"


def assumed(patterns: Sequence[Pattern], names: Iterable[str]) -> tuple[Pattern, ...]:
    """The patterns, some of them taken at their word. Raises UsageError for one that cannot be.

    Of a pattern whose tensors decide it is the forward of a live model that may not be read.
    """
    wanted = set(names)
    known = {pattern.name: pattern for pattern in patterns}
    for name in sorted(wanted):
        if name not in known:
            raise UsageError(f"--assume: there is no pattern {name!r}. See `acfuse patterns`.")
        if known[name].ambiguity and not known[name].assumption:
            raise UsageError(f"--assume: {name} cannot be assumed: {known[name].ambiguity}.")
    return tuple(replace(p, is_assumed=True) if p.name in wanted else p for p in patterns)


@cache
def plug_ins() -> tuple[Pattern, ...]:
    """The patterns of installed packages: entry points of the group `acfuse.patterns`.

    Each is a Pattern, or several. Raises InputError for one that cannot be loaded.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: (_owner(point), point.name))
    return tuple(pattern for point in found for pattern in _patterns_of(point))


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _patterns_of(point: EntryPoint) -> list[Pattern]:
    what = f"the plug-in {safe(_owner(point))} ({GROUP}: {safe(point.name)} = {safe(point.value)})"
    try:
        loaded = point.load()
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            f"{what} cannot be imported: {kind}: {safe(one_line(error))}. Mend or uninstall it."
        ) from error
    given = [loaded] if isinstance(loaded, Pattern) else loaded
    if not isinstance(given, list | tuple) or not all(isinstance(p, Pattern) for p in given):
        raise InputError(f"{what} gives {type(loaded).__name__}, expected patterns of acfuse.")
    return [replace(pattern, owner=_owner(point)) for pattern in given]
