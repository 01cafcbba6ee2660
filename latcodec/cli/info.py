"""The command info: what .lc files say, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from latcodec import container, files, text
from latcodec.cli.jobs import JobResult, OutputStyle, run_jobs
from latcodec.cli.options import (
    OUTPUT,
    HeadedCommand,
    examples,
    json_option,
    max_input_bytes,
    max_pixels_option,
    option,
    weights_option,
)
from latcodec.cli.paths import CODED_SUFFIXES, Job, expand_input

EPILOG = examples(
    "latcodec info photo.lc",
    "latcodec info --check coded/",
    "latcodec info --json --channels photo.lc",
)


@click.command(cls=HeadedCommand, epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="FILE...")
@option(OUTPUT, "--check", is_flag=True, help="Only check checksums and lengths; exit code 1 for damage.")
@option(OUTPUT, "--channels", is_flag=True, help="Also print the bits of each latent channel; needs the weights.")
@weights_option
@json_option
@max_pixels_option
def info(**arguments: Any) -> None:
    """Print what the headers of .lc files say, without decoding; of a damaged file as far as it can be read."""
    InfoCommand(**arguments).run()


@dataclass(frozen=True)
class InfoCommand:
    """The arguments of `latcodec info`, under the names of its options."""

    inputs: tuple[str, ...]
    check: bool
    as_json: bool
    channels: bool
    weights: str | None
    max_pixels: int

    def run(self) -> None:
        """Print what all inputs say."""
        sources = [source for name in self.inputs for source, _ in expand_input(name, CODED_SUFFIXES)]
        jobs = [Job(source, None) for source in sources]
        run_jobs(jobs, self.inspect, OutputStyle(self.as_json, writes_files=False))

    def inspect(self, job: Job) -> JobResult:
        """Return what one file says."""
        data = files.read_bytes(job.source, max_input_bytes(self.max_pixels), magic=container.MAGIC)
        if self.check:
            container.unpack(data, max_pixels=self.max_pixels)
            return JobResult({"check": "ok"}, "ok")
        from latcodec import api

        record = api.info(data, max_pixels=self.max_pixels, ignore_checksum=True)
        if self.channels:
            record["channel_bits"] = api.channel_bits(data, weights=self.weights, max_pixels=self.max_pixels)
        return JobResult(record, "\n".join(["", *text.record_lines(record)]))
