"""Shares the work of one command over several processes that `torchrun` started.

    torchrun --nproc-per-node 2 -m latcodec encode album/ -o coded/

Process `rank` of `world` does every world-th job. Rank 0 decides what there is to do before any process works, so that
a refusal ("exists") never depends on what another process has just written, and it adds up the results at the end. Only
rank 0 exits with an error code for files that failed, because torchrun ends all processes as soon as one fails, which
would lose the work of the others.

The processes exchange JSON through the key-value store of the launcher (torch.distributed.Store). There is no process
group, because nothing here is collective arithmetic. Outside torchrun a team is one process, and torch is not imported.
The processes wait by polling, because a blocking call of the store would not react to Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

from latcodec.errors import LatcodecError, OptionError

T = TypeVar("T")
POLL_S = 0.02
LOCK_POLL_S = 0.002
LOCK_TIMEOUT_S = 10.0  # A process that prints for longer is taken for dead: a mixed line is better than none.
REFUSAL_TIMEOUT_S = 10.0  # A process that comes later does not see the refusal and fails with one line.
CONNECT_TIMEOUT = timedelta(minutes=5)


class Team:
    """The processes of one command, as one of them sees them. A team of one works without a store.

    Attributes:
        rank: Number of this process, 0 ... world - 1.
        world: Number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None):
        """Join a team.

        Args:
            rank: Number of this process, 0 ... world - 1.
            world: Number of processes.
            store: A torch.distributed.Store that all processes share; None for a team of one.
        """
        self.rank, self.world = rank, world
        self._store = store
        self._decisions = 0
        self._sent = 0
        self._received = [0] * world

    def local_share(self, jobs: Sequence[T]) -> Sequence[T]:
        """Return the jobs of this process."""
        return jobs[self.rank :: self.world]

    def decide(self, make: Callable[[], T], to_json: Callable[[T], Any], from_json: Callable[[Any], T]) -> T:
        """Return in every process what `make` returns in rank 0.

        Args:
            make: Makes the decision; called in rank 0 only. If it raises, the exception leaves rank 0, and the other
                processes exit with code 0 (SystemExit).
            to_json: Turns the decision into what JSON can hold.
            from_json: Turns that into the decision again, in the other processes.
        """
        if self.world == 1:
            return make()
        key, self._decisions = f"decision/{self._decisions}", self._decisions + 1
        if self.rank == 0:
            try:
                decision = make()
                text = json.dumps({"value": to_json(decision)})
            except BaseException as error:
                self._refuse(key, error)
                raise
            self._set(key, text)
            return decision
        self._wait(key)
        message = json.loads(self._get(key))
        if "refused" in message:
            with suppress(LatcodecError):
                self._set(f"refusal-seen/{self.rank}", "")
            raise SystemExit(0)
        return from_json(message["value"])

    def _refuse(self, key: str, error: BaseException) -> None:
        """Let the other processes exit, and wait until they have seen that they should."""
        with suppress(LatcodecError):  # The caller raises `error`, which matters more than a failure of the store.
            self._set(key, json.dumps({"refused": True}))
            # This process may hold the store itself, which therefore has to outlive the questions of the others.
            deadline = time.monotonic() + (REFUSAL_TIMEOUT_S if isinstance(error, Exception) else 0)
            for rank in range(1, self.world):
                while not self._has(f"refusal-seen/{rank}") and time.monotonic() < deadline:
                    time.sleep(POLL_S)

    def send(self, value: Any) -> None:
        """Send rank 0 a value that JSON can hold; see `received`."""
        self._set(f"message/{self.rank}/{self._sent}", json.dumps(value))
        self._sent += 1

    def received(self) -> Iterator[Any]:
        """Yield in rank 0 what was sent since the last call, in order for each sender, without waiting."""
        for rank in range(1, self.world):
            while self._has(key := f"message/{rank}/{self._received[rank]}"):
                self._received[rank] += 1
                value = json.loads(self._get(key))
                self._call("delete_key", key)
                yield value

    def wait_for_all(self) -> Iterator[None]:
        """Yield in rank 0 while other processes have not reached `gather`, and once after the last has."""
        for rank in range(1, self.world):
            while not self._has(f"end/{rank}"):
                yield
                time.sleep(POLL_S)
        yield

    def gather(self, value: Any) -> list[Any] | None:
        """Return in rank 0 the values of all processes by rank, when all have called this; None elsewhere.

        This is the last thing that a process does with its team.

        Args:
            value: What this process gives; JSON can hold it.
        """
        if self.rank:
            self._set(f"end/{self.rank}", json.dumps(value))
            return None
        for _ in self.wait_for_all():
            pass
        return [value, *(json.loads(self._get(f"end/{rank}")) for rank in range(1, self.world))]

    @contextmanager
    def print_lock(self) -> Iterator[None]:
        """Keep the other processes from printing, so that a line longer than a pipe takes at once stays whole."""
        if self.world == 1:
            yield
            return
        owner, deadline, locked = str(self.rank + 1), time.monotonic() + LOCK_TIMEOUT_S, False
        while not locked and time.monotonic() < deadline:
            locked = self._call("compare_set", "print-lock", "", owner) == owner.encode()
            if not locked:
                time.sleep(LOCK_POLL_S)
        try:
            yield
        finally:
            if locked:
                self._set("print-lock", "")

    def select_gpu(self, device: str) -> None:
        """Make "cuda" mean another GPU in each process of a machine, as far as there are enough.

        Args:
            device: "cpu", which needs nothing, "cuda" or "auto".
        """
        if self.world > 1 and device != "cpu":
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())

    def _wait(self, key: str) -> None:
        while not self._has(key):
            time.sleep(POLL_S)

    def _has(self, key: str) -> bool:
        return self._call("check", [key])

    def _get(self, key: str) -> bytes:
        return self._call("get", key)

    def _set(self, key: str, value: str) -> None:
        self._call("set", key, value)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, method)(*arguments)
        except RuntimeError as error:  # The base of torch.distributed.DistError.
            reason = (str(error).splitlines() or [""])[0][:200]
            raise LatcodecError(f"process {self.rank} of {self.world}: the others are gone: {reason}") from None


def under_torchrun() -> bool:
    """Return whether torchrun started this process as one of several.

    RANK and WORLD_SIZE alone do not show it, because clusters set them in every shell.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def current_team() -> Team:
    """Return the team that torchrun's environment describes, or a team of one without torchrun.

    Raises:
        OptionError: The other processes cannot be reached.
    """
    if not under_torchrun():
        return Team()
    try:
        from torch import distributed

        store, rank, world = next(distributed.rendezvous("env://", timeout=CONNECT_TIMEOUT))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # Keys of an earlier attempt must not be seen.
        return Team(rank, world, distributed.PrefixStore(f"latcodec/{attempt}", store))
    except (ImportError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"torchrun's processes cannot talk to each other: {reason}") from None
