"""A proof, then measurements: is the fused model the original one?

`certificate` reads the replaced layers out by impulses (for all inputs, block by block), `whole`
compares the models, `faults` says what a difference looks like.
"""

from acfuse.verify.certificate import Certificate, certify

__all__ = ["Certificate", "certify"]
