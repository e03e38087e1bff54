"""One test for each mistake that was made once, named by its story."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import acfuse
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.rewrite import fused_copy
from sample_models import awake, samples
from tests.bounds import assert_within, rounding
from tests.graph.asserting import Asserts
from tests.graph.fusing import (
    SHAPES,
    Net,
    assert_rounded_once,
    assert_same,
    assert_unchanged,
    conv,
    find,
    fused_and_checked,
    images,
    norm,
    refused,
    run_convolutions,
    state_of,
)
from tests.proof.proving import certified
from tests.waiting import processor_seconds


class Two(nn.Module):
    """Two arms and their sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3), conv(1)

    def forward(self, x):
        return self.a(x) + self.b(x)


def still_equal(model, shapes=SHAPES):
    """Whatever is fused: the same, and the image that came in is overwritten alike."""
    model = awake(copy.deepcopy(model).double(), 0)
    findings = find(model)
    assert_same(model, fused_copy(model, findings.found), shapes)
    return findings


# What is overwritten in place.


class OverwritesItsInput(Two):
    def forward(self, x):
        x += 1.0
        return super().forward(x)


def test_a_module_that_overwrites_its_input_still_does():
    still_equal(OverwritesItsInput())


def test_who_reads_an_image_after_a_module_overwrote_it_sees_what_was_written():
    still_equal(Net(lambda m, x: m.i(x) + m.c(x), i=OverwritesItsInput(), c=conv(1)))


def _overwritten_by_a_child(m, x):
    x = torch.relu(x)
    y = m.a(x)
    m.child(x)
    return y + m.b(x)


def test_arms_that_see_an_image_before_and_after_a_child_overwrote_it_do_not_merge():
    child = Net(lambda m, x: x.add_(1.0))
    still_equal(Net(_overwritten_by_a_child, a=conv(3), b=conv(1), child=child))


def _written_under_another_name(passing):
    def run(m, x):
        x = torch.relu(x)
        y = passing(m, x)
        y += 1.0
        return m.a(x) + m.b(y)

    return run


PASSING = {
    "contiguous": lambda m, x: x.contiguous(),
    "identity": lambda m, x: m.same(x),
    "dropout": lambda m, x: m.drop(x),
    "functional_dropout": lambda m, x: F.dropout(x, 0.5, m.training),
    "to": lambda m, x: x.to(x.dtype),
    "child": lambda m, x: m.child(x),
    "view": lambda m, x: x.view(x.shape),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_is_written_under_another_name_of_a_value_is_written(name):
    parts = {"same": nn.Identity(), "drop": nn.Dropout(), "child": Net(lambda m, x: x)}
    still_equal(Net(_written_under_another_name(PASSING[name]), a=conv(3), b=conv(1), **parts))


def _source_overwritten_before_the_sum(m, x):
    x = m.n(x)
    y = m.c(x)
    x.relu_()
    return x + y + y


def test_a_new_convolution_reads_its_source_before_it_is_overwritten():
    still_equal(Net(_source_overwritten_before_the_sum, n=norm(), c=conv(3)))


def _added_to_what_has_two_names(m, x):
    y = m.a(x) + m.b(x)
    saved = y
    y += 1.0
    return torch.relu(y) * saved


def _scaled_what_has_two_names(m, x):
    y = saved = m.a(x)
    y *= 2.0
    return y + m.b(x) + saved


def _subtracted_from_an_input_with_two_names(m, x):
    y = x = torch.relu(x)
    y -= 1.0
    return m.a(x) + m.b(y)


@pytest.mark.parametrize(
    "run",
    [
        _added_to_what_has_two_names,
        _scaled_what_has_two_names,
        _subtracted_from_an_input_with_two_names,
    ],
)
def test_an_augmented_assignment_changes_the_value_under_all_its_names(run):
    still_equal(Net(run, a=conv(3), b=conv(1)))


# Forwards that do something else when they are read than when they run.


class AsksForItsType(Two):
    def forward(self, x):
        y = super().forward(x)
        if isinstance(y, torch.Tensor):
            y = torch.relu(y)
        return y


class AsksTorchForItsType(Two):
    def forward(self, x):
        y = super().forward(x)
        return torch.relu(y) if torch.is_tensor(y) else y


class Tries(Two):
    def forward(self, x):
        try:
            if x.shape[2] > 0:
                x = x * 2
        except Exception:
            return super().forward(x)
        return torch.relu(super().forward(x))


@pytest.mark.parametrize("block", [AsksForItsType, AsksTorchForItsType])
def test_a_forward_that_asks_for_types_is_read_as_it_runs(block):
    still_equal(block())
    still_equal(Net(lambda m, x: m.i(x), i=block()))


def test_a_forward_that_catches_errors_is_read_as_it_runs():
    still_equal(Tries())


class Gained(Two):
    def forward(self, x, gain=1.0, mask=None):
        y = torch.relu(super().forward(x)) * gain
        return y if mask is None else y * mask


@pytest.mark.parametrize("how", ["gain", "mask"])
def test_an_argument_other_than_the_default_is_obeyed_or_refused(how):
    model = awake(Gained().double(), 0)
    fused = fused_copy(model, find(model).found)
    (image,) = images(SHAPES[:1])
    given = {"gain": 2.0} if how == "gain" else {"mask": torch.full_like(image, 0.5)}
    expected = model(image, **given)
    try:
        result = fused(image, **given)
    except (TypeError, ValueError, AssertionError, RuntimeError):
        return
    assert_within(result, expected, rounding(lambda x: model(x, **given), image))


class Counts(Two):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class CountsInABuffer(Two):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Remembers(Two):
    def forward(self, x):
        self.last = super().forward(x)
        return torch.relu(self.last)


@pytest.mark.parametrize("block", [Counts, CountsInABuffer, Remembers])
def test_reading_a_forward_leaves_no_mark_on_the_model(block):
    model = awake(block().double(), 0)
    before, attributes = state_of(model), dict(vars(model))
    find_in_module(model, PATTERNS)
    assert_unchanged(model, before)
    assert vars(model) == attributes


class DoublesItsWeight(nn.Conv2d):
    """A convolution whose forward is torch's, and whose arithmetic is not."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 2 * weight, bias)


def test_a_convolution_with_arithmetic_of_its_own_is_no_convolution_of_torch():
    still_equal(
        Net(lambda m, x: m.a(x) + m.b(x), a=DoublesItsWeight(4, 4, 3, padding=1), b=conv(1))
    )


# What a pattern says about a forward that cannot be read.


class Named(nn.Module):
    """ACNet's official names."""

    def __init__(self):
        super().__init__()
        self.square_conv, self.square_bn = conv(3), norm()
        self.ver_conv, self.ver_bn = conv((3, 1)), norm()
        self.hor_conv, self.hor_bn = conv((1, 3)), norm()

    def arms(self, x):
        vertical, horizontal = self.ver_bn(self.ver_conv(x)), self.hor_bn(self.hor_conv(x))
        return self.square_bn(self.square_conv(x)) + vertical + horizontal


class ReluForOneImage(Named):
    def forward(self, x):
        return torch.relu(self.arms(x)) if x.shape[0] == 1 else self.arms(x)


class ReluForLargeImages(Named):
    def forward(self, x):
        return torch.relu(self.arms(x)) if x.shape[-1] > 100 else self.arms(x)


class ClampsLargeNumbers(Named):
    def forward(self, x):
        return self.arms(x.clamp(-50, 50) if x.max() > 50 else x)


@pytest.mark.parametrize("block", [ReluForOneImage, ReluForLargeImages, ClampsLargeNumbers])
def test_a_block_that_does_something_else_for_other_images_is_refused(block):
    refused(block(), Reason.UNTRACEABLE)


# Layers of a block that something outside of it reads.


def _reads_a_weight(m, x):
    return torch.relu(m.i(x)) + torch.relu(F.conv2d(x, m.i.b.weight))


def _calls_a_layer(m, x):
    return torch.relu(m.i(x)) * torch.sigmoid(m.i.b(x))


def _decides_by_data(m, x):
    y = torch.relu(m.i(x))
    return y if y.sum() > 1e9 else torch.sigmoid(m.i.b(x)) * y


@pytest.mark.parametrize("run", [_reads_a_weight, _calls_a_layer, _decides_by_data])
def test_a_layer_of_a_block_that_the_forward_around_it_uses_stays(run):
    assert len(still_equal(Net(run, i=Two())).blocks) == 1


def test_a_factor_of_a_block_that_the_forward_around_it_reads_stays():
    inner = Net(lambda m, x: m.a(x) + m.g * m.b(x), a=conv(3), b=conv(1), g=nn.Parameter(
        torch.randn(4, 1, 1)))  # fmt: skip
    outer = Net(lambda m, x: torch.relu(m.i(x)) * m.i.g, i=inner)
    assert len(still_equal(outer).blocks) == 1


def test_a_layer_that_two_blocks_share_is_in_neither_when_both_are_fused():
    first, second = Two(), Two()
    second.b = first.b
    model = awake(Net(lambda m, x: torch.relu(m.i(torch.relu(m.j(x)))), i=first, j=second), 0)
    fused = fused_copy(model, find(model).found)
    assert [n for n, m in fused.named_modules() if isinstance(m, nn.Conv2d)] == [
        "i.fused_conv", "j.fused_conv"]  # fmt: skip


def test_a_weight_that_the_same_forward_reads_again_stays():
    still_equal(
        Net(lambda m, x: torch.relu(m.a(x) + m.b(x)) * m.b.weight.mean(), a=conv(3), b=conv(1))
    )


# Things that never ended, fell over, or cost more than before.


def test_a_transposed_convolution_that_is_told_its_size_ends():
    net = Net(
        lambda m, x: m.a(x, output_size=x.shape[2:]) + m.b(x),
        a=nn.ConvTranspose2d(4, 4, 3, padding=1),
        b=conv(1),
    )
    with processor_seconds(60):
        still_equal(net)


def test_a_fused_model_can_be_looked_through_again():
    model = awake(Two(), 0)
    fused = fused_copy(model, find(model).found)
    assert find_in_module(fused, PATTERNS).found == ()
    assert acfuse.fuse(fused).found == ()


def test_a_parameter_of_one_number_is_a_factor():
    gain = nn.Parameter(torch.tensor([0.7]))
    fused_and_checked(Net(lambda m, x: m.g * m.a(x) + m.b(x), a=conv(3), b=conv(1), g=gain))


def test_a_sum_that_begins_with_zero_makes_no_convolution_of_its_first_summand():
    net = Net(lambda m, x: sum([torch.relu(x), m.a(x), m.b(x)]), a=conv(3), b=conv(1))
    fused_and_checked(net, convolutions=1)


def _norm_twice(m, x):
    y = m.n(x)
    return y + m.b(m.a(torch.relu(x))) + y


def test_no_block_has_more_convolutions_than_before():
    net = awake(Net(_norm_twice, a=conv(3), b=conv(3), n=norm()), 0)
    fused = fused_copy(net, find(net).found)
    (image,) = images(SHAPES[:1], torch.float32)
    assert run_convolutions(fused, image) <= run_convolutions(net, image)


def _two_ways_back(m, x):
    y = m.n(x)
    z = m.o(y)
    return z + m.c(y) + z


def test_the_certificate_of_a_block_has_the_sources_of_its_kernels():
    model = awake(Net(_two_ways_back, n=norm(), o=norm(), c=conv(3)).double(), 0)
    findings = find(model)
    fused = fused_copy(model, findings.found)
    assert_same(model, fused)
    for block in findings.found:
        assert certified(fused, block).fault == ""


def test_the_certificate_of_a_block_shows_its_layers_images_that_they_can_take():
    def run(m, x):
        return m.a(F.pad(x, (2, 2, 2, 2), mode="reflect")[:, :, 2:-2, 2:-2]) + m.b(x)

    fused_and_checked(Net(run, a=conv(1), b=conv(1)))


def test_a_reversed_subtraction_is_a_sum():
    fused_and_checked(Net(lambda m, x: torch.rsub(m.a(x), m.b(x), alpha=2), a=conv(3), b=conv(1)))


def test_biases_of_several_sources_are_certified():
    net = Net(lambda m, x: m.a(torch.relu(x)) + m.b(x) + m.c(x), a=conv(3), b=conv(3), c=conv(1))
    fused_and_checked(net, convolutions=2)


def test_a_computed_weight_of_a_float32_model_is_exact():
    assert_rounded_once(Net(lambda m, x: m.a(x) + torch.sigmoid(m.g) * m.b(x), a=conv(3),
                            b=conv(1), g=nn.Parameter(torch.randn(4, 1, 1))))  # fmt: skip


# Forwards that should be read.


class RaisesForOtherSizes(Two):
    def forward(self, x):
        if x.dim() != 4:
            raise ValueError("images in batches")
        return super().forward(x)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("block", [Asserts, RaisesForOtherSizes])
def test_an_assertion_about_sizes_does_not_hide_a_block(block):
    fused_and_checked(block())


@pytest.mark.parametrize("block", [Asserts, RaisesForOtherSizes])
def test_what_a_forward_refused_is_still_refused_after_fusing(block):
    model = awake(block(), 0)
    fused = fused_copy(model, find(model).found)
    wrong = torch.randn(1, 4, 2, 2) if block is Asserts else torch.randn(4, 8, 9)
    for net in (model, fused):
        with pytest.raises((AssertionError, ValueError)):
            net(wrong)


class CallsAFunctionOfItsOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)


def _asks_for_many_types(m, x):
    is_so = isinstance(x.shape, tuple) and isinstance(x.shape[1], int)
    is_so = is_so and isinstance(m.a.weight, nn.Parameter) and isinstance(x.dtype, torch.dtype)
    is_not = isinstance(x, nn.Parameter) or hasattr(x, "kernel_size")
    return m.a(x) + m.b(x) if is_so and not is_not else torch.relu(x)


def test_what_a_forward_asks_for_types_is_answered():
    fused_and_checked(Net(_asks_for_many_types, a=conv(3), b=conv(1)))


def test_a_compiled_function_that_asks_for_tensors_gets_some():
    """It would read the memory of a tensor that is none, while a forward is read."""
    fused_and_checked(
        Net(lambda m, x: CallsAFunctionOfItsOwn.apply(m.a(x) + m.b(x)), a=conv(3), b=conv(1))
    )


def _looks_up_its_dtype(m, x):
    arms = m.a(x) + m.b(x)
    return {torch.float64: torch.relu}.get(x.dtype, torch.sigmoid)(arms)


def _swallows_a_number(m, x):
    try:
        list(range(x.shape[2]))
    except Exception:
        return m.a(x) + m.b(x)
    return torch.relu(m.a(x) + m.b(x))


@pytest.mark.parametrize("run", [_looks_up_its_dtype, _swallows_a_number])
def test_a_number_that_is_not_known_makes_a_forward_unreadable(run):
    refused(Net(run, a=conv(3), b=conv(1)), Reason.UNTRACEABLE)


def test_a_tensor_that_a_forward_makes_itself_stays():
    still_equal(
        Net(lambda m, x: torch.relu(m.a(x) + m.b(x)) * torch.tensor(0.5), a=conv(3), b=conv(1))
    )


def _the_same_both_ways(m, x):
    if x.shape[0] == 1:
        m.last = "single"
    return m.a(x) + m.b(x)


def test_a_question_that_changes_nothing_hides_no_block():
    fused_and_checked(Net(_the_same_both_ways, a=conv(3), b=conv(1)))


def test_a_norm_of_the_user_s_own_is_read():
    fused_and_checked(Net(lambda m, x: m.n(m.a(x)) + m.b(x), a=conv(3), b=conv(1), n=OwnNorm(4)))


def test_a_crop_with_an_ellipsis_is_a_crop():
    fused_and_checked(Net(lambda m, x: m.a(x) + m.b(x[..., 1:-1, 1:-1]), a=conv(3, 0), b=conv(1)))


def test_an_arm_whose_shape_is_asked_for_stays_with_the_reason():
    def run(m, x):
        y = m.a(x)
        return (y + m.b(x)).reshape(y.shape)

    refused(Net(run, a=conv(3), b=conv(1)), Reason.SHARED)


# Why not? There is always an answer, and the right one.


def _needed_beside(m, x):
    y = m.a(x)
    return torch.relu(y + m.b(x)) * torch.sigmoid(y)


WHY = {
    "shared": (_needed_beside, Reason.SHARED),
    "norm_before": (lambda m, x: m.a(m.n(x)) + m.b(x), Reason.PADDED_MIDDLE),
    "stacked": (lambda m, x: torch.stack([m.a(x), m.b(x)]).sum(0), None),
}


@pytest.mark.parametrize(("run", "code"), WHY.values(), ids=list(WHY))
def test_arms_that_are_left_have_a_reason(run, code):
    whys = refused(Net(run, a=conv(3), b=conv(1), n=norm()), *([code] if code else []))
    assert whys


def test_a_step_that_is_not_understood_is_named():
    (why,) = refused(Net(lambda m, x: m.a(x) + m.b(x[:, :, ::2].repeat(1, 1, 2, 1)[:, :, :12]),
                         a=conv(3), b=conv(1)), shapes=((1, 4, 12, 9),))  # fmt: skip
    assert "different inputs" not in why


def test_a_kernel_drawn_in_the_forward_is_said_to_be_random():
    def run(m, x):
        return F.conv2d(x, torch.randn(4, 4, 3, 3, dtype=x.dtype), padding=1) + m.b(x)

    refused(Net(run, b=conv(1)), Reason.RANDOM)


def test_a_block_that_is_called_in_several_ways_is_not_said_to_have_hooks():
    class PerChannel(Two):
        def forward(self, x, scale=1.0):
            return super().forward(x) * scale

    model = awake(Net(lambda m, x: m.i(m.i(x, scale=2.0)), i=PerChannel()), 0)
    assert [r.code for r in find(model).refused] != [Reason.HOOKS]


# Proofs.


def test_a_fused_model_with_other_sizes_fails_the_proof():
    model = samples()["acnet/groups_stride21"].build()
    fused = fused_copy(model, find(model).found)
    fused.fused_conv.padding = (0, 0)
    proofs = acfuse.verify(model, fused, (1, 8, 13, 16))
    assert not proofs.passed


def test_an_activation_in_place_behind_what_only_passes_hides_no_block():
    def run(m, x):
        return m.act(m.drop(m.a(x) + m.b(x)))

    layers = {"a": conv(3), "b": conv(1), "drop": nn.Identity(), "act": nn.ReLU(inplace=True)}
    assert len(still_equal(Net(run, **layers)).blocks) == 1


@pytest.mark.parametrize("operation", [torch.add, torch.sub])
def test_the_factor_of_an_addition_belongs_to_its_second_summand(operation):
    def run(m, x):
        return operation(m.a(x), m.shift, alpha=2) + operation(m.shift, m.b(x), alpha=3)

    shift = nn.Parameter(torch.randn(1, 4, 1, 1))
    still_equal(Net(run, a=conv(3), b=conv(1), shift=shift))


def _one_channel_for_all(m, x):
    return m.mix(m.a(x) + torch.sigmoid(m.one(x)))


def _one_channel_for_all_is_scaled(m, x):
    return m.n(m.a(x) + m.b(x) + torch.sigmoid(m.one(x)))


def _one_channel_times_many(m, x):
    return m.mix(m.a(x) + m.g * torch.sigmoid(m.one(x)))


@pytest.mark.parametrize(
    "run", [_one_channel_for_all, _one_channel_for_all_is_scaled, _one_channel_times_many]
)
def test_a_channel_that_is_added_to_all_is_no_image_of_many(run):
    parts = {"a": conv(3), "b": conv(1), "mix": conv(1), "n": norm(), "one": nn.Conv2d(4, 1, 1)}
    model = awake(Net(run, g=nn.Parameter(torch.randn(4, 1, 1)), **parts).double(), 0)
    for folds in (False, True):
        findings = find_in_module(model, PATTERNS, folds=folds)
        assert_same(model, fused_copy(model, findings.found))


def _arms_of_a_residual_sum(m, x):
    y = x + m.q(torch.relu(m.p(x)))
    return torch.relu(m.a(y) + m.b(y) + y)


def test_arms_that_read_a_residual_sum_become_one():
    parts = {name: nn.Conv2d(4, 4, 1) for name in "pq"}
    depthwise = {n: nn.Conv2d(4, 4, k, 1, k // 2, groups=4) for n, k in (("a", 3), ("b", 1))}
    fused_and_checked(Net(_arms_of_a_residual_sum, **parts, **depthwise), convolutions=3)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("size", "padding"), [(1, 3), (1, 9), (3, 5)])
def test_pads_that_are_larger_than_the_window_are_certified(size, padding, stride):
    """The certificate asked for images of a negative size: a crash of `convert`."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 4, size, stride, padding)
            self.two = nn.Conv2d(3, 4, size + 2, stride, padding + 1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return torch.relu(self.one(x) + self.bn(self.two(x)))

    model = Net().eval()
    awake(model, 0)
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    proofs = acfuse.verify(model, fused.model, (1, 3, 9, 8))
    assert proofs.passed, proofs.fault


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_one_setting_for_all_axes_may_be_in_a_tuple(name):
    """Torch takes (1,) for every axis; the record of the layer had one axis then: a crash."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Conv2d(3, 4, 3, **{"padding": 1, name: (1,)})
            self.two = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.relu(self.one(x) + self.two(x))

    model = Net().eval()
    fused = acfuse.fuse(model)
    assert len(fused.found) == 1
    assert acfuse.verify(model, fused.model, (1, 3, 9, 8)).passed


def test_a_layer_that_works_on_a_parameter_reads_no_image():
    """Nothing that it reads was a value of the graph: a crash."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.place = nn.Parameter(torch.randn(1, 3, 9, 8))
            self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return torch.relu(self.one(x) + self.two(x) + self.one(self.place))

    model = Net().eval()
    fused = acfuse.fuse(model)
    image = torch.randn(2, 3, 9, 8)
    bound = rounding(model, image, dtype=torch.float32)
    assert_within(fused.model(image), model(image), bound)
    proofs = acfuse.verify(model, fused.model, (1, 3, 9, 8))
    assert proofs.passed, proofs.fault


@pytest.mark.parametrize("name", ["b\nc", "b\rc", "b\x00c", 'b"c', "b\\", "b c", "b'c"])
def test_a_layer_whose_name_cannot_be_written_as_code_is_refused(name):
    """torch.fx writes the name of a layer into code: that was no code then, and a crash."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self._modules["a"] = nn.Conv2d(3, 4, 3, padding=1)
            self._modules[name] = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return sum(layer(x) for layer in self.children())

    fused = acfuse.fuse(Net().eval())
    if name in ("b c", "b'c"):
        assert len(fused.found) == 1
        return
    assert not fused.found
    assert any("cannot be written as code" in refused.why for refused in fused.refused)
