"""What each code means, with the smallest example and what to do. Loads nothing heavy."""

from acfuse.codes.exits import EXITS
from acfuse.codes.files import FILES
from acfuse.codes.forward import FORWARD
from acfuse.codes.geometry import GEOMETRY
from acfuse.codes.record import Code

REASONS = tuple(sorted((*GEOMETRY, *FORWARD, *FILES), key=lambda code: code.code.value))
CODES = (*REASONS, *EXITS)

__all__ = ["CODES", "EXITS", "REASONS", "Code"]
