"""The PLN codec's model: networks, integer network and the integers of each rate and each class of dimension."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.weights_parts import config_from, load_floats, with_prefix
from latcodec.backends.pln import coded_sampling
from latcodec.backends.pln.coded_sampling import Plan
from latcodec.backends.pln.network import Config, Ladder
from latcodec.backends.pln.samplers import Classes
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet, shift_round
from latcodec.entropy.philox import SCALE_BITS
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.weights import Weights, trained_for

VALUE_BITS = 8  # of z1
GAIN_BITS = 16  # of the gains that prior means are multiplied by
FACTOR_BITS = 12  # of prior standard deviations
ROWS_PER_NAT_BITS = 4  # table rows lie 1/16 nat apart


@dataclass(frozen=True)
class RateTables:
    """Integers of every rate index, [256, channels].

    z2_mean, z2_scale, z2_step: mean, standard deviation and jump of z2; z2_bits: its expected information, 1/256 bit;
    mean_gain, scale_offset: from h_s to z1's means and rows; jump_row: table rows of the jumps of z2 and z1.
    """

    z2_mean: np.ndarray
    z2_scale: np.ndarray
    z2_step: np.ndarray
    z2_bits: np.ndarray
    mean_gain: np.ndarray
    scale_offset: np.ndarray
    jump_row: np.ndarray


class Model:
    """Networks, integer network, frozen tables, ready to code on a device. autocast runs synthesis in bf16.

    row_scale, row_step: prior standard deviation (FACTOR_BITS) and jump (VALUE_BITS) of a table row in units of the
    evidence's; first_place: where row 1 lies; index_row: the tables of rejection's indices, after those of jumps;
    row_jump: what a class adds to a channel's table of jumps.
    """

    lowest_index = 0

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = Ladder(config_from(Config, weights.config))
            load_floats(self.network, tensors, floats)
            self.hyper = IntegerNet.from_arrays(with_prefix(tensors, "hyper."))
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            self.rates = RateTables(**{k: v.astype(np.int64) for k, v in with_prefix(tensors, "rates.").items()})
            rows = {k: v.astype(np.int64) for k, v in with_prefix(tensors, "rows.").items()}
            self.row_scale, self.row_step = rows["scale"], rows["step"]
            self.first_place, self.index_row = int(rows["first_place"][0]), rows["index_row"].astype(np.uint16)
            self.row_jump, self.jump_rows = rows["jump"], int(self.index_row.min())
            amplitudes = {int(k): v for k, v in with_prefix(rows, "amplitudes.").items()}
            self.classes = Classes(rows["bits"], amplitudes)
            _check(self.network.config, self.rates, rows, amplitudes)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not pln weights: {error}") from None
        self.weights_id, self.metric = weights.id, trained_for(weights.config)
        self.device, self.autocast = torch.device(device), autocast
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    def prior_of_z1(self, z2: np.ndarray, rate_index: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Means int32 and rows uint8 of z1, [C, h, w], from z2 int64 [Z, h', w'].

        Law 1: integers only. mean = m * gain; row = 1 + 16 * (l + offset - place of row 1), rounded.
        """
        out = self.hyper(z2)[:, : shape[0], : shape[1]]
        mean, log_scale = out[: len(out) // 2], out[len(out) // 2 :]
        gain = self.rates.mean_gain[rate_index][:, None, None]
        means = np.clip(shift_round(mean * gain, FRACTION_BITS + GAIN_BITS - VALUE_BITS), -(2**28), 2**28)
        place = log_scale + self.rates.scale_offset[rate_index][:, None, None] - self.first_place
        rows = 1 + shift_round(place, FRACTION_BITS - ROWS_PER_NAT_BITS)
        return means.astype(np.int32), np.clip(rows, 0, len(self.row_scale) - 1).astype(np.uint8)

    def jumps_of_z2(self, rate_index: int, cells: int) -> np.ndarray:
        """Table rows uint16 of the jumps of z2, which has so many positions."""
        channel = self.rates.jump_row[rate_index, : self.rates.z2_mean.shape[1]]
        return np.repeat(np.clip(channel, 0, self.jump_rows - 1), cells).astype(np.uint16)

    def jumps_of_z1(self, rate_index: int, rows: np.ndarray) -> np.ndarray:
        """Table rows uint16 of the jumps of z1 with rows uint8 [C, h, w]: that of the channel, shifted by the class."""
        channel = self.rates.jump_row[rate_index, self.rates.z2_mean.shape[1] :, None, None]
        return np.clip(channel + self.row_jump[rows], 0, self.jump_rows - 1).astype(np.uint16).ravel()

    def blocks_of_z2(self, rate_index: int, cells: int, kappa: int) -> Plan:
        """Level 2 always has balanced blocks; every position has the same allocation."""
        return coded_sampling.pack(np.repeat(self.rates.z2_bits[rate_index], cells), kappa * coded_sampling.BIT)

    def z2_of(self, rate_index: int, samples: np.ndarray, jumps: np.ndarray) -> np.ndarray:
        """z2 int64 [Z, h', w'] from samples and jumps of that shape."""
        mean, scale, step = (
            v[rate_index][:, None, None] for v in (self.rates.z2_mean, self.rates.z2_scale, self.rates.z2_step)
        )
        return np.clip(mean + to_value(samples, scale, jumps, step, FRACTION_BITS), -(2**30), 2**30)


def _check(config: Config, rates: RateTables, rows: dict[str, np.ndarray], amplitudes: dict[int, np.ndarray]) -> None:
    """Raise WeightsError unless every table has the length that the others rely on."""
    lengths = {"z2": config.hyper_latent, "mean": config.latent, "scale": config.latent}
    for name, table in vars(rates).items():
        wide = lengths.get(name.split("_")[0], config.latent + config.hyper_latent)
        if table.shape != (RATES, wide):
            raise WeightsError(f"rates.{name} is {list(table.shape)}, not {[RATES, wide]}")
    count = len(rows["bits"])
    shapes = {name: (count,) for name in ("bits", "scale", "step", "index_row", "jump")} | {"first_place": (1,)}
    for name, shape in shapes.items():
        if rows[name].shape != shape or not 1 <= count <= 256:
            raise WeightsError(f"rows.{name} is {list(rows[name].shape)}, not {list(shape)}")
    for shards, table in amplitudes.items():
        if table.shape != (shards, count):
            raise WeightsError(f"rows.amplitudes.{shards} is {list(table.shape)}, not {[shards, count]}")


def floats(name: str) -> bool:
    """True for parameters that run as floats; h_s runs in integers only."""
    return not name.startswith("h_s.")


def to_value(samples: np.ndarray, scale: np.ndarray, jumps: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
    """Fixed point of `bits` after the point from samples (SCALE_BITS) of standard deviation `scale` (FACTOR_BITS)."""
    value = shift_round(samples * scale, SCALE_BITS + FACTOR_BITS - bits) + jumps.astype(np.int64) * step
    return np.clip(value, -(2**30), 2**30)
