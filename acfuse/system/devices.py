"""Where a model stands, and what a device has to leave be while numbers are compared.

What runs, runs where its model is. What is compared is compared on the CPU, and random numbers are
drawn there too: so they are the same on every machine.
"""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from acfuse.errors import InputError, UsageError
from acfuse.system.escape import one_line

CPU = torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """Where a model stands: where its first weight is. Without one it runs anywhere: the CPU."""
    return next((tensor.device for tensor in _tensors(module)), CPU)


def check_device(module: nn.Module) -> None:
    """Raises InputError for a model without numbers, or one that stands on several devices."""
    places = dict.fromkeys(tensor.device for tensor in module.parameters())
    if any(place.type == "meta" for place in places):
        raise InputError("the model's weights are on the device meta: there are none. Load them.")
    places |= dict.fromkeys(b.device for b in module.buffers() if not b.is_meta)
    if len(places) > 1:
        listed = " and ".join(map(str, places))
        raise InputError(f"the model stands on {listed}. Move it to one device, with model.to().")
    check_float64(device_of(module))


def check_float64(device: torch.device) -> None:
    """Raises InputError for a device that cannot compute in float64, as every proof does."""
    if device.type == "meta":
        raise InputError("the device meta holds no numbers. Take the CPU.")
    if device.type == "mps":
        raise InputError("the device mps has no float64, in which all is proved. Take the CPU.")


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def named_device(name: str) -> torch.device:
    """The device that a user names: cpu, cuda, cuda:1.

    Raises UsageError for what is none, or is not here, and for one that has no float64.
    """
    try:
        device = torch.device(name)
        check_float64(device)
    except RuntimeError as error:
        raise UsageError(
            f"--device {name}: torch knows no such device. Give cpu or cuda."
        ) from error
    except InputError as error:
        raise UsageError(f"--device {name}: {error}") from error
    try:
        return torch.zeros((), device=device).device
    except (RuntimeError, AssertionError) as error:
        why = one_line(error, 80)
        text = f"--device {name}: torch finds no such device here ({why}). Give cpu."
        raise UsageError(text) from error


def prepare_products(device: torch.device) -> None:
    """Makes cuBLAS add in one order, if no product was computed before; a user's own word wins."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def exact_arithmetic(device: torch.device) -> Iterator[None]:
    """A device computes with all digits of a dtype, and one sum in one order; as before, after it.

    The CPU always does. What has no such order is run all the same: where it matters, two runs
    of a model differ, and that is looked for.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    parts: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    before = [part.fp32_precision for part in parts]
    flags = cudnn.deterministic, cudnn.benchmark
    mode = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        cudnn.deterministic, cudnn.benchmark = True, False
        torch.use_deterministic_algorithms(True, warn_only=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*determinis")
            yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = flags
        torch.use_deterministic_algorithms(mode, warn_only=warns)


def seed_draws(device: torch.device) -> None:
    """What is drawn at random from here on, on a device or the CPU, is the same each time."""
    torch.default_generator.manual_seed(0)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(0)


@contextlib.contextmanager
def random_draws_of_its_own(*devices: torch.device) -> Iterator[None]:
    """Whatever is drawn at random within it, the caller's draws go on as if nothing had been."""
    has_cuda = any(device.type == "cuda" for device in devices)
    indices = range(torch.cuda.device_count()) if has_cuda else ()
    with torch.random.fork_rng(devices=indices):
        yield
