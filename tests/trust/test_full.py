"""Writing that cannot work leaves the files of before whole, and says so in one line."""

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.trust.forked import Ended, Server
from tests.trust.rows import Row
from tests.trust.sample import Files, converted, flags, held, leftovers, put

SECONDS = 120
NOBODY = 65534
SPOKEN = 512  # bytes of a message: the limit holds for what a run says as well


def measure(forks: Server, scale: float) -> Row:
    """Fails each write: at each size of a file, at each change, and by what the target is."""
    cases: Counter[str] = Counter()
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        for onnx in (False, True) if scale == 1 else (False,):
            folder = Path(name) / f"onnx-{onnx}"
            old = converted(forks, folder, seed=1, onnx=onnx)
            new = converted(forks, folder, seed=2, onnx=onnx)
            args = ("convert", "model.pth", "--force", *flags(onnx))

            def tried(
                kind: str,
                why: object,
                files: Files,
                folder: Path = folder,
                args: Any = args,
                **how: Any,
            ) -> Ended:
                ended = forks.run(*args, folder=folder, **how)
                cases[kind] += 1
                wrong = (
                    "exit" if ended.exit != 6
                    else "lines" if not ended.is_one_line or not ended.is_clean
                    else "files" if held(folder) != files
                    else "leftovers" if leftovers(folder)
                    else ""
                )  # fmt: skip
                if wrong:
                    bad.append(f"{kind} {why}: {wrong} ({ended.exit}, {ended.stderr[-120:]!r})")
                return ended

            largest = max(map(len, new.values()))
            for n in range(max(int(60 * scale), 8)):
                put(folder, old)
                size = SPOKEN + n * (largest - SPOKEN) // max(int(60 * scale), 8)
                tried("file size", size, old, file_size=size)
            put(folder, old)
            for n in range(40):
                put(folder, old)
                ended = forks.run(*args, folder=folder, full_at=n)
                if ended.exit == 0:
                    break
                put(folder, old)
                tried("disk full", n, old, full_at=n)
            for kind, make in TARGETS.items():
                put(folder, old)
                undo = make(folder)
                as_user = NOBODY if kind.startswith("no ") and os.getuid() == 0 else None
                tried(kind, "", held(folder), user=as_user)
                undo()
    return Row(
        "disk full at each write, file-size limit, read-only, no permission, target is a "
        "directory or a FIFO",
        "the old files whole in every case, exit 6, one line",
        f"{cases.total()} cases ({', '.join(f'{n} {k}' for k, n in cases.items())}): "
        + (f"{len(bad)} wrong: {bad[:12]}" if bad else "all whole, exit 6, one line"),
        not bad,
    )


def _unwritable(folder: Path) -> Callable[[], None]:
    folder.chmod(0o555)
    return lambda: folder.chmod(0o755)


def _as(make: Callable[[Path], None], remove: Callable[[Path], None]) -> Any:
    def replaced(folder: Path) -> Callable[[], None]:
        target = folder / "model.fused.pth"
        target.unlink(missing_ok=True)
        make(target)
        return lambda: remove(target)

    return replaced


TARGETS: dict[str, Callable[[Path], Callable[[], None]]] = {
    "no permission": _unwritable,
    "directory": _as(lambda p: p.mkdir(), lambda p: p.rmdir()),
    "FIFO": _as(lambda p: os.mkfifo(p), lambda p: p.unlink()),
    "the input": _as(lambda p: os.link(p.parent / "model.pth", p), lambda p: p.unlink()),
    "link to the input": _as(lambda p: p.symlink_to("model.pth"), lambda p: p.unlink()),
}


def test_what_cannot_be_written_leaves_the_old_files(forks):
    row = measure(forks, 0.15)
    assert row.holds, row.measured
