"""Codes of layers that do not fit together: windows, sizes, channels, borders, cost."""

from acfuse.codes.record import Code, network
from acfuse.errors import Reason

THREE, ONE = "nn.Conv2d(4, 4, 3, padding=1)", "nn.Conv2d(4, 4, 1)"

MEASURED = """import acfuse
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.c = (nn.Conv2d(4, 4, (1, 3), padding=(0, 1)) for _ in range(2))
        self.b, self.d = (nn.Conv2d(4, 4, (3, 1), padding=(1, 0)) for _ in range(2))

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(x) + self.d(x)


from acfuse.files.cost_table import Row, Work, table_json

taken = {(1, 3): 1e-6, (3, 1): 1e-6, (3, 3): 1.0}  # in seconds, as `acfuse bench` measures them
rows = [Row("eager", 14, Work(kernel, (4, 4)), time) for kernel, time in taken.items()]
with open("cost.json", "wb") as file:
    file.write(table_json(rows, {}))

for left in acfuse.fuse(Net().eval(), cost="cost.json").refused:
    print(left.code, left.why)
"""

GEOMETRY = (
    Code(
        Reason.STRIDES,
        "arms step differently",
        "One convolution has one stride. An arm of stride 2 looks at every second pixel, one of "
        "stride 1 at each: their outputs belong to different places, or have different sizes.",
        network("self.a(x) + self.b(x)", a=THREE, b="nn.Conv2d(4, 4, 1, stride=2)"),
        "ACF201 branches step by (1, 1) and (2, 2)",
        "Give the arms one stride before training. A mismatch in a trained network that runs is "
        "hidden by broadcasting, and is most often a mistake in its code.",
    ),
    Code(
        Reason.SIZES,
        "arms give outputs of different sizes",
        "A sum of branches is one convolution where each branch gives an image of the same size, "
        "for images of any size: their windows must agree once they are grown to one padding.",
        network("self.a(x) + self.b(x)", a="nn.Conv2d(4, 4, 3)", b=ONE),
        "ACF202 branches give outputs of different sizes (windows of 3 and 1 taps, padded "
        "by (0, 0) and (0, 0))",
        "Pad each arm by what its kernel takes away: padding 1 for a kernel of 3, 2 for one of 5. "
        "A crop by a negative pad is read as well.",
    ),
    Code(
        Reason.CHANNELS,
        "arms give different channels",
        "An arm of one channel that is added to several is repeated for each of them by "
        "broadcasting. acfuse does not guess that this is meant.",
        network("self.a(x) + self.b(x)", a=THREE, b="nn.Conv2d(4, 1, 1)"),
        "ACF203 branches take 4 to 4 and 4 to 1 channels",
        "Give the arms as many output channels, or write the repetition as a convolution.",
    ),
    Code(
        Reason.BORDERS,
        "arms extend the image differently past its edge",
        "One convolution sees one kind of border. Arms that pad with zeros and by reflection see "
        "other pixels past the edge, and so give other results there.",
        network(
            "self.a(x) + self.b(x)",
            a=THREE,
            b='nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")',
        ),
        "ACF204 branches pad with zeros and with reflect",
        "Use one padding_mode for all arms that look past the edge. An arm that never does, as a "
        "1x1 convolution, fits each of them.",
    ),
    Code(
        Reason.PADDED_MIDDLE,
        "the second of two layers pads what the first one gives",
        "A 3x3 convolution that pads with zeros behind a layer with a bias sees zeros where the "
        "bias should be. One convolution would see what the first layer makes of the zeros past "
        "the edge of the image, which is something else: the border differs.",
        network("self.b(self.a(x))", a=ONE, b=THREE),
        "ACF205 the second layer pads with zeros where the first one's bias would stand",
        "Pad before the first layer and not in the middle, or give the first layer no bias (and no "
        "BatchNorm with a shift). Some authors pad the middle with the bias itself: that is exact, "
        "and is read.",
    ),
    Code(
        Reason.POOLING,
        "a pool whose divisor is not constant",
        "Average pooling is a convolution whose weights are 1/area. With "
        "count_include_pad=False or ceil_mode=True it divides by fewer pixels at the edge, and is "
        "none there.",
        network(
            "self.a(x) + self.p(self.b(x))",
            a=THREE,
            b=ONE,
            p="nn.AvgPool2d(3, 1, 1, count_include_pad=False)",
        ),
        "ACF206 average pooling that does not count its padding",
        "Use nn.AvgPool2d with its defaults for count_include_pad, ceil_mode and divisor_override "
        "and train again: the network computes something else at its edges.",
    ),
    Code(
        Reason.NOT_PER_CHANNEL,
        "a factor that differs from pixel to pixel",
        "A factor for each channel can be multiplied into a kernel. A factor for each row, column "
        "or pixel cannot: one convolution does the same everywhere.",
        network(
            "self.a(x) * self.g + self.b(x)",
            a=THREE,
            b=ONE,
            g="nn.Parameter(torch.rand(4, 6, 1))",
        ),
        "ACF208 a factor of shape (4, 6, 1) is not one per channel",
        "A factor per channel has the shape (channels, 1, 1). If yours is meant to be one, give it "
        "that shape: (channels,) alone is taken for columns.",
    ),
    Code(
        Reason.CONCATENATED,
        "arms are concatenated, not added",
        "The outputs of the arms stand beside each other. That can be one convolution too, but is "
        "done only where it costs no more: kernels of 1x1 would be filled up to 3x3.",
        network("torch.cat([self.a(x), self.b(x)], 1)", a=THREE, b=ONE),
        "ACF211 the arms are concatenated, not added; fusing would cost 1.8x more multiply-adds",
        "Nothing is wrong. Arms of one kernel size would be taken together.",
    ),
    Code(
        Reason.COST,
        "one convolution would cost more than the branches",
        "A sum of a depthwise and a dense convolution, or a chain of two small ones, is one "
        "convolution that multiplies more, or stores more, than the layers it replaces.",
        network(
            "self.a(x) + self.b(x)",
            a="nn.Conv2d(4, 4, 3, padding=1, groups=4)",
            b=ONE,
        ),
        "ACF215 fusing would cost 2.8x more multiply-adds",
        "Nothing is wrong: the layers are the faster form. `acfuse bench --profile` measures what "
        "convolutions take on your machine.",
    ),
    Code(
        Reason.WINDOW,
        "a window is too large to be multiplied out and proved",
        "A few numbers in a file, as a dilation of a million, can ask for a kernel of any size. "
        "Beyond a limit of windows and kernels, nothing is multiplied.",
        network("self.a(x) + self.b(x)", a="nn.Conv2d(4, 4, 2, dilation=2**18)", b=ONE),
        "ACF223 its window spans 262,145 places, padding and step included: too many to be proved",
        "Look at the kernel size, dilation and padding of the layer: no trained network needs "
        "such a window.",
    ),
    Code(
        Reason.SLOWER,
        "by the cost table, one convolution takes longer than the branches",
        "With `--cost FILE`, times that were measured decide. A block stays as it is where they "
        "say that its one convolution takes longer than its layers, on any backend or at any size "
        "of images in the table.",
        MEASURED,
        "ACF227 as one convolution it takes 1e+03 ms, its layers 0.004 ms (eager, 14x14 pixels)",
        "Leave --cost away to fuse by multiply-adds alone, or measure a table on the machine that "
        "will run the network: `acfuse bench --profile`.",
    ),
)
