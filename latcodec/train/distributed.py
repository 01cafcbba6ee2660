"""One training run over several processes that `torchrun` started.

    torchrun --nproc-per-node 4 -m latcodec train pictures/ -o run/ --minutes 60

The crops of a step are shared out: process r takes every world-th from the r-th on. Each computes the gradient of its
share; one all-reduce of a flat vector makes it the gradient of the whole batch; then all take the same step. That is
all, and it is explicit instead of DistributedDataParallel because DDP sees only what goes through a module's forward,
while losses here call parts of a model in their own order; because Muon and the clipping need the averaged gradient
and nothing earlier; and because a step recorded as CUDA graphs has to keep communication between two of them. What DDP
would add, communication during the backward pass, is nothing for networks of a few megabytes.

Rank 0 alone writes and reports. Whatever must be equal everywhere (when to stop, how much of a budget of minutes is
used) is agreed on before every step. Processes talk by gloo on the CPU and NCCL on GPUs, by gloo too where processes
share a GPU, which NCCL refuses.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch
from torch import Tensor

from latcodec.errors import LatcodecError, OptionError
from latcodec.parallel import under_torchrun

# A dead peer is noticed by its closed connection and by torchrun; this is for one that decodes or validates for long.
PATIENCE = timedelta(hours=6)


class Gone(LatcodecError):
    """Another process of the run has ended, or cannot be reached."""


class Workers:
    """The processes of a run as one of them sees them; alone, nothing is communicated."""

    def __init__(self, rank: int = 0, world: int = 1, local_world: int = 1):
        self.rank, self.world, self.local_world = rank, world, local_world

    @property
    def alone(self) -> bool:
        """Whether there is one process only."""
        return self.world == 1

    @property
    def speaks(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def say(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """`report` in the process that speaks, silence in the others."""
        return report if self.speaks else lambda line: None

    def agree(self, elapsed_s: float, stop: bool) -> tuple[float, bool]:
        """Seconds of rank 0, and whether any process wants to stop. Raises Gone."""
        if self.alone:
            return elapsed_s, stop
        told = torch.tensor([elapsed_s if self.speaks else 0.0, float(stop)], dtype=torch.float64)
        self._ask(lambda: torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX))
        return told[0].item(), bool(told[1].item())

    def sum(self, vector: Tensor) -> None:
        """Replace a tensor by the sum of all processes' tensors. Raises Gone."""
        self._ask(lambda: torch.distributed.all_reduce(vector))

    def same_start(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with rank 0's. Raises Gone."""
        if not self.alone:
            for tensor in tensors:
                value = tensor.contiguous()
                self._ask(lambda value=value: torch.distributed.broadcast(value, 0))
                tensor.copy_(value)

    def first_alone(self, make: Callable[[], object]) -> object:
        """`make()` in rank 0, then in the others, which find on disk what it left there. Raises Gone."""
        if self.alone:
            return make()
        made = make() if self.speaks else None
        self._ask(torch.distributed.barrier)
        return made if self.speaks else make()

    def part(self) -> None:
        """Wait for all at the end of a run: who leaves early tears connections down that others still have."""
        if not self.alone:
            with suppress(Gone):
                self._ask(torch.distributed.barrier)

    def close(self) -> None:
        """Leave the group."""
        if not self.alone and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _ask(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:  # torch.distributed.DistError is one
            reason = (str(error).splitlines() or [""])[0].split("] ", 1)[-1].split(". ")[0][:160]
            raise Gone(f"process {self.rank} of {self.world}: another one has ended: {reason}") from None


def join(device: str) -> Workers:
    """Join the processes of torchrun, if it runs, each on a GPU of its own as far as there are; raises OptionError."""
    if not under_torchrun():
        return Workers()
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local, local_world = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        backend = "gloo"
        if device == "cuda":
            count = torch.cuda.device_count()
            torch.cuda.set_device(local % count)
            backend = "cpu:gloo,cuda:nccl" if local_world <= count else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    except (KeyError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"torchrun's processes cannot talk to each other: {reason}") from None
    return Workers(rank, world, local_world)
