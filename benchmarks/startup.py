"""How long `acfuse --help` takes beside a bare click program: `python benchmarks/startup.py`.

Both run as processes of their own, in turn; the median of the ratios is what counts.
"""

import statistics
import subprocess
import sys
import time

BARE = "import click\n@click.command()\ndef main(): 'Help.'\nmain()"
ROUNDS = 15


def seconds(*command: str) -> float:
    """The wall time of one process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    """Prints both medians and the median ratio."""
    pairs = []
    for _ in range(ROUNDS):
        bare = seconds("-c", BARE, "--help")
        pairs.append((seconds("-m", "acfuse", "--help"), bare))
    ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"acfuse --help {ours:.3f} s, bare click {bare:.3f} s, ratio {ratio:.2f}")


main()
