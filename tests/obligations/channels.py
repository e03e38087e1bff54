"""Channels, groups and the bias, of sums and of chains."""

from collections.abc import Iterator, Sequence
from itertools import product
from types import ModuleType
from typing import Any

import z3

from tests.obligations.meaning import (
    inside,
)
from tests.obligations.stating import (
    Stated,
    entered_in,
    explored,
    layer,
    refused,
)
from tests.obligations.symbolic import Int, Term, term
from tests.obligations.verdicts import Claim

STATED: Stated = {}
obligation = entered_in(STATED)


def of_two(
    code: ModuleType, pair: tuple[Any, Any], fits: tuple[Term, Term], taken: Sequence[Term],
    given_: Sequence[Term], shifts: Sequence[Term],
) -> Iterator[Claim]:  # fmt: skip
    """Sum and chain of two layers are made exactly if they fit, and are of the whole's channels.

    They may have a bias exactly if one of both may.
    """
    f, g = pair
    runs = (("sum", lambda: f + g, 0), ("chain", lambda: f.then(g), 1))
    for (where, run, last), fit in zip(runs, fits, strict=True):
        for path in explored(code, run, ()):
            if refused(path):
                yield Claim(f"{where} refused", path.conditions, z3.Not(fit))
                continue
            whole = path.result
            same = (term(whole.in_channels) == taken[0],
                    term(whole.out_channels) == given_[last])  # fmt: skip
            bias = z3.Or(*(shift != 0 for shift in shifts)) == (term(whole.shifts) != 0)
            yield Claim(where, path.conditions, z3.And(fit, *same, bias))


@obligation
def channels_and_bias(code: ModuleType) -> Iterator[Claim]:
    """Branches add exactly if they take and give the same channels, on as many axes.

    A layer follows another exactly if it takes the channels that that one gives, on as many axes.
    The result takes and gives what the whole does, and may have a bias exactly if one of both may.
    """
    taken, given_ = z3.Ints("f_in g_in"), z3.Ints("f_out g_out")
    shifts = z3.Ints("f_shifts g_shifts")
    point = code.Axis(1, 1, 0, 0, (0,))
    for axes in product((1, 2), repeat=2):
        f, g = (
            layer(code, *(point,) * count, channels=(Int(out), Int(into)), shifts=Int(shift))
            for count, out, into, shift in zip(axes, given_, taken, shifts, strict=True)
        )
        as_many = axes[0] == axes[1]
        sums = z3.And(taken[0] == taken[1], given_[0] == given_[1], as_many)
        chains = z3.And(given_[0] == taken[1], as_many)
        yield from of_two(code, (f, g), (sums, chains), taken, given_, shifts)


@obligation
def repeated_channels(code: ModuleType) -> Iterator[Claim]:
    """Where each channel is up to four, the whole takes and gives as many times what it did.

    Two of its channels may meet exactly if those that they were made of may, for all groups of 12.
    """
    taken, given_, shifts = z3.Ints("f_in f_out f_shifts")
    point, count = code.Axis(1, 1, 0, 0, (0,)), 12
    for times in range(1, 5):
        f = layer(code, point, channels=(Int(given_), Int(taken)), shifts=Int(shifts))
        for path in explored(code, lambda f=f, times=times: f.repeated(times), ()):
            if refused(path):  # too large to be proved
                continue
            whole = path.result
            same = (
                term(whole.in_channels) == times * taken,
                term(whole.out_channels) == times * given_,
            )
            bias = (term(whole.shifts) != 0) == (shifts != 0)
            yield Claim(f"{times} times", path.conditions, z3.And(*same, bias))
        for number in (n for n in range(1, count + 1) if count % n == 0):
            f = layer(code, point, channels=(count, count), groups=number)
            for path in explored(code, lambda f=f, times=times: f.repeated(times), ()):
                size, wide = count // path.result.groups, times * count // path.result.groups
                met = all(
                    (out // wide == into // wide) == (out // times // size == into // times // size)
                    for out, into in product(range(times * count), repeat=2)
                )
                yield Claim(f"{times} times in {number}", (), z3.BoolVal(met))


@obligation
def groups(code: ModuleType) -> Iterator[Claim]:
    """The groups of a sum or a chain are the most that keep apart only what never meets.

    For all groups of 12 channels. (Two channels meet if the whole takes one to the other.)
    """
    point, count = code.Axis(1, 1, 0, 0, (0,)), 12
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    out, into, middle = z3.Ints("out into middle")
    channels = tuple(inside(channel, z3.IntVal(count)) for channel in (out, into, middle))

    def meet(a: Term, b: Term, number: int) -> Term:
        return a / (count // number) == b / (count // number)

    for one, two in product(divisors, repeat=2):
        f, g = (layer(code, point, channels=(count, count), groups=n) for n in (one, two))
        either = z3.Or(meet(out, into, one), meet(out, into, two))
        through = z3.And(meet(into, middle, one), meet(middle, out, two))
        for where, run, met in (
            ("sum", lambda f=f, g=g: f + g, either),
            ("chain", lambda f=f, g=g: f.then(g), through),
        ):
            for path in explored(code, run, ()):
                number, case = path.result.groups, f"{where} of {one} and {two}"
                divides = z3.BoolVal(count % number == 0)
                given = (*channels, met)
                yield Claim(case, given, z3.And(divides, meet(out, into, number)))
                yield Claim(f"{case}, no more", (), z3.BoolVal(number >= _most(one, two, where)))


def _most(one: int, two: int, where: str) -> int:
    """The most groups of 12 channels into which a sum or a chain falls, by trying all channels."""

    def met(out: int, into: int) -> bool:
        first = 12 // one, 12 // two
        if where == "sum":
            return any(out // size == into // size for size in first)
        a, b = first
        return any(into // a == m // a and m // b == out // b for m in range(12))

    pairs = [pair for pair in product(range(12), repeat=2) if met(*pair)]
    sizes = [n for n in range(1, 13) if 12 % n == 0]
    return max(n for n in sizes if all(a // (12 // n) == b // (12 // n) for a, b in pairs))
