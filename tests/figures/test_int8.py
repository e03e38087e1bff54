"""What docs/int8.md says of the trained samples in 8 bits holds, and its pictures show it."""

from xml.etree import ElementTree

import pytest

from benchmarks.int8 import HEAD, fused, of_accuracy, of_ranges, outcome, split, table, uneven
from benchmarks.processes import ROOT

POINT = 0.01  # of accuracy: what may be lost
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def images():
    pytest.importorskip("sklearn")
    return split()


@pytest.mark.parametrize("file", ["model.pth", "repvgg.pth"])
def test_rescaled_samples_come_back_and_healthy_ones_are_left(file, images):
    model = fused(file)
    healthy, left = outcome(model, images)
    assert not healthy.is_taken
    assert left.model.SerializeToString() == model.SerializeToString()
    scaled, made = outcome(uneven(model, 7), images)
    assert scaled.is_taken
    assert made.compared > 0
    assert scaled.in_float == healthy.in_float
    assert scaled.in_8_bits < scaled.in_float - 20 * POINT
    assert scaled.evened_out >= scaled.in_float - POINT
    rows = table([(file, False, healthy), (file, True, scaled)])
    assert len(rows) == 4
    assert all(row.count("|") == len(HEAD) + 1 for row in rows)


def test_the_pictures_show_each_channel_and_each_accuracy(images):
    model = uneven(fused("model.pth"), 0)
    scaled, made = outcome(model, images)
    channels = sum(len(layer.rows) for layer in made.scaled.scales.channels.layers)
    drawn = ElementTree.fromstring(of_ranges(model, made))
    assert len(drawn.findall(f"{SVG}circle")) == 2 * channels + 2  # and the legend's
    bars = ElementTree.fromstring(of_accuracy(scaled, scaled))
    told = [element.text for element in bars.findall(f"{SVG}text")]
    assert f"{100 * scaled.in_8_bits:.1f} %" in told
    kept = [ROOT / f"docs/img/int8-{name}.svg" for name in ("ranges", "accuracy")]
    counts = [len(ElementTree.parse(path).getroot()) for path in kept]
    assert counts == [len(drawn), len(bars)], "make pictures"
