"""What encoder and decoder of the PLN codec agree on: integers of both levels, and how they follow from a file.

Fixed point: as in `pln.py`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from latcodec.backends.pln import coded_sampling, samplers
from latcodec.backends.pln import parity as pln_parity
from latcodec.backends.pln import wire as pln_wire
from latcodec.backends.pln.entropy_model import VALUE_BITS, Model, to_value
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder
from latcodec.nn.geometry import HYPER_STRIDE

MOST_DIMENSIONS = 2**22  # that share a plan, for the memory large pictures take; part of the format


@dataclass(frozen=True)
class Integers:
    """What encoder and decoder agree on: z2 int64 [Z, h', w']; rows uint8, means and values int32 [C, h, w] of z1.

    z1 is (means + values) * 2**-VALUE_BITS standard deviations of its evidence.
    """

    z2: np.ndarray
    rows: np.ndarray
    means: np.ndarray
    values: np.ndarray

    def crc(self) -> int:
        """CRC-32 of all of them."""
        crc = 0
        for array, kind in ((self.z2, "<i4"), (self.rows, "u1"), (self.means, "<i4"), (self.values, "<i4")):
            crc = zlib.crc32(np.ascontiguousarray(array, kind), crc)
        return crc


def bands(shape: tuple[int, ...]) -> list[slice]:
    """Rows of z1 [C, h, w] that share a plan: all of a picture up to some 5 megapixels."""
    step = max(1, MOST_DIMENSIONS // (shape[0] * shape[2]))
    return [slice(top, min(shape[1], top + step)) for top in range(0, shape[1], step)]


def decode_integers(model: Model, payload: Payload, shape: tuple[int, int], tolerant: bool = False) -> Integers:
    """The integers of a file; shape is (h, w) of z1. Raises FormatError.

    If `tolerant`, wrong bytes of z2's indices are put right by their parity; should there be too many, nothing is known
    of where z1's belong, and z1 keeps the means that what is left of z2 gives.
    """
    layout, index, kappa = pln_wire.unpack_parameters(payload), payload.rate_index, payload.parameters[1]
    z2_shape = (model.rates.z2_mean.shape[1], *(-(-length // HYPER_STRIDE) for length in shape))
    size, cells = int(np.prod(z2_shape)), z2_shape[1] * z2_shape[2]
    plan = model.blocks_of_z2(index, cells, kappa)
    length = -(-len(plan.counts) * kappa // 8)
    start = length + pln_parity.count(length)
    head, check, rest = (payload.streams[1][a:b] for a, b in ((0, length), (length, start), (start, None)))
    sound = True
    if tolerant and len(check) == start - length:
        head, sound = pln_parity.corrected(head, check)
    decoder = RangeDecoder(payload.streams[0], model.tables)
    jumps = decoder.decode(model.jumps_of_z2(index, cells)).reshape(z2_shape)
    samples = coded_sampling.sample(plan, pln_wire.unpack_indices(head, kappa, len(plan.counts)), size)
    z2 = model.z2_of(index, samples.reshape(z2_shape), jumps)
    means, rows = model.prior_of_z1(z2, index, shape)
    values = np.zeros(rows.shape, np.int32)
    plans = [samplers.plan(layout, model.classes.bits[rows[:, band].ravel()]) for band in bands(rows.shape)]
    due = sum(len(plan.counts) for plan in plans) * layout.shards
    if not sound or (tolerant and -(-due * kappa // 8) != len(rest)):
        return Integers(z2, rows, means, values)
    indices, start = pln_wire.unpack_indices(rest, kappa, due), 0
    jumps = decoder.decode(model.jumps_of_z1(index, rows)).reshape(rows.shape)
    for band, plan in zip(bands(rows.shape), plans, strict=True):
        some = rows[:, band]
        flat, stop = some.ravel(), start + len(plan.counts) * layout.shards
        mine = indices[start:stop]
        if layout.sampler == "rejection":
            mine = decoder.decode(model.index_row[flat[model.classes.bits[flat] > 0]]).astype(np.int64)
        samples = samplers.sample(layout, model.classes, plan, flat, mine).reshape(some.shape)
        values[:, band] = to_value(samples, model.row_scale[some], jumps[:, band], model.row_step[some], VALUE_BITS)
        start = stop
    decoder.finish()
    return Integers(z2, rows, means, values)
