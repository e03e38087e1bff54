"""What every sample is fused to, bit for bit: `golden.json` holds a hash of each result.

A change of the program that is meant to change nothing is seen here to change nothing. The weights
are small fractions, so that every product and sum of float64 is exact, in whatever order a
processor takes them. `python -m tests.families.golden` writes the file anew.
"""

import json

import pytest

from sample_models import samples
from tests.families.golden import GOLDEN, ways

SAMPLES = samples()
KNOWN = json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_every_sample_has_its_hashes() -> None:
    assert list(KNOWN) == list(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_fused_to_the_same_bits(name: str) -> None:
    assert ways(SAMPLES[name]) == KNOWN[name]
