"""Codes of forwards: what stands between the layers, what cannot be read, what else happens."""

from acfuse.codes.geometry import ONE, THREE
from acfuse.codes.record import Code, network
from acfuse.errors import Reason

FORWARD = (
    Code(
        Reason.STATISTICS,
        "a BatchNorm without running statistics",
        "A BatchNorm with track_running_stats=False, or one that is left in training mode, "
        "normalises by the statistics of each batch. It is no fixed factor and shift.",
        network(
            "self.n(self.a(x)) + self.b(x)",
            a=THREE,
            b=ONE,
            n="nn.BatchNorm2d(4, track_running_stats=False)",
        ),
        "ACF207 a BatchNorm has no running statistics",
        "Train with running statistics. Such a network is no deterministic function of one image.",
    ),
    Code(
        Reason.ACTIVATION,
        "something that is not linear stands inside",
        "Only linear steps can be multiplied together. A ReLU, a sigmoid, a normalisation by the "
        "image's own statistics, a product of two values that depend on the input: all of these "
        "end what can be one convolution.",
        network("torch.relu(self.a(x)) + self.b(x)", a=THREE, b=ONE),
        "ACF209 the activation relu is not linear",
        "Nothing can be done for a trained network. If you design one, put the activation behind "
        "the sum of the branches.",
    ),
    Code(
        Reason.INPUTS,
        "arms read different inputs",
        "A sum of convolutions of two different images cannot be one convolution of either.",
        network("self.a(x) + self.b(y)", a=THREE, b=ONE).replace("(self, x)", "(self, x, y)"),
        "ACF210 the arms read different inputs (x and y)",
        "Nothing is wrong: two layers of two inputs are left as they are.",
    ),
    Code(
        Reason.RANDOM,
        "the forward draws random numbers",
        "What is drawn in a forward, also in eval mode, differs in each call: there is no one "
        "function to be equal to.",
        network(
            "self.a(x) + self.b(x) + torch.rand_like(x)",
            a=THREE,
            b=ONE,
        ),
        "ACF212 rand_like draws random numbers",
        "Draw only where self.training is set, as nn.Dropout does.",
    ),
    Code(
        Reason.UNTRACEABLE,
        "the forward cannot be read",
        "What a forward does depends on the numbers of its input, or it uses Python in a way that "
        "leaves no graph. acfuse reads forwards as graphs and guesses nothing.",
        network(
            "if x.sum() > 0:\n    x = -x\nself.a(x) + self.b(x)",
            a=THREE,
            b=ONE,
        ),
        "ACF213 its forward has data-dependent control flow",
        "Move the part that decides into a module of its own: modules are read one by one, and the "
        "branches of the others are found. Where a pattern's name is printed, and you know that "
        "the block is what it says, give --assume with that name.",
    ),
    Code(
        Reason.SHARED,
        "a value inside is needed elsewhere as well",
        "One arm's output is also returned, or read by another layer. It has to be computed "
        "anyway, so that fusing would compute it twice.",
        network(
            "y = self.a(x)\ntorch.relu(y + self.b(x)) * torch.sigmoid(y)",
            a=THREE,
            b=ONE,
        ),
        "ACF214 a is also used by sigmoid",
        "If the other use is only for training, as an auxiliary loss, guard it with self.training.",
    ),
    Code(
        Reason.UNKNOWN_LAYER,
        "a layer that no rule describes",
        "A layer or operator stands in the way that may be linear, but acfuse has no rule for it, "
        "or not with these settings.",
        network(
            "self.a(x, [9, 11]) + self.b(x, [9, 11])",
            a="nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)",
            b="nn.ConvTranspose2d(4, 4, 1, stride=2)",
        ),
        "ACF216 ConvTranspose2d is called with more than one input",
        "Write it with torch's own layers: convolutions, BatchNorm, average pooling, padding, "
        "factors per channel, linear layers.",
    ),
    Code(
        Reason.IN_PLACE,
        "a value is overwritten in place",
        "Some line writes into an image that a branch reads, or into a part of it. What each "
        "reader sees then depends on the order of the lines.",
        network(
            "y = self.a(x)\ny[:, :, 1:-1].zero_()\ny + self.b(x)",
            a=THREE,
            b=ONE,
        ),
        "ACF217 a is overwritten in place",
        "Write a new value instead, as with torch.cat, torch.where or nn.functional.pad. A border "
        "that is written into a frame of constants is read.",
    ),
    Code(
        Reason.HOOKS,
        "a module has hooks, which a rewritten module would lose",
        "A hook may change what a layer gives, or only look at it. A fused layer would no longer "
        "call it, and no graph shows what it does.",
        network(
            "self.a(x) + self.b(x)",
            a=THREE,
            b=ONE,
        ).replace(
            "\n    def forward",
            "        self.a.register_forward_hook(print)\n\n    def forward",
        ),
        "ACF218 a Conv2d has hooks",
        "Remove the hooks before fusing (spectral and weight norm of torch.nn.utils.parametrize "
        "are none).",
    ),
    Code(
        Reason.CALLS,
        "a module is called in ways that differ by more than their tensors",
        "A module was read for the call that the forward around it makes. It is called with other "
        "arguments, or with a list here and a tensor there, and does other things then.",
        network("self.m(x, True) - torch.relu(self.m(x, False))", m="Half()").replace(
            "class Net",
            "class Half(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            f"        self.a = {THREE}\n"
            f"        self.b = {ONE}\n\n"
            "    def forward(self, x, both):\n"
            "        return self.a(x) + self.b(x) if both else self.a(x)\n\n\n"
            "class Net",
        ),
        "ACF222 it is called in several ways",
        "Make two modules of it, one for each way of calling.",
    ),
    Code(
        Reason.UNLIKE,
        "run beside the original, what was rewritten does something else",
        "Each rewritten module, and the whole model, is run beside the original. Results, their "
        "types, gradients or what is left behind differ, so the block was given back.",
        network("self.calls += 1\nself.a(x) + self.b(x)", a=THREE, b=ONE, calls="0"),
        "ACF224 its call changes calls",
        "Read what is named: often a forward asks what its layers are, or keeps something between "
        "calls. If nothing of that kind is there, please report it.",
    ),
    Code(
        Reason.NOT_RUN,
        "it could not be run beside the original",
        "No images that acfuse makes up are accepted by the model, so that nothing shows what the "
        "rewritten block does.",
        network(
            "torch.relu(self.a(x) + self.b(x) + torch.sigmoid(self.p))",
            a=THREE,
            b=ONE,
            p="nn.Parameter(torch.rand(1, 4, 9, 8))",
        ),
        "ACF225 no input is known with which it runs: give example inputs",
        "Give an input that the model takes: --input-shape or --inputs on the command line, "
        "`acfuse.fuse(model, example)` in Python.",
    ),
    Code(
        Reason.MODE,
        "part of a forward runs in another mode",
        "Under torch.no_grad or autocast the same layers give other gradients or other dtypes. A "
        "fused layer would stand on one side of that line.",
        network(
            'with torch.autocast("cpu", dtype=torch.bfloat16):\n    y = self.a(x)\ny + self.b(x)',
            a=THREE,
            b=ONE,
        ),
        "ACF226 part of its forward runs in another mode (no_grad, autocast)",
        "Put the whole call of the model under the mode, not a part of its forward.",
    ),
)
