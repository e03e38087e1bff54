"""How long `acfuse --help` takes beside a bare click program: `python -m benchmarks.startup`.

Both run as processes of their own, in turn, by the clock.
"""

from collections.abc import Iterator

from benchmarks.figures import Figure, Target, told
from benchmarks.processes import in_turn, python, ratios

BARE = "import click\n@click.command()\ndef main(): 'Help.'\nmain()"


def figures(everything: bool = False, rounds: int = 15) -> Iterator[Figure]:
    """One ratio a round."""
    ours, bare = in_turn(
        lambda: python("-m", "acfuse", "--help").wall,
        lambda: python("-c", BARE, "--help").wall,
        rounds,
    )
    raw = {"acfuse --help, s": ours, "bare click, s": bare}
    yield Figure("acfuse --help / bare click", Target(high=2), ratios(ours, bare), raw=raw)


if __name__ == "__main__":
    told(figures, __doc__)
