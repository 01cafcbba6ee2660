"""The command train: learn the weights of a codec from pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from latcodec import runtime
from latcodec.cli.options import (
    CODEC,
    MACHINE,
    OUTPUT,
    HeadedCommand,
    device_option,
    examples,
    option,
    threads_option,
)
from latcodec.errors import LatcodecError, OptionError
from latcodec.rates import METRICS

BUDGET = "Budget"
CROPS = "Crops"
LEARNING = "Learning"
NETWORK = "Network and loss"
CHECKPOINTS = "Checkpoints"

NOTES = """\b
torchrun --nproc-per-node N -m latcodec train ... shares the batch out over N processes (GPUs).
Ctrl-C and SIGTERM write the checkpoint first; the same command with --resume goes on, with --steps bit for bit
as if it had not been stopped."""
EPILOG = examples(
    "latcodec train pictures/ -o run/ --minutes 60",
    "latcodec train pictures/ -o run/ --codec vbq --steps 50000 -O latent=128",
    "latcodec train pictures/ -o run/ --minutes 60 --resume",
    notes=NOTES,
)
ERROR_DELAY_S = 10.0  # The first process reports an error of all; the others wait so long to be ended.


@click.command(cls=HeadedCommand, epilog=EPILOG, short_help="Train a codec on pictures and export its weights.")
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@option(BUDGET, "--steps", type=click.IntRange(1), help="The whole budget in steps of the optimiser.")
@option(BUDGET, "--minutes", type=click.FloatRange(0, min_open=True), help="The whole budget in minutes of training.")
@option(BUDGET, "--resume", is_flag=True, help="Go on from the checkpoint in OUT; the budget counts from the start.")
@option(OUTPUT, "-o", "--output", required=True, metavar="OUT", help="Folder of checkpoint, log, report and weights.")
@option(CODEC, "--codec", default="hyperprior", show_default=True, metavar="NAME", help="The codec to train.")
@option(CODEC, "-O", "options", multiple=True, metavar="KEY=VALUE", help="An option of the network; may be repeated.")
@option(CODEC, "--init", metavar="WEIGHTS", help="Start from weights or a checkpoint: every tensor that fits.")
@option(
    CODEC, "--only", metavar="NAMES",
    help="Train only the parameters whose names begin with one of these, comma-separated.",
)  # fmt: skip
@option(
    CROPS, "--batch-size", type=click.IntRange(1), default=16, show_default=True,
    help="The number of crops of --patch px in a step.",
)  # fmt: skip
@option(CROPS, "--patch", type=click.IntRange(64), help="The side of a crop in px; 128, with ms-ssim 192.")
@option(
    CROPS, "--final-patch", type=click.IntRange(64), default=256, show_default=True,
    help="The side of a crop in the last fifth of the budget, px.",
)  # fmt: skip
@option(CROPS, "--cache", metavar="DIR", help="Keep decoded pictures there; OUT/decoded if memory is too small.")
@option(
    LEARNING, "--lr", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True,
    help="The learning rate at the start.",
)  # fmt: skip
@option(
    LEARNING, "--decay-from", type=click.FloatRange(0, 1, max_open=True), default=0.1, show_default=True,
    help="The fraction of the budget after which the learning rate falls.",
)  # fmt: skip
@option(
    LEARNING, "--seed", type=click.IntRange(0), default=0, show_default=True, help="The seed of all random numbers."
)
@option(LEARNING, "--lambda-range", type=float, nargs=2, metavar="A B", help="Train these rates only, of 0.1 ... 41.")
@option(
    NETWORK, "--metric", type=click.Choice(METRICS), default=METRICS[0], show_default=True,
    help="The distortion to train for.",
)  # fmt: skip
@option(NETWORK, "--mi-weight", metavar="W", help="vbq: weight of the mutual information of some channels.")
@option(NETWORK, "--mi-fraction", metavar="F", help="vbq: the fraction of the channels it acts on, 0 ... 1.")
@option(NETWORK, "--gamma", is_flag=True, help="pln: learn the scale of the likelihood.")
@option(NETWORK, "--likelihood", type=click.Choice(["gaussian", "laplace"]), help="pln: squared or absolute error.")
@option(
    NETWORK, "--input-noise", metavar="STD",
    help="nc-vae: standard deviation of noise on the input, trainable or a number of 0 ... 1.",
)  # fmt: skip
@option(
    CHECKPOINTS, "--checkpoint-minutes", type=click.FloatRange(0, min_open=True), default=3.0, show_default=True,
    help="Minutes of training between checkpoints.",
)  # fmt: skip
@option(
    CHECKPOINTS, "--validate-minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True,
    help="Minutes of training between validations.",
)  # fmt: skip
@device_option
@threads_option
@option(MACHINE, "--compile", is_flag=True, help="Try torch.compile on CUDA: a minute at the start, faster steps.")
def train(data, output, codec, batch_size, patch, metric, lambda_range, threads, device, options, **others):
    """Train a codec on pictures (files and folders) and export its weights to OUT."""
    named = {k: others.pop(k) for k in ("mi_weight", "mi_fraction", "gamma", "likelihood", "input_noise")}
    named["gamma"] = "1" if named["gamma"] else None
    chosen = [(name, value) for name, value in named.items() if value is not None]
    for pair in options:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise OptionError(f"-O {pair}: not of the form key=value")
        chosen.append((name, value))
    from latcodec.train import distributed
    from latcodec.train.trainer import Trainer, TrainingStoppedError, TrainSettings

    if threads is not None:
        runtime.set_threads(threads)
    patch = patch or (192 if metric == "ms-ssim" else 128)
    settings = TrainSettings(
        codec=codec, data=data, out=output, batch_size=batch_size, patch=patch, metric=metric,
        lambda_range=lambda_range, options=tuple(chosen), device=runtime.pick_device(device), **others,
    )  # fmt: skip
    workers = distributed.join(settings.device)
    try:
        with _progress(workers.is_main) as report:
            checkpoint = Trainer(settings, report, workers, _Page(report)).run()
    except TrainingStoppedError as stopped:
        if workers.is_main:
            click.echo(f"latcodec: {stopped}", err=True)
        click.get_current_context().exit(130)
    except LatcodecError:
        if not workers.is_main:
            time.sleep(ERROR_DELAY_S)
        raise
    finally:
        workers.close()
    if workers.is_main:
        _export(checkpoint, settings)


def _export(checkpoint: Path, settings) -> None:
    from latcodec.train.plans import plan_of

    plan = plan_of(settings.codec)
    if plan.exporter is None:
        click.echo(f"latcodec: {settings.codec} has no codec yet: {checkpoint} holds what was trained", err=True)
        return
    try:
        export = plan.load_exporter()
    except ImportError as error:  # training machines need not have the entropy coder
        click.echo(f"latcodec: {checkpoint}: not exported: {error}; run the command again with --resume", err=True)
        return
    click.echo("fitting tables", err=True)
    path = Path(settings.out) / f"{settings.codec}.safetensors"
    export(checkpoint, path, _command(settings), list(settings.data))
    click.echo(f"{path}: {path.stat().st_size} bytes", err=True)


class _Page:
    """Draws report.html; reports once why it cannot, and never ends a run of hours because of a page."""

    def __init__(self, report: Callable[[str], None]):
        self._report, self._failed = report, False

    def __call__(self, out: Path) -> None:
        try:
            from latcodec.report import training as training_report

            training_report.write(out)
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._report(f"no report.html: {type(error).__name__}: {error}")


def _command(settings) -> str:
    """The command as the weights remember it: without folders of this machine."""
    budget = f"--steps {settings.steps}" if settings.steps else f"--minutes {settings.minutes:g}"
    names = " ".join(Path(path).name for path in settings.data)
    sizes = f"--batch-size {settings.batch_size} --patch {settings.patch} --final-patch {settings.final_patch}"
    start = f" --init {Path(settings.init).name}" if settings.init else ""
    start += " --lambda-range {:g} {:g}".format(*settings.lambda_range) if settings.lambda_range else ""
    start += f" --only {settings.only}" if settings.only else ""
    start += f" --metric {settings.metric}" if settings.metric != "mse" else ""
    start += "".join(f" -O {name}={value}" for name, value in settings.options)
    return (
        f"latcodec train --codec {settings.codec} {names} {budget} {sizes} --lr {settings.lr:g} --seed {settings.seed}"
        f"{start}"
    )


@contextmanager
def _progress(speaks: bool) -> Iterator[Callable[[str], None]]:
    """Yield a function that prints progress: a line that changes on a terminal, lines elsewhere and without rich."""
    if not speaks:
        yield lambda line: None
        return
    console = _console() if sys.stderr.isatty() else None
    if console is None:
        yield lambda line: click.echo(line, err=True)
        return
    with console.status("decoding pictures") as status:
        yield _StatusLine(console, status).report


def _console() -> Any:
    """Return the terminal of rich; None where rich is not installed, as on a training machine it need not be."""
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(stderr=True)


class _StatusLine:
    """A line for the step at the bottom of a terminal, and other lines above it."""

    def __init__(self, console: Any, status: Any):
        self._console, self._status = console, status

    def report(self, line: str) -> None:
        if line.startswith("step"):
            self._status.update(line)
        else:
            self._console.print(line, markup=False, highlight=False)
