"""Context-adaptive coding of integer latents, vectorised over positions: one walk, the same for encoder and decoder.

`walk` goes through the groups and phases of `contexts.py`, finds the table row of each symbol of a step and hands the
step to the coder. Two things follow the picture, both integers:

- `Drift`: per channel, the magnitudes coded so far beside those its rows promised. Their ratio moves the channel's
  rows from the next phase on, so a picture that is rougher or smoother than the contexts think is found out.
- `Counts`: per row, how often each symbol came. They join the frozen weights of its table before the large groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latcodec.backends.nc_vae.contexts import (
    FRACTIONS,
    LATTICES,
    MEAN_BITS,
    ROW,
    SCALE_ROWS,
    TAPS,
    Contexts,
    magnitudes,
    signed,
)
from latcodec.entropy.tables import TOTAL, Tables

TRUST = 3000  # of a frozen row beside what a picture counts in it, in symbols
DRIFT_PRIOR = 20  # of a channel's promise beside what comes, in units of magnitude
FOLLOW_FROM = 32  # channels in a group before which counts become tables
FOLLOWED_ENTRIES = 64  # of wider rows a picture has too few symbols
_RATIO_BITS = 12
# Ratio of magnitudes, with _RATIO_BITS, from which on the rows move by one more: 0.7 of it, in factors of a scale row.
# Written out because they decide rows: rint(4096 * exp(log(3200) / 39 * (k - 1/2) / 0.7)) for k = -9..10.
# fmt: off
DRIFT_BOUNDS = np.array([247, 332, 446, 600, 806, 1083, 1455, 1956, 2629, 3533, 4749, 6382, 8577, 11528, 15493, 20822,
                         27985, 37611, 50548, 67936], np.int64)
# fmt: on


class Coder(Protocol):
    """RangeEncoder or RangeDecoder, or what stands in for an encoder."""

    def encode(self, symbols: np.ndarray, rows: np.ndarray, tables: Tables, counts: np.ndarray | None) -> None: ...

    def decode(self, rows: np.ndarray, tables: Tables, counts: np.ndarray | None) -> np.ndarray: ...


class Drift:
    """Magnitudes that came and that were promised, per channel, int64."""

    def __init__(self, tables: Tables, channels: int):
        self._came = np.zeros(channels, np.int64)
        self._promised = np.zeros(channels, np.int64)
        entries = np.diff(tables.offsets.astype(np.int64))
        symbols = np.arange(len(tables.weights)) - np.repeat(tables.offsets[:-1] - tables.minimums, entries)
        # Mean magnitude of each row with 8 bits after the point; weights of a row sum to 2**24.
        self._of_row = np.add.reduceat(tables.weights * np.abs(symbols), tables.offsets[:-1]) >> 16

    def moves(self, first: int, last: int) -> np.ndarray:
        """By how many scale rows the channels' rows move now, int64 [last - first]."""
        prior = DRIFT_PRIOR << 8
        ratio = ((self._came[first:last] + prior) << _RATIO_BITS) // (self._promised[first:last] + prior)
        return np.searchsorted(DRIFT_BOUNDS, ratio, side="right") - len(DRIFT_BOUNDS) // 2

    def add(self, first: int, residuals: np.ndarray, rows: np.ndarray) -> None:
        """Residuals int32 and rows uint16, both [c, n], of channels first..first + c."""
        last = first + len(rows)
        self._came[first:last] += np.minimum(np.abs(residuals.astype(np.int64)), 2**16).sum(1) << 8
        self._promised[first:last] += self._of_row[rows].sum(1)


class Counts:
    """Tables that follow a picture: `TRUST` of the frozen weights and what was counted since."""

    def __init__(self, tables: Tables):
        self._frozen, self.tables = tables, tables
        entries = np.diff(tables.offsets)
        self._row = np.repeat(np.arange(tables.num_tables), entries)  # of each weight
        self._narrow = entries <= FOLLOWED_ENTRIES
        self.counts = np.zeros(len(tables.weights), np.int64)

    def follow(self) -> None:
        """Make new tables: integers, each at least 1, in sum 2**24 a row."""
        frozen = self._frozen
        starts = frozen.offsets[:-1]
        counts = np.minimum(self.counts, 2**28)  # products stay under 2**63
        total = TRUST + np.add.reduceat(counts, starts)
        weights = np.maximum(1, (TRUST * frozen.weights.astype(np.int64) + counts * TOTAL) // total[self._row])
        for row in np.flatnonzero(self._narrow & (total > TRUST)):
            own = weights[frozen.offsets[row] : frozen.offsets[row + 1]]
            own[own.argmax()] += TOTAL - own.sum()
        kept = (self._narrow & (total > TRUST))[self._row]
        self.tables = Tables(np.where(kept, weights, frozen.weights), frozen.offsets, frozen.minimums)


@dataclass(frozen=True)
class Step:
    """What the symbols of a step, [c, n], are coded with.

    Channels first..last; the phase's lattices; table rows uint16 [c, n]; the means' nearest integers and signs (1 or
    -1), int32 [c, n] or one for all; the tables.
    """

    first: int
    last: int
    lattices: tuple[tuple[int, int, int], ...]
    rows: np.ndarray
    centre: np.ndarray
    sign: np.ndarray
    tables: Tables

    def pick(self, latents: np.ndarray) -> np.ndarray:
        """The step's values of an array [C, h, w], as [c, n]."""
        return gather(latents[self.first : self.last], self.lattices)


def gather(values: np.ndarray, lattices: tuple[tuple[int, int, int], ...]) -> np.ndarray:
    """Values [c, h, w] on lattices, one after the other, as [c, n]."""
    return _joined([values[:, r::s, c::s] for r, c, s in lattices])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    flat = [part.reshape(len(part), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, 1)


def scatter(target: np.ndarray, values: np.ndarray, lattices: tuple[tuple[int, int, int], ...]) -> None:
    """Put values [c, n] where `gather` took them from."""
    start = 0
    for r, c, s in lattices:
        place = target[:, r::s, c::s]
        stop = start + place.shape[1] * place.shape[2]
        place[...] = values[:, start:stop].reshape(place.shape)
        start = stop


def walk(
    contexts: Contexts,
    tables: Tables,
    rate_index: int,
    shape: tuple[int, int],
    coder: Coder,
    choose: Callable[[Step], np.ndarray] | None = None,
    adaptive: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Code all symbols: (symbols int32 [C, h, w], means int32 [P, h, w] with MEAN_BITS), the same both ways.

    With `choose` it encodes: choose(step) gives the symbols of a step, int32 [c, n]. Without, it decodes. Not adaptive:
    frozen tables and no drift, to measure what they bring; the files have both.
    """
    height, width = shape
    predicted, sources = contexts.mean.shape[:2]
    unit, inverse, floor, slope = (
        getattr(contexts, name)[rate_index].astype(np.float64)[:, None, None]
        for name in ("unit", "inverse_unit", "floor", "slope")
    )
    drift = Drift(tables, contexts.channels) if adaptive else None
    counts = Counts(tables) if adaptive else None
    sizes: list[np.ndarray] = []  # |n| of each group so far, with a margin of 2
    signs: list[np.ndarray] = []  # n of the first groups, likewise
    symbols, means, first = [], [], 0
    for group in contexts.groups.tolist():
        last, has_mean = first + group, first < predicted
        if counts is not None and group >= FOLLOW_FROM:
            counts.follow()
        size = np.zeros((group, height + 4, width + 4), np.float32)
        n = np.zeros((group if has_mean else 0, height + 4, width + 4))
        of_group, mean_of_group = np.zeros((group, *shape), np.int32), np.zeros((len(n), *shape), np.int32)
        around = contexts.around_size(np.concatenate(sizes) if first else size[:0], first, last, shape)
        if has_mean:
            ahead = np.concatenate(signs)[:sources] if first else n[:0]
            around_mean = contexts.around_mean(ahead, first, last, shape)
        for phase, lattices in enumerate(LATTICES):
            lattices = tuple(lattice for lattice in lattices if lattice[0] < height and lattice[1] < width)
            if not lattices:
                continue
            own = contexts.own_scale[first:last, phase].astype(np.float32)
            parts = [_with_own(around, size, own, phase, lattice) for lattice in lattices]
            scale_row = _joined([contexts.scale_row_of(p, slope[first:last], floor[first:last]) for p in parts])
            if drift is not None:
                moves = drift.moves(first, last)
                if moves.any():
                    scale_row = (scale_row + moves[:, None]).clip(0, SCALE_ROWS - 1)
            centre, sign, key = np.int32(0), np.int32(1), scale_row * np.uint8(FRACTIONS)
            if has_mean:
                own = contexts.own_mean[first:last, phase].astype(np.float64)
                parts = [_with_own(around_mean, n, own, phase, lattice) for lattice in lattices]
                mean = _joined([contexts.mean_of(p, unit[first:last]) for p in parts])
                centre = (mean + (1 << (MEAN_BITS - 1))) >> MEAN_BITS
                fraction = mean - (centre << MEAN_BITS)
                sign = np.where(fraction < 0, np.int32(-1), np.int32(1))
                key = key + ((np.abs(fraction) + 4) >> 3)
                scatter(mean_of_group, mean, lattices)
            rows = ROW[key]
            now, counted = (tables, None) if counts is None else (counts.tables, counts.counts)
            if choose is None:
                residuals = coder.decode(rows.ravel(), now, counted).reshape(rows.shape)
                values = sign * residuals + centre
            else:
                values = choose(Step(first, last, lattices, rows, centre, sign, now))
                residuals = sign * (values - centre)
                coder.encode(residuals.ravel(), rows.ravel(), now, counted)
            if drift is not None:
                drift.add(first, residuals, rows)
            scatter(of_group, values, lattices)
            scatter(size[:, 2:-2, 2:-2], magnitudes(values, inverse[first:last, 0], contexts.size_limit), lattices)
            if has_mean:
                scatter(n[:, 2:-2, 2:-2], signed(values, inverse[first:last, 0]), lattices)
        sizes.append(size)
        signs.append(n)
        symbols.append(of_group)
        means.append(mean_of_group)
        first = last
    return np.concatenate(symbols), np.concatenate(means)


def _with_own(
    around: np.ndarray, own: np.ndarray, weights: np.ndarray, phase: int, lattice: tuple[int, int, int]
) -> np.ndarray:
    """around [c, h, w] on a lattice plus the taps of a phase in own [c, h + 4, w + 4], weights [c, 5, 5]."""
    r, c, s = lattice
    total = around[:, r::s, c::s].copy()
    height, width = own.shape[1] - 4, own.shape[2] - 4
    for dy, dx in TAPS[phase]:
        weight = weights[:, dy + 2, dx + 2]
        if weight.any():
            near = own[:, 2 + r + dy : height + 2 + dy : s, 2 + c + dx : width + 2 + dx : s]
            total += near * weight[:, None, None]
    return total
