"""What looks like branches is shown, with a pattern to start from; plain networks show nothing."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

import acfuse
from acfuse.patterns import PATTERNS
from acfuse.patterns.suspects import suspects_in
from acfuse.patterns.toml_files import read_patterns
from sample_models import awake, framed, samples
from tests.cli.command import refused, run, worked
from tests.packages.imports import MissingPackage, imported

PLAIN = ("resnet18", "resnet50", "mobilenetv2_100", "convnext_atto", "vgg11_bn", "densenet121",
         "inception_v3", "mixnet_s", "efficientnet_b0", "res2net50_26w_4s", "darknet53",
         "resnetv2_50", "dla34", "ghostnet_100", "hrnet_w18_small")  # fmt: skip


def arm(a, b, size, groups=1):
    pads = tuple(n // 2 for n in size)
    conv = nn.Conv2d(a, b, size, padding=pads, groups=groups, bias=False)
    return nn.Sequential(OrderedDict(c=conv, n=nn.BatchNorm2d(b)))


class Own(nn.Module):
    """Branches under names that nobody knows."""

    def __init__(self, a, b, *sizes, groups=1, skip=False):
        super().__init__()
        for i, size in enumerate(sizes):
            self.add_module(f"way{i}", arm(a, b, size, groups))
        if skip:
            self.way = nn.BatchNorm2d(a)

    def forward(self, x):
        return sum(way(x) for way in self.children())


BRANCHED = {
    "wider": lambda: framed(Own(6, 8, (3, 3), (1, 1)), 6, 8),
    "crossed": lambda: framed(Own(6, 6, (3, 3), (3, 1), (1, 3)), 6, 6),
    "with_skip": lambda: framed(Own(6, 6, (3, 3), (1, 1), skip=True), 6, 6),
    "depthwise": lambda: framed(Own(6, 6, (7, 7), (3, 3), groups=6), 6, 6),
}


@pytest.mark.parametrize("name", BRANCHED)
def test_branches_under_unknown_names_are_suspects_and_their_stub_fuses_them(name, tmp_path):
    model = awake(BRANCHED[name](), 0)
    tensors = model.state_dict()
    bare = acfuse.fuse_tensors(tensors)
    assert not bare.found
    assert list(bare.tensors) == list(tensors)
    (suspect,) = suspects_in(tensors, set())
    assert suspect.where == "body"
    (tmp_path / "mine.toml").write_text(suspect.stub)
    own = read_patterns(tmp_path / "mine.toml")
    fused = acfuse.fuse_tensors(tensors, bn_eps=1e-5, patterns=own).tensors
    live = acfuse.fuse(model, patterns=()).model.state_dict()
    assert torch.equal(fused["body.fused_conv.weight"], live["body.fused_conv.weight"])


def test_inspect_and_convert_show_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(awake(BRANCHED["with_skip"](), 0).state_dict(), "own.pth")
    refused(run("convert", "own.pth"), 5, "body: way0.c [6, 6, 3, 3]", "`acfuse inspect`")
    seen = run("inspect", "own.pth")
    assert seen.exit_code == 5
    assert "suspect body: way0.c [6, 6, 3, 3], way1.c [6, 6, 1, 1]" in seen.stdout
    stub = [line.strip() for line in seen.stdout.splitlines() if line.startswith(" " * 8)]
    (tmp_path / "mine.toml").write_text("\n".join(stub))
    worked(run("convert", "own.pth", "--patterns", "mine.toml"))
    data = run("inspect", "own.pth", "--format", "json").json
    assert [s["where"] for s in data["suspects"]] == ["body"]
    done = run("inspect", "own.pth", "--patterns", "mine.toml")
    assert "suspect" not in worked(done).stdout


def test_the_stubs_of_two_kinds_are_one_file(tmp_path, monkeypatch):
    """With and without an identity, as RepVGG has both."""
    monkeypatch.chdir(tmp_path)
    kinds = {kind: awake(BRANCHED[kind](), 0).state_dict() for kind in ("with_skip", "wider")}
    torch.save({f"{k}.{name}": t for k, tensors in kinds.items() for name, t in tensors.items()},
               "own.pth")  # fmt: skip
    seen = run("inspect", "own.pth").stdout
    assert seen.count("[[pattern]]") == 2
    stub = [line.strip() for line in seen.splitlines() if line.startswith(" " * 8)]
    (tmp_path / "mine.toml").write_text("\n".join(stub))
    done = worked(run("inspect", "own.pth", "--patterns", "mine.toml"))
    assert "2 blocks can be fused" in done.stdout
    assert "eps 1e-05" in done.stdout  # it is still told as assumed


@pytest.mark.parametrize("name", ["acnet/digits", "repvgg/digits", "acnet/k3", "mobileone/timm"])
def test_what_a_pattern_knows_is_no_suspect(name):
    from acfuse.patterns.match import find_in_tensors

    tensors = samples()[name].build().state_dict()
    assert find_in_tensors(tensors, PATTERNS, 1e-5).suspects == ()


@pytest.mark.parametrize("name", PLAIN)
def test_plain_networks_show_nothing(name):
    try:
        with torch.device("meta"):
            model = imported("timm").create_model(name, pretrained=False)
    except MissingPackage as missing:
        pytest.skip(str(missing))
    assert suspects_in(model.state_dict(), set()) == ()


def unet():
    def double(a, b):
        one, two = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
        return nn.Sequential(one, nn.BatchNorm2d(b), nn.ReLU(), two, nn.BatchNorm2d(b), nn.ReLU())

    class Up(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.up = nn.ConvTranspose2d(a, b, 2, 2)
            self.conv = double(a, b)

    return nn.Sequential(double(3, 8), double(8, 16), Up(16, 8), nn.Conv2d(8, 2, 1))


def residual(a, b):
    """A block of ResNet whose shortcut has the shape of its first convolution, but for the size."""
    return nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(a, b, 3, 2, 1, bias=False), bn1=nn.BatchNorm2d(b),
        conv2=nn.Conv2d(b, b, 3, 1, 1, bias=False), bn2=nn.BatchNorm2d(b),
        downsample=nn.Sequential(nn.Conv2d(a, b, 1, 2, bias=False), nn.BatchNorm2d(b)),
    ))  # fmt: skip


def one_by_one(a):
    """YOLO's bottleneck: a 1x1 and a 3x3 of the same channels, one after the other."""
    return nn.Sequential(OrderedDict(cv1=arm(a, a, (1, 1)), cv2=arm(a, a, (3, 3))))


@pytest.mark.parametrize("build", [unet, lambda: residual(6, 8), lambda: one_by_one(6)])
def test_layers_in_sequence_are_no_suspects(build):
    assert suspects_in(build().state_dict(), set()) == ()


def test_names_that_are_no_toml_are_quoted(tmp_path):
    model = Own(6, 8, (3, 3), (1, 1))
    tensors = {k.replace("way0", 'w"\n[x]\x7f\x1bø'): t for k, t in model.state_dict().items()}
    (suspect,) = suspects_in(tensors, set())
    (tmp_path / "mine.toml").write_text(suspect.stub, encoding="utf-8")
    with pytest.raises(Exception, match="stands in no block"):
        read_patterns(tmp_path / "mine.toml")
