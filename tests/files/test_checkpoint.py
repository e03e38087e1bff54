"""Loading and writing: nests, prefixes, formats, dtypes, pickles; the form is kept throughout."""

import ast
import collections
import importlib
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

import acfuse
from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.files.read import read_tensors
from acfuse.files.records import ReadOptions
from acfuse.files.user_code import build_model
from acfuse.sources.bare import BareSource
from acfuse.sources.base import OpenOptions
from acfuse.sources.live import LiveSource
from acfuse.sources.open_source import open_source
from tests.bounds import assert_within, rounding
from tests.cli.command import refused, run, worked
from tests.cli.nets import Net, Wrapped
from tests.cli.project import (
    CHECKPOINT,
    MODEL,
    fused_tensors,
    own_module,
    pickle_whole,
    snapshot,
    state,
    trained,
)

ACFUSE = Path(acfuse.__file__).parent
SHAPE = ("--input-shape", "1,3,9,7")
FUSED_KEYS = [
    "first.fused_conv.weight",
    "first.fused_conv.bias",
    "second.fused_conv.weight",
    "second.fused_conv.bias",
    "head.weight",
    "head.bias",
]


def image():
    return torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(1))


def assert_equal(fused, model, dtype=torch.float32):
    """Both models give the same for the image, but for rounding in this dtype."""
    x = image().to(dtype)
    assert_within(fused(x), model(x), rounding(model, x, dtype=dtype))


def optimizer_state():
    """The state of an optimizer that has taken a step."""
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(image()).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def save(value, name="model.pth", **settings):
    torch.save(value, name, **settings)


def convert(*flags, source="model.pth"):
    """Converts in the working directory, and gives what the fused checkpoint holds."""
    worked(run("convert", source, *CHECKPOINT, *flags))
    return fused_tensors(Path.cwd(), source.replace(".", ".fused."))


# ------------------------------------------------------------------------------ nests


@pytest.mark.parametrize("entry", ["state_dict", "model", "net", "ema", "model_state_dict"])
def test_the_weights_are_found_in_a_nest(project, entry):
    whole = {"epoch": 7, entry: state(), "optimizer": optimizer_state(), "best": 0.5}
    save(whole)
    fused = convert()
    assert list(fused) == list(whole)
    assert list(fused[entry]) == FUSED_KEYS
    assert (fused["epoch"], fused["best"]) == (7, 0.5)


def test_what_stands_beside_the_weights_is_kept_bit_by_bit(project):
    save({"state_dict": state(), "optimizer": optimizer_state(), "seeds": [1, (2.5, None)]})
    before, fused = torch.load("model.pth", weights_only=True), convert()
    assert fused["seeds"] == before["seeds"]
    assert fused["optimizer"]["param_groups"] == before["optimizer"]["param_groups"]
    for number, entry in before["optimizer"]["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(fused["optimizer"]["state"][number][name], tensor)


def test_a_nest_in_a_nest(project):
    save({"runs": {"best": {"weights": state()}, "steps": 3}})
    assert list(convert()["runs"]["best"]["weights"]) == FUSED_KEYS


def test_several_sets_of_weights_are_never_chosen_between(project):
    other = state(trained(Net(), seed=5))
    save({"model": state(), "ema": other, "epoch": 1})
    before = snapshot(project)
    refused(run("convert", "model.pth", *CHECKPOINT), 2, "model, ema", "--key")
    refused(run("inspect", "model.pth"), 2, "model, ema", "--key")
    assert snapshot(project) == before
    fused = convert("--key", "ema")
    assert list(fused["ema"]) == FUSED_KEYS
    assert torch.equal(fused["ema"]["head.weight"], other["head.weight"])
    assert list(fused["model"]) == list(state())  # the other set is left as it is


def test_the_chosen_key_is_remembered_for_the_proof(project):
    save({"model": state(), "ema": state(trained(Net(), seed=5))})
    convert("--key", "ema")
    worked(run("verify"))


@pytest.mark.parametrize("key", ["a.b", "a"])
def test_a_key_may_lead_through_nests(project, key):
    save({"a": {"b": state(), "c": state()} if key == "a.b" else state(), "d": state()})
    convert("--key", key)


def test_a_key_with_a_dot_in_it_can_be_chosen_as_the_message_says(project):
    save({"model.raw": state(), "model.ema": state()})
    refused(run("convert", "model.pth", *CHECKPOINT), 2, "model.raw, model.ema")
    convert("--key", "model.ema")


@pytest.mark.parametrize("key", ["nothing", "epoch", "state_dict.first", ""])
def test_a_key_without_tensors_is_refused_with_what_there_is(project, key):
    save({"state_dict": state(), "epoch": 1})
    refused(run("convert", "model.pth", *CHECKPOINT, "--key", key), 2, "state_dict", "epoch")


def test_an_optimizer_alone_holds_no_weights(project):
    save({"optimizer": optimizer_state(), "epoch": 1})
    refused(run("convert", "model.pth"), 3, "no tensors", "--key")


def test_numbers_among_the_tensors_stay(project):
    save({**state(), "version": 3})
    fused = convert()
    assert fused["version"] == 3
    assert set(fused) == {*FUSED_KEYS, "version"}


def test_the_order_of_all_entries_is_kept(project):
    save({"version": 3, **state(), "name": "net"})
    assert list(convert()) == ["version", *FUSED_KEYS, "name"]


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_the_kind_of_dict_is_kept(project, kind):
    save(kind(state()))
    assert type(convert()) is kind


def test_the_versions_of_the_layers_are_kept(project):
    save(trained(Net()).state_dict())
    before = torch.load("model.pth", weights_only=True)._metadata
    after = convert()._metadata
    assert after["head"] == before["head"]


# ------------------------------------------------------------------------------ prefixes


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "model."])
def test_a_prefix_of_all_keys_is_stripped_and_put_back(project, prefix):
    save({prefix + key: tensor for key, tensor in state().items()})
    result = worked(run("convert", "model.pth", *CHECKPOINT))
    assert f"stripped the prefix '{prefix}'" in result.stdout
    assert list(fused_tensors(project)) == [prefix + key for key in FUSED_KEYS]
    worked(run("verify"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module."])
def test_without_the_code_a_prefix_is_a_part_of_the_names(project, prefix):
    save({prefix + key: tensor for key, tensor in state().items()})
    worked(run("convert", "model.pth", "--no-onnx"))
    assert list(fused_tensors(project)) == [prefix + key for key in FUSED_KEYS]


def test_a_prefix_is_stripped_where_it_covers_the_model_and_the_rest_is_kept(project):
    tensors = {f"module.{key}": tensor for key, tensor in state().items()}
    save({**tensors, "ema_steps": torch.ones(1)})
    told = worked(run("convert", "model.pth", *CHECKPOINT)).stdout
    assert "ema_steps: no tensor of the model" in told
    assert torch.equal(torch.load("model.fused.pth")["ema_steps"], torch.ones(1))


def test_a_prefix_in_the_middle_of_a_key_is_not_stripped(project):
    save({key.replace("first.", "first.module."): tensor for key, tensor in state().items()})
    refused(run("convert", "model.pth", *CHECKPOINT), 3, "first.module.square_conv.weight")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_child_that_is_really_called_module_keeps_its_name(project, prefix):
    save({prefix + key: tensor for key, tensor in state(Wrapped()).items()})
    worked(run("convert", "model.pth", "--no-onnx", "--model", "nets.py:Wrapped", *SHAPE))
    keys = [f"{prefix}module.{key}" for key in FUSED_KEYS]
    assert list(fused_tensors(project)) == keys


# ------------------------------------------------------------------------------ form


def test_everything_that_was_not_fused_is_the_same_bit_by_bit(project):
    before, fused = state(), convert()
    for key in ("head.weight", "head.bias"):
        assert torch.equal(fused[key], before[key])
    assert list(fused) == FUSED_KEYS


def test_the_input_is_not_touched(project):
    before = (project / "model.pth").read_bytes()
    convert()
    assert (project / "model.pth").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("flags", [MODEL, ()], ids=["with code", "without"])
def test_the_dtype_stays(project, dtype, flags):
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state().items()}
    save(tensors)
    worked(run("convert", "model.pth", "--no-onnx", *flags))
    fused = fused_tensors(project)
    assert {tensor.dtype for tensor in fused.values()} == {dtype}
    worked(run("verify"))


def test_a_float64_checkpoint_is_not_rounded_at_all(project):
    model = trained(Net()).double()
    save(model.state_dict())
    fused = acfuse.load_fused(Net(), convert())
    assert fused.head.weight.dtype == torch.float64
    assert_equal(fused, model, torch.float64)


def test_a_mixed_checkpoint_stays_mixed(project):
    tensors = state()
    tensors["head.weight"] = tensors["head.weight"].half()
    save(tensors)
    worked(run("convert", "model.pth", "--no-onnx"))
    fused = fused_tensors(project)
    assert fused["head.weight"].dtype == torch.float16
    assert fused["first.fused_conv.weight"].dtype == torch.float32


def test_shared_tensors_stay_shared(project):
    tensors = state()
    save({**tensors, "again.weight": tensors["head.weight"]})
    worked(run("convert", "model.pth", "--no-onnx"))
    fused = fused_tensors(project)
    assert fused["again.weight"].data_ptr() == fused["head.weight"].data_ptr()


def test_a_file_of_the_older_format_can_be_read(project):
    save(state(), _use_new_zipfile_serialization=False)
    assert (project / "model.pth").read_bytes()[:2] != b"PK"
    assert list(convert()) == FUSED_KEYS


def test_safetensors_stay_safetensors(project):
    metadata = {"format": "pt", "licence": "none"}
    safetensors.torch.save_file(state(), "model.safetensors", metadata=metadata)
    worked(run("convert", "model.safetensors", *CHECKPOINT))
    with safe_open("model.fused.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(FUSED_KEYS)
        assert torch.equal(file.get_tensor("head.bias"), state()["head.bias"])
    assert not Path("model.fused.pth").exists()
    worked(run("verify"))


def test_safetensors_without_metadata(project):
    safetensors.torch.save_file(state(), "model.safetensors")
    worked(run("convert", "model.safetensors", "--no-onnx"))
    tensors = safetensors.torch.load_file("model.fused.safetensors")
    assert set(tensors) == set(FUSED_KEYS)
    worked(run("verify", "model.safetensors", "model.fused.safetensors", *MODEL))
    safetensors.torch.save_file(tensors, "other.safetensors", metadata={"step": "7"})
    result = run("verify", "model.safetensors", "other.safetensors", *MODEL)
    assert result.exit_code == 1
    assert "['step']: found '7', expected nothing" in result.stderr


def test_the_order_of_a_safetensors_file_is_that_of_its_header(project):
    tensors = {"z": torch.ones(2), "a": torch.zeros(3), "m": torch.ones(1).half()}
    header, data = {}, b""
    for key, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.float16: "F16"}[tensor.dtype]
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    Path("order.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    _, read = read_tensors(Path("order.safetensors"))
    assert list(read) == ["z", "a", "m"]
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth"])
def test_the_suffix_is_kept(project, suffix):
    Path("model.pth").rename(f"net{suffix}")
    worked(run("convert", f"net{suffix}", "--no-onnx"))
    assert Path(f"net.fused{suffix}").exists()


def test_two_conversions_write_the_same_bytes(project):
    save({"state_dict": state(), "optimizer": optimizer_state()})
    convert()
    before = snapshot(project)
    worked(run("convert", "model.pth", *CHECKPOINT, "--force"))
    assert snapshot(project) == before


# ------------------------------------------------------------------------------ whole modules

CLASSES = ("--allow-class", "nets:Net", "--allow-class", "nets:ACBlock")
FILE_CLASSES = ("--allow-class", "nets.py:Net", "--allow-class", "nets.py:ACBlock")
LOAD_WITHOUT_TRACING = """
import torch, torch.fx
torch.fx.Tracer.trace = None  # whoever traces now fails
model = torch.load("model.fused.pth", weights_only=False)
given, expected = torch.load("answers.pth", weights_only=True)
print(type(model).__name__, model.training, float((model(given) - expected).abs().max()))
"""


def test_a_pickled_module_is_refused_with_its_classes_and_the_flags(project):
    pickle_whole(project, lambda nets: nets.Net())
    before = snapshot(project)
    for command in ("convert", "inspect"):
        flags = "--allow-class nets:ACBlock --allow-class nets:Net"
        refused(run(command, "model.pth"), 4, "nets.Net", "nets.ACBlock", flags)
    assert snapshot(project) == before


def test_the_flags_of_the_message_are_the_user_s_own_classes_alone(project):
    pickle_whole(project, lambda nets: nets.Net())
    assert "--allow-class torch" not in run("convert", "model.pth").stderr


def test_the_flags_of_the_message_do(project):
    pickle_whole(project, lambda nets: nets.Net())
    line = run("convert", "model.pth").stderr
    flags = line.split("add ")[1].split(";")[0].split()
    worked(run("convert", "model.pth", "--no-onnx", *SHAPE, *flags))


def test_the_flags_do_for_classes_of_the_script_that_saved_them(project):
    """A pickle calls them those of __main__, which is another program now."""
    saves = "\n\nif __name__ == '__main__':\n    torch.save(Net(), 'model.pth')\n"
    Path("train.py").write_text(Path("nets.py").read_text() + saves)
    subprocess.run([sys.executable, "train.py"], check=True)
    line = run("convert", "model.pth").stderr
    assert "the script that defines them in place of FILE.py" in line
    flags = line.split("add ")[1].split(",")[0].replace("FILE.py", "train.py").split()
    worked(run("convert", "model.pth", "--no-onnx", *SHAPE, *flags))


def test_of_a_whole_model_that_runs_in_parallel_the_model_inside_is_taken(project):
    pickle_whole(project, lambda nets: nn.DataParallel(nets.Net()))
    flags = run("convert", "model.pth").stderr.split("add ")[1].split(";")[0].split()
    assert not [flag for flag in flags if "torch" in flag]
    done = worked(run("convert", "model.pth", "--no-onnx", *SHAPE, *flags))
    assert "note    the model inside of its DataParallel is taken" in done.stdout
    assert "module.first" not in done.stdout  # its names are those of the model inside
    worked(run("verify", *flags))


@pytest.mark.parametrize("flags", [CLASSES, FILE_CLASSES], ids=["module", "file"])
def test_a_pickled_module_of_the_user_s_own_classes_is_fused(project, flags):
    model = pickle_whole(project, lambda nets: nets.Net())
    torch.save((image(), model(image()).detach()), "answers.pth")
    worked(run("convert", "model.pth", "--no-onnx", *SHAPE, *flags))
    worked(run("verify"))
    if flags is CLASSES:
        done = subprocess.run(
            [sys.executable, "-c", LOAD_WITHOUT_TRACING], capture_output=True, text=True, check=True
        )
        kind, training, error = done.stdout.split()
        assert (kind, training) == ("Net", "False")
        (bound,) = rounding(model, image(), dtype=torch.float32)
        assert float(error) <= bound


def test_a_class_that_was_not_named_is_asked_for(project):
    pickle_whole(project, lambda nets: nets.Net())
    result = run("convert", "model.pth", *SHAPE, "--allow-class", "nets:Net")
    refused(result, 4, "it names nets.ACBlock.", "--allow-class nets:ACBlock")
    assert "nets:Net" not in result.stderr


def test_a_module_of_torch_s_own_layers_needs_one_named_class_at_least(project):
    save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    assert run("convert", "model.pth").exit_code == 4


def test_a_whole_module_takes_no_model(project):
    pickle_whole(project, lambda nets: nets.Net())
    refused(run("convert", "model.pth", *CHECKPOINT, *CLASSES), 2, "--model is for state dicts")


@pytest.mark.parametrize("spec", ["nets:factory", "nets.py:factory"])
def test_only_classes_can_be_allowed(project, spec):
    make_payload(project)
    refused(run("convert", "model.pth"), 4, "nets.factory")
    refused(run("convert", "model.pth", "--allow-class", spec), 2, "no class")


def test_a_class_that_does_not_exist_is_refused(project):
    make_payload(project)
    refused(run("convert", "model.pth", "--allow-class", "nets.py:Nothing"), 4, "nets.factory")


def make_payload(folder):
    """A checkpoint whose reading would call a function of the project's own file."""
    try:
        save({"weight": torch.ones(1), "more": Call(own_module(folder).factory)})
    finally:
        sys.modules.pop("nets", None)


@pytest.mark.parametrize("other", ["nothing.pth", "nets.py", "other.pth"])
def test_a_pickled_module_is_not_proved_by_a_file_that_was_not_read(project, other):
    pickle_whole(project, lambda nets: nets.Net())
    save({"weight": torch.ones(1)}, "other.pth")
    result = run("verify", "model.pth", other, *SHAPE, *CLASSES)
    assert result.exit_code in (1, 2, 3)


def test_a_changed_pickled_module_is_noticed_by_the_manifest(project):
    pickle_whole(project, lambda nets: nets.Net())
    worked(run("convert", "model.pth", "--no-onnx", *SHAPE, *CLASSES))
    data = bytearray(Path("model.fused.pth").read_bytes())
    data[len(data) // 2] ^= 1
    Path("model.fused.pth").write_bytes(data)
    refused(run("verify"), 1, "model.fused.pth is not the file that was")


# ------------------------------------------------------------------------------ hostile pickles


class Call:
    """Pickles as a call of a function. The ones below only ever touch a canary file."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_canary(folder):
    """Builds payloads that would leave a file if any of them ran."""
    canary = str(folder / "canary")
    return {
        "function": Call(os.mkdir, canary),
        "eval": Call(eval, f"open({canary!r}, 'w')"),
        "exec": Call(exec, f"open({canary!r}, 'w')"),
        "class": Call(zipfile.ZipFile, canary, "w"),
        "import": Call(importlib.import_module, "nets"),
    }


@pytest.fixture(params=["function", "eval", "exec", "class", "import"])
def payload(request, project):
    return write_canary(project)[request.param]


@pytest.mark.parametrize("forced", [False, True], ids=["", "forced"])
def test_a_malicious_pickle_is_refused_and_runs_nothing(project, monkeypatch, payload, forced):
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    for whole in (payload, {"state_dict": state(), "hook": payload}):
        save(whole)
        before = snapshot(project)
        for command in (["convert", "model.pth", *CHECKPOINT], ["inspect", "model.pth"]):
            refused(run(*command), 4, "model.pth")
            refused(run(*command, "--allow-class", "nets:ACBlock"), 4, "model.pth")
        assert snapshot(project) == before  # no canary


def test_a_malicious_pickle_of_the_older_format_runs_nothing(project, payload):
    save({"state_dict": state(), "hook": payload}, _use_new_zipfile_serialization=False)
    before = snapshot(project)
    assert run("convert", "model.pth", *CHECKPOINT).exit_code in (3, 4)
    assert snapshot(project) == before


def test_a_pickled_module_of_the_older_format_is_refused_with_its_classes(project):
    pickle_whole(project, lambda nets: nets.Net(), _use_new_zipfile_serialization=False)
    refused(run("convert", "model.pth"), 4, "--allow-class nets:Net")


def test_a_function_of_the_file_s_choice_cannot_be_allowed(project):
    save({"state_dict": state(), "hook": write_canary(project)["function"]})
    before = snapshot(project)
    name = f"{os.mkdir.__module__}:mkdir"
    refused(run("convert", "model.pth", *CHECKPOINT, "--allow-class", name), 2, "no class")
    assert snapshot(project) == before


def test_a_class_that_acts_when_it_is_made_cannot_be_allowed(project):
    save({"state_dict": state(), "hook": write_canary(project)["class"]})
    before = snapshot(project)
    run("convert", "model.pth", *CHECKPOINT, "--allow-class", "zipfile:ZipFile")
    assert "canary" not in set(snapshot(project)) - set(before)


def test_a_class_of_another_package_that_acts_when_it_is_made_cannot_be_allowed(project):
    canary = Call(numpy.memmap, str(project / "canary"), "uint8", "w+", 0, (4,))
    save({"state_dict": state(), "hook": canary})
    run("convert", "model.pth", *CHECKPOINT, "--allow-class", "numpy:memmap")
    assert "canary" not in snapshot(project)


def test_reading_says_nothing_about_ways_around(project):
    save(write_canary(project)["eval"])
    message = run("convert", "model.pth").stderr
    assert "weights_only" not in message
    assert "trust" not in message


FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "torch.jit.load",
    "yaml.load",
    "marshal.loads",
    "os.system",
    "subprocess.run",
}


@pytest.mark.parametrize("path", sorted(ACFUSE.rglob("*.py")), ids=lambda p: p.stem)
def test_the_source_never_unpickles_and_never_evaluates(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in FORBIDDEN_CALLS, f"line {node.lineno}: {called}"
        if called == "subprocess.Popen":  # nothing but this Python, and by no shell
            assert ast.unparse(node.args[0]).startswith("[sys.executable, "), f"line {node.lineno}"
            assert "shell" not in {keyword.arg for keyword in node.keywords}
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if called == "torch.load" or "weights_only" in given:
            assert ast.unparse(given["weights_only"]) == "True", f"line {node.lineno}"


def test_the_check_of_the_source_finds_a_loader():
    names = [p.name for p in ACFUSE.rglob("*.py") if "torch.load(" in p.read_text()]
    assert names == ["torch_load.py"]


# ------------------------------------------------------------------------------ --model


@pytest.mark.parametrize(
    "spec",
    [
        "nets.py:Net",
        "nets:Net",
        "nets.py:factory",
        "nets:factory",
        "nets.py:instance",
        "./nets.py:Net",
    ],
)
def test_the_code_may_be_a_class_a_function_or_a_module(project, spec):
    worked(run("convert", "model.pth", "--no-onnx", "--model", spec, *SHAPE))
    assert list(fused_tensors(project)) == FUSED_KEYS


def test_the_code_may_lie_in_another_folder_and_import_its_neighbours(project):
    (project / "code").mkdir()
    Path("nets.py").rename("code/nets.py")
    (project / "code" / "mine.py").write_text("from nets import Net as Mine\n")
    worked(run("convert", "model.pth", "--no-onnx", "--model", "code/mine.py:Mine", *SHAPE))


def test_the_code_may_lie_in_a_package(project):
    (project / "pack").mkdir()
    (project / "pack" / "__init__.py").touch()
    Path("nets.py").rename("pack/nets.py")
    worked(run("convert", "model.pth", "--no-onnx", "--model", "pack.nets:factory", *SHAPE))


def test_a_factory_gets_its_arguments(project):
    save(state(Net(outputs=5)))
    flags = ("--no-onnx", "--model", "nets.py:factory", *SHAPE)
    refused(run("convert", "model.pth", *flags), 3, "head.weight", "(5, 6, 1, 1)", "(2, 6, 1, 1)")
    worked(run("convert", "model.pth", *flags, "--model-args", '{"outputs": 5}'))
    worked(run("verify"))


@pytest.mark.parametrize(
    ("spec", "code", "words"),
    [
        ("nets.py:Nett", 2, ["has no Nett", "Net", "ACBlock"]),
        ("nets:Nett", 2, ["has no Nett", "Net", "ACBlock"]),
        ("nets.py", 2, ["package.module:name", "file.py:name"]),
        ("nets", 2, ["package.module:name"]),
        (":Net", 2, ["package.module:name"]),
        ("nets.py:", 2, ["package.module:name"]),
        ("nothing.py:Net", 2, ["nothing.py does not exist"]),
        ("no.such.module:Net", 2, ["no module"]),
        ("nets.py:number", 2, ["gives int", "torch module"]),
        ("nets.py:raises", 3, ["could not be built", "no such size"]),
        ("nets.py:torch", 3, ["could not be built"]),
        ("broken.py:Net", 3, ["could not be imported"]),
        ("absent.py:Net", 3, ["could not be imported", "surely_not_installed"]),
    ],
)
def test_code_that_cannot_be_used_is_named(project, spec, code, words):
    Path("broken.py").write_text("def (:\n")
    Path("absent.py").write_text("import surely_not_installed\n")
    before = snapshot(project)
    refused(run("convert", "model.pth", "--no-onnx", "--model", spec, *SHAPE), code, *words)
    assert snapshot(project) == before


def test_a_zoo_is_asked_for_a_model_by_its_name(project):
    Path("zoo.py").write_text(
        "from nets import Net\n\n"
        "def create_model(name, **more):\n"
        "    return {'net_a0': Net}[name](**more)\n"
    )
    flags = ("--no-onnx", *SHAPE, "--model-args", '{"outputs": 2}')
    worked(run("convert", "model.pth", "--model", "zoo:net_a0", *flags))
    refused(run("convert", "model.pth", "--force", "--model", "zoo:net_b7", *flags), 3, "net_b7")


def test_wrong_arguments_are_named(project):
    flags = ("--model", "nets.py:Net", "--model-args", '{"depth": 3}', *SHAPE)
    refused(run("convert", "model.pth", "--no-onnx", *flags), 3, "could not be built", "depth")


def test_code_that_leaves_the_process_is_an_error_of_that_code(project):
    Path("leaves.py").write_text("import sys\nsys.exit(0)\n")
    result = run("convert", "model.pth", "--no-onnx", "--model", "leaves.py:Net", *SHAPE)
    refused(result, 3, "leaves.py", "if __name__ == '__main__'")


def test_a_name_in_the_checkpoint_is_never_imported(project):
    Path("trap.py").write_text("open('canary', 'w').close()\n\nclass Net:\n    pass\n")
    payload = {"state_dict": state(), "model": "trap:Net", "arch": "trap.py:Net"}
    save(payload)
    worked(run("convert", "model.pth", "--no-onnx"))
    assert not Path("canary").exists()


# ------------------------------------------------------------------------------ from Python


def test_a_file_is_a_live_model_or_bare_tensors(project):
    bare = open_source(Path("model.pth"), OpenOptions())
    assert isinstance(bare, BareSource)
    assert list(bare.tensors) == list(state())
    live = open_source(Path("model.pth"), OpenOptions("nets.py:Net"))
    assert isinstance(live, LiveSource)
    assert not live.model.training
    assert torch.equal(live.model.head.weight, state()["head.weight"])


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (InputError, ("nothing.pth", OpenOptions())),
        (UsageError, ("model.pth", OpenOptions("nets.py:Nothing"))),
        (UsageError, ("model.pth", OpenOptions(read=ReadOptions(key="nothing")))),
    ],
)
def test_what_cannot_be_opened_raises_what_a_caller_can_catch(project, error, arguments):
    with pytest.raises(error):
        open_source(Path(arguments[0]), arguments[1])


def test_opening_a_pickle_raises_that_it_is_unsafe(project):
    pickle_whole(project, lambda nets: nets.Net())
    with pytest.raises(UnsafeError, match="--allow-class"):
        open_source(Path("model.pth"), OpenOptions())


def test_build_model_makes_a_new_one_each_time(project):
    assert build_model("nets.py:Net", {}) is not build_model("nets.py:Net", {})


def test_fuse_leaves_the_model_alone(project):
    model = trained(Net())
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    fused = acfuse.fuse(model)
    assert [f.where for f in fused.found] == ["first", "second"]
    assert fused.refused == ()
    assert_equal(fused.model, model)
    assert isinstance(fused.model.first.fused_conv, nn.Conv2d)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_fuse_of_a_model_in_training_mode_leaves_it_in_training_mode():
    model = trained(Net()).train()
    fused = acfuse.fuse(model)
    assert model.training
    assert len(fused.found) == 2
    assert not fused.model.training


def test_fuse_tensors_says_what_it_assumed():
    tensors = state()
    fused = acfuse.fuse_tensors(tensors)
    assert list(fused.tensors) == FUSED_KEYS
    assert any("eps 1e-05" in note for note in fused.notes)
    assert list(tensors) == list(state())
    other = acfuse.fuse_tensors(tensors, bn_eps=1e-3)
    assert not torch.equal(
        other.tensors["first.fused_conv.weight"], fused.tensors["first.fused_conv.weight"]
    )


@pytest.mark.parametrize("form", ["path", "text", "tensors"])
def test_load_fused_is_the_way_back_into_training_code(project, form):
    model = trained(Net())
    convert()
    source = {
        "path": project / "model.fused.pth",
        "text": "model.fused.pth",
        "tensors": fused_tensors(project),
    }[form]
    network = Net()
    fused = acfuse.load_fused(network, source)
    assert_equal(fused, model)
    assert list(fused.state_dict()) == FUSED_KEYS
    assert hasattr(network.first, "square_conv")  # the given one is untouched


def test_load_fused_refuses_other_tensors(project):
    with pytest.raises(InputError, match="does not fit"):
        acfuse.load_fused(Net(), state())


def test_load_fused_refuses_other_shapes(project):
    convert()
    with pytest.raises(InputError, match=r"head\.weight"):
        acfuse.load_fused(Net(outputs=5), "model.fused.pth")


def test_load_fused_reads_what_convert_wrote_whatever_its_prefix(project):
    save({f"module.{key}": tensor for key, tensor in state().items()})
    convert()
    fused = acfuse.load_fused(Net(), "model.fused.pth")
    assert_equal(fused, trained(Net()))


def test_the_calls_of_the_package_are_calls():
    importlib.import_module("acfuse.api")
    for name in acfuse.__all__:
        assert callable(getattr(acfuse, name)), name


def test_convert_and_verify_from_python(project):
    api = importlib.import_module("acfuse.api")
    conversion = api.convert("model.pth", model="nets.py:Net", input_shape=(1, 3, 9, 7), onnx=False)
    assert conversion.exit_code == 0
    assert [path.name for path in conversion.written] == [
        "model.fused.pth",
        "model.fused.acfuse.json",
    ]
    model = trained(Net())
    proofs = api.verify(model, api.fuse(model).model, (1, 3, 9, 7))
    assert proofs.passed
    wrong = api.fuse(model).model
    with torch.no_grad():
        wrong.second.fused_conv.bias[0] += 1e-3
    proofs = api.verify(model, wrong, (1, 3, 9, 7))
    assert not proofs.passed
    assert proofs.fault.startswith("second: ")


def test_an_unknown_attribute_of_the_package_is_named():
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = acfuse.nothing


def test_torchscript_is_refused_as_code(project):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own: TorchScript is on its way out
        torch.jit.script(nn.Conv2d(1, 1, 1)).save("model.pth")
    refused(run("convert", "model.pth"), 4, "TorchScript", "state_dict()")
