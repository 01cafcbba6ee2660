"""A trained context hyperprior that sends details too, whose spread is measured on what it leaves.

python -m latcodec.train.init.residual SOURCE start.pt -O details=192 PICTURES
latcodec train --codec hyperprior-context --init start.pt --only details. --lambda-range 0.1 0.88 ...

SOURCE: weights or a checkpoint; its details, if it has any, are not taken. The spread of each channel is measured on
what the base leaves at the rate where it ends, and is the same at all knots in the beginning.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.train import data
from latcodec.train.checkpoint import initialise, stored, write
from latcodec.train.settings import config_of

PICTURES, BATCHES, BATCH, SIDE_PX = 120, 10, 4, 256
STD_OF_MEAN_SIZE = math.pi / (2 * math.sqrt(3) * math.log(2))  # of a logistic distribution


@torch.no_grad()
def fit(network: ContextHyperprior, batches: list[torch.Tensor]) -> None:
    """Set the scales of `network.details` from pictures, float32 [B, 3, H, W] each."""
    details = network.details
    sizes = []
    for x in batches:
        rate = network.at_rate(torch.ones(len(x)))
        y = network.analysis(x, rate)
        base = network.transmit(y, network.hyper_analysis(y), rate, torch.round, rdoq=True)[0]
        sizes.append(details.analysis(x - base).abs().mean((0, 2, 3)))
    size = torch.stack(sizes).mean(0)
    details.scale_offset.copy_(details.log_gain + (STD_OF_MEAN_SIZE * size).clamp_min(1e-5).log())


def main() -> None:
    """Write a checkpoint that `train --init` reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--take", type=Path, help="take the details of this checkpoint instead of fitting any")
    parser.add_argument("-O", dest="options", action="append", default=["details=192"])
    given = parser.parse_args()
    codec, config, _ = stored(given.source)
    options = tuple(tuple(option.split("=", 1)) for option in given.options)
    torch.manual_seed(0)
    network = ContextHyperprior(config_of("hyperprior-context", Config, config, options))
    base = tuple(name for name in network.state_dict() if not name.startswith("details."))
    initialise(network, codec, given.source, base)
    if given.take is not None:
        initialise(network, codec, given.take, ("details.",))
    else:
        _fit_to(network, given.pictures)
    state = {"codec": codec, "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}
    write(state, given.out)


def _fit_to(network: ContextHyperprior, paths: list[str]) -> None:
    crops = data.Crops(list(data.spread(paths, PICTURES, SIDE_PX)), 0)
    batches = [torch.from_numpy(crops.batch(n, BATCH, SIDE_PX)[0]).float() / 255 for n in range(BATCHES)]
    fit(network, batches)


if __name__ == "__main__":
    main()
