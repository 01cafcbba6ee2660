"""From a trained network of the default codec to what its weights file holds."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from latcodec.backends.common.rate_tables import rate_params_of_every_index, subsample_rates
from latcodec.backends.common.weights_parts import floats_to_arrays
from latcodec.backends.hyperprior_context import residual
from latcodec.backends.hyperprior_context.model import CONTEXT_NETWORKS, Z_CONTEXT_NETWORKS, Model, RateTables
from latcodec.backends.hyperprior_context.network import MAX_CONTEXT_GAIN, ContextHyperprior
from latcodec.entropy.integer_net import quantise
from latcodec.entropy.tables import Tables
from latcodec.nn.layers import ResidualBottleneck

MAX_EQUALISATION = 4.0  # factor of the weights of a latent in one export; the latent, of 12 bits, becomes smaller by it


@torch.no_grad()
def equalised(network: ContextHyperprior) -> ContextHyperprior:
    """Return a network of the same function whose context networks lose less in 8 bits.

    In 8 bits, small weights beside large ones are rounded away. So the largest weights of each latent become as large
    as those of the others, by at most MAX_EQUALISATION.

    Source: Nagel, van Baalen, Blankevoort, Welling 2019, "Data-free quantization through weight equalization and bias
    correction", section 4.1, between the gain of a latent and the networks that see it.
    """
    equal, count = deepcopy(network), network.config.latent
    factors = _equalising_factors(equal.from_seen, count)
    # The gain that takes effect, not the stored one: a stored gain above the maximum would hide what it is divided by.
    equal.context_log_gain.clamp_(max=math.log(MAX_CONTEXT_GAIN)).sub_(factors.log())
    for layer in equal.from_seen:
        layer.weight *= factors.repeat(layer.in_channels // count)[:, None, None]
    if equal.details is not None:
        equal.details.from_latents.weight *= factors[:, None, None]
    return equal


def _equalising_factors(layers: nn.ModuleList, count: int) -> Tensor:
    """Return the factor of each latent, float32 [count], from all context networks that see it."""
    largest = torch.zeros(count)
    for layer in layers:
        size = layer.weight.abs().amax((2, 3))
        share = size / size.amax(1, keepdim=True).clamp_min(1e-12)
        largest = largest.maximum(share.amax(0).view(-1, count).amax(0))
    return (1 / largest.clamp_min(1e-12)).clamp(1, MAX_EQUALISATION)


def export(network: ContextHyperprior, tables: Tables) -> dict[str, np.ndarray]:
    """Return everything a weights file holds.

    That is float networks, integer networks, frozen tables, and integers of some rates. The integer networks of latents
    have weights of 8 bits times a number per output channel, which take half the room and cost .1 % of the Lagrangian
    at the lowest rates, less at others; so do the hyper-analysis and the residual blocks.

    Args:
        network: A trained network.
        tables: Tables fitted to its symbols.
    """
    network = equalised(network.cpu())
    blocks = tuple(f"{name}." for name, module in network.named_modules() if isinstance(module, ResidualBottleneck))
    tensors = floats_to_arrays(network, Model.runs_as_floats, small=("h_a.", *blocks))
    rate = rate_params_of_every_index(lambda rates: network.at_rate(rates, rates), network.config.lowest_index)
    tensors |= {name: subsample_rates(table) for name, table in RateTables.of(rate).to_arrays().items()}
    tensors |= {f"hyper.{key}": value for key, value in quantise(network.h_s, small=True).to_arrays().items()}
    for name in CONTEXT_NETWORKS + Z_CONTEXT_NETWORKS:
        for step, layer in enumerate(getattr(network, name), 1):
            integer = quantise(nn.Sequential(layer.cpu()), small=True)
            tensors |= {f"{name}.{step}.{key}": value for key, value in integer.to_arrays().items()}
    if network.details is not None:
        tensors |= residual.export(network.details)
    return tensors | {
        "tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums
    }  # fmt: skip
