"""Variational Bayesian Quantization of any array: means and standard deviations of its values -> bytes -> values.

The paper's model compression, with a real file. `compress` fits an empirical prior to the means, chooses code points by
-log q + lambda * bits with the true code length, iterated, and writes prior, table and symbols; `decompress` needs
nothing but the bytes. The values whose sigma is large get few bits.

Bytes: magic "VBQ1"; varint length of the head; the head, zlib; the range coder's words; CRC-32 of all before it. The
head: dtype and number of axes, one byte each; sizes, varints; centre and scale, float64; the quantile function, varint
differences; number of code points, then the difference of their places and their counts, varints.

Source: Yang, Bamler, Mandt 2020, "Variational Bayesian Quantization", sections 3.3 and 4.1.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

from latcodec.backends.vbq import quantiser as vbq
from latcodec.backends.vbq.codebooks import entropy_constrained, uniform_start
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import TOTAL, Tables
from latcodec.errors import FormatError, OptionError, WeightsError

MAGIC = b"VBQ1"
MAX_VALUES = 2**28
_DTYPES = ("float16", "float32", "float64")
_UNIT_BITS = 30  # places in the head are in units of 2**-30, the deepest code point
_TRIAL_VALUES = 20_000  # sets of code points are tried on so many
_LARGEST = 1e140  # of a value: squares have to be finite
_WEIGHTS = 1e-12, 1e20  # of an error of one standard deviation in bits: worth nothing, worth any number of bits
_REACH = 24.0
_ROUNDS = 12
_POINT_BITS = 14.0  # of an entry of the head's table, about
_FAR_BITS = 20.0  # of misfit, at which a value gets a point of its own
_DEPTHS = (5, 7, 9, 11)
_STEPS = (0.5, 1.0, 2.0, 4.0, 8.0)  # of a uniform grid, in sqrt(12 lambda) median sigmas


def compress(mean: np.ndarray, sigma: np.ndarray | float, lmbda: float) -> bytes:
    """Bytes of an array of means, any shape, float16, float32 or float64.

    sigma: the posterior's standard deviation of each value, > 0, any shape that broadcasts. lmbda > 0: the price of a
    bit; minimised is the sum of error^2 / (2 sigma^2) plus lmbda times the bits. Errors much below 1e-4 of the standard
    deviation of all means are out of reach, however small sigma is. Raises OptionError.
    """
    mean = np.asarray(mean)
    if mean.dtype.name not in _DTYPES:
        raise OptionError(f"mean: an array of {', '.join(_DTYPES)} is needed, not {mean.dtype}")
    if not np.all(np.abs(mean.astype(np.float64)) <= _LARGEST):
        raise OptionError(f"mean: values must be finite, within {_LARGEST:g}")
    try:
        sigma = np.broadcast_to(np.asarray(sigma, np.float64), mean.shape).ravel()
    except ValueError:
        raise OptionError(f"sigma {np.shape(sigma)} does not fit mean {mean.shape}") from None
    if not (np.all(sigma > 0) and np.all(np.isfinite(sigma)) and 0 < lmbda < math.inf):
        raise OptionError("sigma and lmbda must be positive and finite")
    flat = mean.ravel().astype(np.float64)
    centre, scale = (float(np.median(flat)), float(flat.std())) if flat.size else (0.0, 1.0)
    scale = scale or float(np.median(sigma))
    target = (flat - centre) / scale
    with np.errstate(over="ignore"):
        weight = np.clip((scale / sigma) ** 2 / 2 / lmbda, *_WEIGHTS)
    quantiles = vbq.Quantiles(
        _coarse(
            vbq.fit_quantiles(target, max(_REACH, 1.1 * np.abs(target).max()))
            if flat.size
            else np.arange(len(vbq.KNOTS))
        )[None]
    )
    pick = np.random.default_rng(0).permutation(flat.size)[:_TRIAL_VALUES]
    trials = [(_attempt(start, target[pick], weight[pick], quantiles, flat.size), start)
              for start in _starts(target[pick], weight[pick], quantiles)]  # fmt: skip
    start = min(trials, key=lambda trial: trial[0][3])[1]
    points, counts, symbols, _ = _attempt(start, target, weight, quantiles, flat.size)
    encoder = RangeEncoder(_tables(counts))
    if len(points) > 1:
        encoder.encode(symbols.astype(np.int32), np.zeros(len(symbols), np.uint16))
    head = zlib.compress(_head(mean, centre, scale, quantiles, points, counts), 9)
    body = MAGIC + _varints([len(head)]) + head + encoder.finish()
    return body + zlib.crc32(body).to_bytes(4, "little")


def decompress(data: bytes, max_values: int = MAX_VALUES) -> np.ndarray:
    """The array of code points' values that `compress` chose, with the shape and dtype of its means.

    Raises FormatError for anything but what compress wrote, or more than max_values values.
    """
    if not data.startswith(MAGIC):
        raise FormatError("field magic: these are not bytes of latcodec.backends.vbq.arrays")
    if len(data) < 9 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise FormatError("field checksum: the bytes are damaged")
    try:
        (size,), start = _read_varints(data, 4, 1)
        unpacker = zlib.decompressobj()
        head = unpacker.decompress(data[start : start + size], max(1 << 22, 16 * len(data)))
        kind, axes = head[0], head[1]
        shape, at = _read_varints(head, 2, axes)
        if math.prod(shape) > max_values:
            raise FormatError(f"field shape: {shape} is more than {max_values} values")
        centre, scale = struct.unpack_from("<dd", head, at)
        if not (math.isfinite(centre) and math.isfinite(scale)):
            raise FormatError("field head: its centre or scale is no number")
        steps, at = _read_varints(head, at + 16, len(vbq.KNOTS))
        (count,), at = _read_varints(head, at, 1)
        gaps, at = _read_varints(head, at, count)
        counts, at = _read_varints(head, at, count)
        if at != len(head) or not count or kind >= len(_DTYPES):
            raise FormatError("field head: it does not add up")
        quantiles = vbq.Quantiles(_rising(np.array(steps, np.int64))[None])
        places = np.cumsum(np.array(gaps, np.int64)) << (vbq.PLACE_BITS - _UNIT_BITS)
        sound = np.all(places > 0) and np.all(places < 1 << vbq.PLACE_BITS) and sum(counts) == math.prod(shape)
        if not sound or min(counts) < (math.prod(shape) > 0):
            raise FormatError("field head: its code points or counts are none")
        tables = _tables(np.array(counts, np.int64))
        stream = data[start + size : -4]
        if float(np.array(counts) @ tables.bits[:-1]) > 8 * len(stream) + 64:
            raise FormatError(f"field stream: {len(stream)} bytes cannot hold {math.prod(shape)} values")
        symbols = np.zeros(math.prod(shape), np.int32)
        decoder = RangeDecoder(stream, tables)
        if count > 1:
            symbols = decoder.decode(np.zeros(math.prod(shape), np.uint16))
        decoder.finish()
        if symbols.size and symbols.max() >= count:
            raise FormatError("field stream: a symbol is no code point")
        largest = float(np.finfo(_DTYPES[kind]).max)
        with np.errstate(over="ignore"):
            values = np.clip(quantiles.at(places) * (2.0**-vbq.VALUE_BITS * scale) + centre, -largest, largest)
        return values.astype(_DTYPES[kind])[symbols].reshape(shape)
    except (IndexError, ValueError, struct.error, zlib.error, OverflowError, MemoryError, WeightsError) as error:
        raise FormatError(f"field head: {error}") from None


def _coarse(row: np.ndarray) -> np.ndarray:
    """A quantile function that a head can hold in few bytes: values in units of 2**-6 standard deviations, rising."""
    steps = np.diff(row.astype(np.int64) >> (vbq.VALUE_BITS - 6), prepend=0)
    return _rising(np.concatenate([[_zigzag(int(row[0]) >> (vbq.VALUE_BITS - 6))], np.maximum(steps[1:], 0)]))


def _rising(steps: np.ndarray) -> np.ndarray:
    """The quantile function of a head: the first value, zigzag, and differences; one more unit of 2**-16 each."""
    first = (int(steps[0]) >> 1) ^ -(int(steps[0]) & 1)
    values = (np.cumsum(np.concatenate([[first], steps[1:]])) << (vbq.VALUE_BITS - 6)) + np.arange(len(steps))
    return np.clip(values, -(2**31) + 1, 2**31 - 1).astype(np.int32)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _starts(target: np.ndarray, weight: np.ndarray, quantiles: vbq.Quantiles):
    """Sets of points to begin with: all of some depths, and what entropy-constrained grids come to."""
    for depth in _DEPTHS:
        yield np.arange(1, 1 << depth, dtype=np.int32)
    if not len(target):
        return
    some, heavy = target.astype(np.float32), weight.astype(np.float32)
    typical = np.sqrt(6 / np.median(weight))
    for step in _STEPS:
        grid = uniform_start(step * typical, float(np.abs(some).max()) + 0.01, False)
        centres, counts, _ = entropy_constrained(some, heavy, grid, False)
        fixed = np.rint(centres[counts > 0] * 2**vbq.VALUE_BITS).astype(np.int64)
        gaps = np.maximum(np.diff(fixed, append=fixed[-1] + 2**12), 64) >> 4
        yield np.unique(quantiles.short_points(fixed, gaps))


def _attempt(points: np.ndarray, target: np.ndarray, weight: np.ndarray, quantiles: vbq.Quantiles, of: int):
    """(points by place, counts, symbols, price in bits): the true code length, iterated from bit lengths.

    The price is that of the values given, and of their share of a table for `of` values.
    """
    points = np.unique(np.concatenate([points, _outliers(points, target, weight, quantiles)]))
    points = points[np.argsort(vbq.places_of(points))]
    values = (quantiles.of(points) * 2.0**-vbq.VALUE_BITS).astype(np.float32)
    depth = vbq.pairs_of(points)[0]
    bits = depth.astype(np.float32)
    u, w = target.astype(np.float32), weight.astype(np.float32)
    price = np.inf
    for _ in range(_ROUNDS):
        symbols, least = _cheapest_by_depth(u, w, values, bits, depth)
        counts = np.bincount(symbols, minlength=len(points))
        kept = counts > 0
        before, price = price, float(least.sum(dtype=np.float64))
        if not kept.all():
            symbols = (np.cumsum(kept) - 1)[symbols]
            points, values, depth, counts = points[kept], values[kept], depth[kept], counts[kept]
        bits = (np.log2(max(1, len(u))) - np.log2(counts)).astype(np.float32)
        if before - price < 2e-4 * price:
            break
    if not len(points):
        points, counts = np.ones(1, np.int32), np.zeros(1, np.int64)
    misfit = float((w * (values[symbols] - u) ** 2).sum(dtype=np.float64)) if len(u) else 0.0
    spent = float(counts @ bits) if len(u) else 0.0
    return points, counts, symbols, misfit + spent + _POINT_BITS * len(points) * len(u) / max(1, of)


def _outliers(points: np.ndarray, target: np.ndarray, weight: np.ndarray, quantiles: vbq.Quantiles) -> np.ndarray:
    """Points for the values that none of `points` is near: those of Algorithm 1."""
    values = np.sort(quantiles.of(points)) * 2.0**-vbq.VALUE_BITS
    right = np.clip(np.searchsorted(values, target), 1, len(values) - 1) if len(values) > 1 else 0
    gap = np.minimum(np.abs(values[right] - target), np.abs(values[np.maximum(right - 1, 0)] - target))
    far = weight * gap**2 > _FAR_BITS
    return vbq.algorithm_1(target[far], (2 * weight[far]) ** -0.5, 1.0, quantiles)


def _cheapest_by_depth(u: np.ndarray, w: np.ndarray, values: np.ndarray, bits: np.ndarray, depth: np.ndarray):
    """The best of the two neighbours of u at every depth, as Algorithm 1 looks for them, by the price in bits."""
    index, least = np.zeros(len(u), np.int64), np.full(len(u), np.inf, np.float32)
    for n in np.unique(depth):
        members = np.flatnonzero(depth == n)
        right = np.searchsorted(values[members], u)
        for side in (right - 1, right):
            j = members[np.clip(side, 0, len(members) - 1)]
            price = bits[j] + w * (values[j] - u) ** 2
            better = price < least
            np.copyto(least, price, where=better)
            np.copyto(index, j, where=better)
    return index, least


def _tables(counts: np.ndarray) -> Tables:
    """One row: counts in integers scaled to the coder's total, the escape, never used, with the least weight."""
    total = max(1, int(counts.sum()))
    weights = np.array([1 + int(c) * (TOTAL - len(counts) - 1) // total for c in counts] + [1], np.int64)
    weights[int(weights.argmax())] += TOTAL - int(weights.sum())
    return Tables(weights, np.array([0, len(weights)]), np.array([0]))


def _head(mean: np.ndarray, centre: float, scale: float, quantiles: vbq.Quantiles, points: np.ndarray,
          counts: np.ndarray) -> bytes:  # fmt: skip
    row = (quantiles.values[0].astype(np.int64) - np.arange(len(vbq.KNOTS))) >> (vbq.VALUE_BITS - 6)
    steps = [_zigzag(int(row[0])), *np.diff(row).tolist()]
    places = vbq.places_of(points) >> (vbq.PLACE_BITS - _UNIT_BITS)
    numbers = [*steps, len(points), *np.diff(places, prepend=0).tolist(), *counts.tolist()]
    kind = bytes([_DTYPES.index(mean.dtype.name), mean.ndim])
    return kind + _varints(mean.shape) + struct.pack("<dd", centre, scale) + _varints(numbers)


def _varints(numbers) -> bytes:
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def _read_varints(data: bytes, at: int, count: int) -> tuple[list[int], int]:
    """`count` numbers from offset `at`, and the offset behind them."""
    numbers = []
    for _ in range(count):
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
            if shift > 56:
                raise FormatError("field head: a number is too long")
        numbers.append(number)
    return numbers, at
