"""Published families without a pattern: what is done with them, or why they are no convolution.

The second table of docs/families.md. `test_unnamed` tries those that can be drawn in a few lines.
"""

from typing import NamedTuple


class Unnamed(NamedTuple):
    """A family that no names decide, with the reason."""

    family: str
    live: str
    bare: str
    source: str


ALGEBRA = "by algebra, without a label"
COSTLY = "refused: a dense 3x3 would cost four times its layers"
COMPUTED = "its kernel is computed by the forward from other tensors"
PLAIN = "nothing to fuse: in eval mode it computes its kernel and is one convolution"

UNNAMED = (
    Unnamed(
        "GhostNetV3",
        ALGEBRA,
        "one module holds two blocks, whose activations stand between",
        "github.com/huggingface/pytorch-image-models",
    ),
    Unnamed(
        "MobileOne of PaddleDetection and of shoutOutYangJie",
        ALGEBRA,
        "one module holds two blocks, depthwise and pointwise, with an activation between",
        "github.com/PaddlePaddle/PaddleDetection, github.com/shoutOutYangJie/MobileOne",
    ),
    Unnamed(
        "RepConvBlock with seven kinds of branches",
        ALGEBRA,
        "one public file with names of its own: a pattern of your own",
        "a public detector",
    ),
    Unnamed(
        "Spike-Driven Transformer's RepConv",
        COSTLY,
        COSTLY,
        "github.com/BICLab/Spike-Driven-Transformer-V2",
    ),
    Unnamed(
        "SESR, ExpandNets, overparam, mnncompress",
        "layers in sequence: by algebra, where one convolution costs no more",
        "ports differ in their names: a pattern of your own",
        "arXiv:2103.09404, arXiv:1811.10495, github.com/minyoungg/overparam",
    ),
    Unnamed(
        "RepSR, RepRFN, RepUNet, RepAn, RepUX-Net",
        ALGEBRA,
        "no public names were at hand: a pattern of your own",
        "super-resolution and segmentation networks",
    ),
    Unnamed(
        "PSConv",
        "nothing to fuse: kernels of mixed dilation on parts of the channels",
        "nothing is added",
        "arXiv:2007.06191",
    ),
    Unnamed(
        "DyRep",
        "only the branches that do not write borders in place",
        "branches differ from layer to layer, and blocks are nested",
        "arXiv:2211.15120, github.com/hunto/image_classification_sota",
    ),
    Unnamed("ECB, EDBB", PLAIN, COMPUTED, "github.com/xindongzhang/ECBSR, github.com/icandle/EFDN"),
    Unnamed(
        "PlainUSR MBConv",
        "refused: it writes borders in place",
        "its factor is computed from a parameter by layers named se",
        "github.com/icandle/PlainUSR",
    ),
    Unnamed("OREPA", PLAIN, COMPUTED, "github.com/JUGGHM/OREPA_CVPR2022"),
    Unnamed("RefConv, DiracNets, DO-Conv", PLAIN, COMPUTED, "arXiv:2310.10563 and others"),
    Unnamed(
        "DSConv in ACNet's main branch",
        "refused: an activation stands inside",
        "an activation leaves no tensor, so another is refused with it",
        "a public YOLOv5 fork",
    ),
    Unnamed(
        "RMNet",
        "refused: no single convolution",
        "channels are widened and an activation is kept linear: the shapes change",
        "arXiv:2111.00687, github.com/fxmeng/RMNet",
    ),
    Unnamed(
        "RepMLP",
        "refused: a matrix over all pixels is no convolution",
        "exact for one height and width alone",
        "arXiv:2112.11081, github.com/DingXiaoH/RepMLP",
    ),
    Unnamed(
        "ResRep",
        "its 1x1 behind each convolution is a fold",
        "channels are removed: the shapes change",
        "github.com/DingXiaoH/ResRep",
    ),
    Unnamed(
        "RIFormer",
        "refused: a GroupNorm depends on its input",
        "no convolution",
        "github.com/open-mmlab/mmpretrain",
    ),
    Unnamed(
        "LeViT, EfficientViT-M, SHViT, TinyViT",
        "pairs of convolution and BatchNorm: folds, with --fold-bn",
        "nothing is added",
        "github.com/huggingface/pytorch-image-models",
    ),
    Unnamed(
        "YOLOv7 ImplicitA, ImplicitM",
        "folds, with --fold-bn",
        "nothing is added",
        "github.com/WongKinYiu/yolov7",
    ),
)
