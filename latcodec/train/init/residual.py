"""Start of the residual layer beside a trained context hyperprior; its spread is measured on what the base leaves.

python -m latcodec.train.init.residual SOURCE start.pt -O details=192 PICTURES
latcodec train --codec hyperprior-context --init start.pt --only details. --lambda-range 0.1 0.88 ...

SOURCE: weights or a checkpoint; its residual layer, if it has one, is not taken. The spread of each channel is measured
on what the base leaves at the rate where it ends, and is the same at all knots in the beginning.
"""

import math

import torch

from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.errors import OptionError, WeightsError
from latcodec.train import data
from latcodec.train.init.command import StartRequest, run_command
from latcodec.train.init.source import initialise, read_source
from latcodec.train.settings import config_of

CODEC = "hyperprior-context"
RESIDUAL = "details."  # what the names of the tensors of the residual layer begin with
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


def start(request: StartRequest) -> ContextHyperprior:
    """Return the network of a request with a residual layer fitted to pictures, or taken from another checkpoint.

    Raises:
        OptionError: Pictures are needed, and none is given.
        WeightsError: The source is not of this codec.
    """
    source = read_source(request.source)
    if source.codec != CODEC:
        raise WeightsError(f"{request.source}: weights of {source.codec}, not of {CODEC}")
    options = (("details", "192"), *request.options)
    network = ContextHyperprior(config_of(CODEC, Config, source.config, options))
    base = tuple(name for name in network.state_dict() if not name.startswith(RESIDUAL))
    initialise(network, CODEC, source, base)
    if request.take is not None:
        initialise(network, CODEC, read_source(request.take), (RESIDUAL,))
    elif request.pictures:
        _fit_to(network, list(request.pictures))
    else:
        raise OptionError("the residual layer is fitted to pictures: name some, or a checkpoint to --take it from")
    return network


def _fit_to(network: ContextHyperprior, paths: list[str]) -> None:
    crops = data.Crops(list(data.sample(paths, PICTURES, SIDE_PX)), 0)
    batches = [torch.from_numpy(crops.batch(n, BATCH, SIDE_PX)[0]).float() / 255 for n in range(BATCHES)]
    fit(network, batches)


if __name__ == "__main__":
    run_command(CODEC, start, __doc__, takes="take the residual layer of this checkpoint instead of fitting one")
