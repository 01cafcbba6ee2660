"""The hyperprior codec's networks and integers, from a weights file and to one.

Fixed point: see `common/fixed_point.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from latcodec.backends.common.fixed_point import INVERSE_BITS, dequantise, fixed_point_means, table_index_of_scale
from latcodec.backends.common.mean_scale import MeanScaleModel
from latcodec.backends.common.rate_tables import (
    RateTables,
    fixed_prior_of_z,
    rate_params_of_every_index,
    table_index_of_channels,
)
from latcodec.backends.common.weights_parts import floats_to_arrays
from latcodec.backends.hyperprior.network import Config, Hyperprior
from latcodec.entropy.integer_net import quantise
from latcodec.entropy.tables import Tables


@dataclass(frozen=True)
class HyperpriorRateTables(RateTables):
    """Integers of every rate index; z_row is the table index of each channel of z, [256, Z]."""

    z_row: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: np.ndarray) -> HyperpriorRateTables:
        """Compute the integers from the functions of the rate, see `RateTables.of`."""
        return super().of(rate, z_row=table_index_of_channels(rate), **more)


class Model(MeanScaleModel):
    """The networks, integer network and tables of the hyperprior codec; see `MeanScaleModel`."""

    network_class, config_class, rates_class = Hyperprior, Config, HyperpriorRateTables

    def prior_of_z(self, rate_index: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return means int64 [Z, 1, 1] (MEAN_BITS) and table indices uint16 [Z * h * w] of z; shape (h, w) of z."""
        return fixed_prior_of_z(self.rates.z_mean[rate_index], self.rates.z_row[rate_index], shape)

    def least_bits_of_z(self, rate_index: int, shape: tuple[int, int]) -> float:
        """Return the bits that z costs at least; shape (h, w) of z."""
        return self.least_bits(self.rates.z_row[rate_index]).sum() * shape[0] * shape[1]

    def hyper_synthesis(self, z_symbols: np.ndarray, rate_index: int) -> np.ndarray:
        """Return means and log scales int64 [2 C, 4 h, 4 w] (FRACTION_BITS) from the symbols of z int32 [Z, h, w]."""
        mean, inverse_gain = (v[rate_index][:, None, None] for v in (self.rates.z_mean, self.rates.z_inverse_gain))
        return self.hyper(dequantise(z_symbols, mean, inverse_gain, INVERSE_BITS))

    def prior_of_y(
        self, z_symbols: np.ndarray, rate_index: int, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute the prior of y from z. Law 1: integers only.

        The mean is m * gain, the table index (l + offset - log SIGMA_MIN) * SCALES_PER_NAT, rounded.

        Args:
            z_symbols: int32 [Z, ceil(h / 4), ceil(w / 4)].
            rate_index: 0..255.
            shape: (h, w) of y.

        Returns:
            Means int32 [C, h, w] (MEAN_BITS) and table indices uint16 [C * h * w].
        """
        out = self.hyper_synthesis(z_symbols, rate_index)[:, : shape[0], : shape[1]]
        mean, log_scale = out[: len(out) // 2], out[len(out) // 2 :]
        gain, offset = (v[rate_index][:, None, None] for v in (self.rates.mean_gain, self.rates.scale_offset))
        return fixed_point_means(mean, gain), table_index_of_scale(log_scale, offset).ravel()


def export(network: Hyperprior, tables: Tables) -> dict[str, np.ndarray]:
    """Return all tensors of a weights file: float networks, the integer network, tables, integers of each rate."""
    tensors = floats_to_arrays(network, Model.runs_as_floats)
    tensors |= HyperpriorRateTables.of(rate_params_of_every_index(network.cpu().at_rate)).to_arrays()
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s.cpu()).to_arrays().items()}
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    return tensors
