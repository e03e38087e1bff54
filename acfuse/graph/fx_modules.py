"""Every module of a live model as steps: each read once, for itself, innermost first."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from acfuse.errors import NotFusable, Reason
from acfuse.graph.aliasing import Effect, write_once
from acfuse.graph.another_mode import another_mode, told_otherwise
from acfuse.graph.calls import Call
from acfuse.graph.fx_norms import norms_apart
from acfuse.graph.fx_operators import spatial_rank_of
from acfuse.graph.fx_read import is_convolution, steps_of
from acfuse.graph.fx_trace import Traced, reading, trace
from acfuse.graph.fx_values import outline
from acfuse.graph.own_layers import has_hooks, is_layer
from acfuse.graph.regions import as_layer, choose
from acfuse.graph.steps import ConvStep, Graph, LinearSubmodule, Opaque, PerChannel


@dataclass
class Analysis:
    """What was read of a module: its forward, its steps, and what it is for a forward around it.

    `apart` are its steps before others were read in place.
    """

    traced: Traced
    graph: Graph | None
    layer: LinearSubmodule | Opaque | None  # None: it only passes its input on
    apart: Graph | None = None


class ModuleReader:
    """Reads the modules of a model. With `folds`, BatchNorms are read where a convolution is.

    `call` is how the model itself is called, if that is known.
    `analyses` are by a module's id. `called` are the modules that some forward calls, `twice` those
    that are called in ways that differ by more than their tensors, `inlined` those that some
    forward around them has taken up.
    """

    def __init__(self, model: nn.Module, *, folds: bool, call: Call | None = None) -> None:
        self.model, self.folds, self.call = model, folds, call
        self.paths = {id(m): path for path, m in model.named_modules()}
        self.analyses: dict[int, Analysis] = {}
        self.spatial_rank = spatial_rank_of(model)
        self.called: set[int] = set()
        self.twice: set[int] = set()
        self.inlined: set[int] = set()

    def read(self) -> None:
        """Reads all of them."""
        with reading():
            self._analyse(self.model, self.call)
            for module in self.model.modules():
                if id(module) not in self.analyses and _has_forward(module):
                    self._analyse(module, None)
            reached = self._reached()
            for module in self.model.modules():
                # A sequence is read with the forward that calls it, if that can be read. Else all
                # that may be called must be known: it may be taken apart by what could not be.
                if _is_sequence(module) and id(module) not in reached:
                    self._analyse(module, None)
                    reached = self._reached()

    def _analyse(self, module: nn.Module, call: Call | None) -> Analysis:
        known = self.analyses.get(id(module))
        if known is not None:
            if call is not None and known.traced.call != call:
                self.twice.add(id(module))
            return known
        if call is None:
            call = Call.default(module, guessed=module is not self.model)
        analysis = Analysis(self._read_forward(module, call), None, Opaque(""))
        self.analyses[id(module)] = analysis
        self.read_steps(module, analysis)
        inline = self._to_be_inlined(analysis) if self.folds else set()
        if inline:
            inlined = Analysis(trace(module, analysis.traced.call, inline), None, Opaque(""))
            self.read_steps(module, inlined)
            if inlined.graph is not None:
                analysis.apart = analysis.graph
                analysis.traced, analysis.graph = inlined.traced, inlined.graph
                self.inlined |= inline
        analysis.layer = self._as_layer(module, analysis)
        return analysis

    def _reached(self) -> set[int]:
        """The modules that some forward calls, and those in which these stand."""
        reached = set(self.analyses)
        for analysis in self.analyses.values():
            graph, module = analysis.traced.graph, analysis.traced.module
            if graph is None and not analysis.traced.complete:
                reached.update(map(id, module.modules()))
            for node in graph.nodes if graph is not None else ():
                parts = str(node.target).split(".") if node.op == "call_module" else []
                for part in parts:
                    module = getattr(module, part)
                    reached.add(id(module))
                module = analysis.traced.module
        return reached

    def _read_forward(self, module: nn.Module, call: Call) -> Traced:
        """A forward as it is read; one that cannot be read, as it is captured."""
        traced = trace(module, call)
        if traced.graph is not None:
            with another_mode():
                return _if_same(traced, trace(module, call))
        untraceable = traced.refusal is None or traced.refusal.code == Reason.UNTRACEABLE
        if traced.decides or traced.unseen or not untraceable:
            return traced
        from acfuse.graph.fx_capture import captured  # slow to load, and seldom needed

        recorded = captured(traced, self.spatial_rank)
        if recorded.graph is None:
            return recorded
        with told_otherwise():
            return _if_same(recorded, captured(traced, self.spatial_rank))

    def _leave(self, module: nn.Module, why: str) -> None:
        """Takes a module for one that cannot be read, because of how it is called."""
        if id(module) in self.analyses:
            self.twice.add(id(module))
            return
        refusal = NotFusable(Reason.UNTRACEABLE, f"how it is called is not understood: {why}")
        traced = Traced(module, Call.default(module), refusal=refusal)
        self.analyses[id(module)] = Analysis(traced, None, Opaque(refusal.why, refusal.code))

    def read_steps(self, module: nn.Module, analysis: Analysis) -> None:
        """Adds the steps of a forward that was read."""
        traced = analysis.traced
        if traced.graph is not None:
            if self.folds:
                norms_apart(module, traced.graph)
            children = dict(self._children(module, traced.graph))
            write_once(traced, self._effect)
            analysis.graph = steps_of(traced, children, self.spatial_rank)

    def _to_be_inlined(self, analysis: Analysis) -> set[int]:
        """Modules between whose layers a norm stands that a convolution could take up.

        It ends one module, or the forward around them has it, or it begins the next. These modules
        are read as part of that forward, where the convolution and the norm are neighbours.
        """
        graph, forward = analysis.graph, analysis.traced.graph
        if graph is None or forward is None:
            return set()
        found: set[int] = set()
        taken: frozenset[str] | None = None
        calls = _calls_in(forward)
        for value, step in graph.by_value.items():
            is_norm = isinstance(step.rule, PerChannel)
            norm: set[int] | None = set() if is_norm else self._head(analysis, calls, value)
            before = graph.by_value.get(step.reads[0]) if len(step.reads) == 1 else None
            if norm is None or before is None or len(graph.readers.get(before.value, ())) != 1:
                continue
            if isinstance(before.rule, ConvStep | LinearSubmodule) and norm:
                found |= norm
                continue
            tail = self._tail(analysis, calls, before.value)
            if tail is None:
                continue
            if taken is None:
                regions, _ = choose(graph, folds=True)
                taken = frozenset().union(*(region.steps for region in regions))
            if value not in taken:
                found |= norm | tail
        return found

    def _head(
        self, analysis: Analysis, calls: Mapping[str, fx.Node], value: str
    ) -> set[int] | None:
        """The modules to read in place so that the norm shows with which a call begins."""
        inner = self._called_once(analysis, calls, value)
        if inner is None or inner.graph is None or len(inner.graph.inputs) != 1:
            return None
        if isinstance(inner.layer, LinearSubmodule):
            return None
        readers = inner.graph.readers.get(inner.graph.inputs[0], ())
        own = {id(inner.traced.module)}
        if len(readers) != 1 or inner.traced.graph is None:
            return None
        if isinstance(readers[0].rule, PerChannel):
            return own
        head = self._head(inner, _calls_in(inner.traced.graph), readers[0].value)
        return None if head is None else own | head

    def _tail(
        self, analysis: Analysis, calls: Mapping[str, fx.Node], value: str
    ) -> set[int] | None:
        """The modules to read in place so that the convolution shows with which a call ends."""
        inner = self._called_once(analysis, calls, value)
        if inner is None or inner.graph is None or inner.graph.output is None:
            return None
        output, own = inner.graph.output, {id(inner.traced.module)}
        step = inner.graph.by_value.get(output)
        if step is None or inner.graph.readers.get(output) or inner.traced.graph is None:
            return None
        if isinstance(step.rule, ConvStep):
            return own
        tail = self._tail(inner, _calls_in(inner.traced.graph), output)
        return None if tail is None else own | tail

    def _called_once(
        self, analysis: Analysis, calls: Mapping[str, fx.Node], value: str
    ) -> Analysis | None:
        """What was read of the module that a call gives a value of, if it can be read in place."""
        if value not in calls:
            return None
        child = analysis.traced.module.get_submodule(str(calls[value].target))
        inner = self.analyses.get(id(child))
        return None if id(child) in self.twice or has_hooks(child) else inner

    def _effect(self, module: nn.Module, node: fx.Node) -> Effect:
        """What a module does with the memory of what it is given, as far as it was read."""
        analysis, reads = self.analyses.get(id(module)), node.all_input_nodes
        traced = analysis.traced if analysis is not None else None
        if traced is None or traced.graph is None or has_hooks(module):
            return Effect(reads, reads)
        inputs = {n.name for n in traced.graph.nodes if n.op == "placeholder"}
        written = reads if inputs & traced.mutated else ()
        return Effect(() if traced.returns_new else reads, written)

    def _children(
        self, module: nn.Module, graph: fx.Graph
    ) -> Iterator[tuple[str, LinearSubmodule | Opaque | None]]:
        for node in graph.nodes:
            if node.op != "call_module":
                continue
            child = module.get_submodule(str(node.target))
            if not _has_forward(child):
                continue
            self.called.add(id(child))
            try:
                call = Call.of(child, node.args, dict(node.kwargs))
            except TypeError as error:
                self._leave(child, str(error))
                call = None
            analysis = self._analyse(child, call)
            if call is None or analysis.traced.call != call:
                yield node.name, Opaque(f"{node.target} is called in several ways", Reason.CALLS)
            else:
                yield node.name, analysis.layer

    def _as_layer(self, module: nn.Module, analysis: Analysis) -> LinearSubmodule | Opaque | None:
        """What a module is for the forward around it: one linear layer, nothing, or opaque."""
        name = self.paths[id(module)].rpartition(".")[2] or "model"
        label = f"{name} ({type(module).__name__})"
        refusal = analysis.traced.refusal
        convolves = any(map(is_convolution, module.modules()))
        if has_hooks(module):
            return Opaque(f"{label} has hooks", Reason.HOOKS, holds_convolution=convolves)
        if refusal is not None:
            why = f"{label}: {refusal.why}"
            return Opaque(why, refusal.code, holds_convolution=convolves)
        graph = analysis.graph
        if graph is not None and not graph.steps and graph.inputs == (graph.output,):
            return None
        layer = as_layer(graph) if graph is not None else None
        if layer is not None and len(layer.graph.inputs) == len(analysis.traced.call.tensors):
            return layer
        why = f"{label} is not linear"
        code = Reason.ACTIVATION
        opaque = [s.rule for s in graph.steps if isinstance(s.rule, Opaque)] if graph else []
        if opaque:
            telling = min(opaque, key=lambda rule: rule.code != Reason.RANDOM)
            why, code = f"{label}: {telling.why}", telling.code
        return Opaque(why, code, holds_convolution=convolves)


def _if_same(traced: Traced, again: Traced) -> Traced:
    """What was read of a forward, if it is the same in another mode."""
    assert traced.graph is not None
    if again.graph is not None and outline(traced.graph) == outline(again.graph):
        return traced
    why = "it does something else in another mode (autocast, tracing), or the second time"
    return replace(traced, graph=None, refusal=NotFusable(Reason.MODE, why))


def _is_sequence(module: nn.Module) -> bool:
    """Whether a module runs what it holds, one after the other, as torch's own Sequential."""
    return isinstance(module, nn.Sequential) and is_layer(module)


def _calls_in(forward: fx.Graph) -> dict[str, fx.Node]:
    """The calls of modules, by the value that each gives."""
    return {node.name: node for node in forward.nodes if node.op == "call_module"}


def _has_forward(module: nn.Module) -> bool:
    """Whether a module is the user's own and does something: neither a layer nor a container."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    implemented = type(module).forward is not nn.modules.module._forward_unimplemented
    return implemented and not is_layer(module)
