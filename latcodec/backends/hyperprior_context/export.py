"""From a trained network of the context codec to what its weights file holds."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import torch

from latcodec.backends.common.rate_tables import rate_params_of_every_index, subsample_rates
from latcodec.backends.common.weights_parts import floats_to_arrays
from latcodec.backends.hyperprior_context import residual as details
from latcodec.backends.hyperprior_context.entropy_model import CONTEXTS, Z_CONTEXTS, Model, RateTables
from latcodec.backends.hyperprior_context.network import LOUDEST, ContextHyperprior
from latcodec.entropy.integer_net import quantise
from latcodec.entropy.tables import Tables
from latcodec.nn.layers import ResidualBottleneck

MOST_TIMES = 4.0  # by which weights of a latent grow in one export; the latent, of 12 bits, is made smaller by that


@torch.no_grad()
def equalised(network: ContextHyperprior) -> ContextHyperprior:
    """A network that does the same, whose largest weights of each latent in the context networks are as large as those
    of the others, if that is no more than MOST_TIMES: in 8 bits, small ones beside large ones are rounded away.

    Source: Nagel, van Baalen, Blankevoort, Welling 2019, "Data-free quantization through weight equalization and bias
    correction", section 4.1, between the gain of a latent and what sees it.
    """
    found, count = deepcopy(network), network.config.latent
    largest = torch.zeros(count)
    for layer in found.from_seen:
        size = layer.weight.abs().amax((2, 3))
        share = size / size.amax(1, keepdim=True).clamp_min(1e-12)
        largest = largest.maximum(share.amax(0).view(-1, count).amax(0))
    times = (1 / largest.clamp_min(1e-12)).clamp(1, MOST_TIMES)
    # What is heard, not what is stored: an amount above LOUDEST would hide how much smaller it becomes.
    found.context_log_gain.clamp_(max=math.log(LOUDEST)).sub_(times.log())
    for layer in found.from_seen:
        layer.weight *= times.repeat(layer.in_channels // count)[:, None, None]
    if found.details is not None:
        found.details.from_latents.weight *= times[:, None, None]
    return found


def export(network: ContextHyperprior, tables: Tables) -> dict[str, np.ndarray]:
    """Everything a weights file holds: float networks, the integer networks, frozen tables, integers of some rates.

    The integer networks of latents have weights of 8 bits times a number of each output channel, which take half the
    room and cost .1 % of the Lagrangian at the lowest rates, less at others; so have the hyper-analysis and what
    residual blocks add.
    """
    network = equalised(network.cpu())
    blocks = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, ResidualBottleneck))
    tensors = floats_to_arrays(network, Model.runs_as_floats, small=("h_a.", *blocks))
    rate = rate_params_of_every_index(lambda every: network.at_rate(every, every), network.config.lowest_index)
    tensors |= {name: subsample_rates(table) for name, table in RateTables.of(rate).to_arrays().items()}
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s, small=True).to_arrays().items()}
    for one in CONTEXTS + Z_CONTEXTS:
        for step, layer in enumerate(getattr(network, one), 1):
            integer = quantise(torch.nn.Sequential(layer.cpu()), small=True)
            tensors |= {f"{one}.{step}.{k}": v for k, v in integer.to_arrays().items()}
    if network.details is not None:
        tensors |= details.export(network.details)
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    return tensors
