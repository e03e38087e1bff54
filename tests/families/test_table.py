"""docs/families.md says what the registry and the samples say.

`ACFUSE_WRITE_CASES=1 pytest tests/families/test_table.py` writes it again.
"""

import os
from functools import cache
from pathlib import Path

from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.patterns.match import find_in_tensors
from acfuse.patterns.registry import assumed
from sample_models import samples
from tests.families.unnamed import UNNAMED

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families

Written from the registry and the samples; `tests/families/test_table.py` holds it to them.

**Live**: in a model with its code, found by what its forward computes. Every such block has a
certificate for all inputs, at most 0.51 ULP. **Bare**: among the tensors of a state dict, by exact
keys and shapes; with the right eps, the weights are those of the live model, bit for bit. What the
file does not hold is assumed, and printed: `acfuse patterns show NAME`. **ONNX**: found by algebra,
without names, in the file that torch exports of the samples.

| pattern | fused name | BN eps | live | bare | ONNX | source |
|---|---|---|---|---|---|---|
"""
FOOT = """
An eps of `given` has no usual value: `--bn-eps` is asked for.

## Without a pattern

| family | live | bare | source |
|---|---|---|---|
"""
BARE = {"pplcnet": "found; its factor stays behind the convolution, as in the authors' deploy form"}
NOT_ONNX = {"dbb": "in parts", "rrrb": "in parts"}


@cache
def sampled():
    """For each pattern's name, whether a sample of it is found live, and among bare tensors."""
    live, bare = set(), set()
    for sample in samples().values():
        if not sample.blocks:
            continue
        model = sample.build()
        live |= {block.pattern for block in find_in_module(model, PATTERNS).found}
        patterns = assumed(PATTERNS, sample.assume)
        found = find_in_tensors(model.state_dict(), patterns, sample.bn_eps).found
        bare |= {block.pattern for block in found}
    return live, bare


def table() -> str:
    """The page."""
    live, bare = sampled()
    rows = []
    for p in PATTERNS:
        assert p.name in live, p.name
        bare_form = f"refused: {p.ambiguity}" if p.ambiguity else BARE.get(p.family, "found")
        if p.assumption:
            bare_form = f"`--assume`, if {p.assumption}; otherwise {bare_form}"
        onnx = NOT_ONNX.get(p.family, "found")
        eps = "given" if p.bn_eps is None else f"{p.bn_eps:g}"
        rows.append(
            f"| {p.name} | `{p.fused}` | {eps} | found | {bare_form} | {onnx} | {p.source} |"
        )
        assert (p.name in bare) == (not p.ambiguity or bool(p.assumption)), p.name
    others = [f"| {u.family} | {u.live} | {u.bare} | {u.source} |" for u in UNNAMED]
    return HEAD + "\n".join(rows) + "\n" + FOOT + "\n".join(others) + "\n"


def test_the_page_is_what_the_registry_says():
    text = table()
    if os.environ.get("ACFUSE_WRITE_CASES"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text
