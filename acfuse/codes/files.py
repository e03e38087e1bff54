"""Codes of files: what bare tensors do not say, numbers that do not fit, what exporting told."""

from acfuse.codes.geometry import ONE, THREE
from acfuse.codes.record import Code, network
from acfuse.errors import Reason

EVEN = """import acfuse
import torch

state_dict = {
    "ver_conv.weight": torch.rand(4, 4, 2, 1),
    "hor_conv.weight": torch.rand(4, 4, 1, 2),
    "square_conv.weight": torch.rand(4, 4, 2, 2),
}
for name in ("ver_bn", "hor_bn", "square_bn"):
    for part in ("weight", "bias", "running_mean", "running_var"):
        state_dict[f"{name}.{part}"] = torch.rand(4)

for left in acfuse.fuse_tensors(state_dict).refused:
    print(left.code, left.why)
"""

UNTRAINED = """import acfuse
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


model = Net().eval()
for note in acfuse.verify(model, acfuse.fuse(model).model, (1, 4, 8, 8)).notes:
    print(note)
"""

FLAT = """import acfuse
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return torch.cat([self.block(x[i : i + 1]) for i in range(len(x))])


if __name__ == "__main__":
    torch.save(Net().state_dict(), "net.pth")
    try:
        acfuse.convert("net.pth", model=f"{__file__}:Net", input_shape=(1, 4, 8, 8))
    except acfuse.AcfuseError as error:
        print(error)
"""

WIDE = """import acfuse
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.b = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.a(x) + self.b(x)


if __name__ == "__main__":
    model = Net()
    for tensor in model.parameters():
        nn.init.ones_(tensor)
    with torch.no_grad():
        model.a[1].weight[0] = 64  # one channel of the 3x3 branch is much larger than the others
    torch.save(model.state_dict(), "net.pth")
    job = {"model": f"{__file__}:Net", "input_shape": (1, 4, 8, 8), "dry_run": True}
    for caution in acfuse.convert("net.pth", **job).cautions:
        print(caution)
"""

FILES = (
    Code(
        Reason.NOT_CONFIRMED,
        "the block does not compute what its pattern says",
        "The layers bear the names of a known block, but the forward does not add them up. Names "
        "are no evidence: nothing is fused.",
        network(
            "x = torch.relu(self.square_bn(self.square_conv(x)))\n"
            "x = torch.relu(self.ver_bn(self.ver_conv(x)))\n"
            "self.hor_bn(self.hor_conv(x))",
            square_conv=THREE,
            square_bn="nn.BatchNorm2d(4)",
            ver_conv="nn.Conv2d(4, 4, (3, 1), padding=(1, 0))",
            ver_bn="nn.BatchNorm2d(4)",
            hor_conv="nn.Conv2d(4, 4, (1, 3), padding=(0, 1))",
            hor_bn="nn.BatchNorm2d(4)",
        ),
        "ACF219 its forward does not add these layers up",
        "Look at the forward: if the layers should be added, it has a mistake; if not, nothing is "
        "wrong, and other names would avoid this message.",
    ),
    Code(
        Reason.ASSUMPTION,
        "the file does not hold something that decides",
        "A state dict holds tensors, and not what is done with them. A stride, an eps, where an "
        "even kernel is centred, or whether layers stand beside or behind each other, only the "
        "code says.",
        EVEN,
        "ACF220 square_conv has an even kernel (2, 2): only the code says where it is centred",
        "Give --model with the network's code. If you know that the pattern holds, --assume with "
        "its name fuses it, and --bn-eps says the eps.",
    ),
    Code(
        Reason.OVERFLOW,
        "the fused weights do not fit into the stored dtype",
        "Weights are multiplied in float64 and stored as the checkpoint has them. In float16, a "
        "small variance of a BatchNorm can make them larger than the largest number, 65,504. A "
        "division by zero, NaN or Inf in what is computed from the weights alone ends here too.",
        network("self.a(x) / self.g + self.b(x)", a=THREE, b=ONE, g="0.0"),
        "ACF221 it divides by zero",
        "Save the checkpoint in bfloat16 or float32, and convert that.",
    ),
    Code(
        Reason.FRESH_STATISTICS,
        "BatchNorms that were never trained make a weak test",
        "A BatchNorm of mean 0 and variance 1 changes next to nothing, so that a mistake in "
        "folding it would not show. The algebra is therefore checked once more, on a copy with "
        "random statistics. It is a warning, not a refusal.",
        UNTRAINED,
        "BatchNorm statistics are fresh (mean 0, variance 1): a weak test, so the algebra "
        "was also checked on a copy with random ones [ACF230]",
        "Nothing is wrong with the result. If the network should be trained, look at which "
        "checkpoint, and which of its entries (--key), you gave.",
    ),
    Code(
        Reason.FIXED_AXIS,
        "an axis that was asked to be dynamic stays fixed",
        "The exporter found that the forward is another for each size, as a loop over the images "
        "of a batch. The ONNX file would fix an axis that --dynamic asks to be free.",
        FLAT,
        "ACF231: the exporter fixed axis 0 of input, which --dynamic batch asks to be free."
        " Give --dynamic none, or make the model independent of that size.",
        "Give --dynamic none, or write the forward so that it is the same for each size.",
    ),
    Code(
        Reason.WIDE_RANGES,
        "channels of one layer range too widely for one grid of 8 bits",
        "In 8 bits per tensor, all channels of a layer share one grid, as wide as the largest "
        "weight needs it. Where branches of different scales are added, some channels may be much "
        "smaller than that, and are left with few steps. It is said where the median channel of a "
        "fused layer loses 2.5 bits more than it would with a grid of its own: docs/int8.md shows "
        "what that does to accuracy. It is a warning, not a refusal: the float network is equal, "
        "and the exit code is the same.",
        WIDE,
        "one grid of 8 bits for all channels costs more than 2.5 bits in 1 of 1 blocks, most in "
        "fused_conv (it loses 5.0 bits per tensor, 0.0 per channel): even the channels out with "
        "`acfuse equalize`, or quantize per channel [ACF232]",
        "`acfuse equalize` of the fused ONNX file makes channels even by powers of two, which "
        "changes no bit of the float network; or quantize per channel. A network that is not "
        "quantized needs neither.",
    ),
)
