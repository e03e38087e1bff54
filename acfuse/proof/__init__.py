"""A proof, then measurements, of whether the fused model is the original one.

`certificate` reads the replaced layers out by impulses (for all inputs, block by block), `whole`
compares the models, `exported` and `onnx_runtime` the files, `faults` says what a difference looks
like.
"""

from acfuse.proof.certificate import Certificate, certify
from acfuse.proof.faults import diagnose
from acfuse.proof.outputs import Check, Proofs, Tolerance
from acfuse.proof.running import Inputs

__all__ = ["Certificate", "Check", "Inputs", "Proofs", "Tolerance", "certify", "diagnose"]
