"""Where in a live model a block stands, and what it replaces, alone."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from acfuse.graph import copies
from acfuse.graph.calls import Call
from acfuse.graph.combination import Move
from acfuse.graph.fx_write import add_constants, nodes_between
from acfuse.graph.images import as_rows
from acfuse.graph.rules_axes import made_smaller
from acfuse.system.devices import device_of, exact_arithmetic


def region_graph(output: fx.Node, sources: Sequence[fx.Node]) -> fx.Graph:
    """The part of a forward that a region replaces, as a graph of its own: sources to output."""
    alone = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {s: alone.placeholder(s.name) for s in sources}
    for node in nodes_between(output, sources):
        copied[node] = alone.node_copy(node, copied.__getitem__)
    alone.output(copied[output])
    return alone


@dataclass(frozen=True)
class NormSite:
    """A norm that is taken up where no forward around it is rewritten.

    `name` is the module that is called. Where it is no layer of torch's, but begins with a norm,
    `forward` is how it was read, and the norm makes `output` of `source`, which is its input.
    """

    name: str
    output: str = ""
    source: str = ""
    forward: fx.Graph | None = None


@dataclass(frozen=True)
class LiveSite:
    """Where in a live model a block stands.

    `output` is the node of the sum in the `forward` of its module, `subgraph` the part of it that
    is replaced, as a graph of its own. Where the forward could not be read, both are None, and
    `ignore` names the layers behind the sum. `fixed` are the arguments with which the forward was
    read, `keep` the layers and tensors that are used elsewhere as well, `taken` the modules
    that were read in place, and whose layers it replaces. `call` is how the module is called,
    `images` the (channels, spatial axes) of what it is given, where the forward tells. `rows` are
    the axes of what it reads, if that has its channels last (0: any number). `moves` make its image
    larger, behind the new layers. With a `norm`, the convolution stays where it is and takes that
    up, and no forward is rewritten.
    """

    output: str = ""
    subgraph: fx.Graph | None = None
    forward: fx.Graph | None = None
    fixed: Mapping[str, object] = field(default_factory=dict)
    keep: frozenset[str] = frozenset()
    ignore: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    call: Call | None = None
    images: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    rows: int | None = None
    moves: tuple[Move, ...] = ()
    norm: NormSite | None = None


def replaced_layers(module: nn.Module, site: LiveSite) -> Callable[..., Tensor]:
    """The part of a module's forward that a block replaces, in float64, as a function.

    It runs where the module is; what it is given and gives is on the CPU.
    """
    module = copies.copied(module).eval()
    if site.subgraph is not None:
        add_constants(module, site.subgraph)
        module = fx.GraphModule(module, copy.deepcopy(site.subgraph))
    for name in site.ignore:
        module.set_submodule(name, nn.Identity())
    module = module.double().requires_grad_(False)
    device = device_of(module)

    def run(*images: Tensor) -> Tensor:
        with torch.no_grad(), exact_arithmetic(device):
            given = images if site.rows is None else (as_rows(i, site.rows) for i in images)
            result: Tensor = module(*(image.to(device, copy=True) for image in given)).cpu()
        with torch._C._DisableTorchDispatch():  # whoever moves numbers on the way moves none here
            result = made_smaller(result, site.moves)
        return result if site.rows is None else result.flatten(0, -2)[: len(images[0])]

    return run
