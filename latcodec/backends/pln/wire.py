"""Bytes of the PLN codec: its parameters section and its indices. Standard library and NumPy; every number checked."""

import numpy as np

from latcodec.backends.pln.samplers import SAMPLERS, Layout, exists
from latcodec.container import Payload
from latcodec.errors import FormatError

_BYTES = 3


def pack_parameters(layout: Layout) -> bytes:
    """The parameters section: number of the sampler, kappa, shards, a byte each."""
    return bytes((SAMPLERS.index(layout.sampler), layout.kappa, layout.shards))


def unpack_parameters(payload: Payload) -> Layout:
    """The layout of the indices; raises FormatError unless the sections are those of this codec."""
    data, streams = payload.parameters, payload.streams
    if len(streams) != 2 or data is None:
        raise FormatError(
            f"field sections: {len(streams)} streams and {'no' if data is None else 'a'} parameters section; "
            f"the pln codec has 2 streams and one"
        )
    if len(data) != _BYTES:
        raise FormatError(f"field parameters: {len(data)} bytes, the pln codec has {_BYTES}")
    sampler, kappa, shards = data
    if sampler >= len(SAMPLERS) or not exists(SAMPLERS[sampler], kappa, shards):
        raise FormatError(f"field parameters: sampler {sampler}, kappa {kappa}, shards {shards}: no such thing")
    return Layout(SAMPLERS[sampler], kappa, shards)


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
