"""Faults of published converters, one test each, with the networks on which they show."""

import copy

import torch
from torch import nn

import acfuse
from acfuse.errors import Reason
from acfuse.find import find_in_module
from acfuse.patterns import PATTERNS
from acfuse.patterns.match import find_in_tensors
from acfuse.rewrite import fused_copy
from sample_models import awake, samples
from sample_models.acnet_textnet import ACBlock
from sample_models.behind_the_sum import RepVGGDW as RepViTBlock
from sample_models.behind_the_sum import YoloNasBlock
from sample_models.padded_middle import Conv3XC
from sample_models.repvgg_dialects import DetrBlock, MMPretrainBlock, RepConv, RepVGGDW
from tests.bounds import assert_within, gamma, rounding
from tests.graph.fusing import assert_same, images

SIZE = (11, 14)


def scale_of(norm):
    """By what a BatchNorm multiplies each channel, in float64."""
    variance = norm.running_var.double() + norm.eps
    return norm.weight.detach().double() / variance.sqrt()


def assert_fuses(block, channels, blocks=1):
    """The block in float64, and what acfuse makes of it, are the same on an image."""
    model = awake(block, 0).double()
    found = find_in_module(model, PATTERNS).found
    assert len(found) == blocks
    assert_same(model, fused_copy(model, found), [(2, channels, *SIZE)])
    return found


def refusals(model, **options):
    return find_in_tensors(model.state_dict(), PATTERNS, **options).refused


def test_a_grouped_identity_stands_at_each_channel_of_its_group():
    # A diagonal over [channels, channels / groups] is wrong for every group but the first.
    for groups in (1, 4, 8):
        model = awake(RepConv(8, 8, g=groups), 0)
        assert_fuses(copy.deepcopy(model), 8)
        bare = acfuse.fuse_tensors(model.state_dict(), bn_eps=1e-3)
        identity = model.rbr_identity
        scale = scale_of(identity)
        without = {k: v for k, v in model.state_dict().items() if "identity" not in k}
        arms = acfuse.fuse_tensors(without, bn_eps=1e-3).tensors["rbr_reparam.weight"]
        difference = bare.tensors["rbr_reparam.weight"].double() - arms.double()
        expected = torch.zeros_like(difference)
        for i in range(8):
            expected[i, i % (8 // groups), 1, 1] = scale[i]
        # Both kernels were rounded once, and so was what was taken from the one for the other.
        bound = gamma(2, torch.float32) * (2 * arms.abs().double() + expected.abs())
        assert_within(difference, expected, bound)


def test_squeeze_and_excitation_behind_the_sum_survives():
    found = assert_fuses(MMPretrainBlock(6, 6, se=True), 6)
    model = awake(MMPretrainBlock(6, 6, se=True), 0)
    fused = fused_copy(model, find_in_module(model, PATTERNS).found)
    assert found[0].names == ("branch_reparam",)
    assert "se_layer.fc.weight" in fused.state_dict()
    assert "se_layer.fc.weight" in acfuse.fuse_tensors(model.state_dict()).tensors


def test_a_kernel_of_5_by_1_is_placed_and_not_broadcast():
    assert_fuses(ACBlock(4, 6, 5), 4)
    assert_fuses(ACBlock(4, 4, 5), 4)
    model = awake(ACBlock(4, 6, 5), 0)
    kernel = acfuse.fuse_tensors(model.state_dict()).tensors["fused_conv.weight"]
    scale = scale_of(model.square_bn).reshape(-1, 1, 1)
    corner = model.square_conv.weight[:, :, 0, 0].double() * scale[..., 0]
    assert_within(kernel[:, :, 0, 0], corner, gamma(2, torch.float32) * corner.abs())


def test_a_batch_norm_behind_the_sum_is_taken_up():
    name = "acnet/last_bn"
    model = samples()[name].build()
    fused = acfuse.fuse_tensors(model.state_dict())
    assert not [key for key in fused.tensors if "last_bn" in key]
    assert [block.pattern for block in fused.found] == ["acnet"]


def test_the_bias_of_a_convolution_before_its_batch_norm_counts():
    block = DetrBlock(6, 6)
    for arm in (block.conv1, block.conv2):
        arm.conv.bias = nn.Parameter(torch.randn(6))
    assert_fuses(block, 6)
    biased = RepVGGDW(6)
    biased.conv.conv.bias = nn.Parameter(torch.randn(6))
    model = awake(biased, 0)
    fused = acfuse.fuse_tensors(model.double().state_dict())
    weight, bias = fused.tensors["conv.weight"], fused.tensors["conv.bias"]
    model.act = nn.Identity()
    (image,) = images([(2, 6, *SIZE)])
    given = nn.functional.conv2d(image, weight, bias, padding=3, groups=6)
    assert_within(given, model(image), rounding(model, image))


def test_keys_that_only_look_like_a_branch_s_stay():
    tensors = samples()["acnet/digits"].build().state_dict()
    strangers = {
        "anchor_head.conv.weight": torch.randn(2, 2, 3, 3),
        "cover_conv.weight": torch.randn(2, 2, 3, 1),
        "over_time": torch.randn(3),
        "author_bias": torch.randn(3),
        "recover_conv.bias": torch.randn(3),
        "anchor_grid": torch.randn(1, 2),
    }
    fused = acfuse.fuse_tensors({**tensors, **strangers}).tensors
    for key, tensor in strangers.items():
        assert fused[key] is tensor


def test_a_fused_tensor_that_is_out_of_date_is_computed_anew():
    span = awake(Conv3XC(4, 6), 0)
    before = span.state_dict()
    stale = before["eval_conv.weight"].clone()
    fused = acfuse.fuse_tensors(before)
    assert not torch.allclose(fused.tensors["eval_conv.weight"], stale, atol=1e-2)
    assert set(fused.tensors) == {"eval_conv.weight", "eval_conv.bias"}
    assert_fuses(Conv3XC(4, 6), 4)
    assert_fuses(YoloNasBlock(6, 6), 6)
    converted = DetrBlock(6, 6, stale=True)
    found = assert_fuses(converted, 6)
    assert found[0].names == ("conv",)


def test_layers_that_may_stand_one_after_the_other_are_refused_without_their_code():
    one_after_the_other = DetrBlock(6, 6)  # the keys and shapes are the same
    (refused,) = refusals(one_after_the_other)
    assert refused.code == Reason.ASSUMPTION
    assert "one after the other" in refused.why
    assert "--model" in refused.why


def test_an_identity_that_leaves_no_tensor_is_refused_without_the_code():
    (refused,) = refusals(samples()["behind_the_sum/qarepvgg"].build(), bn_eps=1e-3)
    assert "stride" in refused.why


def test_a_copy_of_span_that_pads_in_the_middle_is_refused_without_its_code():
    model = awake(Conv3XC(4, 6), 0)
    del model.eval_conv
    (refused,) = refusals(model)
    assert "eval_conv" in refused.why


def test_a_tensor_inside_of_a_branch_that_no_pattern_knows_is_refused():
    model = awake(RepConv(6, 6), 0)
    tensors = {**model.state_dict(), "rbr_dense.2.weight": torch.randn(6, 6, 1, 1)}
    findings = find_in_tensors(tensors, PATTERNS, 1e-3)
    assert not findings.found
    assert "rbr_dense.2" in findings.refused[0].why


def test_a_kernel_of_another_size_than_the_pattern_s_is_refused():
    model = RepVGGDW(6)
    model.conv.conv = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    (refused,) = refusals(awake(model, 0))
    assert "kernel" in refused.why


def test_dense_layers_under_the_names_of_depthwise_ones_are_refused():
    # Convolution, BatchNorm, convolution, BatchNorm one after the other may have these names.
    model = RepViTBlock(6)
    model.conv.c, model.conv1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 1)
    (refused,) = refusals(awake(model, 0))
    assert "depthwise" in refused.why


def test_one_convolution_that_costs_more_than_its_branches_is_refused():
    from sample_models.large_kernel import DecomposedKernel

    (refused,) = refusals(awake(DecomposedKernel(4, 31, 5), 0))
    assert refused.code == Reason.COST


def test_a_factor_with_a_shift_is_both():
    from sample_models.behind_the_sum import LinearAddBlock

    model = awake(LinearAddBlock(6, 6), 0).double()
    tensors = {**model.state_dict(), "scale_conv.bias": torch.randn(6, dtype=torch.float64)}
    plain, shifted = (
        acfuse.fuse_tensors(t, bn_eps=1e-5).tensors for t in (model.state_dict(), tensors)
    )
    before, after = plain["fused_conv.bias"], shifted["fused_conv.bias"]
    expected = scale_of(model.bn) * tensors["scale_conv.bias"]
    norm = scale_of(model.bn).abs() * model.bn.running_mean.abs() + model.bn.bias.abs()
    size = before.abs() + after.abs() + expected.abs() + norm  # whatever cancels in a bias
    assert_within(after - before, expected, gamma(16) * size)
