"""What symbols cost by their tables, and the rounding that weighs it against error: of encoders only."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from latcodec.entropy.tables import CLASS_BITS, Tables
from latcodec.nn.prices import LARGEST_PRICED


def round_by_price(
    residual: np.ndarray, rows: np.ndarray, tables: Tables, error_bits: float,
    shown: Callable[[np.ndarray], np.ndarray] = lambda symbols: symbols,
) -> np.ndarray:  # fmt: skip
    """Nearest integers, int32, but one nearer to 0 where its table makes it cheaper than the error it adds.

    residual: float32 [n]; rows: uint16 [n]; error_bits: bits that a squared error of 1 counts as; shown: what symbols,
    int32, stand for, if not themselves. Source: rate-distortion optimised quantisation as video encoders do it. In
    training: `models.prices.rounded_by_price`, or for details a dead zone.
    """
    nearest = np.rint(residual).astype(np.int32)
    places = np.flatnonzero(nearest)
    near, away = nearest[places], residual[places]
    inner = near - np.sign(near)
    saved = _saved(near, rows[places], tables)
    added = error_bits * (np.square(away - shown(inner)) - np.square(away - shown(near)))
    nearest[places] = np.where(saved > added, inner, near)
    return nearest


def _saved(symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> np.ndarray:
    """Bits, float64 [n], by which symbols nearer to 0 by one are cheaper than symbols int32 [n] in rows uint16 [n]."""
    if len(symbols) and np.abs(symbols).max() > LARGEST_PRICED:
        return symbol_bits(symbols, rows, tables) - symbol_bits(symbols - np.sign(symbols), rows, tables)
    return _saved_of_rows(tables)[rows, symbols + LARGEST_PRICED]


@lru_cache(maxsize=4)
def _saved_of_rows(tables: Tables) -> np.ndarray:
    """`_saved` of symbols -LARGEST_PRICED ... LARGEST_PRICED in each row, float64 [rows, symbols]."""
    rows, symbols = np.mgrid[: tables.num_tables, -LARGEST_PRICED : LARGEST_PRICED + 1].astype(np.int32)
    bits = [symbol_bits(some.ravel(), rows.ravel(), tables) for some in (symbols, symbols - np.sign(symbols))]
    return (bits[0] - bits[1]).reshape(rows.shape)


def symbol_bits(symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> np.ndarray:
    """Bits of symbols int32 [n] in rows uint16 [n], float64, escapes included."""
    first, end = tables.minimums[rows].astype(np.int64), tables.offsets[1:][rows].astype(np.int64) - 1
    place = tables.offsets[rows] + (symbols - first)
    beyond = np.maximum(tables.offsets[rows] - place, place - end + 1)  # how far outside the table, if at all
    bits = tables.bits[np.where(beyond > 0, end, place)]  # the last entry of a row is the escape
    return np.where(beyond > 0, bits + CLASS_BITS + np.floor(np.log2(np.maximum(beyond, 1))), bits)


def prices_of_rows(tables: Tables, device: torch.device) -> Tensor:
    """Bits of symbols -LARGEST_PRICED ... LARGEST_PRICED in each row of the tables, float32 [rows, symbols]."""
    rows, symbols = np.mgrid[: tables.num_tables, -LARGEST_PRICED : LARGEST_PRICED + 1]
    bits = symbol_bits(symbols.ravel().astype(np.int32), rows.ravel(), tables).reshape(rows.shape)
    return torch.from_numpy(bits.astype(np.float32)).to(device)


def soft_bits(symbols: Tensor, place: Tensor, prices: Tensor) -> Tensor:
    """Bits of what is between integers in tables between two rows: a Catmull-Rom spline through the prices of integers,
    whose slope at one is that between its neighbours, and a straight line between rows and beyond what is priced.

    All float32, symbols and place, 0 ... rows - 1, of one shape; prices: of `prices_of_rows`.
    """
    width = prices.shape[1]
    row = place.detach().nan_to_num().floor().clamp(0, len(prices) - 2)
    inside = symbols.clamp(1 - LARGEST_PRICED, LARGEST_PRICED - 1)
    left = inside.detach().nan_to_num().floor().clamp(1 - LARGEST_PRICED, LARGEST_PRICED - 2)
    at, flat = (row * width + left + LARGEST_PRICED).long(), prices.flatten()
    x, down = inside - left, place - row
    before, a, b, after = (torch.lerp(flat[at + n], flat[at + width + n], down) for n in (-1, 0, 1, 2))
    into, out = (b - before) / 2, (after - a) / 2
    spline = a + x * (into + x * (3 * (b - a) - 2 * into - out + x * (2 * (a - b) + into + out)))
    beyond = symbols - inside
    return spline + beyond * torch.where(beyond > 0, out, into).detach()
