"""A depthwise convolution with its input added to it: FastViT's RepCPE, and RepGhost's module.

Source: arXiv:2303.14189 (apple/ml-fastvit), arXiv:2211.06088 (ChengpengChen/RepGhost).
"""

from torch import Tensor, nn

from sample_models import Sample, built, framed, images


def depthwise(dim: int, size: int, bias: bool = True) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    return nn.Conv2d(dim, dim, size, padding=size // 2, groups=dim, bias=bias)


class RepCPE(nn.Module):
    """FastViT's position encoding. Deploy: ``reparam_conv``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pe = depthwise(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.pe(x) + x


class TimmRepCPE(nn.Module):
    """timm's name for the same layer. Deploy: ``reparam_conv``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pos_enc = depthwise(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.pos_enc(x) + x


class RepGhostModule(nn.Module):
    """Deploy: ``cheap_operation``. With `plain`, the input itself is a branch as well."""

    def __init__(self, dim: int, plain: bool = False) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False), nn.BatchNorm2d(dim), nn.ReLU()
        )
        self.fusion_conv = nn.ModuleList([nn.Identity() for _ in range(1 + plain)])
        norms = [nn.BatchNorm2d(dim), nn.Identity()]
        self.fusion_bn = nn.ModuleList(norms[: 1 + plain])
        self.cheap_operation = nn.Sequential(depthwise(dim, 3, False), nn.BatchNorm2d(dim))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary_conv(x)
        out = self.cheap_operation(x)
        for conv, norm in zip(self.fusion_conv, self.fusion_bn, strict=True):
            out = out + norm(conv(x))
        return self.relu(out)


def _in_frame(make: type[nn.Module], family: str, fused: str, name: str = "") -> Sample:
    build, keys = built(lambda: framed(make(6), 6, 6)), (f"body.{fused}.weight",)
    return Sample(build, images(3), 1, family, keys, assume=(name or family,))


SAMPLES = {
    "repcpe": _in_frame(RepCPE, "repcpe", "reparam_conv"),
    "repcpe_timm": _in_frame(TimmRepCPE, "repcpe", "reparam_conv", "repcpe/timm"),
    "repghost": _in_frame(RepGhostModule, "repghost", "cheap_operation"),
    "repghost_plain": Sample(
        built(lambda: framed(RepGhostModule(6, plain=True), 6, 6)),
        images(3),
        1,
        "repghost",
        ("body.cheap_operation.weight",),
        bare=False,
    ),
}
