"""Real conversions to report on, and a reader of the pages that come of them."""

from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

from acfuse.pipeline.convert import convert
from acfuse.pipeline.job import Conversion, Job
from acfuse.proof import Inputs
from acfuse.reports.record import Report
from acfuse.reports.render import report_of_run

SAMPLES = Path(__file__).parents[2] / "sample_models"
VOID = {"meta", "input", "br"}


@cache
def conversion() -> Conversion:
    """The trained sample, converted; nothing is written."""
    model, shape = f"{SAMPLES / 'digits.py'}:AcNet", ((None, (1, 1, 8, 8)),)
    job = Job(SAMPLES / "model.pth", model=model, inputs=Inputs(shape), dry_run=True, onnx=False)
    return convert(job)


@cache
def bare() -> Conversion:
    """The same without its code: nothing but tensors."""
    return convert(Job(SAMPLES / "model.pth", dry_run=True))


@cache
def report() -> Report:
    """What is reported of the trained sample."""
    return report_of_run(conversion())


@dataclass
class Page(HTMLParser):
    """A page as a browser would read it: its elements, and its text without style and script."""

    text: str
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    words: str = ""
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)
        self.close()
        assert self.open == [], "an element is never closed"

    def handle_starttag(self, tag, attrs):
        """Takes an element in."""
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"{tag} has an attribute twice"
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Takes an element without content in."""
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag):
        """Closes an element, the one that was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Takes text in."""
        if not {"style", "script"} & set(self.open):
            self.words += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        """The attributes of every such element."""
        given = [attrs for name, attrs in self.elements if name == tag]
        return [attrs for attrs in given if not kind or kind in attrs.get("class", "").split()]
