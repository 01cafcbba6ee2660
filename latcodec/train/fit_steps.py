"""The quantiser's steps of a trained context hyperprior, and its lowest rates, fitted to what rounding really does.

python -m latcodec.train.fit_steps weights/hyperprior-context.safetensors start.pt [-O lowest_index=-35] PICTURES

Straight-through gradients take a latent that is rounded to 0 for one whose error grows with the step. It does not: so
training makes steps too fine, most where most symbols are 0. Here each channel of each rate gets the step of the least
price on pictures: bits of its symbols and, for each squared step of error, the bits that the weights say, everything
else as it was. Steps of z are alike in all channels: by trial, by the Lagrangian.

The lowest rate, below index 0, begins as that of index 0, where an error counts less; it needs no training, but
training can go on from it.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latcodec.models.hyperprior_context import (
    LATENT_FUNCTIONS,
    SIGMA_MIN,
    STAGE_FUNCTIONS,
    Config,
    ContextHyperprior,
    price,
)
from latcodec.models.layers import distortion_weights, logistic_bits, rounded_by_price
from latcodec.models.reconstruction import lifted
from latcodec.models.steps import STEPS, of_steps
from latcodec.train import data
from latcodec.train.checkpoint import initialise, stored, write
from latcodec.train.settings import config_of

PICTURES, SIDE_PX = 24, 384
# Logarithms of how much coarser; what is hardly ever heard may as well not be.
COARSER = torch.arange(-0.3, 1.25, 0.05)
COARSER_Z = (0.0, 0.1, 0.2, 0.3)
SHARES = (1.0, 0.5, 0.0)  # of the steps so found: what the weights say of errors need not be true
SIGNS = {"y_log_gain": -1, "y_log_inverse_gain": 1, "context_log_gain": 1, "mean_log_gain": -1, "scale_offset": -1}
SIGNS_OF_Z = {"z_log_gain": -1, "z_log_sigma": -1}

Analysed = list[tuple[Tensor, Tensor, Tensor]]


def analysed(network: ContextHyperprior, pictures: list[np.ndarray]) -> Analysed:
    """(x, y, z) of the middle of each picture, uint8 [H, W, 3] of at least SIDE_PX."""
    found = []
    for crop in data.validation_crops(pictures, SIDE_PX, len(pictures)):
        x = torch.from_numpy(crop)[None].float() / 255
        y = network.analysis(x)
        found.append((x, y, network.hyper_analysis(y)))
    return found


def lagrangian(network: ContextHyperprior, some: Analysed, t: float) -> float:
    """Mean of bpp + lc * 255^2 * MSE of latents of the rate t, rounded as the encoder does, no details."""
    rate, total = network.at_rate(torch.tensor([t]), torch.tensor([t])), 0.0
    weight = float(distortion_weights(torch.tensor(t))) * 255**2
    for x, y, z in some:
        x_hat, prices = network.transmit(y, z, rate, torch.round, by_price=True)
        bits = sum(price(*part, noise=False) for part in prices)
        total += float(bits) / x[0, 0].numel() + weight * float((x_hat.clamp(0, 1) - x).square().mean())
    return total / len(some)


def steps_of_channels(network: ContextHyperprior, some: Analysed, t: float, error_bits: float) -> Tensor:
    """How much coarser, logarithms float32 [C], the steps of y at the rate t are best.

    error_bits: what a squared error of one step, as it is now, counts as.
    """
    rate, channels = network.at_rate(torch.tensor([t]), torch.tensor([t])), network.config.latent
    of_channel = of_steps(torch.arange(channels).float()[None, :, None, None], network.order)
    costs = torch.zeros(len(COARSER), channels)
    for _, y, z in some:
        prices = network.transmit(y, z, rate, torch.round, by_price=True)[1][1 : 1 + STEPS]
        for channel, (residual, _, sigma) in zip(of_channel, prices, strict=True):
            for cost, log in zip(costs, COARSER, strict=True):
                factor = float(log.exp())
                value, scale = residual / factor, (sigma / factor).clamp_min(SIGMA_MIN)
                symbols = rounded_by_price(value, value.round(), scale, network.config.step_error_bits)
                error = (value - lifted(symbols, scale, rate["lift"])) * factor
                each = (logistic_bits(symbols, scale) + error_bits * error.square()).sum((0, 2, 3))
                cost.index_add_(0, channel.long().flatten(), each)
    return COARSER[costs.argmin(0)]


def shift(network: ContextHyperprior, knot: int, by: Tensor | float, signs: dict[str, int]) -> None:
    """Make the steps of one knot coarser by these logarithms, in every function that knows of them."""
    for name, sign in signs.items():
        getattr(network, name)[knot] += sign * by


@torch.no_grad()
def fit(network: ContextHyperprior, pictures: list[np.ndarray], say=print) -> None:
    """Set the steps of each knot, in place, from pictures uint8 [H, W, 3]."""
    some, config = analysed(network, pictures), network.config
    places = [k / (config.knots - 1) for k in range(config.knots)]
    below = int(network.lowest < 0)
    for k, t in enumerate(places):
        _fit_knot(network, some, k + below, t, config.step_error_bits, say)
    if below:
        for name in (*SIGNS, *SIGNS_OF_Z):
            getattr(network, name)[0] = getattr(network, name)[1]
        less = float(distortion_weights(torch.tensor(network.lowest)) / distortion_weights(torch.tensor(0.0)))
        _fit_knot(network, some, 0, network.lowest, config.step_error_bits * less, say)


def _fit_knot(network: ContextHyperprior, some: Analysed, knot: int, t: float, error_bits: float, say) -> None:
    before = lagrangian(network, some, t)
    coarser = steps_of_channels(network, some, t, error_bits)
    share, after = _best(network, some, knot, t, coarser, SHARES, SIGNS)
    log_z, after = _best(network, some, knot, t, torch.ones(1), COARSER_Z, SIGNS_OF_Z)
    tenths = (torch.quantile(coarser, torch.tensor([0.1, 0.5, 0.9])) * share).exp().tolist()
    say(f"t {t:+.3f}: steps of y x {' '.join(f'{v:.2f}' for v in tenths)} (a tenth, half, nine tenths of the channels "
        f"below), of z x {math.exp(log_z):.2f}; Lagrangian {before:.4f} to {after:.4f}")  # fmt: skip


def _best(
    network: ContextHyperprior, some: Analysed, knot: int, t: float, by: Tensor, shares: tuple[float, ...],
    signs: dict[str, int],
) -> tuple[float, float]:  # fmt: skip
    """Shift by the share of `by` of least Lagrangian; returns both."""
    costs = []
    for share in shares:
        shift(network, knot, share * by, signs)
        costs.append(lagrangian(network, some, t))
        shift(network, knot, -share * by, signs)
    best = shares[int(np.argmin(costs))]
    shift(network, knot, best * by, signs)
    return best, min(costs)


def with_lowest(network: ContextHyperprior, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, of weights that end at index 0, with one more knot in front where the network has it."""
    state, found = network.state_dict(), dict(tensors)
    for name, value in tensors.items():
        if name.split(".")[0] in LATENT_FUNCTIONS + STAGE_FUNCTIONS and len(state[name]) == len(value) + 1:
            found[name] = torch.cat([value[:1], value])
    return found


def main() -> None:
    """Write a checkpoint that `train --init` and `train --export` read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("-O", dest="options", action="append", default=[])
    given = parser.parse_args()
    codec, config, tensors = stored(given.source)
    options = tuple(tuple(option.split("=", 1)) for option in given.options)
    network = ContextHyperprior(config_of("hyperprior-context", Config, config, options)).eval()
    initialise(network, codec, given.source)
    of_latents = (*LATENT_FUNCTIONS, *(f"{name}." for name in STAGE_FUNCTIONS))
    state = {name: value for name, value in tensors.items() if name.startswith(of_latents)}
    network.load_state_dict(with_lowest(network, state), strict=False)
    fit(network, list(data.spread(given.pictures, PICTURES, SIDE_PX, PICTURES)))
    state = {"codec": codec, "config": json.dumps(asdict(network.config)), "ema": network.state_dict()}
    write(state, given.out)


if __name__ == "__main__":
    main()
