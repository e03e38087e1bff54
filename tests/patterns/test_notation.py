"""A block is read from the text in which it is printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acfuse.patterns import PATTERNS, each, layer, maybe, padded, pool, scaled, seq, x
from acfuse.patterns.notation import DEPTH, LENGTH, NotationError, parse

NAMES = st.sampled_from(["conv", "a.0.bn", "x", "pad", "average", "it's", "a-b", "ø.1", "_", "3x3"])
SIZES = st.sampled_from([1, 3, (1, 3), (5, 3), (3, 1, 1)])


def parts(inner):
    chains = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        chains.map(lambda p: seq(*p)),
        chains.map(lambda p: maybe(*p)),
        st.tuples(NAMES, chains).map(lambda p: padded(p[0], *p[1])),
        st.tuples(NAMES, inner).map(lambda p: scaled(*p)),
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
    )


LEAVES = st.one_of(
    NAMES.map(lambda name: seq(name)),
    st.just(x),
    NAMES.map(pool),
    st.builds(
        lambda name, size, dilation, one: layer(name, size, dilation, depthwise=one),
        NAMES,
        SIZES,
        st.integers(1, 4),
        st.booleans(),
    ),
    st.tuples(st.sampled_from(["", "convs", "a-b.c"]), st.lists(NAMES, max_size=2)).map(
        lambda p: each(p[0], *p[1])
    ),
)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_each_pattern_is_read_as_it_is_printed(pattern):
    assert parse(str(pattern.block)) == pattern.block


@given(st.recursive(LEAVES, parts, max_leaves=8))
def test_each_block_is_read_as_it_is_printed(block):
    assert parse(str(block)) == block
    assert str(parse(str(block))) == str(block)


def test_blanks_and_line_ends_say_nothing():
    assert parse("\n a>b\n  +[ c >d ]-x ") == seq("a", "b") + maybe("c", "d") - x


def test_a_minus_before_brackets_is_for_all_of_them():
    assert str(parse("a - (b - c)")) == "a - (b - c)"
    assert parse("a - (b - c)") != parse("a - b - c")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a name at character 1, found the end"),
        ("a >", "expected a name at character 4"),
        ("a b", "expected an operator or the end at character 3, found 'b'"),
        ("(a + b", "expected ')'"),
        ("a]", "found ']'"),
        ("a $ b", "'$' stands in no block, at character 3"),
        ("a.*", "expected a name"),
        ("{a}", "one * for its number"),
        ("{a.*.b > c.*.b}", "one numbered list"),
        ("a (3)", "the size of a kernel"),
        ("a (3x3, stride 2)", "'stride' says nothing of a"),
        ("a (3x3, dilation 0)", "'dilation' says nothing of a"),
        ("'a", "stands in no block"),
        ("'a..b'", "expected a name"),
        ("a * ", "expected a name"),
        ("pad as a", "expected '>'"),
        ("(" * 100 + "a" + ")" * 100, f"more than {DEPTH} deep"),
        ("a * " * 100 + "x", f"more than {DEPTH} deep"),
        ("pad as a > " * 100 + "b", f"more than {DEPTH} deep"),
        ("a + " * LENGTH + "b", "characters"),
    ],
)
def test_what_is_no_block_is_refused_with_its_place(text, words):
    with pytest.raises(NotationError) as wrong:
        parse(text)
    assert words in str(wrong.value)
    assert "\n" not in str(wrong.value)


@given(st.text(st.sampled_from("ab.x*+-><()[]{},3 '\n$\x1b"), max_size=40))
def test_any_text_is_a_block_or_refused(text):
    try:
        block = parse(text)
    except NotationError:
        return
    assert parse(str(block)) == block
