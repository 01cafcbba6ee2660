"""The VBQ codec's weights: from a trained network to a file, and from a file to what codes pictures.

Fixed point: latents, scales and logarithms as in `latents/grids.py`, z as in the hyperprior codec.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from latcodec.backends.common.fixed_point import GAIN_BITS, INVERSE_BITS, dequantise
from latcodec.backends.common.rate_tables import RATES, fixed_point_gains, fixed_prior_of_z, table_index_of_channels
from latcodec.backends.common.weights_parts import config_from, floats_to_arrays, load_floats, with_prefix
from latcodec.backends.vbq.grids import LOG_BITS, SCALE_BITS, BookGrid, Field, PointGrid, StepGrid, fixed_exp
from latcodec.backends.vbq.network import CURVATURE_REACH, Config, GaussianVAE
from latcodec.backends.vbq.quantiser import VALUE_BITS, Quantiles
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet, quantise, shift_round
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.rates import lambda_of_index
from latcodec.weights import Weights, trained_for

NO_LAMBDA = -(2**15)


@dataclass(frozen=True)
class RateTables:
    """Integers of every rate index [256, channels], as in the hyperprior codec; plane [256] is 2 t - 1, noise [256]
    log(lambda / lambda0)."""

    z_mean: np.ndarray
    z_row: np.ndarray
    z_inverse_gain: np.ndarray
    mean_gain: np.ndarray
    scale_offset: np.ndarray
    plane: np.ndarray
    noise: np.ndarray


class Model:
    """Networks, integer network, frozen tables, ready to code on a device. autocast runs synthesis in bf16."""

    lowest_index = 0

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = GaussianVAE(config_from(Config, weights.config))
            load_floats(self.network, tensors, _floats)
            self.hyper = IntegerNet.from_arrays(with_prefix(tensors, "hyper."))
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            self.rates = RateTables(**{k: v.astype(np.int64) for k, v in with_prefix(tensors, "rates.").items()})
            self.log_curvature = tensors["prior.log_curvature"].astype(np.int64)[:, None, None]
            self.exp_table = tensors["prior.exp"]
            self.caution = tensors["prior.caution"]  # of the encoder alone, float32 [priors, 256]
            self.factorized = {
                k: v.astype(np.int64)[:, None, None] for k, v in with_prefix(tensors, "factorized.").items()
            }
            self.sets = {}
            quantiles = Quantiles(tensors["prior.quantiles"])
            sizes = np.diff(self.tables.offsets.astype(np.int64)) - 1
            for name in sorted({k.split(".")[1] for k in tensors if k.startswith("set.")}):
                own, (quantizer, prior) = with_prefix(tensors, f"set.{name}."), name.split("-")
                first, count = (int(v) for v in own["rows"])
                starts = np.concatenate([[0], np.cumsum(sizes[first : first + count])])
                if quantizer in ("vbq", "algorithm1"):
                    if len(own["entries"]) != starts[-1]:
                        raise ValueError(f"{len(own['entries'])} entries for {starts[-1]} entries of {name}")
                    grid = PointGrid(own["entries"], starts, quantiles, quantizer == "algorithm1")
                elif quantizer == "uniform":
                    grid = StepGrid(self.exp_table)
                else:
                    starts = own["starts"].astype(np.int64)
                    grid = BookGrid(own["centres"], starts, own["noises"].astype(np.int64), quantizer == "lloyd")
                self.sets[quantizer, prior] = (first, count, grid)
        except (KeyError, TypeError, ValueError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not vbq weights: {error}") from None
        self.weights_id, self.metric = weights.id, trained_for(weights.config)
        self.device, self.autocast = torch.device(device), autocast
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def noise(self, rate_index: int, lambda_code: int) -> int:
        """log(lambda / lambda0), LOG_BITS bits after the point."""
        if lambda_code == NO_LAMBDA:
            return int(self.rates.noise[rate_index])
        return ((lambda_code * 181704 + (1 << 13)) >> 14) + 1501

    def prior_of_z(self, rate_index: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Integer means int64 [Z, 1, 1] and table rows uint16 [Z * h * w] of z."""
        return fixed_prior_of_z(self.rates.z_mean[rate_index], self.rates.z_row[rate_index], shape)

    def prior_of_y(self, z_symbols: np.ndarray, rate_index: int, shape: tuple[int, int]) -> Field:
        """What z's symbols int32 [Z, h', w'] say of y [C, h, w]. Law 1: integers only."""
        z_mean, inverse_gain = (v[rate_index][:, None, None] for v in (self.rates.z_mean, self.rates.z_inverse_gain))
        fixed = dequantise(z_symbols, z_mean, inverse_gain, INVERSE_BITS)
        plane = np.full((1, *fixed.shape[1:]), self.rates.plane[rate_index])
        out = self.hyper(np.concatenate([fixed, plane]))[:, : shape[0], : shape[1]]
        mean, log_scale, log_h = np.split(out, 3)
        gain = self.rates.mean_gain[rate_index][:, None, None]
        mean = shift_round(mean * gain, FRACTION_BITS + GAIN_BITS - VALUE_BITS)
        log_scale = np.clip(
            log_scale + self.rates.scale_offset[rate_index][:, None, None], -8 << LOG_BITS, 5 << LOG_BITS
        )
        reach = int(CURVATURE_REACH) << LOG_BITS
        zero = np.zeros((1, 1, 1), np.int64)
        return Field(
            np.clip(mean, -(2**30), 2**30),
            fixed_exp(log_scale, self.exp_table),
            2 * log_scale,
            np.clip(log_h, -reach, reach) + self.log_curvature,
            zero,
            zero,
        )

    def factorized_prior(self) -> Field:
        """The empirical prior of each channel: its values are quantiles themselves, mean 0 and scale 1."""
        zero = np.zeros((1, 1, 1), np.int64)
        parts = self.factorized
        channels = np.arange(len(parts["group"]))[:, None, None]
        return Field(
            zero,
            zero + (1 << SCALE_BITS),
            parts["log_variance"],
            parts["log_curvature"],
            1 + channels,
            parts["group"],
            fixed_exp(parts["log_variance"] >> 1, self.exp_table) >> (SCALE_BITS - VALUE_BITS),
        )


def _floats(name: str) -> bool:
    """h_s runs in integers only; the float functions of the rate that the encoder needs stay."""
    return not name.startswith("h_s.")


def export(network: GaussianVAE) -> dict[str, np.ndarray]:
    """Networks and integers of a weights file, without quantiles and tables: those are fitted (train/export_vbq.py)."""
    tensors = floats_to_arrays(network, _floats)
    with torch.no_grad():
        rate = {
            k: v[:, :, 0, 0].double().numpy() for k, v in network.at_rate(torch.arange(RATES) / (RATES - 1)).items()
        }
    noise = np.log([lambda_of_index(i) / math.log(2) for i in range(RATES)])
    integers = RateTables(
        **fixed_point_gains(rate),
        z_row=table_index_of_channels(rate),
        scale_offset=np.rint(rate["scale_offset"] * 2**LOG_BITS).astype(np.int32),
        plane=np.rint((2 * np.arange(RATES) / (RATES - 1) - 1) * 2**FRACTION_BITS).astype(np.int32),
        noise=np.rint(noise * 2**LOG_BITS).astype(np.int32),
    )
    tensors |= {f"rates.{k}": v for k, v in vars(integers).items()}
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s).to_arrays().items()}
    tensors["prior.log_curvature"] = np.rint(tensors["float.log_curvature"] * 2**LOG_BITS).astype(np.int32)
    return tensors
