"""Turns that no clock measured, and processes that hold no model."""

from collections.abc import Sequence

from acfuse.pipeline.speedup import Measured, Turn

WORKER = """
import json, sys
name, answers = sys.argv[1], json.loads(sys.argv[2])
for told in answers:
    print(json.dumps(told), flush=True)
for line in sys.stdin:
    with open("log.txt", "a") as log:
        log.write(f"{name} {line}")
    print(json.dumps({"calls": 1, "wall": 2.0 if name == "original" else 1.0, "cpu": 0.5}),
          flush=True)
"""


def measured(ratios: Sequence[float], backend: str = "eager") -> Measured:
    """Two models of which the original takes so many times as long, round by round."""
    original = tuple(Turn(0.001 * ratio, 0.002 * ratio) for ratio in ratios)
    return Measured(backend, original, tuple(Turn(0.001, 0.002) for _ in ratios))


def pretending(*answers, code=WORKER):
    """A command line of a process that says these things, and then answers what it is asked."""
    import json

    said = json.dumps(list(answers))
    return lambda backend, role: ["-c", code, role, said]
