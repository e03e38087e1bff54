"""Every tensor is made on a device that is named: no factory leaves it to a default."""

import ast
from pathlib import Path

import pytest

import acfuse

PACKAGE = Path(acfuse.__file__).parent
FACTORIES = {
    "arange", "as_tensor", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones",
    "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
# Files and ONNX are numbers in memory: nothing in these rooms runs elsewhere.
ON_THE_CPU = {"files", "graph/onnx_nodes.py", "graph/onnx_reference.py"}
# A layer without numbers is nowhere.
WITHOUT_NUMBERS = {
    "AvgPool1d", "AvgPool2d", "AvgPool3d", "Identity", "Module", "ModuleDict", "ModuleList",
    "Parameter", "Sequential",
}  # fmt: skip


def _without_device(source):
    """The calls that make a tensor, or a layer with numbers, and do not say where."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        of, name = ast.unparse(call.func.value), call.func.attr
        makes = (of == "torch" and name in FACTORIES) or (
            of in ("nn", "torch.nn") and name[:1].isupper() and name not in WITHOUT_NUMBERS
        )
        if makes and not any(k.arg in ("device", None) for k in call.keywords):
            yield f"{call.lineno}: {ast.unparse(call)[:60]}"


def _is_on_the_cpu(path):
    name = path.relative_to(PACKAGE).as_posix()
    return name in ON_THE_CPU or name.partition("/")[0] in ON_THE_CPU


def test_every_tensor_is_made_on_a_device_that_is_named():
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not _is_on_the_cpu(path)]
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in files
        if (calls := list(_without_device(path.read_text(encoding="utf-8"))))
    }
    assert len(files) > 100
    assert found == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("torch.zeros(3, dtype=torch.float64)", 1),
        ("x + torch.tensor([1.0])", 1),
        ("nn.Conv2d(3, 4, 1)", 1),
        ("torch.nn.Linear(3, 4)", 1),
        ("torch.zeros(3, device=x.device)", 0),
        ("torch.zeros_like(x) + x.new_ones(3)", 0),
        ("nn.Parameter(x)", 0),
        ("nn.Conv2d(3, 4, 1, **settings)", 0),
    ],
)
def test_a_tensor_that_is_made_anywhere_is_seen(source, count):
    assert len(list(_without_device(source))) == count
