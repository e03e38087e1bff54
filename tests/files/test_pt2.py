"""Programs of torch.export: in, without running what they say, and out, for torch alone."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

from acfuse.files.read import read_tensors
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from sample_models import samples
from tests.bounds import rounding
from tests.cli.command import refused, run, worked
from tests.cli.nets import Net
from tests.cli.project import CHECKPOINT, MODEL, snapshot, trained

SHAPE = ("--input-shape", "1,3,9,7")
LOAD_WITHOUT_ACFUSE = """
import sys, torch
sys.modules["acfuse"] = None  # whoever imports it now fails
given, expected = torch.load("answers.pth", weights_only=True)
model = torch.export.load(sys.argv[1]).module()
print(float((model(given) - expected).abs().max()))
"""


def image(batch=2):
    return torch.randn(batch, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def program(model, *given, **more):
    given = given or (image(),)
    free = ({0: Dim("batch", min=1)},) + (None,) * (len(given) - 1)
    return torch.export.export(model, given, dynamic_shapes=free, strict=False, **more)


def save(model, *given, name="model.pt2"):
    torch.export.save(program(model, *given), name)


def rewrite(name, change, path="model.pt2"):
    """Changes one record of a .pt2 file: its bytes, or what its JSON holds."""
    with zipfile.ZipFile(path) as old:
        records = [(i, old.read(i)) for i in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for info, data in records:
            if info.filename.endswith(name):
                if name.endswith(".json"):
                    content = json.loads(data)
                    change(content)
                    data = json.dumps(content).encode()
                else:
                    data = change(data)
            new.writestr(info.filename, data)


def nodes(content):
    return content["graph_module"]["graph"]["nodes"]


def assert_loads_alone(name):
    model = trained(Net())
    torch.save((image(3), model(image(3)).detach()), "answers.pth")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_ACFUSE, name],
        capture_output=True,
        text=True,
        check=True,
    )
    (bound,) = rounding(model, image(3), dtype=torch.float32)
    assert float(done.stdout) <= bound


def test_a_pt2_file_beside_the_checkpoint(project):
    result = worked(run("convert", "model.pth", *CHECKPOINT, "--pt2"))
    assert "equal   .pt2 file in torch against the original model" in result.stdout
    outputs = json.loads(Path("model.fused.acfuse.json").read_text())["outputs"]
    assert [o["file"] for o in outputs] == ["model.fused.pth", "model.fused.pt2"]
    assert_loads_alone("model.fused.pt2")
    again = worked(run("verify"))
    assert ".pt2 file in torch" in again.stdout


def test_a_pt2_file_that_was_altered_is_noticed(project):
    worked(run("convert", "model.pth", *CHECKPOINT, "--pt2"))
    data = bytearray(Path("model.fused.pt2").read_bytes())
    place = data.index(b"weight_0") + 64
    data[place] ^= 1
    Path("model.fused.pt2").write_bytes(data)
    refused(run("verify"), 1, "model.fused.pt2")


def test_nothing_of_this_machine_is_in_it(project):
    worked(run("convert", "model.pth", *CHECKPOINT, "--pt2"))
    data = Path("model.fused.pt2").read_bytes()
    assert b"fused_conv" in data
    assert str(project).encode() not in data
    assert b"stack_trace" not in data
    assert b".py" not in data


def test_two_conversions_write_the_same_bytes(project):
    worked(run("convert", "model.pth", *CHECKPOINT, "--pt2"))
    before = snapshot(project)
    worked(run("convert", "model.pth", *CHECKPOINT, "--pt2", "--force"))
    assert snapshot(project) == before


def test_an_existing_pt2_file_is_not_replaced(project):
    Path("model.fused.pt2").write_text("mine")
    refused(run("convert", "model.pth", *CHECKPOINT, "--pt2"), 6, "model.fused.pt2 exists")
    assert Path("model.fused.pt2").read_text() == "mine"


def test_without_the_code_there_is_no_pt2_file(project):
    result = worked(run("convert", "model.pth", "--no-onnx", "--pt2"))
    assert "no .pt2 file" in result.stdout
    assert not Path("model.fused.pt2").exists()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own
@pytest.mark.parametrize("decomposed", [False, True])
def test_a_pt2_file_becomes_one(project, decomposed):
    made = program(trained(Net()))
    if decomposed:
        made = made.run_decompositions({})
    torch.export.save(made, "model.pt2")
    result = worked(run("convert", "model.pt2", *SHAPE))
    assert "convolutions 7 -> 3" in result.stdout
    assert_loads_alone("model.fused.pt2")
    worked(run("verify"))
    _, tensors = read_tensors(Path("model.fused.pt2"))
    assert {k.rpartition(".")[0] for k in tensors} == {"fused_conv", "fused_conv_2", "head"}


def test_a_pt2_file_takes_no_model_and_no_key(project):
    save(trained(Net()))
    refused(run("convert", "model.pt2", *MODEL), 2, "--model is for state dicts")
    refused(run("convert", "model.pt2", *SHAPE, "--key", "a"), 2, "--key")


class Shapes(nn.Module):
    """Sizes, several inputs, several results in a dict."""

    def __init__(self):
        super().__init__()
        self.conv, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.register_buffer("scale", torch.rand(4, 1, 1) + 0.5)

    def forward(self, left, right):
        both = self.conv(left) + self.point(left)
        flat = (both * self.scale).flatten(1)
        rest = torch.nn.functional.interpolate(right, scale_factor=2.0, mode="bilinear")
        parts = torch.chunk(both, 2, 1)
        return {"flat": flat.reshape(both.shape[0], -1), "rest": rest, "part": parts[1]}


def test_a_program_is_read_as_it_was(project):
    model = Shapes().eval()
    given = image(), torch.randn(2, 2, 5, 4)
    save(model, *given)
    container, tensors = read_tensors(Path("model.pt2"))
    assert set(tensors) == set(model.state_dict())
    for inputs in (given, (image(4), torch.randn(2, 2, 5, 4))):
        expected, answer = model(*inputs), container.network(*inputs)
        assert list(answer) == ["flat", "rest", "part"]
        assert all(torch.equal(answer[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "name", ["acnet/reflect", "acnet/k3_p0", "acnet/shared", "mobileone/apple"]
)
def test_onnx_program_of_samples_are_read_as_they_were(project, name):
    sample = samples()[name]
    model = sample.build()
    given = (torch.randn(sample.input_shapes[0]),)
    torch.export.save(torch.export.export(model, given, strict=False), "model.pt2")
    container, _ = read_tensors(Path("model.pt2"))
    assert torch.equal(container.network(*given), model(*given))
    assert set(container.network.state_dict()) == set(model.state_dict())
    found = find_in_module(container.network, PATTERNS).blocks
    assert len(found) >= len(find_in_module(model, PATTERNS).blocks)


# ------------------------------------------------------------------------------ hostile programs


@pytest.fixture
def hostile(project):
    save(trained(Net()))
    return project


def refused_untouched(code, *words):
    before = snapshot(Path.cwd())
    refused(run("convert", "model.pt2", *SHAPE), code, *words)
    assert snapshot(Path.cwd()) == before


def pickled(payload):
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    return buffer.getvalue()


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("record", ["sample_inputs/model.pt", "weights/weight_0"])
def test_a_pickle_in_a_program_is_never_read(hostile, record):
    rewrite(record, lambda _: pickled(Payload(hostile / "canary")))
    if "weight" in record:

        def mark(content):
            content["config"]["first.square_conv.weight"]["use_pickle"] = True

        rewrite("weights_config.json", mark)
        refused_untouched(4, "first.square_conv.weight is a pickled object")
    else:
        worked(run("convert", "model.pt2", *SHAPE, "--no-onnx"))
    assert not (hostile / "canary").exists()


def test_a_guard_that_is_code_is_never_run(hostile):
    def change(content):
        content["guards_code"] = [f"open({str(hostile / 'canary')!r}, 'w') is not None"]

    rewrite("models/model.json", change)
    worked(run("convert", "model.pt2", *SHAPE, "--no-onnx"))
    assert not (hostile / "canary").exists()


def test_a_size_that_is_code_is_never_evaluated(hostile):
    def change(content):
        for described in content["graph_module"]["graph"]["tensor_values"].values():
            described["sizes"] = [{"as_expr": {"expr_str": "open('canary', 'w')", "hint": None}}]

    rewrite("models/model.json", change)
    refused(run("convert", "model.pt2", *SHAPE, "--no-onnx"), 3, "model.pt2")  # it is no size
    assert not (hostile / "canary").exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.load",
        "_operator.methodcaller",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.set_.source_Tensor",
        "torch.ops.aten.relu.default.__call__",
        "torch.ops.aten.__class__.default",
        "torch.ops.prims.add.default",
        "builtins.eval",
    ],
)
def test_only_operators_of_torch_are_called(hostile, target):
    def change(content):
        node = next(n for n in nodes(content) if "relu" in n["target"])
        node["target"] = target

    rewrite("models/model.json", change)
    before = snapshot(hostile)
    result = run("convert", "model.pt2", *SHAPE)
    assert result.exit_code == 3
    assert "model.pt2" in result.stderr
    assert snapshot(hostile) == before


def test_a_word_that_may_be_a_file_is_no_argument(hostile):
    def change(content):
        node = next(n for n in nodes(content) if "relu" in n["target"])
        node["inputs"].append({"name": "file", "arg": {"as_string": "canary"}, "kind": 1})

    rewrite("models/model.json", change)
    refused_untouched(4, "'canary', which is not read")


def smaller(content):
    content["config"]["head.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 2**40


def beyond(content):
    content["config"]["head.weight"]["tensor_meta"]["storage_offset"]["as_int"] = 10**6


def without_stride(content):
    meta = content["config"]["head.bias"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 2**40}], [{"as_int": 0}]


@pytest.mark.parametrize("change", [smaller, beyond, without_stride])
def test_a_tensor_lies_within_its_bytes(hostile, change):
    rewrite("weights_config.json", change)
    refused_untouched(3, "model.pt2 is no program that acfuse can read")


def other_schema(content):
    content["schema_version"]["major"] = 99


def own_name(content):
    for spec in content["graph_module"]["signature"]["input_specs"]:
        if "user_input" in spec:
            spec["user_input"]["arg"]["as_tensor"]["name"] = "x): import os #"


def no_nodes(content):
    content["graph_module"]["graph"]["nodes"] = []


def writes(content):
    content["graph_module"]["signature"]["output_specs"][0] = {
        "buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "y"}
    }


@pytest.mark.parametrize("change", [other_schema, own_name, no_nodes, writes, dict.clear])
def test_a_program_that_cannot_be_read(hostile, change):
    rewrite("models/model.json", change)
    refused_untouched(3, "model.pt2")


def test_a_damaged_program(hostile):
    data = Path("model.pt2").read_bytes()
    Path("model.pt2").write_bytes(data[: len(data) // 2])
    assert run("convert", "model.pt2", *SHAPE).exit_code == 3
    flipped = bytearray(data)
    flipped[data.index(b"weight_3") + 70] ^= 1
    Path("model.pt2").write_bytes(flipped)
    refused_untouched(3, "model.pt2 is damaged")
