"""Numbers that are looked at once, piece by piece, and need not stay in memory afterwards."""

import ctypes
import gc
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

PIECE = 2**23  # bytes
FREED = 2**27  # bytes that are left to glibc
PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4; it never changes what memory holds


def pieces(tensor: Tensor) -> Iterator[Tensor]:
    """All numbers of a tensor, a few megabytes at a time, each paged out behind it."""
    if not tensor.is_contiguous():
        yield tensor
        return
    flat, step = tensor.detach().view(-1), max(PIECE // tensor.element_size(), 1)
    for start in range(0, len(flat), step):
        piece = flat[start : start + step]
        yield piece
        page_out(piece.data_ptr(), piece.nbytes)


def page_out(address: int, size: int) -> None:
    """Tells the system that these bytes are not needed soon: a mapped file is read again if so.

    Without this, a file that is read through a mapping stays in memory as a whole. Where the system
    does not know the call, nothing happens.
    """
    if _madvise is None:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        _madvise(first, last - first, PAGE_OUT)


def trim_heap(numbers: int) -> None:
    """Returns what numbers took in float64: glibc keeps pieces of up to 32 MB for itself.

    What is returned has to be asked for again, and looking through all that is free takes time:
    it is done once for every so many `numbers`.
    """
    global _freed
    _freed += 8 * numbers
    if _malloc_trim is not None and _freed > FREED:
        _malloc_trim(0)
        _freed = 0


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's search for cycles: a third of the time, where what is made stays anyway."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _of_libc(name: str, *arguments: Any) -> Any:
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function.argtypes = arguments
    return function


_freed = 0
_madvise = _of_libc("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_malloc_trim = _of_libc("malloc_trim", ctypes.c_size_t)
