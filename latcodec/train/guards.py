"""What may interrupt a training run: signals, the end of memory, a loss that is no longer finite."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from latcodec.errors import LatcodecError


class StopSignals:
    """Collects SIGINT and SIGTERM while it is a context; a second one interrupts at once.

    Args:
        can_interrupt: Whether a second signal raises KeyboardInterrupt; not where other processes wait for this one.
    """

    def __init__(self, can_interrupt: bool):
        self.can_interrupt = can_interrupt
        self.received = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # signal handlers belong to this thread
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._previous = {number: signal.signal(number, self._handle) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received and self.can_interrupt:
            raise KeyboardInterrupt
        self.received = True


@contextmanager
def explained_out_of_memory(count: int, side_px: int, step: int) -> Iterator[None]:
    """Name the options to lower where memory ends while `count` crops of `side_px` are computed.

    Raises:
        LatcodecError: In place of what torch or numpy raise when memory ends.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not is_known and "can't allocate memory" not in str(error):
            raise
        where = f"out of memory in step {step} with {count} crops of {side_px} px"
        raise LatcodecError(f"{where}: lower --batch-size, --patch or --final-patch") from None
