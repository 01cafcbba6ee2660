"""What the encoder puts beside latents: the Wiener filter, and the symbols of the residual layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.common import rdoq
from latcodec.backends.common.fixed_point import SCALE_ROWS, bounded
from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.common.search import Options
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.content import is_screen_content
from latcodec.backends.hyperprior_context.entropy_model import CodedLatents
from latcodec.backends.hyperprior_context.model import Model, OperatingPoint
from latcodec.backends.hyperprior_context.picture import base_picture, dequantise_latents, stripes
from latcodec.backends.hyperprior_context.reconstruction import with_centroid_shift
from latcodec.backends.hyperprior_context.residual import MAX_BANDS, symbol_bits_of_tables
from latcodec.backends.hyperprior_context.residual_network import BLOCK, DEAD_ZONE, LARGEST, ResidualLayer
from latcodec.backends.hyperprior_context.residual_trial import residual_pays, saved_bits_of_bands, step_and_weight
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.entropy.tables import Tables

SYMBOLS_AT_ONCE = 2**17  # that are quantised at once: a large picture would take much memory


@dataclass(frozen=True)
class ResidualPlan:
    """What is coded beside latents.

    Attributes:
        filter_symbols: Those of the Wiener filter, int32 [n]; none without a filter.
        encoder: Gives the symbols of the residual layer; None if there are none.
    """

    filter_symbols: np.ndarray
    encoder: ResidualEncoder | None = None

    @property
    def num_bands(self) -> int:
        """How many bands of the residual layer are sent."""
        return self.encoder.num_bands if self.encoder else 0


@torch.inference_mode()
def plan_residual(
    model: Model, y: CodedLatents, image: np.ndarray | None, rate_params: dict[str, Tensor], point: OperatingPoint,
    options: Options,
) -> ResidualPlan:  # fmt: skip
    """Fit the filter and prepare the residual layer of a picture whose latents are coded.

    Args:
        model: Networks and tables.
        y: Integers of y.
        image: uint8 or uint16 [H, W, 3]. Without a picture there is neither filter nor residual layer.
        rate_params: The result of `Model.at_rate`.
        point: Operating point of the file.
        options: Those of the encoder.

    Returns:
        An empty plan where a trial shows that it would not be worth the synthesis.
    """
    if image is None:
        return ResidualPlan(wiener.no_filter())
    size, x = image.shape[:2], to_tensor(image, model.device)
    y_hat = dequantise_latents(model, y, rate_params)
    if _is_photograph_at_own_rate(model, image, point) and not options.effort:
        if not residual_pays(model, y_hat, x, rate_params, point.rate_index):
            return ResidualPlan(wiener.no_filter())
    in_bf16 = model.encodes_in_bf16 and point.rate_index <= TUNING.bf16_base_until
    base = base_picture(model, y_hat, rate_params, in_bf16).contiguous()
    filter_symbols = wiener.fit(base, x, point.rate_index, size, options.gray, model.tables)
    x -= wiener.apply(base, filter_symbols, point.rate_index)
    del base, y_hat  # or they are held beside what the residual layer takes
    if options.gray:
        x[:] = x.mean(1, keepdim=True)
    encoder = ResidualEncoder(model.network.details, rate_params, x, point.rate_index, model.tables)
    return ResidualPlan(filter_symbols, encoder)


def _is_photograph_at_own_rate(model: Model, image: np.ndarray, point: OperatingPoint) -> bool:
    own = point.base_rate_index == point.rate_index and point == model.operating_point(point.rate_index)
    return own and point.rate_index < TUNING.lower_base_from and not is_screen_content(image)


class ResidualEncoder:
    """Quantises the residual layer by RDOQ, group by group.

    The basis is orthonormal, so what a step of error costs in the picture is known exactly.

    Attributes:
        num_bands: How many bands are sent.
    """

    def __init__(
        self, layer: ResidualLayer, rate_params: dict[str, Tensor], residual: Tensor, rate_index: int, tables: Tables
    ):
        """Transform the residual, float32 [1, 3, 16 h, 16 w], and choose how many bands pay."""
        step, self.weight = step_and_weight(rate_params, rate_index)
        u = step.new_empty(layer.channels, *(side // BLOCK for side in residual.shape[2:]))
        for block_rows, pixel_rows in stripes(residual.shape[2]):
            u[:, block_rows] = bounded(layer.analysis(residual[:, :, pixel_rows]) / step)[0]
        self.num_bands = _bands_worth_sending(u, self.weight)
        self.groups = u.cpu().split(layer.sizes)
        self.tables, self.bits_of_sizes = tables, _bits_of_sizes(tables)
        self.centroid_shift = float(rate_params["details.nearer"])

    def band_shifts(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Return by how many tables to shift each band, int32 [bands]; table_index: uint16 [bands, n]."""
        bands = self._coefficients(group, table_index.size).reshape(table_index.shape)
        shifts = [_best_shift(*band, self.bits_of_sizes) for band in zip(table_index, bands, strict=True)]
        return np.array(shifts, np.int32)

    def symbols(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Return the symbols of a group, int32 [n]; table_index: uint16 [n], shifted."""
        u, starts = self._coefficients(group, len(table_index)), range(0, len(table_index), SYMBOLS_AT_ONCE)
        chunks = [(u[n : n + SYMBOLS_AT_ONCE], table_index[n : n + SYMBOLS_AT_ONCE]) for n in starts]
        return np.concatenate([rdoq.rdoq(*chunk, self.tables, self.weight, self._dequantise) for chunk in chunks])

    def _coefficients(self, group: int, count: int) -> np.ndarray:
        return self.groups[group].numpy().ravel()[:count]

    def _dequantise(self, symbols: np.ndarray) -> np.ndarray:
        return with_centroid_shift(torch.from_numpy(symbols).float(), self.centroid_shift).numpy()


def _bands_worth_sending(u: Tensor, weight: float) -> int:
    """Return the number of bands up to the last that saves more than it costs; u: float32 [K, h, w], in steps."""
    pays = saved_bits_of_bands(u, weight) > TUNING.residual_zero_bits * u.numel() / MAX_BANDS
    return int(pays.nonzero().max()) + 1 if pays.any() else 0


def _bits_of_sizes(tables: Tables) -> np.ndarray:
    """Return bits of a symbol of each size up to LARGEST in each residual table, float64 [SCALE_ROWS, LARGEST + 1]."""
    bits = symbol_bits_of_tables(tables)
    zero = bits.shape[1] // 2
    return (bits[:, zero : zero + LARGEST + 1] + bits[:, zero - LARGEST : zero + 1][:, ::-1]) / 2


def _best_shift(table_index: np.ndarray, coefficients: np.ndarray, bits_of_sizes: np.ndarray) -> int:
    """Return by how many tables to shift a band so that what rounds from coefficients, float32 [n], costs least."""
    sizes = np.minimum(np.abs(coefficients) + (0.5 - DEAD_ZONE), LARGEST).astype(np.int64)
    counts = np.bincount(table_index * np.int64(LARGEST + 1) + sizes, minlength=bits_of_sizes.size)
    shifts = np.arange(-TUNING.max_shift, TUNING.max_shift + 1)
    moved = np.clip(np.arange(SCALE_ROWS) + shifts[:, None], 0, SCALE_ROWS - 1)
    bits = (counts.reshape(bits_of_sizes.shape) * bits_of_sizes[moved]).sum((1, 2))
    bits += TUNING.shift_bits * np.abs(shifts)
    return int(shifts[bits.argmin()])
