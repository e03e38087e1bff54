"""Planning says what multiplying does: the geometry alone knows what exists, and why not."""

from hypothesis import given
from hypothesis import strategies as st

from tests.algebra.outcome import attempt, exists
from tests.algebra.strategies import chains, loose_branches


@given(loose_branches())
def test_geometry_knows_which_sums_exist(branches):
    a, b = branches
    planned = attempt(lambda: a.geometry + b.geometry)
    made = attempt(lambda: a.linear() + b.linear())
    assert_planned_is_made(planned, made)


@given(chains(length=2))
def test_geometry_knows_which_chains_exist(layers):
    f, g = layers
    planned = attempt(lambda: f.geometry.then(g.geometry))
    made = attempt(lambda: f.linear().then(g.linear()))
    assert_planned_is_made(planned, made)


@given(chains(length=2), st.booleans())
def test_geometry_knows_what_a_shift_forbids(layers, shifts):
    f, g = layers
    planned = attempt(lambda: f.geometry.affine(shifts).then(g.geometry))
    made = attempt(lambda: f.linear().affine(2.0, 1.0 if shifts else 0.0).then(g.linear()))
    assert_planned_is_made(planned, made)


def assert_planned_is_made(planned, made):
    """Both are the same geometry, or the same refusal; and the numbers are as planned."""
    assert exists(planned) == exists(made)
    if not exists(planned):
        assert (planned.code, planned.why) == (made.code, made.why)
        return
    assert planned == made.geometry
    assert planned.shifts or not made.bias.any()
    for place, axis in enumerate(planned.axes, start=2):
        per_tap = made.kernel.movedim(place, 0).flatten(1).abs().amax(dim=1)
        assert set(per_tap.nonzero().flatten().tolist()) <= set(axis.live)
