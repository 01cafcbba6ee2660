"""Integers of every rate index, as a weights file holds them and as the codecs use them.

A network's functions of the rate are smooth, so a weights file may hold every RATE_STEP-th rate index only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latcodec.backends.common.fixed_point import GAIN_BITS, INVERSE_BITS, MEAN_BITS, SCALE_ROWS
from latcodec.entropy.integer_net import FRACTION_BITS
from latcodec.errors import WeightsError
from latcodec.nn.symbol_costs import SCALES_PER_NAT, SIGMA_MIN
from latcodec.rates import RATE_STEP

RATES = 256  # rate indices from 0 on


def subsample_rates(table: np.ndarray) -> np.ndarray:
    """Return every RATE_STEP-th entry of the integers of each rate index, [256 or more, C], for a weights file."""
    return table[::RATE_STEP]


def interpolate_rates(table: np.ndarray, lowest_index: int = 0) -> np.ndarray:
    """Return the integers of every rate index from what a weights file holds.

    Args:
        table: integers of all rate indices, or of every RATE_STEP-th one; the first are those of the lowest index.
        lowest_index: the rate index of the smallest files.

    Returns:
        int64 [256 - lowest_index, C]; between the indices of the file it is piecewise linear, in integers.

    Raises:
        WeightsError: the table has another number of rate indices.
    """
    table, count = table.astype(np.int64), RATES - lowest_index
    if len(table) == count:
        return table
    if len(table) != (count - 1) // RATE_STEP + 1:
        raise WeightsError(f"rates: {len(table)} rows, not those of indices from {lowest_index} on")
    low, share = np.divmod(np.arange(count), RATE_STEP)
    low, share = np.minimum(low, len(table) - 1), share.reshape(-1, *[1] * (table.ndim - 1))
    high = np.minimum(low + 1, len(table) - 1)
    return (table[low] * (RATE_STEP - share) + table[high] * share + RATE_STEP // 2) // RATE_STEP


def rate_params_of_every_index(
    at_rate: Callable[[torch.Tensor], dict[str, torch.Tensor]], lowest_index: int = 0
) -> dict[str, np.ndarray]:
    """Return a network's functions of the rate at every rate index, float64 [256 - lowest_index, channels].

    Args:
        at_rate: the functions at rate positions t float32 [B], on the CPU.
        lowest_index: the rate index of the smallest files.
    """
    with torch.no_grad():
        rate = at_rate(torch.arange(lowest_index, RATES) / (RATES - 1))
    return {k: v[:, :, 0, 0].double().numpy() for k, v in rate.items()}


def fixed_point_gains(rate: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return z_mean, z_inverse_gain and mean_gain, int32 [rates, channels], from the functions of the rate, float64."""
    inverse = 2.0 ** (FRACTION_BITS + INVERSE_BITS - MEAN_BITS) / np.exp(rate["z_log_gain"])
    return {
        "z_mean": np.rint(rate["z_mean"] * 2**MEAN_BITS).astype(np.int32),
        "z_inverse_gain": np.rint(inverse).astype(np.int32),
        "mean_gain": np.rint(np.exp(rate["mean_log_gain"]) * 2**GAIN_BITS).astype(np.int32),
    }


def table_index_of_channels(rate: dict[str, np.ndarray]) -> np.ndarray:
    """Return the table indices of a z with a fixed prior, int32 [256, Z], from the functions of the rate."""
    row = np.rint((np.maximum(rate["z_log_sigma"], np.log(SIGMA_MIN)) - np.log(SIGMA_MIN)) * SCALES_PER_NAT)
    return np.clip(row, 0, SCALE_ROWS - 1).astype(np.int32)


def fixed_prior_of_z(mean: np.ndarray, index: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return means int64 [Z, 1, 1] and table indices uint16 [Z * h * w] of z, from those of each channel, [Z]."""
    return mean[:, None, None], np.repeat(index.astype(np.uint16), shape[0] * shape[1])


@dataclass(frozen=True)
class RateTables:
    """Integers of every rate index from the lowest on, [256 or more, channels]; a codec's Model says what they mean."""

    z_mean: np.ndarray
    z_inverse_gain: np.ndarray
    mean_gain: np.ndarray
    scale_offset: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: Any) -> RateTables:
        """Compute the integers from the functions of the rate, float64 [256 or more, channels].

        Args:
            rate: of `rate_params_of_every_index`.
            more: the integers that a subclass adds.
        """
        offset = np.rint((rate["scale_offset"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS).astype(np.int32)
        return cls(**fixed_point_gains(rate), scale_offset=offset, **more)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return "rates.NAME" for a weights file."""
        return {f"rates.{k}": v for k, v in vars(self).items()}
