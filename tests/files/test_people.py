"""Checkpoints as people have them: what stands beside the weights is kept, and nothing is run."""

import argparse
import collections
import datetime
import decimal
import pathlib
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from acfuse.errors import InputError, UnsafeError, UsageError
from acfuse.files.read import read_tensors
from acfuse.pipeline.convert import convert
from acfuse.pipeline.job import Job
from acfuse.pipeline.replay import verify_files
from acfuse.proof import Inputs
from tests.proof.folding import SHAPE, network

INPUTS = Inputs(((None, SHAPE),))
MODEL = "tests.proof.folding:network"


def _below(prefix):
    return {prefix + key: tensor for key, tensor in network().state_dict().items()}


def _converted(folder, whole, **settings):
    """A file of what people save, converted and verified; what is told, and what is written."""
    torch.save(whole, folder / "x.pth")
    job = Job(folder / "x.pth", model=MODEL, inputs=INPUTS, onnx=False, **settings)
    done = convert(job)
    assert done.proofs.passed, done.proofs.fault
    again = verify_files(job, folder / "x.fused.pth")
    assert again.proofs.passed, again.proofs.fault
    return done.notes, torch.load(folder / "x.fused.pth", weights_only=False)


BESIDE = {
    "averaged": ({**_below("module."), "n_averaged": torch.tensor(5)}, "module.", ["n_averaged"]),
    "criterion": (
        {"criterion.weight": torch.ones(3), **_below("model."), "metric.total": torch.ones(())},
        "model.",
        ["criterion.weight", "metric.total"],
    ),
    "compiled": (
        {**_below("model._orig_mod."), "loss.w": torch.ones(2)},
        "model._orig_mod.",
        ["loss.w"],
    ),
    "detector": ({**_below("backbone."), "head.weight": torch.ones(2, 5)}, "backbone.",
                 ["head.weight"]),
    "nothing": (_below("net."), "net.", []),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_a_prefix_is_what_covers_the_model_and_the_rest_is_told_and_kept(tmp_path, kind):
    whole, prefix, rest = BESIDE[kind]
    notes, written = _converted(tmp_path, {"state_dict": whole})
    assert any(repr(prefix) in note for note in notes)
    held = written["state_dict"]
    assert all(any(key in note for note in notes) for key in rest)
    assert [key for key in held if not key.startswith(prefix)] == rest
    assert all(torch.equal(held[key], whole[key]) for key in rest)
    assert f"{prefix}0.rbr_reparam.weight" in held


@pytest.mark.parametrize("kind", ["averaged", "criterion"])
def test_what_is_beside_the_model_s_tensors_may_not_change(tmp_path, kind):
    whole, _, rest = BESIDE[kind]
    _, written = _converted(tmp_path, {"state_dict": whole})
    job = Job(tmp_path / "x.pth", model=MODEL, inputs=INPUTS)
    held = written["state_dict"]
    for change in ({rest[0]: held[rest[0]] + 1}, {rest[0]: None}):
        new = {k: v for k, v in {**held, **change}.items() if v is not None}
        torch.save({"state_dict": new}, tmp_path / "y.pth")
        proofs = verify_files(job, tmp_path / "y.pth").proofs
        assert not proofs.passed
        assert rest[0] in proofs.fault


def test_of_two_prefixes_one_has_to_be_chosen(tmp_path):
    both = {**_below("model."), **_below("ema.")}
    with pytest.raises(UsageError, match="--prefix"):
        _converted(tmp_path, both)
    for prefix, other in (("model.", "ema."), ("ema.", "model.")):
        _, written = _converted(tmp_path, both, prefix=prefix, force=True)
        assert f"{prefix}0.rbr_reparam.bias" in written
        assert f"{other}0.rbr_dense.conv.weight" in written
    with pytest.raises(UsageError, match="no key begins with it"):
        _converted(tmp_path, both, prefix="nobody.", force=True)


PLAIN = {
    "namespace": argparse.Namespace(lr=0.1, names=["a"], inner=argparse.Namespace(x=1)),
    "simple namespace": types.SimpleNamespace(lr=0.1),
    "numpy scalar": {"best": np.float64(0.5), "count": np.int64(3), "flag": np.bool_(True)},
    "numpy array": np.arange(6.0).reshape(2, 3),
    "time": [datetime.datetime(2026, 1, 2), datetime.timedelta(1), datetime.date(2026, 1, 2)],
    "path": pathlib.PurePosixPath("/a/b"),
    "default dict": collections.defaultdict(list, {"a": [1]}),
    "nested default dict": {"h": collections.defaultdict(dict, {"a": {"b": 1}})},
    "counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "decimal": decimal.Decimal("1.50"),
    "sets": [{1, 2}, frozenset((3,)), slice(1, 2), 1j],
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_values_beside_the_weights_need_no_flag_and_are_kept(tmp_path, kind):
    _, written = _converted(tmp_path, {"model": network().state_dict(), "beside": PLAIN[kind]})
    same = written["beside"] == (list(PLAIN[kind]) if kind == "deque" else PLAIN[kind])
    assert np.all(same)


def test_a_path_of_this_system_is_kept_as_text(tmp_path):
    whole = {"model": network().state_dict(), "beside": pathlib.Path("/a/b")}
    assert str(_converted(tmp_path, whole)[1]["beside"]) == "/a/b"


@pytest.mark.parametrize("share", ["some", "all"])
def test_arrays_of_numpy_are_weights_as_tensors_are(tmp_path, share):
    tensors = network().state_dict()
    whole = {k: t.numpy() if share == "all" or "mean" in k else t for k, t in tensors.items()}
    notes, written = _converted(tmp_path, whole)
    assert any("arrays of numpy" in note for note in notes)
    assert torch.equal(written["2.weight"], tensors["2.weight"])
    assert not [key for key in written if "running_mean" in key]


class _Calls:
    """Pickled as the call of something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        _Calls(np.ndarray, (2**40,)),
        _Calls(np._core.multiarray._reconstruct, np.ndarray, (2**40,), b"b"),
        _Calls(range, 2**60),
        _Calls(list, _Calls(range, 2**60)),
        _Calls(bytes, 2**40),
        _Calls(pathlib.Path.cwd),
        _Calls(print, "hello"),
    ],
)
def test_what_could_cost_or_do_something_is_not_plain(tmp_path, value):
    torch.save({"model": network().state_dict(), "beside": value}, tmp_path / "x.pth")
    with pytest.raises(UnsafeError) as failure:
        read_tensors(tmp_path / "x.pth")
    assert "--allow-class builtins" not in str(failure.value)


def test_a_flag_is_not_advised_where_it_would_be_refused(tmp_path):
    whole = {"model": network().state_dict(), "beside": range(3)}
    torch.save(whole, tmp_path / "x.pth")
    with pytest.raises(UnsafeError, match="never allowed") as failure:
        read_tensors(tmp_path / "x.pth")
    assert "--allow-class" not in str(failure.value)


def test_statistics_with_paddle_s_names_are_those_of_batchnorms(tmp_path):
    names = {"running_mean": "_mean", "running_var": "_variance"}
    whole = {}
    for key, tensor in network().state_dict().items():
        head, _, last = key.rpartition(".")
        if last != "num_batches_tracked":
            whole[f"{head}.{names.get(last, last)}"] = tensor
    notes, _ = _converted(tmp_path, whole)
    assert any("Paddle" in note for note in notes)


class Renaming(nn.Sequential):
    """A model whose own code reads an older checkpoint."""

    def __init__(self):
        super().__init__(*network())
        self.register_load_state_dict_pre_hook(self._renamed)

    @staticmethod
    def _renamed(module, state, prefix, *_):
        for key in [k for k in state if k.startswith(f"{prefix}head.")]:
            state[key.replace("head.", "2.")] = state.pop(key)
        state.pop(f"{prefix}unused", None)


def test_whether_a_checkpoint_fits_is_the_word_of_the_model_s_own_code(tmp_path):
    tensors = network().state_dict()
    old = {k.replace("2.", "head.", 1) if k[0] == "2" else k: t for k, t in tensors.items()}
    torch.save({**old, "unused": torch.ones(1)}, tmp_path / "x.pth")
    model = f"{__name__}:Renaming"
    done = convert(Job(tmp_path / "x.pth", model=model, inputs=INPUTS, onnx=False))
    assert done.proofs.passed
    assert any("under other names" in note for note in done.notes)
    assert torch.equal(torch.load(tmp_path / "x.fused.pth")["2.weight"], tensors["2.weight"])


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["pruned", "weight_norm", "parametrized", "other"])
def test_what_stands_for_a_weight_in_training_is_named(tmp_path, kind):
    model = network()
    change = {
        "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
        "weight_norm": nn.utils.weight_norm,
        "parametrized": nn.utils.parametrizations.weight_norm,
        "other": lambda layer: layer.register_buffer("extra", torch.ones(1)),
    }
    words = {"pruned": "prune.remove", "weight_norm": "remove_weight_norm", "other": "--model",
             "parametrized": "remove_parametrizations"}  # fmt: skip
    change[kind](model[2])
    torch.save(model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(InputError, match=words[kind]):
        convert(Job(tmp_path / "x.pth", model=MODEL, inputs=INPUTS, onnx=False))
