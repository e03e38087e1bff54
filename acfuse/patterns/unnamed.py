"""Published families without a pattern: what is done with them, or why they are no convolution."""

from typing import NamedTuple


class Unnamed(NamedTuple):
    """A family that no names decide, with the reason."""

    family: str
    live: str
    bare: str
    source: str


ALGEBRA = "by algebra, without a label"
ONE_LAYER = "one layer with an input beside it: its keys do not tell the sum"
COMPUTED = "its kernel is computed by the forward from other tensors"
PLAIN = "nothing to fuse: in eval mode it computes its kernel and is one convolution"

UNNAMED = (
    Unnamed("RepCPE", ALGEBRA, ONE_LAYER, "github.com/apple/ml-fastvit"),
    Unnamed(
        "RepGhost",
        ALGEBRA,
        "an identity that is added as it is leaves no tensor",
        "arXiv:2211.06088, github.com/ChengpengChen/RepGhost",
    ),
    Unnamed(
        "GhostNetV3",
        ALGEBRA,
        "one module holds two blocks, whose activations stand between",
        "github.com/huggingface/pytorch-image-models",
    ),
    Unnamed(
        "RepNeXt, large",
        ALGEBRA,
        "the same names are parallel or one after the other",
        "arXiv:2406.16004, github.com/suous/RepNeXt",
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
