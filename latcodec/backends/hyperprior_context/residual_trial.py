"""What a residual layer would save, as a look at the picture tells: whether it pays, and beside which latents.

The encoder alone uses this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latcodec.backends.common.distortion import error_weight
from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.hyperprior_context.model import Model
from latcodec.backends.hyperprior_context.residual import MAX_BANDS
from latcodec.backends.hyperprior_context.residual_network import BLOCK, ResidualLayer
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.layers import interpolate_knots

Tile = tuple[int, int]  # top and left, px


def step_and_weight(rate_params: dict[str, Tensor], rate_index: int) -> tuple[Tensor, float]:
    """Return the quantiser step of the residual layer, and the bits that a squared error of one step is worth."""
    step = (-rate_params["details.log_gain"]).exp()
    return step, float(error_weight(rate_index) * step.square())


def saved_bits_of_bands(u: Tensor, weight: float) -> Tensor:
    """Return the bits that each band saves if the coefficients that pay are sent, float32 [MAX_BANDS].

    Args:
        u: Coefficients, float32 [..., K, h, w], in steps.
        weight: From `step_and_weight`.
    """
    return torch.stack([_saved_bits(band.abs(), weight) for band in u.chunk(MAX_BANDS, -3)])  # saves memory


def _saved_bits(size: Tensor, weight: float) -> Tensor:
    bits = weight * (size.square() - (size - size.round()).square()) - TUNING.residual_symbol_bits
    return bits.clamp_min(0).sum()


@torch.inference_mode()
def sharpness(model: Model, image: np.ndarray) -> float:
    """Return how sharp a picture is, uint8 or uint16 [H, W, 3]: the share of a high band that is not small.

    `Tuning` says which band, and how much is not small.
    """
    layer, x = model.network.details, to_tensor(image, model.device)
    t = torch.tensor([TUNING.sharp_index / (RATES - 1)], device=x.device)
    gain = interpolate_knots(layer.log_gain, t).exp()
    return float(((_band(layer, x, TUNING.sharp_band) * gain).abs() > TUNING.sharp_steps).float().mean())


def _band(layer: ResidualLayer, x: Tensor, band: int) -> Tensor:
    """Return one band of the frequencies of x, float32 [1, 3, H, W], of its whole blocks."""
    size = layer.channels // MAX_BANDS
    basis = layer.basis[:, band * size : (band + 1) * size].T[:, :, None, None]
    height, width = (side // BLOCK * BLOCK for side in x.shape[2:])
    return F.conv2d(F.pixel_unshuffle(x[:, :, :height, :width], BLOCK), basis)


@torch.inference_mode()
def residual_pays(model: Model, y_hat: Tensor, x: Tensor, rate_params: dict[str, Tensor], rate_index: int) -> bool:
    """Return whether a residual layer may pay beside latents of the file's rate.

    Most photographs need none at most rates, and then the whole base need not be synthesised: a few tiles of high
    energy tell. True of a picture of few tiles.

    Args:
        model: Networks and tables.
        y_hat: What synthesis sees, float32 [1, C, h, w].
        x: The picture, float32 [1, 3, 16 h, 16 w].
        rate_params: The result of `Model.at_rate`.
        rate_index: Rate index of the file.
    """
    if min(y_hat.shape[2:]) < TUNING.probe_tile + 2:
        return True
    tiles = high_energy_tiles(model.network.details, x, TUNING.probe_tile * IMAGE_STRIDE)
    if not tiles:
        return True
    residuals = _residuals(model, y_hat, x, rate_params, tiles)
    pixels = x.shape[2] * x.shape[3]
    return saves_enough(model.network.details, rate_params, residuals, len(tiles), rate_index, pixels)


def high_energy_tiles(layer: ResidualLayer, x: Tensor, side_px: int) -> list[Tile]:
    """Return the tiles of a picture in which a residual layer is likely to save most, highest energy first.

    Args:
        layer: The network's residual layer.
        x: The picture, float32 [1, 3, H, W], sides no less than `side_px`.
        side_px: Side of a tile, a multiple of BLOCK. The last tile of a row or column ends at the border.

    Returns:
        Top and left of each tile; none of a small picture, of which a few tiles tell little.
    """
    energy = _band(layer, x, TUNING.probe_band).square().sum(1, keepdim=True)
    energy_of_tiles = F.avg_pool2d(energy, side_px // BLOCK, ceil_mode=True)[0, 0]
    count = TUNING.probe_share * energy_of_tiles.numel()
    if count < TUNING.probe_min_tiles:
        return []
    places = energy_of_tiles.flatten().topk(int(count)).indices.tolist()
    rows, columns = zip(*(divmod(place, energy_of_tiles.shape[1]) for place in places), strict=True)
    last_row, last_column = (length - side_px for length in x.shape[2:])
    return [
        (min(row * side_px, last_row), min(column * side_px, last_column))
        for row, column in zip(rows, columns, strict=True)
    ]


def _residuals(
    model: Model, y_hat: Tensor, x: Tensor, rate_params: dict[str, Tensor], tiles: list[Tile]
) -> Iterator[Tensor]:
    """Yield what the base leaves of tiles, batch by batch, float32 [n, 3, S, S]; each is synthesised on its own."""
    size = min(TUNING.probe_batch, -(-len(tiles) // TUNING.probe_batches))
    for first in range(0, len(tiles), size):
        yield _residual(model, y_hat, x, rate_params, tiles[first : first + size])


def _residual(model: Model, y_hat: Tensor, x: Tensor, rate_params: dict[str, Tensor], tiles: list[Tile]) -> Tensor:
    side, side_px = TUNING.probe_tile + 2, TUNING.probe_tile * IMAGE_STRIDE  # a latent more on all sides
    down, across = (length - side for length in y_hat.shape[2:])
    # At a border both additional latents are on the other side: the cut ends and is padded where the picture is.
    starts = [
        (min(max(top // IMAGE_STRIDE - 1, 0), down), min(max(left // IMAGE_STRIDE - 1, 0), across))
        for top, left in tiles
    ]
    cuts = torch.cat([y_hat[:, :, top : top + side, left : left + side] for top, left in starts])
    cuts = cuts.contiguous(memory_format=torch.channels_last)
    bases = model.network.synthesis(cuts, rate_params, model.encodes_in_bf16)
    residuals = []
    for base, (top, left), (first, leftmost) in zip(bases, tiles, starts, strict=True):
        inner = base[:, top - first * IMAGE_STRIDE :][:, :side_px, left - leftmost * IMAGE_STRIDE :][..., :side_px]
        residuals.append(x[0, :, top : top + side_px, left : left + side_px] - inner)
    return torch.stack(residuals)


def saves_enough(
    layer: ResidualLayer, rate_params: dict[str, Tensor], residuals: Iterable[Tensor], count: int, rate_index: int,
    pixels: int,
) -> bool:  # fmt: skip
    """Return whether a residual layer may pay in a whole picture, as its tiles of highest energy tell.

    Args:
        layer: The network's residual layer.
        rate_params: The result of `Model.at_rate`.
        residuals: What the base leaves of tiles, float32 [n, 3, S, S] each; no more are taken than it takes to decide.
        count: Number of tiles in all.
        rate_index: Rate index of the file.
        pixels: Number of pixels of the picture.
    """
    step, weight = step_and_weight(rate_params, rate_index)
    coefficients = pixels / BLOCK**2 * (layer.channels // MAX_BANDS)
    needed = TUNING.probe_saving * TUNING.residual_zero_bits * coefficients
    saved, seen = torch.zeros(MAX_BANDS, device=step.device), 0
    for batch in residuals:
        saved, seen = saved + saved_bits_of_bands(layer.analysis(batch) / step, weight), seen + len(batch)
        if saved.max() > needed:
            return True
        if saved.max() * (1 + TUNING.optimism * (count - seen) / seen) < needed:
            break
    return False
