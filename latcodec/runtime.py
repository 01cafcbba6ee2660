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
# Measured of `latcodec encode` with hyperprior-context, MiB: noise of 1.0, 2.0 and 6.3 megapixels at lambda .1 938, 965
# and 1,696, photographs of 0.8, 2.4 and 6.3 at lambda .4 604, 888 and 1,330; less without details, and to decode.
MEMORY_BYTES, MEMORY_BYTES_PER_PIXEL = 850_000_000, 150


@contextmanager
def within_memory(width: int, height: int) -> Iterator[None]:
    """Refuse what this machine cannot hold before it is allocated; torch's own failures become MemoryError."""
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
    """cpu or cuda for auto, cpu or cuda; raises OptionError for cuda where there is none, never a silent fallback."""
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
    """bf16 pays on CUDA and on CPUs with bf16 dot products; elsewhere it is emulated and slower than float32."""
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
    """Numbers under the smallest normal one are 0 meanwhile, in this thread and in those that it starts."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


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
