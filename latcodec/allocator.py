"""Memory that a process frees stays with it: a page fresh from the system costs more than what is written on it.

The planes between two layers of a network are a few megabytes to a few dozen, made and dropped in every one. Told to
keep so much of them, a codec encodes and decodes in a tenth to a fifth less time, and holds hardly more.
"""

import ctypes

# From malloc.h of the GNU C library: what to set. Every other C library is left as it is.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_MOST_BYTES = 2**28  # free at the end of a heap, from which on the rest goes back
_LARGEST_KEPT_BYTES = 2**25  # the most that the library lets one say; what is larger goes back when it is freed


def keep_freed_memory(everything: bool = False) -> bool:
    """Tell the C library not to give freed memory back to the system; True if it understands. For the whole process.

    everything: whatever its size and however much of it; otherwise blocks up to 32 MiB, while no more than _MOST_BYTES
    are free at the end of the heap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if everything:
        how = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    else:
        how = ((_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES), (_TRIM_THRESHOLD, _MOST_BYTES), (_TOP_PAD, 2**24))
    return all([mallopt(*one) for one in how])
