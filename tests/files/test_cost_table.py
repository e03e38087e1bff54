"""A table of costs is data: checked before it is believed, and read between what was measured."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acfuse.errors import AcfuseError, Exit
from acfuse.files.cost_table import BYTES, CostTable, Row, Work, read_cost_table, table_json

ROW = {
    "backend": "eager",
    "size": 14,
    "kernel": [3, 3],
    "channels": [4, 8],
    "groups": 1,
    "seconds": 1e-3,
}


def written(path, costs, **others):
    path.write_text(json.dumps({"schema_version": 1, "costs": costs, **others}))
    return path


def test_what_is_written_is_read(tmp_path):
    rows = [
        Row("eager", 14, Work((3, 3), (4, 8)), 1e-3),
        Row("onnxruntime", 56, Work((51, 5), (1, 1), 64), 2.5),
    ]
    (tmp_path / "cost.json").write_bytes(table_json(rows, {"threads": 1}))
    table = read_cost_table(tmp_path / "cost.json")
    assert table == CostTable(tuple(rows))
    assert set(table.settings) == {("eager", 14), ("onnxruntime", 56)}


WRONG = [
    ("kernel", [3]),
    ("kernel", [3, 0]),
    ("kernel", [3, 3.0]),
    ("kernel", [True, True]),
    ("kernel", "33"),
    ("kernel", [3, 2**20 + 1]),
    ("channels", [4, -8]),
    ("channels", {"4": 8}),
    ("groups", None),
    ("groups", 0),
    ("size", "14"),
    ("size", 10**400),
    ("backend", ""),
    ("backend", "e" * 65),
    ("backend", 3),
    ("seconds", 0),
    ("seconds", -1e-3),
    ("seconds", float("nan")),
    ("seconds", float("inf")),
    ("seconds", 1e-30),
    ("seconds", 10**400),
    ("seconds", "1e-3"),
    ("seconds", True),
    ("seconds", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_cost_that_is_none_is_refused_in_one_line(tmp_path, name, value):
    path = written(tmp_path / "cost.json", [ROW, {**ROW, "size": 28, name: value}])
    with pytest.raises(AcfuseError) as refused:
        read_cost_table(path)
    assert refused.value.exit_code == Exit.BAD_INPUT
    assert str(refused.value).startswith("cost.json: cost 2")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"schema_version": 2, "costs": []}',
        '{"schema_version": true, "costs": [1]}',
        '{"schema_version": 1}',
        '{"schema_version": 1, "costs": []}',
        '{"schema_version": 1, "costs": {}}',
        '{"schema_version": 1, "costs": [3]}',
        "[" * 100_000,
        "\x00\xff",
        json.dumps({"schema_version": 1, "costs": [ROW, ROW]}),
        json.dumps({"schema_version": 1, "costs": [ROW] * 10_001}),
        json.dumps({"schema_version": 1, "costs": [{**ROW, "size": n} for n in range(1, 66)]}),
        " " * (BYTES + 1),
    ],
)
def test_a_file_that_is_no_table_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(AcfuseError) as refused:
        read_cost_table(path)
    assert refused.value.exit_code == Exit.BAD_INPUT
    assert str(refused.value).startswith("cost.json")
    assert "\n" not in str(refused.value)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(AcfuseError, match=r"none\.json cannot be read"):
        read_cost_table(tmp_path / "none.json")


SIZES = st.integers(1, 64)
WORKS = st.one_of(
    st.builds(Work, st.tuples(SIZES, SIZES), st.tuples(SIZES, SIZES)),
    st.builds(lambda k, g: Work(k, (1, 1), g), st.tuples(SIZES, SIZES), st.integers(2, 64)),
)
ROWS = st.lists(
    st.builds(Row, st.just("eager"), st.just(14), WORKS, st.floats(1e-9, 1e3)),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row.work,
)


@given(ROWS, WORKS)
def test_a_cost_for_each_multiply_add_lies_between_the_least_and_the_largest(rows, work):
    table = CostTable(tuple(rows))
    alike = [row for row in rows if row.work.is_depthwise == work.is_depthwise]
    seconds = table.seconds(("eager", 14), work)
    if not alike:
        assert seconds is None
        return
    each = seconds / (work.multiply_adds * 14**2)
    known = [row.seconds_each for row in alike]
    slack = 1 + 64 * math.ulp(1.0)
    assert min(known) / slack**64 <= each <= max(known) * slack**64


@given(ROWS)
def test_what_was_measured_costs_what_was_measured(rows):
    table = CostTable(tuple(rows))
    for row in rows:
        assert table.seconds(("eager", 14), row.work) == row.seconds
        assert table.has_measured(("eager", 14), row.work)


def test_what_is_larger_than_all_that_was_measured_is_said_to_be():
    table = CostTable((Row("eager", 14, Work((3, 3), (4, 4)), 1.0),))
    assert not table.has_measured(("eager", 14), Work((5, 5), (4, 4)))
    assert not table.has_measured(("eager", 14), Work((3, 3), (1, 1), 4))
