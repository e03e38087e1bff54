"""What action.yml runs: a command whose arguments stand in the environment, told as CI wants it.

The command speaks to GitHub itself (`--format github`); the outputs of the step go to
$GITHUB_OUTPUT. The exit code is the command's.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from acfuse.errors import Exit
from acfuse.reports.github import annotation

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
    return [command, *filter(None, files), *flags, *more, "--quiet", "--format=github"]


def outputs_of(told: Mapping[str, Any]) -> dict[str, str]:
    """The outputs of the step, from what the command reported."""
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


def main() -> int:
    """Runs the command that the environment asks for."""
    try:
        line = arguments_of(os.environ)
    except ValueError as error:
        print(annotation("error", str(error)))
        return Exit.USAGE
    with tempfile.TemporaryDirectory(prefix="acfuse-") as folder:
        report = Path(folder) / "report.json"
        run = subprocess.Popen([sys.executable, "-m", "acfuse", *line, f"--report={report}"])
        code = run.wait()
        told = json.loads(report.read_bytes()) if report.is_file() else {}
    if not told:
        print(annotation("error", f"acfuse ended with exit code {code}"))
    if os.environ.get("GITHUB_OUTPUT"):
        with Path(os.environ["GITHUB_OUTPUT"]).open("a", encoding="utf-8") as file:
            file.write("".join(f"{k}={v}\n" for k, v in outputs_of(told).items()))
    return code


if __name__ == "__main__":
    sys.exit(main())
