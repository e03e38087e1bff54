"""What a report says is what was found and proved."""

from dataclasses import replace

from acfuse.reports.html import cells_of
from acfuse.reports.record import ONLY_A_RUN, Report, report_of
from acfuse.reports.render import report_of_run
from tests.reports.runs import bare, conversion, report


def altered(name: str, value: object) -> Report:
    return report_of({**report().data, name: value})


def test_the_verdict_counts_what_was_proved():
    blocks, checks = len(conversion().findings.found), len(conversion().proofs.checks)
    assert report().verdict == (
        f"Equal: {blocks} of {blocks} blocks are proved for all inputs, "
        f"{checks} of {checks} comparisons of the whole agree."
    )


def test_a_fault_is_the_verdict():
    data = {"passed": False, "fault": "features.0: wrong"}
    failed = report_of({**report().data, **data})
    assert not failed.passed
    assert failed.verdict == "Not equal: features.0: wrong"


def test_the_word_of_a_user_is_not_called_a_proof():
    found = [{**row, "assumed": row["where"].endswith("0.acb")} for row in report().data["found"]]
    assert "4 of 5 blocks are proved for all inputs, 1 hold by the word" in (
        altered("found", found).verdict
    )


def test_nothing_is_called_equal_where_nothing_was_fused():
    assert altered("found", []).verdict.startswith("Nothing was fused")


def test_totals_are_the_sizes_and_the_speed_up_their_ratio():
    before, after = conversion().sizes
    totals = {total.name: (total.before, total.after) for total in report().totals}
    assert totals["convolutions"] == (before.convolutions, after.convolutions) == (15, 5)
    assert totals["parameters"] == (before.parameters, after.parameters)
    assert report().speed_up == before.multiply_adds / after.multiply_adds


def test_without_an_input_the_speed_up_is_not_known():
    assert report_of_run(bare()).speed_up is None


def test_equal_blocks_are_one_group():
    assert [len(group) for group in report().groups] == [5]
    rows = (replace(report().rows[0], fault="wrong"), *report().rows[1:])
    assert [len(group) for group in replace(report(), rows=rows).groups] == [1, 4]


def test_a_manifest_alone_says_what_only_a_run_knows():
    assert ONLY_A_RUN in report_of(report().data).notes
    assert ONLY_A_RUN not in report().notes


def test_the_strip_is_in_the_order_of_the_network():
    order = {"stem": 0, "features.2.acb": 1, "head": 99}
    pictures = replace(report().pictures, kept=("head", "stem"), order=order)
    data = {**report().data, "refused": [{"where": "gate", "pattern": None, "code": "ACF209",
                                          "why": "it is not linear"}]}  # fmt: skip
    cells = [(kind, name) for kind, name, _ in cells_of(report_of(data, pictures))]
    assert cells[:3] == [("kept", "stem"), ("fused", "features.2.acb"), ("kept", "head")]
    assert cells[-1] == ("refused", "gate")
    assert len(cells) == 5 + 1 + 2
