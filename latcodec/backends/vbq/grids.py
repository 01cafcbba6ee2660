"""Three ways from a posterior to integers and back: dyadic code points, a uniform grid, a book of centres.

Each has the same three methods. What the decoder knows of latents before it reads a symbol is a `Field` of integers;
`rows` turns it into table rows, `values` symbols into latents, both in integers alone; `choose` is the encoder.
Fixed point: latents have VALUE_BITS bits after the point, scales SCALE_BITS, logarithms LOG_BITS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from latcodec.backends.vbq.quantiser import MAX_DEPTH, VALUE_BITS, Quantiles, algorithm_1, cheapest, places_of

LOG_BITS, SCALE_BITS = 12, 20
ONE = 2.0**-VALUE_BITS
LEVELS = 72  # of log(variance / distortion)
LEVEL_MIN = -7 << LOG_BITS
LEVELS_PER_NAT = 3.5
BOOKS, BOOK_GROUPS = 12, 8
GROUP_MIN, GROUPS_PER_NAT = -5 << LOG_BITS, 1.0
MEAN_CURVATURE = 4 << LOG_BITS  # log h of a quantiser that ignores the posterior
_LOG_12 = 10178
_ESCAPE_TRIED_BITS = 30.0  # a choice dearer than this is compared with an escape
_VALUE_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Field:
    """int64 arrays that broadcast to [C, h, w]: mean (VALUE_BITS) and scale (SCALE_BITS) of the prior, its log
    variance and the log curvature expected (LOG_BITS), the row of its quantile function, the group of its tables. std
    (VALUE_BITS): the values of a quantile function that is not in standard deviations already."""

    mean: np.ndarray
    scale: np.ndarray
    log_variance: np.ndarray
    log_curvature: np.ndarray
    shape: np.ndarray
    group: np.ndarray
    std: np.ndarray | None = None


@dataclass(frozen=True)
class Posterior:
    """What the encoder knows besides: mode and precision, float32 [C, h, w], and lambda / lambda0 as log, LOG_BITS."""

    mode: np.ndarray
    precision: np.ndarray
    noise: int

    @property
    def lambda_bits(self) -> float:
        """2 lambda: bits are worth precision / this times a squared error."""
        return 2 * np.log(2) * float(np.exp(self.noise / 2**LOG_BITS))


def exp_table() -> np.ndarray:
    """2**(k / 1024) with 16 bits after the point, int32 [1024]; ships as data."""
    return np.rint(np.exp2(np.arange(1024) / 1024) * 65536).astype(np.int32)


def fixed_exp(log: np.ndarray, table: np.ndarray) -> np.ndarray:
    """exp of int64 with LOG_BITS bits after the point, -14..10 in value: int64 with SCALE_BITS; integers alone."""
    base2 = (np.clip(log, -14 << LOG_BITS, 10 << LOG_BITS) * 94548 + (1 << 15)) >> 16
    mantissa = table[(base2 & 4095) >> 2].astype(np.int64) << (SCALE_BITS - 16)
    whole = base2 >> 12
    return np.where(whole >= 0, mantissa << np.maximum(whole, 0), mantissa >> np.maximum(-whole, 0))


def _steps(log: np.ndarray, first: int, per_nat: float, count: int) -> np.ndarray:
    per = int(round(per_nat * 4096))
    return np.clip(((log - first) * per + (1 << (LOG_BITS + 11))) >> (LOG_BITS + 12), 0, count - 1)


def level_of(log_ratio: np.ndarray) -> np.ndarray:
    """The level of log(variance / distortion), int64 with LOG_BITS bits."""
    return _steps(log_ratio, LEVEL_MIN, LEVELS_PER_NAT, LEVELS)


def level_ratio(level: int) -> float:
    """log(variance / distortion) in the middle of a level."""
    return LEVEL_MIN / 2**LOG_BITS + level / LEVELS_PER_NAT


def runs(keys: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(key, indices of it) for each key present; keys int64 [n] >= 0 below 2**16."""
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    counts = np.bincount(keys)
    present = np.flatnonzero(counts)
    stops = np.cumsum(counts[present])
    for key, stop in zip(present.tolist(), stops.tolist(), strict=True):
        yield key, order[stop - counts[key] : stop]


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(values, shape).ravel()


class PointGrid:
    """Code points of the prior's quantiles, a list for each row; a symbol is a place in it, or, escaped, the length of
    the list plus the point itself.

    entries int32, starts int64 [rows + 1]: the lists. by_length: entries are points, and the encoder is Algorithm 1.
    Otherwise entries are values in standard deviations (VALUE_BITS), the point is the shortest near that value of each
    quantile function, and the encoder minimises the tables' true code length.
    """

    def __init__(self, entries: np.ndarray, starts: np.ndarray, quantiles: Quantiles, by_length: bool = False):
        self.entries, self.starts, self.quantiles, self.by_length = entries, starts, quantiles, by_length
        self.sizes = np.diff(starts)
        self.places = places_of(entries) if by_length else self._near(entries, np.zeros(1, np.int64), 1 << VALUE_BITS)
        if by_length:
            keys = (np.repeat(np.arange(len(self.sizes)), self.sizes).astype(np.int64) << 32) + entries
            self.key_order = np.argsort(keys)
            self.keys = keys[self.key_order]

    def _near(self, entries: np.ndarray, shapes: np.ndarray, std: np.ndarray | int) -> np.ndarray:
        """Places of the points near entries * std; std int64 (VALUE_BITS)."""
        entries = entries.astype(np.int64)
        gaps = np.maximum(np.abs(np.append(np.diff(entries), 1 << VALUE_BITS)), 1 << 6) * std
        values = (entries * std) >> VALUE_BITS
        return places_of(self.quantiles.short_points(values, gaps >> (VALUE_BITS + 5), shapes))

    def _lists(self, rows: np.ndarray, field: Field) -> tuple[np.ndarray, np.ndarray]:
        """Places of all entries needed, and where the list of each latent starts, broadcastable to rows."""
        if self.by_length or field.shape.size == 1:
            return self.places, self.starts[rows]
        row = rows.reshape(len(rows), -1)[:, 0]  # one a channel
        size = self.sizes[row]
        start = np.cumsum(size) - size
        which = np.arange(size.sum()) + np.repeat(self.starts[row] - start, size)
        std = np.repeat(field.std.ravel(), size)
        return self._near(self.entries[which], np.repeat(field.shape.ravel(), size), std), start[:, None, None]

    def rows(self, field: Field, noise: int) -> np.ndarray:
        return level_of(field.log_variance + field.log_curvature - noise) + field.group * LEVELS

    def values(self, symbols: np.ndarray, rows: np.ndarray, field: Field, noise: int) -> np.ndarray:
        """Latents int32, the shape of symbols; raises ValueError for a symbol that is no code point."""
        size, symbols = self.sizes[rows], symbols.astype(np.int64)
        if symbols.min(initial=0) < 0:
            raise ValueError("a symbol is no code point")
        places, starts = self._lists(rows, field)
        listed = symbols < size
        place = places[np.where(listed, starts + symbols, 0)]
        if not listed.all():
            escaped = (symbols - size)[~listed]
            if escaped.min() < 1 or escaped.max() >= 1 << MAX_DEPTH:
                raise ValueError("a symbol is no code point")
            place[~listed] = places_of(escaped)
        quantile = self.quantiles.at(place, np.broadcast_to(field.shape, place.shape))
        return _clip(field.mean + ((field.scale * quantile) >> SCALE_BITS))

    def choose(self, posterior: Posterior, rows: np.ndarray, field: Field, bits: list[np.ndarray]) -> np.ndarray:
        """Symbols int32 [C, h, w]; bits: float64 code length of each row's entries, the escape last."""
        dims = posterior.mode.shape
        scale = field.scale * 2.0**-SCALE_BITS
        target = ((posterior.mode - field.mean * ONE) / scale).astype(np.float32).ravel()
        weight = (posterior.precision * (scale * scale / posterior.lambda_bits)).astype(np.float32).ravel()
        flat, shapes = _spread(rows, dims), _spread(field.shape, dims)
        if self.by_length:
            return self._by_length(target, weight, flat, shapes).reshape(dims)
        symbols = np.empty(len(flat), np.int64)
        places, starts = self._lists(rows, field)
        by_channel = field.shape.size > 1
        for key, where in runs(shapes - shapes.min() if by_channel else flat):
            row, shape = int(flat[where[0]]), int(shapes[where[0]])
            start = int(starts.ravel()[key]) if by_channel else int(self.starts[row])
            values = self.quantiles.at(places[start : start + self.sizes[row]], shape) * ONE
            prices = bits[row].astype(np.float32)
            here, heavy = target[where], weight[where]
            index, least = cheapest(here, heavy, values.astype(np.float32), prices[:-1])
            far = np.flatnonzero(least > _ESCAPE_TRIED_BITS)
            if len(far):
                point = algorithm_1(here[far], (2 * heavy[far]) ** -0.5, 1.0, self.quantiles, shape)
                misfit = (self.quantiles.of(point, shape) * ONE - here[far]) ** 2 * heavy[far]
                escape = prices[-1] + 6 + np.log2(point + 1.0) + misfit
                index[far] = np.where(escape < least[far], self.sizes[row] + point.astype(np.int64), index[far])
            symbols[where] = index
        return symbols.astype(np.int32).reshape(dims)

    def _by_length(self, target: np.ndarray, weight: np.ndarray, rows: np.ndarray, shapes: np.ndarray) -> np.ndarray:
        points = np.empty(len(rows), np.int32)
        for shape, where in runs(shapes):
            points[where] = algorithm_1(target[where], (2 * weight[where]) ** -0.5, 1.0, self.quantiles, shape)
        keys = (rows.astype(np.int64) << 32) + points
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        place = self.key_order[found] - self.starts[rows]
        return np.where(self.keys[found] == keys, place, self.sizes[rows] + points).astype(np.int32)


class StepGrid:
    """Multiples of one step for all latents, from the prior's mean: sqrt(12 lambda / lambda0 / a fixed curvature)."""

    def __init__(self, table: np.ndarray):
        self.table = table

    def step(self, noise: int) -> int:
        """The step, SCALE_BITS bits after the point."""
        log = (noise + _LOG_12 - MEAN_CURVATURE) >> 1
        return int(fixed_exp(np.int64(log), self.table))

    def rows(self, field: Field, noise: int) -> np.ndarray:
        return level_of(field.log_variance + MEAN_CURVATURE - noise)

    def values(self, symbols: np.ndarray, rows: np.ndarray, field: Field, noise: int) -> np.ndarray:
        return _clip(field.mean + ((symbols.astype(np.int64) * self.step(noise)) >> (SCALE_BITS - VALUE_BITS)))

    def choose(self, posterior: Posterior, rows: np.ndarray, field: Field, bits: list[np.ndarray]) -> np.ndarray:
        step = self.step(posterior.noise) * 2.0**-SCALE_BITS
        return np.clip(np.rint((posterior.mode - field.mean * ONE) / step), -(2**24), 2**24).astype(np.int32)


class BookGrid:
    """Lists of centres, one a noise: int32 centres (VALUE_BITS), starts int64 [BOOKS + 1], noises int64 [BOOKS].

    priced: the generalised Lloyd algorithm's choice, squared error plus a price for bits, but blind for the posterior;
    otherwise k-means', the nearest.
    """

    def __init__(self, centres: np.ndarray, starts: np.ndarray, noises: np.ndarray, priced: bool):
        self.centres, self.starts, self.noises, self.priced = centres, starts, noises, priced

    def book(self, noise: int) -> int:
        return int(np.abs(self.noises - noise).argmin())

    def rows(self, field: Field, noise: int) -> np.ndarray:
        group = _steps(field.log_variance, GROUP_MIN, GROUPS_PER_NAT, BOOK_GROUPS)
        return group + self.book(noise) * BOOK_GROUPS

    def values(self, symbols: np.ndarray, rows: np.ndarray, field: Field, noise: int) -> np.ndarray:
        book = self.book(noise)
        if symbols.size and not 0 <= symbols.min() <= symbols.max() < self.starts[book + 1] - self.starts[book]:
            raise ValueError("a symbol is no centre")
        return _clip(field.mean + self.centres[self.starts[book] + symbols])

    def choose(self, posterior: Posterior, rows: np.ndarray, field: Field, bits: list[np.ndarray]) -> np.ndarray:
        book = self.book(posterior.noise)
        centres = (self.centres[self.starts[book] : self.starts[book + 1]] * ONE).astype(np.float32)
        dims = posterior.mode.shape
        target = (posterior.mode - field.mean * ONE).astype(np.float32).ravel()
        if not self.priced:
            return np.searchsorted((centres[1:] + centres[:-1]) / 2, target).astype(np.int32).reshape(dims)
        weight = np.float32(np.exp((MEAN_CURVATURE - self.noises[book]) / 2**LOG_BITS) / (2 * np.log(2)))
        symbols = np.empty(len(target), np.int32)
        for row, where in runs(_spread(rows, dims)):
            prices = bits[row][:-1].astype(np.float32)
            symbols[where] = cheapest(target[where], np.full(len(where), weight), centres, prices)[0]
        return symbols.reshape(dims)


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(values, -_VALUE_LIMIT, _VALUE_LIMIT).astype(np.int32)
