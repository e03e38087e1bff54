"""Devices by name, what of a model stands where, and arithmetic that leaves nothing out."""

import pytest
import torch
from torch import nn

from acfuse.errors import InputError, UsageError
from acfuse.system import devices
from acfuse.system.devices import CPU, check_device, device_of, exact_arithmetic, named_device

CUDA = torch.device("cuda")  # whose settings torch has without one, too


def test_the_cpu_is_a_device():
    assert named_device("cpu") == CPU


@pytest.mark.parametrize("name", ["", "gpu", "cuda:x", "CPU", "meta", "mps", "cpu,cuda"])
def test_what_is_no_device_here_is_one_line_and_says_what_to_give(name):
    with pytest.raises(UsageError) as error:
        named_device(name)
    text = str(error.value)
    assert text.startswith(f"--device {name}: ")
    assert "\n" not in text
    assert "cpu" in text.lower().removeprefix(f"--device {name.lower()}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_a_gpu_cuda_is_told_to_be_missing(name):
    with pytest.raises(UsageError, match=r"finds no such device here .* Give cpu\."):
        named_device(name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_gpu_is_found_by_name():
    assert named_device("cuda").type == "cuda"


def test_a_model_stands_where_its_weights_are():
    assert device_of(nn.Conv2d(1, 1, 1)) == CPU
    assert device_of(nn.Conv2d(1, 1, 1, device="meta")).type == "meta"
    assert device_of(nn.ReLU()) == CPU


def test_a_model_on_several_devices_is_refused_by_their_names(monkeypatch):
    class Elsewhere:
        device, is_meta = torch.device("cuda:1"), False

    model = nn.Conv2d(1, 1, 1)
    check_device(model)
    monkeypatch.setattr(model, "buffers", lambda: [Elsewhere()])
    with pytest.raises(InputError, match=r"stands on cpu and cuda:1\. Move it to one device"):
        check_device(model)


def test_a_model_without_numbers_is_refused():
    with pytest.raises(InputError, match=r"on the device meta: there are none\. Load them"):
        check_device(nn.Conv2d(1, 1, 1, device="meta"))


def _settings():
    cudnn = torch.backends.cudnn
    parts = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    return (
        *(part.fp32_precision for part in parts),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


EXACT = ("ieee", "ieee", "ieee", True, False, True, True)


@pytest.fixture
def _fast():
    """The settings with which a GPU is fast, and loses digits."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.benchmark
    cudnn.conv.fp32_precision = matmul.fp32_precision = "tf32"
    cudnn.benchmark = True
    yield
    cudnn.conv.fp32_precision, matmul.fp32_precision, cudnn.benchmark = before


@pytest.mark.usefixtures("_fast")
def test_a_gpu_computes_with_all_digits_and_as_before_afterwards():
    before = _settings()
    assert before != EXACT
    with exact_arithmetic(CUDA):
        assert _settings() == EXACT
        with exact_arithmetic(CUDA):
            assert _settings() == EXACT
        assert _settings() == EXACT
    assert _settings() == before
    with pytest.raises(KeyError), exact_arithmetic(CUDA):
        raise KeyError
    assert _settings() == before


@pytest.mark.usefixtures("_fast")
def test_of_the_cpu_no_setting_is_touched():
    before = _settings()
    with exact_arithmetic(CPU):
        assert _settings() == before


@pytest.mark.parametrize(("own", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_products_of_a_gpu_are_added_in_one_order_unless_a_user_says_how(
    monkeypatch, own, expected
):
    variables = {} if own is None else {"CUBLAS_WORKSPACE_CONFIG": own}
    monkeypatch.setattr(devices.os, "environ", variables)
    devices.prepare_products(CPU)
    assert variables.get("CUBLAS_WORKSPACE_CONFIG") == own
    devices.prepare_products(CUDA)
    assert variables == {"CUBLAS_WORKSPACE_CONFIG": expected}


def test_draws_on_the_cpu_are_the_callers_afterwards():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with devices.random_draws_of_its_own(CPU):
        devices.seed_draws(CPU)
        assert not torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)
