"""Give a trained AcNet channels of uneven range: python uneven.py model.pth UNEVEN.pth.

Each channel between two blocks is times a power of two, from 2^-6 to 2^6, and divided by it where
it is read. ReLU(s x) = s ReLU(x), and a power of two changes no digit of a number, so that the
network gives the same bits as before: what is compared here. So a network becomes whose training
left its channels uneven, and whose float accuracy does not show it.
"""

import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
LARGEST = 6  # the exponents are drawn from -6 to 6
IMAGE = (4, 1, 8, 8)


@torch.no_grad()
def scale(model: nn.Module, seed: int) -> None:
    """Scale the channels of an AcNet in place, by powers of two drawn with a seed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [stage.acb for stage in model.features]
    for block, reader in zip(blocks, [*blocks[1:], model.classifier], strict=True):
        channels = block.square_bn.num_features
        exponents = torch.randint(-LARGEST, LARGEST + 1, (channels,), generator=generator)
        factors = torch.exp2(exponents.float())
        for norm in (block.square_bn, block.ver_bn, block.hor_bn):
            norm.weight *= factors
            norm.bias *= factors
        if isinstance(reader, nn.Linear):
            reader.weight /= factors
            continue
        for conv in (reader.square_conv, reader.ver_conv, reader.hor_conv):
            conv.weight /= columns(factors, conv)


def columns(factors: Tensor, conv: nn.Conv2d) -> Tensor:
    """The factors of the channels that each row of a convolution reads, [out, in of a group]."""
    groups = factors.reshape(conv.groups, -1)
    return groups.repeat_interleave(conv.out_channels // conv.groups, 0)[:, :, None, None]


def main() -> int:
    """Scale, compare, and save under the same keys."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    source, target = sys.argv[1:]
    model = runpy.run_path(str(HERE / "digits.py"))["AcNet"]()
    checkpoint = torch.load(source, weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    image = torch.rand(IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.eval()(image)
        scale(model, seed=0)
        if not torch.equal(before, model(image)):
            print("the scaled network does not give the same bits", file=sys.stderr)
            return 1
    torch.save({**checkpoint, "state_dict": model.state_dict()}, target)
    print(f"channels times 2^-{LARGEST} to 2^{LARGEST}, the same bits -> {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
