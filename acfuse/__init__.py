"""Turns a trained multi-branch convolutional network into the plain one that it computes.

    fused = acfuse.fuse(model)                 # .model, .found, .refused; `model` is untouched
    fused = acfuse.fuse_onnx(model_proto)      # .model, .found, .refused
    fused = acfuse.fuse_tensors(state_dict)    # .tensors, .found, .refused, .notes
    proofs = acfuse.verify(model, fused.model, (1, 3, 224, 224))
    conversion = acfuse.convert("model.pth", model="nets.py:Net", input_shape=(1, 3, 224, 224))
    network = acfuse.load_fused(Net(), "model.fused.pth")

Nothing heavy is imported before it is used.
"""

import sys
from types import ModuleType
from typing import Any

__all__ = ["convert", "fuse", "fuse_onnx", "fuse_tensors", "load_fused", "verify"]


def _call(name: str) -> property:
    """A Python call of `acfuse.api`, imported when it is first asked for.

    Two of the calls have the name of the room that does the work. Importing such a room would put
    the module in the place of the call; a property stays.
    """

    def get(_: ModuleType) -> Any:
        from acfuse import api

        return getattr(api, name)

    return property(get, lambda _, room: None)


class _Package(ModuleType):
    """The package, whose calls are found before the rooms of the same name."""


for _name in __all__:
    setattr(_Package, _name, _call(_name))
sys.modules[__name__].__class__ = _Package
