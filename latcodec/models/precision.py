"""Which numbers a device multiplies fastest."""

from functools import cache
from pathlib import Path

import torch


def bf16_is_fast(device: torch.device) -> bool:
    """bf16 pays on CUDA and on CPUs with bf16 dot products; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "avx512_bf16" in _cpu_flags()


@cache
def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
