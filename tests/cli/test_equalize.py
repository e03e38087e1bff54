"""acfuse equalize: an ONNX file with even channels, or the reason why there is none."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.cli import nets
from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, MODEL, state


@pytest.fixture
def uneven(project):
    """The fused ONNX file, with one channel between two layers 64 times as large."""
    worked(run("convert", "model.pth", *MODEL))
    model = onnx.load("model.fused.onnx")
    first, second = [n for n in model.graph.node if n.op_type == "Conv"][:2]
    stored = {t.name: t for t in model.graph.initializer}
    # The second layer has two groups: its first three rows read the first channel.
    changes = {first.input[1]: (np.s_[0], 64), first.input[2]: (np.s_[0], 64),
               second.input[1]: (np.s_[:3, 0], 1 / 64)}  # fmt: skip
    for name, (place, factor) in changes.items():
        array = np.array(numpy_helper.to_array(stored[name]))
        array[place] *= factor
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, "uneven.onnx")
    return project


def test_an_uneven_file_is_evened(uneven):
    result = worked(run("equalize", "uneven.onnx", "--input", "2,3,9,7"))
    assert Path("uneven.equalized.onnx").is_file()
    assert "numbers, each bit by bit" in result.stdout
    assert "on inputs that were made up" in result.stdout
    told = worked(run("equalize", "uneven.onnx", "--input", "2,3,9,7", "--format", "json", "-f"))
    assert told.json["taken"]
    assert told.json["gain_db"] > 0
    assert told.json["compared"] > 0
    first = told.json["layers"][0]
    assert first["before_bits"] > first["after_bits"] + 1
    worked(run("verify", "model.pth", "uneven.equalized.onnx", *MODEL))


def test_real_inputs_are_taken(uneven):
    images = np.random.default_rng(0).normal(size=(2, 3, 9, 7)).astype(np.float32)
    np.savez("images.npz", input=images)
    result = worked(run("equalize", "uneven.onnx", "--inputs", "images.npz"))
    assert "made up" not in result.stdout


def test_data_is_read_as_for_quantize(uneven):
    images = np.random.default_rng(0).normal(size=(20, 3, 9, 7)).astype(np.float32)
    Path("data").mkdir()
    np.save("data/b.npy", images[:7])
    np.savez("data/a.npz", any=images[7:])
    result = worked(run("equalize", "uneven.onnx", "--data", "data"))
    assert "made up" not in result.stdout
    assert "8 bits  per tensor" in result.stdout
    refused(
        run("equalize", "uneven.onnx", "-f", "--data", "none"), 2, "--data: none does not exist"
    )
    both = run("equalize", "uneven.onnx", "-f", "--data", "data", "--input", "2,3,9,7")
    refused(both, 2, "--data: inputs are given as well")
    refused(run("equalize", "model.fused.pth", "--data", "data", *MODEL[:2], "-f"), 2)
    Path("uneven.equalized.onnx").unlink()
    np.save("uneven.equalized.npy", images)
    refused(run("equalize", "uneven.onnx", "-f", "-o", "data/a.npz", "--data", "data"), 2)
    assert np.load("data/a.npz")["any"].shape == (13, 3, 9, 7)


def test_a_healthy_file_is_left(uneven):
    told = worked(run("equalize", "model.fused.onnx", "--input", "2,3,9,7", "--format", "json"))
    assert told.json["taken"] == Path("model.fused.equalized.onnx").exists()
    assert told.json["taken"] == bool(told.json["written"])
    assert told.json["gain_db"] > 0 or not told.json["taken"]
    worked(run("equalize", "model.fused.onnx", "--input", "2,3,9,7", "--all", "-f", "-q"))


def test_what_is_no_onnx_file_is_refused(uneven):
    refused(run("equalize", "model.pth"), 2, "between the layers: give --model")
    refused(run("equalize", "none.onnx"), 2, "none.onnx does not exist")
    Path("uneven.equalized.onnx").write_text("mine")
    refused(run("equalize", "uneven.onnx", "--input", "2,3,9,7"), 6, "uneven.equalized.onnx")
    assert Path("uneven.equalized.onnx").read_text() == "mine"


@pytest.fixture
def scaled(project):
    """A conversion whose channels are scaled, whether 8 bits gain by it or not."""
    worked(run("convert", "model.pth", *MODEL, "--equalize=force"))
    return project


def assert_differs(result, name):
    assert result.exit_code == 1, result.stdout
    assert "not equal" in result.stderr
    assert name.rpartition(".")[0].rpartition(".")[2] in result.stderr


def test_convert_evens_out_what_it_has_proved(scaled):
    told = worked(run("convert", "model.pth", *MODEL, "--equalize", "--format", "json", "-f")).json
    assert told["asked"]["equalize"] == "gain"
    assert told["equalized"]["taken"] == (told["equalized"]["gain_db"] > 0)
    text = worked(run("convert", "model.pth", *MODEL, "--equalize=force", "-f")).stdout
    assert "numbers are the same, bit by bit" in text
    plain = worked(run("convert", "model.pth", *MODEL, "--format", "json", "-o", "other.pth")).json
    assert plain["equalized"] is None
    one, other = (torch.load(name) for name in ("model.fused.pth", "other.pth"))
    assert one.keys() == other.keys()
    assert any(not torch.equal(t, other[n]) for n, t in one.items())


def test_what_convert_evened_out_is_verified(scaled):
    result = worked(run("verify"))
    assert "channels times powers of two, which change no bit" in result.stdout
    result = worked(run("verify", "model.pth", "model.fused.pth", *MODEL))
    assert "certificate of 2 blocks" in result.stdout
    result = worked(run("verify", "model.pth", "model.fused.onnx", *MODEL))
    assert "2 of 2 blocks are proved weight by weight" in result.stdout
    worked(run("export-onnx", "-f"))
    told = worked(run("selftest", "--format", "json")).json
    assert len(told["faults"]) == 20
    assert all(trial["said"] for trial in told["faults"])


@pytest.mark.parametrize("factor", [2.0, 1 + 2.0**-20])
def test_a_channel_that_only_one_layer_has_scaled_is_a_fault(scaled, factor):
    tensors = torch.load("model.fused.pth")
    name = next(n for n in tensors if n.endswith(".weight"))
    tensors[name][1] *= factor
    torch.save(tensors, "model.fused.pth")
    assert_differs(run("verify", "model.pth", "model.fused.pth", *MODEL), name)


def test_an_onnx_file_is_evened_out_in_its_own_conversion(uneven):
    worked(run("convert", "uneven.onnx", "--allow-empty", "--equalize", "--input", "2,3,9,7"))
    result = worked(run("verify", "uneven.onnx", "uneven.fused.onnx"))
    assert "channels times powers of two" in result.stdout
    model = onnx.load("uneven.fused.onnx")
    last = model.graph.initializer[-1]
    array = np.array(numpy_helper.to_array(last))
    array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(9))
    last.CopyFrom(numpy_helper.from_array(array, last.name))
    onnx.save(model, "uneven.fused.onnx")
    assert_differs(run("verify", "uneven.onnx", "uneven.fused.onnx"), last.name)


def test_a_fused_checkpoint_is_evened_out_with_its_code(scaled):
    worked(run("convert", "model.pth", *MODEL, "-o", "plain.pth"))
    result = worked(run("equalize", "plain.pth", *MODEL, "--all"))
    assert "numbers, each bit by bit" in result.stdout
    worked(run("verify", "model.pth", "plain.equalized.pth", *MODEL))
    refused(run("equalize", "plain.pth", "-f"), 2, "between the layers: give --model")


def test_a_configuration_for_the_network_does_no_harm_to_an_onnx_file(uneven):
    Path("acfuse.toml").write_text('model = "nets.py:Net"\n')
    worked(run("equalize", "uneven.onnx", "--input", "2,3,9,7"))
    refused(
        run("equalize", "uneven.onnx", "-f", "--model", "nets.py:Net"), 2, "--model has no effect"
    )


def test_bare_tensors_cannot_be_evened_out(project):
    refused(run("convert", "model.pth", "--equalize", "--bn-eps", "1e-5"), 2,
            "give --model package.module:factory")  # fmt: skip
    assert not Path("model.fused.pth").exists()


NORMED = ("--model", "nets.py:Normed", "--input-shape", "1,3,9,7")


@pytest.mark.parametrize("equalize", [(), ("--equalize=force",)])
def test_batch_norms_that_the_exporter_took_up_are_no_fault(project, equalize):
    torch.save(state(nets.Normed()), "model.pth")
    worked(run("convert", "model.pth", *NORMED, *equalize))
    result = worked(run("verify", "model.pth", "model.fused.onnx", *NORMED))
    assert "1 of 1 blocks are proved weight by weight" in result.stdout
    model = onnx.load("model.fused.onnx")
    first = next(t for t in model.graph.initializer if t.name.startswith("stem.weight"))
    array = np.array(numpy_helper.to_array(first))
    array[1, 2, 0, 1] *= 1 + 2.0**-15
    first.CopyFrom(numpy_helper.from_array(array, first.name))
    onnx.save(model, "wrong.onnx")
    assert_differs(run("verify", "model.pth", "wrong.onnx", *NORMED), "stem.weight")


@pytest.mark.parametrize("kind", ["pth", "onnx"])
def test_scales_of_the_smallest_channel_are_seen(project, kind):
    tensors = state()
    for name in ("square_bn", "ver_bn", "hor_bn"):
        for which in ("weight", "bias"):
            tensors[f"first.{name}.{which}"][0] /= 64
    for name in ("square_conv", "ver_conv", "hor_conv"):
        tensors[f"second.{name}.weight"][:3, 0] /= 64
    torch.save(tensors, "model.pth")
    worked(run("convert", "model.pth", *MODEL))
    if kind == "pth":
        fused = torch.load("model.fused.pth")
        fused["first.fused_conv.weight"][0] *= 2
        fused["first.fused_conv.bias"][0] *= 2
        fused["second.fused_conv.weight"][:3, 0] /= 2  # of two groups
        torch.save(fused, "scaled.pth")
        result = worked(run("verify", "model.pth", "scaled.pth", *MODEL))
    else:
        worked(run("convert", "model.fused.onnx", "--allow-empty", "-o", "plain.onnx"))
        model = onnx.load("plain.onnx")
        stored = {t.name: t for t in model.graph.initializer}
        first, second = [n for n in model.graph.node if n.op_type == "Conv"][:2]
        changes = {first.input[1]: (np.s_[0], 2), first.input[2]: (np.s_[0], 2),
                   second.input[1]: (np.s_[:3, 0], 0.5)}  # fmt: skip
        for name, (place, factor) in changes.items():
            array = np.array(numpy_helper.to_array(stored[name]))
            array[place] *= factor
            stored[name].CopyFrom(numpy_helper.from_array(array, name))
        onnx.save(model, "scaled.onnx")
        result = worked(run("verify", "plain.onnx", "scaled.onnx"))
    assert "channels times powers of two, which change no bit" in result.stdout


def test_a_dtype_that_no_convolution_of_onnx_has_is_refused(project):
    halves = {n: t.bfloat16() if t.is_floating_point() else t for n, t in state().items()}
    torch.save(halves, "model.pth")
    refused(run("convert", "model.pth", *MODEL, "--equalize"), 3, "unsupported type")
    worked(run("convert", "model.pth", *CHECKPOINT))
    tensors = torch.load("model.fused.pth")
    tensors["first.fused_conv.weight"][1] *= 2
    torch.save(tensors, "wrong.pth")
    assert_differs(run("verify", "model.pth", "wrong.pth", *MODEL), "first.fused_conv.weight")
