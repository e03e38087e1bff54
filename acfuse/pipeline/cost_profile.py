"""What single convolutions cost on this machine: measured, for `--cost`."""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from acfuse.files.cost_table import Row, Work
from acfuse.pipeline.bench import machine
from acfuse.proof.onnx_runtime import session_of
from acfuse.system.threads import threads

KERNELS = (
    (1, 1), (1, 3), (3, 1), (3, 3), (1, 5), (5, 1), (5, 5), (7, 7), (1, 11), (11, 1), (11, 11),
    (13, 13), (21, 21), (31, 31), (5, 51), (51, 5), (51, 51),
)  # fmt: skip
CHANNELS = (16, 32, 64, 128, 256)
SIZES = (14, 56)
MOST = 10**9  # multiply-adds of one convolution: what is larger is told from what is near
REPEATS, SECONDS = 5, 0.005  # the least of so many means over so long: others' work only adds
OPSET, IR = 20, 10

Progress = Callable[[str], None]
Clock = Callable[[], float]


def works() -> Iterator[Work]:
    """The convolutions that are measured: dense ones, ones that widen or narrow, depthwise."""
    for kernel in KERNELS:
        for width in CHANNELS:
            yield Work(kernel, (width, width))
            yield Work(kernel, (1, 1), width)
        for narrow, wide in pairwise(CHANNELS):
            yield Work(kernel, (narrow, wide))
            yield Work(kernel, (wide, narrow))


def profile(
    backends: Sequence[str],
    sizes: Sequence[int],
    progress: Progress = lambda _: None,
    *,
    wanted: Sequence[Work] | None = None,
    clock: Clock = time.perf_counter,
) -> list[Row]:
    """Measures each convolution alone, one at a time, on each backend and at each size."""
    rows = []
    for backend in backends:
        for size in sizes:
            for work in [*works()] if wanted is None else wanted:
                if work.multiply_adds * size**2 <= MOST:
                    progress(f"{backend}, {size}x{size}: {_named(work)}")
                    seconds = least(MAKERS[backend](work, size), clock)
                    rows.append(Row(backend, size, work, seconds))
    return rows


def about() -> dict[str, Any]:
    """Where and how the rows were measured."""
    how = f"the least of {REPEATS} means over at least {SECONDS} s each, by the clock, one image"
    return {"machine": machine(), "how": how}


def least(call: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds of a call: the least of several means."""
    call()
    times = []
    for _ in range(REPEATS):
        began, calls = clock(), 0
        while calls == 0 or clock() - began < SECONDS:
            call()
            calls += 1
        times.append((clock() - began) / calls)
    return min(times)


def _named(work: Work) -> str:
    kind = "depthwise" if work.is_depthwise else "dense"
    widths = work.groups if work.is_depthwise else f"{work.channels[0]} to {work.channels[1]}"
    return f"{work.kernel[0]}x{work.kernel[1]}, {kind}, {widths} channels"


def _eager(work: Work, size: int) -> Callable[[], object]:
    """A layer of torch's own."""
    inputs, outputs = (n * work.groups for n in work.channels)
    pads = work.kernel[0] // 2, work.kernel[1] // 2
    settings: dict[str, Any] = {"padding": pads, "groups": work.groups, "device": "cpu"}
    layer = nn.Conv2d(inputs, outputs, work.kernel, **settings).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, inputs, size, size, generator=generator, device="cpu")

    def call() -> object:
        with torch.no_grad():
            return layer(image)

    return call


def _onnxruntime(work: Work, size: int) -> Callable[[], object]:
    """A file of one node."""
    inputs, outputs = (n * work.groups for n in work.channels)
    pads = [work.kernel[0] // 2, work.kernel[1] // 2]
    draw = np.random.default_rng(0)
    shape = (outputs, work.channels[0], *work.kernel)
    scale = prod(shape[1:]) ** -0.5
    weight = (scale * draw.standard_normal(shape)).astype(np.float32)
    node = helper.make_node(
        "Conv", ["x", "weight", "bias"], ["y"], pads=pads * 2, group=work.groups
    )
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs, size, size])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.zeros(outputs, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    session = session_of(model.SerializeToString(), optimised=True, count=threads())
    image = draw.standard_normal((1, inputs, size, size)).astype(np.float32)
    return lambda: session.run(None, {"x": image})


MAKERS = {"eager": _eager, "onnxruntime": _onnxruntime}
