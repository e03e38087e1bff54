"""Settings that every test shares: how many examples, which kernels, how many threads, which seed.

`make test-kernels` sets ACFUSE_TEST_ONEDNN=0 (convolutions without oneDNN) and ACFUSE_TEST_THREADS.
"""

import os
import sys
import tempfile
from pathlib import Path

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
if os.environ.get("ACFUSE_TEST_ONEDNN") == "0":
    torch.backends.mkldnn.set_flags(_enabled=False)


OURS = tuple(
    str(folder) + os.sep for folder in (sys.prefix, sys.base_prefix, Path(__file__).parent.parent)
)


def pytest_report_header() -> str:
    """Which kernels compute here."""
    capability, onednn = torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled
    return f"torch: {capability}, oneDNN {onednn}, threads {torch.get_num_threads()}"


@pytest.fixture(autouse=True)
def _forgotten():
    """A test's own modules, of a temporary folder, are not those of the next test."""
    before, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if not isinstance(file, str) or file.startswith(OURS):  # a checkout may be there as well
            continue
        if file.startswith(tempfile.gettempdir() + os.sep):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
