"""What the pictures show is what the kernels are."""

from dataclasses import replace

import pytest
import torch

import acfuse
from acfuse.findings import Term
from acfuse.pipeline.manifest import findings_json
from acfuse.pipeline.ranges import ranges_of_blocks
from acfuse.proof import Proofs
from acfuse.reports.html import as_html
from acfuse.reports.measure import (
    MOST_CELLS,
    MOST_CHANNELS,
    ULP_BINS,
    channel_ranges,
    distances,
    grid_of,
    kernel_of,
    pictures_of,
)
from acfuse.reports.record import report_of
from acfuse.reports.svg import cross_share, error_bar, heat_map, histogram, in_words
from sample_models import samples
from tests.reports.runs import Page, bare, conversion, report

SAMPLES = samples()


def kernel(values, name="k"):
    return kernel_of(name, torch.tensor(values, dtype=torch.float64))


CROSS = kernel([[[[0.0, -1.0, 0.0], [-1.0, 2.0, 1.0], [0.0, 1.0, 0.0]]]])


def test_a_picture_is_the_mean_size_over_all_channels_of_the_largest_tap():
    two = kernel([[[[1.0, -4.0]], [[3.0, 4.0]]], [[[-1.0, 4.0]], [[-3.0, -4.0]]]])
    assert two.grid == ((0.5, 1.0),)
    assert two.taps == (1, 2)


def test_the_cross_is_the_skeleton_of_a_kernel():
    assert cross_share(CROSS) == 1.0
    assert cross_share(kernel([[[[1.0] * 3] * 3]])) == pytest.approx(5 / 9)
    assert cross_share(kernel([[[[1.0, 1.0]] * 2]])) is None
    assert cross_share(kernel([[[[0.0] * 3] * 3]])) is None


def test_a_small_kernel_is_told_in_numbers_and_a_large_one_by_its_peak():
    assert in_words(CROSS).endswith("0.00 0.50 0.00; 0.50 1.00 0.50; 0.00 0.50 0.00")
    large = torch.zeros(1, 1, 7, 7)
    large[0, 0, 2, 5] = 1.0
    assert "row 3, column 6" in in_words(kernel_of("k", large))


def test_the_name_of_a_layer_is_text_in_its_picture():
    name = '"><script>alert(1)</script>'
    drawn = Page(heat_map(kernel([[[[1.0]]]], name), 1))
    assert [tag for tag, _ in drawn.elements] == ["svg", "path"]
    assert name in drawn.all("svg")[0]["aria-label"]


@pytest.mark.parametrize(
    "shape", [(4, 3), (4, 3, 5), (4, 3, 3, 3), (4, 3, 2, 3, 3), (2, 2, 31, 31)]
)
def test_kernels_of_every_number_of_axes_have_a_picture(shape):
    drawn = kernel_of("k", torch.rand(shape, dtype=torch.float64))
    assert max(len(drawn.grid), len(drawn.grid[0])) <= MOST_CELLS
    assert max(map(max, drawn.grid)) <= 1.0
    cells = heat_map(drawn, 31).count("M")
    assert cells == len(drawn.grid) * len(drawn.grid[0])


def test_of_a_large_kernel_neighbours_are_averaged():
    plane = torch.ones(30, 30, dtype=torch.float64)
    plane[:2, :2] = 4.0
    grid = grid_of(plane, 4.0)
    assert len(grid) == MOST_CELLS
    assert grid[0][0] == 1.0
    assert grid[1][1] == 0.25


def test_ranges_are_those_of_output_channels_over_the_median_one():
    values = torch.tensor([[1.0, -2.0], [8.0, 0.0], [-4.0, 1.0]], dtype=torch.float64)
    assert channel_ranges(values) == (0.5, 1.0, 2.0)
    assert channel_ranges(torch.zeros(3, 2)) == ()
    many = channel_ranges(torch.arange(1.0, 1000.0).reshape(-1, 1))
    assert len(many) == MOST_CHANNELS
    assert many[-1] == pytest.approx(999 / 500, abs=0.001)


@pytest.mark.parametrize("run", [conversion, bare])
def test_every_block_of_the_sample_has_its_branches_and_what_became_of_them(run):
    pictures = pictures_of(run().fused, 1)
    for block in pictures.blocks:
        assert [k.taps for k in block.before] == [(3, 3), (3, 1), (1, 3)]
        assert [k.taps for k in block.after] == [(3, 3)]
        largest = [max(map(max, kernel.grid)) for kernel in (*block.before, *block.after)]
        assert max(largest) == 1.0  # on one scale, so that branches can be compared
        assert min(largest) < 1.0
        assert cross_share(block.after[0]) > cross_share(block.before[0])  # the article's skeleton


def test_every_stored_number_of_a_conversion_is_within_half_a_unit():
    stored = conversion().fused
    counts = pictures_of(conversion().fused, 1).ulps
    numbers = sum(w.numel() + b.numel() for w, b in stored.weights.values())
    assert sum(counts) == numbers
    assert counts[ULP_BINS] == 0
    assert min(counts[:ULP_BINS]) > 0


@pytest.mark.parametrize(("units", "beyond"), [(0.5, 0), (0.75, 1)])
def test_half_a_unit_is_still_rounded_right(units, beyond):
    block = conversion().findings.found[0]
    (stored,) = conversion().fused.stored(block)
    ones = torch.ones_like(stored.kernel)
    ones[0, 0, 0, 0] += units * torch.finfo(torch.float32).eps
    exact = replace(stored, kernel=ones)
    rounded = replace(stored, kernel=torch.ones_like(ones))
    term = Term("x", "k", lambda: exact)
    counts = distances(replace(block, terms=(term,)), [rounded])
    assert int(counts[ULP_BINS]) == beyond
    assert int(counts.sum()) == ones.numel() + stored.bias.numel()


def test_a_number_that_is_off_is_counted_as_such():
    fused = conversion().fused
    name = next(iter(fused.weights))
    weight, bias = fused.weights[name]
    moved = weight.clone()
    moved.view(-1)[7] = torch.nextafter(moved.view(-1)[7], torch.tensor(torch.inf))
    other = fused.with_weights({name: (moved, bias)})
    assert pictures_of(other, 1).ulps[ULP_BINS] == 1


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.blocks])
def test_every_family_has_its_page(name):
    fused = acfuse.fuse(SAMPLES[name].build())
    pictures = pictures_of(fused, 1)
    assert len(pictures.blocks) == len(fused.found)
    assert pictures.ulps[ULP_BINS] == 0
    assert sum(pictures.ulps) >= sum(w.numel() for w, _ in fused.weights.values())
    told = findings_json(fused.findings, Proofs(), ranges_of_blocks(fused))
    shown = report_of({**report().data, **told}, pictures)
    page = Page(as_html(shown))
    assert all(block.label in page.words for block in fused.found)


def test_an_error_beyond_its_bound_is_another_colour_and_stays_in_its_picture():
    assert 'class="good"' in error_bar(1e-15, 1e-11)
    for error in (1e-9, 5.0, float("inf")):
        bar = error_bar(error, 1e-11)
        assert 'class="bad"' in bar
        assert 'd="M0 3h100.0v6H0z"' in bar


def test_a_histogram_says_in_words_what_lies_beyond():
    assert "and 3 are further off" in histogram([10, 0, 5, 0, 3])
    assert "of 0 stored numbers" not in histogram([1, 0, 0])
