"""Other tools that make networks faster, each tried as its manual says: what is left, how exact.

A tool is a function from a network and an image to a `Result`. What it needs is imported when it
is called: what is not installed is skipped by its name. Seconds are those of the tool alone, on the
processors, without importing it or exporting to ONNX.

`python -m benchmarks.peer_tools TOOL` tries one on every network, in this process, as JSON.
"""

import copy
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.peer_nets import NETS, OF_TIMM, Make, image, net

CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"}


class Inapplicable(Exception):
    """A network that a tool does not know, with the reason."""


@dataclass(frozen=True)
class Result:
    """What a tool left: how many convolutions, what they compute, and seconds of its work."""

    convolutions: int
    output: Tensor
    seconds: float


Tool = Callable[[nn.Module, Tensor], Result]


class _Counting(TorchDispatchMode):
    """Counts the convolutions that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "conv" in func.name()
        return func(*args, **(kwargs or {}))


def run(model: nn.Module, given: Tensor, seconds: float) -> Result:
    """A network in torch, run once."""
    counting = _Counting()
    with torch.no_grad(), counting:
        output = model(given)
    return Result(counting.count, output, seconds)


def exported(model: nn.Module, given: Tensor) -> onnx.ModelProto:
    """Its ONNX file, as torch writes it."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path = Path(folder) / "net.onnx"
        torch.onnx.export(model, (given,), path, dynamo=True, verbose=False, external_data=False)
        return onnx.load(path)


def in_onnxruntime(model: onnx.ModelProto, given: Tensor, seconds: float) -> Result:
    """An ONNX file, run as it stands."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    (output,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return Result(convolutions(model), torch.from_numpy(output), seconds)


def convolutions(model: onnx.ModelProto) -> int:
    """How many convolutions an ONNX graph has, of whatever domain."""
    return sum(node.op_type in CONVOLUTIONS for node in model.graph.node)


def as_trained(model: nn.Module, given: Tensor) -> Result:
    """Nothing is done."""
    return run(model, given, 0.0)


def by_acfuse(model: nn.Module, given: Tensor) -> Result:
    """Fused, and proved equal."""
    import acfuse

    start = time.process_time()
    fused = acfuse.fuse(model).model
    proofs = acfuse.verify(model, fused, tuple(given.shape))
    seconds = time.process_time() - start
    assert proofs.passed, proofs.fault
    return run(fused, given, seconds)


def onnx_tool(imported: Callable[[], Callable[[onnx.ModelProto], onnx.ModelProto]]) -> Tool:
    """A tool that makes an ONNX file of one."""

    def tool(model: nn.Module, given: Tensor) -> Result:
        make = imported()
        file = exported(model, given)
        start = time.process_time()
        made = make(file)
        return in_onnxruntime(made, given, time.process_time() - start)

    return tool


def _onnxsim() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    import onnxsim

    return lambda file: onnxsim.simplify(file)[0]


def _onnxslim() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    import onnxslim

    return lambda file: onnxslim.slim(file)


def _onnxoptimizer() -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    import onnxoptimizer

    passes = onnxoptimizer.get_fuse_and_elimination_passes()
    return lambda file: onnxoptimizer.optimize(file, passes)


def by_onnxruntime(model: nn.Module, given: Tensor) -> Result:
    """All optimisations; what is left is the graph that it writes."""
    import onnxruntime

    file = exported(model, given).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        start = time.process_time()
        session = onnxruntime.InferenceSession(file, options)
        seconds = time.process_time() - start
        left = convolutions(onnx.load(path))
    (output,) = session.run(None, {session.get_inputs()[0].name: given.numpy()})
    return Result(left, torch.from_numpy(output), seconds)


def by_openvino(model: nn.Module, given: Tensor) -> Result:
    """On the processor, held to float32: it takes bfloat16 by itself where that is faster."""
    import openvino

    core = openvino.Core()
    read = core.read_model(exported(model, given).SerializeToString())
    config = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    start = time.process_time()
    compiled = core.compile_model(read, "CPU", config)
    seconds = time.process_time() - start
    output = torch.from_numpy(compiled([given.numpy()])[compiled.output(0)].copy())
    kinds = [op.get_rt_info()["layerType"].value for op in compiled.get_runtime_model().get_ops()]
    return Result(sum("Convolution" in str(kind) for kind in kinds), output, seconds)


def by_fx(model: nn.Module, given: Tensor) -> Result:
    """torch.fx: each BatchNorm goes into the convolution before it."""
    from torch.fx.experimental.optimization import fuse

    start = time.process_time()
    fused = fuse(model)
    return run(fused, given, time.process_time() - start)


def by_compile(model: nn.Module, given: Tensor) -> Result:
    """torch.compile, the weights taken as constants; counted in the graph that is left."""
    import torch._inductor.config as inductor

    graphs: list[int] = []

    def count(graph: torch.fx.Graph) -> None:
        graphs.append(sum("conv" in str(n.target) for n in graph.nodes if n.op == "call_function"))

    inductor.freezing = True
    inductor.fx_graph_cache = False
    inductor.post_grad_custom_post_pass = count  # type: ignore[assignment]
    torch._dynamo.reset()
    start = time.process_time()
    with torch.no_grad():
        output = torch.compile(model)(given)
    return Result(sum(graphs), output, time.process_time() - start)


def by_timm(model: nn.Module, given: Tensor) -> Result:
    """Timm's walker calls the method that a class of its own brings along: those are what it gets.

    Raises Inapplicable for a family of which it has none.
    """
    from tests.packages.imports import imported

    walk = imported("timm").utils.reparameterize_model
    if not any(type(layer).__module__.startswith("timm.") for layer in model):  # type: ignore[union-attr]
        raise Inapplicable("it has no such class")
    start = time.process_time()
    made = walk(model)
    return run(made, given, time.process_time() - start)


def by_mct(model: nn.Module, given: Tensor) -> Result:
    """Sony's toolkit: it also quantises, so that its error is that of 8 bits."""
    from tests.packages.imports import imported

    toolkit = imported("model_compression_toolkit")
    start = time.process_time()
    quantise = toolkit.ptq.pytorch_post_training_quantization
    made, _ = quantise(model, lambda: iter([[given]]))
    return run(made, given, time.process_time() - start)


TOOLS: Mapping[str, Tool] = {
    "as trained": as_trained,
    "onnxsim": onnx_tool(_onnxsim),
    "onnxslim": onnx_tool(_onnxslim),
    "onnxoptimizer": onnx_tool(_onnxoptimizer),
    "onnxruntime": by_onnxruntime,
    "OpenVINO": by_openvino,
    "torch.fx fuse": by_fx,
    "torch.compile": by_compile,
    "timm": by_timm,
    "Sony MCT": by_mct,
    "acfuse": by_acfuse,
}


def tried(tool: Tool, make: Make) -> dict[str, Any]:
    """What came of a tool on one network; or why nothing did."""
    try:
        model, given = net(make), image()
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(given.double())
        result = tool(copy.deepcopy(model), given)
    except ModuleNotFoundError as error:
        return {"skipped": f"{error.name} is not installed"}
    except Inapplicable as error:
        return {"inapplicable": str(error)}
    except Exception as error:
        if type(error).__name__ == "MissingPackage":
            return {"skipped": str(error)}
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    difference = float((result.output.double() - exact).abs().max() / exact.abs().max())
    return {"convolutions": result.convolutions, "error": difference, "seconds": result.seconds}


def main(name: str) -> None:
    """Prints what came of one tool, a line of JSON."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with redirect_stdout(sys.stderr):
        nets = {**NETS, **OF_TIMM} if name == "timm" else NETS
        tried(TOOLS[name], nets["RepVGG"])  # the first time, what a tool needs is imported
        cells = {family: tried(TOOLS[name], make) for family, make in nets.items()}
    print(json.dumps(cells))


if __name__ == "__main__":
    main(*sys.argv[1:])
