"""Settings that every test shares: how many examples, how many threads, which seed."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci",
    max_examples=200,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(  # make fuzz
    "fuzz",
    max_examples=20_000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

torch.set_num_threads(int(os.environ.get("ACFUSE_TEST_THREADS", "1")))
torch.backends.mkldnn.set_flags(_enabled=os.environ.get("ACFUSE_TEST_ONEDNN") != "0")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
