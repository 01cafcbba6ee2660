"""What symbols stand for in the picture, where that is not the symbol itself.

A rare symbol of size 1 tells the decoder more than its size. The amounts are in the Config of the weights; the
constants here decide the pixels of every file and must not change.
"""

import torch
from torch import Tensor

MAX_RECONSTRUCTION_OFFSET = 0.4
LARGER_SYMBOL_SHARE = 1 / 3  # of the centroid shift, for symbols larger than 1
FADE_START = 190 / 255


def fade(t: Tensor) -> Tensor:
    """Return 1 at rates t up to FADE_START, falling to 0 at t = 1; same shape as t."""
    return ((1 - t) / (1 - FADE_START)).clamp(0, 1)


def with_reconstruction_offset(symbols: Tensor, sigma: Tensor, amount: Tensor) -> Tensor:
    """Return the values of latent symbols: those of size 1 grow by `reconstruction_offset`.

    Between 0, 1 and 2, where SGA may be, the offset is piecewise linear; its gradient is 0. RDOQ removes many symbols
    of size 1, more where they cost more, and with them energy that the remaining ones have to make up for, because
    synthesis cannot tell a 1 from a mean. Found by trial.

    Args:
        symbols: float32, in steps.
        sigma: float32 of the same shape, standard deviation in steps.
        amount: float32 [B, 1, 1, 1].
    """
    with torch.no_grad():
        share = (1 - (symbols.abs() - 1).abs()).clamp_min(0)
        added = share * symbols.sign() * reconstruction_offset(sigma, amount)
    return symbols + added


def reconstruction_offset(sigma: Tensor, amount: Tensor) -> Tensor:
    """Return by how much latent symbols of size 1 grow, float32: amount / sigma^2, at most the maximum."""
    return (amount / sigma.square()).clamp_max(MAX_RECONSTRUCTION_OFFSET)


def with_centroid_shift(symbols: Tensor, amount: Tensor | float) -> Tensor:
    """Return the values of residual symbols, float32: those of size 1 are nearer to 0 by `amount`.

    Where steps are coarse, values are sparse, and more of them lie below 1 than above. Larger symbols shift by
    LARGER_SYMBOL_SHARE of the amount. The gradient is that of the symbols.
    """
    with torch.no_grad():
        size = symbols.abs()
        shift = torch.where(size > 1.5, LARGER_SYMBOL_SHARE, 1.0) * (size > 0.5) * symbols.sign() * amount
    return symbols - shift
