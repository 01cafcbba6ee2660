"""Whole training runs as processes: stopped by signals, shared out by torchrun, one of them killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import train_driver
from PIL import Image
from skimage import data as photographs

from latcodec.train import data, distributed
from latcodec.train import trainer as loop
from latcodec.train.distributed import Workers
from latcodec.train.objective import Objective
from latcodec.train.optimizer import MuonAdam
from latcodec.train.plans import plan_of
from latcodec.train.record import read_lines
from latcodec.train.settings import config_of
from latcodec.train.step import Stepper, StepPlan, TrainState
from latcodec.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

DRIVER = Path(__file__).parents[1] / "support" / "train_driver.py"
NARROW = {"widths": "8,12,16", "latent": "16", "hyper_width": "12", "hyper_latent": "8", "knots": "3"}
OPTIONS = [f"-O{name}={value}" for name, value in NARROW.items()]
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC")}, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(4):
        Image.fromarray(photographs.astronaut()[n * 60 : n * 60 + 90, 150:270]).save(folder / f"{n}.png")
    return folder


def command(pictures: Path, out: Path, steps: int, *more: str) -> list[str]:
    sizes = ["--batch-size", "2", "--patch", "64", "--final-patch", "64", "--threads", "1", "--device", "cpu"]
    return [sys.executable, "-m", "latcodec", "train", str(pictures), "-o", str(out), "--steps", str(steps), *sizes,
            *OPTIONS, *more]  # fmt: skip


def finish(arguments: list[str], code: int = 0) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def torchrun(count: int, *arguments: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return [sys.executable, *launcher, *arguments]


def state_of(out: Path) -> dict:
    return torch.load(out / loop.CHECKPOINT, weights_only=True)


def vector(state: dict) -> torch.Tensor:
    return torch.cat([value.float().ravel() for value in state["model"].values()])


def assert_equal(first: dict, second: dict) -> None:
    assert first["step"] == second["step"]
    for part in ("model", "ema"):
        assert [name for name in first[part] if not torch.equal(first[part][name], second[part][name])] == []
    moments = [[v for s in state["optimizer"]["state"].values() for v in s.values()] for state in (first, second)]
    assert moments[0] and all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_saves_and_the_resumed_run_is_the_uninterrupted_one(pictures, tmp_path, number):
    steps, halves, straight = 150, tmp_path / "halves", tmp_path / "straight"
    with subprocess.Popen(
        command(pictures, halves, steps), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        for line in process.stderr:  # the first step is done
            if line.startswith("step 1 "):
                break
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == 130, said
    half = state_of(halves)
    assert 1 <= half["step"] < steps
    last = said.strip().splitlines()[-1]
    assert f"stopped at step {half['step']}" in last and "--resume" in last and "Traceback" not in said
    for out in (halves, straight):
        settings = loop.TrainSettings("hyperprior", (str(pictures),), str(out), steps=steps, batch_size=2, patch=64,
                                      final_patch=64, options=tuple(NARROW.items()), resume=True)  # fmt: skip
        lines: list[str] = []
        Trainer(settings, lines.append).run()
        resumed = [line for line in lines if line.startswith(f"resumed at step {half['step']}, ")]
        assert len(resumed) == (out == halves) and "than before" not in "".join(resumed)
    assert_equal(state_of(halves), state_of(straight))
    rows = read_lines(halves / "curves.jsonl")
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows}) and rows[-1]["step"] == steps


def test_two_processes_train_what_one_trains(pictures, tmp_path):
    """Without noise only the order of sums differs, which Muon's bf16 and the rounding of latents enlarge: measured 4.5
    to 6.5 % of the way that four to twenty steps go. A gradient that were not averaged, or crops seen twice, would
    differ by as much as the way itself (see the next test for the exact statement)."""
    said = finish([*torchrun(2, str(DRIVER)), str(pictures), str(tmp_path / "two"), "4", "quiet"])
    assert said.count("validation ") == 1 and said.count("step 1 ") == 1  # one voice
    for name, steps in (("one", "4"), ("start", "1")):
        assert train_driver.main(str(pictures), str(tmp_path / name), steps, "quiet") == 0
    one, two, start = (vector(state_of(tmp_path / name)) for name in ("one", "two", "start"))
    assert (one - two).norm() < 0.15 * (one - start).norm()
    means = [read_lines(tmp_path / name / "curves.jsonl")[0] for name in ("one", "two")]
    for name in ("loss", "bpp", "psnr_db", "norm"):
        assert means[1][name] == pytest.approx(means[0][name], rel=2e-3)


class Half(Workers):
    """Process `rank` of two, whose sum is given the other's part by hand."""

    def __init__(self, rank: int):
        super().__init__(rank, 2)
        self.given, self.other = None, None

    def sum(self, vector):
        self.given = vector.clone()
        if self.other is not None:
            vector.add_(self.other)


@pytest.mark.parametrize("count", [4, 5])
def test_the_gradient_of_two_processes_is_that_of_one(pictures, count):
    """To float32 rounding, with shares of unequal size too; before Muon sees it."""
    plan = plan_of("hyperprior")
    config = config_of("hyperprior", plan.config, {}, tuple(NARROW.items()))
    training, _ = data.load([str(pictures)], 64)

    def quiet(model, x, t, autocast=False, noise=True, progress=None):
        return plan.loss(model, x, t, autocast, noise=False)

    def step(workers: Workers) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        model = plan.network(config).to(memory_format=torch.channels_last)
        optimizer, seen = MuonAdam(model, 0.0), []
        state = TrainState(model, optimizer, {k: v.detach().clone() for k, v in model.state_dict().items()})
        optimizer.step = lambda: seen.extend(p.grad.detach().clone().ravel() for p in model.parameters())
        stepper = Stepper(state, Objective(quiet, (0.0, 1.0)), data.Crops(training, 0), workers)
        means = stepper.step(StepPlan(number=0, count=count, side_px=64, lr=0.0, ema_decay=0.0, progress=0.0))
        stepper.close()
        return torch.cat(seen), means

    whole, means = step(Workers())
    halves = [Half(0), Half(1)]
    step(halves[0])
    halves[1].other = halves[0].given
    shared, shared_means = step(halves[1])
    assert (shared - whole).norm() < 1e-4 * whole.norm()
    assert torch.allclose(shared_means, means, rtol=1e-4)
    assert (halves[0].given - halves[1].given).norm() > 0.1 * halves[0].given.norm()  # they saw different crops


def test_a_worker_that_dies_ends_the_run_and_leaves_a_checkpoint(pictures, tmp_path):
    out = tmp_path / "run"
    said = finish(torchrun(2, str(DRIVER), str(pictures), str(out), "12", "die-1-5"), 1)
    told = [line for line in said.splitlines() if line.startswith("latcodec:")]
    assert len(told) == 1 and "process 0 of 2: another one has ended" in told[0] and "--resume" in told[0]
    assert "checkpoint.pt holds step 5" in told[0] and state_of(out)["step"] == 5
    finish(command(pictures, out, 6, "--resume"))
    assert state_of(out)["step"] == 6 and (out / "hyperprior.safetensors").exists()


def test_errors_of_all_processes_are_said_once(pictures, tmp_path):
    arguments = command(pictures, tmp_path / "run", 3, "--batch-size", "1")[1:]
    start = time.perf_counter()
    said = finish(torchrun(2, *arguments), 1)
    assert said.count("latcodec: --batch-size 1: 1 crops of 64 px cannot be shared by 2 processes; give 2") == 1
    assert time.perf_counter() - start < 60


def test_outside_torchrun_a_run_is_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("TORCHELASTIC")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "4")
    alone = distributed.join("cpu")
    assert alone.is_single and alone.is_main and alone.agree(1.5, True) == (1.5, True)
    value = torch.ones(2)
    alone.broadcast([value])
    assert np.array_equal(value, [1, 1]) and alone.main_first(lambda: 3) == 3
