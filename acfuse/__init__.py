"""Turns a trained multi-branch convolutional network into the plain one that it computes.

    fused = acfuse.fuse(model)                 # .model, .found, .refused; `model` is untouched
    fused = acfuse.fuse_onnx(model_proto)      # .model, .found, .refused
    fused = acfuse.fuse_tensors(state_dict)    # .tensors, .found, .refused, .notes
    proofs = acfuse.verify(model, fused.model, (1, 3, 224, 224))
    conversion = acfuse.convert("model.pth", model="nets.py:Net", input_shape=(1, 3, 224, 224))
    network = acfuse.load_fused(Net(), "model.fused.pth")
    int8 = acfuse.quantize("model.fused.onnx", images)  # .model, .loss, .worst, .advice
    lost = acfuse.ranges(fused.model)          # of each layer: .spread, .per_tensor, .per_channel

What a user can mend is an `acfuse.AcfuseError`: one line, and an exit code of `acfuse.Exit`. Its
kinds can be had from here, and `acfuse.Reason`, the codes of what was refused.

Nothing heavy is imported before it is used.
"""

from typing import TYPE_CHECKING

from acfuse.errors import (
    AcfuseError,
    BusyError,
    Exit,
    InputError,
    NotEqual,
    NotFusable,
    NothingToFuse,
    OutputError,
    Reason,
    UnsafeError,
    UsageError,
)

__version__ = "0.1.0"
__all__ = [
    "AcfuseError",
    "BusyError",
    "Exit",
    "InputError",
    "NotEqual",
    "NotFusable",
    "NothingToFuse",
    "OutputError",
    "Reason",
    "UnsafeError",
    "UsageError",
    "convert",
    "equalize",
    "fuse",
    "fuse_onnx",
    "fuse_tensors",
    "load_fused",
    "quantize",
    "ranges",
    "verify",
]

if TYPE_CHECKING:
    from acfuse.api import (
        convert,
        equalize,
        fuse,
        fuse_onnx,
        fuse_tensors,
        load_fused,
        quantize,
        ranges,
        verify,
    )
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from acfuse import api

        return globals().setdefault(name, getattr(api, name))
