"""What a network gives in a container of its own is in the ONNX file, tensor by tensor."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn

from acfuse.errors import UsageError
from acfuse.proof.onnx_runtime import run_session, session_of
from acfuse.proof.running import Inputs, named_shapes
from acfuse.targets.onnx_export import to_onnx
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.graph.fusing import conv


class Output(OrderedDict[str, Any]):
    """A dict that torch does not know."""


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, channels=(4, 6), stride=2)

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        return [Output(b=y, inner=Output(a=y.relu())), y * 2]


class Flat(nn.Module):
    """The same, its tensors in a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        first, second = self.model(x)
        return [first["b"], first["inner"]["a"], second]


@pytest.mark.parametrize("opset", [17, 20])
def test_a_mapping_of_its_own_gives_its_tensors_by_their_keys(opset):
    model, image = awake(Plain(), 0), torch.randn(1, 4, 7, 10)
    file = to_onnx(model, Inputs(((None, (1, 4, 7, 10)),)), opset=opset)
    assert file.outputs == ("output_0_b", "output_0_inner_a", "output_1")
    assert {w.name for w in file.model.graph.initializer} >= {"a.weight", "a.bias"}
    given = run_session(session_of(file.bytes, optimised=False), {"input": image})
    expected = Flat(model)(image)
    bound = rounding(Flat(model), image, dtype=torch.float32)
    assert_within([torch.tensor(value) for value in given], expected, bound)
    assert type(model(image)[0]) is Output  # it is the model's own, as before


class Several(Plain):
    def forward(self, *images: torch.Tensor) -> Any:
        return super().forward(images[0])


@pytest.mark.parametrize("name", [None, "images"])
def test_inputs_without_names_are_told_to_be_so(name):
    with pytest.raises(UsageError, match=r"any number of images.*Write a module around it"):
        named_shapes(Several(), Inputs(((name, (1, 4, 7, 10)),)))
