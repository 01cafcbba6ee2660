"""Starts that are made once, before training: trained weights in, a file for `latcodec train --init` out.

A module of this package with such a start has a function that follows the protocol `NetworkStart`, and runs as

    python -m latcodec.train.init.NAME SOURCE OUT [-O KEY=VALUE ...] [PICTURES ...]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from latcodec.errors import LatcodecError, OptionError
from latcodec.train.checkpoint import write_network


@dataclass(frozen=True)
class StartRequest:
    """What a start is made of.

    Attributes:
        source: Weights or a checkpoint.
        options: Fields of the new network's Config and their values as text.
        pictures: Files and folders that the start is fitted to.
        take: A second checkpoint, for the layer that a start adds; only where the start says so.
    """

    source: Path
    options: tuple[tuple[str, str], ...] = ()
    pictures: tuple[str, ...] = ()
    take: Path | None = None


class NetworkStart(Protocol):
    """Makes the network that training starts from."""

    def __call__(self, request: StartRequest) -> nn.Module:
        """Return a network with `config`.

        Raises:
            LatcodecError: The source is not what the start needs.
        """


def run_command(codec: str, start: NetworkStart, description: str | None, takes: str | None = None) -> None:
    """Make a start as the arguments of this process say and write it.

    Args:
        codec: Name of the codec whose network `start` makes.
        start: What makes it.
        description: Text of `--help`.
        takes: Help of `--take`; None where there is no such option.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="weights or a checkpoint")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("pictures", nargs="*", help="files and folders that the start is fitted to")
    parser.add_argument("-O", dest="options", action="append", default=[], metavar="KEY=VALUE")
    if takes is not None:
        parser.add_argument("--take", type=Path, help=takes)
    given = parser.parse_args()
    torch.manual_seed(0)
    try:
        request = StartRequest(
            given.source, parse_options(given.options), tuple(given.pictures), getattr(given, "take", None)
        )
        write_network(codec, start(request), given.out)
    except LatcodecError as error:
        raise SystemExit(f"latcodec: {error}") from None


def parse_options(options: list[str]) -> tuple[tuple[str, str], ...]:
    """Return `KEY=VALUE` texts as pairs.

    Raises:
        OptionError: A text is not of that form.
    """
    pairs = []
    for option in options:
        name, equals, value = option.partition("=")
        if not (name and equals and value):
            raise OptionError(f"-O {option}: not of the form key=value")
        pairs.append((name, value))
    return tuple(pairs)
