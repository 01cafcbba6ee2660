"""Seconds and bytes of one call: what entropy coding took of it, and the most memory it held."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps


@dataclass
class Memory:
    """Bytes a call held at most, beyond what the process held before it; None where it cannot be known."""

    process_bytes: int | None = None
    device_bytes: int | None = None


@dataclass
class EntropyClock:
    """Seconds inside the entropy coder since the clock was made."""

    encode_s: float = 0.0
    decode_s: float = 0.0


def now(device: str = "cpu") -> float:
    """Seconds of a steady clock, when everything given to the device is done."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def entropy_clock() -> Iterator[EntropyClock]:
    """Count the time inside the range coder, so that it means the same for every backend."""
    from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder

    clock = EntropyClock()
    places = [(RangeEncoder, "encode", "encode_s"), (RangeEncoder, "finish", "encode_s")]
    places += [(RangeDecoder, name, "decode_s") for name in ("__init__", "decode", "finish")]
    before = [(kind, name, getattr(kind, name)) for kind, name, _ in places]

    def timed(method, total: str):
        @wraps(method)
        def call(*arguments, **options):
            start = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                setattr(clock, total, getattr(clock, total) + time.perf_counter() - start)

        return call

    try:
        for kind, name, total in places:
            setattr(kind, name, timed(getattr(kind, name), total))
        yield clock
    finally:
        for kind, name, method in before:
            setattr(kind, name, method)


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Memory]:
    """Measure what the block holds at most. Linux lets a process reset its peak; elsewhere process_bytes stays None."""
    memory = Memory()
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # pages that are free already would hide those the block takes
    before = _status_bytes("VmRSS") if _reset_peak() else None
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    yield memory
    peak = _status_bytes("VmHWM")
    if before is not None and peak is not None:
        memory.process_bytes = max(0, peak - before)
    if device == "cuda":
        memory.device_bytes = torch.cuda.max_memory_allocated() - held


def _reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int | None:
    with suppress(OSError):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return 1024 * int(line.split()[1])
    return None
