"""Not a test: the process of a training run that tests start, alone or under torchrun. A narrow network.

    python tests/support/train_driver.py PICTURES OUT STEPS [quiet] [die-RANK-STEP]

quiet: without noise, so that what differs between one process and several is the order of sums alone.
die-RANK-STEP: the process of that rank kills itself before that step.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar
from unittest import mock

import torch

from latcodec.errors import LatcodecError
from latcodec.train import distributed, trainer
from latcodec.train.plans import TrainingPlan, plan_of
from latcodec.train.step import Stepper, StepPlan
from latcodec.train.trainer import Trainer, TrainSettings

NARROW = {"widths": "8,12,16", "latent": "16", "hyper_width": "12", "hyper_latent": "8", "knots": "3"}


@dataclass(frozen=True)
class QuietLoss:
    """A loss without noise."""

    loss: Callable

    def __call__(self, network, x, t, autocast=False, noise=True, progress=None):
        return self.loss(network, x, t, autocast, noise=False)


def quiet_plan_of(codec: str) -> TrainingPlan:
    plan = plan_of(codec)
    return replace(plan, loss=QuietLoss(plan.loss))


class MortalStepper(Stepper):
    """Kills its process before the steps that `deadly` names as (rank, step)."""

    deadly: ClassVar[set[tuple[int, ...]]] = set()

    def step(self, plan: StepPlan) -> torch.Tensor:
        if (self.workers.rank, plan.number) in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(plan)


def main(pictures: str, out: str, steps: str, *more: str) -> int:
    torch.set_num_threads(1)
    workers = distributed.join("cpu")
    MortalStepper.deadly = {tuple(map(int, word.split("-")[1:])) for word in more if word.startswith("die-")}
    settings = TrainSettings(
        "hyperprior", (pictures,), out, steps=int(steps), batch_size=6, patch=64, final_patch=64, lr=2e-3, ema=0.9,
        autocast=False, options=tuple(NARROW.items()),
    )  # fmt: skip
    plans = mock.patch.object(trainer, "plan_of", quiet_plan_of if "quiet" in more else plan_of)
    try:
        with plans, mock.patch.object(trainer, "Stepper", MortalStepper):
            Trainer(settings, lambda line: print(line, flush=True), workers).run()
    except LatcodecError as error:
        print(f"latcodec: {error}", flush=True)
        return 1
    finally:
        workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
