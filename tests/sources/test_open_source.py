"""What a file is, is asked once, of its content; what it is called plays no part."""

import re
from pathlib import Path

import onnx
import pytest

import acfuse
from acfuse.files.detect import is_onnx
from sample_models import samples
from tests.cli.command import refused, run, worked
from tests.families.golden import exported

PACKAGE = Path(acfuse.__file__).parent
SAMPLE = samples()["acnet/k3"]
NAMES = ["net.pb", "net.pth", "net", "net.safetensors", "net.onnx"]
# What would tell one kind of source from another.
ASKS = re.compile(
    r"isinstance\([^)]*\b(\w+Source|\w+Fused|LiveModel|BareTensors|ModelProto)\b"
    r"|\.suffix\s*(==|!=|in)\s*[\"(']|container\.kind\s*(==|!=|in)\s"
)


@pytest.fixture(scope="module")
def data() -> bytes:
    return exported(SAMPLE.build(), SAMPLE.input_shapes[0])


def reversed_fields(data: bytes) -> bytes:
    """The same message with its fields the other way round, as protobuf allows."""
    model = onnx.load_from_string(data)
    parts = []
    for field, _ in model.ListFields():
        part = onnx.ModelProto()
        if field.is_repeated:
            getattr(part, field.name).extend(getattr(model, field.name))
        elif field.message_type:
            getattr(part, field.name).CopyFrom(getattr(model, field.name))
        else:
            setattr(part, field.name, getattr(model, field.name))
        parts.append(part.SerializeToString())
    return b"".join(reversed(parts))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [lambda data: data, reversed_fields], ids=["usual", "reversed"])
def test_an_onnx_file_is_one_whatever_it_is_called(tmp_path, monkeypatch, data, name, change):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(change(data))
    worked(run("convert", name))
    made = {path.name for path in Path().glob("net.fused*")}
    assert made == {"net.fused.onnx", "net.fused.acfuse.json"}
    before, after = (
        [node.op_type for node in onnx.load(path).graph.node].count("Conv")
        for path in (name, "net.fused.onnx")
    )
    assert before > after >= SAMPLE.blocks
    worked(run("verify"))


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_whose_end_is_missing_is_no_onnx_file(tmp_path, monkeypatch, data, cut):
    monkeypatch.chdir(tmp_path)
    Path("net.pb").write_bytes(reversed_fields(data)[:-cut])
    assert not is_onnx(Path("net.pb"))
    refused(run("convert", "net.pb"), 3, "net.pb")


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x3a\x00", b"\xff" * 40, b"PK\x03\x04" * 9])
def test_what_is_no_onnx_file(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert is_onnx(path) == (content == b"\x3a\x00")  # a graph, of nothing
    assert not is_onnx(tmp_path)
    assert not is_onnx(tmp_path / "nothing")


def test_the_kind_of_a_source_is_asked_nowhere_else():
    asked = {
        str(path.relative_to(PACKAGE)): found.group()
        for path in sorted(PACKAGE.rglob("*.py"))
        for found in [ASKS.search(path.read_text(encoding="utf-8"))]
        if found
        and path.parent.name not in ("sources", "files")
        # A call of Python takes a model or a file, and a model is no source yet.
        and not (path.name in ("api.py", "quantize_file.py") and "ModelProto" in found.group())
    }
    assert asked == {}


def test_the_test_above_would_find_it():
    for line in ("isinstance(source, LiveSource)", "isinstance(x, LiveModel | BareTensors)",
                 'source.suffix == ".onnx"', 'container.kind == "module"'):  # fmt: skip
        assert ASKS.search(line)


@pytest.mark.parametrize("command", [["verify"], ["convert", "net.onnx", "-n"]])
def test_what_an_onnx_file_is_stands_in_every_description(tmp_path, monkeypatch, data, command):
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(data)
    worked(run("convert", "net.onnx"))
    described = worked(run(*command, "--format", "json")).json["onnx"]
    assert described["nodes"]["Conv"] == 3
    assert described["outputs"]


@pytest.mark.parametrize("place", [(0, 0, 1, 1), (0, 0, 0, 0), (1, 2, 2, 0)])
def test_the_file_that_is_verified_is_the_one_that_is_run(tmp_path, monkeypatch, data, place):
    monkeypatch.chdir(tmp_path)
    Path("net.onnx").write_bytes(data)
    worked(run("convert", "net.onnx"))
    fused = onnx.load("net.fused.onnx")
    tensor = next(t for t in fused.graph.initializer if t.name.endswith("output_0.weight"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[place] += 1.0
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(fused, "altered.onnx")
    result = run("verify", "net.onnx", "altered.onnx", "--format", "json")
    assert result.exit_code == 1
    assert result.json["onnx"]["nodes"]["Conv"] == 3
    passed = {check["name"]: check["passed"] for check in result.json["checks"]}
    assert passed == {"program": True, "rewriting": True, "onnx": False}
