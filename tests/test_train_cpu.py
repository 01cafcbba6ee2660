"""Freed memory is used again, without asking the system."""

import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import torch
from latcodec.train.cpu import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(20, 2**20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


def pages(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True)
    if run.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


def test_freed_memory_is_used_again():
    kept, given_back = pages("keep"), pages("give back")
    assert kept * 4 < given_back
