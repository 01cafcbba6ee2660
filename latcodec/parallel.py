"""Many pictures over several processes that `torchrun` started: every picture once, one voice, one summary.

    torchrun --nproc-per-node 2 -m latcodec encode album/ -o coded/

Process `rank` of `world` does every world-th job. Rank 0 decides what there is to do before any process works, so that
no refusal ("exists") depends on what another has just written, and adds up at the end. Only rank 0 exits with an error
code for files that failed: torchrun ends all processes as soon as one fails, and the others' work would be lost.

What the processes tell each other is JSON in the launcher's own key-value store (torch.distributed.Store); there is no
process group, because nothing here is collective arithmetic. Outside torchrun a team is one process, and torch is not
imported. Waiting is polling, for a blocked store would not hear Ctrl-C or SIGTERM.
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
FLOOR_S = 10.0  # for one line: whoever holds the floor longer is dead, and an untidy line is better than none
HEARD_S = 10.0  # for all to hear of a refusal; who comes later finds nobody, and fails with one line
CONNECT = timedelta(minutes=5)


class Team:
    """The processes of one command as one of them sees them; alone, everything is what it would be without."""

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None):
        """rank: 0 ... world - 1; store: a torch.distributed.Store that all share, None if alone."""
        self.rank, self.world = rank, world
        self._store, self._decisions, self._posted, self._read = store, 0, 0, [0] * world

    def mine(self, jobs: Sequence[T]) -> Sequence[T]:
        """This process's share."""
        return jobs[self.rank :: self.world]

    def decide(self, make: Callable[[], T], write: Callable[[T], Any], read: Callable[[Any], T]) -> T:
        """What `make` returns in rank 0, everywhere; the others get it through JSON by `write` and `read`.

        If it raises in rank 0, which says why, the others leave with exit code 0 (SystemExit).
        """
        if self.world == 1:
            return make()
        key, self._decisions = f"decision/{self._decisions}", self._decisions + 1
        if self.rank == 0:
            try:
                made = make()
                text = json.dumps({"value": write(made)})
            except BaseException as error:
                with suppress(LatcodecError):  # the reason matters more than who hears that there is one
                    self._set(key, json.dumps({"refused": True}))
                    # The store may be this process's own: it must outlive the others' question.
                    last = time.monotonic() + (HEARD_S if isinstance(error, Exception) else 0)
                    for rank in range(1, self.world):
                        while not self._there(f"heard/{rank}") and time.monotonic() < last:
                            time.sleep(POLL_S)
                raise
            self._set(key, text)
            return made
        self._wait(key)
        told = json.loads(self._get(key))
        if "refused" in told:
            with suppress(LatcodecError):
                self._set(f"heard/{self.rank}", "")
            raise SystemExit(0)
        return read(told["value"])

    def post(self, value: Any) -> None:
        """Send rank 0 something of JSON; see `posted`."""
        self._set(f"post/{self.rank}/{self._posted}", json.dumps(value))
        self._posted += 1

    def posted(self) -> Iterator[Any]:
        """In rank 0: what has come since the last call, in order for each sender. Does not wait."""
        for rank in range(1, self.world):
            while self._there(key := f"post/{rank}/{self._read[rank]}"):
                self._read[rank] += 1
                value = json.loads(self._get(key))
                self._ask(lambda key=key: self._store.delete_key(key))
                yield value

    def gather(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any] | None:
        """The last act of a process: in rank 0, when all have come to it, what each gave, by rank; None elsewhere.

        meanwhile: is called in rank 0 while it waits, and once after the last has come.
        """
        if self.rank:
            self._set(f"end/{self.rank}", json.dumps(value))
            return None
        found = [value]
        for rank in range(1, self.world):
            self._wait(f"end/{rank}", meanwhile)
            found.append(json.loads(self._get(f"end/{rank}")))
        meanwhile()
        return found

    @contextmanager
    def floor(self) -> Iterator[None]:
        """While one process prints, the others do not: a line longer than a pipe takes at once stays whole."""
        if self.world == 1:
            yield
            return
        me, last, mine = str(self.rank + 1), time.monotonic() + FLOOR_S, False
        while not mine and time.monotonic() < last:
            mine = self._ask(lambda: self._store.compare_set("floor", "", me)) == me.encode()
            if not mine:
                time.sleep(0.002)
        try:
            yield
        finally:
            if mine:
                self._set("floor", "")

    def own_gpu(self, device: str) -> None:
        """Let "cuda" mean another GPU in each process of a machine, as far as there are."""
        if self.world > 1 and device != "cpu":
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", self.rank)) % torch.cuda.device_count())

    def _wait(self, key: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        while not self._there(key):
            meanwhile()
            time.sleep(POLL_S)

    def _there(self, key: str) -> bool:
        return self._ask(lambda: self._store.check([key]))

    def _get(self, key: str) -> bytes:
        return self._ask(lambda: self._store.get(key))

    def _set(self, key: str, value: str) -> None:
        self._ask(lambda: self._store.set(key, value))

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:  # torch.distributed.DistError is one
            reason = (str(error).splitlines() or [""])[0][:200]
            raise LatcodecError(f"process {self.rank} of {self.world}: the others are gone: {reason}") from None


def under_torchrun() -> bool:
    """Whether torchrun started this process as one of several.

    RANK and WORLD_SIZE alone are no sign of it: clusters set them in every shell.
    """
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def team() -> Team:
    """The team that torchrun's environment tells of; alone without one. Raises OptionError if it cannot be reached."""
    if not under_torchrun():
        return Team()
    try:
        from torch import distributed

        store, rank, world = next(distributed.rendezvous("env://", timeout=CONNECT))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a restart begins with empty shelves
        return Team(rank, world, distributed.PrefixStore(f"latcodec/{attempt}", store))
    except (ImportError, AttributeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"torchrun's processes cannot talk to each other: {reason}") from None
