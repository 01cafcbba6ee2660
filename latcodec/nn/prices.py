"""What symbols cost in training: what tables say, as in files, of the weights that it starts from, if it does.

Tables are fitted to symbols, most of which rounding by rate and distortion makes 0: these are cheaper than the logistic
says, and the logistic of a value and its noise is dearer by half.
"""

import math
from collections.abc import Container

import torch
from torch import Tensor

from latcodec.nn.layers import logistic_bits

LARGEST_PRICED = 63  # size of a symbol up to which the tables' prices are known
SIGMA_MIN, SIGMA_MAX, ROWS = 0.08, 256.0, 64  # of the tables of each kind, evenly spaced in log sigma
ROWS_PER_NAT = (ROWS - 1) / math.log(SIGMA_MAX / SIGMA_MIN)
KINDS = ("y", "details", "z")  # in the order of their rows


def logistic_prices() -> Tensor:
    """Bits of symbols -LARGEST_PRICED ... LARGEST_PRICED in the rows of all kinds before any table was fitted, float32
    [rows, symbols]."""
    sigma = torch.logspace(math.log10(SIGMA_MIN), math.log10(SIGMA_MAX), ROWS)
    symbols = torch.arange(-LARGEST_PRICED, LARGEST_PRICED + 1.0)
    return logistic_bits(symbols.expand(ROWS, -1), sigma[:, None]).repeat(len(KINDS), 1)


def with_prices(tensors: dict[str, Tensor], names: Container[str]) -> dict[str, Tensor]:
    """Tensors by name, with the logistic's prices where older ones have none and `names` of a network hold some."""
    return tensors if "prices" in tensors or "prices" not in names else tensors | {"prices": logistic_prices()}


def place_of(sigma: Tensor) -> Tensor:
    """The row of a standard deviation among those of its kind, 0 ... ROWS - 1, between two rows too; float32."""
    return ((sigma.log() - math.log(SIGMA_MIN)) * ROWS_PER_NAT).clamp(0, ROWS - 1)


def symbol_bits(symbols: Tensor, place: Tensor, prices: Tensor) -> Tensor:
    """Bits of integers, float32, at places between rows, a straight line between two: the gradient is that of places.

    symbols, place: of shapes that broadcast; prices: as `logistic_prices`, of one kind. Beyond LARGEST_PRICED: what
    that costs.
    """
    row = place.detach().nan_to_num().floor().clamp(0, ROWS - 2)
    column = symbols.nan_to_num().clamp(-LARGEST_PRICED, LARGEST_PRICED) + LARGEST_PRICED
    at, flat = (row * prices.shape[1] + column).long(), prices.flatten()
    return torch.lerp(flat[at], flat[at + prices.shape[1]], place - row)  # what is no number stays none


def rounded_by_price(residual: Tensor, sigma: Tensor, prices: Tensor, error_bits: float) -> Tensor:
    """What an encoder that rounds by rate and distortion makes of residuals; the gradient is that of residuals.

    residual: float32, in steps; sigma: what tells its table; prices: of its kind; error_bits: bits that a squared error
    of one step counts as. In encoders: `backends.common.rdoq`. Source: rate-distortion optimised
    quantisation as video encoders do it.
    """
    with torch.no_grad():
        place, nearest = place_of(sigma), residual.round()
        inner = nearest - nearest.sign()
        saved = symbol_bits(nearest, place, prices) - symbol_bits(inner, place, prices)
        added = error_bits * ((residual - inner).square() - (residual - nearest).square())
        change = torch.where(saved > added, inner, nearest) - residual
    return residual + change


def bits_of(residual: Tensor, quantised: Tensor, sigma: Tensor, prices: Tensor, noise: bool) -> Tensor:
    """Bits of each picture, float32 [B], by the tables; prices: of their kind.

    The gradient that scales get is that of these bits. Through residuals comes that of the logistic distribution, of
    the residual plus uniform noise with `noise`, else of the quantised residual: symbols do not change a little.
    """
    symbols = quantised.detach().round()
    bits = symbol_bits(symbols, place_of(sigma), prices)
    bits = torch.where(symbols.abs() > LARGEST_PRICED, logistic_bits(symbols, sigma), bits)
    coded = residual + torch.rand_like(residual) - 0.5 if noise else quantised
    if coded.requires_grad:
        smooth = logistic_bits(coded, sigma.detach())
        bits = bits + (smooth - smooth.detach())
    return bits.sum((1, 2, 3))
