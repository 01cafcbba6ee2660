"""Options that several commands share. Part of the room `cli`."""

from __future__ import annotations

import math
from collections.abc import Callable

import click

from latcodec.runtime import MAX_PIXELS


def finite(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number", ctx=ctx, param=parameter)
    return value


def _options(*decorators: Callable) -> Callable[[Callable], Callable]:
    def decorate(command: Callable) -> Callable:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object per input on stdout.")
max_pixels_option = click.option(
    "--max-pixels", type=click.IntRange(1), default=MAX_PIXELS, show_default=True, help="Refuse larger pictures."
)
network_options = _options(
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads; torch decides otherwise."),
    click.option("--weights", metavar="PATH", help="A weights file or a folder of them."),
)
manners_options = _options(
    max_pixels_option,
    click.option("-f", "--force", is_flag=True, help="Overwrite existing outputs."),
    click.option("--skip-existing", is_flag=True, help="Leave existing outputs, do the rest."),
    json_option,
    click.option("-v", "--verbose", is_flag=True, help="Also say where the time went."),
    click.option("--quiet", is_flag=True, help="Say nothing but errors."),
)
