"""How a run is going: means over the last steps, speed, share of the time spent waiting for crops, time left."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from latcodec.train.record import Record
from latcodec.train.step import Stepper, StepPlan, TrainState

STEPS, SECONDS = 100, 10.0  # a report after so many steps; where each step is waited for, after so many seconds


class Meter:
    """Collects what steps return and reports it; never makes a device wait before it must.

    Args:
        stepper: Whose steps are counted.
        record: Where means are written; None in processes that write nothing.
        report: Receives lines of progress.
        reads_every_step: Whether numbers may be looked at after each step because the device is this processor.
    """

    def __init__(self, stepper: Stepper, record: Record | None, report: Callable[[str], None], reads_every_step: bool):
        self.stepper, self.record, self.report, self.reads_every_step = stepper, record, report, reads_every_step
        self.restart()

    def restart(self) -> None:
        """Forget the steps since the last report, because something else took time."""
        self._means: list[Tensor] = []
        self._crops, self._start, self._waited_s = 0, time.perf_counter(), self.stepper.feeder.waited_s

    def add(self, means: Tensor, crops: int) -> bool:
        """Take what a step of so many crops returned; returns whether this is a moment to look at numbers."""
        self._means.append(means)
        self._crops += crops
        return self.reads_every_step or len(self._means) == STEPS

    def report_if_due(self, plan: StepPlan, state: TrainState, progress: float) -> None:
        """Report after a step if it is time to.

        Args:
            plan: Of the step that is done.
            state: After it.
            progress: The share of the budget that is used then.
        """
        seconds = time.perf_counter() - self._start
        is_time = len(self._means) >= STEPS or (self.reads_every_step and seconds >= SECONDS)
        if is_time or state.step == 1 or progress >= 1:
            self._report(plan, state, progress, seconds)
            self.restart()

    def _report(self, plan: StepPlan, state: TrainState, progress: float, seconds: float) -> None:
        means = dict(zip(self.stepper.logged, torch.stack(self._means).mean(0).tolist(), strict=True))
        speed = self._crops / seconds
        waiting = (self.stepper.feeder.waited_s - self._waited_s) / seconds
        left_min = (1 - progress) / progress * state.elapsed_s / 60 if progress else math.inf
        numbers = " ".join(f"{name} {value:.4f}" for name, value in means.items())
        self.report(
            f"step {state.step} ({100 * min(progress, 1):.0f} %) {numbers} lr {plan.lr:.2e} {speed:.1f} pictures/s of "
            f"{plan.side_px} px, {100 * waiting:.0f} % waiting for data, {max(left_min, 0):.1f} min left"
        )
        if self.record is not None:
            rest = {"lr": plan.lr, "pictures_per_s": speed, "data_share": waiting, "side_px": plan.side_px}
            self.record.curve(state.step, state.elapsed_s / 60, means | rest)
