"""The command encode: pictures to .lc files."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from latcodec import backends, files, parallel, runtime, text
from latcodec.cli.jobs import JobResult, OutputStyle, plan_together, run_jobs, search_progress
from latcodec.cli.options import (
    CODEC,
    METADATA,
    OUTPUT,
    RATE,
    HeadedCommand,
    check_stdout,
    examples,
    existing_options,
    finite,
    machine_options,
    max_input_bytes,
    message_options,
    option,
    weights_option,
)
from latcodec.cli.paths import Job, plan_outputs
from latcodec.errors import OptionError, TargetError
from latcodec.images.formats import PICTURE_SUFFIXES
from latcodec.rates import METRICS

if TYPE_CHECKING:
    from pathlib import Path

    from latcodec.encoder import Encoded
    from latcodec.images import Picture
    from latcodec.settings import EncodeSettings

EPILOG = examples(
    "latcodec encode photo.png                          makes photo.lc",
    "latcodec encode album/ -o coded/ --quality 60",
    "latcodec encode photo.jpg --size 50000 --effort 5",
    "cat photo.png | latcodec encode - -o - > photo.lc",
)
_POSITIVE = click.FloatRange(0, min_open=True)


@click.command(cls=HeadedCommand, epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@option(
    RATE, "-q", "--quality", type=click.FloatRange(1, 100), callback=finite,
    help="Quality, 1 to 100: the scale of --lambda for people.",
)  # fmt: skip
@option(
    RATE, "--lambda", "lmbda", type=click.FloatRange(0.1, 41.4), callback=finite,
    help="Price of a bit, 0.1 to 20 or, with some codecs, 41; larger makes smaller files. Default 1.",
)  # fmt: skip
@option(
    RATE, "--bpp", type=_POSITIVE, callback=finite, help="Search for the best file of at most so many bits per pixel."
)
@option(RATE, "--psnr", type=_POSITIVE, callback=finite, help="Search for the smallest file of at least so many dB.")
@option(
    RATE, "--size", "size_bytes", type=click.IntRange(1), metavar="BYTES",
    help="Search for the best file of at most so many bytes.",
)  # fmt: skip
@option(
    RATE, "--metric", type=click.Choice(METRICS),
    help="The distortion that the codec was trained for: mse, or ms-ssim, which is closer to what people see.",
)  # fmt: skip
@option(
    CODEC, "--codec", "codec_name", metavar="NAME", show_default=f"{backends.DEFAULT}, or that of --weights FILE",
    help=f"One of {', '.join(backend.name for backend in backends.BACKENDS)}.",
)  # fmt: skip
@option(CODEC, "-O", "options", multiple=True, metavar="KEY=VALUE", help="An option of the codec; may be repeated.")
@option(
    CODEC, "--effort", type=click.IntRange(0, 9), metavar="0...9",
    help="Spend more time on smaller files, with codecs that can.",
)  # fmt: skip
@option(
    CODEC, "--max-seconds", type=_POSITIVE, callback=finite,
    help="End the search of --effort by then; with --bpp, --psnr or --size, the search of all trials together.",
)  # fmt: skip
@weights_option
@option(CODEC, "--no-verify", is_flag=True, help="Do not decode the integers back before the file is written.")
@option(OUTPUT, "-o", "--output", metavar="OUT", help="A file, a folder or -; otherwise name.lc beside the input.")
@existing_options
@option(METADATA, "--strip", is_flag=True, help="Leave out EXIF, XMP and the ICC profile.")
@message_options
@machine_options
def encode(**arguments: Any) -> None:
    """Encode pictures or folders of pictures to .lc files.

    Where --bpp, --psnr or --size cannot be met the nearest file is written and the exit code is 1.
    """
    EncodeCommand(**arguments).run()


@dataclass(frozen=True)
class EncodeCommand:
    """The arguments of `latcodec encode`, under the names of its options."""

    inputs: tuple[str, ...]
    output: str | None
    codec_name: str | None
    options: tuple[str, ...]
    effort: int | None
    max_seconds: float | None
    lmbda: float | None
    quality: float | None
    bpp: float | None
    psnr: float | None
    size_bytes: int | None
    metric: str | None
    no_verify: bool
    strip: bool
    device: str
    threads: int | None
    weights: str | None
    max_pixels: int
    force: bool
    skip_existing: bool
    as_json: bool
    verbose: bool
    quiet: bool

    def run(self) -> None:
        """Encode all inputs."""
        self._refuse_two_rates()
        style, team = self.style, parallel.current_team()
        jobs = plan_together(team, self.plan)
        team.select_gpu(self.device)
        if self.threads is not None:
            runtime.set_threads(self.threads)
        worker = EncodeWorker(self, self.settings(), len(jobs), team)
        run_jobs(jobs, worker.encode, style, team)

    def _refuse_two_rates(self) -> None:
        rates = {
            "--lambda": self.lmbda, "--quality": self.quality, "--bpp": self.bpp, "--psnr": self.psnr,
            "--size": self.size_bytes,
        }  # fmt: skip
        given = [name for name, value in rates.items() if value is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude each other; give one")

    @cached_property
    def style(self) -> OutputStyle:
        """What to print."""
        return OutputStyle(self.as_json, self.quiet, self.verbose)

    @property
    def codec_flags(self) -> dict[str, str]:
        """The options of the codec that have flags of their own, as `key=value` by key."""
        seconds = None if self.max_seconds is None else f"{self.max_seconds:g}"
        flags = {"effort": self.effort, "max_seconds": seconds, "metric": self.metric}
        return {name: f"{name}={value}" for name, value in flags.items() if value is not None}

    def codec(self) -> str:
        """Return the name of the codec with all options: `name:key=value,key=value`."""
        from latcodec.settings import choose_codec

        name = choose_codec(self.codec_name, self.weights)
        for pair in (*self.options, *self.codec_flags.values()):
            name += ("," if ":" in name else ":") + pair
        return name

    def plan(self) -> list[Job]:
        """Return the jobs, after every check that needs no picture."""
        jobs = plan_outputs(
            self.inputs, self.output, ".lc", suffixes=PICTURE_SUFFIXES, force=self.force,
            skip_existing=self.skip_existing,
        )  # fmt: skip
        check_stdout(jobs, self.style)
        from latcodec.settings import check_codec

        check_codec(self.codec(), self.codec_flags)
        runtime.pick_device(self.device)
        return jobs

    def settings(self) -> EncodeSettings:
        """Return how to encode each picture."""
        from latcodec import api

        return api.EncodeSettings(
            codec=self.codec(), lmbda=self.lmbda, quality=self.quality, bpp=self.bpp, psnr=self.psnr,
            size_bytes=self.size_bytes, device=self.device, weights=self.weights, verify=not self.no_verify,
            strip=self.strip,
        )  # fmt: skip


@dataclass(frozen=True)
class EncodeWorker:
    """Encodes one input after the other.

    Attributes:
        command: The arguments of the command.
        settings: How to encode each picture.
        job_count: The number of inputs of all processes.
        team: The processes of the command.
    """

    command: EncodeCommand
    settings: EncodeSettings
    job_count: int
    team: parallel.Team

    def encode(self, job: Job) -> JobResult:
        """Encode one input into its output."""
        from latcodec import api, images

        start = time.perf_counter()
        source, bytes_in = _open_source(job, max_input_bytes(self.command.max_pixels))
        picture = images.read_picture(source, max_pixels=self.command.max_pixels)
        with search_progress(self.job_count, self.command.style, self.team) as progress:
            encoded = api.encode_picture(picture, self.settings, progress)
        with files.open_output(job.target, force=self.command.force) as file:
            file.write(encoded.data)
        return _result(picture, encoded, bytes_in, time.perf_counter() - start)


def _open_source(job: Job, limit_bytes: int) -> tuple[Path | BinaryIO, int]:
    """Return what `read_picture` reads, and its size in bytes."""
    if job.source is not None:
        return job.source, job.source.stat().st_size
    data = files.read_bytes(None, limit_bytes)
    stream = io.BytesIO(data)
    stream.name = "stdin"
    return stream, len(data)


def _result(picture: Picture, encoded: Encoded, bytes_in: int, total_s: float) -> JobResult:
    """Return the record for --json and the lines for people."""
    bytes_out = len(encoded.data)
    height, width = picture.pixels.shape[:2]
    notes = (*picture.notes, *(note for note in encoded.notes if note != encoded.missed))
    record = {
        "bytes_in": bytes_in, "bytes_out": bytes_out, "width": width, "height": height,
        "rate_index": encoded.rate_index, "lambda": encoded.lmbda, "bpp": encoded.bpp, "psnr_db": encoded.psnr_db,
        "estimated_bits": encoded.estimated_bits, "trials": encoded.trials,
        "seconds": {**encoded.seconds, "total": total_s}, "notes": notes,
    } | ({"details": encoded.details} if encoded.details else {})  # fmt: skip
    line = f"{text.size_change(bytes_in, bytes_out)}, {encoded.bpp:.2f} bpp, lambda {encoded.lmbda:.3g}"
    if encoded.details.get("lossless", False):
        line += ", without loss"
    elif encoded.psnr_db is not None:
        line += f", {encoded.psnr_db:.2f} dB"
    line += f", {encoded.trials} trials" if encoded.trials > 1 else ""
    summary = f"{width}x{height}, rate index {encoded.rate_index}, estimate {encoded.estimated_bits / 8:.0f} B"
    details = [f"{summary}, {text.stage_times(encoded.seconds)}", *text.record_lines(encoded.details)]
    error = TargetError(encoded.missed) if encoded.missed else None
    return JobResult(record, f"{line}, {total_s:.2f} s", "\n".join(details), notes, error)
