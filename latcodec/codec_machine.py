"""What this machine can do for a picture: the device networks run on, the memory they take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from latcodec.errors import ImageError, OptionError

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
