"""Two runs at one output: each file and each set of files is of one of them."""

import tempfile
import threading
from collections import Counter
from pathlib import Path

from tests.trust.forked import Ended, Server, server
from tests.trust.rows import Row
from tests.trust.sample import converted, flags, held, leftovers, put

SECONDS = 120


def measure(forks: Server, scale: float) -> Row:
    """Races of two conversions with different sources and one output."""
    count = max(int(200 * scale), 4)
    fates: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, server() as other:
        folder = Path(name)
        results = [converted(forks, folder, seed=n, onnx=False) for n in (1, 2)]
        sources = ["one.pth", "two.pth"]
        for n, source in zip((1, 2), sources, strict=True):
            converted(forks, folder, seed=n, onnx=False)
            (folder / "model.pth").rename(folder / source)
        for n in range(count):
            put(folder, results[0] if n % 3 == 0 else {})
            ended: dict[str, Ended] = {}

            def go(running: Server, source: str, into: dict[str, Ended] = ended) -> None:
                args = ("convert", source, "-o", "model.fused.pth", "--force", *flags(False))
                into[source] = running.run(*args, folder=folder)

            racers = [
                threading.Thread(target=go, args=pair)
                for pair in zip((forks, other), sources, strict=True)
            ]
            for racer in racers:
                racer.start()
            for racer in racers:
                racer.join()
            codes = sorted(e.exit for e in ended.values())
            fates["races"] += 1
            fates["refused"] += codes == [0, 6]
            fates["odd"] += codes not in ([0, 0], [0, 6])
            fates["odd"] += any(e.exit == 6 and "process" not in e.stderr for e in ended.values())
            now = held(folder)
            fates["mixed"] += now["model.fused.pth"] not in [r["model.fused.pth"] for r in results]
            fates["mixed"] += forks.run("verify", folder=folder).exit != 0
            fates["leftovers"] += bool(leftovers(folder))
    bad = {k: fates[k] for k in ("mixed", "odd", "leftovers")}
    return Row(
        "two runs racing for one output",
        "200 races, 0 mixed",
        f"{fates['races']} races, {fates['refused']} with one refused: "
        + ", ".join(f"{n} {k}" for k, n in bad.items()),
        not any(bad.values()),
    )


def test_races_never_mix(forks):
    row = measure(forks, 0.02)
    assert row.holds, row.measured
