"""What has to hold of `geometry.py` and `adjoint_geometry.py`, one function an obligation.

Its docstring is the statement, in words; what it yields are its cases, for a solver. Unless it says
otherwise, a statement is about all integers: taps, strides, pads of either sign, sizes of images.
"Exactly if" is both halves: what is accepted is equal, and for what is refused there is an image, a
place and a choice of weights at which no single convolution is.
"""

from tests.obligations import adjoints, chains, channels, sums, windows
from tests.obligations.stating import Stated

OBLIGATIONS: Stated = {
    **windows.STATED,
    **sums.STATED,
    **chains.STATED,
    **channels.STATED,
    **adjoints.STATED,
}
