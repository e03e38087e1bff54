"""What GitHub shows beside a job: annotations, and the summary of a step."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acfuse.errors import OUTERMOST, Reason
from acfuse.system.escape import safe

MOST = 10  # annotations of a kind that are shown of one step
MOST_BYTES = 1024 * 1024  # of a step's summary; a larger one is not shown at all
VARIABLE = "GITHUB_STEP_SUMMARY"


def annotation(kind: str, message: str, title: str = "acfuse") -> str:
    """A line that a runner shows beside the job; `kind` is error, warning or notice."""
    return f"::{kind} title={safe(title, 'ci').replace(',', '%2C')}::{safe(message, 'ci')}"


def annotations_of(data: Mapping[str, Any]) -> list[str]:
    """What a result of `--format json` says beside its error: warnings, refusals, the result."""
    warnings = [str(check["warning"]) for check in data.get("checks", ()) if check["warning"]]
    warnings += [f"{row['text']} [{row['code']}]" for row in data.get("cautions", ())]
    refused = [
        f"{row['where'] or OUTERMOST} stays as it is: {row['why']} [{row['code']}]"
        for row in data.get("refused", ())
        if row["code"] != Reason.COST
    ]
    lines = [*_some("warning", warnings, MOST), *_some("notice", refused, MOST - 1)]
    if data.get("passed", True) and "found" in data:
        word = "proved equal" if "passed" in data else "can be fused"
        count = len(data["found"])
        blocks = f"{count:,} block{'' if count == 1 else 's'}"
        told = f"{blocks} {word}, {len(data['refused']):,} refused"
        lines.append(annotation("notice", told))
    return lines


def _some(kind: str, messages: Sequence[str], most: int) -> list[str]:
    """Annotations; of very many the first, and how many more there are."""
    shown = messages if len(messages) <= most else messages[: most - 1]
    more = len(messages) - len(shown)
    lines = [annotation(kind, message) for message in shown]
    return [*lines, *([annotation(kind, f"and {more:,} more")] if more else [])]


def add_summary(markdown: str, environment: Mapping[str, str] = os.environ) -> str:
    """Adds Markdown to the summary of a step, where there is one; gives what kept it from that."""
    path = environment.get(VARIABLE)
    if not path:
        return ""
    text = f"{markdown}\n".encode()
    try:
        with Path(path).open("ab") as file:
            if file.tell() + len(text) > MOST_BYTES:
                return f"the summary of this step is full: it takes {MOST_BYTES:,} bytes."
            file.write(text)
    except OSError as error:
        return f"{VARIABLE} cannot be written to: {error.strerror}."
    return ""
