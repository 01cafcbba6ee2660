"""A linear filter that a file may hold for its own picture, between synthesis and details.

    x_f = x_b + T' r,   r_o = s_o + sum over colours c and modes m of k_ocm q_cm (M_m * T (x_b - 1/2))_c

Networks are right for pictures on average. What one picture has in common with itself, its colours, its sharpness, the
grid of its camera, they cannot know; the best linear correction of it, in the least squares of this picture, they leave
undone. k are integers in the stream, q their steps, which follow from rate and size; T is the orthonormal transform of
colours that details have, M_m are the 13 modes of a 5 x 5 cosine transform that look the same turned by 180 degrees,
and s is one more coefficient, of a constant. k is chosen by rate and distortion, so many are 0.

Source: the idea is Tsai et al. 2013, "Adaptive loop filtering for video coding", as in VVC.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.distortion import error_weight
from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.hyperprior_context.residual import COUNT_ROW, signed_prices
from latcodec.backends.hyperprior_context.residual_network import BLOCK, colour_transform, cosines
from latcodec.entropy.tables import Tables
from latcodec.nn.symbol_costs import MAX_SYMBOL

SIDE, REACH = 5, 2  # px of the filter, and how far it sees
MODES = sorted(((i, j) for i, j in itertools.product(range(SIDE), repeat=2) if (i + j) % 2 == 0), key=sum)
COLOURS = 3
COEFFICIENTS = COLOURS * len(MODES) + 1  # of each colour that is corrected
SYMBOLS = COLOURS * (1 + COEFFICIENTS)
# About what modes hold in photographs, log2 of the energy of a pixel, by the sum of their frequencies, 0, 2 ... 8, of
# gray, red - blue and green - magenta: steps are such that each costs about as much error as another.
ENERGIES = ((2, -6, -9, -11, -14), (-2, -13, -18, -21, -24), (-4, -16, -20, -23, -25))
STEP = 4.0  # a step is so many times the change of a coefficient whose error costs a bit; by trial
RIDGE = 0.7  # bits that a step of a coefficient squared is held to cost where the fit begins
MIDDLE_ROW = 22  # what a symbol 0 says of the row in which coefficients are
ROWS_TRIED = np.arange(4, 50, 5)
LARGEST_ENERGY = 1e12  # bits that a step of one may be worth; beyond, sums are no longer exact enough
SWEEPS = 2  # of the coefficients, each the best beside the others as they are
ROWS_AT_ONCE = 64  # of a picture that is filtered
BAND = 16  # rows of a picture that are looked at as one
LARGE_PX, EVERY, FEWEST = 2**17, 8, 8  # of n times so many pixels only each n-th band, n up to EVERY; how many at least
Put = Callable[[np.ndarray, np.ndarray], object]  # (symbols int32 [n], rows uint16 [n])
Get = Callable[[np.ndarray], np.ndarray]  # rows uint16 [n] -> int32 [n]


def none() -> np.ndarray:
    """The symbols of a file without a filter."""
    return np.zeros(0, np.int32)


def send(symbols: np.ndarray, put: Put) -> None:
    """Code a filter's symbols, int32 [SYMBOLS]: the spread of the coefficients of each colour, then those."""
    put(symbols[:COLOURS], np.full(COLOURS, COUNT_ROW, np.uint16))
    put(symbols[COLOURS:], _rows(symbols[:COLOURS]))


def receive(get: Get) -> np.ndarray:
    """What `send` coded, int32 [SYMBOLS]."""
    spreads = get(np.full(COLOURS, COUNT_ROW, np.uint16))
    return np.concatenate([spreads, get(_rows(spreads))])


def _rows(spreads: np.ndarray) -> np.ndarray:
    """The table row of each coefficient, uint16 [COLOURS * COEFFICIENTS], of what was said of their spread."""
    rows = np.clip(spreads.astype(np.int64) + MIDDLE_ROW, 0, SCALE_ROWS - 1) + SCALE_ROWS
    return rows.astype(np.uint16).repeat(COEFFICIENTS)


def steps(rate_index: int, pixels: int) -> np.ndarray:
    """What one of each coefficient is worth at a rate, in a picture of so many pixels, float64 [COEFFICIENTS]."""
    energies = [of_colour[(i + j) // 2] for of_colour in ENERGIES for i, j in MODES] + [0]
    return STEP / np.sqrt(error_weight(rate_index) * pixels * 2.0 ** np.array(energies))


def _modes() -> Tensor:
    """The modes as kernels, float64 [13, SIDE, SIDE]."""
    cosine = cosines(SIDE)
    return torch.stack([torch.outer(cosine[:, i], cosine[:, j]) for i, j in MODES])


def kernel_of(symbols: np.ndarray, rate_index: int, pixels: int) -> tuple[Tensor, Tensor]:
    """The filter of a file's symbols, int32 [SYMBOLS], in a picture of so many pixels, for `F.conv2d`: what it adds to
    red, green and blue, float32 [3, 3, SIDE, SIDE] and [3]."""
    size = np.clip(symbols[COLOURS:].reshape(COLOURS, -1), -(2**15), 2**15)
    k = torch.from_numpy(size * steps(rate_index, pixels))
    colours, modes = colour_transform(), _modes()
    kernel = torch.einsum("ocm,mij->ocij", k[:, :-1].unflatten(1, (COLOURS, -1)), modes)
    kernel = torch.einsum("or,ocij,cs->rsij", colours, kernel, colours)
    shift = colours.T @ k[:, -1] - kernel.sum((1, 2, 3)) / 2
    return kernel.float(), shift.float()


def apply(x: Tensor, symbols: np.ndarray, rate_index: int) -> Tensor:
    """Filter a picture, float32 [1, 3, H, W], in place, by the symbols of a file at a rate; without any it stays."""
    if not len(symbols):
        return x
    kernel, shift = (part.to(x.device) for part in kernel_of(symbols, rate_index, x.shape[2] * x.shape[3]))
    above = x[:, :, :1].expand(-1, -1, REACH, -1)
    for top in range(0, x.shape[2], ROWS_AT_ONCE):
        band = x[:, :, top : top + ROWS_AT_ONCE]
        below = x[:, :, top + ROWS_AT_ONCE :][:, :, :REACH]
        if missing := REACH - below.shape[2]:
            below = torch.cat([below, x[:, :, -1:].expand(-1, -1, missing, -1)], 2)
        seen = torch.cat([above, band, below], 2)
        above = seen[:, :, -2 * REACH : -REACH]
        band += F.conv2d(F.pad(seen, (REACH, REACH, 0, 0), mode="replicate"), kernel, shift)
    return x


def filtered(x: Tensor, kernel: Tensor, shift: Tensor) -> Tensor:
    """The same of a picture or a part of one, float32 [1, 3, H, W], by `kernel_of`, differentiable."""
    return x + F.conv2d(F.pad(x, (REACH,) * 4, mode="replicate"), kernel, shift)


def fit(base: Tensor, x: Tensor, rate_index: int, size: tuple[int, int], gray: bool, tables: Tables) -> np.ndarray:
    """The symbols of a filter that brings base nearer to x, both float32 [1, 3, H', W'] in 0..1, for less than it costs
    by the tables; `none` where that is not so. size: (height, width) that count; gray: only the mean of the channels
    does. Errors count at a rate index. Of a picture from about twice LARGE_PX only some bands are looked at."""
    q, weight = steps(rate_index, base.shape[2] * base.shape[3]), error_weight(rate_index)
    seen, wanted = _correlations(base, x, size, gray, weight)
    seen, wanted = weight * q[:, None] * seen * q, weight * q[:, None] * wanted
    if not (np.abs(seen).max() < LARGEST_ENERGY and np.isfinite(wanted).all()):
        return none()  # networks that someone else trained may give anything
    prices = signed_prices(tables)
    k = np.rint(np.linalg.solve(seen + RIDGE * np.eye(COEFFICIENTS), wanted)).clip(-MAX_SYMBOL, MAX_SYMBOL)
    k = k.astype(np.int64)
    for _ in range(2):
        k = _descended(k, seen, wanted, prices[_best_rows(k, prices)])
    rows = _best_rows(k, prices)
    symbols = np.concatenate([rows - MIDDLE_ROW, k.T.ravel()]).astype(np.int32)
    saved = float((2 * k * wanted - k * (seen @ k)).sum())
    bits: list[float] = []
    send(symbols, lambda *some: bits.append(float(pricing.symbol_bits(*some, tables).sum())))
    return symbols if saved > sum(bits) else none()


def _best_rows(k: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """The rows, int64 [COLOURS], in which coefficients, int64 [COEFFICIENTS, COLOURS], cost least."""
    bits = prices[ROWS_TRIED][:, k + MAX_SYMBOL].sum(1)
    return ROWS_TRIED[bits.argmin(0)]


def _descended(k: np.ndarray, seen: np.ndarray, wanted: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Coefficients, int64 [COEFFICIENTS, COLOURS], of which each in turn is made the cheapest beside the others.

    The cost of k is k' seen k - 2 k' wanted + prices [COLOURS, 2 MAX_SYMBOL + 1] of it.
    """
    k, colours = k.copy(), np.arange(COLOURS)
    slope = seen @ k - wanted
    for _ in range(SWEEPS):
        for n, curve in enumerate(np.diag(seen) + 1e-9):
            best = np.floor(k[n] - slope[n] / curve)
            tried = np.stack([k[n], best, best + 1, np.zeros(COLOURS)]).clip(-MAX_SYMBOL, MAX_SYMBOL)
            change = tried - k[n]
            cost = change * (curve * change + 2 * slope[n]) + prices[colours, tried.astype(np.int64) + MAX_SYMBOL]
            change = change[cost.argmin(0), colours]
            k[n] += change.astype(np.int64)
            slope += seen[:, n, None] * change
    return k


def _correlations(
    base: Tensor, x: Tensor, size: tuple[int, int], gray: bool, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over pixels: of products of what the coefficients multiply, float64 [COEFFICIENTS, COEFFICIENTS], and of
    these with what base lacks of x, [COEFFICIENTS, COLOURS].

    weight: bits that a squared error of 1 is worth. Where it is so much that details are sent, they cost bits in its
    place, which grow with its logarithm: a pixel counts for less there.
    """
    colours, modes = colour_transform().float().to(x.device), _modes().float()[:, None].to(x.device)
    seen, wanted, counted = 0.0, 0.0, 0
    every = max(1, min(size[0] * size[1] // LARGE_PX, EVERY, size[0] // (FEWEST * BAND)))
    for top in range(0, size[0], every * BAND):
        rows = min(BAND, size[0] - top)
        places = torch.arange(top - REACH, top + rows + REACH, device=x.device).clamp(0, base.shape[2] - 1)
        padded = F.pad(base[:, :, places], (REACH, REACH, 0, 0), mode="replicate")
        planes = torch.einsum("cr,brhw->cbhw", colours, padded - 0.5)
        features = F.conv2d(planes, modes)[..., : size[1]].flatten(2).flatten(0, 1)
        features = torch.cat([features, torch.ones_like(features[:1])])
        place = (0, slice(None), slice(top, top + rows), slice(size[1]))
        shown = base[place].mean(0, keepdim=True) if gray else base[place]
        lacking = colours @ (x[place] - shown.clamp(0, 1)).flatten(1)  # what is beyond is shown as if it were not
        error = F.avg_pool2d(lacking.view(1, COLOURS, rows, -1).square().mean(1), BLOCK, ceil_mode=True)[0]
        worth = (1 / (2 * math.log(2) * weight * error.clamp_min(1e-12))).clamp_max(1)
        worth = worth.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, : size[1]].flatten()
        weighted = features * worth
        seen, wanted = seen + (weighted @ features.T).double(), wanted + (weighted @ lacking.T).double()
        counted += rows
    share = size[0] / counted
    return share * seen.cpu().numpy(), share * wanted.cpu().numpy()
