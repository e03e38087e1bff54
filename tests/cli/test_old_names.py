"""What had another name before is still read under the old one."""

import json
from pathlib import Path

import acfuse
from acfuse import api
from sample_models import samples
from tests.cli.command import run, worked

SAMPLE = samples()["acnet/k3"]


def test_results_have_their_former_names() -> None:
    model = SAMPLE.build()
    live = acfuse.fuse(model)
    (block,) = live.found
    assert block.summands is block.terms
    assert block.convolutions == block.cost.convolutions
    assert block.multiply_adds == block.cost.multiply_adds
    assert block.alone is block.site.subgraph
    assert block.output == block.site.output
    bare = acfuse.fuse_tensors(model.state_dict())
    assert isinstance(bare, api.FusedTensors)
    assert bare.notes == bare.findings.messages == bare.findings.told
    for fused in (live, bare):
        assert isinstance(fused, api.Fused)
        assert (fused.found, fused.refused) == (fused.findings.found, fused.findings.refused)
    assert not hasattr(bare, "model")
    assert not hasattr(live, "tensors")


def test_a_manifest_of_the_first_versions_still_verifies(project: Path) -> None:
    worked(run("convert", "model.pth"))
    path = Path("model.fused.acfuse.json")
    data = json.loads(path.read_text())
    assert data["schema_version"] == 1
    for key in ("limits", "allow_nonfinite", "pt2", "patterns", "assume", "shards", "diagnosis"):
        del data[key]  # each of which came later
    for check in data["checks"]:
        check.pop("note")
    path.write_text(json.dumps(data))
    worked(run("verify"))


def test_the_fields_of_a_manifest_are_those_that_they_were(project: Path) -> None:
    worked(run("convert", "model.pth"))
    data = json.loads(Path("model.fused.acfuse.json").read_text())
    assert {"schema_version", "acfuse", "torch", "source", "shards", "outputs", "model",
            "model_args", "key", "allow_class", "limits", "allow_nonfinite", "bn_eps", "fold_bn",
            "patterns", "assume", "inputs", "onnx", "pt2", "passed", "fault", "diagnosis", "before",
            "after", "found", "refused", "checks", "notes"} <= set(data)  # fmt: skip
    assert {"where", "pattern", "fused", "replaced", "block", "convolutions",
            "certificate"} <= set(data["found"][0])  # fmt: skip
    assert {"where", "ulp", "error", "weights", "wrong", "fault"} <= set(
        data["found"][0]["certificate"]
    )
