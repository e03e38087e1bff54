"""Why a conversion has nothing to do."""

from pathlib import Path

from acfuse.errors import AcfuseError, InputError, NothingToFuse, Reason
from acfuse.files.read import read_tensors
from acfuse.findings import Findings
from acfuse.patterns.match import find_in_tensors
from acfuse.pipeline.job import Job


def nothing_to_fuse(source: Path, findings: Findings, hint: str = "") -> NothingToFuse:
    """That nothing was found, with the first thing that a user would want to know of it."""
    return NothingToFuse(f"{source.name}: nothing to fuse{_why(findings, hint)}")


def refused_after_all(source: Path, findings: Findings) -> NothingToFuse | None:
    """That something was refused, where that is no matter of cost; None if nothing was."""
    refused = [r for r in findings.refused if r.code != Reason.COST]
    if not refused:
        return None
    first, more = refused[0], f" ({len(refused)} in all)" if len(refused) > 1 else ""
    return NothingToFuse(
        f"{source.name}: {first.place} was refused{more}: {first.why} "
        f"[{first.code}], and --strict is given. `acfuse inspect` lists every candidate."
    )


def _why(findings: Findings, hint: str) -> str:
    if findings.state:
        return f": it is {'; '.join(findings.state)}."
    if findings.refused:
        first, count = findings.refused[0], len(findings.refused)
        more = f" ({count} candidates in all)" if count > 1 else ""
        where = first.place
        return (
            f". {where}: {first.why} [{first.code}]{more}. `acfuse inspect` lists every candidate."
        )
    if findings.suspects:
        group, count = findings.suspects[0], len(findings.suspects)
        return (
            f" by any pattern. {group.where or 'the model'}: {group} may be branches of one sum "
            f"({count} such groups). `acfuse inspect` shows what to do."
        )
    return f": no block of parallel branches was found.{hint and f' {hint}'}"


def already_fused(job: Job, error: InputError) -> AcfuseError:
    """Why a checkpoint does not fit its code: it may be fused already; if not, the error itself."""
    if job.model is None:
        return error
    try:
        _, tensors = read_tensors(job.source, job.reading)
        findings = find_in_tensors(tensors, job.patterns, job.bn_eps or 1e-5)
    except AcfuseError:
        return error
    is_fused = findings.state and not findings.found
    return nothing_to_fuse(job.source, findings) if is_fused else error
