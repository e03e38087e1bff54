"""What a pickle of torch.save would build, found out without building anything.

Its opcodes are followed with stand-ins for the values: names, numbers, and how much there is of
each. Torch's own reader runs only what it allows, but it believes every size that a file claims.
"""

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from acfuse.errors import InputError, UnsafeError
from acfuse.system.escape import listed
from acfuse.system.limits import Limits

ABSURD = 2**24  # what all calls together may be given: characters and entries
# What torch.save writes and torch's reader takes; each is known to the reader below.
OPCODES = {
    "PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "BINGET",
    "LONG_BINGET", "BINPUT", "LONG_BINPUT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "NONE",
    "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE",
    "SHORT_BINSTRING",
}  # fmt: skip


@dataclass(eq=False)
class Sequence:
    """A stand-in for a tuple (`items`), or for what can grow (`count` of entries)."""

    items: tuple[Any, ...] | None = None
    count: int = 0

    @property
    def entries(self) -> int:
        return self.count if self.items is None else len(self.items)


@dataclass(frozen=True)
class Global:
    """A stand-in for a name that a pickle imports."""

    name: str


@dataclass
class Contents:
    """The storages that a pickle says it has (key -> bytes), what it imports, how much it does."""

    storages: dict[str, int] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)  # in their order
    operations: int = 0
    called: set[str] = field(default_factory=set)  # of the names; others are only made, or named


def contents_of(file: IO[bytes], name: str, limits: Limits) -> Contents:
    """What the pickle at the place of an open file would build.

    Raises UnsafeError for one that would cost more than its size, InputError for a damaged one.
    """
    start = file.tell()
    within = _Within(file)
    try:
        return _Reader(name, limits).follow(pickletools.genops(within))  # type: ignore[arg-type]
    except _Foreign as foreign:
        file.seek(start)
        named = listed(_all_names(within, limits))
        raise UnsafeError(
            f"{name} is refused: its pickle uses {foreign}{named and f', and names {named}'}. "
            "torch.save writes no such thing by itself. Where you trust the file, save its "
            "state_dict() again, without a pickle_protocol."
        ) from None
    except UnicodeDecodeError as error:
        found = error.object.decode("utf-8", "backslashreplace")
        text = f"{name} is refused: its pickle names {found!r}, and names are plain ASCII."
        raise UnsafeError(text) from None
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"{name} is damaged or cut off: its pickle cannot be read.") from error


def _all_names(file: "_Within", limits: Limits) -> dict[str, None]:
    """The names in a pickle of any protocol, as far as it can be read. For a message alone.

    Protocol 4 takes the two halves of a name from the stack: here, the last two strings.
    """
    names: dict[str, None] = {}
    memo: dict[int, Any] = {}
    last = ["", ""]
    operations: Iterator[tuple[Any, Any, Any]] = pickletools.genops(file)  # type: ignore[arg-type]
    try:
        for count, (code, argument, _) in enumerate(operations):
            if count > limits.operations:
                break
            if code.name in ("GLOBAL", "INST"):
                names[argument.replace(" ", ".")] = None
            elif code.name == "STACK_GLOBAL":
                names[".".join(last)] = None
            elif "PUT" in code.name or code.name == "MEMOIZE":
                memo[len(memo) if argument is None else int(argument)] = last[-1]
            else:
                value = memo.get(argument) if "GET" in code.name else argument
                last = [last[-1], value] if isinstance(value, str) else last
    except Exception:
        return names
    return names


class _Within:
    """A file that is asked for no more than it has: room is made for as much as is asked for."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, start = file, file.tell()
        self.end = file.seek(0, 2)
        file.seek(start)

    def read(self, size: int) -> bytes:
        return self.file.read(min(size, self.end - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline()

    def tell(self) -> int:
        return self.file.tell()


class _Foreign(Exception):
    """An opcode that torch.save does not write."""


class _Reader:
    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits, self.found = name, limits, Contents()
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.sizes: dict[int, int] = {}  # of tuples, written out in full
        self.given = 0

    def follow(self, operations: Iterator[tuple[Any, Any, Any]]) -> Contents:
        for code, argument, _ in operations:
            self.found.operations += 1
            self.limits.check("operations", self.found.operations, self.name)
            self._step(code.name, argument)
        return self.found

    def _refuse(self, why: str) -> None:
        raise UnsafeError(f"{self.name} is refused: {why}, which no checkpoint needs.")

    def _step(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code not in OPCODES:
            raise _Foreign(code if argument is None else f"{code} {str(argument)[:80]!r}")
        if code == "GLOBAL":
            found = Global(argument.replace(" ", "."))
            self.found.names[found.name] = None
            stack.append(found)
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif code in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            items = self._marked() if code == "TUPLE" else self._popped(int(code[-1]))
            self.stack.append(self._tuple(items))
        elif code in ("APPENDS", "SETITEMS"):
            items = self._marked()
            self.stack[-1].count += len(items)
        elif code in ("APPEND", "SETITEM"):
            self._popped(1 if code == "APPEND" else 2)
            self.stack[-1].count += 1
        elif code in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            stack.append(Sequence())
        elif code in ("REDUCE", "NEWOBJ"):
            function, arguments = self._popped(2)
            if code == "REDUCE" and isinstance(function, Global):
                self._check_call(function.name, arguments)
            stack.append(self._call(function, arguments))
        elif code == "BUILD":
            self._popped(1)
        elif code == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif code not in ("PROTO", "STOP"):
            stack.append(() if code == "EMPTY_TUPLE" else argument)

    def _popped(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items

    def _marked(self) -> tuple[Any, ...]:
        items, self.stack = tuple(self.stack), self.marks.pop()
        return items

    def _tuple(self, items: tuple[Any, ...]) -> Sequence:
        """A tuple; as a key of a dict it is hashed in full, however often parts are shared."""
        made = Sequence(items)
        size = 1 + sum(self.sizes.get(id(item), 1) for item in items)
        if size > self.limits.values:
            self._refuse("its tuples hold each other without end")
        self.sizes[id(made)] = size
        self.memo[-len(self.sizes)] = made  # an id is one value's as long as that lives
        return made

    def _check_call(self, name: str, arguments: Any) -> None:
        """Notes a call. An array is made empty and then filled with what the file holds."""
        self.found.called.add(name)
        given = arguments.items or () if isinstance(arguments, Sequence) else ()
        if name.endswith("._reconstruct"):
            sizes = given[1].items if len(given) > 1 and isinstance(given[1], Sequence) else None
            if sizes != (0,):
                self._refuse("it makes an array that is not empty")

    def _call(self, function: Any, arguments: Any) -> Sequence:
        given = arguments.items or () if isinstance(arguments, Sequence) else ()
        for value in given:
            if isinstance(value, (str, bytes)):
                self.given += len(value)
            elif isinstance(value, Sequence):
                self.given += value.entries
        if isinstance(function, Global) and function.name.rpartition(".")[2] == "bytearray":
            self.given += sum(abs(value) for value in given if isinstance(value, int))
        if self.given > ABSURD:
            self._refuse("its calls make many copies of large values")
        return Sequence()

    def _storage(self, claim: Any) -> Any:
        """Notes the claim ("storage", type, key, device, numbers) of a file."""
        items = claim.items or () if isinstance(claim, Sequence) else ()
        if len(items) >= 5 and items[0] == "storage" and isinstance(items[1], Global):
            kind, key, numbers = items[1].name, str(items[2]), items[4]
            size = numbers * _item_size(kind) if isinstance(numbers, int) else -1
            if size < 0 or self.found.storages.setdefault(key, size) != size:
                self._refuse(f"it gives the storage {key!r} two sizes, or none")
        return None


def _item_size(kind: str) -> int:
    found = kind.rpartition(".")[2]
    if found == "UntypedStorage":
        return 1
    return int(torch.storage._storage_type_to_dtype_map()[found].itemsize)
