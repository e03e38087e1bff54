"""`acfuse verify` must fail on every fault planted into a fused file, and say where it is."""

import pytest
import torch

from tests.bounds import assert_within, gamma
from tests.cli.command import refused, run, worked
from tests.cli.project import MODEL, change, snapshot

BLOCK = "second.fused_conv"


def one_weight(tensors):
    tensors[f"{BLOCK}.weight"][3, 1, 2, 0] *= 1.00001


def a_unit_in_the_last_place(tensors):
    weight = tensors[f"{BLOCK}.weight"]
    weight[3, 1, 2, 0] = torch.nextafter(weight[3, 1, 2, 0], torch.tensor(9.0)) + 0
    weight[3, 1, 2, 0] = torch.nextafter(weight[3, 1, 2, 0], torch.tensor(9.0))


def every_weight(tensors):
    tensors[f"{BLOCK}.weight"] *= 1.00001


def no_bias(tensors):
    tensors[f"{BLOCK}.bias"].zero_()


def one_bias(tensors):
    tensors[f"{BLOCK}.bias"][5] += 1e-5


def transposed(tensors):
    weight = tensors[f"{BLOCK}.weight"]
    tensors[f"{BLOCK}.weight"] = weight.transpose(2, 3).contiguous()


def flipped(tensors):
    tensors[f"{BLOCK}.weight"] = tensors[f"{BLOCK}.weight"].flip(2, 3)


def shifted(tensors):
    tensors[f"{BLOCK}.weight"] = tensors[f"{BLOCK}.weight"].roll(1, 3)


def channels_swapped(tensors):
    tensors[f"{BLOCK}.weight"] = tensors[f"{BLOCK}.weight"].flip(0)


def through_float16(tensors):
    tensors[f"{BLOCK}.weight"] = tensors[f"{BLOCK}.weight"].half().float()


def infinite(tensors):
    tensors[f"{BLOCK}.weight"][0, 0, 0, 0] = float("inf")


def _fused(arms, eps):
    """The convolution of a block with these arms, (weight, norm), written out by hand."""
    weight, bias = torch.zeros(6, 2, 3, 3, dtype=torch.float64), torch.zeros(6).double()
    for name, norm in arms:
        tensors = torch.load("model.pth", weights_only=True)
        kernel = tensors[f"second.{name}_conv.weight"].double()
        g, b, m, v = (
            tensors[f"second.{norm}_bn.{key}"].double()
            for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = g / (v + eps).sqrt()
        top, left = (3 - kernel.shape[2]) // 2, (3 - kernel.shape[3]) // 2
        part = weight[:, :, top : top + kernel.shape[2], left : left + kernel.shape[3]]
        part += kernel * scale.reshape(-1, 1, 1, 1)
        bias += b - m * scale
    return {f"{BLOCK}.weight": weight.float(), f"{BLOCK}.bias": bias.float()}


ARMS = [("square", "square"), ("ver", "ver"), ("hor", "hor")]


def another_eps(tensors):
    tensors.update(_fused(ARMS, 1e-3))


def a_missing_arm(tensors):
    tensors.update(_fused(ARMS[:2], 1e-5))


def a_doubled_arm(tensors):
    tensors.update(_fused([*ARMS, ARMS[1]], 1e-5))


def swapped_norms(tensors):
    tensors.update(_fused([("square", "square"), ("ver", "hor"), ("hor", "ver")], 1e-5))


FAULTS = {
    one_weight: "1 altered weight",
    a_unit_in_the_last_place: "1 altered weight",
    every_weight: "",
    no_bias: "the bias was dropped",
    one_bias: "1 altered weight",
    transposed: "the kernel is transposed",
    flipped: "the kernel is flipped",
    shifted: "the kernel is moved by one tap",
    channels_swapped: "",
    through_float16: "float16",
    infinite: "1 altered weight",
    another_eps: "eps 0.001",
    a_missing_arm: "the arm of hor_conv is missing",
    a_doubled_arm: "the arm of ver_conv is added twice",
    swapped_norms: "ver_bn and hor_bn are swapped",
}


def caught(result, looks_like=""):
    """Asserts that a proof failed and named the second block, and its cause where it is known."""
    assert result.exit_code == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: not equal: second: ")
    assert looks_like in line
    assert "FAILED" in result.stdout


def test_written_out_by_hand_the_right_convolution_passes(fused):
    change(fused / "model.fused.pth", lambda t: t.update(_fused(ARMS, 1e-5)))
    worked(run("verify", "model.pth", "model.fused.pth", *MODEL))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(fused, fault):
    change(fused / "model.fused.pth", fault)
    before = snapshot(fused)
    caught(run("verify"), FAULTS[fault])
    caught(run("verify", "model.pth", "model.fused.pth", *MODEL), FAULTS[fault])
    caught(run("verify", "model.pth", "model.fused.pth"))  # without the code as well
    assert snapshot(fused) == before


def test_a_generous_tolerance_does_not_let_a_fault_through(fused):
    change(fused / "model.fused.pth", one_weight)
    caught(run("verify", "--atol", "1e3", "--rtol", "1"))


def test_a_fault_in_both_blocks_names_the_worst(fused):
    change(
        fused / "model.fused.pth", lambda t: (no_bias(t), t["first.fused_conv.bias"].mul_(1.001))
    )
    result = run("verify")
    assert result.exit_code == 1
    assert "error: not equal: second: " in result.stderr
    assert "(the worst of 2 such blocks)" in result.stderr


def test_not_a_number_is_caught_in_its_block(fused):
    change(fused / "model.fused.pth", lambda t: t[f"{BLOCK}.weight"][0, 0, 0].fill_(torch.nan))
    caught(run("verify"))


def test_not_a_number_is_caught_without_the_code(fused):
    change(fused / "model.fused.pth", lambda t: t[f"{BLOCK}.bias"].fill_(torch.nan))
    assert run("verify", "model.pth", "model.fused.pth").exit_code in (1, 3)


def test_a_change_outside_the_blocks_is_caught(fused):
    change(fused / "model.fused.pth", lambda t: t["head.weight"].mul_(1.5))
    result = run("verify", "model.pth", "model.fused.pth", *MODEL)
    assert result.exit_code == 1


@pytest.mark.parametrize("code", [MODEL, ()], ids=["with code", "without"])
def test_the_smallest_change_outside_the_blocks_is_caught_and_named(fused, code):
    change(fused / "model.fused.pth", lambda t: t["head.weight"][0, 0].mul_(1.0000005))
    result = run("verify", "model.pth", "model.fused.pth", *code)
    assert result.exit_code == 1
    assert "head.weight" in result.stderr


@pytest.mark.parametrize(
    ("change_keys", "words"),
    [
        (lambda t: t.pop(f"{BLOCK}.bias"), ["lacks", f"{BLOCK}.bias"]),
        (lambda t: t.update(more=torch.ones(2)), ["has more"]),
        (lambda t: t.update({f"{BLOCK}.bias": torch.ones(5)}), [f"{BLOCK}.bias", "(5,)", "(6,)"]),
        (lambda t: t.clear() or {"weights": torch.ones(1)}, ["model.fused.pth"]),
    ],
    ids=["missing", "unknown", "shape", "other"],
)
def test_a_file_of_other_keys_is_no_fused_form(fused, change_keys, words):
    change(fused / "model.fused.pth", change_keys)
    refused(run("verify"), 3, *words)
    refused(run("verify", "model.pth", "model.fused.pth"), 3, *words)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int32])
def test_a_file_of_another_dtype_is_refused(fused, dtype):
    change(
        fused / "model.fused.pth",
        lambda t: t.update({f"{BLOCK}.weight": t[f"{BLOCK}.weight"].to(dtype)}),
    )
    result = run("verify", "model.pth", "model.fused.pth", *MODEL)
    assert result.exit_code in (1, 3)
    assert BLOCK in result.stderr


def test_a_file_of_another_dtype_is_refused_without_the_code(fused):
    change(fused / "model.fused.pth", lambda t: {k: v.double() for k, v in t.items()})
    assert run("verify", "model.pth", "model.fused.pth").exit_code in (1, 3)


def test_a_tolerance_is_obeyed_to_the_letter_and_says_what_would_pass(fused):
    result = run("verify", "--atol", "1e-9", "--rtol", "0")
    assert result.exit_code == 1
    assert "would pass" in result.stderr
    needed = result.stderr.split("; atol ")[1].split(" would pass")[0]
    worked(run("verify", "--atol", needed, "--rtol", "0"))


def test_the_atol_that_would_pass_is_that_of_the_onnx_file_as_well(project):
    worked(run("convert", "model.pth", *MODEL))
    result = run("verify", "--atol", "1e-12", "--rtol", "0")
    assert result.exit_code == 1
    needed = result.stderr.split("; atol ")[1].split(" would pass")[0]
    worked(run("verify", "--atol", needed, "--rtol", "0"))


def test_the_eps_that_was_given_is_the_one_that_is_proved(project):
    worked(run("convert", "model.pth", "--no-onnx", "--bn-eps", "0.001"))
    change(project / "model.fused.pth", lambda t: assert_near(t, _fused(ARMS, 1e-3)))
    worked(run("verify", "model.pth", "model.fused.pth", "--bn-eps", "0.001"))
    other = run("verify", "model.pth", "model.fused.pth", "--bn-eps", "1e-5")
    assert other.exit_code == 1
    assert "(the worst of 2 such blocks)" in other.stderr


def assert_near(tensors, expected):
    """Both are rounded once from float64, where they differ by rounding."""
    for key, tensor in expected.items():
        assert_within(tensors[key], tensor, gamma(2, torch.float32) * tensor.abs().double())


def test_another_original_is_noticed(fused):
    change(fused / "model.pth", lambda t: t["second.hor_bn.bias"].add_(1))
    assert run("verify").exit_code == 1
