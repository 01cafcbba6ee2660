"""The fixed point of the hyperprior codecs: means, gains, table indices, in integers (law 1).

Means have MEAN_BITS bits after the point, in units of the quantiser's step. The tables are evenly spaced in the
logarithm of the standard deviation. The vbq codec uses the same fixed point, so a change of it breaks its files too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latcodec.entropy.integer_net import FRACTION_BITS, shift_round
from latcodec.nn.symbol_costs import NUM_SCALES as SCALE_ROWS

MEAN_BITS = 6
GAIN_BITS = 16  # of the gains that means are multiplied by
INVERSE_BITS = 12  # of the factor from the values of z to what the networks see of them
SLOPE_BITS = 3  # of the leaky ReLU between integer networks, whose slope is 2**-3
ROWS_PER_NAT_FIXED = 31973  # SCALES_PER_NAT with 12 bits after the point, written out because it decides table indices
SYMBOL_LIMIT = 2**24  # of the size of a symbol and of a mean
_LATENT_LIMIT = 2**30  # of a dequantised latent: no trained latent reaches it, and products stay within int64


def bounded(x: Tensor) -> Tensor:
    """Return x without NaN, within +-SYMBOL_LIMIT, so that no undefined integer reaches the coder."""
    return torch.nan_to_num(x).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)


def round_to_int32(x: Tensor) -> np.ndarray:
    """Return the nearest integers of x, int32, bounded."""
    return bounded(x).round().to(torch.int32).numpy()


def dequantise(symbols: np.ndarray, means: np.ndarray | int, gains: np.ndarray, gain_bits: int) -> np.ndarray:
    """Return what an integer network sees of symbols, int64 (FRACTION_BITS). Law 1: integers only.

    Args:
        symbols: int32, in steps of the quantiser.
        means: integers (MEAN_BITS), in steps.
        gains: of each channel, with gain_bits + FRACTION_BITS - MEAN_BITS bits after the point.
        gain_bits: how many bits the products are shifted by.
    """
    values = symbols.astype(np.int64)
    values <<= MEAN_BITS
    values += means
    np.clip(values, -_LATENT_LIMIT, _LATENT_LIMIT, out=values)
    values *= gains
    return shift_round(values, gain_bits)


def latents_in_steps(symbols: np.ndarray, means: np.ndarray) -> Tensor:
    """Return the latents of symbols and means, int32 (MEAN_BITS) of one shape: float32, in steps of the quantiser."""
    return torch.from_numpy(symbols).float() + torch.from_numpy(means) * 2.0**-MEAN_BITS


def leaky_relu(h: np.ndarray) -> np.ndarray:
    """Return the leaky ReLU of h, int64 (FRACTION_BITS); it stands between integer networks."""
    sloped = shift_round(h, SLOPE_BITS)
    return np.maximum(h, sloped, out=sloped)


def fixed_point_means(mean: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return means int32 (MEAN_BITS) from a network's output int64 (FRACTION_BITS) and gains (GAIN_BITS)."""
    fixed = shift_round(mean * gain, FRACTION_BITS + GAIN_BITS - MEAN_BITS)
    return np.clip(fixed, -SYMBOL_LIMIT, SYMBOL_LIMIT, out=fixed).astype(np.int32)


def table_index_of_scale(log_scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return table indices uint16, (log_scale + offset) * SCALES_PER_NAT rounded; both int64 (FRACTION_BITS)."""
    place = log_scale + offset
    place *= ROWS_PER_NAT_FIXED
    place = shift_round(place, FRACTION_BITS + 12)
    return np.clip(place, 0, SCALE_ROWS - 1, out=place).astype(np.uint16)
