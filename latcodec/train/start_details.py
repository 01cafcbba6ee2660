"""A trained context hyperprior that sends details too: their basis and spread are those of what it leaves.

python -m latcodec.train.start_details SOURCE start.pt -O details=192 PICTURES
latcodec train --codec hyperprior-context --init start.pt --only details. ...

SOURCE: weights or a checkpoint. The basis is that of the principal components of the error at the highest rate, in
blocks, over crops of the pictures; the spread of each channel is measured at every knot.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from latcodec.models.details import BLOCK
from latcodec.models.hyperprior_context import Config, ContextHyperprior
from latcodec.train import data
from latcodec.train.checkpoint import initialise, stored, write
from latcodec.train.settings import config_of

PICTURES, BATCHES, BATCH, SIDE_PX = 120, 60, 4, 256


@torch.no_grad()
def fit(network: ContextHyperprior, batches: list[torch.Tensor]) -> None:
    """Set basis and scales of `network.details` from pictures, float32 [B, 3, H, W] each."""
    details, covariance = network.details, 0.0

    def base(x: torch.Tensor, t: float) -> torch.Tensor:
        y = network.analysis(x)
        rate = network.at_rate(torch.full((len(x),), t))
        return network.transmit(y, network.hyper_analysis(y), rate, torch.round, by_price=True)[0]

    for x in batches:
        blocks = F.pixel_unshuffle(x - base(x, 1.0), BLOCK).flatten(2).transpose(1, 2).flatten(0, 1).double()
        covariance = covariance + blocks.T @ blocks
    details.basis.copy_(torch.linalg.eigh(covariance)[1].flip(1)[:, : details.channels])
    knots = len(details.log_gain)
    for knot in range(knots):
        u = torch.cat([details.analysis(x - base(x, knot / (knots - 1))) for x in batches[::6]])
        log_std = u.std((0, 2, 3)).clamp_min(1e-5).log()
        details.scale_offset[knot] = details.log_gain[knot] + log_std
        details.seen_log_gain[knot] = -details.log_gain[knot] - log_std


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
    initialise(network, codec, given.source)
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
