"""Hashes of what the samples are fused to, with weights for which all arithmetic is exact."""

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import acfuse
from acfuse.patterns import PATTERNS
from acfuse.patterns.registry import assumed
from sample_models import Sample, samples

GOLDEN = Path(__file__).with_name("golden.json")
EPS = 2.0**-20  # with it a variance is a power of 4, whose root is exact


@torch.no_grad()
def exact(model: nn.Module) -> nn.Module:
    """The model with odd numbers of eighths for weights, and powers of two in its BatchNorms.

    What was zero throughout stays so: whether a bias is zero decides what can be fused.
    """
    generator = torch.Generator().manual_seed(0)

    def odd(like: Tensor, low: int, high: int) -> Tensor:
        numbers = torch.randint(low, high, like.shape, generator=generator)
        return (2 * numbers + 1).to(like.dtype)

    for parameter in model.parameters():
        if parameter.is_floating_point() and bool(parameter.any()):
            parameter.copy_(odd(parameter, -8, 8) / 8)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(odd(buffer, -8, 8) / 8)
        if name.endswith("running_var"):
            powers = torch.randint(-1, 2, buffer.shape, generator=generator)
            buffer.copy_(4.0**powers - EPS)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = EPS
    return model


def hashed(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """One hash of named tensors, in their order; zero has no sign in it."""
    digest = hashlib.sha256()
    for key, tensor in tensors:
        if "num_batches_tracked" not in key:
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update((tensor.detach() + 0).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def told(found: Iterable[object], refused: Iterable[object]) -> list[str]:
    """The blocks, and the places and codes of what was refused, as they are reported."""
    blocks = [
        f"{f.where}|{f.pattern}|{','.join(f.names)}|{f.convolutions[0]}>{f.convolutions[1]}"  # type: ignore[attr-defined]
        for f in found
    ]
    return [*blocks, *sorted(f"{r.where}|{r.code}" for r in refused)]  # type: ignore[attr-defined]


def ways(sample: Sample) -> Mapping[str, object]:
    """Every way in: as a live model, with folds, as bare tensors, as an ONNX file."""
    model = exact(sample.build())
    results: dict[str, object] = {}
    for name, folds in (("live", False), ("folded", True)):
        fused = acfuse.fuse(model, fold_bn=folds)
        results[name] = hashed(fused.model.state_dict().items())
        results[f"{name} told"] = told(fused.found, fused.refused)
    patterns = assumed(PATTERNS, sample.assume)
    bare = acfuse.fuse_tensors(model.state_dict(), bn_eps=EPS, patterns=patterns)
    results["bare"] = hashed(bare.tensors.items())
    results["bare told"] = told(bare.found, bare.refused)
    proto = onnx.load_from_string(exported(model, sample.input_shapes[0]))
    file = acfuse.fuse_onnx(proto)
    tensors = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in file.model.graph.initializer}
    results["onnx"] = hashed(tensors.items())
    results["onnx told"] = [f"{f.convolutions[0]}>{f.convolutions[1]}" for f in file.found]
    return results


def exported(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """A model as an ONNX file of torch's older exporter, nothing folded by it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            torch.ones(*shape),
            buffer,
            dynamo=False,
            opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return buffer.getvalue()


if __name__ == "__main__":
    results = {name: ways(sample) for name, sample in samples().items()}
    GOLDEN.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
