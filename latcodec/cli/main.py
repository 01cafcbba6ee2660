"""The command line: the group of commands, errors as one line, and exit codes.

PyTorch, NumPy and rich are imported by the commands that need them, when they run: help is there at once.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import click

from latcodec import __version__, text
from latcodec.cli.bench import bench
from latcodec.cli.decode import decode
from latcodec.cli.encode import encode
from latcodec.cli.info import info
from latcodec.cli.options import examples
from latcodec.cli.train import train
from latcodec.errors import LatcodecError, OptionError

EPILOG = examples(
    "latcodec encode photo.png          makes photo.lc",
    "latcodec decode photo.lc           makes photo.png",
    "latcodec COMMAND --help            lists the options of a command",
)


class ErrorReportingGroup(click.Group):
    """A group that turns our own errors into one line and an exit code.

    A bug keeps its traceback, and click handles a closed pipe.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except OptionError as error:
            message, code = str(error), 2
        except BrokenPipeError:
            raise
        except (LatcodecError, OSError) as error:
            message, code = text.error_line(error), 1
        click.echo(f"latcodec: {message}", err=True)
        ctx.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order in which people need them."""
        return list(self.commands)


@click.group(
    cls=ErrorReportingGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="latcodec")
def cli() -> None:
    """A learned image codec: small .lc files that decode to the same picture everywhere."""


for _command in (encode, decode, info, bench, train):
    cli.add_command(_command)


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Run the console script. SIGTERM unwinds like Ctrl-C, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="latcodec")
