"""Where figures were made: processor, threads, device, versions. Without these a time means nothing."""

from __future__ import annotations

import hashlib
import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from latcodec import __version__

_PACKAGES = ("torch", "numpy", "constriction", "pillow", "pillow-jxl-plugin", "pytorch-msssim", "scipy")


# Modules and packages that decide what a codec writes.
CODEC_ROOMS = (
    "backends", "nn", "entropy", "container", "api", "encoder", "rate_control", "settings", "rates", "metrics",
    "runtime",
)  # fmt: skip


def describe(device: str, threads: int | None) -> dict[str, str]:
    """Label and text, in order of showing; device: cpu or cuda; threads: None for torch's own choice."""
    import torch

    found = {
        "latcodec": __version__,
        "CPU": processor(),
        "processors": f"{usable_processors()} usable of {os.cpu_count()}",
        "threads": str(threads or torch.get_num_threads()),
        "device": f"cuda: {torch.cuda.get_device_name()}" if device == "cuda" else device,
    }
    if total := _memory_bytes():
        found["memory"] = f"{total / 2**30:.1f} GiB"
    found |= {"system": platform.platform(), "Python": platform.python_version()}
    return found | {name: installed for name in _PACKAGES if (installed := _version(name))}


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache
def code_fingerprint() -> str:
    """Eight hex digits of what decides a codec's files and speed: this package's source and torch's version."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256((_version("torch") or "").encode())
    for path in code_files():
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def code_files() -> list[Path]:
    """The files of this package that decide what a codec writes and how fast."""
    folder = Path(__file__).parents[1]
    found = ([*folder.glob(f"{room}.py"), *folder.glob(f"{room}/**/*.py")]
             for room in CODEC_ROOMS)  # fmt: skip
    return sorted(path for room in found for path in room)
