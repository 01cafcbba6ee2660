"""Rate-distortion optimised quantisation (RDOQ), and what symbols cost by their tables. Only encoders use it.

Source: rate-distortion optimised quantisation as in the encoders of H.264 and HEVC, here one symbol at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from latcodec.entropy.tables import CLASS_BITS, Tables
from latcodec.nn.symbol_costs import MAX_SYMBOL


def _identity(symbols: np.ndarray) -> np.ndarray:
    return symbols


def rdoq(
    residual: np.ndarray,
    table_index: np.ndarray,
    tables: Tables,
    distortion_multiplier: float,
    reconstruct: Callable[[np.ndarray], np.ndarray] = _identity,
) -> np.ndarray:
    """Quantise to the nearest integer, or to one nearer to 0 where that saves more bits than its error is worth.

    Training does the same in `nn.symbol_costs`, or with a dead zone for the residual layer.

    Args:
        residual: float32 [n], in steps of the quantiser.
        table_index: uint16 [n].
        tables: the tables that the symbols are coded with.
        distortion_multiplier: bits that a squared error of one step is worth.
        reconstruct: maps symbols, int32, to the values the decoder gives them, if those differ.

    Returns:
        Symbols int32 [n].
    """
    nearest = np.rint(residual).astype(np.int32)
    places = np.flatnonzero(nearest)
    outer, values = nearest[places], residual[places]
    inner = outer - np.sign(outer)
    saved = _saved_bits(outer, table_index[places], tables)
    added = distortion_multiplier * (np.square(values - reconstruct(inner)) - np.square(values - reconstruct(outer)))
    nearest[places] = np.where(saved > added, inner, outer)
    return nearest


def _saved_bits(symbols: np.ndarray, table_index: np.ndarray, tables: Tables) -> np.ndarray:
    """Return the bits, float64 [n], that symbols nearer to 0 by one save, of symbols int32 [n] not 0."""
    if len(symbols) and np.abs(symbols).max() > MAX_SYMBOL:
        inner = symbols - np.sign(symbols)
        return symbol_bits(symbols, table_index, tables) - symbol_bits(inner, table_index, tables)
    return _saved_bits_of_tables(tables)[table_index, symbols + MAX_SYMBOL]


@lru_cache(maxsize=4)
def _saved_bits_of_tables(tables: Tables) -> np.ndarray:
    """Return `_saved_bits` of symbols -MAX_SYMBOL ... MAX_SYMBOL, float64 [tables, symbols]."""
    index, symbols = np.mgrid[: tables.num_tables, -MAX_SYMBOL : MAX_SYMBOL + 1].astype(np.int32)
    outer, inner = (symbol_bits(s.ravel(), index.ravel(), tables) for s in (symbols, symbols - np.sign(symbols)))
    return (outer - inner).reshape(index.shape)


def symbol_bits(symbols: np.ndarray, table_index: np.ndarray, tables: Tables) -> np.ndarray:
    """Return the bits of symbols int32 [n] with tables uint16 [n], float64 [n], escapes included."""
    first, end = tables.minimums[table_index].astype(np.int64), tables.offsets[1:][table_index].astype(np.int64) - 1
    entry = tables.offsets[table_index] + (symbols - first)
    beyond = np.maximum(tables.offsets[table_index] - entry, entry - end + 1)  # how far outside the table, if at all
    bits = tables.bits[np.where(beyond > 0, end, entry)]  # the last entry of a table is the escape
    return np.where(beyond > 0, bits + CLASS_BITS + np.floor(np.log2(np.maximum(beyond, 1))), bits)


def bits_of_tables(tables: Tables, device: torch.device) -> Tensor:
    """Return the bits of symbols -MAX_SYMBOL ... MAX_SYMBOL in each table, float32 [tables, symbols]."""
    index, symbols = np.mgrid[: tables.num_tables, -MAX_SYMBOL : MAX_SYMBOL + 1]
    bits = symbol_bits(symbols.ravel().astype(np.int32), index.ravel(), tables).reshape(index.shape)
    return torch.from_numpy(bits.astype(np.float32)).to(device)


def relaxed_bits(symbols: Tensor, place: Tensor, table_bits: Tensor) -> Tensor:
    """Return the bits of values between integers, coded with tables between two tables; differentiable.

    In a symbol this is a Catmull-Rom spline through the bits of integers, whose slope at an integer is that between
    its neighbours. Between tables, and beyond the symbols whose bits are known, it is a straight line.

    Args:
        symbols: float32.
        place: float32 of the same shape, 0 ... tables - 1.
        table_bits: of `bits_of_tables`.
    """
    width = table_bits.shape[1]
    row = place.detach().nan_to_num().floor().clamp(0, len(table_bits) - 2)
    inside = symbols.clamp(1 - MAX_SYMBOL, MAX_SYMBOL - 1)
    left = inside.detach().nan_to_num().floor().clamp(1 - MAX_SYMBOL, MAX_SYMBOL - 2)
    at, flat = (row * width + left + MAX_SYMBOL).long(), table_bits.flatten()
    x, down = inside - left, place - row
    before, a, b, after = (torch.lerp(flat[at + n], flat[at + width + n], down) for n in (-1, 0, 1, 2))
    slope_a, slope_b = (b - before) / 2, (after - a) / 2
    spline = a + x * (slope_a + x * (3 * (b - a) - 2 * slope_a - slope_b + x * (2 * (a - b) + slope_a + slope_b)))
    beyond = symbols - inside
    return spline + beyond * torch.where(beyond > 0, slope_b, slope_a).detach()
