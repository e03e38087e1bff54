"""The authors' deploy forms: one convolution under its published name, and what stays around it.

Their constructors give it the size, stride, padding and groups of the main branch; so does this.
"""

import copy
from typing import NamedTuple

from torch import Tensor, nn


class Form(NamedTuple):
    """A deploy form: the convolution's name, the branch whose settings it has, what stays."""

    fused: str
    main: str
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    live: bool = True
    """False where a model with its code is fused further than its authors' form."""


FORMS = {
    "acnet/k3": Form("fused_conv", "square_conv"),
    "acnet/k5_p1_stride2": Form("fused_conv", "square_conv"),
    "acnet/groups_stride21": Form("fused_conv", "square_conv"),
    "acnet_textnet/fast_block_k5": Form("fused_conv", "square_conv", ("nonlinearity",)),
    "acnet_textnet/fast": Form("fused_conv", "main_conv", ("nonlinearity",)),
    "acnet_textnet/fast_tall": Form("fused_conv", "main_conv", ("nonlinearity",)),
    "acnet_textnet/doctr_wide": Form("fused_conv", "conv", ("activation",)),
    "acnet_wild/branch": Form("fused_branch", "square_branch.conv"),
    "acnet_wild/brb": Form("brb_rep", "brb_3x3.conv", ("activation",)),
    "acnet_wild/shadow": Form("fused_conv", "square_conv"),
    "repvgg/identity": Form("rbr_reparam", "rbr_dense.conv", ("nonlinearity",)),
    "repvgg/se_stride2": Form("rbr_reparam", "rbr_dense.conv", ("se", "nonlinearity")),
    "repvgg_dialects/half_fused": Form("rbr_reparam", "rbr_dense.conv", ("nonlinearity",)),
    "repvgg_dialects/mmpretrain_se": Form("branch_reparam", "branch_3x3.conv", ("se_layer", "act")),
    "repvgg_dialects/yolov7_groups": Form("rbr_reparam", "rbr_dense.0", ("act",)),
    "repvgg_dialects/timm": Form("reparam_conv", "conv_kxk.conv", ("attn", "act")),
    "repvgg_dialects/detr": Form("conv", "conv1.conv", ("act",)),
    "repvgg_dialects/yolov9_stride2": Form("conv", "conv1.conv", ("act",)),
    "repvgg_dialects/ultralytics": Form("conv", "conv1.conv", ("act",)),
    "repvgg_dialects/ppyoloe": Form("conv", "conv1.conv", ("act",)),
    "repvgg_dialects/conv2": Form("conv", "conv", ("act",)),
    "repvgg_dialects/yolov10": Form("conv", "conv.conv", ("act",)),
    "behind_the_sum/qarepvgg": Form("rbr_reparam", "rbr_dense.conv", ("nonlinearity",)),
    "behind_the_sum/yolo_nas": Form("rbr_reparam", "branch_3x3.conv", ("nonlinearity",)),
    "mobileone/apple_stride2": Form("reparam_conv", "rbr_conv.0.conv", ("se", "activation")),
    "mobileone/timm": Form("reparam_conv", "conv_kxk.0.conv", ("attn", "act")),
    "mobileone/mmpretrain": Form("branch_reparam", "branch_conv_list.0.conv", ("act",)),
    "mobileone/repmixer": Form("reparam_conv", "mixer.rbr_conv.0.conv"),
    "mobileone/repmixer_timm": Form("reparam_conv", "mixer.conv_kxk.0.conv"),
    "mobileone/pplcnet": Form("reparam_conv", "conv_kxk.0.conv", ("lab", "act"), live=False),
    "mobileone/pplcnet_v2": Form("dw_conv", "dw_conv_list.0.conv", ("dw_act", "pw_conv")),
    "added_input/repcpe": Form("reparam_conv", "pe"),
    "added_input/repcpe_timm": Form("reparam_conv", "pos_enc"),
    "added_input/repghost": Form(
        "cheap_operation", "cheap_operation.0", ("relu",), ("primary_conv",)
    ),
    "large_kernel/replknet": Form("lkb_reparam", "lkb_origin.conv"),
    "large_kernel/fastvit_timm": Form("reparam_conv", "large_conv.conv", ("se", "act")),
    "large_kernel/unireplknet_k9": Form("lk_origin", "lk_origin"),
    "padded_middle/dbb_wider": Form("dbb_reparam", "dbb_origin.conv", ("nonlinear",)),
    "padded_middle/dbb_old": Form("dbb_reparam", "dbb_origin.conv", ("nonlinear",)),
    "padded_middle/span": Form("eval_conv", "eval_conv"),
}  # fmt: skip


class Deployed(nn.Module):
    """A block in its deploy form, with new weights in its convolution."""

    def __init__(self, block: nn.Module, form: Form) -> None:
        super().__init__()
        main = block.get_submodule(form.main)
        assert isinstance(main, nn.Conv2d)
        self.form = form
        conv = nn.Conv2d(
            main.in_channels,
            main.out_channels,
            main.kernel_size,
            main.stride,
            main.padding,
            main.dilation,
            main.groups,
        )
        for name in (*form.before, *form.after):
            self.add_module(name, copy.deepcopy(block.get_submodule(name)))
        self.add_module(form.fused, conv)

    def forward(self, x: Tensor) -> Tensor:
        for name in (*self.form.before, self.form.fused, *self.form.after):
            x = self.get_submodule(name)(x)
        return x


def deployed(model: nn.Module, path: str, form: Form) -> nn.Module:
    """The same network with the block at a path in its deploy form."""
    block = model.get_submodule(path)
    form_of_block = Deployed(block, form)
    if not path:
        return form_of_block.eval()
    network = copy.deepcopy(model)
    network.set_submodule(path, form_of_block)
    return network.eval()
