"""Networks that `--model` names by a package and a name in it."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from acfuse.errors import InputError, UsageError
from acfuse.files.packages import MAKERS
from acfuse.files.user_code import build_model
from sample_models import awake
from tests.cli.command import run, worked
from tests.packages.imports import MissingPackage, imported, undisturbed


def needs(package):
    """Its module. The test is skipped where it is not installed."""
    try:
        return imported(package)
    except MissingPackage as error:
        pytest.skip(str(error))


NAMED = {
    "timm:repvgg_a0": {"num_classes": 7},
    "timm:mobileone_s0": {"num_classes": 7},
    "torchvision:shufflenet_v2_x0_5": {"num_classes": 7},
    "ultralytics:yolov10n.yaml": {},
}


@pytest.mark.parametrize("spec", NAMED)
def test_a_network_is_built_by_its_name(spec):
    needs(spec.partition(":")[0])
    with undisturbed():
        network = build_model(spec, NAMED[spec])
    assert isinstance(network, nn.Module)
    last = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert not NAMED[spec] or last[-1].out_features == 7


def _textnet(folder: Path) -> nn.Module:
    package = needs("transformers")
    config = package.TextNetConfig(
        stem_num_channels=3, stem_out_channels=8,
        hidden_sizes=[8, 8, 12, 12, 16],
        conv_layer_kernel_sizes=[[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
        conv_layer_strides=[[2], [1], [2], [1]],
    )  # fmt: skip
    config.architectures = ["TextNetModel"]
    config.save_pretrained(folder)
    return awake(package.TextNetModel(config), 0).float()


def test_a_folder_of_transformers_is_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with undisturbed():
        network = _textnet(tmp_path / "net")
        torch.save(network.state_dict(), "net/weights.pth")
        options = ("--model", "transformers:net", "--input-shape", "1,3,32,40", "--no-onnx")
        said = worked(run("convert", "net/weights.pth", *options, "--format", "json")).json
        assert said["passed"]
        assert len(said["found"]) >= 4
        monkeypatch.chdir(tmp_path / "net")  # the manifest names the folder from where it is
        worked(run("verify"))


@pytest.mark.parametrize("named", [[], None, ["pipeline"], ["NoSuchModel"], ["os.system"]])
def test_only_a_class_of_the_package_is_an_architecture(tmp_path, named):
    with undisturbed():
        _textnet(tmp_path)
        path = tmp_path / "config.json"
        data = json.loads(path.read_text())
        path.write_text(json.dumps({**data, "architectures": named}))
        with pytest.raises(UsageError, match="expected a class of transformers"):
            build_model(f"transformers:{tmp_path}", {})


def test_no_code_of_a_folder_is_run(tmp_path):
    needs("transformers")
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["TextNetModel"]}))
    with undisturbed(), pytest.raises(InputError, match="could not be built"):
        build_model(f"transformers:{tmp_path}", {})
    assert not (tmp_path / "ran").exists()


def test_ultralytics_takes_the_name_of_a_description():
    needs("ultralytics")
    with undisturbed():
        with pytest.raises(UsageError, match=r"expected the name of a \.yaml file"):
            build_model("ultralytics:yolov10n.pt", {})
        with pytest.raises(UsageError, match="takes no --model-args"):
            build_model("ultralytics:yolov10n.yaml", {"nc": 3})


@pytest.mark.parametrize("package", MAKERS)
def test_a_package_that_is_missing_is_one_line(package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UsageError, match=f"Install it: pip install {package}"):
        build_model(f"{package}:anything", {})
