"""A wheel of this source, in an environment that has nothing else of it, runs as it does here."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import acfuse

ROOT = Path(__file__).parents[2]
OLDEST = 77  # setuptools that reads this pyproject.toml
NEEDED = ("acfuse", "pyproject.toml", "README.md", "LICENSE")


def called(*arguments: str | Path, folder: Path) -> str:
    """What a program prints that knows nothing of this folder."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ACFUSE_"))}
    done = subprocess.run(
        [*map(str, arguments)], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building leaves files behind."""
    missing = [name for name in ("pip", "setuptools") if importlib.util.find_spec(name) is None]
    if missing or int(version("setuptools").partition(".")[0]) < OLDEST:
        pytest.skip(f"a wheel needs pip, and setuptools from {OLDEST} on, in this environment")
    source = tmp_path_factory.mktemp("source")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            leave = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=leave)
        else:
            shutil.copy(ROOT / name, source)
    built = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", built)
    called(sys.executable, "-m", "pip", "wheel", *options, source, folder=source)
    (made,) = built.glob("*.whl")
    return made


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == f"acfuse-{acfuse.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(ROOT)) for path in ROOT.glob("acfuse/**/*.py")}
    assert held == {*ours, "acfuse/py.typed"}


def test_it_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    install = ("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--quiet")
    called(sys.executable, *install, wheel, folder=tmp_path)
    told = called(python, "-c", "import acfuse; print(acfuse.__file__)", folder=tmp_path)
    own = Path(told.strip())
    assert own.is_relative_to(place)
    # What it depends on is that of this environment: of that one, no other file is read.
    packages = sysconfig.get_path("purelib")
    (own.parents[1] / "dependencies.pth").write_text(packages + "\n", encoding="utf-8")
    for name in ("model.pth", "digits.py"):
        shutil.copy(ROOT / "sample_models" / name, tmp_path)
    acfuse_ = scripts / "acfuse"
    assert acfuse.__version__ in called(acfuse_, "--version", folder=tmp_path)
    assert "ACF205" in called(acfuse_, "explain", folder=tmp_path)
    network = ("--model", "digits.py:AcNet", "--input-shape", "1,1,8,8")
    told = called(acfuse_, "convert", "model.pth", *network, folder=tmp_path)
    assert "wrote   model.fused.onnx" in told
    where = called(python, "-c", "import acfuse.api as a; print(a.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(place)
