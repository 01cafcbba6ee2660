"""Context-adaptive coding of integer latents, vectorised over positions: one pass, the same in encoder and decoder.

`run_entropy_model` goes through the groups and phases of `contexts.py`. Of each step it computes the table index of
each symbol and hands the step to a `StepCoder`, which encodes or decodes it. Two things follow the picture, both
integers:

- `Drift`: per channel, the magnitudes coded so far beside those that the tables promised. Their ratio moves the
  channel's scale from the next phase on, for pictures that are rougher or smoother than the contexts expect.
- `Counts`: per table, how often each symbol was coded. They join the frozen weights of the table before the large
  groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from latcodec.backends.nc_vae.contexts import (
    FRACTIONS,
    LATTICES,
    MEAN_BITS,
    NUM_SCALES,
    TABLE_INDEX,
    TAPS,
    Contexts,
    Lattices,
    magnitudes,
    signed,
)
from latcodec.entropy.tables import TOTAL, Tables

TRUST = 3000  # weight of a frozen table beside the counts of a picture, in symbols
DRIFT_PRIOR = 20  # weight of a channel's frozen scale beside the magnitudes coded, in units of magnitude
FOLLOW_FROM = 32  # channels in a group from which the tables follow the counts before it is coded
FOLLOWED_ENTRIES = 64  # of a table that follows at most; of wider ones a picture has too few symbols
_RATIO_BITS = 12
# Ratio of magnitudes, with _RATIO_BITS, from which on the scale moves by one more: 0.7 of it, in factors of a scale.
# Written out because they decide table indices: rint(4096 * exp(log(3200) / 39 * (k - 1/2) / 0.7)) for k = -9..10.
# fmt: off
DRIFT_BOUNDS = np.array([247, 332, 446, 600, 806, 1083, 1455, 1956, 2629, 3533, 4749, 6382, 8577, 11528, 15493, 20822,
                         27985, 37611, 50548, 67936], np.int64)
# fmt: on


class Drift:
    """Per channel the magnitudes that were coded and those that the tables promised, int64."""

    def __init__(self, tables: Tables, channels: int):
        self._coded = np.zeros(channels, np.int64)
        self._promised = np.zeros(channels, np.int64)
        entries = np.diff(tables.offsets.astype(np.int64))
        symbols = np.arange(len(tables.weights)) - np.repeat(tables.offsets[:-1] - tables.minimums, entries)
        # Mean magnitude of each table with 8 bits after the point; the weights of a table sum to 2**24.
        self._of_table = np.add.reduceat(tables.weights * np.abs(symbols), tables.offsets[:-1]) >> 16

    def moves(self, first: int, last: int) -> np.ndarray:
        """Return by how many scales the channels first..last move now, int64 [last - first]."""
        prior = DRIFT_PRIOR << 8
        ratio = ((self._coded[first:last] + prior) << _RATIO_BITS) // (self._promised[first:last] + prior)
        return np.searchsorted(DRIFT_BOUNDS, ratio, side="right") - len(DRIFT_BOUNDS) // 2

    def add(self, first: int, residuals: np.ndarray, table_index: np.ndarray) -> None:
        """Add residuals int32 and table indices uint16, both [c, n], of channels first..first + c."""
        last = first + len(table_index)
        self._coded[first:last] += np.minimum(np.abs(residuals.astype(np.int64)), 2**16).sum(1) << 8
        self._promised[first:last] += self._of_table[table_index].sum(1)


class Counts:
    """Tables that follow a picture: the frozen weights, counted as `TRUST` symbols, and the counts of the picture.

    Attributes:
        tables: The tables that are coded with now.
        counts: How often each entry was coded, int64 [entries of all tables]; the range coder adds to it.
    """

    def __init__(self, tables: Tables):
        self._frozen, self.tables = tables, tables
        entries = np.diff(tables.offsets)
        self._table = np.repeat(np.arange(tables.num_tables), entries)  # of each weight
        self._narrow = entries <= FOLLOWED_ENTRIES
        self.counts = np.zeros(len(tables.weights), np.int64)

    def follow(self) -> None:
        """Make new tables from the counts: integers, each at least 1, whose sum in a table is 2**24."""
        frozen = self._frozen
        starts = frozen.offsets[:-1]
        counts = np.minimum(self.counts, 2**28)  # products stay under 2**63
        total = TRUST + np.add.reduceat(counts, starts)
        weights = np.maximum(1, (TRUST * frozen.weights.astype(np.int64) + counts * TOTAL) // total[self._table])
        for row in np.flatnonzero(self._narrow & (total > TRUST)):
            own = weights[frozen.offsets[row] : frozen.offsets[row + 1]]
            own[own.argmax()] += TOTAL - own.sum()
        kept = (self._narrow & (total > TRUST))[self._table]
        self.tables = Tables(np.where(kept, weights, frozen.weights), frozen.offsets, frozen.minimums)


@dataclass(frozen=True)
class Step:
    """One step of the coding order, c channels at n positions each, and what its symbols are coded with.

    A symbol q is coded as the residual sign * (q - centre).

    Attributes:
        first: The first channel.
        last: The channel after the last one.
        lattices: The positions, of one phase.
        table_index: uint16 [c, n].
        centre: The nearest integers of the means, int32 [c, n], or one for all.
        sign: 1 or -1, int32 [c, n], or one for all.
        tables: The tables now.
        counts: The counts of the picture, which the range coder adds to; None for frozen tables.
    """

    first: int
    last: int
    lattices: Lattices
    table_index: np.ndarray
    centre: np.ndarray
    sign: np.ndarray
    tables: Tables
    counts: np.ndarray | None

    def gather(self, latents: np.ndarray) -> np.ndarray:
        """Return the step's values of an array [C, h, w], as [c, n]."""
        return gather(latents[self.first : self.last], self.lattices)


class StepCoder(Protocol):
    """Encodes or decodes the symbols of a step."""

    def code_step(self, step: Step) -> np.ndarray:
        """Return the residuals of a step, int32 [c, n]."""
        ...


class SymbolEncoder(Protocol):
    """A `RangeEncoder`, or what stands in for one."""

    def encode(self, symbols: np.ndarray, table_index: np.ndarray, tables: Tables, counts: np.ndarray | None) -> None:
        """Take symbols int32 [n] and their table indices uint16 [n]."""
        ...


class SymbolDecoder(Protocol):
    """A `RangeDecoder`, or what stands in for one."""

    def decode(self, table_index: np.ndarray, tables: Tables, counts: np.ndarray | None) -> np.ndarray:
        """Return the symbols int32 [n] of table indices uint16 [n]."""
        ...


class StepQuantiser(Protocol):
    """Chooses the symbols of a step."""

    def quantise(self, step: Step) -> np.ndarray:
        """Return the symbols of a step, int32 [c, n]."""
        ...


class StepEncoder:
    """A `StepCoder` that puts the symbols of a quantiser into an encoder."""

    def __init__(self, encoder: SymbolEncoder, quantiser: StepQuantiser):
        self._encoder, self._quantiser = encoder, quantiser

    def code_step(self, step: Step) -> np.ndarray:
        """Return the residuals of a step, int32 [c, n]."""
        residuals = step.sign * (self._quantiser.quantise(step) - step.centre)
        self._encoder.encode(residuals.ravel(), step.table_index.ravel(), step.tables, step.counts)
        return residuals


class StepDecoder:
    """A `StepCoder` that takes the symbols out of a decoder."""

    def __init__(self, decoder: SymbolDecoder):
        self._decoder = decoder

    def code_step(self, step: Step) -> np.ndarray:
        """Return the residuals of a step, int32 [c, n]."""
        residuals = self._decoder.decode(step.table_index.ravel(), step.tables, step.counts)
        return residuals.reshape(step.table_index.shape)


def gather(values: np.ndarray, lattices: Lattices) -> np.ndarray:
    """Return values [c, h, w] on lattices, one lattice after the other, as [c, n]."""
    return _joined([values[:, r::s, c::s] for r, c, s in lattices])


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    flat = [part.reshape(len(part), -1) for part in parts]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, 1)


def scatter(target: np.ndarray, values: np.ndarray, lattices: Lattices) -> None:
    """Put values [c, n] into target [c, h, w], in place, where `gather` takes them from."""
    start = 0
    for r, c, s in lattices:
        place = target[:, r::s, c::s]
        stop = start + place.shape[1] * place.shape[2]
        place[...] = values[:, start:stop].reshape(place.shape)
        start = stop


def run_entropy_model(
    contexts: Contexts,
    tables: Tables,
    rate_index: int,
    shape: tuple[int, int],
    coder: StepCoder,
    adaptive: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Code all symbols of a picture, in either direction.

    Args:
        contexts: The frozen contexts.
        tables: The frozen tables.
        rate_index: 0..255.
        shape: (h, w) of the latents.
        coder: Encodes or decodes each step.
        adaptive: False for frozen tables and no drift, to measure what they bring; files have both.

    Returns:
        Symbols int32 [C, h, w], and the means of the first P channels, int32 [P, h, w] (MEAN_BITS).
    """
    run = _Run(contexts, tables, rate_index, shape, adaptive)
    first = 0
    for channels in contexts.groups.tolist():
        run.code_group(first, first + channels, coder)
        first += channels
    return np.concatenate([group.symbols for group in run.groups]), np.concatenate([g.means for g in run.groups])


class _Group:
    """The integers of one group of channels, as far as they are coded.

    Attributes:
        magnitudes: |n| of the contexts' equations, float32 [c, h + 4, w + 4], a margin of 2 on all sides.
        signed: n, float64, likewise; empty for a group without means.
        symbols: int32 [c, h, w].
        means: int32 [c, h, w] (MEAN_BITS); empty for a group without means.
        around_size: S |n| over the earlier groups.
        around_mean: M n over the earlier groups.
    """

    def __init__(self, contexts: Contexts, earlier: list[_Group], first: int, last: int, shape: tuple[int, int]):
        predicted, sources = contexts.mean.shape[:2]
        height, width = shape
        self.first, self.last, self.has_mean = first, last, first < predicted
        with_mean = last - first if self.has_mean else 0
        self.magnitudes = np.zeros((last - first, height + 4, width + 4), np.float32)
        self.signed = np.zeros((with_mean, height + 4, width + 4))
        self.symbols = np.zeros((last - first, *shape), np.int32)
        self.means = np.zeros((with_mean, *shape), np.int32)
        sizes = np.concatenate([group.magnitudes for group in earlier]) if earlier else self.magnitudes[:0]
        self.around_size = contexts.around_size(sizes, first, last, shape)
        if self.has_mean:
            values = np.concatenate([group.signed for group in earlier])[:sources] if earlier else self.signed[:0]
            self.around_mean = contexts.around_mean(values, first, last, shape)


class _Run:
    """One pass through the groups and phases of a picture."""

    def __init__(self, contexts: Contexts, tables: Tables, rate_index: int, shape: tuple[int, int], adaptive: bool):
        self.contexts, self.tables, self.shape = contexts, tables, shape
        self.unit, self.inverse_unit, self.floor, self.slope = (
            getattr(contexts, name)[rate_index].astype(np.float64)[:, None, None]
            for name in ("unit", "inverse_unit", "floor", "slope")
        )
        self.drift = Drift(tables, contexts.channels) if adaptive else None
        self.counts = Counts(tables) if adaptive else None
        self.groups: list[_Group] = []

    def code_group(self, first: int, last: int, coder: StepCoder) -> None:
        """Code the channels first..last, phase by phase."""
        if self.counts is not None and last - first >= FOLLOW_FROM:
            self.counts.follow()
        group = _Group(self.contexts, self.groups, first, last, self.shape)
        height, width = self.shape
        for phase, lattices in enumerate(LATTICES):
            inside = tuple(lattice for lattice in lattices if lattice[0] < height and lattice[1] < width)
            if inside:
                self._code_step(group, phase, inside, coder)
        self.groups.append(group)

    def _code_step(self, group: _Group, phase: int, lattices: Lattices, coder: StepCoder) -> None:
        first, last = group.first, group.last
        centre, sign = np.int32(0), np.int32(1)
        key = self._scale_index(group, phase, lattices) * np.uint8(FRACTIONS)
        if group.has_mean:
            mean = self._mean(group, phase, lattices)
            centre = (mean + (1 << (MEAN_BITS - 1))) >> MEAN_BITS
            fraction = mean - (centre << MEAN_BITS)
            sign = np.where(fraction < 0, np.int32(-1), np.int32(1))
            key = key + ((np.abs(fraction) + 4) >> 3)
            scatter(group.means, mean, lattices)
        table_index = TABLE_INDEX[key]
        tables, counts = (self.tables, None) if self.counts is None else (self.counts.tables, self.counts.counts)
        residuals = coder.code_step(Step(first, last, lattices, table_index, centre, sign, tables, counts))
        if self.drift is not None:
            self.drift.add(first, residuals, table_index)
        symbols, inverse_unit = sign * residuals + centre, self.inverse_unit[first:last, 0]
        scatter(group.symbols, symbols, lattices)
        sizes = magnitudes(symbols, inverse_unit, self.contexts.size_limit)
        scatter(group.magnitudes[:, 2:-2, 2:-2], sizes, lattices)
        if group.has_mean:
            scatter(group.signed[:, 2:-2, 2:-2], signed(symbols, inverse_unit), lattices)

    def _scale_index(self, group: _Group, phase: int, lattices: Lattices) -> np.ndarray:
        """Return the scale index of each symbol of a step, [c, n]."""
        first, last = group.first, group.last
        weights = self.contexts.own_scale[first:last, phase].astype(np.float32)
        sums = (_with_own(group.around_size, group.magnitudes, weights, phase, lattice) for lattice in lattices)
        slope, floor = self.slope[first:last], self.floor[first:last]
        index = _joined([self.contexts.scale_index_of(summed, slope, floor) for summed in sums])
        if self.drift is not None:
            moves = self.drift.moves(first, last)
            if moves.any():
                index = (index + moves[:, None]).clip(0, NUM_SCALES - 1)
        return index

    def _mean(self, group: _Group, phase: int, lattices: Lattices) -> np.ndarray:
        """Return the mean of each symbol of a step, int32 [c, n] (MEAN_BITS)."""
        first, last = group.first, group.last
        weights = self.contexts.own_mean[first:last, phase].astype(np.float64)
        sums = (_with_own(group.around_mean, group.signed, weights, phase, lattice) for lattice in lattices)
        return _joined([self.contexts.mean_of(summed, self.unit[first:last]) for summed in sums])


def _with_own(
    around: np.ndarray, own: np.ndarray, weights: np.ndarray, phase: int, lattice: tuple[int, int, int]
) -> np.ndarray:
    """Return around [c, h, w] on a lattice plus the taps of a phase in own [c, h + 4, w + 4]; weights [c, 5, 5]."""
    r, c, s = lattice
    total = around[:, r::s, c::s].copy()
    height, width = own.shape[1] - 4, own.shape[2] - 4
    for dy, dx in TAPS[phase]:
        weight = weights[:, dy + 2, dx + 2]
        if weight.any():
            near = own[:, 2 + r + dy : height + 2 + dy : s, 2 + c + dx : width + 2 + dx : s]
            total += near * weight[:, None, None]
    return total
