"""One code: what it means, the smallest example, and what to do."""

from dataclasses import dataclass
from textwrap import indent

from acfuse.errors import Exit, Reason


@dataclass(frozen=True)
class Code:
    """What `acfuse explain` tells of a code, and docs/codes.md.

    `example` is a whole program of Python, or a command line; `says` is what it prints, word by
    word, or of a command, a part of it.
    """

    code: Reason | Exit
    title: str
    meaning: str
    example: str
    says: str
    cure: str

    @property
    def name(self) -> str:
        """How the code is written: ACF201, or exit-3."""
        return f"exit-{self.code.value}" if isinstance(self.code, Exit) else self.code.value

    @property
    def is_command(self) -> bool:
        """Whether the example is one, or some, of the shell."""
        return isinstance(self.code, Exit) and bool(self.example)

    @property
    def aliases(self) -> tuple[str, ...]:
        """What else a user may call it: its name in the source, its number alone."""
        return self.code.name.lower().replace("_", "-"), str(self.code.value).lower()


def network(forward: str, **layers: str) -> str:
    """A program that fuses a network, given by what it returns and by its layers.

    Lines of `forward` before the last one stand before the return.
    """
    *before, last = forward.splitlines()
    made = "\n".join(f"self.{name} = {layer}" for name, layer in layers.items())
    body = "\n".join([*before, f"return {last}"])
    needs = "import torch\n" * ("torch." in forward + made)
    return f"""import acfuse
{needs}from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
{indent(made, " " * 8)}

    def forward(self, x):
{indent(body, " " * 8)}


for left in acfuse.fuse(Net().eval()).refused:
    print(left.code, left.why)
"""
