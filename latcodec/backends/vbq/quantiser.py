"""Variational Bayesian Quantization: posterior -> code points -> latent. NumPy; no networks, no bytes.

A code point is the pair (n, i), i odd: the binary fraction i / 2**n of a prior's probability, n <= MAX_DEPTH. It is
carried as one int32, its place in the infinite binary tree of such fractions: point = 2**(n - 1) + (i - 1) / 2, so that
1 is the median, 2 and 3 the quartiles. Its value is the prior's quantile there, an integer in units of 2**-VALUE_BITS.

A prior is a row of `Quantiles`: values at the knots KNOTS, linear between them, everything in integers. Finer towards
both ends, where half the distance to the end is always a knot, so that no latent is out of reach.

Source: Yang, Bamler, Mandt 2020, "Variational Bayesian Quantization", Algorithm 1 and Eq. 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_DEPTH = 30
PLACE_BITS = 32  # of a probability
VALUE_BITS = 16
_ONE = 1 << PLACE_BITS
_CENTRAL_BITS, _FIRST_BITS = 26, 6  # 64 knots in the middle; tails in half octaves down to 2**-26
_FAR = 2.0**-15  # where a tail begins to stretch until it reaches its end
_FRACTION_BITS = 16


def _knots() -> np.ndarray:
    octaves = 1 << np.arange(_FIRST_BITS, _CENTRAL_BITS, dtype=np.int64)
    tail = np.stack([octaves, octaves + (octaves >> 1)], 1).ravel()
    middle = np.arange(1, 64, dtype=np.int64) << _CENTRAL_BITS
    return np.concatenate([[0], tail, middle, _ONE - tail[::-1], [_ONE]])


KNOTS = _knots()  # probabilities times 2**PLACE_BITS, int64
_WIDTH_BITS = np.round(np.log2(np.diff(KNOTS))).astype(np.int64)  # the gaps are powers of two


def points_of(n: np.ndarray, i: np.ndarray) -> np.ndarray:
    """Points int32 of pairs (n, i) of integers, 1 <= n <= MAX_DEPTH, i odd below 2**n."""
    return ((1 << (np.asarray(n, np.int64) - 1)) + (np.asarray(i, np.int64) >> 1)).astype(np.int32)


def pairs_of(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, i), int64 each, of points."""
    points = np.asarray(points, np.int64)
    n = np.frexp(points.astype(np.float64))[1].astype(np.int64)  # the bit length; exact
    return n, 2 * (points - (1 << (n - 1))) + 1


def places_of(points: np.ndarray) -> np.ndarray:
    """Probabilities times 2**PLACE_BITS, int64, of points."""
    n, i = pairs_of(points)
    return i << (PLACE_BITS - n)


def points_at(places: np.ndarray) -> np.ndarray:
    """Points int32 at places, int64, multiples of 2**(PLACE_BITS - MAX_DEPTH) between 0 and 2**PLACE_BITS."""
    places = np.asarray(places, np.int64)
    zeros = np.frexp((places & -places).astype(np.float64))[1].astype(np.int64) - 1
    return points_of(PLACE_BITS - zeros, places >> zeros)


@dataclass(frozen=True)
class Quantiles:
    """Quantile functions, one a row: int32 [rows, len(KNOTS)], rising, in units of 2**-VALUE_BITS."""

    values: np.ndarray

    def at(self, places: np.ndarray, rows: np.ndarray | int = 0) -> np.ndarray:
        """Values int64 at places int64, strictly inside; rows index the quantile function of each."""
        knot = np.searchsorted(KNOTS, places, "right") - 1
        fraction = ((places - KNOTS[knot]) << _FRACTION_BITS) >> _WIDTH_BITS[knot]
        left, right = self.values[rows, knot].astype(np.int64), self.values[rows, knot + 1]
        return left + (((right - left) * fraction) >> _FRACTION_BITS)

    def of(self, points: np.ndarray, rows: np.ndarray | int = 0) -> np.ndarray:
        """Values int64 of points."""
        return self.at(places_of(points), rows)

    def short_points(self, values: np.ndarray, gaps: np.ndarray, rows: np.ndarray | int = 0) -> np.ndarray:
        """Points int32 about as short as they can be within gaps of values, int64 both; integers alone."""
        table = self.values.astype(np.int64) + (np.arange(len(self.values), dtype=np.int64) << 33)[:, None]
        rows = np.broadcast_to(rows, values.shape)
        knot = np.searchsorted(table.ravel(), values + (rows << 33), "right") - 1 - rows * len(KNOTS)
        knot = np.clip(knot, 0, len(KNOTS) - 2)
        left, right = self.values[rows, knot].astype(np.int64), self.values[rows, knot + 1]
        place = KNOTS[knot] + ((np.clip(values, left, right) - left) << _WIDTH_BITS[knot]) // (right - left)
        slack = np.clip((gaps << _WIDTH_BITS[knot]) // (right - left), 2, 1 << 29)
        bits = np.frexp(slack.astype(np.float64))[1].astype(np.int64)  # rounding errs by half of 2**bits, within slack
        place = ((place + (1 << (bits - 1))) >> bits) << bits
        return points_at(np.clip(place, 1 << bits, _ONE - (1 << bits)))

    def places(self, values: np.ndarray, row: int = 0) -> np.ndarray:
        """The inverse, for encoders: places int64 of real values in the same units, inside by 2**-MAX_DEPTH."""
        place = np.interp(values, self.values[row], KNOTS)
        edge = 1 << (PLACE_BITS - MAX_DEPTH)
        return np.clip(np.floor(place).astype(np.int64), edge, _ONE - edge)


def fit_quantiles(samples: np.ndarray, reach: float, symmetric: bool = False) -> np.ndarray:
    """A row of `Quantiles` from real samples, float64 [n]: their quantiles, beyond the rarest exponential tails.

    reach: the ends lie at least so far from 0. symmetric: mirror the samples.
    """
    samples = np.sort(np.concatenate([samples, -samples]) if symmetric else np.asarray(samples, np.float64))
    place = KNOTS / _ONE
    values = np.quantile(samples, place)
    # A tail's slope is taken between its quantiles at 2**-6 and at the rarest well-known one.
    rare = max(2.0**-16, min(2.0**-7, 32 / len(samples)))
    for end in (0, 1):
        tail = np.minimum(place, 1 - place) < rare
        tail &= place < 0.5 if end == 0 else place > 0.5
        at = np.quantile(samples, [rare, 2.0**-6] if end == 0 else [1 - rare, 1 - 2.0**-6])
        slope = max(abs(at[0] - at[1]), 1e-3) / np.log(2.0**-6 / rare)
        share = np.maximum(np.minimum(place, 1 - place)[tail], 2.0**-27)
        sign = 2 * end - 1
        values[tail] = at[0] + sign * slope * np.log(rare / share)
        last = sign * values[-end]
        stretch = (max(reach, 1.5 * last) - last) * np.maximum(0, np.log(_FAR / share) / np.log(_FAR * 2.0**27)) ** 2
        values[tail] += sign * stretch
    fixed = np.rint(values * 2**VALUE_BITS).astype(np.int64)
    if symmetric:
        fixed = (fixed - fixed[::-1]) // 2
    rise = np.arange(len(fixed))
    fixed = np.maximum.accumulate(fixed - rise) + rise  # strictly rising, so that there is an inverse
    return np.clip(fixed, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def algorithm_1(
    mean: np.ndarray, sigma: np.ndarray, lmbda: float, quantiles: Quantiles, row: int = 0, max_depth: int = MAX_DEPTH
) -> np.ndarray:
    """Points int32 [n] that minimise (value - mean)^2 + 2 lambda sigma^2 * length over all code points.

    mean, sigma: float64 [n], sigma > 0, in units of 1; lmbda > 0; length is n of the pair (n, i). Between the paper's
    left and right neighbour of each depth, until no deeper one can win. Source: Algorithm 1, with its last line.
    """
    scale = 2.0**-VALUE_BITS
    target = quantiles.places(np.asarray(mean, np.float64) / scale, row)
    best = np.zeros(len(target), np.int64)
    best_loss, best_misfit = np.full(len(target), np.inf), np.full(len(target), np.inf)
    best_length = np.zeros(len(target), np.int64)
    open_ = np.arange(len(target))
    for r in range(1, max_depth + 1):
        bits = PLACE_BITS - r
        left = (target[open_] >> bits) << bits
        right = -((-target[open_] >> bits) << bits)
        for place in (left, right):
            inside = (place != 0) & (place != _ONE)
            which, place = open_[inside], place[inside]
            length = PLACE_BITS - (np.frexp((place & -place).astype(np.float64))[1] - 1)
            misfit = (quantiles.at(place, row) * scale - mean[which]) ** 2 / (2 * sigma[which] ** 2)
            loss = misfit + lmbda * length
            better = loss < best_loss[which]
            which = which[better]
            best[which], best_loss[which], best_misfit[which] = place[better], loss[better], misfit[better]
            best_length[which] = length[better]
        open_ = open_[best_misfit[open_] >= lmbda * (r + 1 - best_length[open_])]
        if not len(open_):
            break
    return points_at(best)


def cheapest(target: np.ndarray, weight: np.ndarray, values: np.ndarray, bits: np.ndarray, reach: int = 3):
    """Indices int64 [n] that minimise bits[j] + weight * (values[j] - target)^2, and those minima float32 [n].

    target, weight: float32 [n]; values: float32 [m], rising; bits: float32 [m], the true code length of each. Searched
    among the nearest and `reach` more towards either side; when m <= 2 * reach + 1 among all.
    """
    if len(values) <= 2 * reach + 1:
        candidates = (np.full(1, j) for j in range(len(values)))
    else:
        nearest = np.searchsorted((values[1:] + values[:-1]) / 2, target)
        candidates = (np.clip(nearest + k, 0, len(values) - 1) for k in range(-reach, reach + 1))
    index, least = np.zeros(len(target), np.int64), np.full(len(target), np.inf, np.float32)
    for j in candidates:
        difference = values[j] - target
        price = bits[j] + weight * difference * difference
        better = price < least
        np.copyto(least, price, where=better)
        np.copyto(index, j, where=better)
    return index, least
