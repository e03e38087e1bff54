"""Who imports whom, and what is not imported before it is needed."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import acfuse
from acfuse import errors

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors", "sympy")
LOADED = """
import atexit, sys

def tell():
    print("\\nloaded:", *[n for n in {heavy!r} if n in sys.modules], file=sys.stderr)

atexit.register(tell)
sys.argv = ["acfuse", *{arguments!r}]
from acfuse.cli import main
main()
"""


def loaded_by(code, folder):
    """Which heavy packages a fresh process has loaded at its end, and its exit code."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder
    )
    *_, last = done.stderr.splitlines()
    assert last.startswith("loaded:"), done.stderr
    return last.split()[1:], done.returncode


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("convert --help", 0),
        ("verify --help", 0),
        ("explain", 0),
        ("explain ACF205", 0),
        ("explain exit-3", 0),
        ("explain missing.pth block", 3),
        ("", 2),
        ("convert", 2),
        ("covert model.pth", 2),
        ("convert model.pth --nothing", 2),
        ("convert model.pth --input-shape 0", 2),
        ("verify model.pth", 2),
        ("convert model.pth -o no/such/folder/net.pth", 6),
        ("convert there.pth", 6),
        ("export-onnx there.pth", 6),
        ("export-onnx there.pth -o no/such/folder/net.onnx", 6),
        ("export-onnx -o no/such/folder/net.onnx", 6),
        ("convert missing.pth", 3),
        ("verify missing.pth missing.pth", 3),
        ("convert there.pth -n --report r.pdf", 2),
        ("verify there.pth there.pth --report r.pdf", 2),
        ("report there.fused.acfuse.json -o r.pdf", 2),
    ],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(tmp_path, line, code):
    (tmp_path / "there.pth").touch()
    (tmp_path / "there.fused.pth").touch()
    (tmp_path / "there.onnx").touch()
    (tmp_path / "there.fused.acfuse.json").touch()
    program = LOADED.format(heavy=HEAVY, arguments=line.split())
    assert loaded_by(program, tmp_path) == ([], code)


def test_every_error_can_be_had_from_the_top():
    kinds = {
        n for n, v in vars(errors).items() if inspect.isclass(v) and v.__module__ == "acfuse.errors"
    }
    assert kinds <= set(acfuse.__all__)
    assert all(getattr(acfuse, name) is getattr(errors, name) for name in kinds)


def test_the_package_itself_is_light(tmp_path):
    code = (
        "import sys, acfuse\n"
        "assert {'convert', 'fuse', 'load_fused', 'verify'} <= set(acfuse.__all__)\n"
        f"names = [n for n in {HEAVY!r} if n in sys.modules]\n"
        "print('loaded:', *names, file=sys.stderr)\n"
    )
    assert loaded_by(code, tmp_path) == ([], 0)


def test_the_installed_program_and_the_module_are_the_same(tmp_path):
    program = [str(Path(sys.executable).parent / "acfuse")]
    clean = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"}
    outputs = []
    for command in (program, [sys.executable, "-m", "acfuse"]):
        done = subprocess.run(
            [*command, "--version"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=clean,
        )
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]


def test_each_room_imports_only_what_stands_below_it():
    program = Path(sys.executable).parent / "lint-imports"
    if not program.exists():
        pytest.skip("import-linter is not installed")
    done = subprocess.run(
        [str(program), "--no-cache", "--config", "pyproject.toml"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    assert " 0 broken" in done.stdout


def test_every_module_stands_in_the_contract():
    """A new module must be given its place, or nothing says whom it may import."""
    import tomllib

    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = data["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    folder = ROOT / "acfuse"
    modules = {p.stem for p in folder.glob("*.py")} - {"__init__", "__main__"}
    modules |= {p.parent.name for p in folder.glob("*/__init__.py")}
    assert {f"acfuse.{name}" for name in modules} == placed
