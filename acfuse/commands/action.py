"""What action.yml runs: a command whose arguments stand in the environment, told as CI wants it.

Annotations go to stdout, the outputs of the step to $GITHUB_OUTPUT, and a summary in Markdown to
$GITHUB_STEP_SUMMARY. The exit code is the command's.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acfuse.errors import Exit
from acfuse.system.escape import safe

COMMANDS = ("convert", "verify")


def arguments_of(environment: Mapping[str, str]) -> list[str]:
    """The command line that the inputs of the action ask for. Raises ValueError."""

    def given(name: str) -> str:
        return environment.get(f"ACTION_{name}", "").strip()

    command, files = given("COMMAND") or "verify", [given("CHECKPOINT"), given("FUSED")]
    if command not in COMMANDS:
        raise ValueError(f"command is {command!r}; expected one of {', '.join(COMMANDS)}")
    named = ("MODEL", "INPUT_SHAPE", "ATOL")
    flags = [f"--{name.lower().replace('_', '-')}={given(name)}" for name in named if given(name)]
    more = [line.strip() for line in given("OPTIONS").splitlines() if line.strip()]
    odd = next((line for line in more if not line.startswith("--")), None)
    if odd is not None:
        raise ValueError(f"options has {odd!r}; expected one option in a line, as --dynamic=none")
    if any(file.startswith("-") for file in files):
        raise ValueError("a file's name begins with a hyphen; write ./ in front of it")
    return [command, *filter(None, files), "--format=json", *flags, *more]


def outputs_of(told: Mapping[str, Any]) -> dict[str, str]:
    """The outputs of the step, from what the command printed."""
    shipped = [c["absolute"] for c in told.get("checks", ()) if c["name"] in ("rounding", "onnx")]
    numbers = [float(number) for number in shipped]
    manifests = [name for name in told.get("written", ()) if name.endswith(".acfuse.json")]
    manifests += [path.name for path in Path.cwd().glob("*.acfuse.json")]
    return {
        "verified": str(bool(told.get("passed", False))).lower(),
        "max-abs": repr(max(numbers)) if numbers else "",
        "fused-blocks": str(len(told.get("found", ()))),
        "manifest": manifests[0] if manifests else "",
    }


def summary_of(told: Mapping[str, Any], code: int) -> str:
    """What the job's page shows, as Markdown."""
    if "error" in told:
        return f"### acfuse: {_text(told['error']['message'])}\n"
    verdict = "equal" if code == Exit.DONE else f"NOT EQUAL: {_text(told.get('fault', ''))}"
    before, after = told["before"], told["after"]
    lines = [
        f"### acfuse: {verdict}",
        "",
        "| | before | after |",
        "|---|---:|---:|",
        *(
            f"| {name.replace('_', ' ')} | {before[name]:,} | {after[name]:,} |"
            for name in ("convolutions", "multiply_adds", "parameters")
            if before.get(name) and after.get(name)
        ),
        "",
        "| check | largest difference | |",
        "|---|---:|---|",
        *(
            f"| {_text(check['name'])} | {float(check['error']):.1e} | "
            f"{'passed' if check['passed'] else 'FAILED'} |"
            for check in told["checks"]
        ),
        *(f"\n{_text(refused['where'] or 'the model')} was refused: {_text(refused['why'])}"
          for refused in told.get("refused", ())[:20]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    """A value as text of a Markdown page."""
    return safe(value, "markdown")


def annotations_of(told: Mapping[str, Any], code: int) -> list[str]:
    """Lines that a runner shows beside the job."""
    lines = []
    if code != Exit.DONE:
        message = told["error"]["message"] if "error" in told else told.get("fault", "")
        lines.append(f"::error title=acfuse (exit {code})::{safe(message, 'ci')}")
    lines += [
        f"::warning title=acfuse::{safe(check['warning'], 'ci')}"
        for check in told.get("checks", ())
        if check["warning"]
    ]
    return lines


def main() -> int:
    """Runs the command that the environment asks for."""
    try:
        line = arguments_of(os.environ)
    except ValueError as error:
        print(f"::error title=acfuse::{safe(error, 'ci')}")
        return Exit.USAGE
    run = subprocess.Popen(
        [sys.executable, "-m", "acfuse", *line], stdout=subprocess.PIPE, text=True
    )
    printed, _ = run.communicate()
    code = run.returncode
    try:
        told = json.loads(printed)
    except ValueError:
        told = {"error": {"message": f"acfuse ended with exit code {code}"}}
    print("\n".join(annotations_of(told, code)))
    for variable, text in (
        ("GITHUB_OUTPUT", "".join(f"{k}={v}\n" for k, v in outputs_of(told).items())),
        ("GITHUB_STEP_SUMMARY", summary_of(told, code)),
    ):
        if os.environ.get(variable):
            with Path(os.environ[variable]).open("a", encoding="utf-8") as file:
                file.write(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
