"""The default codec's networks and tables as loaded from a weights file, and the operating points of its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latcodec.backends.common.fixed_point import GAIN_BITS, MEAN_BITS, SCALE_ROWS, table_index_of_scale
from latcodec.backends.common.mean_scale import MeanScaleModel
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.rate_tables import RateTables as MeanScaleRateTables
from latcodec.backends.hyperprior_context import residual
from latcodec.backends.hyperprior_context.network import AfterSynthesis, Config, ContextHyperprior
from latcodec.backends.hyperprior_context.quadtree import NUM_STEPS, step_slices
from latcodec.backends.hyperprior_context.wire import NEGATIVE_RATE_TAG, negative_rate_index
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet
from latcodec.errors import FormatError, WeightsError
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.layers import round_straight_through
from latcodec.nn.symbol_costs import SIGMA_MIN

# Names of the context networks in weights files: what they see of decoded steps, of the hyper-synthesis, what they add.
CONTEXT_NETWORKS = ("from_seen", "from_first", "corrections")
Z_CONTEXT_NETWORKS = ("z_from_seen", "z_corrections")
Z_TABLE = 2 * SCALE_ROWS  # the first table of z: those of y and of the residual layer come before
NUM_TABLES = 3 * SCALE_ROWS
CACHED_POINTS = 4  # operating points whose rate parameters a model keeps


@dataclass(frozen=True)
class RateTables(MeanScaleRateTables):
    """Integers of every rate index, [256 or more, channels].

    Attributes:
        context_gain: From decoded steps of y to what the context networks see.
        z_gain: As mean_gain, of z.
        z_scale_offset: As scale_offset, of z.
    """

    context_gain: np.ndarray
    z_gain: np.ndarray
    z_scale_offset: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: np.ndarray) -> RateTables:
        """Round the rate parameters of a network, float64 [256 or more, channels], to fixed point."""
        context_gain = np.exp(rate["context_log_gain"]) * 2.0 ** (GAIN_BITS + FRACTION_BITS - MEAN_BITS)
        z_scale_offset = (rate["z_log_sigma"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS
        return super().of(
            rate,
            context_gain=np.rint(context_gain).astype(np.int32),
            z_gain=np.rint(np.exp(rate["z_log_gain"]) * 2**GAIN_BITS).astype(np.int32),
            z_scale_offset=np.rint(z_scale_offset).astype(np.int32),
            **more,
        )


@dataclass(frozen=True, order=True)
class OperatingPoint:
    """The rates at which a file is coded.

    Attributes:
        rate_index: Rate index of the file: the price of a bit.
        base_rate_index: Rate index at which its latents are coded, at most `rate_index`.
        has_residual: Whether a filter and a residual layer follow the latents in the stream.
    """

    rate_index: int
    base_rate_index: int
    has_residual: bool


class Model(MeanScaleModel):
    """Networks, integer networks and frozen tables of the default codec; see `mean_scale.MeanScaleModel`."""

    network_class, config_class, rates_class = ContextHyperprior, Config, RateTables

    @staticmethod
    def runs_as_floats(name: str) -> bool:
        """Return whether a tensor of the network stays float.

        What decides bits runs in integers only, and training's prices are in the tables.
        """
        integer_names = ("h_s.", "prices", *(f"{network}." for network in CONTEXT_NETWORKS + Z_CONTEXT_NETWORKS))
        return not name.startswith(integer_names) and residual.runs_as_floats(name)

    def load_more(self, tensors: dict[str, np.ndarray]) -> None:
        """Load the context networks and the residual layer.

        Raises:
            WeightsError: The tables are not those of this codec.
        """
        if self.tables.num_tables != NUM_TABLES:
            raise WeightsError(f"tables: there are {self.tables.num_tables} tables, not {NUM_TABLES}")
        self.contexts = {
            name: [self.nets[f"{name}.{step}"] for step in range(1, NUM_STEPS)]
            for name in CONTEXT_NETWORKS + Z_CONTEXT_NETWORKS
        }
        self.residual = residual.IntegerResidual(self.nets, tensors) if self.network.config.details else None
        self._rate_params: dict[tuple, dict[str, Tensor]] = {}

    def operating_point(self, rate_index: int, parameters: bytes | None = None) -> OperatingPoint:
        """Return what the rate index and the parameters of a file mean.

        Args:
            rate_index: Rate index from the header; below 0, or 0 with parameters that say how far below.
            parameters: None for the operating point that the rate index alone implies; one byte, the base rate index of
                a file with a residual layer; or two bytes, NEGATIVE_RATE_TAG and how far below 0 the rate index is.

        Raises:
            FormatError: The parameters are not valid at this rate index with these weights.
        """
        config = self.network.config
        if (negative := negative_rate_index(parameters)) is not None:
            if rate_index not in (0, negative) or not self.lowest_index <= negative < 0:
                raise FormatError(
                    f"field parameters: rate index {negative} beside {rate_index}, the lowest is {self.lowest_index}"
                )
            rate_index, parameters = negative, None
        if parameters is None:
            if self.residual is None:
                return OperatingPoint(rate_index, rate_index, False)
            return OperatingPoint(rate_index, min(rate_index, config.latents_until), rate_index >= config.details_from)
        if self.residual is None:
            raise FormatError("field parameters: a base rate, but these weights have no residual layer")
        if len(parameters) != 1 or parameters[0] > rate_index:
            raise FormatError(f"field parameters: {list(parameters[:4])} is not one rate index up to {rate_index}")
        return OperatingPoint(rate_index, parameters[0], True)

    def parameters(self, point: OperatingPoint) -> bytes | None:
        """Return the parameters of a file: the inverse of `operating_point`."""
        if point.rate_index < 0:
            return bytes((NEGATIVE_RATE_TAG, -point.rate_index))
        return None if point == self.operating_point(point.rate_index) else bytes((point.base_rate_index,))

    def at_rate(self, point: OperatingPoint) -> dict[str, Tensor]:
        """Return the network's rate parameters, float32 [1, C, 1, 1] each.

        They are cached and shared, so callers must not change them.
        """
        key = self.network, self.device, point.rate_index, point.base_rate_index
        if key not in self._rate_params:
            # SGA differentiates through them, so they must not be inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                indices = torch.tensor([[point.rate_index], [point.base_rate_index]], device=self.device)
                newest = [*self._rate_params.items()][1 - CACHED_POINTS :]
                self._rate_params = dict(newest) | {key: self.network.at_rate(*(indices / (RATES - 1)))}
        return self._rate_params[key]

    def integers_at(self, point: OperatingPoint, *names: str) -> list[np.ndarray]:
        """Return fields of `RateTables` at the base rate of an operating point, [C, 1, 1] each."""
        row = point.base_rate_index - self.lowest_index
        return [getattr(self.rates, name)[row][:, None, None] for name in names]

    def context_networks(self, names: tuple[str, ...], step: int) -> list[IntegerNet]:
        """Return the context networks of a step; the first step has none."""
        return [self.contexts[name][step - 1] for name in names] if step else []

    def step_error_bits(self) -> float:
        """Return how many bits a squared error of one step of y is worth in RDOQ."""
        return self.network.config.step_error_bits

    def z_step_error_bits(self, error_bits: float) -> float:
        """Return how many bits a squared error of one step of z is worth where y is quantised with `error_bits`.

        It is 0 where `error_bits` is 0, and never less than `error_bits`.
        """
        z_error_bits = self.network.config.z_step_error_bits
        return max(error_bits, z_error_bits) if error_bits and z_error_bits else 0.0

    def halo(self) -> int:
        """Return how many latents the transforms reach beyond a strip: 30 px, and a sample of its stage per block."""
        blocks = self.network.config.blocks
        return -(-(30 + sum(n * 2 ** (stage + 1) for stage, n in enumerate(blocks))) // IMAGE_STRIDE)

    def first_row(self, number: int) -> int:
        """Return the table of the smallest scale of one of the prices of `transmit`: z, the steps of y, residuals."""
        if number == 0:
            return Z_TABLE
        return SCALE_ROWS if number > NUM_STEPS else 0

    def transmit(
        self, latents: tuple[Tensor, ...], point: OperatingPoint, rate_params: dict, quantise, autocast: bool,
        x: Tensor, filtered: Callable[[Tensor], Tensor] | None = None,
    ):  # fmt: skip
        """Return (picture, prices) of the network's `transmit`, with the residual layer where the file has one.

        Args:
            latents: y [1, C, h, w] and z.
            point: Operating point of the file.
            rate_params: The result of `at_rate`.
            quantise: What is applied to the steps of y and z.
            autocast: Whether synthesis runs in bf16.
            x: The picture, float32 [1, 3, H, W] in 0..1.
            filtered: What is applied to the picture before the residual layer.
        """
        after = AfterSynthesis(filtered=filtered)
        if point.has_residual:
            height, width = (IMAGE_STRIDE * side for side in latents[0].shape[2:])
            padded = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
            after = AfterSynthesis(padded, round_straight_through, filtered)
        return self.network.transmit(*latents, rate_params, quantise, autocast, after=after)

    def min_bits_of_z(self, point: OperatingPoint, shape: tuple[int, int]) -> float:
        """Return the least number of bits that z costs: those of its first step, whose tables alone are known.

        The other steps of z are decoded, or the stream ends too soon, before anything larger is allocated.

        Args:
            point: Operating point of the file.
            shape: (h, w) of z.
        """
        offsets = self.rates.z_scale_offset[point.base_rate_index - self.lowest_index]
        table_index = table_index_of_scale(np.zeros(len(offsets), np.int64), offsets)
        counts = np.zeros(len(offsets), np.int64)
        for channels, rows, columns in step_slices(0):
            counts[channels] = len(range(shape[0])[rows]) * len(range(shape[1])[columns])
        return float((self.least_bits(table_index + Z_TABLE) * counts).sum())
