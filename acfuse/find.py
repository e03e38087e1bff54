"""From a model to findings: what can become one convolution, what cannot, and why.

The traced forward is the evidence; a named pattern adds the label and the authors'
name for the fused convolution.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from acfuse.errors import NotFusable, Reason
from acfuse.files.cost_table import CostTable
from acfuse.findings import Block, Cost, Findings, Refused, Run, Term
from acfuse.graph.arms import arms_of
from acfuse.graph.calls import Call, signature
from acfuse.graph.combination import Identity
from acfuse.graph.copies import copied
from acfuse.graph.fx_asserts import Several, can_be_asserted
from acfuse.graph.fx_in_place import Pair, pairs_in
from acfuse.graph.fx_layers import (
    TARGETING,
    children_of,
    image_of,
    layers_called,
    parts_at,
    tensor_at,
    used_targets,
)
from acfuse.graph.fx_modules import Analysis, ModuleReader
from acfuse.graph.fx_read import is_convolution, steps_of
from acfuse.graph.fx_sites import LiveSite, region_graph, replaced_layers
from acfuse.graph.fx_trace import Traced
from acfuse.graph.fx_write import nodes_between
from acfuse.graph.own_layers import has_hooks
from acfuse.graph.regions import choose, kernel_of, planned
from acfuse.graph.steps import Graph, Miss, Opaque, Region
from acfuse.patterns import Pattern
from acfuse.patterns.live import free_name, label, layers_of, single_arm, submodule, value_of
from acfuse.system.devices import check_device
from acfuse.system.memory import no_collection


def find_in_module(
    model: nn.Module,
    patterns: Sequence[Pattern],
    *,
    folds: bool = False,
    call: Call | None = None,
    costs: CostTable | None = None,
) -> Findings:
    """The blocks of a live model in eval mode. The model is read, never changed.

    With `folds`, lone convolutions take up the BatchNorm behind them as well; by a table of
    `costs`, no block is slower than its layers. Reading a forward runs it, and it may leave marks:
    that is done on a copy, which shares the parameters, as they are not computed with. What is
    found is proved against the model itself. `call` is how it is called, where that is known.
    Raises InputError for one that has no copy, or no numbers, or is on several devices.
    """
    check_device(model)
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    with no_collection():
        twin = copied(model, shared)
        findings = _Finder(twin, patterns, folds=folds, call=call, costs=costs).run()
    found = tuple(
        replace(b, reference=partial(replaced_layers, model.get_submodule(b.where), b.site))
        for b in findings.found
    )
    again = partial(find_in_module, patterns=patterns, folds=folds, call=call, costs=costs)
    return replace(findings, found=found, again=again)


def _no_reference() -> Run:
    """What stands for the reference until the model itself is known, and not its copy."""
    raise AssertionError("a block is proved against the model, not against the copy that is read")


class _Finder:
    """Chooses regions in the modules that were read, outermost first."""

    def __init__(
        self,
        model: nn.Module,
        patterns: Sequence[Pattern],
        *,
        folds: bool,
        call: Call | None = None,
        costs: CostTable | None = None,
    ) -> None:
        self.model, self.patterns, self.folds, self.costs = model, patterns, folds, costs
        self.reader = ModuleReader(model, folds=folds, call=call)
        self.paths, self.analyses = self.reader.paths, self.reader.analyses
        self.users: dict[int, set[int]] = {}  # layer -> the modules whose forwards use it
        self.needed: set[int] = set()  # layers and tensors that are used outside of any region
        self.found: list[Block] = []
        self.refused: list[Refused] = []

    def run(self) -> Findings:
        self.reader.read()
        inlined = self.reader.inlined
        for key in sorted(self.analyses, key=inlined.__contains__):
            traced = self.analyses[key].traced
            if key in inlined and key not in self.users:
                continue  # nobody calls it any more
            # What cannot be read stays, and calls its sequences as it did.
            used = traced.used if traced.graph is not None else traced.called
            for part in parts_at(traced.module, used):
                self.users.setdefault(part, set()).add(key)
        done: set[int] = set()
        for module in self.model.modules():
            if id(module) in self.analyses and id(module) not in self.reader.called:
                self._visit(module, done)
        if self.folds:
            self.found += self._folded_in_place()
        self.found = [*self._of_own_layers()]
        self.found = [*self._with_kept_layers()]
        self.found = [*self._without_copies()]
        order = {path: i for i, path in enumerate(self.paths.values())}
        self.found.sort(key=lambda f: order[f.where])
        self.refused.sort(key=lambda r: order.get(r.where, 0))
        root = self.analyses[id(self.model)].traced
        # What the first convolution reads, where nothing tells more.
        first = next(filter(None, map(image_of, self.model.modules())), None)
        inputs = {name: self._image(self.model, name) or first for name in root.call.tensors}
        images = {name: image for name, image in inputs.items() if image is not None}
        return Findings(tuple(self.found), tuple(self.refused), images=images)

    def _image(self, module: nn.Module, name: str) -> tuple[int, int] | None:
        """(channels, spatial axes) of what a module is given for a parameter, where it tells."""
        analysis = self.analyses.get(id(module))
        if analysis is None or analysis.traced.graph is None or analysis.graph is None:
            return None
        nodes = analysis.traced.graph.nodes
        node = next((n for n in nodes if n.op == "placeholder" and n.target == name), None)
        if node is None:
            return None
        if node.name in analysis.graph.widths:
            return analysis.graph.widths[node.name]
        for user in node.users:
            if user.op != "call_module":
                continue
            child = module.get_submodule(str(user.target))
            inner = self.analyses.get(id(child))
            names = inner.traced.call.tensors if inner is not None else ()
            for place, argument in zip(names, user.args, strict=False):
                if argument is node and (image := self._image(child, place)) is not None:
                    return image
        return None

    def _of_own_layers(self) -> Iterator[Block]:
        """The blocks, without those in a module that nobody calls whose layers another one takes.

        A forward may reach into a module for its layers, and leave that one's own forward alone.
        """
        taken: dict[int, str] = {}
        for found in self.found:  # outermost first
            module = self.model.get_submodule(found.where)
            layers = {id(module.get_submodule(name)) for name in found.layers}
            others = {taken[layer] for layer in layers if layer in taken} - {found.where}
            if others and id(module) not in self.reader.called:
                why = f"its layers are used by the forward of {min(others) or 'the model'}"
                self.refused.append(Refused(found.where, Reason.SHARED, why, found.pattern))
                self.needed |= layers
                continue
            taken |= dict.fromkeys(layers, found.where)
            yield found

    def _with_kept_layers(self) -> Iterator[Block]:
        """Adds to each block which of its layers some forward still uses when all is fused."""
        for found in self.found:
            module = self.model.get_submodule(found.where)
            layers = {name: module.get_submodule(name) for name in found.layers}
            parts: dict[str, object] = {**layers, **module._parameters, **module._buffers}
            keep = frozenset(name for name, part in parts.items() if id(part) in self.needed)
            lost = [n for n, layer in layers.items() if is_convolution(layer)]
            lost += [n for n, p in module._parameters.items() if p is not None and p.ndim > 1]
            new = [term for term in found.terms if term.name is not None]
            grows = len({*lost} - keep) < len(new)  # what replaces nothing is one layer more
            if keep and (found.site.forward is None or grows):
                why = f"{sorted(keep)[0]} is also used by the forward of another module"
                self.refused.append(Refused(found.where, Reason.SHARED, why, found.pattern))
                continue
            yield replace(found, site=replace(found.site, keep=keep))

    def _without_copies(self) -> Iterator[Block]:
        """The blocks, without folds that share kernels, each of which would get one of its own."""
        kernels = [dict(self._kernels_of(block)) for block in self.found]
        users: dict[int, list[int]] = {}
        for i, own in enumerate(kernels):
            for key in own:
                users.setdefault(key, []).append(i)
        for i, block in enumerate(self.found):
            group, pending = {i}, [i]  # those with which it shares a kernel, or they with others
            while pending:
                near = {j for key in kernels[pending.pop()] for j in users[key]} - group
                group |= near
                pending += near
            together: dict[int, int] = {}
            for j in group:
                together |= kernels[j]
            new = sum(self.found[j].cost.weights for j in group)
            if not block.is_block and len(group) > 1 and new > sum(together.values()):
                why = f"{len(group)} convolutions share its kernel, and each would get its own"
                self.refused.append(Refused(block.where, Reason.SHARED, why, block.pattern))
            else:
                yield block

    def _kernels_of(self, block: Block) -> Iterator[tuple[int, int]]:
        """The kernels that are gone with a block: which tensors, and how many weights they have."""
        module = self.model.get_submodule(block.where)
        tensors = [getattr(module.get_submodule(name), "weight", None) for name in block.layers]
        nodes = block.site.subgraph.nodes if block.site.subgraph else ()
        tensors += [tensor_at(module, node) for node in nodes if node.op == "get_attr"]
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.ndim > 1 and id(tensor) not in self.needed:
                yield id(tensor), tensor.numel()

    def _visit(self, module: nn.Module, done: set[int]) -> None:
        """Chooses the regions of a module's own forward, then those of what it still calls."""
        if id(module) in done:
            return
        done.add(id(module))
        analysis = self.analyses[id(module)]
        graph = analysis.traced.graph
        if graph is None or analysis.graph is None:
            if self._unread(module, analysis):
                return
            self.needed |= parts_at(module, analysis.traced.called)
            for child in module.children():
                for inner in child.modules():  # those that a forward calls are visited with it
                    if id(inner) in self.analyses and id(inner) not in self.reader.called:
                        self._visit(inner, done)
            return
        absorbed = self._choose(module, analysis.graph, graph)
        remaining = {str(n.target) for n in graph.nodes if n.op in TARGETING and n not in absorbed}
        self.needed |= parts_at(module, remaining)
        for node in graph.nodes:
            if node.op == "call_module" and node not in absorbed:
                child = module.get_submodule(str(node.target))
                if id(child) in self.analyses:
                    self._visit(child, done)

    def _choose(self, module: nn.Module, graph: Graph, forward: fx.Graph) -> set[fx.Node]:
        where = self.paths[id(module)]
        known = self._assumed(module) if self._hides_unread(module, forward) else None
        if known is not None:
            self.found.append(known)
            return set(forward.nodes)
        regions, misses = choose(graph, folds=self.folds, costs=self.costs)
        if arm := single_arm(module, self.patterns, graph, forward, self.costs):
            regions = [arm, *(r for r in regions if r.steps.isdisjoint(arm.steps))]
        obstacle = self._obstacle(module, graph, forward, regions, misses)
        if obstacle is not None:
            self.refused.append(Refused(where, *obstacle))
            return set()
        nodes = {node.name: node for node in forward.nodes}
        order = {name: i for i, name in enumerate(nodes)}
        writes = self.analyses[id(module)].traced.writes
        absorbed: set[fx.Node] = set()
        taken: set[str] = set()
        for region in sorted(regions, key=lambda r: order[r.output]):
            # A new convolution stands behind the last of its sources: none may be lost by then.
            last = max(order[s] for s in region.sources)
            lost = [s for s in region.sources if s in writes and order[writes[s]] <= last]
            if lost:
                why = f"{lost[0]} is overwritten in place"
                self.refused.append(Refused(where, Reason.IN_PLACE, why))
                continue
            inside = nodes_between(nodes[region.output], [nodes[s] for s in region.sources])
            found = self._found(module, graph, region, inside, forward, taken)
            if isinstance(found, Refused):
                self.refused.append(found)
                continue
            self.found.append(found)
            absorbed |= set(inside)
            taken |= {s.name for s in found.terms if s.name}
        apart = self.analyses[id(module)].apart
        if apart is not None and not misses:
            misses = choose(apart, folds=self.folds, costs=self.costs)[1]
        self._report(module, regions, misses)
        return absorbed

    def _obstacle(
        self,
        module: nn.Module,
        graph: Graph,
        forward: fx.Graph,
        regions: Sequence[Region],
        misses: Sequence[Miss],
    ) -> tuple[Reason, str] | None:
        """Why nothing of a forward is fused, whatever could be."""
        opaque = [s.rule for s in graph.steps if isinstance(s.rule, Opaque)]
        random = [rule.why for rule in opaque if rule.code == Reason.RANDOM]
        if random and (regions or misses):
            return Reason.RANDOM, random[0]
        if regions and has_hooks(module):
            return Reason.HOOKS, "it has hooks"
        fixed = self._fixed(module).items()
        loose = [name for name, value in fixed if not can_be_asserted(value)]
        if regions and loose:
            return Reason.CALLS, f"nothing tells when {loose[0]} is another than it was here"
        if regions and id(module) in self.reader.twice:
            return Reason.CALLS, "it is called in several ways"
        return None

    def _found(
        self,
        module: nn.Module,
        graph: Graph,
        region: Region,
        inside: Sequence[fx.Node],
        forward: fx.Graph,
        taken: set[str],
    ) -> Block | Refused:
        where = self.paths[id(module)]
        layers = layers_called(module, inside)
        pattern = label(module, self.patterns, {id(m) for _, m in layers})
        # What a convolution takes is of its own dtype, whatever the norm behind it computes in.
        convolutions = [m for _, m in layers if is_convolution(m)]
        dtypes = [p.dtype for m in convolutions for p in m.parameters(recurse=False)] or [
            p.dtype for _, m in layers for p in m.parameters(recurse=False)
        ]
        dtypes += [t.dtype for n in inside if n.op == "get_attr" for t in [tensor_at(module, n)]]
        floating = [d for d in dtypes if d.is_floating_point]
        try:
            plan = planned(graph, region)
        except NotFusable as refusal:
            return Refused(where, refusal.code, refusal.why, pattern.name if pattern else None)
        own = set(inside)
        used = {str(n.target) for n in forward.nodes if n.op in TARGETING and n not in own}
        within = {id(module), *self._within(module, inside)}
        used |= {name for name, layer in layers if self.users.get(id(layer), set()) - within}
        is_rows = all(graph.spatial_axes(source) == 0 for source in plan)
        base = pattern.fused if pattern else "fused_linear" if is_rows else "fused_conv"
        if not region.is_block:  # a fold keeps the name of its convolution
            base = next((n for n, m in layers if is_convolution(m)), base)
        terms = []
        for source, term in plan.items():
            if isinstance(term, Identity):
                terms.append(Term(source))
                continue
            name = free_name(module, base, taken, used)
            taken = taken | {name}
            terms.append(Term(source, name, partial(kernel_of, graph, region, source)))
        nodes = {node.name: node for node in forward.nodes}
        return Block(
            where,
            pattern.name if pattern else None,
            tuple(terms),
            max(floating, key=lambda d: torch.finfo(d).bits, default=torch.float32),
            Cost(region.convolutions, region.multiply_adds, region.weights),
            tuple(name for name, _ in layers),
            _no_reference,
            LiveSite(
                region.output,
                region_graph(nodes[region.output], [nodes[s] for s in plan]),
                forward,
                self._fixed(module),
                taken=self._taken(module, [name for name, _ in layers]),
                call=self.analyses[id(module)].traced.call,
                images={
                    str(n.target): graph.widths[n.name]
                    for n in forward.nodes
                    if n.op == "placeholder" and n.name in graph.widths
                },
                rows=(plan.axes or 0) if is_rows else None,
                moves=plan.moves,
            ),
            region.is_block,
            arms=partial(arms_of, graph, region),
        )

    def _folded_in_place(self) -> Iterator[Block]:
        """The folds for which two layers are exchanged, and no forward is rewritten."""
        taken, folded = set[int](), set[int]()
        for block in self.found:
            module = self.model.get_submodule(block.where)
            taken |= {id(module), *(id(module.get_submodule(name)) for name in block.layers)}
        for pair in pairs_in(self.reader):
            gone = parts_at(pair.module, used_targets(pair.graph))
            if not taken.isdisjoint({*gone, *map(id, pair.layers)}):
                continue
            found = self._of_pair(pair, gone)
            if isinstance(found, Refused):
                self.refused.append(found)
            else:
                self.needed -= gone
                folded.add(id(pair.layers[0]))
                yield found
        self.refused = [r for r in self.refused if not self._is_done(r, folded)]

    def _is_done(self, refused: Refused, folded: set[int]) -> bool:
        """Whether all convolutions of what could not be read are folded nevertheless."""
        module = self.model.get_submodule(refused.where)
        own = {id(m) for m in module.modules() if isinstance(m, nn.modules.conv._ConvNd)}
        return refused.code == Reason.UNTRACEABLE and bool(own) and own <= folded

    def _of_pair(self, pair: Pair, gone: set[int]) -> Block | Refused:
        """The fold of a pair: what its graph is alone, as any forward is read."""
        module, where = pair.module, self.paths[id(pair.module)]
        call = self.analyses[id(module)].traced.call
        steps = steps_of(Traced(module, call, pair.graph), {}, self.reader.spatial_rank)
        regions, misses = choose(steps, folds=True)
        image, *_ = nodes = [*pair.graph.nodes]
        if [(r.output, r.sources) for r in regions] != [(steps.output, (image.name,))]:
            miss = next(iter(misses), Miss("", Reason.COST, "it saves nothing"))
            return Refused(where, miss.code, miss.why)
        inside = nodes_between(next(n for n in nodes if n.name == steps.output), [image])
        found = self._found(module, steps, regions[0], inside, pair.graph, set())
        if isinstance(found, Refused):
            return found
        if found.names != (f"{where}.{pair.convolution}".lstrip("."),):
            return Refused(where, Reason.SHARED, f"the name {pair.convolution} is not free")
        images = dict.fromkeys(call.tensors, steps.widths[image.name])
        site = LiveSite(subgraph=found.site.subgraph, call=call, images=images, norm=pair.norm)
        layers = [name for name in found.layers if id(module.get_submodule(name)) in gone]
        return replace(found, layers=tuple(layers), site=site)

    def _fixed(self, module: nn.Module) -> dict[str, object]:
        """What a module's arguments must be, because its forward was read with that."""
        call = self.analyses[id(module)].traced.call
        called = (self.analyses.get(id(m)) for m in module.modules())
        typed = any(known.traced.typed for known in called if known is not None)
        # Whether one of several is None is asked unseen. A single one that is None runs nowhere.
        parameters = signature(module).parameters
        optional = any(parameters[n].default is not inspect.Parameter.empty for n in call.tensors)
        sure = typed or optional or len(call.tensors) > 1
        lists = {name: Several(kind, count) for name, kind, count in call.lists}
        return dict(call.values) | lists | dict.fromkeys(call.tensors if sure else (), Tensor)

    def _taken(self, module: nn.Module, layers: Sequence[str]) -> tuple[str, ...]:
        """The modules that were read in place, and hold some of these layers."""
        outer = {n.rpartition(".")[0] for n in layers}
        outer |= {n[:i] for n in outer for i, c in enumerate(n) if c == "."}
        inlined = self.reader.inlined
        return tuple(n for n in sorted(outer - {""}) if id(module.get_submodule(n)) in inlined)

    def _within(self, module: nn.Module, nodes: Sequence[fx.Node]) -> set[int]:
        """The modules that these nodes call, with all that is inside of them."""
        called = [module.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
        return {id(inner) for m in called for inner in m.modules()}

    def _report(self, module: nn.Module, regions: Sequence[Region], misses: Sequence[Miss]) -> None:
        """What was not fused in a module's own forward."""
        where = self.paths[id(module)]
        pattern = label(module, self.patterns, None)
        name = pattern.name if pattern else None
        for miss in misses:
            self.refused.append(Refused(where, miss.code, miss.why, name, miss.value))
        if pattern and not misses and not any(r.is_block for r in regions):
            why = "its forward does not add these layers up"
            self.refused.append(Refused(where, Reason.NOT_CONFIRMED, why, name))

    def _unread(self, module: nn.Module, analysis: Analysis) -> bool:
        """A forward that cannot be read: whether the user says what it is."""
        refusal = analysis.traced.refusal
        if refusal is None:
            return False
        found = self._assumed(module)
        if found is not None:
            self.found.append(found)
            return True
        pattern = label(module, self.patterns, None)
        name, why = pattern.name if pattern else None, refusal.why
        if pattern and (pattern.assumption or not pattern.ambiguity):
            why += f". If it is what the pattern says, --assume {name} fuses it"
        self.refused.append(Refused(self.paths[id(module)], refusal.code, why, name))
        return False

    def _hides_unread(self, module: nn.Module, forward: fx.Graph) -> bool:
        """Whether a forward calls something that cannot be read."""
        inner = [self.analyses.get(id(m)) for m in children_of(module, forward)]
        return any(known is not None and known.graph is None for known in inner)

    def _assumed(self, module: nn.Module) -> Block | None:
        """A block that cannot be read, if the user says that it is what its pattern says."""
        pattern = label(module, self.patterns, None)
        if pattern is None or not pattern.is_assumed or id(module) in self.reader.twice:
            return None
        value = value_of(module, pattern) if not has_hooks(module) else None
        if value is None:
            return None
        names, size = layers_of(module, pattern), value.geometry
        layers = [module.get_submodule(name) for name in names]
        ignore = tuple(n for n in pattern.ignore if submodule(module, n) is not None)
        return Block(
            self.paths[id(module)],
            pattern.name,
            (Term("x", pattern.fused, lambda: value),),
            next(layers[0].parameters()).dtype,
            Cost((sum(map(is_convolution, layers)), 1), (0, size.multiply_adds), size.weights),
            names,
            _no_reference,
            LiveSite(ignore=ignore),
            assumed=True,
        )
