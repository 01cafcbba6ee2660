"""The two directions of coding: symbols into a stream and out of it, in the order of `entropy_model.run_entropy_model`.

    stream: z, 4 steps | y, 4 steps | number of bands, filter or not | filter | per group: shifts, symbols

All of it goes through one range coder; what follows the number of bands is there only if the file has a residual layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.common import rdoq
from latcodec.backends.common.fixed_point import MEAN_BITS, bounded, round_to_int32
from latcodec.backends.common.mean_scale import Latents
from latcodec.backends.common.search import Options
from latcodec.backends.hyperprior_context import residual, wiener
from latcodec.backends.hyperprior_context.entropy_model import CodedLatents, StepPrediction
from latcodec.backends.hyperprior_context.model import Model, OperatingPoint
from latcodec.backends.hyperprior_context.quadtree import gather_valid, scatter_valid, split_quadtree_step
from latcodec.backends.hyperprior_context.residual_encoder import ResidualPlan, plan_residual
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import Tables


class StepEncoder:
    """The writing `StepCoder`: quantises what it is asked for and writes the symbols.

    Attributes:
        range_coder: Holds what was written.
    """

    def __init__(self, model: Model, latents: Latents, point: OperatingPoint, options: Options, error_bits: float):
        """Prepare the latents of an operating point.

        Args:
            model: Networks and tables.
            latents: Those of the base rate.
            point: Operating point of the file.
            options: Those of the encoder.
            error_bits: Bits that a squared error of one step of y is worth; 0 rounds to the nearest integers.
        """
        self.model, self.image, self.point, self.options = model, latents.image, point, options
        self.rate_params = model.at_rate(point)
        self.range_coder = RangeEncoder(model.tables)
        nothing_skipped = np.zeros(len(latents.z), bool)
        z_steps = _in_steps(latents.z, self.rate_params["z_log_gain"])
        self._z = _Quantiser(z_steps, nothing_skipped, model.tables, model.z_step_error_bits(error_bits))
        y_steps = _in_steps(latents.y, self.rate_params["y_log_gain"])
        context_gain = self.rate_params["context_log_gain"].exp()
        skipped = (context_gain > TUNING.skip_context_gain).flatten().cpu().numpy()
        self._y = _Quantiser(y_steps, skipped, model.tables, error_bits)
        self._plan: ResidualPlan | None = None

    def code_z_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Quantise and write a step of z."""
        return self._write_step(self._z.quantise(step, prediction), prediction)

    def code_y_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Quantise and write a step of y."""
        return self._write_step(self._y.quantise(step, prediction), prediction)

    def begin_residual(self, y: CodedLatents) -> tuple[np.ndarray, int]:
        """Plan the residual, write how many bands it has, and write its filter."""
        self._plan = plan_residual(self.model, y, self.image, self.rate_params, self.point, self.options)
        filter_symbols, num_bands = self._plan.filter_symbols, self._plan.num_bands
        has_filter = len(filter_symbols) > 0
        self._write(residual.pack_band_count(num_bands, has_filter), residual.band_count_table())
        if has_filter:
            wiener.write(filter_symbols, self.range_coder)
        return filter_symbols, num_bands

    def code_band_shifts(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Choose and write by how many tables to shift each band of a group."""
        shifts = self._plan.encoder.band_shifts(group, table_index)
        return self._write(shifts, residual.shift_tables(len(shifts)))

    def code_residual_group(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Quantise and write the symbols of a group."""
        return self._write(self._plan.encoder.symbols(group, table_index), table_index)

    def finish(self) -> bytes:
        """Return the stream."""
        return self.range_coder.finish()

    def _write_step(self, symbols: np.ndarray, prediction: StepPrediction) -> np.ndarray:
        return scatter_valid(self._write(symbols, prediction.table_index), prediction.valid_mask)

    def _write(self, symbols: np.ndarray, table_index: np.ndarray) -> np.ndarray:
        self.range_coder.encode(symbols, table_index)
        return symbols


class StepDecoder:
    """The reading `StepCoder`."""

    def __init__(self, stream: bytes, tables: Tables):
        """Begin to read a stream."""
        self._range_coder = RangeDecoder(stream, tables)

    def code_z_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Read a step of z."""
        return scatter_valid(self._range_coder.decode(prediction.table_index), prediction.valid_mask)

    def code_y_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Read a step of y."""
        return self.code_z_step(step, prediction)

    def begin_residual(self, y: CodedLatents) -> tuple[np.ndarray, int]:
        """Read how many bands there are, and the filter if there is one; raises FormatError."""
        symbols = self._range_coder.decode(residual.band_count_table())
        num_bands, has_filter = residual.unpack_band_count(symbols)
        filter_symbols = wiener.read(self._range_coder) if has_filter else wiener.no_filter()
        return filter_symbols, num_bands

    def code_band_shifts(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Read by how many tables to shift each band of a group."""
        return self._range_coder.decode(residual.shift_tables(len(table_index)))

    def code_residual_group(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Read the symbols of a group."""
        return self._range_coder.decode(table_index)

    def finish(self) -> None:
        """Check that nothing is left of the stream; raises FormatError."""
        self._range_coder.finish()


class _Quantiser:
    """Latents of one picture in quantiser steps, [C, h, w], and how to round them."""

    def __init__(self, values: np.ndarray, skipped: np.ndarray, tables: Tables, error_bits: float):
        self.values = values
        self.skipped = skipped  # bool [C]: channels whose symbols are all 0
        self.tables, self.error_bits = tables, error_bits

    def quantise(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Return the symbols of a step, int32 [n]."""
        means, valid_mask = prediction.means, prediction.valid_mask
        values = split_quadtree_step(self.values, step)
        values[self.skipped] = means[self.skipped] * 2.0**-MEAN_BITS
        residuals = torch.from_numpy(gather_valid(values, valid_mask))
        residuals -= torch.from_numpy(gather_valid(means, valid_mask)) * 2.0**-MEAN_BITS
        if not self.error_bits:
            return round_to_int32(residuals)
        return rdoq.rdoq(bounded(residuals).numpy(), prediction.table_index, self.tables, self.error_bits)


def _in_steps(latents: Tensor, log_gain: Tensor) -> np.ndarray:
    """Return latents, float32 [C, h, w], in quantiser steps."""
    return (latents * log_gain[0].exp()).cpu().numpy()
