"""Entropy coding: int32 symbols and the table row of each <-> bytes. The only room that imports constriction.

Rows are those of `coding_tables.Tables`: integer weights of symbols minimum, minimum + 1, ... and, last, of the escape.

The stream, a range coder's 32-bit words stored little-endian, is what successive `put` calls append. One `put` codes

1. the symbols stably sorted by row, each as its entry in its row (one call of the coder per row, not per symbol);
2. for the escaped ones, in the same order, all classes: 32 * (below the support) + (bit length of m) - 1, where
   m >= 1 is the distance to the nearest symbol of the support; each uniform over 64 values;
3. for those with m > 1, all low parts: the lowest min(b, 16) of the b bits of m under its leading one, uniform;
4. for those with b > 16, all high parts: the b - 16 bits above, uniform.

So every int32 can be coded by every table. The coder itself detects almost nothing: `Decoder` turns its failures into
FormatError and compares the length of the data with the information in what was decoded, and damage that passes both is
found by the container's checksums.

Source: constriction (Bamler, 2022, arXiv:2201.01741), range coder over 32-bit words with 64 bits of state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import constriction
import numpy as np

from latcodec.entropy.tables import CLASS_BITS, Tables
from latcodec.errors import FormatError

_PART_BITS = 16  # of the parts that the distance of an escaped symbol is coded in
# The coder divides its range, at least 2**32, by 2**24 and drops the remainder: at worst log2(257 / 256) bits a symbol.
_LOSS_BITS_PER_STEP = math.log2(257 / 256)
_SEAL_BITS = 96  # what sealing can add to the information, in whole words

_model = constriction.stream.model
_queue = constriction.stream.queue


class Encoder:
    """Codes symbols into one range-coder stream."""

    def __init__(self, tables: Tables):
        self._tables = tables
        self._coder = _queue.RangeEncoder()
        self.bits = 0.0  # information in what was put, escapes included

    def put(
        self,
        symbols: np.ndarray,
        rows: np.ndarray,
        tables: Tables | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        """Append symbols, int32 [n], each coded by its row, uint16 [n], of `tables` (the encoder's own); n may be 0.

        counts, int64 with one element for each weight of the tables, grows by how often each entry was coded.
        Raises TypeError or ValueError for another dtype or shape, or a row the tables do not have.
        """
        tables, coder = tables or self._tables, self._coder
        _check_rows(rows, tables)
        _check_symbols(symbols, rows)
        order, groups = _group(rows, tables)
        ordered = symbols[order]
        distances, below = [], []
        for row, start, stop in groups:
            entries, escapes = _entries(ordered[start:stop], row, tables)
            coder.encode(entries.view(np.int32), tables.model(row))
            self.bits += float(tables.bits[tables.offsets[row] :][entries].sum())
            if counts is not None:
                counts[tables.offsets[row] : tables.offsets[row + 1]] += np.bincount(
                    entries, minlength=tables.size(row)
                )
            if escapes is not None:
                distance, is_below = _distances(ordered[start:stop][escapes], row, tables)
                distances.append(distance)
                below.append(is_below)
        if distances:
            self._put_escapes(np.concatenate(distances), np.concatenate(below))

    def _put_escapes(self, distances: np.ndarray, below: np.ndarray) -> None:
        bits = _bit_lengths(distances) - 1
        rest = distances - (np.int64(1) << bits)
        self.bits += float((CLASS_BITS + bits).sum())
        self._coder.encode((32 * below + bits).astype(np.int32), _model.Uniform(1 << CLASS_BITS))
        for shift, has_part, sizes in _parts(bits):
            part = (rest[has_part] >> shift) & (sizes - 1)
            self._coder.encode(part.astype(np.int32), _model.Uniform(), sizes)

    def finish(self) -> bytes:
        """Return the stream: a multiple of 4 bytes, none if nothing was put."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Mirrors an Encoder: the same rows in the same calls give the symbols back.

    data: what Encoder.finish returned. tables: equal to those of the encoder.
    Whatever `data` holds, each method returns or raises FormatError, and memory is bounded by len(data) and the rows.
    """

    def __init__(self, data: bytes, tables: Tables):
        if len(data) % 4:
            raise FormatError(f"stream has {len(data)} bytes, not a multiple of 4")
        self._tables = tables
        self._words = len(data) // 4
        self._bits = 0.0  # information in, and number of, the symbols decoded so far
        self._steps = 0
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        self._coder = _guarded(lambda: _queue.RangeDecoder(words))

    def get(self, rows: np.ndarray, tables: Tables | None = None, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the next symbols, int32 [n], given the row of each, uint16 [n], of `tables` (the decoder's own).

        counts as in `Encoder.put`.

        Raises FormatError if the stream cannot be what an Encoder wrote; TypeError or ValueError for bad rows.
        """
        tables = tables or self._tables
        _check_rows(rows, tables)
        order, groups = _group(rows, tables)
        ordered = np.empty(len(rows), np.int32)
        escaped = []
        for row, start, stop in groups:
            entries = self._decode(tables.model(row), stop - start)
            span = slice(tables.offsets[row], tables.offsets[row + 1])
            seen = np.bincount(entries, minlength=tables.size(row))
            if counts is not None:
                counts[span] += seen
            self._bits += float(seen @ tables.bits[span])
            np.add(entries, tables.minimums[row], out=ordered[start:stop])
            if seen[-1]:
                positions = np.flatnonzero(entries == tables.size(row) - 1)
                escaped.append((positions + start, np.full(len(positions), row)))
        self._steps += len(rows)
        self._check_underrun()
        if escaped:
            where, escaped_rows = (np.concatenate(parts) for parts in zip(*escaped, strict=True))
            ordered[where] = self._get_escapes(escaped_rows, tables)
        symbols = np.empty_like(ordered)
        symbols[order] = ordered
        return symbols

    def _get_escapes(self, rows: np.ndarray, tables: Tables) -> np.ndarray:
        classes = self._decode(_model.Uniform(1 << CLASS_BITS), len(rows))
        bits = (classes & 31).astype(np.int64)
        distances = np.int64(1) << bits
        for shift, has_part, sizes in _parts(bits):
            distances[has_part] += self._decode(_model.Uniform(), sizes).astype(np.int64) << shift
        self._bits += float(CLASS_BITS * len(rows) + bits.sum())
        self._steps += 3 * len(rows)
        self._check_underrun()
        first = tables.minimums[rows].astype(np.int64)
        last = first + np.diff(tables.offsets)[rows] - 2
        symbols = np.where(classes >= 32, first - distances, last + distances)
        if symbols.min() < -(2**31) or symbols.max() > 2**31 - 1:
            raise FormatError("stream is damaged: an escaped symbol does not fit into 32 bits")
        return symbols.astype(np.int32)

    def _decode(self, *arguments) -> np.ndarray:
        return _guarded(lambda: self._coder.decode(*arguments))

    def _check_underrun(self) -> None:
        # A sealed stream is at least as long as the information in it, so less means that decoding ran past the end.
        if 32 * self._words < self._bits - 1e-6 * (self._steps + 1) or (self._steps and not self._words):
            raise FormatError(f"stream has {4 * self._words} bytes, the symbols need {math.ceil(self._bits / 8)}")

    def finish(self) -> None:
        """Raise FormatError unless the symbols read so far are all the stream can hold."""
        most_bits = self._bits + self._steps * _LOSS_BITS_PER_STEP + _SEAL_BITS if self._steps else 0
        if 32 * self._words > most_bits or not _guarded(self._coder.maybe_exhausted):
            raise FormatError(f"stream of {4 * self._words} bytes is damaged, or goes on after its last symbol")


def ideal_bits(symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> float:
    """Return the information in symbols, int32 [n], under their rows, uint16 [n], in bits, escapes included."""
    _check_rows(rows, tables)
    _check_symbols(symbols, rows)
    order, groups = _group(rows, tables)
    ordered = symbols[order]
    total = 0.0
    for row, start, stop in groups:
        entries, escapes = _entries(ordered[start:stop], row, tables)
        total += float(tables.bits[tables.offsets[row] :][entries].sum())
        if escapes is not None:
            distance, _ = _distances(ordered[start:stop][escapes], row, tables)
            total += float((CLASS_BITS + _bit_lengths(distance) - 1).sum())
    return total


def _check_rows(rows: np.ndarray, tables: Tables) -> None:
    # A row or an amount that the coder does not expect can end the process: nothing reaches it unchecked.
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint16 or rows.ndim != 1:
        raise TypeError("rows must be a uint16 array [n]")
    if len(rows) and rows.max() >= tables.rows:
        raise ValueError(f"row {rows.max()} of tables with {tables.rows} rows")


def _check_symbols(symbols: np.ndarray, rows: np.ndarray) -> None:
    if not isinstance(symbols, np.ndarray) or symbols.dtype != np.int32 or symbols.ndim != 1:
        raise TypeError("symbols must be an int32 array [n]")
    if len(symbols) != len(rows):
        raise ValueError(f"{len(symbols)} symbols with {len(rows)} rows")


def _group(rows: np.ndarray, tables: Tables) -> tuple[np.ndarray, Iterator[tuple[int, int, int]]]:
    """Return the stable order that sorts by row, and (row, start, stop) of each row present in that order."""
    # Stable sorts of 8- and 16-bit integers are radix sorts; one byte takes one pass.
    order = np.argsort(rows.astype(np.uint8) if tables.rows <= 256 else rows, kind="stable")
    counts = np.bincount(rows, minlength=tables.rows)
    present = np.flatnonzero(counts)
    stops = np.cumsum(counts[present])
    starts = stops - counts[present]
    return order, zip(present.tolist(), starts.tolist(), stops.tolist(), strict=True)


def _entries(symbols: np.ndarray, row: int, tables: Tables) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the entries, uint32 [n], of symbols of one row, and the mask of those that are escapes (None: none)."""
    # Modulo 2**32 a symbol under the minimum becomes a large number, so one comparison finds both sides.
    entries = symbols.view(np.uint32) - tables.minimums[row : row + 1].view(np.uint32)
    escape = np.uint32(tables.size(row) - 1)
    if len(entries) == 0 or entries.max() < escape:
        return entries, None
    escapes = entries >= escape
    np.minimum(entries, escape, out=entries)
    return entries, escapes


def _distances(symbols: np.ndarray, row: int, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Return how far, int64 [n], >= 1, symbols lie outside the support of a row, and which lie below it, bool [n]."""
    first = int(tables.minimums[row])
    last = first + tables.size(row) - 2
    wide = symbols.astype(np.int64)
    below = wide < first
    return np.where(below, first - wide, wide - last), below


def _bit_lengths(values: np.ndarray) -> np.ndarray:
    """Return the bit length, int64 [n], of int64 values 1..2**32 - 1; exact, because frexp of such integers is."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


def _parts(bits: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (shift, which escapes have this part, number of its values int32) of the low, then of the high parts."""
    for shift in (0, _PART_BITS):
        has_part = bits > shift
        if has_part.any():
            yield shift, has_part, (1 << np.minimum(bits[has_part] - shift, _PART_BITS)).astype(np.int32)


def _guarded(call: Callable):
    """Return call(), with whatever the coder raises on damaged data as FormatError."""
    try:
        return call()
    except BaseException as error:  # its PanicException, which cannot be imported, is a BaseException
        known = isinstance(error, (AssertionError, KeyError, ValueError)) or type(error).__name__ == "PanicException"
        if not known:
            raise
        raise FormatError("stream is damaged: it holds no symbols of its tables") from error
