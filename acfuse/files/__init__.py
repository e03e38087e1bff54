"""Files in and out: a live model or bare tensors, with the container that they came in.

Loading runs nothing that a file says. `detect` tells what a file is; `torch_load`, `safetensors`,
`hdf5`, `pt2_archive` and `shards` read one format each; `nesting` finds the tensors in what was
read, `user_code` builds the network that they go into, `write` brings them back into their form.
"""

from acfuse.files.opened_file import opened
from acfuse.files.read import load, read_tensors
from acfuse.files.records import BareTensors, Checkpoint, Container, LiveModel, ReadOptions
from acfuse.files.tensor_check import USUAL_EPS, Norm, check_numbers, norms_of
from acfuse.files.user_code import build_model, fit_prefix, load_into
from acfuse.files.write import writer

__all__ = [
    "USUAL_EPS", "BareTensors", "Checkpoint", "Container", "LiveModel", "Norm", "ReadOptions",
    "build_model", "check_numbers", "fit_prefix", "load", "load_into", "norms_of", "opened",
    "read_tensors", "writer",
]  # fmt: skip
