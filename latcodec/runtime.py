"""The machine a process runs on: device, number formats, threads and memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from latcodec.errors import ImageError, OptionError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 268_435_456  # the largest width * height accepted, px, unless a caller or --max-pixels raises the limit
# What `latcodec encode` with hyperprior-context needs, in MiB: noise of 1.0, 2.0 and 6.3 megapixels at lambda 0.1 took
# 938, 965 and 1,696, photographs of 0.8, 2.4 and 6.3 megapixels at lambda 0.4 took 604, 888 and 1,330. Encoding without
# a residual layer needs less, and so does decoding.
MEMORY_BYTES, MEMORY_BYTES_PER_PIXEL = 850_000_000, 150


@contextmanager
def within_memory(width: int, height: int) -> Iterator[None]:
    """Refuse pictures that this machine cannot hold before anything is allocated.

    Args:
        width: The width of the picture, in pixels.
        height: The height of the picture, in pixels.

    Raises:
        ImageError: The picture needs more memory than the machine has.
        MemoryError: torch could not allocate memory inside the block.
    """
    need = MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * (width + -width % 64) * (height + -height % 64)
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else need
    size = f"{width} x {height} pixels need about {need / 2**30:.1f} GiB"
    if need > have:
        raise ImageError(f"{size}, this machine has {have / 2**30:.1f}")
    try:
        yield
    except RuntimeError as error:
        if "allocate memory" in str(error) or "out of memory" in str(error):
            raise MemoryError(f"{size}, more than is free") from None
        raise


def pick_device(name: str) -> str:
    """Return cpu or cuda for auto, cpu or cuda; raises OptionError for cuda where there is none."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device {name!r} is unknown; there are: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device cuda: no CUDA device can be used here; take --device cpu or auto")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def set_threads(count: int) -> None:
    """Set the number of CPU threads that the networks use."""
    import torch

    torch.set_num_threads(count)


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether bf16 is faster than float32, as on CUDA and on CPUs with bf16 dot products."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "avx512_bf16" in _cpu_flags()


@cache
def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


@contextmanager
def no_denormals() -> Iterator[None]:
    """Flush denormal numbers to 0 inside the block, in this thread and in those that it starts."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# The parameters of mallopt in malloc.h of the GNU C library. Every other C library is left as it is.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_MOST_FREE_BYTES = 2**28  # at the end of a heap; what exceeds it goes back to the system
_LARGEST_KEPT_BYTES = 2**25  # the largest threshold that the library accepts; larger blocks go back when they are freed


def keep_freed_memory(everything: bool = False) -> bool:
    """Tell the C library not to give freed memory back to the system, for the whole process.

    Args:
        everything: Whether all freed memory is kept. Otherwise blocks up to 32 MiB are, while no more than 256 MiB are
            free at the end of the heap.

    Returns:
        Whether the C library has such parameters and accepted them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    if everything:
        parameters = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26))
    else:
        parameters = ((_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES), (_TRIM_THRESHOLD, _MOST_FREE_BYTES), (_TOP_PAD, 2**24))
    return all([mallopt(name, value) for name, value in parameters])
