"""What training on a CPU wants of its process: memory that a step frees stays for the next one, as a fresh page costs
more than what is written on it, and there are no denormals, which take a hundred times as long as other numbers."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# From malloc.h of the GNU C library: what to set, and to what. Every other C library is left as it is.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed memory back to the system; True if it understands. For the whole process."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*how) for how in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)))


@contextmanager
def no_denormals() -> Iterator[None]:
    """Numbers under the smallest normal one are 0 meanwhile, in this thread and in those that it starts."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
