"""Options that several commands share, and help that lists options under headings."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import click

from latcodec.cli.jobs import OutputStyle
from latcodec.cli.paths import Job
from latcodec.errors import OptionError
from latcodec.runtime import MAX_PIXELS

RATE = "Rate and quality"
CODEC = "Codec"
OUTPUT = "Output"
METADATA = "Metadata"
MESSAGES = "Messages"
MACHINE = "Machine"
OTHER = "Other options"

EXIT_CODES = """\b
Exit codes: 0 all done; 1 at least one input failed, or its file misses the --bpp, --psnr or --size;
2 the command was refused before any work; 130 interrupted. Data and --json go to stdout,
everything for people to stderr. "-" is stdin or stdout."""


class HeadedOption(click.Option):
    """An option that help lists under a heading."""

    def __init__(self, *arguments: Any, heading: str, **attributes: Any):
        """Take what click.Option takes, and the heading."""
        super().__init__(*arguments, **attributes)
        self.heading = heading


class HeadedCommand(click.Command):
    """A command whose help lists options under their headings, in the order in which these first appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each heading with its options; options without a heading come last."""
        records: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                records.setdefault(getattr(parameter, "heading", OTHER), []).append(record)
        records |= {OTHER: records.pop(OTHER)} if OTHER in records else {}
        for heading, lines in records.items():
            with formatter.section(heading):
                formatter.write_dl(lines)


def option(heading: str, *declarations: str, **attributes: Any) -> Callable[[Callable], Callable]:
    """Return a decorator as click.option does, for an option under a heading."""
    return click.option(*declarations, cls=HeadedOption, heading=heading, **attributes)


def examples(*lines: str, notes: str = EXIT_CODES) -> str:
    """Return the epilog of a command: commands to copy, then notes."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines), "", notes])


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse infinity and NaN, which click takes for numbers."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number", ctx=ctx, param=parameter)
    return value


def check_stdout(jobs: list[Job], style: OutputStyle) -> None:
    """Raise OptionError where an output goes to stdout together with --json, or to a terminal."""
    if any(job.target is None for job in jobs):
        if style.json:
            raise OptionError("--json and the output itself cannot share standard output; name a file with -o")
        if sys.stdout.isatty():
            raise OptionError("standard output is a terminal; name a file with -o, or pipe it")


def max_input_bytes(max_pixels: int) -> int:
    """Return the most bytes that an input of so many pixels can have: 16-bit RGBA twice over, and profiles."""
    return 16 * max_pixels + (1 << 26)


def _all_of(*decorators: Callable[[Callable], Callable]) -> Callable[[Callable], Callable]:
    """Return a decorator that applies several, so that help lists them in this order."""

    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


weights_option = option(
    CODEC, "--weights", metavar="PATH", help="A weights file or a folder of them; the installed weights otherwise."
)
json_option = option(MESSAGES, "--json", "as_json", is_flag=True, help="Print one JSON object per input to stdout.")
quiet_option = option(MESSAGES, "--quiet", is_flag=True, help="Print errors only.")
max_pixels_option = option(
    MACHINE,
    "--max-pixels",
    type=click.IntRange(1),
    default=MAX_PIXELS,
    show_default=True,
    help="Refuse pictures of more pixels, before memory is allocated.",
)
existing_options = _all_of(
    option(OUTPUT, "-f", "--force", is_flag=True, help="Overwrite existing outputs."),
    option(OUTPUT, "--skip-existing", is_flag=True, help="Leave existing outputs as they are and do the rest."),
)
message_options = _all_of(
    json_option,
    option(MESSAGES, "-v", "--verbose", is_flag=True, help="Also print sizes and times of each stage."),
    quiet_option,
)
device_option = option(
    MACHINE,
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the networks run; auto takes a CUDA GPU if there is one.",
)
threads_option = option(
    MACHINE, "--threads", type=click.IntRange(1), metavar="N", help="CPU threads; PyTorch decides otherwise."
)
machine_options = _all_of(device_option, threads_option, max_pixels_option)
