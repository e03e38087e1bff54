"""A given ONNX file is the program that acfuse writes itself, or the first difference is named."""

import copy
import io

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from torch import nn

from acfuse.errors import InputError
from acfuse.pipeline.convert import prove
from acfuse.proof import Inputs, Tolerance
from acfuse.proof.onnx_program import compare_programs, differences
from acfuse.sources.onnx import with_tensors
from tests.cli.command import refused, run, worked
from tests.proof.onnx_faults import FAULTS, assign, first, put, size
from tests.proof.onnx_nets import NETS, SHAPE, Network, exported, fused_of
from tests.proof.verdicts import drawn

HARMLESS = ("doc_string", "producer_name", "producer_version")


def changed(name, change):
    """The fused file of a network with something done to it."""
    model = copy.deepcopy(fused_of(name).model)
    change(model)
    return model


def verdict(name, model):
    return compare_programs(fused_of(name).model, model, fused_of(name).certified)


@pytest.mark.parametrize(("net", "fault"), [(n, f) for n, each in FAULTS.items() for f in each])
def test_a_planted_fault_is_named(net, fault):
    change, words = FAULTS[net][fault]
    check = verdict(net, changed(net, change))
    assert not check.passed
    assert words in check.detail
    assert "\n" not in check.detail


def places(message, certified, path=()):
    """Every field of a message, at any depth, and every item of its lists."""
    for field, value in message.ListFields():
        if field.name in HARMLESS or (message.DESCRIPTOR.name, field.name) == ("NodeProto", "name"):
            continue
        if field.name == "raw_data" and message.name in certified:
            continue
        yield (*path, field.name)
        for i, item in enumerate(value if hasattr(value, "append") else [value]):
            at = (*path, field.name, i)
            if hasattr(value, "append") and field.name != "value_info":
                yield at
            if field.message_type is not None:
                yield from places(item, certified, at)


def altered(value):
    if isinstance(value, (str, bytes)):
        return value[:-1] + (bytes([value[-1] ^ 1]) if isinstance(value, bytes) else "~")
    return value + 1 if value != 1 else 2


def spoiled(model, path):
    """Something else in one place of a file: a field without what it held, or with another item."""
    message = model
    for name, i in zip(path[:-1:2], path[1:-1:2], strict=False) if len(path) % 2 else ():
        value = getattr(message, name)
        message = value[i] if hasattr(value, "append") else value
    if len(path) % 2:
        value = getattr(message, path[-1])
        if isinstance(value, (str, bytes, int, float)):
            setattr(message, path[-1], altered(value))
        else:
            message.ClearField(path[-1])
        return
    for name, i in zip(path[:-2:2], path[1:-2:2], strict=False):
        value = getattr(message, name)
        message = value[i] if hasattr(value, "append") else value
    values, i = getattr(message, path[-2]), path[-1]
    if isinstance(values[i], (str, bytes, int, float)):
        values[i] = altered(values[i])
    else:
        del values[i]


@pytest.mark.parametrize("net", NETS)
def test_every_field_of_a_file_that_is_changed_alone_is_seen(net):
    fused = fused_of(net)
    missed, count = [], 0
    for path in places(fused.model, fused.certified):
        model = copy.deepcopy(fused.model)
        spoiled(model, path)
        if path[-1] == "value_info" or path[-2:-1] == ("value_info",):
            continue  # types that are left out
        count += 1
        if next(differences(fused.model, model, fused.certified), None) is None:
            missed.append(path)
    assert missed == []
    assert count > 100


def typed(model):
    """Numbers as lists of their type in place of raw bytes."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        values = helper.make_tensor(tensor.name, tensor.data_type, array.shape, array.ravel())
        assert not values.raw_data
        tensor.CopyFrom(values)


def commented(model):
    for item in (model, model.graph, *model.graph.node, *model.graph.input, *model.functions):
        item.doc_string = "a comment"


def renamed(model):
    for i, item in enumerate(model.graph.node):
        item.name = f"node_{i}"


def reordered(model):
    node = next((n for n in model.graph.node if n.op_type == "Constant"), None)
    if node is not None:  # whatever order it is in, a node is behind those that it reads
        model.graph.node.remove(node)
        model.graph.node.insert(0, node)
    for items in (model.graph.initializer, model.graph.value_info, model.metadata_props):
        items.reverse()
    for item in model.graph.node:
        item.attribute.reverse()


def saved(model):
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    model.CopyFrom(onnx.load_from_string(buffer.getvalue()))


def in_text(model):
    model.CopyFrom(onnx.load_from_string(onnx._get_serializer("textproto").serialize_proto(model),
                                         format="textproto"))  # fmt: skip


RESAVED = {
    "by onnx": saved,
    "through text": in_text,
    "typed numbers": typed,
    "comments": commented,
    "names of nodes": renamed,
    "another order": reordered,
    "another producer": lambda m: assign(m, producer_name="they", producer_version="2"),
    "with inferred shapes": lambda m: m.CopyFrom(onnx.shape_inference.infer_shapes(m)),
    "with inferred data": lambda m: m.CopyFrom(
        onnx.shape_inference.infer_shapes(m, data_prop=True)
    ),
    "without shapes inside": lambda m: m.graph.ClearField("value_info"),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("change", RESAVED)
def test_a_file_that_was_written_anew_is_the_same_program(net, change):
    fused, model = fused_of(net), changed(net, RESAVED[change])
    assert [*differences(fused.model, model, fused.certified)] == []


@pytest.mark.parametrize("net", NETS)
def test_a_file_of_ones_own_is_proved(net):
    fused = fused_of(net)
    inputs = Inputs(
        ((None, SHAPE if net in ("plain", "branches", "functions") else (2, 3, 15, 18)),)
    )
    proofs = prove(with_tensors(fused, changed(net, typed), "net.onnx"), inputs, Tolerance())
    assert proofs.passed, proofs.fault
    assert [check.name for check in proofs.checks] == ["program", "rewriting", "onnx"]


def test_the_numbers_of_new_layers_are_the_certificates():
    fused = fused_of("plain")
    wrong = changed("plain", lambda m: put(m.graph, "s.weight", lambda a: first(a, 7)))
    assert verdict("plain", wrong).passed
    proofs = prove(with_tensors(fused, wrong, "net.onnx"), Inputs(((None, SHAPE),)), Tolerance())
    assert proofs.fault.startswith("s: 1 of 148 weights are wrong")


def test_several_faults_are_counted():
    def change(m):
        put(m.graph, "high", lambda a: 2 * a)
        put(m.graph, "rows", lambda a: first(a, 1))
        size(m.graph.output[0], 1, 7)

    check = verdict("plain", changed("plain", change))
    assert check.error == 3
    assert check.detail.endswith("; 2 more differ")


@pytest.mark.parametrize("make", [lambda: fused_of("plain").source.model, NETS["functions"]])
def test_a_file_without_the_new_layers_is_no_fused_form(make):
    with pytest.raises(InputError, match=r"net\.onnx is not the fused form of this model"):
        with_tensors(fused_of("plain"), make(), "net.onnx")


@pytest.fixture
def converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(NETS["plain"](), "net.onnx")
    worked(run("convert", "net.onnx", "--input-shape", "2,4,9,8"))
    return tmp_path / "net.fused.onnx"


LINE = ("verify", "net.onnx", "net.fused.onnx", "--input-shape", "2,4,9,8")


ISSUED = [
    "an upper bound",
    "a reshape",
    "a weight x (1 + 4e-5)",
    "a slope",
    "a batch that is fixed",
]
ISSUED += ["a false output shape", "a node less", "metadata of a node"]


@pytest.mark.parametrize("fault", ISSUED)
def test_verify_ends_with_1_and_names_the_place(converted, fault):
    worked(run(*LINE))
    change, words = FAULTS["plain"][fault]
    model = onnx.load(converted)
    change(model)
    onnx.save(model, converted)
    result = run(*LINE)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not equal: program: ")
    assert words in line
    assert "FAILED" in result.stdout


def test_verify_takes_a_file_that_keeps_its_tensors_beside_it(converted):
    onnx.save(onnx.load(converted), converted, save_as_external_data=True, location="net.data",
              size_threshold=0)  # fmt: skip
    worked(run(*LINE))
    with (converted.parent / "net.data").open("r+b") as file:
        data = bytearray(file.read())
        place = data.find(np.float32(2.5).tobytes())
        data[place : place + 4] = np.float32(2.6).tobytes()
        file.seek(0)
        file.write(data)
    result = run(*LINE)
    assert result.exit_code == 1
    assert "program: initializer high is 2.6, expected 2.5" in result.stderr


def test_verify_of_another_model_ends_with_3(converted):
    onnx.save(NETS["functions"](), converted)
    refused(run(*LINE), 3, "net.fused.onnx", "is not the fused form of this model")


@pytest.mark.parametrize("given", [True, False])
def test_a_file_of_the_other_setting_is_told_to_be_so(tmp_path, monkeypatch, given):
    class WithNorm(Network):
        def __init__(self):
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))

    monkeypatch.chdir(tmp_path)
    onnx.save(exported(drawn(WithNorm)), "net.onnx")
    shape, flag = ("--input-shape", "2,3,15,18"), ["--fold-bn"]
    worked(run("convert", "net.onnx", *shape, *(flag if given else [])))
    line = ("verify", "net.onnx", "net.fused.onnx", *shape)
    worked(run(*line, *(flag if given else [])))
    words = ["net.fused.onnx was fused", "with --fold-bn" if given else "without --fold-bn"]
    refused(run(*line, *([] if given else flag)), 3, *words)
