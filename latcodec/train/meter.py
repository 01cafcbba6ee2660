"""How a run is going: means over the last steps, speed, share of the time spent waiting for crops, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from latcodec.train.record import Record
from latcodec.train.step import Stepper

STEPS, SECONDS = 100, 10.0  # a report after so many steps; where each step is waited for, after so many seconds


class Meter:
    """Collects what steps return and reports it; never makes a device wait before it must.

    waits: whether numbers may be looked at after each step because the device is this processor.
    """

    def __init__(self, stepper: Stepper, record: Record | None, report: Callable[[str], None], waits: bool):
        self.stepper, self.record, self.report, self.waits = stepper, record, report, waits
        self.restart()

    def restart(self) -> None:
        """Forget the steps since the last report: something else took time."""
        self.window: list[Tensor] = []
        self.pictures, self.since, self.waited_s = 0, time.perf_counter(), self.stepper.feeder.waited_s

    def adds(self, means: Tensor, pictures: int) -> bool:
        """Take what a step returned; whether this is a moment to look at numbers."""
        self.window.append(means)
        self.pictures += pictures
        return self.waits or len(self.window) == STEPS

    def tells(self, step: int, elapsed_s: float, progress: float, lr: float, side: int) -> None:
        """After each step, `progress` the share of the budget that is done: report, if it is time to."""
        seconds = time.perf_counter() - self.since
        if step == 1 or len(self.window) >= STEPS or (self.waits and seconds >= SECONDS) or progress >= 1:
            self._tell(step, elapsed_s, progress, lr, side, seconds)
            self.restart()

    def _tell(self, step: int, elapsed_s: float, progress: float, lr: float, side: int, seconds: float) -> None:
        means = dict(zip(self.stepper.logged, torch.stack(self.window).mean(0).tolist(), strict=True))
        speed = self.pictures / seconds
        share = (self.stepper.feeder.waited_s - self.waited_s) / seconds
        left = (1 - progress) / progress * elapsed_s / 60 if progress else math.inf
        numbers = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.report(
            f"step {step} ({100 * min(progress, 1):.0f} %) {numbers} lr {lr:.2e} {speed:.1f} pictures/s of {side} px, "
            f"{100 * share:.0f} % waiting for data, {max(left, 0):.1f} min left"
        )
        if self.record is not None:
            rest = {"lr": lr, "pictures_per_s": speed, "data_share": share, "side_px": side}
            self.record.curve(step, elapsed_s / 60, means | rest)
