"""Range coding of int32 symbols, each with the index of its probability table.

The stream consists of the 32-bit words of a range coder, stored little-endian. Successive calls of
`RangeEncoder.encode` append to it. One call codes

1. the symbols stably sorted by table index, each as its entry in its table (one call of the coder per table);
2. for the escaped symbols, in the same order, all classes: 32 * (below the support) + (bit length of m) - 1, where
   m >= 1 is the distance to the nearest symbol of the support; each class is uniform over 64 values;
3. for those with m > 1, all low parts: the lowest min(b, 16) of the b bits of m under its leading one, uniform;
4. for those with b > 16, all high parts: the b - 16 bits above, uniform.

So every table can code every int32. The range coder itself detects almost no damage. `RangeDecoder` turns the failures
of the coder into FormatError and compares the length of the data with the information in the decoded symbols; the
checksums of the container detect what passes both.

Source: constriction (Bamler 2022, "Understanding entropy coding with asymmetric numeral systems (ANS): a statistician's
perspective", arXiv:2201.01741), range coder over 32-bit words with 64 bits of state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import constriction
import numpy as np

from latcodec.entropy.tables import CLASS_BITS, Tables
from latcodec.errors import FormatError

_PART_BITS = 16  # The distance of an escaped symbol is coded in parts of at most this many bits.
# The coder divides its range, at least 2**32, by 2**24 and drops the remainder: at worst log2(257 / 256) bits a symbol.
_LOSS_BITS_PER_STEP = math.log2(257 / 256)
_SEAL_BITS = 96  # Sealing the stream adds at most this many bits, in whole words.

_model = constriction.stream.model
_queue = constriction.stream.queue


class RangeEncoder:
    """Codes symbols into one stream.

    Args:
        tables: The tables that `encode` uses unless it receives others.

    Attributes:
        bits: Information in the symbols coded so far, escapes included.
    """

    def __init__(self, tables: Tables):
        self._tables = tables
        self._coder = _queue.RangeEncoder()
        self.bits = 0.0

    def encode(
        self,
        symbols: np.ndarray,
        table_index: np.ndarray,
        tables: Tables | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        """Append symbols to the stream.

        Args:
            symbols: int32 [n], any values; n may be 0.
            table_index: uint16 [n], the table of each symbol.
            tables: Tables to use for this call instead of the encoder's own.
            counts: int64 [entries] or None; each element grows by how often that entry of the tables was coded.

        Raises:
            TypeError: If an array has another dtype or number of axes.
            ValueError: If the lengths differ or a table index is out of range.
        """
        tables, coder = tables or self._tables, self._coder
        _check_table_index(table_index, tables)
        _check_symbols(symbols, table_index)
        order, groups = _group_by_table(table_index, tables)
        ordered = symbols[order]
        distances, below = [], []
        for index, start, stop in groups:
            entries, escapes = _entries(ordered[start:stop], index, tables)
            coder.encode(entries.view(np.int32), tables.coder_model(index))
            self.bits += float(tables.bits[tables.offsets[index] :][entries].sum())
            if counts is not None:
                coded = np.bincount(entries, minlength=tables.size(index))
                counts[tables.offsets[index] : tables.offsets[index + 1]] += coded
            if escapes is not None:
                distance, is_below = _distances(ordered[start:stop][escapes], index, tables)
                distances.append(distance)
                below.append(is_below)
        if distances:
            self._encode_escapes(np.concatenate(distances), np.concatenate(below))

    def _encode_escapes(self, distances: np.ndarray, below: np.ndarray) -> None:
        bits = _bit_lengths(distances) - 1
        rest = distances - (np.int64(1) << bits)
        self.bits += float((CLASS_BITS + bits).sum())
        self._coder.encode((32 * below + bits).astype(np.int32), _model.Uniform(1 << CLASS_BITS))
        for shift, has_part, sizes in _parts(bits):
            part = (rest[has_part] >> shift) & (sizes - 1)
            self._coder.encode(part.astype(np.int32), _model.Uniform(), sizes)

    def finish(self) -> bytes:
        """Return the stream: a multiple of 4 bytes, empty if nothing was coded."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class RangeDecoder:
    """Decodes a stream: the table indices of the encoder's calls, in the same calls, return its symbols.

    Whatever the data holds, each method returns or raises FormatError, and the memory it takes is bounded by the sizes
    of the data and of the table indices.

    Args:
        data: What `RangeEncoder.finish` returned.
        tables: Tables equal to those of the encoder.

    Raises:
        FormatError: If the length of the data is not a multiple of 4.
    """

    def __init__(self, data: bytes, tables: Tables):
        if len(data) % 4:
            raise FormatError(f"stream has {len(data)} bytes, not a multiple of 4")
        self._tables = tables
        self._num_words = len(data) // 4
        self._bits = 0.0  # information in the symbols decoded so far
        self._num_steps = 0  # decoded symbols and parts of escaped symbols
        words = np.frombuffer(data, dtype="<u4").astype(np.uint32)
        self._coder = _as_format_error(lambda: _queue.RangeDecoder(words))

    def decode(
        self, table_index: np.ndarray, tables: Tables | None = None, counts: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the next symbols of the stream.

        Args:
            table_index: uint16 [n], the table of each symbol.
            tables: Tables to use for this call instead of the decoder's own.
            counts: As in `RangeEncoder.encode`.

        Returns:
            The symbols, int32 [n].

        Raises:
            FormatError: If no RangeEncoder can have written the stream.
            TypeError: If `table_index` has another dtype or number of axes.
            ValueError: If a table index is out of range.
        """
        tables = tables or self._tables
        _check_table_index(table_index, tables)
        order, groups = _group_by_table(table_index, tables)
        ordered = np.empty(len(table_index), np.int32)
        escaped = []
        for index, start, stop in groups:
            entries = self._decode(tables.coder_model(index), stop - start)
            span = slice(tables.offsets[index], tables.offsets[index + 1])
            decoded = np.bincount(entries, minlength=tables.size(index))
            if counts is not None:
                counts[span] += decoded
            self._bits += float(decoded @ tables.bits[span])
            np.add(entries, tables.minimums[index], out=ordered[start:stop])
            if decoded[-1]:
                positions = np.flatnonzero(entries == tables.size(index) - 1)
                escaped.append((positions + start, np.full(len(positions), index)))
        self._num_steps += len(table_index)
        self._check_underrun()
        if escaped:
            positions, escaped_index = (np.concatenate(parts) for parts in zip(*escaped, strict=True))
            ordered[positions] = self._decode_escapes(escaped_index, tables)
        symbols = np.empty_like(ordered)
        symbols[order] = ordered
        return symbols

    def _decode_escapes(self, table_index: np.ndarray, tables: Tables) -> np.ndarray:
        classes = self._decode(_model.Uniform(1 << CLASS_BITS), len(table_index))
        bits = (classes & 31).astype(np.int64)
        distances = np.int64(1) << bits
        for shift, has_part, sizes in _parts(bits):
            distances[has_part] += self._decode(_model.Uniform(), sizes).astype(np.int64) << shift
        self._bits += float(CLASS_BITS * len(table_index) + bits.sum())
        self._num_steps += 3 * len(table_index)
        self._check_underrun()
        first = tables.minimums[table_index].astype(np.int64)
        last = first + np.diff(tables.offsets)[table_index] - 2
        symbols = np.where(classes >= 32, first - distances, last + distances)
        if symbols.min() < -(2**31) or symbols.max() > 2**31 - 1:
            raise FormatError("stream is damaged: an escaped symbol does not fit into 32 bits")
        return symbols.astype(np.int32)

    def _decode(self, *arguments) -> np.ndarray:
        return _as_format_error(lambda: self._coder.decode(*arguments))

    def _check_underrun(self) -> None:
        # A sealed stream is at least as long as the information in it; a shorter one was decoded beyond its end.
        tolerance_bits = 1e-6 * (self._num_steps + 1)
        if 32 * self._num_words < self._bits - tolerance_bits or (self._num_steps and not self._num_words):
            raise FormatError(f"stream has {4 * self._num_words} bytes, the symbols need {math.ceil(self._bits / 8)}")

    def finish(self) -> None:
        """Check that the symbols decoded so far are all that the stream holds.

        Raises:
            FormatError: If the stream is longer than its symbols can be, or does not end where they do.
        """
        most_bits = self._bits + self._num_steps * _LOSS_BITS_PER_STEP + _SEAL_BITS if self._num_steps else 0
        if 32 * self._num_words > most_bits or not _as_format_error(self._coder.maybe_exhausted):
            raise FormatError(f"stream of {4 * self._num_words} bytes is damaged, or goes on after its last symbol")


def ideal_bits(symbols: np.ndarray, table_index: np.ndarray, tables: Tables) -> float:
    """Return the information in symbols under their tables, in bits, escapes included.

    Args:
        symbols: int32 [n].
        table_index: uint16 [n], the table of each symbol.
        tables: The tables.
    """
    _check_table_index(table_index, tables)
    _check_symbols(symbols, table_index)
    order, groups = _group_by_table(table_index, tables)
    ordered = symbols[order]
    total = 0.0
    for index, start, stop in groups:
        entries, escapes = _entries(ordered[start:stop], index, tables)
        total += float(tables.bits[tables.offsets[index] :][entries].sum())
        if escapes is not None:
            distance, _ = _distances(ordered[start:stop][escapes], index, tables)
            total += float((CLASS_BITS + _bit_lengths(distance) - 1).sum())
    return total


def _check_table_index(table_index: np.ndarray, tables: Tables) -> None:
    # An index or a number of symbols that the coder does not expect can end the process, so everything is checked.
    if not isinstance(table_index, np.ndarray) or table_index.dtype != np.uint16 or table_index.ndim != 1:
        raise TypeError("table_index must be a uint16 array [n]")
    if len(table_index) and table_index.max() >= tables.num_tables:
        raise ValueError(f"table index {table_index.max()} of {tables.num_tables} tables")


def _check_symbols(symbols: np.ndarray, table_index: np.ndarray) -> None:
    if not isinstance(symbols, np.ndarray) or symbols.dtype != np.int32 or symbols.ndim != 1:
        raise TypeError("symbols must be an int32 array [n]")
    if len(symbols) != len(table_index):
        raise ValueError(f"{len(symbols)} symbols with {len(table_index)} table indices")


def _group_by_table(table_index: np.ndarray, tables: Tables) -> tuple[np.ndarray, Iterator[tuple[int, int, int]]]:
    """Return the stable order that sorts by table, and (index, start, stop) of each table present in that order."""
    # Stable sorts of 8- and 16-bit integers are radix sorts; one byte takes one pass.
    order = np.argsort(table_index.astype(np.uint8) if tables.num_tables <= 256 else table_index, kind="stable")
    counts = np.bincount(table_index, minlength=tables.num_tables)
    present = np.flatnonzero(counts)
    stops = np.cumsum(counts[present])
    starts = stops - counts[present]
    return order, zip(present.tolist(), starts.tolist(), stops.tolist(), strict=True)


def _entries(symbols: np.ndarray, table_index: int, tables: Tables) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the entries, uint32 [n], of symbols of one table, and the mask of the escaped ones (None without any)."""
    # Modulo 2**32 a symbol under the minimum becomes a large number, so one comparison detects both sides.
    entries = symbols.view(np.uint32) - tables.minimums[table_index : table_index + 1].view(np.uint32)
    escape = np.uint32(tables.size(table_index) - 1)
    if len(entries) == 0 or entries.max() < escape:
        return entries, None
    escapes = entries >= escape
    np.minimum(entries, escape, out=entries)
    return entries, escapes


def _distances(symbols: np.ndarray, table_index: int, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of symbols from a table's support, int64 [n] >= 1, and which lie below it, bool [n]."""
    first = int(tables.minimums[table_index])
    last = first + tables.size(table_index) - 2
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


def _as_format_error(call: Callable):
    """Return call(), and raise whatever the coder raises on damaged data as FormatError."""
    try:
        return call()
    except BaseException as error:  # its PanicException, which cannot be imported, is a BaseException
        known = isinstance(error, (AssertionError, KeyError, ValueError)) or type(error).__name__ == "PanicException"
        if not known:
            raise
        raise FormatError("stream is damaged: it holds no symbols of its tables") from error
