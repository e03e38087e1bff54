"""What goes to onnxruntime's quantizer, and what comes from it."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import CalibrationMethod

from acfuse.errors import InputError
from acfuse.graph.onnx_values import opset_of
from acfuse.int8.grids import grids_of, is_quantized, reads_of
from acfuse.int8.quantized import METHODS, calibrated, in_8_bits, loss_of, prepared
from tests.int8.small import batches, model_of, network


def test_the_calibrators_are_all_that_the_library_has():
    assert {*METHODS.values()} == {*CalibrationMethod}
    assert [*METHODS] == [m.name.lower() for m in METHODS.values()]


@pytest.mark.parametrize("method", METHODS)
def test_every_calibrator_gives_a_network_that_still_works(method, capfd):
    model = network()
    made = in_8_bits(calibrated(model, batches(), method), per_channel=True)
    # Half of what the best of them reaches; a network that has lost its ReLUs is at 0 dB.
    assert loss_of(model, made, batches()).written > 15
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "distribution"])
@pytest.mark.parametrize(("per_channel", "reduce_range"), [(True, False), (False, True)])
def test_a_file_is_what_the_library_s_own_call_writes(tmp_path, method, per_channel, reduce_range):
    # Histograms of several batches are put together as they come: one batch is the same for both.
    data = batches() if method == "minmax" else batches()[:1]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter([{"x": batch["x"].numpy()} for batch in data])

        def get_next(self):
            return next(self.left, None)

    model = prepared(network())
    onnx.save(model, tmp_path / "net.onnx")
    quantization.quantize_static(
        tmp_path / "net.onnx",
        tmp_path / "int8.onnx",
        Reader(),
        per_channel=per_channel,
        reduce_range=reduce_range,
        nodes_to_exclude=["third"],
        calibrate_method=METHODS[method],
    )
    expected = onnx.load(tmp_path / "int8.onnx").graph
    made = in_8_bits(calibrated(network(), data, method), per_channel=per_channel,
                     reduce_range=reduce_range, keep=("third",)).graph  # fmt: skip
    assert [*made.node] == [*expected.node]
    stored = [sorted((t.name, numpy_helper.to_array(t).tobytes()) for t in g.initializer)
              for g in (made, expected)]  # fmt: skip
    assert stored[0] == stored[1]


def test_a_file_is_the_same_every_time():
    files = {
        in_8_bits(calibrated(network(), batches()), per_channel=True).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    }
    assert len(files) == 1


def test_ranges_are_not_changed_by_what_is_made_of_them():
    ranges = calibrated(network(), batches())
    first = in_8_bits(ranges)
    in_8_bits(ranges, per_channel=True, reduce_range=True, keep=("second",))
    assert in_8_bits(ranges) == first


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_are_signed_symmetric_and_of_as_many_bits(per_channel, reduce_range):
    made = in_8_bits(
        calibrated(network(), batches()), per_channel=per_channel, reduce_range=reduce_range
    )
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for name in ("w1", "w2", "w3"):
        whole = stored[f"{name}_quantized"]
        assert whole.dtype == np.int8
        assert np.abs(whole.astype(int)).max() == (64 if reduce_range else 127)
        assert stored[f"{name}_scale"].size == (8 if per_channel else 1)
        assert not stored[f"{name}_zero_point"].any()


def test_what_is_kept_reads_its_weight_in_float():
    ranges = calibrated(network(), batches())
    for keep in ((), ("second",), ("second", "head")):
        reads = reads_of(in_8_bits(ranges, keep=keep))
        has_weight = {n for n, own in reads.items() if any(r.numbers is not None for r in own)}
        assert has_weight == {"first", "second", "third", "head"} - {*keep}


def test_a_read_weight_is_the_weight_within_half_a_step():
    model = network()
    reads = reads_of(in_8_bits(calibrated(model, batches()), per_channel=True))
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w2"))
    (numbers,) = [r.numbers for r in reads["second"] if r.numbers is not None]
    steps = np.abs(weight).reshape(8, -1).max(1).reshape(8, 1, 1, 1) / 127
    # A scale is rounded to float32, and so is a product: some units of the largest weight.
    assert (np.abs(numbers - weight) <= steps * (0.5 + 127 * 4 * np.finfo(np.float32).eps)).all()


def test_a_grid_begins_and_ends_with_the_range_of_its_value():
    grids = dict(grids_of(in_8_bits(calibrated(network(), batches()))))
    low, high = grids["r1"].ends
    step = (high - low) / 256
    assert low == pytest.approx(-step / 2)  # behind a ReLU, zero is the first number
    assert high > 0


@pytest.mark.parametrize("method", METHODS)
def test_an_output_in_front_of_a_relu_keeps_what_is_below_zero(method):
    model = network(outputs={"c2": TensorProto.FLOAT, "out": TensorProto.FLOAT})
    made = in_8_bits(calibrated(model, batches(), method), per_channel=True)
    # Without it, half of the numbers are gone, and what is left is at 3 dB.
    assert loss_of(model, made, batches()).written > 15


def with_a_branch():
    """A network that chooses by an input whether the second convolution's ReLU counts."""
    model = network()
    kind = TensorProto.FLOAT
    inner = [
        helper.make_graph([helper.make_node("Neg", [read], [out])], out, [],
                          [helper.make_tensor_value_info(out, kind, None)])
        for read, out in (("c2", "then_out"), ("r2", "else_out"))
    ]  # fmt: skip
    chosen = helper.make_node("If", ["flag"], ["chosen"], then_branch=inner[0],
                              else_branch=inner[1], name="choice")  # fmt: skip
    model.graph.node.insert(4, chosen)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    model.graph.output.append(helper.make_tensor_value_info("chosen", kind, [None, 8, 8, 8]))
    model.graph.output[0].type.tensor_type.shape.CopyFrom(onnx.TensorShapeProto())
    for _ in range(2):
        model.graph.output[0].type.tensor_type.shape.dim.add()
    return model


def test_what_a_graph_inside_a_node_reads_stands_before_it_and_keeps_its_range():
    model = with_a_branch()
    onnx.checker.check_model(model)
    made = in_8_bits(calibrated(model, batches()), per_channel=True)
    onnx.checker.check_model(made)
    assert loss_of(model, made, batches()).written > 15


def test_nodes_get_names_of_their_own_and_stored_weights():
    model = network(named=False, as_constants=True)
    model.graph.node[-1].name = model.graph.node[-2].name = "twice"
    ready = prepared(model)
    names = [node.name for node in ready.graph.node]
    assert len({*names}) == len(names)
    assert {"c1", "r1", "twice", "twice_2"} <= {*names}
    assert not [n for n in ready.graph.node if n.op_type == "Constant"]
    reads = reads_of(in_8_bits(calibrated(model, batches()), per_channel=True))
    assert any(r.numbers is not None for r in reads["c2"])
    assert model.graph.node[0].op_type == "Constant"


@pytest.mark.parametrize(
    ("opset", "dtype", "expected"),
    [(11, np.float32, 13), (17, np.float32, 17), (17, np.float16, 19)],
)
def test_an_opset_is_raised_where_8_bits_need_it(opset, dtype, expected):
    model = network(opset=opset, dtype=dtype)
    made = in_8_bits(calibrated(model, batches()), per_channel=True)
    assert opset_of(made) == expected
    assert loss_of(model, made, batches()).written > 20


@pytest.mark.parametrize("ir_version", [3, 8])
def test_what_has_a_default_is_no_input_of_the_result(ir_version):
    model = network()
    model.ir_version = ir_version
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    made = in_8_bits(calibrated(model, batches()), per_channel=True)
    assert [value.name for value in made.graph.input] == ["x"]
    onnx.checker.check_model(made)
    assert loss_of(model, made, batches()).written > 20


def test_a_model_of_other_numbers_is_refused_in_one_line():
    with pytest.raises(InputError, match="onnxruntime's minmax calibration cannot take this model"):
        calibrated(network(dtype=np.float64), batches())


def test_a_value_without_a_range_is_named():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Exp", ["a"], ["huge"]),
        helper.make_node("Conv", ["huge", "w"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["out"]),
    ]
    stored = {"w": np.ones((1, 1, 1, 1), np.float32)}
    model = model_of(nodes, stored, inputs={"x": [1, 1, 1, 1]})
    with pytest.raises(
        InputError, match="the value huge of the float model is not finite on these inputs"
    ):
        calibrated(model, [{"x": torch.full((1, 1, 1, 1), 100.0)}])


def test_a_model_in_8_bits_is_known():
    assert not is_quantized(network())
    assert is_quantized(in_8_bits(calibrated(network(), batches())))
    for kind in ("QLinearConv", "ConvInteger", "DynamicQuantizeLinear"):
        node = onnx.NodeProto(op_type=kind)
        assert is_quantized(onnx.ModelProto(graph=onnx.GraphProto(node=[node])))
