"""The verifier must fail on every planted fault, name it, and never fail on what is right."""

import copy
import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import acfuse
from acfuse.algebra import lower
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.proof import Inputs, Proofs, Tolerance
from acfuse.proof.certificate import ULP_LIMIT
from acfuse.proof.original import Original
from acfuse.proof.outputs import Check, Difference, judge
from acfuse.proof.whole import has_fresh_statistics, randomize_batchnorm
from acfuse.rewrite import fused_copy
from sample_models import awake as awakened
from sample_models import samples
from tests.bounds import assert_within, gamma, largest, rounding
from tests.graph.fusing import Net, conv, norm, run_convolutions
from tests.proof.proving import certified, diagnosed, proved

SAMPLES = samples()
MODELS = ("acnet/digits", "acnet/groups_stride21")
SHAPES = {"acnet/digits": (1, 1, 13, 16), "acnet/groups_stride21": (2, 8, 13, 16)}


@cache
def _case(name):
    original = SAMPLES[name].build()
    found = find_in_module(original, PATTERNS).found
    return original, fused_copy(original, found), found


def _block(name):
    """The block in which faults are planted, and its path."""
    original, _, found = _case(name)
    block = found[-1]
    return original.get_submodule(block.where), block


def _fuse(model):
    return fused_copy(model, find_in_module(model, PATTERNS).found)


def _with_mistake(mistake):
    """The fused form of a model into whose last block a mistake was made."""

    def plant(name):
        original, _, found = _case(name)
        wrong = copy.deepcopy(original)
        mistake(wrong.get_submodule(found[-1].where))
        return _fuse(wrong)

    return plant


def _with_fused(change):
    """The right fused model, its last fused convolution then changed."""

    def plant(name):
        _, fused, found = _case(name)
        wrong = copy.deepcopy(fused)
        layer = wrong.get_submodule(found[-1].names[0])
        with torch.no_grad():
            change(layer)
        return wrong

    return plant


def _scaled_weight(factor, where):
    def change(layer):
        flat = layer.weight.view(-1)
        flat[where(flat)] *= factor

    return _with_fused(change)


def _largest(flat: Tensor) -> int:
    return int(flat.abs().argmax())


def _smallest(flat: Tensor) -> int:
    return int(torch.where(flat == 0, math.inf, flat.abs()).argmin())


def _last(flat: Tensor) -> int:
    return int(flat.nonzero()[-1])


def _steps(count, tensor):
    """The largest number, so many units of the last place further from the exact one."""

    def plant(name):
        _, fused, found = _case(name)
        wrong = copy.deepcopy(fused)
        flat = getattr(wrong.get_submodule(found[-1].names[0]), tensor).data.view(-1)
        exact = getattr(lower(found[-1].terms[0].value, torch.float64), tensor).view(-1)
        place = _largest(flat)
        away = torch.tensor(math.inf if flat[place].double() >= exact[place] else -math.inf)
        for _ in range(count):
            flat[place] = torch.nextafter(flat[place], away)
        return wrong

    return plant


def _no_bias(layer):
    layer.bias.zero_()


def _swapped_norms(block):
    block.ver_bn, block.hor_bn = block.hor_bn, block.ver_bn


def _swapped_arms(block):
    # The vertical kernel under the horizontal name, and the other way round.
    tall, wide = block.ver_conv.weight.data, block.hor_conv.weight.data
    block.ver_conv.weight.data = wide.transpose(2, 3).contiguous()
    block.hor_conv.weight.data = tall.transpose(2, 3).contiguous()


def _turned_arm(block):
    tall = block.ver_conv
    wide = nn.Conv2d(
        tall.in_channels,
        tall.out_channels,
        (1, 3),
        tall.stride,
        (0, 1),
        groups=tall.groups,
        bias=False,
    )
    wide.weight.data = tall.weight.data.transpose(2, 3).contiguous()
    block.ver_conv = wide.eval()


def _turned_kernel(layer):
    layer.weight.data = layer.weight.data.transpose(2, 3).contiguous()


def _flipped_kernel(layer):
    layer.weight.data = layer.weight.data.flip(2, 3).contiguous()


def _set_eps(eps):
    def mistake(block):
        for name in ("square_bn", "ver_bn", "hor_bn"):
            getattr(block, name).eps = eps

    return mistake


def _without_arm(arm):
    def mistake(block):
        norm = getattr(block, f"{arm}_bn")
        for tensor in (getattr(block, f"{arm}_conv").weight, norm.bias, norm.running_mean):
            tensor.data.zero_()

    return mistake


def _without_mean(block):
    block.hor_bn.running_mean.data.zero_()


def _as_if_training(block):
    # What is folded with the weights' own scale alone, as if mean were 0 and variance 1.
    for name in ("square_bn", "ver_bn", "hor_bn"):
        norm = getattr(block, name)
        norm.running_mean.data.zero_()
        norm.running_var.data.fill_(1.0)


def _through(dtype):
    def change(layer):
        layer.weight.copy_(layer.weight.to(dtype).float())
        layer.bias.copy_(layer.bias.to(dtype).float())

    return change


def _folded_in_float32(name):
    """The textbook fold: factors, products and sums in float32, each of them rounded."""
    block, found = _block(name)
    wrong = copy.deepcopy(_case(name)[1])
    layer = wrong.get_submodule(found.names[0])
    weight, bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    size = torch.zeros_like(layer.weight, dtype=torch.float64)
    for arm, pads in (("square", (0, 0, 0, 0)), ("ver", (1, 1, 0, 0)), ("hor", (0, 0, 1, 1))):
        kernel, norm = getattr(block, f"{arm}_conv").weight, getattr(block, f"{arm}_bn")
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        scaled = F.pad(kernel * scale[:, None, None, None], pads)
        weight, size = weight + scaled, size + scaled.abs()
        bias = bias + (norm.bias - norm.running_mean * scale)
    # Right but for rounding: of the variance, its root, the quotient, the product, and two sums.
    assert_within(weight, layer.weight, gamma(6 + 1, torch.float32) * size)
    layer.weight.data, layer.bias.data = weight.detach(), bias.detach()
    return wrong


def _reflect(layer):
    layer.padding_mode = "reflect"
    layer._reversed_padding_repeated_twice = [1, 1, 1, 1]


def _no_padding(layer):
    layer.padding = (0, 0)


def _other_stride(layer):
    layer.stride = (layer.stride[0], layer.stride[1] + 1)


def _other_groups(layer):
    # The same numbers, read as if the groups were another way round.
    layer.weight.data = layer.weight.data.roll(layer.weight.shape[0] // 2, 0)


# Each fault: how it is planted, and a word that the diagnosis has to say ("" where any will do).
FAULTS = {
    "weight_1e-5": (_scaled_weight(1 + 1e-5, _largest), "altered"),
    "weight_1e-5_last": (_scaled_weight(1 + 1e-5, _last), "altered"),
    "weight_1e-6": (_scaled_weight(1 + 1e-6, _largest), "altered"),
    "weight_1e-6_smallest": (_scaled_weight(1 + 1e-6, _smallest), "altered"),
    "weight_2_ulp": (_steps(2, "weight"), "altered"),
    "weight_1_ulp": (_steps(1, "weight"), "altered"),
    "bias_2_ulp": (_steps(2, "bias"), "altered"),
    "weight_zeroed": (_scaled_weight(0.0, _largest), "altered"),
    "bias_dropped": (_with_fused(_no_bias), "bias"),
    "norms_swapped": (_with_mistake(_swapped_norms), "swapped"),
    "arms_swapped": (_with_mistake(_swapped_arms), "swapped"),
    "eps_1e-3": (_with_mistake(_set_eps(1e-3)), "eps 0.001"),
    "eps_0": (_with_mistake(_set_eps(0.0)), "eps 0"),
    "transposed_3x1": (_with_mistake(_turned_arm), "transposed"),
    "transposed": (_with_fused(_turned_kernel), "transposed"),
    "flipped": (_with_fused(_flipped_kernel), "flipped"),
    "missing_square": (_with_mistake(_without_arm("square")), "missing"),
    "missing_ver": (_with_mistake(_without_arm("ver")), "missing"),
    "missing_hor": (_with_mistake(_without_arm("hor")), "missing"),
    "missing_mean": (_with_mistake(_without_mean), "missing"),
    "statistics_ignored": (_with_mistake(_as_if_training), ""),
    "float16": (_with_fused(_through(torch.float16)), "float16"),
    "bfloat16": (_with_fused(_through(torch.bfloat16)), "bfloat16"),
    "float32_folding": (_folded_in_float32, ""),
    "reflect": (_with_fused(_reflect), ""),
    "no_padding": (_with_fused(_no_padding), ""),
    "other_stride": (_with_fused(_other_stride), ""),
    "other_order": (_with_fused(_other_groups), ""),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_certificate_of_its_block_alone(fault, name):
    original, _, found = _case(name)
    wrong = FAULTS[fault][0](name)
    certificates = [certified(wrong, block) for block in found]
    assert [c.passed for c in certificates] == [True] * (len(found) - 1) + [False]
    bad = certificates[-1]
    assert bad.fault
    proofs = proved(original, wrong, found, None, Tolerance())
    assert not proofs.passed
    assert proofs.fault == f"{found[-1].label}: {bad.fault}"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fault", [fault for fault, (_, word) in FAULTS.items() if word])
def test_the_diagnosis_names_a_planted_fault(fault, name):
    plant, word = FAULTS[fault]
    original, _, found = _case(name)
    assert word in diagnosed(original, plant(name), found[-1])


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_diagnosed_where_nothing_is_wrong(name):
    original, fused, found = _case(name)
    for block in found:
        assert diagnosed(original, fused, block) == ""


@pytest.mark.parametrize("fault", ["weight_1e-5", "eps_1e-3", "bias_dropped", "other_stride"])
def test_the_call_of_the_package_fails_too(fault):
    original, _, found = _case("acnet/digits")
    wrong = FAULTS[fault][0]("acnet/digits")
    assert not acfuse.verify(original, wrong).passed
    if fault != "other_stride":
        proofs = acfuse.verify(original, wrong, SHAPES["acnet/digits"])
        assert not proofs.passed
        assert proofs.fault.startswith(found[-1].where)


@pytest.mark.parametrize("seed", range(12))
def test_no_false_alarm_for_any_weights(seed):
    torch.manual_seed(seed)
    for name in MODELS:
        model = _case(name)[0]
        other = copy.deepcopy(model)
        for parameter in other.parameters():
            parameter.data.normal_(0.0, 10.0 ** (seed % 5 - 2))
        other = awakened(other, seed)
        found = find_in_module(other, PATTERNS).found
        fused = fused_copy(other, found)
        for block in found:
            certificate = certified(fused, block)
            assert certificate.passed, certificate.fault
            assert certificate.ulp <= ULP_LIMIT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_in_another_dtype_is_certified_in_it(dtype):
    original = copy.deepcopy(_case("acnet/digits")[0]).to(dtype)
    found = find_in_module(original, PATTERNS).found
    fused = fused_copy(original, found)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    for block in found:
        assert certified(fused, block).fault == ""
    layer = fused.get_submodule(found[0].names[0])
    place = _largest(layer.weight.view(-1))
    # Nothing is rounded in float64: there the noise of its own sums counts as none.
    steps = 512 if dtype == torch.float64 else 4
    layer.weight.data.view(-1)[place] *= 1 + steps * torch.finfo(dtype).eps
    assert not certified(fused, found[0]).passed


def test_arms_that_cancel_are_no_false_alarm():
    model = awakened(Net(lambda m, x: m.a(x) - m.a(x) + m.b(x), a=conv(3), b=conv(1)), 0)
    found = find_in_module(model, PATTERNS).found
    assert len(found) == 1
    fused = fused_copy(model, found)
    assert certified(fused, found[0]).fault == ""


def test_subnormal_weights_are_no_false_alarm():
    model = awakened(Net(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(1)), 0)
    model.a.weight.data.mul_(1e-40)
    model.b.weight.data.mul_(1e-44)
    found = find_in_module(model, PATTERNS).found
    assert certified(fused_copy(model, found), found[0]).fault == ""


def test_a_tensor_outside_of_every_block_is_watched_by_the_whole_model():
    original, fused, found = _case("acnet/digits")
    wrong = copy.deepcopy(fused)
    replaced = tuple(f"{name}." for block in found for name in block.names)
    key = next(k for k, _ in wrong.named_parameters() if not k.startswith(replaced))
    wrong.get_parameter(key).data.view(-1)[0] *= 1.01
    assert all(certified(wrong, block).passed for block in found)
    proofs = acfuse.verify(original, wrong, SHAPES["acnet/digits"])
    assert [check.name for check in proofs.checks if not check.passed][:3] == [
        "untouched",
        "program",
        "weights",
    ]


def test_the_right_model_passes_every_check():
    original, fused, found = _case("acnet/digits")
    proofs = acfuse.verify(original, fused, SHAPES["acnet/digits"])
    assert proofs.passed
    assert proofs.fault == ""
    assert len(proofs.certificates) == len(found) == 5
    as_written, checks = proofs.checks[:2], proofs.checks[2:]
    assert [check.name for check in as_written] == ["untouched", "program"]
    assert [check.name for check in checks] == ["algebra", "weights", "rounding"]
    exact, single = (_relative_rounding(original, d) for d in (torch.float64, torch.float32))
    assert checks[0].error <= exact
    assert checks[1].error <= single
    assert 0 < checks[2].error <= single
    assert 0 < checks[2].own <= single
    assert proofs.notes == ()


def _relative_rounding(model, dtype):
    """Relative to the largest output, the most of all the images that a model is verified with."""
    shape = SHAPES["acnet/digits"]
    original = Original(model, Inputs(((None, shape),)))
    given = [*original.given, *original.of_other_sizes, *original.of_other_batches, *original.far]
    (name,) = given[0]
    exact = copy.deepcopy(model).double()
    return max(
        rounding(model, x[name], dtype=dtype)[0] / largest(exact(x[name]).detach()) for x in given
    )


def test_a_certificate_holds_without_any_input():
    original, fused, found = _case("acnet/digits")
    proofs = acfuse.verify(original, fused)
    assert proofs.passed
    assert len(proofs.certificates) == len(found)
    assert [check.name for check in proofs.checks] == ["untouched", "program"]


def test_verifying_changes_neither_model():
    original, fused, _ = _case("acnet/digits")
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (original, fused)]
    acfuse.verify(original, fused, SHAPES["acnet/digits"])
    for model, state in zip((original, fused), before, strict=True):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_a_model_whose_runs_differ_is_reported():
    model = awakened(
        Net(
            lambda m, x: torch.relu(m.i(x)) + 0.01 * torch.rand_like(x),
            i=Net(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(1)),
        ),
        0,
    )
    fused = _fuse(model)
    assert run_convolutions(fused, torch.zeros(1, 4, 5, 6)) == 1
    proofs = acfuse.verify(model, fused, (1, 4, 9, 8))
    assert not proofs.passed
    assert "two runs" in proofs.fault


def test_a_model_that_counts_its_calls_is_reported():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.i = Net(lambda m, x: m.a(x) + m.b(x), a=conv(3), b=conv(1))
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return torch.relu(self.i(x)) * self.calls

    model = awakened(Counting(), 0)
    proofs = acfuse.verify(model, _fuse(model), (1, 4, 9, 8))
    assert "two runs" in proofs.fault


def test_fresh_statistics_are_noted_and_waked_on_a_copy():
    arms = Net(lambda m, x: m.n(m.a(x)) + m.o(m.b(x)), a=conv(3), b=conv(1), n=norm(), o=norm())
    arms.eval()
    assert has_fresh_statistics(arms)
    assert not has_fresh_statistics(randomize_batchnorm(arms))
    assert not has_fresh_statistics(_case("acnet/digits")[0])
    proofs = acfuse.verify(arms, _fuse(arms), (1, 4, 9, 8))
    assert proofs.passed
    assert any("fresh" in note for note in proofs.notes)
    assert "algebra, random statistics" in [check.name for check in proofs.checks]


def test_a_mistake_that_fresh_statistics_hide_is_found():
    fresh = SAMPLES["acnet/k3"].build()
    for layer in fresh.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.reset_running_stats()
    wrong = copy.deepcopy(fresh)
    for layer in wrong.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-4
    assert not acfuse.verify(fresh, _fuse(wrong), (1, 3, 13, 16)).passed


def test_a_block_that_ran_fused_all_along_is_compared_with_its_arms():
    # In eval mode the forward uses a stored fused kernel, whatever the arms say.
    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(3), conv(1)

        def forward(self, x):
            weight = self.a.weight + F.pad(self.b.weight, (1, 1, 1, 1))
            return F.conv2d(x, weight, self.a.bias + self.b.bias, padding=1) + self.b(x)

    model = awakened(Lazy(), 0)
    fused = _fuse(model)
    assert run_convolutions(fused, torch.zeros(1, 4, 5, 6)) == 1
    assert acfuse.verify(model, fused, (1, 4, 9, 8)).passed


ENDS = {
    "sigmoid": torch.sigmoid,
    "softmax of each pixel": lambda y: torch.softmax(y, 1),
    "zeros": lambda y: torch.relu(y - 1e9),
    "small numbers": lambda y: torch.relu(y - y.amax()) + 1e-3 * torch.tanh(1e-3 * y),
}


def _ending(end, seed):
    """A block and a layer behind it, with weights of a seed, and an end that squashes."""
    torch.manual_seed(seed)
    arms = Net(lambda m, x: m.n(m.a(x)) + m.o(m.b(x)), a=conv(3), b=conv(1), n=norm(), o=norm())
    head = conv(3, channels=(4, 5))
    return awakened(Net(lambda m, x: end(m.h(torch.relu(m.i(x)))), i=arms, h=head), seed)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("end", ENDS)
def test_no_false_alarm_where_a_network_ends_in_what_squashes(end, seed):
    model = _ending(ENDS[end], seed)
    proofs = acfuse.verify(model, _fuse(model), (1, 4, 9, 8))
    assert proofs.passed, proofs.fault


@pytest.mark.parametrize("end", ["sigmoid", "softmax of each pixel"])
def test_a_weight_that_is_wrong_outside_of_every_block_is_seen_behind_what_squashes(end):
    model = _ending(ENDS[end], 0)
    wrong = _fuse(model)
    wrong.h.weight.data.view(-1)[_largest(wrong.h.weight)] *= 1.01
    proofs = acfuse.verify(model, wrong, (1, 4, 9, 8))
    assert [check.name for check in proofs.checks if not check.passed][:3] == [
        "untouched",
        "program",
        "weights",
    ]


# The tolerance of the user, obeyed to the letter.


def _judged(given, true, atol=None, rtol=None, dtype=torch.float32) -> Check:
    tolerance = Tolerance(atol, rtol)
    difference = Difference(tolerance=tolerance)
    difference.add([true], [given])
    return judge("rounding", difference, tolerance, dtype)


@pytest.mark.parametrize(
    ("atol", "rtol"), [(1e-4, None), (None, 1e-4), (1e-4, 1e-3), (0.0, 1e-3), (1e-3, 0.0)]
)
def test_a_tolerance_is_that_of_torch_allclose(atol, rtol):
    generator = torch.Generator().manual_seed(0)
    absolute = 0.0 if atol is None else atol
    relative = (1e-5 if atol is not None else 0.0) if rtol is None else rtol
    outcomes = set()
    for _ in range(200):
        true = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        noise = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
        size = 10 ** (-1 - 5 * torch.rand((), generator=generator, dtype=torch.float64))
        given = true + noise * size * (absolute + relative * true.abs()).sqrt()
        expected = torch.allclose(given, true, atol=absolute, rtol=relative)
        assert _judged(given, true, atol, rtol).passed == expected
        outcomes.add(expected)
    assert outcomes == {True, False}


def test_the_rule_is_not_symmetric_the_original_counts():
    small, large = torch.tensor([1.0]), torch.tensor([1.1])
    assert _judged(small, large, 0.0, 0.095).passed  # 0.1 <= 0.095 * 1.1
    assert not _judged(large, small, 0.0, 0.095).passed


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_must_be_so_in_both(special):
    true = torch.tensor([1.0, special])
    assert _judged(true.clone(), true, 1e-4).passed
    assert _judged(true.clone(), true).passed
    assert not _judged(torch.tensor([1.0, 2.0]), true, 1e-4).passed
    assert not _judged(torch.tensor([1.0, 2.0]), true).passed
    assert not _judged(true.clone(), torch.tensor([1.0, 2.0]), 1e-4).passed
    assert not _judged(true.clone(), torch.tensor([1.0, 2.0])).passed


def test_one_bad_element_among_a_million_is_enough():
    true = torch.ones(1000, 1000)
    given = true.clone()
    given[617, 3] += 2e-4
    check = _judged(given, true, 1e-4, 0.0)
    assert not check.passed
    assert "[617, 3]" in check.detail


def test_the_message_names_the_atol_that_would_pass():
    true = torch.tensor([0.0, 100.0, -1.0])
    given = torch.tensor([3e-4, 100.0 + 5e-4, -1.0])
    check = _judged(given, true, 1e-5)
    assert not check.passed
    atol = check.needed[""]
    assert atol == pytest.approx(3e-4, rel=0.05)
    assert _judged(given, true, atol * 1.02).passed
    assert not _judged(given, true, atol * 0.9).passed


def test_the_atol_that_the_message_names_passes():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        true = torch.randn(50, generator=generator)
        given = true + 1e-4 * torch.randn(50, generator=generator)
        check = _judged(given, true, 1e-7)
        named = float(Proofs(checks=(check,)).fault.partition("; atol ")[2].split()[0])
        assert _judged(given, true, named).passed, check.detail


def test_without_a_tolerance_the_largest_output_is_the_scale():
    for scale in (1e-6, 1.0, 1e6):
        true = scale * torch.tensor([1.0, 1e-3, -0.5])
        assert _judged(true + 5e-6 * scale, true).passed
        warned = _judged(true + 5e-5 * scale, true)
        assert warned.passed
        assert warned.warning
        assert not _judged(true + 5e-4 * scale, true).passed


def test_a_tolerance_that_no_model_could_meet_is_said_to_be_one():
    original, fused, found = _case("acnet/digits")
    inputs = Inputs(((None, SHAPES["acnet/digits"]),))
    proofs = proved(original, fused, found, inputs, Tolerance(0.0, 0.0))
    assert not proofs.passed
    assert "no fused model could pass" in proofs.fault
    assert "would pass" in proofs.fault


def test_a_user_s_tolerance_decides_in_both_directions():
    original, fused, found = _case("acnet/digits")
    inputs = Inputs(((None, SHAPES["acnet/digits"]),))
    worst = proved(original, fused, found, inputs, Tolerance(1.0, 0.0)).checks[-1].absolute
    assert worst > 0
    for atol, passes in ((worst, True), (worst * 0.999, False)):
        proofs = proved(original, fused, found, inputs, Tolerance(atol, 0.0))
        assert proofs.passed == passes


class Optional(nn.Module):
    """A forward all of whose arguments have defaults."""

    def __init__(self):
        super().__init__()
        self.body = _case("acnet/groups_stride21")[0]

    def forward(self, pixel_values=None, labels=None, return_dict=None, **rest):
        if pixel_values is None:
            raise ValueError("pixel_values is missing")
        return {"logits": self.body(pixel_values)}


def test_shapes_are_those_of_optional_arguments_where_no_others_are_left():
    model = Optional().eval()
    fused = acfuse.fuse(model).model
    shape = SHAPES["acnet/groups_stride21"]
    proofs = acfuse.verify(model, fused, shape)
    assert proofs.passed, proofs.fault
    assert proofs.checks[-1].compared > 0
    fused.body.register_forward_hook(lambda *given: None)
    assert not acfuse.verify(model, fused, shape).passed
    with pytest.raises(acfuse.AcfuseError, match="inputs are pixel_values, labels, return_dict"):
        acfuse.verify(model, fused, shape, (1,), (1,), (1,))
