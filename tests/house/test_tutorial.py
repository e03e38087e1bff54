"""docs/tutorial.md, followed word for word by somebody who has nothing but acfuse."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```(\w*)\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), re.DOTALL | re.MULTILINE
)


def test_every_line_of_it_works(tmp_path: Path) -> None:
    commands = {
        "acfuse": [sys.executable, "-m", "acfuse"],
        "python": [sys.executable, "-W", "error::FutureWarning"],
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACFUSE_")}
    environment["PYTHONPATH"] = str(ROOT)
    printed, ran = {}, 0
    for kind, text in BLOCKS:
        if kind in ("python", "toml"):
            name = re.match(r"# (\S+)\n", text)
            assert name, text
            (tmp_path / name[1]).write_text(text)
            continue
        for line in text.splitlines():
            program, *arguments = line.removeprefix("$ ").split()
            done = subprocess.run(
                [*commands[program], *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert "Traceback" not in done.stderr
            printed.setdefault(arguments[0], done.stdout)
            ran += 1
    assert ran == 7
    assert "3 x blocks.*" in printed["inspect"]
    assert "2 -> 1" in printed["inspect"]
    assert printed["convert"].count("\nequal ") == 5
    written = {path.name for path in tmp_path.iterdir()}
    assert {"model.fused.pth", "model.fused.onnx", "model.fused.acfuse.json"} <= written


def test_its_links_lead_somewhere() -> None:
    text = (ROOT / "docs/tutorial.md").read_text()
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    assert len(links) > 4
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []
