"""kill -9 at any moment: whole files, generations that are never taken for one another."""

import random
import tempfile
from collections import Counter
from pathlib import Path

from tests.trust.forked import Server
from tests.trust.rows import Row
from tests.trust.sample import converted, flags, held, leftovers, put

SECONDS = 500


def measure(forks: Server, scale: float) -> Row:
    """Kills runs that replace one generation of outputs by another, at random and at each step."""
    count = max(int(500 * scale), 4)
    random_ = random.Random(0)
    fates: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for onnx, share in ((False, 4), (True, 1)) if scale == 1 else ((False, 5),):
            folder = Path(name) / f"onnx-{onnx}"
            old = converted(forks, folder, seed=1, onnx=onnx)
            new = converted(forks, folder, seed=2, onnx=onnx)
            put(folder, old)
            plain = forks.run("convert", "model.pth", "--force", *flags(onnx), folder=folder)
            steps = next(
                n
                for n in range(100)
                if not forks.run("convert", "model.pth", "--force", *flags(onnx), folder=folder,
                                 kill_at=n).exit
            )  # fmt: skip
            for n in range(max(count * share // 5, 2)):
                moment = (
                    {"kill_at": n // 2 % steps} if n % 2
                    else {"kill_after": random_.uniform(0.3, 1) * plain.elapsed}
                )  # fmt: skip
                put(folder, old)
                args = ("convert", "model.pth", "--force", *flags(onnx))
                ended = forks.run(*args, folder=folder, **moment)
                fates["kills"] += 1
                fates["hit"] += ended.exit == -9
                now = held(folder)
                fates["corrupt"] += any(
                    now.get(k) not in (old[k], new[k], None) for k in {*old, *now}
                ) or any(k not in now for k in old)
                if now not in (old, new):
                    fates["between"] += 1
                    fates["mixed"] += forks.run("verify", folder=folder).exit == 0
                after = forks.run(*args, folder=folder)
                fates["not mended"] += after.exit != 0 or held(folder) != new
                fates["leftovers"] += bool(leftovers(folder))
    bad = {k: fates[k] for k in ("corrupt", "mixed", "not mended", "leftovers")}
    return Row(
        "kill -9 at random moments, and at each change of a file",
        "500 kills, 0 corrupt, 0 mixed generations, 0 leftovers after the next run",
        f"{fates['kills']} kills ({fates['hit']} while it ran, {fates['between']} between the "
        f"files): " + ", ".join(f"{n} {k}" for k, n in bad.items()),
        not any(bad.values()),
    )


def test_killed_runs_leave_whole_files(forks):
    row = measure(forks, 0.02)
    assert row.holds, row.measured
    assert "(0 while" not in row.measured
