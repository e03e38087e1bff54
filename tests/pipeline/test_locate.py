"""Where a difference begins is found and named, in programs of others that were made wrongly."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import acfuse
from acfuse.pipeline.job import Job
from acfuse.pipeline.replay import verify_files
from acfuse.proof import Inputs
from sample_models import awake
from tests.pipeline.converter import SHAPE, Arms, as_onnx, converted, trained

# Mistakes in the folding of the first block.


def an_eps(arms):
    for arm in arms:
        arm.eps = 1e-3
    return arms


def a_missing_arm(arms):
    return arms[:2]


def a_doubled_arm(arms):
    arms[1].times = 2.0
    return arms


def swapped_norms(arms):
    arms[1].norm, arms[2].norm = arms[2].norm, arms[1].norm
    return arms


def a_transposed_arm(arms):
    arms[1].kernel = arms[1].kernel.mT  # as if it were 1x3
    return arms


def statistics_of_a_batch(arms):
    """Those that the first block has while it is trained: other ones for each arm."""
    for i, arm in enumerate(arms):
        norm = copy.deepcopy(arm.norm)
        norm.running_mean.add_(torch.linspace(0.1, 0.5 + i, 8))
        norm.running_var.mul_(torch.linspace(1.5 + i, 0.5, 8))
        arm.norm = norm
    return arms


FOLDS = {
    an_eps: "eps 0.001: take the eps of each BatchNorm",
    a_missing_arm: "the arm of hor_bn is missing: add it to the sum",
    a_doubled_arm: "the arm of ver_bn is added twice: add it once",
    swapped_norms: "ver_bn and hor_bn are swapped: fold each into its own convolution",
    a_transposed_arm: "the kernel of ver is transposed: keep its height and width apart",
    statistics_of_a_batch: "as those of training mode are: call eval() before folding",
}


# Mistakes in the rest of it: where they show in the deploy form, and what they are called.


def scaled(name, at):
    return lambda m: m.get_submodule(name).weight[at].add_(0.5)


def with_weight(name, change):
    def wrong(model):
        layer = model.get_submodule(name)
        layer.weight = nn.Parameter(change(layer.weight.detach()).contiguous())

    return wrong


def setting(name, **settings):
    def wrong(model):
        for key, value in settings.items():
            setattr(model.get_submodule(name), key, value)

    return wrong


def pads(mode):
    def wrong(model):
        model.c2.padding_mode = mode
        model.c2._reversed_padding_repeated_twice = [1, 1, 1, 1]

    return wrong


REST = {
    "one weight of a block": (scaled("c1", (3, 2, 0, 1)), "c1", "1 altered weight"),
    "one weight of a lone convolution": (scaled("c0", (3, 2, 0, 1)), "c0", "1 altered weight"),
    "one weight of a matrix": (scaled("fc", (3, 2)), "fc", "1 altered weight"),
    "a bias": (lambda m: m.c1.bias.zero_(), "c1", "the bias was dropped: give"),
    "the bias of a matrix": (lambda m: m.fc.bias.zero_(), "fc", "the bias was dropped: give"),
    "float16": (with_weight("c2", lambda w: w.half().float()), "c2", "went through float16: fold"),
    "a transposed kernel": (with_weight("c2", lambda w: w.mT), "c2", "the kernel is transposed"),
    "a flipped kernel": (with_weight("c1", lambda w: w.flip(2, 3)), "c1", "the kernel is flipped"),
    "a moved kernel": (with_weight("c1", lambda w: w.roll(1, 2)), "c1", "is moved by one tap"),
    "the eps of a norm": (setting("bn", eps=1e-2), "bn", "eps 0.01, the original's 1e-05: set"),
    "a norm in training mode": (lambda m: m.bn.train(), "bn", "in training mode: call eval()"),
    "a stride": (setting("c2", stride=(2, 1)), "c2", "stride (2, 1), the original's (2, 2): set"),
    "pads": (setting("c1", padding=(0, 1)), "c1", "padding (0, 1), the original's (1, 1): set"),
    "a dilation": (setting("c1", dilation=(2, 1), padding=(2, 1)), "c1", "(2, 1)"),
    "a padding mode": (pads("reflect"), "c2", "another padding mode"),
    "another padding mode": (pads("replicate"), "c2", "another padding mode"),
    "a slope": (setting("", slope=0.1), "", "negative_slope 0.1, the original's 0.2: set"),
    "a missing activation": (setting("", rectifies=False), "c2", "relu is missing before it"),
    "a missing gate": (setting("", gates=False), "bn", "where the original has "),
    "a window": (setting("", window=3), "", "kernel_size (3, 3), the original's (2, 2): set"),
}
PLANTED = {
    **{f.__name__: ((f, lambda _: None), "c1", words) for f, words in FOLDS.items()},
    **{name: ((lambda a: a, wrong), at, words) for name, (wrong, at, words) in REST.items()},
}


@pytest.fixture(scope="module", autouse=True)
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "model.pth"
    torch.save(trained().state_dict(), path)
    return path


def job(checkpoint):
    model = "tests.pipeline.converter:Net"
    return Job(checkpoint, model=model, inputs=Inputs(((None, SHAPE),)))


def told(proofs):
    return f"{proofs.fault} | {proofs.looks_like}"


def test_what_is_converted_rightly_is_equal(checkpoint, tmp_path):
    deploy = converted(trained())
    proofs = acfuse.verify(trained(), deploy, SHAPE)
    assert proofs.passed, proofs.fault
    assert not proofs.place
    (tmp_path / "theirs.onnx").write_bytes(as_onnx(deploy).SerializeToString())
    assert verify_files(job(checkpoint), tmp_path / "theirs.onnx").proofs.passed


@pytest.mark.parametrize("fault", PLANTED)
def test_a_mistake_in_a_model_of_others_is_located_and_named(fault):
    change, at, words = PLANTED[fault]
    proofs = acfuse.verify(trained(), converted(trained(), *change), SHAPE)
    assert not proofs.passed
    begins = f"it begins at {at or 'the model itself'} (" in proofs.fault
    assert begins or proofs.worst is not None, told(proofs)
    assert words in proofs.looks_like, told(proofs)
    with pytest.raises(acfuse.NotEqual) as failed:
        proofs.raise_for_fault()
    assert words in str(failed.value)


# In an ONNX file the same shows at a node. A BatchNorm in training mode is written as it was; its
# eps, and how far a border is padded, are attributes.
@pytest.mark.parametrize("fault", PLANTED)
def test_a_mistake_in_an_onnx_file_of_others_is_located_and_named(fault, checkpoint, tmp_path):
    change, at, words = PLANTED[fault]
    path = tmp_path / "theirs.onnx"
    path.write_bytes(as_onnx(converted(trained(), *change)).SerializeToString())
    told_of = verify_files(job(checkpoint), path)
    assert not told_of.proofs.passed
    begins = f"it begins at /{at}" in told_of.proofs.fault
    assert begins or told_of.proofs.worst is not None, told(told_of.proofs)
    assert words in told_of.diagnosis


def test_the_smallest_change_of_a_block_shows_where_outputs_hardly_move():
    def wrong(model):
        model.c1.weight[3, 2, 0, 1] *= 1.0001

    proofs = acfuse.verify(trained(), converted(trained(), wrong=wrong), SHAPE)
    assert not proofs.passed
    assert "first: 1 of 584 weights" in proofs.fault
    assert "1 altered weight" in proofs.looks_like
    right = acfuse.verify(trained(), converted(trained()), SHAPE)
    assert len(right.certificates) == 2


class Normed(nn.Module):
    """A block whose BatchNorm behind it was never trained: it is all but the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm, self.head = Arms(3, 8), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.head(self.norm(self.block(x)).relu())


class Around(nn.Module):
    """A model of another structure, which does the same."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_who_takes_up_the_norm_behind_a_block_as_well_is_right(tmp_path):
    model = awake(Normed(), 0)
    model.norm = nn.BatchNorm2d(8).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    other = acfuse.fuse(model).model
    other.block = fuse_conv_bn_eval(other.block.fused_conv, model.norm)
    other.norm = nn.Identity()
    assert not torch.equal(other.block.weight, acfuse.fuse(model).model.block.fused_conv.weight)
    proofs = acfuse.verify(model, Around(other), SHAPE)
    assert proofs.passed, proofs.fault
    (tmp_path / "theirs.onnx").write_bytes(as_onnx(other).SerializeToString())
    job = Job(tmp_path / "model.pth", model="tests.pipeline.test_locate:Normed",
              inputs=Inputs(((None, SHAPE),)))  # fmt: skip
    proofs = verify_files(job, tmp_path / "theirs.onnx").proofs
    assert proofs.passed, proofs.fault
    assert not proofs.certificates
    # A weight that no factor explains is a fault, however little it moves the outputs.
    with torch.no_grad():
        other.block.weight[1, 2, 0, 1] *= 1.0001
    (tmp_path / "wrong.onnx").write_bytes(as_onnx(other).SerializeToString())
    assert not verify_files(job, tmp_path / "wrong.onnx").proofs.passed
