"""The graph of an exported program: from its JSON to a module that runs it.

Only operators of aten, torch's own library, are called, and arithmetic on sizes.
"""

import contextlib
import json
import keyword
import logging
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses import FakeTensorMode

from acfuse.errors import InputError, UnsafeError
from acfuse.files.nesting import check_names
from acfuse.system.escape import one_line

SCALAR_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
PLAIN = {"as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools"}
# Words that operators take: modes and formulas, and never the name of a file.
WORDS = {"same", "valid", "none", "tanh", "constant", "reflect", "replicate", "circular", "trunc",
         "floor", "zeros", "bilinear", "nearest", "bicubic", "mean", "sum", "ij", "xy"}  # fmt: skip
# What reads files, trusts its arguments, or makes as much as the numbers of a tensor say.
NEVER = re.compile(r"from_file|_unsafe(?!_view|_index)|unsafe_tensor|_print|set_|resize_|storage"
                   r"|repeat_interleave|bincount|one_hot|histc|nested|sparse|quantize")  # fmt: skip
ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
ARITHMETIC = {
    f"_operator.{f.__name__}": f
    for f in (operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
              operator.mod, operator.neg, operator.eq, operator.ne, operator.lt, operator.le,
              operator.gt, operator.ge, operator.getitem, operator.pow)
}  # fmt: skip
SHAPE_CHECKS = re.compile(r"torch\.ops\.aten\.(_assert_\w+|sym_constrain_range\w*)\.")


def scalar_type(code: int) -> torch.dtype:
    """A dtype by its number in the file. Raises KeyError for one that acfuse does not read."""
    return SCALAR_TYPES[code]


class ProgramModule(fx.GraphModule):
    """A module whose graph is its forward: of aten's operators, on tensors that it holds by name.

    Its sub-modules are no layers. They hold the tensors of those that there were.
    """


def graph_of(program: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> ProgramModule:
    """The module of a serialized graph. Raises InputError, UnsafeError, KeyError, TypeError."""
    return _Reader(program, tensors, name).module()


class _Reader:
    def __init__(
        self, program: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
    ) -> None:
        self.program, self.tensors, self.name = program, tensors, name
        self.root, self.graph = nn.Module(), fx.Graph()
        self.made: dict[str, Any] = {}

    def module(self) -> ProgramModule:
        signature = self.program["signature"]
        self._inputs(signature["input_specs"])
        for node in self.program["graph"]["nodes"]:
            if not SHAPE_CHECKS.match(node["target"]):
                self._node(node)
        results = []
        for spec in signature["output_specs"]:
            ((kind, value),) = spec.items()
            if kind != "user_output":
                raise InputError(f"{self.name} writes to its own buffers ({kind}).")
            results.append(self._argument(value["arg"]))
        self.graph.output(self._structured(results))
        for part in self.graph.find_nodes(op="call_function", target=operator.getitem):
            if not part.users:
                self.graph.erase_node(part)
        module = ProgramModule(self.root, self.graph).eval()
        self._try(module)
        _note_eps(module)
        return module

    def _try(self, module: nn.Module) -> None:
        """Runs the program once, on images without numbers. Raises ValueError if that fails.

        Whatever an operator is given that it does not take is found out here.
        """

        def size(number: Mapping[str, Any]) -> int:
            return int(number["as_int"] if "as_int" in number else size(number["as_expr"]["hint"]))

        values = self.program["graph"]["tensor_values"]
        known = [values[str(node.target)] for node in self.graph.find_nodes(op="placeholder")]
        shapes = [[size(n) for n in value["sizes"]] for value in known]
        dtypes = [scalar_type(value["dtype"]) for value in known]
        try:
            with _unlogged(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                images = [torch.empty(s, dtype=d) for s, d in zip(shapes, dtypes, strict=True)]
                module.forward(*images)  # called itself, torch would print its code if it fails
        except Exception as error:
            raise ValueError(f"it does not run on {shapes}: {one_line(error, 200)}") from error

    def _inputs(self, specs: Sequence[Mapping[str, Any]]) -> None:
        """Images first, as a graph must begin with them; then the tensors that it holds."""
        held = []
        for spec in specs:
            ((kind, value),) = spec.items()
            argument = value["arg"]
            if kind == "user_input":
                name = argument["as_tensor"]["name"]
                if not _is_word(name):
                    raise InputError(f"{self.name}: {name!r} is no name of an input.")
                self.made[name] = self.graph.placeholder(name)
            elif kind in ("parameter", "buffer", "tensor_constant"):
                held.append((argument["name"], value[f"{kind}_name"], kind == "parameter"))
            else:
                raise InputError(f"{self.name} has an input of the kind {kind}.")
        for name, path, is_parameter in held:
            self._hold(path, self.tensors[path], is_parameter=is_parameter)
            self.made[name] = self.graph.get_attr(path)

    def _hold(self, path: str, tensor: Tensor, *, is_parameter: bool) -> None:
        """Puts a tensor into the tree. KeyError for a name that a module has for itself."""
        check_names([path], self.name)
        if not path.isprintable():
            raise UnsafeError(f"{self.name}: {path!r} is no name of a layer.")
        *folders, last = path.split(".")
        module = self.root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        if is_parameter and tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))
        else:
            module.register_buffer(last, tensor)

    def _node(self, node: Mapping[str, Any]) -> None:
        given = [i for i in node["inputs"] if i.get("kind", 1) == 1]
        named = [i for i in node["inputs"] if i.get("kind", 1) != 1]
        arguments = tuple(self._argument(i["arg"]) for i in given)
        keywords = {i["name"]: self._argument(i["arg"]) for i in named}
        odd = [name for name in keywords if not _is_word(name)]
        if odd:
            raise UnsafeError(f"{self.name}: {odd[0]!r} is no name of an argument.")
        made = self.graph.call_function(self._operator(node["target"]), arguments, keywords)
        self._results(made, node["outputs"])

    def _results(self, made: fx.Node, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Notes what a node gives, by name: one value, or the parts of a tuple."""
        names = []
        for output in outputs:
            ((kind, value),) = output.items()
            parts = value if kind == "as_tensors" else [value]
            names += [p.get("name") or p["as_name"] for p in parts if isinstance(p, Mapping)]
        if len(names) == 1 and "as_tensors" not in outputs[0]:
            self.made[names[0]] = made
            return
        for index, name in enumerate(names):
            self.made[name] = self.graph.call_function(operator.getitem, (made, index))

    def _operator(self, target: str) -> Callable[..., Any]:
        """What a node calls. Raises InputError for what is no operator of torch."""
        if target in ARITHMETIC:
            return ARITHMETIC[target]
        found = ATEN.fullmatch(target)
        if not found or NEVER.search(found[1]):
            raise InputError(
                f"{self.name} calls {target}, which acfuse does not run. Give the checkpoint with "
                "--model instead."
            )
        operation = getattr(getattr(torch.ops.aten, found[1]), found[2])
        if not isinstance(operation, torch._ops.OpOverload):
            raise UnsafeError(f"{self.name} calls {target}, which is no operator of torch.")
        return operation

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind in PLAIN:
            return _numbers(kind, value)
        if kind in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._named(value)
        if kind in ("as_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._named(v) for v in value]
        if kind == "as_optional_tensors":
            return [self._argument(v) for v in value]
        if kind == "as_scalar_type":
            return scalar_type(value)
        if kind == "as_memory_format":
            return MEMORY_FORMATS[value]
        if kind == "as_layout" and value == 7:
            return torch.strided
        if kind == "as_device" and value["type"] == "cpu":
            return torch.device("cpu")
        if kind == "as_string" and value in WORDS:
            return value
        raise UnsafeError(f"{self.name} gives an operator {kind} {value!r}, which is not read.")

    def _named(self, value: Mapping[str, Any]) -> Any:
        name = value.get("name") or value.get("as_name")
        if name is not None:
            return self.made[name]
        ((kind, number),) = value.items()
        return _numbers(kind, number)

    def _structured(self, results: list[Any]) -> Any:
        """The results as the model gave them: one, a tuple, a list or a dict; deeper, a tuple."""
        entry = next(e for e in self.program["module_call_graph"] if e["fqn"] == "")
        spec = json.loads(entry["signature"]["out_spec"])[1]
        leaves = all(child["type"] is None for child in spec["children_spec"])
        if spec["type"] is None:
            return results[0]
        if spec["type"] == "builtins.list" and leaves:
            return results
        if spec["type"] == "builtins.dict" and leaves:
            return dict(zip(json.loads(spec["context"]), results, strict=True))
        return tuple(results)


def _note_eps(module: ProgramModule) -> None:
    """Notes beside the statistics of each BatchNorm the eps that its operator adds to them."""
    for node in module.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            given = dict(
                zip((a.name for a in node.target._schema.arguments), node.args, strict=False)
            )
            variance = given.get("running_var")
            if isinstance(variance, fx.Node) and "eps" in given:
                owner = str(variance.target).rpartition(".")[0]
                vars(module.get_submodule(owner))["eps"] = given["eps"]


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps torch from logging what fails without numbers: the refusal has it in one line."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _is_word(name: Any) -> bool:
    """Whether this can be the name of an argument: torch.fx writes it into code as it stands."""
    return isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)


def _numbers(kind: str, value: Any) -> Any:
    """Numbers as JSON has them; infinities are written as words."""
    if isinstance(value, list):
        return [_numbers(kind, v) for v in value]
    if kind.startswith("as_float"):
        return float(value)
    if not isinstance(value, int):
        raise TypeError(f"{kind} is {value!r}")
    return value
