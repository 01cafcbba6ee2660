"""Contexts without a network: what is decoded already says which table codes what comes next. Integers only.

Source: Luo et al. 2021 ("NC-VAE": adaptive arithmetic coding, no side network at the decoder); contexts that are
weighted sums of neighbouring magnitudes: Wu 1997, "High-order context modeling and embedded conditional entropy coding
of wavelet coefficients".

Channels are coded in groups, a group in five phases of the 4x4 lattice (`models/ncvae.py` has the order and what each
symbol sees). For the symbols of a step, all at once, of earlier ones

    n = q / unit                               in units of their channel's typical size
    mean = unit * (M n)                        a linear prediction, in the first channels only
    size = floor + slope * (S |n|)             a weighted sum of magnitudes, no weight negative
    row = (size in steps of a factor, |fraction of the mean|)

and the row's table codes q - round(mean), mirrored where the fraction is negative. `adaptive.py` does the coding.

Integers are carried in floats where that is fast, and stay under 2**24 in float32 and under 2**53 in float64, which is
checked when the contexts are loaded; then no order of summation matters and every machine finds the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from latcodec.errors import WeightsError

# Bits after the point.
WEIGHT_BITS, SIZE_N_BITS = 12, 5  # of S and |n|: float32
MEAN_WEIGHT_BITS, MEAN_N_BITS = 16, 12  # of M and n: float64
UNIT_BITS = 12  # of unit and slope * unit
INVERSE_BITS = 20  # of 1 / unit
SIZE_BITS = 10  # of floor and size
MEAN_BITS = 6

_N_MOST = 64  # of n, typical sizes
_Q_MOST = 2**16  # of a symbol, as far as contexts see it
_MEAN_MOST = 2.0**28  # of M n with _SUM_BITS
_SUM_BITS = 16

SCALE_ROWS = 40
FRACTIONS = 5  # of the mean: |fraction| from 0 to 32/64, in steps of 8/64 around 0
NARROW_ROWS = 20  # the scale rows that tell fractions apart; wider ones do not feel them
ROWS = NARROW_ROWS * FRACTIONS + SCALE_ROWS - NARROW_ROWS
SMALLEST, LARGEST = 0.08, 256.0  # standard deviations in steps of the first and the last scale row
_STRIP_VALUES = 2**21  # of the neighbourhoods in memory at once

# The lattices (first row, first column, step) of each phase, and the offsets (dy, dx) that each may look at.
LATTICES = (
    ((0, 0, 4),),
    ((2, 2, 4),),
    ((0, 2, 4), (2, 0, 4)),
    ((1, 1, 2),),
    ((0, 1, 2), (1, 0, 2)),
)
TAPS = (
    (),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
    ((-2, 0), (0, -2), (0, 2), (2, 0)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2),
)


def sizes() -> np.ndarray:
    """Standard deviation that each scale row stands for, float64 [SCALE_ROWS], evenly spaced in the logarithm."""
    return np.geomspace(SMALLEST, LARGEST, SCALE_ROWS)


def rows_of(scale_row: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Table row, int64, of a scale row and the class of its mean's fraction."""
    narrow = scale_row * FRACTIONS + fraction
    return np.where(scale_row < NARROW_ROWS, narrow, scale_row + NARROW_ROWS * (FRACTIONS - 1))


# Table row, uint16, by scale row * FRACTIONS + class.
ROW = rows_of(np.arange(SCALE_ROWS)[:, None], np.arange(FRACTIONS)[None]).astype(np.uint16).ravel()


@dataclass(frozen=True, eq=False)
class Contexts:
    """The frozen integers; see the module's equations. C channels in groups of the sizes `groups`; P have means.

    scale int32 [C, C, 3]: S by rings (centre, edges, corners); mean int32 [P, sources, 3, 3]: M; own_scale, own_mean
    int32 [C or P, 5, 5, 5]: by phase and offset within the channel. Weights that see what is not coded yet are 0.
    unit, inverse_unit, floor, slope int32 [256, C]: of each rate index. bounds int32 [SCALE_ROWS - 1]: the size from
    which on the next scale row is taken. product: of float64 matrices; NumPy's own threads can stand in torch's way.
    Raises WeightsError for other shapes or numbers that could overflow.
    """

    groups: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    own_scale: np.ndarray
    own_mean: np.ndarray
    unit: np.ndarray
    inverse_unit: np.ndarray
    floor: np.ndarray
    slope: np.ndarray
    bounds: np.ndarray
    product: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul

    def __post_init__(self) -> None:
        channels, predicted, sources = self.channels, *self.mean.shape[:2]
        shapes = {
            "scale": (channels, channels, 3),
            "mean": (predicted, sources, 3, 3),
            "own_scale": (channels, len(TAPS), 5, 5),
            "own_mean": (predicted, len(TAPS), 5, 5),
            **dict.fromkeys(("unit", "inverse_unit", "floor", "slope"), (256, channels)),
            "bounds": (SCALE_ROWS - 1,),
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape or values.dtype.kind not in "iu":
                raise WeightsError(f"contexts: {name} is {values.dtype} {list(values.shape)}, not integers {shape}")
        if (
            self.groups.min() < 1
            or np.any(np.diff(self.bounds) < 0)
            or not 0 <= self.bounds[0] <= self.bounds[-1] < 2**20
        ):
            raise WeightsError("contexts: groups or bounds are out of order")
        if predicted not in np.cumsum(self.groups) or not 0 < sources <= predicted:
            raise WeightsError(f"contexts: {predicted} predicted channels from {sources} do not fill groups")
        for name, limit in (("unit", 2**22), ("slope", 2**22), ("floor", 2**30), ("inverse_unit", 2**30)):
            if getattr(self, name).min() < 0 or getattr(self, name).max() > limit:
                raise WeightsError(f"contexts: {name} leaves 0..{limit}")
        reach = np.abs(self.mean.astype(np.int64)).sum((1, 2, 3)) + np.abs(self.own_mean).sum((2, 3)).max(1)
        if reach.max() * (_N_MOST << MEAN_N_BITS) >= 2.0**52:
            raise WeightsError("contexts: means could overflow")
        if min(self.scale.min(), self.own_scale.min()) < 0 or self.size_limit < 1 << SIZE_N_BITS:
            raise WeightsError("contexts: a weight of a size is negative, or they are too large")

    @property
    def channels(self) -> int:
        """C."""
        return int(self.groups.sum())

    @cached_property
    def size_limit(self) -> int:
        """Where |n| is cut off, so that no sum of sizes can reach 2**24, with SIZE_N_BITS."""
        near = self.scale.astype(np.int64) @ np.array([1, 4, 4])
        reach = int((near.sum(1) + self.own_scale.astype(np.int64).sum((2, 3)).max(1)).max())
        return min(_N_MOST << SIZE_N_BITS, (2**24 - 1) // max(1, reach))

    @cached_property
    def row_of_size(self) -> np.ndarray:
        """Scale row, uint8, of every size up to the last bound; beyond it is the last row."""
        return np.searchsorted(self.bounds, np.arange(self.bounds[-1] + 1), side="right").astype(np.uint8)

    def around_size(self, seen: np.ndarray, first: int, last: int, shape: tuple[int, int]) -> np.ndarray:
        """S |n| of channels first..last over all earlier ones, float32 [last - first, h, w].

        seen: |n| of the earlier channels, float32 [first, h + 4, w + 4], a margin of 2 on all sides.
        """
        out = np.zeros((last - first, *shape), np.float32)
        if not first:
            return out
        weights = self.scale[first:last, :first].transpose(0, 2, 1).reshape(last - first, -1).astype(np.float64)
        for top, bottom in _strips(shape, 3 * first):
            block = seen[:, top + 1 : bottom + 3, 1:-1]
            rings = np.empty((3, first, bottom - top, shape[1]))
            columns = block[:, :-2] + block[:, 2:]
            rings[0] = block[:, 1:-1, 1:-1]
            np.add(block[:, 1:-1, :-2], block[:, 1:-1, 2:], out=rings[1])
            rings[1] += columns[:, :, 1:-1]
            np.add(columns[:, :, :-2], columns[:, :, 2:], out=rings[2])
            summed = self.product(weights, rings.reshape(3 * first, -1))
            out[:, top:bottom] = summed.reshape(last - first, -1, shape[1])
        return out

    def around_mean(self, seen: np.ndarray, first: int, last: int, shape: tuple[int, int]) -> np.ndarray:
        """M n of channels first..last over the earlier sources, float64 [last - first, h, w].

        seen: n of these sources, float64 [min(first, sources), h + 4, w + 4], a margin of 2 on all sides.
        """
        out = np.zeros((last - first, *shape))
        sources = len(seen)
        if not sources:
            return out
        weights = self.mean[first:last, :sources].transpose(0, 2, 3, 1).reshape(last - first, -1).astype(np.float64)
        for top, bottom in _strips(shape, 9 * sources):
            shifted = [seen[:, top + dy : bottom + dy, dx : shape[1] + dx] for dy in (1, 2, 3) for dx in (1, 2, 3)]
            summed = self.product(weights, np.concatenate(shifted).reshape(9 * sources, -1))
            out[:, top:bottom] = summed.reshape(last - first, -1, shape[1])
        return out

    def mean_of(self, summed: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """mean, int32 with MEAN_BITS, of M n, float64 [c, ...], and the unit of each channel, float64 [c, 1, 1]."""
        summed = np.floor(summed * 2.0 ** (_SUM_BITS - MEAN_N_BITS - MEAN_WEIGHT_BITS)).clip(-_MEAN_MOST, _MEAN_MOST)
        return np.floor(summed * unit * 2.0 ** (MEAN_BITS - _SUM_BITS - UNIT_BITS) + 0.5).astype(np.int32)

    def scale_row_of(self, summed: np.ndarray, slope: np.ndarray, floor: np.ndarray) -> np.ndarray:
        """Scale row, uint8, of S |n|, float32 [c, ...], and the channels' slope and floor, float64 [c, 1, 1]."""
        size = summed * slope
        size *= 2.0 ** (SIZE_BITS - SIZE_N_BITS - WEIGHT_BITS - UNIT_BITS)
        size += floor  # an integer: the sum's floor is that of both
        return self.row_of_size[np.minimum(size, len(self.row_of_size) - 1).astype(np.int32)]


def _strips(shape: tuple[int, int], planes: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP_VALUES // max(1, planes * shape[1]))
    return ((top, min(shape[0], top + rows)) for top in range(0, shape[0], rows))


def magnitudes(symbols: np.ndarray, inverse_unit: np.ndarray, limit: int) -> np.ndarray:
    """|n|, float32 with SIZE_N_BITS, of symbols int32 [c, ...] and 1 / unit, float64 [c, 1, 1]."""
    size = np.minimum(np.abs(symbols.astype(np.float64)), _Q_MOST) * inverse_unit
    size *= 2.0 ** (SIZE_N_BITS - INVERSE_BITS)
    size += 0.5
    return np.minimum(np.floor(size, out=size), limit).astype(np.float32)


def signed(symbols: np.ndarray, inverse_unit: np.ndarray) -> np.ndarray:
    """n, float64 with MEAN_N_BITS, of symbols int32 [c, ...] and 1 / unit, float64 [c, 1, 1]."""
    n = np.clip(symbols, -_Q_MOST, _Q_MOST) * inverse_unit
    n = np.floor(n * 2.0 ** (MEAN_N_BITS - INVERSE_BITS) + 0.5)
    return n.clip(-(_N_MOST << MEAN_N_BITS), _N_MOST << MEAN_N_BITS)
