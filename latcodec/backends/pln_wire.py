"""Bytes of the PLN codec: its parameters section and its indices. Standard library and NumPy; every number checked."""

import zlib

import numpy as np

from latcodec.container import Payload
from latcodec.errors import FormatError
from latcodec.latents.samplers import KAPPAS, MAX_SHARDS, SAMPLERS, Layout

_HEAD_BYTES, _CHECK_BYTES = 3, 4


def pack_parameters(layout: Layout, rate_index: int, jumps: bytes) -> bytes:
    """The parameters section; its CRC-32 is of the rate, the layout and stream 0, all that damage must not touch."""
    head = bytes((SAMPLERS.index(layout.sampler), layout.kappa, layout.shards))
    crc = zlib.crc32(bytes((rate_index,)) + head + jumps)
    return head + crc.to_bytes(_CHECK_BYTES, "little")


def unpack_parameters(payload: Payload) -> Layout:
    """The layout of the indices; raises FormatError unless the sections are those of this codec."""
    data, streams = payload.parameters, payload.streams
    if len(streams) != 2 or data is None:
        raise FormatError(
            f"field sections: {len(streams)} streams and {'no' if data is None else 'a'} parameters section; "
            f"the pln codec has 2 streams and one"
        )
    if len(data) != _HEAD_BYTES + _CHECK_BYTES:
        raise FormatError(f"field parameters: {len(data)} bytes, the pln codec has {_HEAD_BYTES + _CHECK_BYTES}")
    sampler, kappa, shards = data[:_HEAD_BYTES]
    if sampler >= len(SAMPLERS) or kappa not in KAPPAS or not 1 <= shards <= MAX_SHARDS:
        raise FormatError(f"field parameters: sampler {sampler}, kappa {kappa}, shards {shards}: no such thing")
    layout = Layout(SAMPLERS[sampler], kappa, shards)
    if pack_parameters(layout, payload.rate_index, streams[0]) != data:
        raise FormatError("field parameters: their check does not fit: rate, parameters or stream 0 are damaged")
    return layout


def pack_indices(indices: np.ndarray, kappa: int) -> bytes:
    """Indices int64 [n] as kappa bits each, the highest first, the last byte filled with zeros."""
    bits = (indices[:, None] >> np.arange(kappa - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_indices(data: bytes, kappa: int, count: int) -> np.ndarray:
    """Mirror of `pack_indices`: int64 [count]; raises FormatError unless data holds just so many."""
    if len(data) != -(-count * kappa // 8):
        raise FormatError(f"{len(data)} bytes of indices, but {count} of {kappa} bits are due")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * kappa).reshape(count, kappa)
    return bits.astype(np.int64) @ (1 << np.arange(kappa - 1, -1, -1, dtype=np.int64))
