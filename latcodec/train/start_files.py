"""What the starts from the trained hyperprior share: its parameters in, a checkpoint for `train --init` out."""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from latcodec import weights
from latcodec.backends.common import floats_from_arrays
from latcodec.train.checkpoint import _floats_of_integers, write


def parameters_of(found: weights.Weights) -> dict[str, Tensor]:
    """Parameters of the network that weights hold, float32 by their names there, from floats and from integers."""
    return floats_from_arrays(found.tensors) | _floats_of_integers(found)


def main(codec: str, from_hyperprior: Callable[[weights.Weights], nn.Module]) -> None:
    """Write the checkpoint of a network made of hyperprior weights; both paths are the arguments of the process."""
    source, out = sys.argv[1:]
    network = from_hyperprior(weights.load("hyperprior", selected=source))
    write({"codec": codec, "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}, Path(out))
