"""The command that takes hours: train. Part of the room `cli`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command()
@click.argument("data", nargs=-1, required=True, metavar="DATA...")
@click.option("-o", "--output", required=True, metavar="OUT", help="Folder of checkpoint, log and weights.")
@click.option("--codec", default="hyperprior", show_default=True, metavar="NAME")
@click.option("--steps", type=click.IntRange(1), help="Whole budget in optimiser steps.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Whole budget in minutes of training.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Crops of PATCH px a step.")
@click.option("--patch", type=click.IntRange(64), default=128, show_default=True, help="Side of a crop, px.")
@click.option("--final-patch", type=click.IntRange(64), default=256, show_default=True, help="Side in the last fifth.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=5e-4, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--init", metavar="WEIGHTS", help="Start from weights or a checkpoint: every tensor that fits.")
@click.option("--cache", metavar="DIR", help="Keep decoded pictures there, for data larger than memory.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads; torch decides otherwise.")
@click.option("--compile", is_flag=True, help="Try torch.compile on CUDA: a minute at the start, faster steps.")
@click.option("--resume", is_flag=True, help="Go on from OUT's checkpoint; the budget counts from the start.")
def train(data, output, codec, batch_size, patch, final_patch, threads, **options):
    """Train a codec on pictures (files and folders) and export its weights to OUT."""
    from latcodec import codec as codec_room
    from latcodec.train.loop import TrainSettings, run

    if threads is not None:
        codec_room.set_threads(threads)
    settings = TrainSettings(
        codec=codec, data=data, out=output, batch_size=batch_size, patch=patch, final_patch=final_patch, **options
    )
    with _progress() as report:
        checkpoint = run(settings, report)
    from importlib import import_module

    room = "export" if codec == "hyperprior" else f"export_{codec.replace('-', '_')}"
    try:
        export = import_module(f"latcodec.train.{room}").export
    except ImportError as error:  # training machines need not have the entropy coder
        click.echo(f"latcodec: {checkpoint}: not exported: {error}; run the command again with --resume", err=True)
        return
    click.echo("fitting tables", err=True)
    path = Path(output) / f"{codec}.safetensors"
    export(checkpoint, path, _command(settings), list(data))
    click.echo(f"{path}: {path.stat().st_size} bytes", err=True)


def _command(settings) -> str:
    """The command as the weights remember it: without folders of this machine."""
    budget = f"--steps {settings.steps}" if settings.steps else f"--minutes {settings.minutes:g}"
    names = " ".join(Path(path).name for path in settings.data)
    sizes = f"--batch-size {settings.batch_size} --patch {settings.patch} --final-patch {settings.final_patch}"
    start = f" --init {Path(settings.init).name}" if settings.init else ""
    return (
        f"latcodec train --codec {settings.codec} {names} {budget} {sizes} --lr {settings.lr:g} --seed {settings.seed}"
        f"{start}"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that changes on a terminal, lines elsewhere and where rich is not installed."""
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
