"""From a picture to the latents of the context codec, and from its integers back to one: what a decoder shows, and what
an encoder measures details by, and a search latents.

Floats, which law 1 allows here: no table row depends on them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from latcodec.backends.common.fixed_point import MEAN_BITS
from latcodec.backends.common.mean_scale import Latents, MeanScaleRelaxedRD
from latcodec.backends.common.mean_scale import analyse as analyse_at
from latcodec.backends.common.mean_scale import sigmas as sigmas_of_latents
from latcodec.backends.common.pixels import latent_shapes, to_image
from latcodec.backends.hyperprior_context import residual as details
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.coding_order import from_coding_order, picked, spread, there
from latcodec.backends.hyperprior_context.entropy_model import Model, Rate
from latcodec.backends.hyperprior_context.quadtree import STEPS
from latcodec.backends.hyperprior_context.reconstruction import lifts
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles

KEPT_RATES = 2  # at which the latents of a picture are kept


class LatentsAtRates:
    """Latents of a picture, uint8 or uint16 [H, W, 3], by networks that know the rate when they look at it. seconds:
    that they looked for, at all rates."""

    def __init__(self, model: Model, image: np.ndarray):
        self.model, self.image, self.seconds = model, image, 0.0
        self._found: dict[int, Latents] = {}

    def at(self, rate_index: int) -> Latents:
        """Those of a rate index of latents, kept until those of KEPT_RATES others were asked for."""
        if rate_index not in self._found:
            if len(self._found) == KEPT_RATES:
                self._found.pop(next(iter(self._found)))
            start = time.perf_counter()
            functions = self.model.at_rate(Rate(rate_index, rate_index, False))
            self._found[rate_index] = analyse_at(self.model, self.image, rate=functions)
            self.seconds += time.perf_counter() - start
        return self._found[rate_index]


def analyse(model: Model, image: np.ndarray) -> Latents | LatentsAtRates:
    """What `code` wants of an image, uint8 or uint16 [H, W, 3], to code it at any rate."""
    return LatentsAtRates(model, image) if model.network.config.analysis_at_rate else analyse_at(model, image)


def shown_latents(
    model: Model, symbols: np.ndarray, means: np.ndarray, rows: np.ndarray, functions: dict[str, torch.Tensor],
    shape: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """Integers of y, as in `Walked`, to what synthesis makes a picture of, float32 [1, C, h, w]; functions: what
    `Model.at_rate` says; shape is (h, w)."""
    lift = lifts(torch.from_numpy(sigmas_of_latents()).float(), functions["lift"].cpu().flatten()).numpy()
    inside = np.concatenate(there(len(symbols) // STEPS, shape))
    sizes = picked(symbols, inside).astype(np.float32)
    ones = np.flatnonzero(np.abs(sizes) == 1)
    sizes[ones] *= 1 + lift[rows[ones]]
    y = spread(sizes, inside) + means.astype(np.float32) * np.float32(2.0**-MEAN_BITS)
    y = torch.from_numpy(from_coding_order(y, shape)[None]).to(model.device)
    return (y * functions["y_log_inverse_gain"].exp()).contiguous(memory_format=torch.channels_last)


def base_picture(model: Model, y: torch.Tensor, functions: dict[str, torch.Tensor], autocast: bool) -> torch.Tensor:
    """A picture without details, float32 [1, 3, 16 h, 16 w], of `shown_latents`."""
    synthesis = partial(model.network.synthesis, rate=functions, autocast=autocast)
    return run_in_tiles(synthesis, y, 1, IMAGE_STRIDE, model.halo())


@torch.inference_mode()
def synthesise(
    model: Model, y: tuple[np.ndarray, np.ndarray, np.ndarray], more: tuple[np.ndarray, np.ndarray], rate: Rate,
    size: tuple[int, int], gray: bool, depth: int,
) -> np.ndarray:  # fmt: skip
    """Integers of a picture, as in `Walked`, to an image, uint8 or uint16 [H, W, 3]; y: its symbols, means and rows;
    more: symbols of the filter and of the details; size is (height, width)."""
    functions, (shape, _) = model.at_rate(rate), latent_shapes(size[1], size[0])
    x = base_picture(model, shown_latents(model, *y, functions, shape), functions, model.autocast)
    filter_symbols, detail_symbols = more
    if len(filter_symbols) or len(detail_symbols):
        x = x.contiguous()
    x = wiener.apply(x, filter_symbols, rate.index)
    if len(detail_symbols):
        x = details.picture(model.network.details, functions, detail_symbols, x)
    return to_image(x, size, gray, depth)


def relaxed_rd_with_residual(model: Model, rate_index: int, plain, rate: Rate, pixels: int) -> MeanScaleRelaxedRD:
    """Return the codec with a relaxed quantiser, with the filter of the plain Coded, a picture of so many pixels.

    It has details if the plain Coded has any: where it has none they would take half as much time again for nothing.
    """
    rate = replace(rate, details=bool(len(plain.detail_symbols)))
    if not len(plain.filter_symbols):
        return MeanScaleRelaxedRD(model, rate)
    kernel, shift = (part.to(model.device) for part in wiener.kernel_of(plain.filter_symbols, rate_index, pixels))
    return MeanScaleRelaxedRD(model, rate, filtered=partial(wiener.filtered, kernel=kernel, shift=shift))
