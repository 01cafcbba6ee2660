"""From a picture to latents, and from the integers of a stream back to a picture.

All of it is float, which law 1 allows here: no table index depends on it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.common.fixed_point import MEAN_BITS
from latcodec.backends.common.mean_scale import Latents, MeanScaleRelaxedRD
from latcodec.backends.common.mean_scale import analyse as analyse_at
from latcodec.backends.common.mean_scale import sigmas as latent_sigmas
from latcodec.backends.common.pixels import to_image
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.entropy_model import CodedIntegers, CodedLatents
from latcodec.backends.hyperprior_context.model import Model, OperatingPoint
from latcodec.backends.hyperprior_context.quadtree import gather_valid, merge_quadtree_steps, scatter_valid
from latcodec.backends.hyperprior_context.reconstruction import reconstruction_offset, with_centroid_shift
from latcodec.backends.hyperprior_context.residual_network import BLOCK, ResidualLayer
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles

CACHED_RATES = 2  # at which the latents of a picture are kept
STRIPE_BLOCKS = 128  # rows of blocks of the residual layer that are transformed at once


class LatentsAtRates:
    """Latents of one picture at any rate, from an analysis that is conditioned on the rate.

    Attributes:
        image: The picture, uint8 or uint16 [H, W, 3].
        seconds: Time spent in analysis so far, at all rates.
    """

    def __init__(self, model: Model, image: np.ndarray):
        """Analyse nothing yet."""
        self.model, self.image, self.seconds = model, image, 0.0
        self._latents: dict[int, Latents] = {}

    def at(self, rate_index: int) -> Latents:
        """Return the latents at a rate; those of the last CACHED_RATES are kept."""
        if rate_index not in self._latents:
            if len(self._latents) == CACHED_RATES:
                self._latents.pop(next(iter(self._latents)))
            start = time.perf_counter()
            rate_params = self.model.at_rate(OperatingPoint(rate_index, rate_index, False))
            self._latents[rate_index] = analyse_at(self.model, self.image, rate=rate_params)
            self.seconds += time.perf_counter() - start
        return self._latents[rate_index]


def analyse(model: Model, image: np.ndarray) -> Latents | LatentsAtRates:
    """Return the latents of a picture, uint8 or uint16 [H, W, 3], from which it can be coded at any rate."""
    return LatentsAtRates(model, image) if model.network.config.analysis_at_rate else analyse_at(model, image)


def dequantise_latents(model: Model, y: CodedLatents, rate_params: dict[str, Tensor]) -> Tensor:
    """Return what synthesis sees, float32 [1, C, h, w].

    Args:
        model: Networks and tables.
        y: Integers of y.
        rate_params: The result of `Model.at_rate`.
    """
    sigmas = torch.from_numpy(latent_sigmas()).float()
    offset_of_table = reconstruction_offset(sigmas, rate_params["lift"].cpu().flatten()).numpy()
    valid_mask = y.valid_mask()
    values = gather_valid(y.symbols, valid_mask).astype(np.float32)
    ones = np.flatnonzero(np.abs(values) == 1)
    values[ones] *= 1 + offset_of_table[y.table_index[ones]]
    y_hat = scatter_valid(values, valid_mask) + y.means.astype(np.float32) * np.float32(2.0**-MEAN_BITS)
    y_hat = torch.from_numpy(merge_quadtree_steps(y_hat, y.shape)[None]).to(model.device)
    return (y_hat * rate_params["y_log_inverse_gain"].exp()).contiguous(memory_format=torch.channels_last)


def base_picture(model: Model, y_hat: Tensor, rate_params: dict[str, Tensor], autocast: bool) -> Tensor:
    """Return the picture before filter and residual layer, float32 [1, 3, 16 h, 16 w].

    Args:
        model: Networks and tables.
        y_hat: The result of `dequantise_latents`.
        rate_params: The result of `Model.at_rate`.
        autocast: Whether synthesis runs in bf16.
    """
    synthesis = partial(model.network.synthesis, rate=rate_params, autocast=autocast)
    return run_in_tiles(synthesis, y_hat, 1, IMAGE_STRIDE, model.halo())


@torch.inference_mode()
def reconstruct(
    model: Model, integers: CodedIntegers, point: OperatingPoint, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Return the picture that integers stand for, as every decoder shows it.

    Args:
        model: Networks and tables.
        integers: All integers of the picture.
        point: Operating point of the file.
        size: (height, width) in px.
        gray: Whether the three channels are averaged.
        depth: Bits per sample, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, 3].
    """
    rate_params = model.at_rate(point)
    y_hat = dequantise_latents(model, integers.y, rate_params)
    x = base_picture(model, y_hat, rate_params, model.autocast)
    has_filter, has_residual = len(integers.filter_symbols) > 0, len(integers.residual_symbols) > 0
    if has_filter or has_residual:
        x = x.contiguous()
    x = wiener.apply(x, integers.filter_symbols, point.rate_index)
    if has_residual:
        x = add_residual(model.network.details, rate_params, integers.residual_symbols, x)
    return to_image(x, size, gray, depth)


def stripes(height: int) -> list[tuple[slice, slice]]:
    """Return the rows of each stripe of a picture so many px high: those of its blocks, and those of its pixels."""
    starts = range(0, height // BLOCK, STRIPE_BLOCKS)
    blocks = [slice(start, start + STRIPE_BLOCKS) for start in starts]
    return [(rows, slice(rows.start * BLOCK, rows.stop * BLOCK)) for rows in blocks]


def add_residual(layer: ResidualLayer, rate_params: dict[str, Tensor], symbols: np.ndarray, base: Tensor) -> Tensor:
    """Add what the symbols of the residual layer stand for to a picture, in place.

    Args:
        layer: The network's residual layer.
        rate_params: The result of `Model.at_rate`.
        symbols: int32 [K, 2 h, 2 w].
        base: float32 [1, 3, 16 h, 16 w].

    Returns:
        `base`.
    """
    step = (-rate_params["details.log_gain"]).exp()
    for block_rows, pixel_rows in stripes(base.shape[2]):
        stripe = torch.from_numpy(symbols[None, :, block_rows]).to(base.device)
        if stripe.any():
            values = with_centroid_shift(stripe.float(), rate_params["details.nearer"])
            base[:, :, pixel_rows] += layer.synthesis(values * step)
    return base


def relaxed_rd_with_residual(
    model: Model, integers: CodedIntegers, point: OperatingPoint, pixels: int
) -> MeanScaleRelaxedRD:
    """Return the codec with a relaxed quantiser, for a search that starts from coded integers.

    The search knows their filter, and the residual layer if they have one: where they have none it would cost half as
    much time again and tell nothing.

    Args:
        model: Networks and tables.
        integers: Those of the file without search.
        point: Operating point of the file.
        pixels: Number of pixels of the padded picture.
    """
    point = replace(point, has_residual=len(integers.residual_symbols) > 0)
    if not len(integers.filter_symbols):
        return MeanScaleRelaxedRD(model, point)
    kernel, shift = (
        part.to(model.device) for part in wiener.kernel_of(integers.filter_symbols, point.rate_index, pixels)
    )
    return MeanScaleRelaxedRD(model, point, filtered=partial(wiener.filtered, kernel=kernel, shift=shift))
