"""What can go wrong, and what the process then exits with.

Two different things: a `NotFusable` is a fact about a block (it becomes a row of the report),
an `AcfuseError` is a user's problem (one line and an exit code). Anything else is our bug.
"""

from enum import IntEnum, StrEnum

OUTERMOST = "the model's own forward"  # what a module without a name is called


class Exit(IntEnum):
    """Exit codes of every command. Documented in docs/ci.md, never renumbered."""

    DONE = 0
    NOT_EQUAL = 1
    USAGE = 2
    BAD_INPUT = 3
    UNSAFE = 4
    NOTHING = 5
    BAD_OUTPUT = 6
    BUG = 7
    LOST = 8
    INTERRUPTED = 130
    TERMINATED = 143


class Reason(StrEnum):
    """Why a block was not fused, or what a reader should know about one that was."""

    STRIDES = "ACF201"  # arms step differently
    SIZES = "ACF202"  # arms give outputs of different sizes
    CHANNELS = "ACF203"  # arms give different channels
    BORDERS = "ACF204"  # arms extend the image differently past its edge
    PADDED_MIDDLE = "ACF205"  # the second of two layers pads what the first one gives
    POOLING = "ACF206"  # a pool whose divisor is not constant
    STATISTICS = "ACF207"  # a BatchNorm without running statistics, or in training mode
    NOT_PER_CHANNEL = "ACF208"  # a factor that differs from pixel to pixel
    ACTIVATION = "ACF209"  # something that is not linear stands inside
    INPUTS = "ACF210"  # arms read different inputs
    CONCATENATED = "ACF211"  # arms are concatenated, not added
    RANDOM = "ACF212"  # the forward draws random numbers
    UNTRACEABLE = "ACF213"  # the forward cannot be read
    SHARED = "ACF214"  # a value inside is needed elsewhere as well
    COST = "ACF215"  # one convolution would cost more than the branches
    UNKNOWN_LAYER = "ACF216"  # a layer that no rule describes
    IN_PLACE = "ACF217"  # a value is overwritten in place
    HOOKS = "ACF218"  # a module has hooks, which a rewritten module would lose
    NOT_CONFIRMED = "ACF219"  # the block does not compute what its pattern says
    ASSUMPTION = "ACF220"  # the file does not hold something that decides
    OVERFLOW = "ACF221"  # the fused weights do not fit into the stored dtype
    CALLS = "ACF222"  # a module is called in ways that differ by more than their tensors
    WINDOW = "ACF223"  # a window is too large to be multiplied out and proved
    UNLIKE = "ACF224"  # run beside the original, what was rewritten does something else
    NOT_RUN = "ACF225"  # it could not be run beside the original
    MODE = "ACF226"  # part of a forward runs in another mode (no_grad, autocast)
    SLOWER = "ACF227"  # by the cost table, one convolution takes longer than the branches
    FRESH_STATISTICS = "ACF230"  # BatchNorms that were never trained make a weak test
    FIXED_AXIS = "ACF231"  # an axis that was asked to be dynamic stays fixed
    WIDE_RANGES = "ACF232"  # channels of one layer range too widely for one grid of 8 bits


class NotFusable(Exception):
    """Two values cannot become one convolution; the text says why, in one sentence."""

    def __init__(self, code: Reason, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class AcfuseError(Exception):
    """A user's problem: where, what was found, what was expected, what to do. One line."""

    exit_code = Exit.BUG


class UsageError(AcfuseError):
    """The command line or the configuration asks for something that cannot be."""

    exit_code = Exit.USAGE


class InputError(AcfuseError):
    """A file or model cannot be used."""

    exit_code = Exit.BAD_INPUT


class UnsafeError(AcfuseError):
    """Reading this file would run what the file says."""

    exit_code = Exit.UNSAFE


class NothingToFuse(AcfuseError):
    """No block was found that can become one convolution."""

    exit_code = Exit.NOTHING


class NotEqual(AcfuseError):
    """A check failed: fused and original differ."""

    exit_code = Exit.NOT_EQUAL


class OutputError(AcfuseError):
    """A file cannot be written."""

    exit_code = Exit.BAD_OUTPUT


class BusyError(OutputError):
    """Another run is writing these files now."""
