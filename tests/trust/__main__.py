"""`make trust`: measures every promise of SECURITY.md and prints the table.

Usage: python -m tests.trust [name ...], where a name is a part of a module's name below.
Exits 1 if a promise falls short.
"""

import importlib
import queue
import sys
import threading
import time
from pathlib import Path

from tests.trust.forked import server
from tests.trust.rows import Measure, Row

HERE = Path(__file__).parent
WORKERS = 2


def measures(wanted: list[str]) -> dict[str, Measure]:
    """Each module here that measures something, by its name; slow ones are marked by SECONDS."""
    found: dict[str, tuple[float, Measure]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        name = path.stem.removeprefix("test_")
        module = importlib.import_module(f"tests.trust.{path.stem}")
        if hasattr(module, "measure") and (not wanted or name in wanted):
            found[name] = getattr(module, "SECONDS", 10), module.measure
    slowest_first = sorted(found, key=lambda name: -found[name][0])
    return {name: found[name][1] for name in slowest_first}


def run(waiting: "queue.SimpleQueue[tuple[str, Measure]]", done: dict[str, Row]) -> None:
    """Measures what waits, one after the other."""
    with server() as forks:
        while not waiting.empty():
            try:
                name, measure = waiting.get_nowait()
            except queue.Empty:
                return
            began = time.monotonic()
            try:
                done[name] = measure(forks, 1.0)
            except Exception as error:
                done[name] = Row(name, "", f"could not be measured: {error!r}", False)
            row, seconds = done[name], time.monotonic() - began
            word = "holds" if row.holds else "FALLS SHORT"
            print(f"{name}: {row.measured} ({seconds:.0f} s, {word})", file=sys.stderr, flush=True)


def main(wanted: list[str]) -> int:
    began = time.monotonic()
    waiting: queue.SimpleQueue[tuple[str, Measure]] = queue.SimpleQueue()
    every = measures(wanted)
    for pair in every.items():
        waiting.put(pair)
    done: dict[str, Row] = {}
    workers = [threading.Thread(target=run, args=(waiting, done)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print("| promise | asked | measured |\n|---|---|---|")
    for name in sorted(every):
        row = done[name]
        print(
            f"| {row.promise} | {row.asked} | {row.measured}{'' if row.holds else ' **short**'} |"
        )
    short = [name for name in every if not done[name].holds]
    print(f"\n{len(every) - len(short)} of {len(every)} promises hold; "
          f"{(time.monotonic() - began) / 60:.1f} minutes.")  # fmt: skip
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
