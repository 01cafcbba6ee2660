"""The command decode: .lc files to pictures."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import click

from latcodec import files, parallel, runtime, text
from latcodec.cli.jobs import JobResult, OutputStyle, plan_together, run_jobs
from latcodec.cli.options import (
    OUTPUT,
    HeadedCommand,
    check_stdout,
    examples,
    existing_options,
    machine_options,
    max_input_bytes,
    message_options,
    option,
    weights_option,
)
from latcodec.cli.paths import CODED_SUFFIXES, Job, plan_outputs
from latcodec.container import MAGIC
from latcodec.images.formats import DEFAULT_FORMAT, WRITABLE, format_of_suffix

EPILOG = examples(
    "latcodec decode photo.lc                           makes photo.png",
    "latcodec decode coded/ -o album/ --format webp",
    "latcodec decode photo.lc -o photo.tif",
)


@click.command(cls=HeadedCommand, epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@option(OUTPUT, "-o", "--output", metavar="OUT", help="A file, a folder or -; otherwise name.png beside the input.")
@option(
    OUTPUT,
    "--format",
    "picture_format",
    type=click.Choice(list(WRITABLE), case_sensitive=False),
    help=f"The picture format; otherwise the suffix of OUT decides, or {DEFAULT_FORMAT}.",
)
@existing_options
@option(OUTPUT, "--ignore-checksum", is_flag=True, help="Decode what is left of a damaged file, if its codec can.")
@weights_option
@message_options
@machine_options
def decode(**arguments: Any) -> None:
    """Decode .lc files or folders of them to pictures."""
    DecodeCommand(**arguments).run()


@dataclass(frozen=True)
class DecodeCommand:
    """The arguments of `latcodec decode`, under the names of its options."""

    inputs: tuple[str, ...]
    output: str | None
    picture_format: str | None
    ignore_checksum: bool
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
        """Decode all inputs."""
        style, team = self.style, parallel.current_team()
        jobs = plan_together(team, self.plan)
        runtime.pick_device(self.device)
        team.select_gpu(self.device)
        for job in jobs:
            self.format_of(job)  # raises OptionError for an unknown suffix before any work
        if self.threads is not None:
            runtime.set_threads(self.threads)
        run_jobs(jobs, self.decode, style, team)

    @cached_property
    def style(self) -> OutputStyle:
        """What to print."""
        return OutputStyle(self.as_json, self.quiet, self.verbose)

    def plan(self) -> list[Job]:
        """Return the jobs, after every check that needs no file to be read."""
        suffix = WRITABLE[self.picture_format or DEFAULT_FORMAT].suffixes[0]
        jobs = plan_outputs(
            self.inputs, self.output, suffix, suffixes=CODED_SUFFIXES, force=self.force,
            skip_existing=self.skip_existing,
        )  # fmt: skip
        check_stdout(jobs, self.style)
        return jobs

    def format_of(self, job: Job) -> str:
        """Return the picture format of an output: --format, else its suffix where it has one, else the default."""
        if self.picture_format is not None or job.target is None or files.is_special(job.target):
            return self.picture_format or DEFAULT_FORMAT
        return format_of_suffix(job.target)

    def decode(self, job: Job) -> JobResult:
        """Decode one input into its output."""
        from latcodec import api, images

        start = time.perf_counter()
        data = files.read_bytes(job.source, max_input_bytes(self.max_pixels), magic=MAGIC)
        picture = api.decode_picture(
            data, device=self.device, weights=self.weights, max_pixels=self.max_pixels,
            ignore_checksum=self.ignore_checksum,
        )  # fmt: skip
        decoded = time.perf_counter()
        picture_format = self.format_of(job)
        with files.open_output(job.target, force=self.force) as file:
            notes = (*picture.notes, *images.write_picture(picture, file, picture_format))
            bytes_out = file.seek(0, io.SEEK_END)
        end = time.perf_counter()
        seconds = {"decode": decoded - start, "write": end - decoded, "total": end - start}
        height, width = picture.pixels.shape[:2]
        record = {
            "bytes_in": len(data), "bytes_out": bytes_out, "width": width, "height": height,
            "format": picture_format, "seconds": seconds, "notes": notes,
        }  # fmt: skip
        line = f"{text.size_change(len(data), bytes_out)}, {width}x{height}, {seconds['total']:.2f} s"
        return JobResult(record, line, text.stage_times(seconds), notes)
