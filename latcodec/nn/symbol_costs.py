"""Costs of symbols in training: the bits that the probability tables of a weights file charge for them.

Tables are fitted to symbols that rate-distortion optimised quantisation (RDOQ) chose, most of which are 0. Zeros are
therefore cheaper than a logistic distribution suggests, and the expected cost of a value plus uniform noise is half as
much again. A run that starts from exported weights charges what their tables charge; any other run starts with the
costs of the logistic distribution.

Costs are a matrix float32 [tables, 2 * MAX_SYMBOL + 1]: one row per table, one column per symbol. The tables of one
group are evenly spaced in the logarithm of the standard deviation.
"""

import math
from collections.abc import Container

import torch
from torch import Tensor

from latcodec.nn.layers import logistic_bits

MAX_SYMBOL = 63  # largest magnitude of a symbol whose cost is tabulated
SIGMA_MIN, SIGMA_MAX = 0.08, 256.0  # standard deviations, in quantiser steps, of the first and last table of a group
NUM_SCALES = 64  # tables of a group
SCALES_PER_NAT = (NUM_SCALES - 1) / math.log(SIGMA_MAX / SIGMA_MIN)
TABLE_GROUPS = ("y", "residual", "z")  # in the order of their tables


def logistic_costs() -> Tensor:
    """Return the bits of symbols under logistic distributions, for all groups, float32 [tables, symbols]."""
    sigma = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), NUM_SCALES)
    symbols = torch.arange(-MAX_SYMBOL, MAX_SYMBOL + 1.0)
    return logistic_bits(symbols.expand(NUM_SCALES, -1), sigma[:, None]).repeat(len(TABLE_GROUPS), 1)


def with_symbol_costs(tensors: dict[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Add the costs of the logistic distribution to tensors without costs.

    Args:
        tensors: The state of a network by name.
        names: The names that the state of the network must have.

    Returns:
        The tensors, with "prices" added if it is among `names` and missing.
    """
    return tensors if "prices" in tensors or "prices" not in names else tensors | {"prices": logistic_costs()}


def table_position(sigma: Tensor) -> Tensor:
    """Return the position of standard deviations among the tables of their group.

    Args:
        sigma: float32, any shape, > 0, in quantiser steps.

    Returns:
        Same shape, in 0 ... NUM_SCALES - 1; a fraction lies between two tables.
    """
    return ((sigma.log() - math.log(SIGMA_MIN)) * SCALES_PER_NAT).clamp(0, NUM_SCALES - 1)


def symbol_bits(symbols: Tensor, position: Tensor, costs: Tensor) -> Tensor:
    """Return the bits of symbols, interpolated linearly between the two nearest tables.

    The gradient is that of the position. NaN in either argument stays NaN.

    Args:
        symbols: float32 integers; magnitudes above MAX_SYMBOL cost as much as MAX_SYMBOL.
        position: float32, as `table_position` returns it; its shape broadcasts with that of `symbols`.
        costs: float32 [NUM_SCALES, 2 * MAX_SYMBOL + 1], those of one group.
    """
    row = position.detach().nan_to_num().floor().clamp(0, NUM_SCALES - 2)
    column = symbols.nan_to_num().clamp(-MAX_SYMBOL, MAX_SYMBOL) + MAX_SYMBOL
    at, flat = (row * costs.shape[1] + column).long(), costs.flatten()
    return torch.lerp(flat[at], flat[at + costs.shape[1]], position - row)


def rdoq_straight_through(residual: Tensor, sigma: Tensor, costs: Tensor, distortion_multiplier: float) -> Tensor:
    """Quantise residuals as an encoder with RDOQ does; the gradient is that of the residuals.

    Each residual becomes the nearest integer or the next one towards 0, whichever has the lower rate-distortion cost.
    The encoder's counterpart is `backends.common.rdoq`.

    Source: rate-distortion optimised quantisation of video encoders.

    Args:
        residual: float32, any shape, in quantiser steps.
        sigma: Standard deviations, which select the tables; same shape.
        costs: float32 [NUM_SCALES, 2 * MAX_SYMBOL + 1], those of one group.
        distortion_multiplier: Bits that a squared error of one quantiser step is worth.
    """
    with torch.no_grad():
        position, nearest = table_position(sigma), residual.round()
        inner = nearest - nearest.sign()
        saved_bits = symbol_bits(nearest, position, costs) - symbol_bits(inner, position, costs)
        added_bits = distortion_multiplier * ((residual - inner).square() - (residual - nearest).square())
        change = torch.where(saved_bits > added_bits, inner, nearest) - residual
    return residual + change


def picture_bits(residual: Tensor, quantised: Tensor, sigma: Tensor, costs: Tensor, noise: bool) -> Tensor:
    """Return the bits of the symbols of each picture, by the tables.

    The scales receive the gradient of these bits. The residuals receive the gradient of the logistic distribution,
    because the cost of a symbol does not change with a small change of its residual: at the residual plus uniform noise
    with `noise`, otherwise at the quantised residual.

    Args:
        residual: float32 [B, C, h, w], in quantiser steps.
        quantised: Its symbols, same shape.
        sigma: Standard deviations, same shape.
        costs: float32 [NUM_SCALES, 2 * MAX_SYMBOL + 1], those of one group. Larger symbols cost what the logistic
            distribution says.
        noise: Whether uniform noise stands for quantisation in the gradient.

    Returns:
        float32 [B].
    """
    symbols = quantised.detach().round()
    bits = symbol_bits(symbols, table_position(sigma), costs)
    bits = torch.where(symbols.abs() > MAX_SYMBOL, logistic_bits(symbols, sigma), bits)
    relaxed = residual + torch.rand_like(residual) - 0.5 if noise else quantised
    if relaxed.requires_grad:
        smooth = logistic_bits(relaxed, sigma.detach())
        bits = bits + (smooth - smooth.detach())
    return bits.sum((1, 2, 3))
