"""Memory that a step frees stays with the process for the next one: a fresh page costs more than what is written on it."""

import ctypes

# From malloc.h of the GNU C library: what to set, and to what. Every other C library is left as it is.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell the C library not to give freed memory back to the system; True if it understands. For the whole process."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*how) for how in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)))
