"""Contexts without a network: symbols that are decoded choose the tables of those that follow. Integers only.

Source: Luo et al. 2021 ("NC-VAE": adaptive arithmetic coding, no side network at the decoder); contexts that are
weighted sums of neighbouring magnitudes: Wu 1997, "High-order context modeling and embedded conditional entropy coding
of wavelet coefficients".

Channels are coded in groups, a group in five phases of the 4x4 lattice (`network.py` has the order and which earlier
symbols each symbol depends on). For the symbols q of a step, all at once, from earlier ones

    n = q / unit                               in units of their channel's typical size
    mean = unit * (M n)                        a linear prediction, in the first channels only
    size = floor + slope * (S |n|)             a weighted sum of magnitudes, no weight negative
    table = (size in steps of a factor, |fraction of the mean|)

and the table codes q - round(mean), mirrored where the fraction is negative. `adaptive.py` does the coding.

Integers are carried in floats where that is fast, and stay under 2**24 in float32 and under 2**53 in float64, which is
checked when the contexts are loaded. So no order of summation matters, and every machine computes the same table
indices.
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

_N_LIMIT = 64  # of |n|, in typical sizes
_Q_LIMIT = 2**16  # of |q| in contexts
_MEAN_LIMIT = 2.0**28  # of M n with _SUM_BITS
_SUM_BITS = 16

NUM_SCALES = 40
FRACTIONS = 5  # of the mean: |fraction| from 0 to 32/64, in steps of 8/64 around 0
NARROW_SCALES = 20  # the scales whose tables depend on the fraction; that of wider ones does not matter
NUM_TABLES = NARROW_SCALES * FRACTIONS + NUM_SCALES - NARROW_SCALES
SMALLEST, LARGEST = 0.08, 256.0  # standard deviations of the first and the last scale, in steps of the quantiser
_STRIP_VALUES = 2**21  # values of neighbourhoods in memory at once

Lattices = tuple[tuple[int, int, int], ...]  # (first row, first column, step) of each
# The lattices of each phase, and the offsets (dy, dx) of the earlier positions that a phase depends on.
LATTICES: tuple[Lattices, ...] = (
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


def scale_sigmas() -> np.ndarray:
    """Return the standard deviation of each scale in steps, float64 [NUM_SCALES], evenly spaced in the logarithm."""
    return np.geomspace(SMALLEST, LARGEST, NUM_SCALES)


def table_index_of(scale_index: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    """Return the table index, int64, of a scale index and the class of the mean's fraction."""
    narrow = scale_index * FRACTIONS + fraction
    return np.where(scale_index < NARROW_SCALES, narrow, scale_index + NARROW_SCALES * (FRACTIONS - 1))


# Table index, uint16, by scale index * FRACTIONS + class.
TABLE_INDEX = table_index_of(np.arange(NUM_SCALES)[:, None], np.arange(FRACTIONS)[None]).astype(np.uint16).ravel()


@dataclass(frozen=True, eq=False)
class Contexts:
    """The frozen integers of the module's equations, for C channels of which the first P have means.

    Attributes:
        groups: Sizes of the groups of channels.
        scale: int32 [C, C, 3], S by rings (centre, edges, corners). Weights of symbols that are not coded yet are 0,
            here and below.
        mean: int32 [P, sources, 3, 3], M.
        own_scale: int32 [C, 5, 5, 5], S within the channel, by phase and offset.
        own_mean: int32 [P, 5, 5, 5], M within the channel, likewise.
        unit: int32 [256, C], of each rate index, as the three that follow.
        inverse_unit: int32 [256, C].
        floor: int32 [256, C].
        slope: int32 [256, C].
        bounds: int32 [NUM_SCALES - 1], the size from which on the next scale is taken.
        product: Multiplies float64 matrices; NumPy's own threads can stand in torch's way.

    Raises:
        WeightsError: Shapes differ from these, or sums could overflow.
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
        """Check shapes, types and limits."""
        channels, predicted, sources = self.channels, *self.mean.shape[:2]
        shapes = {
            "scale": (channels, channels, 3),
            "mean": (predicted, sources, 3, 3),
            "own_scale": (channels, len(TAPS), 5, 5),
            "own_mean": (predicted, len(TAPS), 5, 5),
            **dict.fromkeys(("unit", "inverse_unit", "floor", "slope"), (256, channels)),
            "bounds": (NUM_SCALES - 1,),
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
        if reach.max() * (_N_LIMIT << MEAN_N_BITS) >= 2.0**52:
            raise WeightsError("contexts: means could overflow")
        if min(self.scale.min(), self.own_scale.min()) < 0 or self.size_limit < 1 << SIZE_N_BITS:
            raise WeightsError("contexts: a weight of a size is negative, or they are too large")

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return int(self.groups.sum())

    @cached_property
    def size_limit(self) -> int:
        """The limit of |n| (SIZE_N_BITS), so that no sum of sizes can reach 2**24."""
        near = self.scale.astype(np.int64) @ np.array([1, 4, 4])
        reach = int((near.sum(1) + self.own_scale.astype(np.int64).sum((2, 3)).max(1)).max())
        return min(_N_LIMIT << SIZE_N_BITS, (2**24 - 1) // max(1, reach))

    @cached_property
    def scale_index_of_size(self) -> np.ndarray:
        """The scale index, uint8, of every size up to the last bound; beyond it is the last scale."""
        return np.searchsorted(self.bounds, np.arange(self.bounds[-1] + 1), side="right").astype(np.uint8)

    def around_size(self, earlier: np.ndarray, first: int, last: int, shape: tuple[int, int]) -> np.ndarray:
        """Return S |n| of channels first..last over all earlier ones, float32 [last - first, h, w].

        earlier: |n| of the earlier channels, float32 [first, h + 4, w + 4], a margin of 2 on all sides.
        """
        out = np.zeros((last - first, *shape), np.float32)
        if not first:
            return out
        weights = self.scale[first:last, :first].transpose(0, 2, 1).reshape(last - first, -1).astype(np.float64)
        for top, bottom in _row_strips(shape, 3 * first):
            block = earlier[:, top + 1 : bottom + 3, 1:-1]
            rings = np.empty((3, first, bottom - top, shape[1]))
            columns = block[:, :-2] + block[:, 2:]
            rings[0] = block[:, 1:-1, 1:-1]
            np.add(block[:, 1:-1, :-2], block[:, 1:-1, 2:], out=rings[1])
            rings[1] += columns[:, :, 1:-1]
            np.add(columns[:, :, :-2], columns[:, :, 2:], out=rings[2])
            summed = self.product(weights, rings.reshape(3 * first, -1))
            out[:, top:bottom] = summed.reshape(last - first, -1, shape[1])
        return out

    def around_mean(self, earlier: np.ndarray, first: int, last: int, shape: tuple[int, int]) -> np.ndarray:
        """Return M n of channels first..last over the earlier sources, float64 [last - first, h, w].

        earlier: n of these sources, float64 [min(first, sources), h + 4, w + 4], a margin of 2 on all sides.
        """
        out = np.zeros((last - first, *shape))
        sources = len(earlier)
        if not sources:
            return out
        weights = self.mean[first:last, :sources].transpose(0, 2, 3, 1).reshape(last - first, -1).astype(np.float64)
        for top, bottom in _row_strips(shape, 9 * sources):
            shifted = [earlier[:, top + dy : bottom + dy, dx : shape[1] + dx] for dy in (1, 2, 3) for dx in (1, 2, 3)]
            summed = self.product(weights, np.concatenate(shifted).reshape(9 * sources, -1))
            out[:, top:bottom] = summed.reshape(last - first, -1, shape[1])
        return out

    def mean_of(self, summed: np.ndarray, unit: np.ndarray) -> np.ndarray:
        """Return means int32 (MEAN_BITS) from M n, float64 [c, ...], and the channels' unit, float64 [c, 1, 1]."""
        summed = np.floor(summed * 2.0 ** (_SUM_BITS - MEAN_N_BITS - MEAN_WEIGHT_BITS)).clip(-_MEAN_LIMIT, _MEAN_LIMIT)
        return np.floor(summed * unit * 2.0 ** (MEAN_BITS - _SUM_BITS - UNIT_BITS) + 0.5).astype(np.int32)

    def scale_index_of(self, summed: np.ndarray, slope: np.ndarray, floor: np.ndarray) -> np.ndarray:
        """Return scale indices uint8 from S |n|, float32 [c, ...], and slope and floor, float64 [c, 1, 1]."""
        size = summed * slope
        size *= 2.0 ** (SIZE_BITS - SIZE_N_BITS - WEIGHT_BITS - UNIT_BITS)
        size += floor  # an integer: the sum's floor is that of both
        return self.scale_index_of_size[np.minimum(size, len(self.scale_index_of_size) - 1).astype(np.int32)]


def _row_strips(shape: tuple[int, int], planes: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _STRIP_VALUES // max(1, planes * shape[1]))
    return ((top, min(shape[0], top + rows)) for top in range(0, shape[0], rows))


def magnitudes(symbols: np.ndarray, inverse_unit: np.ndarray, limit: int) -> np.ndarray:
    """Return |n|, float32 (SIZE_N_BITS), of symbols int32 [c, ...] and 1 / unit, float64 [c, 1, 1]."""
    size = np.minimum(np.abs(symbols.astype(np.float64)), _Q_LIMIT) * inverse_unit
    size *= 2.0 ** (SIZE_N_BITS - INVERSE_BITS)
    size += 0.5
    return np.minimum(np.floor(size, out=size), limit).astype(np.float32)


def signed(symbols: np.ndarray, inverse_unit: np.ndarray) -> np.ndarray:
    """Return n, float64 (MEAN_N_BITS), of symbols int32 [c, ...] and 1 / unit, float64 [c, 1, 1]."""
    n = np.clip(symbols, -_Q_LIMIT, _Q_LIMIT) * inverse_unit
    n = np.floor(n * 2.0 ** (MEAN_N_BITS - INVERSE_BITS) + 0.5)
    return n.clip(-(_N_LIMIT << MEAN_N_BITS), _N_LIMIT << MEAN_N_BITS)
