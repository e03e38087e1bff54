"""By a table of costs, no block is fused that is slower than its layers, whatever the source."""

from itertools import cycle
from unittest import mock

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import nn

import acfuse
from acfuse.algebra import Axis, Geometry
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.graph import regions
from acfuse.graph.times import Slower, slower_than, timed, work_of
from acfuse.patterns import PATTERNS, known_patterns
from acfuse.rewrite import fused_copy
from sample_models import awake
from tests.bounds import assert_within, rounding
from tests.cli.crosses import Crosses
from tests.graph.costs import SIZE, SLOW, crosses, planted, written
from tests.graph.fusing import images
from tests.graph.onnx_files import exported
from tests.graph.programs import SIZES, programs

HOUSE = """[[pattern]]
name = "crosses"
block = "a + b + c + d"
fused = "one"
"""


def live(cost):
    return acfuse.fuse(crosses(), cost=cost)


def in_onnx(cost):
    return acfuse.fuse_onnx(exported(crosses().double(), 1), cost=cost)


@pytest.fixture
def bare(tmp_path):
    (tmp_path / "house.toml").write_text(HOUSE)
    patterns = known_patterns([tmp_path / "house.toml"])
    return lambda cost: acfuse.fuse_tensors(crosses().state_dict(), patterns=patterns, cost=cost)


@pytest.fixture(params=["live", "onnx", "bare"])
def fuse(request, bare):
    return {"live": live, "onnx": in_onnx, "bare": bare}[request.param]


def test_a_block_that_is_slower_stays_as_it_is_and_both_times_are_told(fuse, tmp_path):
    fused = fuse(written(tmp_path / "cost.json", planted(SLOW)))
    assert fused.found == ()
    (refused,) = fused.refused
    assert refused.code == Reason.SLOWER
    assert "takes 1e+03 ms, its layers 0.012 ms (eager, 14x14 pixels)" in refused.why


def test_a_block_that_is_faster_is_fused_as_without_a_table(fuse, tmp_path):
    by_table = fuse(written(tmp_path / "cost.json", planted({})))
    plain = fuse(None)
    assert [b.names for b in by_table.found] == [b.names for b in plain.found] != []
    for one, other in zip(by_table.weights.values(), plain.weights.values(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_one_backend_on_which_it_is_slower_is_enough(tmp_path):
    both = planted({}, backend="onnxruntime"), planted(SLOW)
    assert live(written(tmp_path / "cost.json", *both)).found == ()


def test_what_has_as_many_places_as_one_of_its_layers_is_never_slower(tmp_path):
    """A 3x3 kernel beside smaller ones: the fused layer is the largest of them."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    fused = acfuse.fuse(Net().eval(), cost=written(tmp_path / "cost.json", planted(SLOW)))
    assert len(fused.found) == 1


def test_what_is_inside_of_a_refused_block_may_still_be_fused(tmp_path):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.crosses = Inner(), Crosses()

        def forward(self, x):
            return self.inner(x) + self.crosses(x)

    plain = acfuse.fuse(Outer().eval())
    by_table = acfuse.fuse(Outer().eval(), cost=written(tmp_path / "c.json", planted(SLOW)))
    assert [b.where for b in plain.found] == [""]
    assert [b.where for b in by_table.found] == ["inner"]


def test_depthwise_layers_are_judged_by_depthwise_rows_alone(tmp_path):
    net = crosses(groups=4)
    dense = written(tmp_path / "dense.json", planted(SLOW))
    depthwise = written(tmp_path / "depthwise.json", planted(SLOW, groups=4))
    assert len(acfuse.fuse(net, cost=dense).found) == 1  # of which it knows nothing
    assert acfuse.fuse(net, cost=depthwise).found == ()


def test_a_fused_checkpoint_goes_back_into_its_network_by_the_same_table(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Crosses(), nn.Conv2d(4, 4, 3)
            self.side = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            y = torch.relu(self.first(x))
            return self.second(y) + self.side(y)

    path = written(tmp_path / "cost.json", planted(SLOW))
    net = Net().eval()
    fused = acfuse.fuse(net, cost=path)
    assert len(fused.found) == 1
    again = acfuse.load_fused(Net(), fused.model.state_dict(), cost=path)
    image = torch.randn(1, 4, 9, 7)
    assert torch.equal(again(image), fused.model(image))
    assert acfuse.verify(net, fused.model, (1, 4, 9, 7), cost=path).passed


@given(programs(), st.lists(st.booleans(), min_size=1, max_size=4))
@torch.no_grad()
def test_whatever_a_table_takes_away_a_random_network_stays_what_it_was(program, answers):
    """Each region in turn is slower or is not, as it is drawn."""
    model, turns = awake(program.double(), 0), cycle(answers)
    slower = Slower(("eager", SIZE), 1.0, 2.0, True)
    answer = mock.Mock(side_effect=lambda *_: slower if next(turns) else None)
    with mock.patch.object(regions, "slower_region", answer):
        findings = find_in_module(model, PATTERNS, costs=planted({}))
    count = sum(r.code == Reason.SLOWER for r in findings.refused)
    event(f"{min(count, 1)} slower, {min(len(findings.found), 1)} fused, or more")
    if all(answers):
        assert findings.found == ()
    fused = fused_copy(model, findings.found)
    for image in images(SIZES):
        assert_within(fused(image.clone()), model(image.clone()), rounding(model, image))


def geometry(size, stride=1, axes=2, dilation=1):
    axis = Axis.window(size, stride, dilation=dilation)
    return Geometry(8, 4, (axis,) * axes, 2)


def test_a_geometry_is_known_by_its_taps_and_the_channels_of_its_groups():
    work = work_of(geometry(3, dilation=2))
    assert (work.kernel, work.channels, work.groups) == ((3, 3), (2, 4), 2)
    assert work_of(geometry(3, axes=1)).kernel == (1, 3)
    assert work_of(geometry(3)).multiply_adds == geometry(3).multiply_adds


def test_a_kind_that_no_table_has_is_not_judged():
    assert timed(geometry(3, axes=3)) is None
    one = Geometry(4, 4, (Axis.window(3),) * 2)
    table = planted(SLOW)
    assert slower_than([timed(geometry(1, axes=3))], [timed(one)], table) is None
    assert slower_than([], [timed(one)], table) is not None
