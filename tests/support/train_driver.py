"""Not a test: the process of a training run that tests start, alone or under torchrun. A narrow network.

    python tests/support/train_driver.py PICTURES OUT STEPS [quiet] [die-RANK-STEP]

quiet: without noise, so that what differs between one process and several is the order of sums alone.
die-RANK-STEP: the process of that rank kills itself before that step.
"""

import os
import signal
import sys
from dataclasses import replace

import torch

from latcodec.errors import LatcodecError
from latcodec.train import distributed
from latcodec.train import trainer as loop
from latcodec.train.step import Stepper

NARROW = {"widths": "8,12,16", "latent": "16", "hyper_width": "12", "hyper_latent": "8", "knots": "3"}


def main(pictures: str, out: str, steps: str, *more: str) -> int:
    torch.set_num_threads(1)
    real, step = loop.plan_of, Stepper.step

    def quiet(codec):
        plan = real(codec)
        return replace(
            plan, loss=lambda model, x, t, autocast, noise=True, progress=None: plan.loss(model, x, t, autocast, False)
        )

    if "quiet" in more:
        loop.plan_of = quiet
    workers = distributed.join("cpu")
    deadly = [tuple(map(int, word.split("-")[1:])) for word in more if word.startswith("die-")]

    def dying(self, number, *given):
        if (workers.rank, number) in deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, number, *given)

    Stepper.step = dying
    settings = loop.TrainSettings(
        "hyperprior", (pictures,), out, steps=int(steps), batch_size=6, patch=64, final_patch=64, lr=2e-3, ema=0.9,
        autocast=False, options=tuple(NARROW.items()),
    )  # fmt: skip
    try:
        loop.run(settings, lambda line: print(line, flush=True), workers)
    except LatcodecError as error:
        print(f"latcodec: {error}", flush=True)
        return 1
    finally:
        loop.plan_of, Stepper.step = real, step
        workers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
