"""What a rewritten forward asserts of its arguments, because it was read with that."""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from acfuse.graph.calls import is_list, is_same

PLAIN = (bool, int, float, str)


@dataclass(frozen=True)
class Rank:
    """What stands for a tensor of which the number of axes matters."""

    axes: int


@dataclass(frozen=True)
class Several:
    """That an argument is a list (or tuple) of so many tensors."""

    kind: type
    count: int


def can_be_asserted(value: object) -> bool:
    """Whether equality tells that an argument is what it was when the forward was read."""
    try:
        return is_same(copy.deepcopy(value), value)
    except Exception:
        return False


def assert_arguments(module: nn.Module, graph: fx.Graph, fixed: Mapping[str, object]) -> None:
    """Asserts that arguments which are no tensors are what they were when the forward was read."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if not placeholders:
        return
    with graph.inserting_before(placeholders[-1].next):
        for node in placeholders:
            if node.target not in fixed:
                continue
            value: Any = fixed[str(node.target)]
            message = f"{node.target} was {value!r} when this module was fused"
            if isinstance(value, Rank):
                assert_axes(graph, node, value.axes)
                continue
            if isinstance(value, Several):
                given = (node, value.kind.__name__, value.count)
                holds = graph.call_function(is_list, given)
                message = f"{node.target} was a {given[1]} of {given[2]} when this module was fused"
            elif value is torch.Tensor:
                holds = graph.call_function(torch.is_tensor, (node,))
                message = f"{node.target} was a tensor when this module was fused"
            elif value is None:
                holds = graph.call_function(operator.is_, (node, value))
            elif type(value) in PLAIN:
                node.type = type(value)
                # Of what is equal, False, 0 and 0.0 are told apart so; torch.jit can do it as well.
                spelled = graph.call_function(str, (node,)), graph.call_function(str, (value,))
                holds = graph.call_function(operator.eq, spelled)
                graph.call_function(torch._assert, (holds, message))
                holds = graph.call_function(operator.eq, (node, value))
            else:  # no constant that a graph could hold
                vars(module)[f"acfuse_{node.target}"] = value
                known = graph.get_attr(f"acfuse_{node.target}")
                holds = graph.call_function(is_same, (node, known))
            graph.call_function(torch._assert, (holds, message))


def assert_axes(graph: fx.Graph, node: fx.Node, axes: int) -> fx.Node:
    rank = graph.call_method("dim", (node,))
    holds = graph.call_function(operator.eq, (rank, axes))
    message = f"{node.target} had {axes} axes when this module was fused"
    return graph.call_function(torch._assert, (holds, message))
