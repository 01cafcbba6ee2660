"""The command that takes hours: train. Part of the room `cli`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from latcodec import runtime
from latcodec.errors import LatcodecError, OptionError
from latcodec.rates import METRICS

EPILOG = """\b
torchrun --nproc-per-node N -m latcodec train ... shares the batch out over N processes (GPUs).
Ctrl-C and SIGTERM write the checkpoint first; the same command with --resume goes on, with --steps bit for bit
as if it had not been stopped."""
SPEAKS_S = 10.0  # what all processes fail with is said by the first; the others wait so long to be ended


@click.command(epilog=EPILOG)
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output", required=True, metavar="OUT", help="Folder of checkpoint, log, report and weights.")
@click.option("--codec", default="hyperprior", show_default=True, metavar="NAME")
@click.option("--steps", type=click.IntRange(1), help="Whole budget in optimiser steps.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Whole budget in minutes of training.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Crops of PATCH px a step.")
@click.option("--patch", type=click.IntRange(64), help="Side of a crop, px; 128, with ms-ssim 192.")
@click.option("--final-patch", type=click.IntRange(64), default=256, show_default=True, help="Side in the last fifth.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True)
@click.option(
    "--decay-from",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of the budget after which the learning rate falls.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--init", metavar="WEIGHTS", help="Start from weights or a checkpoint: every tensor that fits.")
@click.option("--only", metavar="NAMES", help="Train the parameters whose names begin so; commas between several.")
@click.option("--lambda-range", type=float, nargs=2, metavar="A B", help="Train these rates only, of 0.1 ... 41.")
@click.option("--metric", type=click.Choice(METRICS), default=METRICS[0], show_default=True, help="Distortion.")
@click.option("--mi-weight", metavar="W", help="vbq: weight of the mutual information of some channels.")
@click.option("--mi-fraction", metavar="F", help="vbq: the share of the channels it acts on, 0 ... 1.")
@click.option("--gamma", is_flag=True, help="pln: learn the scale of the likelihood.")
@click.option("--likelihood", type=click.Choice(["gaussian", "laplace"]), help="pln: squared or absolute error.")
@click.option("--input-noise", metavar="STD", help="nc-vae: noise on the input, trainable or a number of 0 ... 1.")
@click.option("-O", "options", multiple=True, metavar="KEY=VALUE", help="An option of the network; may be repeated.")
@click.option("--cache", metavar="DIR", help="Keep decoded pictures there; OUT/decoded if memory is too small.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads; torch decides otherwise.")
@click.option("--compile", is_flag=True, help="Try torch.compile on CUDA: a minute at the start, faster steps.")
@click.option(
    "--checkpoint-minutes",
    type=click.FloatRange(0, min_open=True),
    default=3.0,
    show_default=True,
    help="Minutes of training between checkpoints.",
)
@click.option(
    "--validate-minutes",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Minutes of training between validations.",
)
@click.option("--resume", is_flag=True, help="Go on from OUT's checkpoint; the budget counts from the start.")
def train(data, output, codec, batch_size, patch, metric, lambda_range, threads, device, options, **others):
    """Train a codec on pictures (files and folders) and export its weights to OUT."""
    named = {k: others.pop(k) for k in ("mi_weight", "mi_fraction", "gamma", "likelihood", "input_noise")}
    named["gamma"] = "1" if named["gamma"] else None
    chosen = [(name, value) for name, value in named.items() if value is not None]
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise OptionError(f"-O {option}: not of the form key=value")
        chosen.append((name, value))
    from latcodec.train import distributed
    from latcodec.train import trainer as loop

    if threads is not None:
        runtime.set_threads(threads)
    patch = patch or (192 if metric == "ms-ssim" else 128)
    settings = loop.TrainSettings(
        codec=codec, data=data, out=output, batch_size=batch_size, patch=patch, metric=metric,
        lambda_range=lambda_range, options=tuple(chosen), device=runtime.pick_device(device), **others,
    )  # fmt: skip
    workers = distributed.join(settings.device)
    try:
        with _progress(workers.speaks) as report:
            checkpoint = loop.run(settings, report, workers, _page(report))
    except loop.Stopped as stopped:
        if workers.speaks:
            click.echo(f"latcodec: {stopped}", err=True)
        click.get_current_context().exit(130)
    except LatcodecError:
        if not workers.speaks:
            time.sleep(SPEAKS_S)
        raise
    finally:
        workers.close()
    if workers.speaks:
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


def _page(report: Callable[[str], None]) -> Callable[[Path], None]:
    """Draws report.html; says once why it cannot, and never ends a run of hours because of a page."""
    said: list[str] = []

    def show(out: Path) -> None:
        try:
            from latcodec.report import training as report_train

            report_train.write(out)
        except Exception as error:
            if not said:
                said.append(f"no report.html: {type(error).__name__}: {error}")
                report(said[0])

    return show


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
    """A line that changes on a terminal, lines elsewhere and where rich is not installed."""
    if not speaks:
        yield lambda line: None
        return
    try:
        from rich.console import Console
    except ImportError:
        Console = None
    if Console is None or not sys.stderr.isatty():
        yield lambda line: click.echo(line, err=True)
        return
    console = Console(stderr=True)
    with console.status("decoding pictures") as status:

        def report(line: str) -> None:
            if line.startswith("step"):
                status.update(line)
            else:
                console.print(line, markup=False, highlight=False)

        yield report
