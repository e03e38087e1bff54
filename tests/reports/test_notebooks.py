"""What Python shows of a result, in a line and in a notebook; and what it logs."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

import acfuse
from acfuse.errors import NotEqual
from acfuse.proof import Certificate, Proofs
from tests.reports.runs import Page, bare, conversion


def test_a_result_is_one_short_line():
    fused, proofs = conversion().fused, conversion().proofs
    assert repr(fused) == "<LiveFused: <Findings: 5 blocks, 0 folds, 0 refused>>"
    assert repr(bare().fused).startswith("<BareFused: <Findings: 5 blocks")
    assert repr(proofs) == f"<Proofs: equal, 5 certificates, {len(proofs.checks)} checks>"
    wrong = replace(proofs.certificates[0], fault="a weight is wrong")
    assert repr(Proofs((wrong,))) == "<Proofs: NOT EQUAL, 1 certificates, 0 checks>"


def test_a_notebook_shows_tables():
    shown = Page(conversion().proofs._repr_html_())
    assert "Equal" in shown.words
    assert "features.4.acb" in shown.words
    assert len(shown.all("table")) == 2
    for result in (conversion().fused, conversion().findings):
        shown = Page(result._repr_html_())
        assert "features.4.acb.fused_conv" in shown.words
        assert "3 to 1" in shown.words


def test_names_are_text_in_a_notebook_too():
    name = "<script>alert('x')</script>"
    proofs = Proofs((Certificate(name, 0.0, 0.0, 1, fault=name),))
    block = replace(conversion().findings.found[0], where=name)
    findings = replace(conversion().findings, found=(block,))
    for shown in (proofs, findings):
        page = Page(shown._repr_html_())
        assert not page.all("script")
        assert name in page.words


def test_a_fault_can_be_raised():
    conversion().proofs.raise_for_fault()
    proofs = Proofs((Certificate("a.b", 1.0, 0.0, 9, fault="2 of 9 weights are wrong"),))
    with pytest.raises(NotEqual, match=r"a\.b: 2 of 9 weights are wrong"):
        proofs.raise_for_fault()


def test_a_fault_of_a_users_own_model_is_raised(two_arms):
    fused = acfuse.fuse(two_arms).model
    acfuse.verify(two_arms, fused, (1, 2, 6, 6)).raise_for_fault()
    with torch.no_grad():
        next(fused.parameters())[0] += 1
    with pytest.raises(NotEqual, match="wrong"):
        acfuse.verify(two_arms, fused, (1, 2, 6, 6)).raise_for_fault()


def test_progress_is_told_to_the_logger(two_arms, caplog):
    fused = acfuse.fuse(two_arms).model
    with caplog.at_level(logging.INFO, logger="acfuse"):
        acfuse.verify(two_arms, fused, (1, 2, 6, 6))
    assert any("certificate of" in record.message for record in caplog.records)
    assert {record.name for record in caplog.records} == {"acfuse"}


def test_without_a_listener_nothing_is_said(two_arms, capfd):
    acfuse.verify(two_arms, acfuse.fuse(two_arms).model, (1, 2, 6, 6))
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger("acfuse").handlers)


class TwoArms(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.fixture
def two_arms():
    return TwoArms().eval()
