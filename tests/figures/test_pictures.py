"""The pictures of README are what `make pictures` draws."""

from xml.etree import ElementTree

from benchmarks.pictures import pictures


def test_the_pictures_are_those_of_the_trained_sample() -> None:
    drawn = pictures()
    assert len(drawn) == 2
    for path, picture in drawn.items():
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert path.read_text(encoding="utf-8") == picture, f"{path.name}: make pictures"
