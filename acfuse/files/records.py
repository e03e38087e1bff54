"""A checkpoint as a value: its tensors, and the form in which they came."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from acfuse.files.opened_file import FileState
from acfuse.system.limits import LIMITS, Limits


@dataclass(frozen=True)
class ReadOptions:
    """How a file is read: which entry, which classes it may name, and within what limits.

    `sha256` in hex is what the file must be.
    """

    key: str | None = None
    allow_classes: Sequence[str] = ()
    limits: Limits = LIMITS
    sha256: str | None = None


DEFAULTS = ReadOptions()


@dataclass(frozen=True)
class Container:
    """The form in which tensors came: the whole object, where in it they stood, their prefix."""

    kind: str  # "state_dict", "module", "exported", "safetensors" or "hdf5"
    whole: Any = field(default=None, repr=False)
    path: tuple[str, ...] = ()
    prefix: str = ""
    rest: Mapping[str, Any] = field(default_factory=dict, repr=False)  # tensors without the prefix
    order: tuple[str, ...] = ()  # of all keys, where there are such
    metadata: Mapping[str, str] | None = None
    files: Mapping[Path, FileState] = field(default_factory=dict)  # each that was read
    notes: tuple[str, ...] = ()  # what a user should know of the file

    @property
    def key(self) -> str:
        """The entry of the file that holds the tensors, as --key takes it."""
        return ".".join(self.path)

    @property
    def network(self) -> nn.Module | None:
        """The model itself, where the file holds one."""
        found = self.whole
        for part in self.path if self.kind == "module" else ():
            found = found[part]
        return found if self.kind in ("module", "exported") else None
