"""What the starts from the trained hyperprior share: its parameters in, a checkpoint for `train --init` out."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import nn

from latcodec import weights
from latcodec.train.checkpoint import write


def main(codec: str, from_hyperprior: Callable[[weights.Weights], nn.Module]) -> None:
    """Write the checkpoint of a network made of hyperprior weights; both paths are the arguments of the process."""
    source, out = sys.argv[1:]
    network = from_hyperprior(weights.load("hyperprior", selected=source))
    write({"codec": codec, "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}, Path(out))
