"""Freed memory is used again, without asking the system."""

import os
import subprocess
import sys

import pytest

from latcodec import __main__, runtime
from latcodec.cli import main as cli

PAGES = """
import resource, sys
import torch
from latcodec.runtime import keep_freed_memory
how, megabytes = sys.argv[1], int(sys.argv[2])
if how != "give back" and not keep_freed_memory(everything=how == "everything"):
    sys.exit(3)
faults = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(megabytes, 2**18) for _ in range(6)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[1:]))
"""


# Left alone, the C library raises this as blocks go back; what goes back from then on depends on how its heap lies.
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


def pages(how: str, megabytes: int) -> int:
    command = [sys.executable, "-c", PAGES, how, str(megabytes)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | GIVES_BACK)
    if run.returncode == 3:
        pytest.skip("this C library has no mallopt")
    assert run.returncode == 0, run.stderr
    return int(run.stdout)


@pytest.mark.parametrize(("how", "megabytes"), [("everything", 80), ("planes", 20)])
def test_freed_memory_is_used_again(how, megabytes):
    kept, given_back = pages(how, megabytes), pages("give back", megabytes)
    assert kept * 4 < given_back


def test_a_block_larger_than_any_plane_goes_back():
    assert pages("planes", 80) * 4 > pages("give back", 80)


def test_the_command_line_keeps_it(monkeypatch):
    called = []
    monkeypatch.setattr(runtime, "keep_freed_memory", lambda: called.append("memory"))
    monkeypatch.setattr(cli, "main", lambda: called.append("command"))
    __main__.main()
    assert called == ["memory", "command"]
