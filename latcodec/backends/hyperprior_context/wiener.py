"""A Wiener filter that a file may hold for its own picture, between synthesis and residual layer.

    x_f = x_b + T' r,   r_o = s_o + sum over colours c and modes m of k_ocm q_cm (M_m * T (x_b - 1/2))_c

Networks are right for pictures on average. They cannot know what one picture has in common with itself: its colours,
its sharpness, the grid of its camera. The filter is the best linear correction of that, in the least squares of this
picture. k are integers in the stream, q their steps, which follow from rate and size; T is the orthonormal colour
transform of the residual layer, M_m are the 13 modes of a 5 x 5 cosine transform that are symmetric under a turn by 180
degrees, and s is one more coefficient, of a constant. k is chosen by rate and distortion, so many are 0.

Source: the idea is Tsai et al. 2013, "Adaptive loop filtering for video coding", as in VVC.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latcodec.backends.common import rdoq
from latcodec.backends.common.distortion import error_weight
from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.hyperprior_context.residual import BAND_COUNT_TABLE, symbol_bits_of_tables
from latcodec.backends.hyperprior_context.residual_network import BLOCK, colour_transform, cosines
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import Tables
from latcodec.nn.symbol_costs import MAX_SYMBOL

SIDE, REACH = 5, 2  # px of the filter, and how far it reaches
MODES = sorted(((i, j) for i, j in itertools.product(range(SIDE), repeat=2) if (i + j) % 2 == 0), key=sum)
COLOURS = 3
COEFFICIENTS = COLOURS * len(MODES) + 1  # of each colour that is corrected
SYMBOLS = COLOURS * (1 + COEFFICIENTS)
# About the energy of modes in photographs, log2 per pixel, by the sum of their frequencies, 0, 2 ... 8, of gray, red -
# blue and green - magenta. Steps follow from it, so that each coefficient costs about as much error as another. These
# and the next two constants are part of the format.
ENERGIES = ((2, -6, -9, -11, -14), (-2, -13, -18, -21, -24), (-4, -16, -20, -23, -25))
STEP = 4.0  # a step is so many times the change of a coefficient whose error costs a bit; found by trial
MIDDLE_TABLE = 22  # the table of the coefficients where the symbol of their spread is 0
# The encoder alone uses the rest.
RIDGE_BITS = 0.7  # what a squared step of a coefficient is taken to cost where the fit begins
TABLES_TRIED = np.arange(4, 50, 5)
LARGEST_ENERGY = 1e12  # bits that a step of one coefficient may be worth; beyond, sums are not exact enough
DESCENTS = 2  # of all coefficients, each time with the tables that are best for them
SWEEPS = 2  # of one descent: each coefficient is made the best beside the others
STRIPE_PX = 64  # rows of a picture that are filtered at once
BAND_PX = 16  # rows of a picture that are correlated at once
# Of n times LARGE_PX pixels only each n-th band is correlated, n up to MAX_SUBSAMPLING; MIN_BANDS are in any case.
LARGE_PX, MAX_SUBSAMPLING, MIN_BANDS = 2**17, 8, 8


def no_filter() -> np.ndarray:
    """Return the symbols of a file without a filter."""
    return np.zeros(0, np.int32)


def write(symbols: np.ndarray, encoder: RangeEncoder) -> None:
    """Write a filter's symbols, int32 [SYMBOLS]: the spread of the coefficients of each colour, then those."""
    encoder.encode(symbols[:COLOURS], _spread_tables())
    encoder.encode(symbols[COLOURS:], _coefficient_tables(symbols[:COLOURS]))


def read(decoder: RangeDecoder) -> np.ndarray:
    """Read what `write` wrote, int32 [SYMBOLS]."""
    spreads = decoder.decode(_spread_tables())
    return np.concatenate([spreads, decoder.decode(_coefficient_tables(spreads))])


def _spread_tables() -> np.ndarray:
    return np.full(COLOURS, BAND_COUNT_TABLE, np.uint16)


def _coefficient_tables(spreads: np.ndarray) -> np.ndarray:
    """Return the table index of each coefficient, uint16 [COLOURS * COEFFICIENTS], from the symbols of their spread."""
    table_index = np.clip(spreads.astype(np.int64) + MIDDLE_TABLE, 0, SCALE_ROWS - 1) + SCALE_ROWS
    return table_index.astype(np.uint16).repeat(COEFFICIENTS)


def _bits_of(symbols: np.ndarray, tables: Tables) -> float:
    """Return what `write` costs by the tables."""
    spreads = rdoq.symbol_bits(symbols[:COLOURS], _spread_tables(), tables)
    coefficients = rdoq.symbol_bits(symbols[COLOURS:], _coefficient_tables(symbols[:COLOURS]), tables)
    return float(spreads.sum()) + float(coefficients.sum())


def steps(rate_index: int, pixels: int) -> np.ndarray:
    """Return the step of each coefficient at a rate, in a picture of so many pixels, float64 [COEFFICIENTS]."""
    energies = [of_colour[(i + j) // 2] for of_colour in ENERGIES for i, j in MODES] + [0]
    return STEP / np.sqrt(error_weight(rate_index) * pixels * 2.0 ** np.array(energies))


def _modes() -> Tensor:
    """Return the modes as kernels, float64 [13, SIDE, SIDE]."""
    cosine = cosines(SIDE)
    return torch.stack([torch.outer(cosine[:, i], cosine[:, j]) for i, j in MODES])


def kernel_of(symbols: np.ndarray, rate_index: int, pixels: int) -> tuple[Tensor, Tensor]:
    """Return the filter of a file's symbols for `F.conv2d`: what it adds to red, green and blue.

    Args:
        symbols: int32 [SYMBOLS].
        rate_index: Rate index of the file.
        pixels: Number of pixels of the picture.

    Returns:
        Kernel float32 [3, 3, SIDE, SIDE] and bias float32 [3].
    """
    size = np.clip(symbols[COLOURS:].reshape(COLOURS, -1), -(2**15), 2**15)
    k = torch.from_numpy(size * steps(rate_index, pixels))
    colours, modes = colour_transform(), _modes()
    kernel = torch.einsum("ocm,mij->ocij", k[:, :-1].unflatten(1, (COLOURS, -1)), modes)
    kernel = torch.einsum("or,ocij,cs->rsij", colours, kernel, colours)
    shift = colours.T @ k[:, -1] - kernel.sum((1, 2, 3)) / 2
    return kernel.float(), shift.float()


def apply(x: Tensor, symbols: np.ndarray, rate_index: int) -> Tensor:
    """Filter a picture, float32 [1, 3, H, W], in place, by the symbols of a file; without any it stays as it is."""
    if not len(symbols):
        return x
    kernel, shift = (part.to(x.device) for part in kernel_of(symbols, rate_index, x.shape[2] * x.shape[3]))
    above = x[:, :, :1].expand(-1, -1, REACH, -1)
    for top in range(0, x.shape[2], STRIPE_PX):
        band = x[:, :, top : top + STRIPE_PX]
        below = x[:, :, top + STRIPE_PX :][:, :, :REACH]
        if missing := REACH - below.shape[2]:
            below = torch.cat([below, x[:, :, -1:].expand(-1, -1, missing, -1)], 2)
        seen = torch.cat([above, band, below], 2)
        above = seen[:, :, -2 * REACH : -REACH]
        band += F.conv2d(F.pad(seen, (REACH, REACH, 0, 0), mode="replicate"), kernel, shift)
    return x


def filtered(x: Tensor, kernel: Tensor, shift: Tensor) -> Tensor:
    """Return a picture or a part of one, float32 [1, 3, H, W], filtered by `kernel_of`; this is differentiable."""
    return x + F.conv2d(F.pad(x, (REACH,) * 4, mode="replicate"), kernel, shift)


def fit(base: Tensor, x: Tensor, rate_index: int, size: tuple[int, int], gray: bool, tables: Tables) -> np.ndarray:
    """Return the symbols of a filter that brings a decoded picture nearer to the original for less than it costs.

    Args:
        base: Decoded picture, float32 [1, 3, H', W'] in 0..1.
        x: Original, of the same shape.
        rate_index: Rate index of the file, which says what errors are worth.
        size: (height, width) of the part that counts. Of a picture of about twice LARGE_PX only some bands are used.
        gray: Whether only the mean of the channels counts.
        tables: Say what symbols cost.

    Returns:
        int32 [SYMBOLS], or none if no filter pays.
    """
    q, weight = steps(rate_index, base.shape[2] * base.shape[3]), error_weight(rate_index)
    auto, cross = _correlations(base, x, size, gray, weight)
    auto, cross = weight * q[:, None] * auto * q, weight * q[:, None] * cross
    if not (np.abs(auto).max() < LARGEST_ENERGY and np.isfinite(cross).all()):
        return no_filter()  # networks trained elsewhere may give any values
    bits_of_tables = symbol_bits_of_tables(tables)
    start = np.linalg.solve(auto + RIDGE_BITS * np.eye(COEFFICIENTS), cross)
    k = np.rint(start).clip(-MAX_SYMBOL, MAX_SYMBOL).astype(np.int64)
    for _ in range(DESCENTS):
        k = _descended(k, auto, cross, bits_of_tables[_best_tables(k, bits_of_tables)])
    symbols = np.concatenate([_best_tables(k, bits_of_tables) - MIDDLE_TABLE, k.T.ravel()]).astype(np.int32)
    saved_bits = float((2 * k * cross - k * (auto @ k)).sum())
    return symbols if saved_bits > _bits_of(symbols, tables) else no_filter()


def _best_tables(k: np.ndarray, bits_of_tables: np.ndarray) -> np.ndarray:
    """Return the tables, int64 [COLOURS], in which coefficients, int64 [COEFFICIENTS, COLOURS], cost least."""
    bits = bits_of_tables[TABLES_TRIED][:, k + MAX_SYMBOL].sum(1)
    return TABLES_TRIED[bits.argmin(0)]


def _descended(k: np.ndarray, auto: np.ndarray, cross: np.ndarray, bits_of_tables: np.ndarray) -> np.ndarray:
    """Return coefficients, int64 [COEFFICIENTS, COLOURS], each of which in turn is made the cheapest beside the others.

    The cost of k is k' auto k - 2 k' cross + bits, of which bits_of_tables [COLOURS, 2 MAX_SYMBOL + 1] has those
    of every coefficient.
    """
    k, colours = k.copy(), np.arange(COLOURS)
    slope = auto @ k - cross
    for _ in range(SWEEPS):
        for n, curve in enumerate(np.diag(auto) + 1e-9):
            best = np.floor(k[n] - slope[n] / curve)
            tried = np.stack([k[n], best, best + 1, np.zeros(COLOURS)]).clip(-MAX_SYMBOL, MAX_SYMBOL)
            change = tried - k[n]
            bits = bits_of_tables[colours, tried.astype(np.int64) + MAX_SYMBOL]
            cost = change * (curve * change + 2 * slope[n]) + bits
            change = change[cost.argmin(0), colours]
            k[n] += change.astype(np.int64)
            slope += auto[:, n, None] * change
    return k


def _correlations(
    base: Tensor, x: Tensor, size: tuple[int, int], gray: bool, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return sums over pixels: the autocorrelation of features and their cross-correlation with what base lacks of x.

    Features are what the coefficients multiply. `weight` is the bits that a squared error of 1 is worth. Where an error
    is so large that the residual layer corrects it, it costs bits instead, which grow with its logarithm: such a pixel
    counts for less.

    Returns:
        float64 [COEFFICIENTS, COEFFICIENTS] and [COEFFICIENTS, COLOURS].
    """
    colours, modes = colour_transform().float().to(x.device), _modes().float()[:, None].to(x.device)
    auto, cross, counted = 0.0, 0.0, 0
    subsampling = max(1, min(size[0] * size[1] // LARGE_PX, MAX_SUBSAMPLING, size[0] // (MIN_BANDS * BAND_PX)))
    for top in range(0, size[0], subsampling * BAND_PX):
        rows = min(BAND_PX, size[0] - top)
        places = torch.arange(top - REACH, top + rows + REACH, device=x.device).clamp(0, base.shape[2] - 1)
        padded = F.pad(base[:, :, places], (REACH, REACH, 0, 0), mode="replicate")
        planes = torch.einsum("cr,brhw->cbhw", colours, padded - 0.5)
        features = F.conv2d(planes, modes)[..., : size[1]].flatten(2).flatten(0, 1)
        features = torch.cat([features, torch.ones_like(features[:1])])
        place = (0, slice(None), slice(top, top + rows), slice(size[1]))
        decoded = base[place].mean(0, keepdim=True) if gray else base[place]
        lacking = colours @ (x[place] - decoded.clamp(0, 1)).flatten(1)  # a decoder clamps as well
        error = F.avg_pool2d(lacking.view(1, COLOURS, rows, -1).square().mean(1), BLOCK, ceil_mode=True)[0]
        worth = (1 / (2 * math.log(2) * weight * error.clamp_min(1e-12))).clamp_max(1)
        worth = worth.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, : size[1]].flatten()
        weighted = features * worth
        auto, cross = auto + (weighted @ features.T).double(), cross + (weighted @ lacking.T).double()
        counted += rows
    share = size[0] / counted
    return share * auto.cpu().numpy(), share * cross.cpu().numpy()
