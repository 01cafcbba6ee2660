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
from typing import TypeVar

import torch
from torch import Tensor

from latcodec.errors import LatcodecError, OptionError
from latcodec.parallel import under_torchrun

T = TypeVar("T")

# A dead peer is noticed by its closed connection and by torchrun; this is for one that decodes or validates for long.
PATIENCE = timedelta(hours=6)


class PeerLostError(LatcodecError):
    """Another process of the run has ended, or cannot be reached."""


class Workers:
    """The processes of a run as one of them sees them. Where there is one only, nothing is communicated.

    Args:
        rank: The number of this process.
        world: How many processes there are.
        local_world: How many of them run on this machine.
    """

    def __init__(self, rank: int = 0, world: int = 1, local_world: int = 1):
        self.rank, self.world, self.local_world = rank, world, local_world

    @property
    def is_single(self) -> bool:
        """Whether there is one process only."""
        return self.world == 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def main_only(self, report: Callable[[str], None]) -> Callable[[str], None]:
        """Return `report` in the main process, and a function that does nothing in the others."""
        return report if self.is_main else _discard

    def agree(self, elapsed_s: float, stop: bool) -> tuple[float, bool]:
        """Return the seconds of the main process, and whether any process wants to stop.

        Raises:
            PeerLostError: Another process has ended.
        """
        if self.is_single:
            return elapsed_s, stop
        values = torch.tensor([elapsed_s if self.is_main else 0.0, float(stop)], dtype=torch.float64)
        self._communicate(torch.distributed.all_reduce, values, torch.distributed.ReduceOp.MAX)
        return values[0].item(), bool(values[1].item())

    def sum(self, vector: Tensor) -> None:
        """Replace a tensor by the sum of all processes' tensors.

        Raises:
            PeerLostError: Another process has ended.
        """
        self._communicate(torch.distributed.all_reduce, vector)

    def broadcast(self, tensors: list[Tensor]) -> None:
        """Overwrite tensors with those of the main process.

        Raises:
            PeerLostError: Another process has ended.
        """
        if not self.is_single:
            for tensor in tensors:
                value = tensor.contiguous()
                self._communicate(torch.distributed.broadcast, value, 0)
                tensor.copy_(value)

    def main_first(self, make: Callable[[], T]) -> T:
        """Return `make()`, called in the main process first; the others find on disk what it left there.

        Raises:
            PeerLostError: Another process has ended.
        """
        if self.is_single:
            return make()
        made = make() if self.is_main else None
        self._communicate(torch.distributed.barrier)
        return made if self.is_main else make()

    def wait_for_all(self) -> None:
        """Wait for all at the end of a run: who leaves early tears connections down that others still use."""
        if not self.is_single:
            with suppress(PeerLostError):
                self._communicate(torch.distributed.barrier)

    def close(self) -> None:
        """Leave the group of processes."""
        if not self.is_single and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _communicate(self, operation: Callable[..., object], *arguments: object) -> None:
        try:
            operation(*arguments)
        except RuntimeError as error:  # torch.distributed.DistError is one
            reason = (str(error).splitlines() or [""])[0].split("] ", 1)[-1].split(". ")[0][:160]
            lost = f"process {self.rank} of {self.world}: another one has ended: {reason}"
            raise PeerLostError(lost) from None


def _discard(line: str) -> None:
    """Report nothing."""


def join(device: str) -> Workers:
    """Join the processes of torchrun, if it runs, each on a GPU of its own as far as there are enough.

    Args:
        device: "cpu" or "cuda".

    Raises:
        OptionError: The processes cannot reach each other.
    """
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
