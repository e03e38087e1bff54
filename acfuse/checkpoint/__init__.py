"""Files in and out: a live model or bare tensors, with the wrapper that they came in.

Loading runs nothing that a file says. `kinds` tells what a file is; `pickled`, `safetensors_files`,
`hdf5_files` and `shards` read one format each; `nests` finds the tensors in what was read, `models`
puts them into a network, `writing` brings them back into the form that they came in.
"""

from acfuse.checkpoint.kinds import recognise
from acfuse.checkpoint.models import build_model, fit_prefix, load_into, resolve
from acfuse.checkpoint.numbers import USUAL_EPS, Norm, check_numbers, norms_of
from acfuse.checkpoint.opened import Opened, opened
from acfuse.checkpoint.reading import load, read_tensors
from acfuse.checkpoint.records import AS_IT_IS, BareTensors, Checkpoint, LiveModel, Reading, Wrapper
from acfuse.checkpoint.writing import Write, to_bytes, writer

__all__ = [
    "AS_IT_IS",
    "USUAL_EPS",
    "BareTensors",
    "Checkpoint",
    "LiveModel",
    "Norm",
    "Opened",
    "Reading",
    "Wrapper",
    "Write",
    "build_model",
    "check_numbers",
    "fit_prefix",
    "load",
    "load_into",
    "norms_of",
    "opened",
    "read_tensors",
    "recognise",
    "resolve",
    "to_bytes",
    "writer",
]
