"""A checkpoint that is cut into several files, with its index, becomes one fused file."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.cli.command import refused, run, worked
from tests.cli.project import CHECKPOINT, fused_tensors, snapshot, state

INDEX = "model.safetensors.index.json"
BINS = "pytorch_model.bin.index.json"


def cut(save, name, index):
    """Writes the small network's tensors as two files and an index of them."""
    tensors, files = state(), {}
    for number, part in enumerate((0, 1), 1):
        own = {k: v for i, (k, v) in enumerate(tensors.items()) if i % 2 == part}
        file = name.format(number)
        save(own, file)
        files.update(dict.fromkeys(own, file))
    weight_map = {key: files[key] for key in tensors}
    Path(index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return weight_map


@pytest.fixture
def sharded(project):
    Path("model.pth").unlink()
    return cut(safetensors.torch.save_file, "model-0000{}-of-00002.safetensors", INDEX)


def write_index(weight_map):
    Path(INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_shards_become_one_file(project, sharded):
    worked(run("convert", INDEX, *CHECKPOINT))
    fused = safetensors.torch.load_file("model.fused.safetensors")
    assert len(fused) == 6
    assert torch.equal(fused["head.weight"], state()["head.weight"])
    worked(run("verify"))


def test_the_result_is_that_of_the_whole_file(project, sharded):
    torch.save(state(), "whole.pth")
    worked(run("convert", "whole.pth", *CHECKPOINT))
    worked(run("convert", INDEX, *CHECKPOINT))
    one = fused_tensors(project, "whole.fused.pth")
    other = safetensors.torch.load_file("model.fused.safetensors")
    assert {k: v.tolist() for k, v in one.items()} == {k: v.tolist() for k, v in other.items()}


def test_shards_of_torch_become_one_file(project):
    cut(torch.save, "pytorch_model-0000{}-of-00002.bin", BINS)
    worked(run("convert", BINS, *CHECKPOINT))
    assert len(fused_tensors(project, "pytorch_model.fused.bin")) == 6
    worked(run("verify"))


def test_a_shard_that_was_altered_is_noticed(project, sharded):
    worked(run("convert", INDEX, *CHECKPOINT))
    path = Path(sharded["head.bias"])
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors, path, metadata={"other": "words"})
    refused(run("verify"), 1, path.name, "not the file that was converted")
    tensors["head.bias"] = tensors["head.bias"] + 1e-3
    safetensors.torch.save_file(tensors, path)
    assert run("verify").exit_code == 1


@pytest.mark.parametrize("name", ["../out.safetensors", "/etc/out.safetensors", "", "..", "a/b"])
def test_a_shard_lies_beside_its_index(project, sharded, name):
    write_index({**sharded, "head.bias": name})
    before = snapshot(project)
    refused(run("convert", INDEX), 4, "no file of its own folder")
    assert snapshot(project) == before


def test_a_shard_that_is_a_link_to_elsewhere_is_refused(project, sharded, tmp_path):
    shard = Path(sharded["head.bias"])
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(tmp_path / shard.name)
    refused(run("convert", INDEX), 4, "a link to another folder")


def test_a_cache_in_which_all_are_links_to_one_folder_is_read(project, sharded, tmp_path):
    """As Hugging Face lays out what it downloads: index and shards are links to `blobs`."""
    (tmp_path / "blobs").mkdir()
    for number, name in enumerate((INDEX, *dict.fromkeys(sharded.values()))):
        Path(name).rename(tmp_path / "blobs" / str(number))
        Path(name).symlink_to(tmp_path / "blobs" / str(number))
    worked(run("convert", INDEX, *CHECKPOINT))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "weight_map"),
        ('{"weight_map": {}}', "names no files"),
        ('{"weight_map": []}', "names no files"),
        ('{"weight_map": ', "no index of shards"),
        ("{" + '"a": [' * 100_000, "no index of shards"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "another index"),
        ('{"weight_map": {"a": "missing.safetensors"}}', "does not exist"),
    ],
    ids=["empty", "none", "list", "cut", "deep", "index", "missing"],
)
def test_an_index_that_cannot_be_used(project, text, words):
    Path(INDEX).write_text(text)
    refused(run("convert", INDEX), 3, words)


def test_an_index_and_its_shards_must_match(project, sharded):
    write_index({**sharded, "more.weight": sharded["head.bias"]})
    refused(run("convert", INDEX), 3, "has no more.weight")
    write_index({k: v for k, v in sharded.items() if k != "head.bias"})
    refused(run("convert", INDEX), 3, "holds an unknown head.bias")


def test_a_folder_names_the_file_to_give(project, sharded):
    Path("hub").mkdir()
    refused(run("convert", "hub"), 3, "hub is a directory", "none is in it")
    Path("hub/model.safetensors").touch()
    refused(run("convert", "hub"), 3, "give the checkpoint in it: hub/model.safetensors")
    Path(f"hub/{INDEX}").touch()
    refused(run("convert", "hub"), 3, f"give the checkpoint in it: hub/{INDEX}")
