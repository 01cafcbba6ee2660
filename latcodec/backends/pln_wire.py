"""Bytes of the PLN codec: its parameters section and its indices. Standard library and NumPy; every number checked."""

import zlib

import numpy as np

from latcodec.container import Payload
from latcodec.errors import FormatError
from latcodec.latents.samplers import KAPPAS, MAX_SHARDS, SAMPLERS, Layout

_HEAD_BYTES, _CHECK_BYTES = 4, 4


def pack_parameters(layout: Layout, blocks: np.ndarray, checks: list[int]) -> bytes:
    """The parameters section without its own check; blocks int64 [regions]: indices of each; checks: 16 bits each."""
    out = bytearray((SAMPLERS.index(layout.sampler), layout.kappa, layout.shards, layout.side))
    for number, crc in zip(blocks.tolist(), checks, strict=True):
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
        out += crc.to_bytes(2, "little")
    return bytes(out)


def seal(parameters: bytes, jumps: bytes, rate_index: int) -> bytes:
    """Parameters with the CRC-32 of what they, the rate and stream 0 are: all that damage must not touch."""
    crc = zlib.crc32(bytes((rate_index,)) + parameters + jumps)
    return parameters + crc.to_bytes(_CHECK_BYTES, "little")


def unpack_parameters(payload: Payload) -> tuple[Layout, bytes]:
    """The layout and the bytes of the regions; raises FormatError."""
    if len(payload.streams) != 2 or payload.parameters is None:
        raise FormatError(
            f"field sections: {len(payload.streams)} streams and "
            f"{'no' if payload.parameters is None else 'a'} parameters section; the pln codec has 2 streams and one"
        )
    data = payload.parameters
    if len(data) < _HEAD_BYTES + _CHECK_BYTES:
        raise FormatError(f"field parameters: {len(data)} bytes, at least {_HEAD_BYTES + _CHECK_BYTES} are needed")
    if seal(data[:-_CHECK_BYTES], payload.streams[0], payload.rate_index) != data:
        raise FormatError("field parameters: their check does not fit: the protected part of the file is damaged")
    sampler, kappa, shards, side = data[:_HEAD_BYTES]
    if sampler >= len(SAMPLERS) or kappa not in KAPPAS or not 1 <= shards <= MAX_SHARDS or not side:
        raise FormatError(f"field parameters: sampler {sampler}, kappa {kappa}, shards {shards}, side {side}")
    return Layout(SAMPLERS[sampler], kappa, shards, side), data[_HEAD_BYTES:-_CHECK_BYTES]


def unpack_regions(data: bytes, regions: int) -> tuple[np.ndarray, list[int]]:
    """Indices int64 [regions] and check of each region; raises FormatError unless `data` holds just so many."""
    if not 3 * regions <= len(data) <= 7 * regions:
        raise FormatError(f"field parameters: {len(data)} bytes do not describe {regions} regions")
    blocks, checks, at = np.zeros(regions, np.int64), [], 0
    for region in range(regions):
        number = shift = 0
        while at < len(data) and shift < 35:
            number |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                break
        if at + 2 > len(data) or data[at - 1] >= 0x80:
            raise FormatError(f"field parameters: the head of region {region} is not one")
        blocks[region] = number
        checks.append(data[at] | data[at + 1] << 8)
        at += 2
    if at != len(data):
        raise FormatError(f"field parameters: {len(data) - at} bytes too many for {regions} regions")
    return blocks, checks


def pack_indices(indices: np.ndarray, kappa: int) -> bytes:
    """Indices int64 [n] as kappa bits each, the highest first, the last byte filled with zeros."""
    bits = (indices[:, None] >> np.arange(kappa - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def unpack_indices(data: bytes, kappa: int, count: int) -> np.ndarray:
    """Mirror of `pack_indices`: int64 [count]; raises FormatError unless data holds just so many."""
    if len(data) != -(-count * kappa // 8):
        raise FormatError(f"field stream 1: {len(data)} bytes, {count} indices of {kappa} bits need another length")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * kappa).reshape(count, kappa)
    return bits.astype(np.int64) @ (1 << np.arange(kappa - 1, -1, -1, dtype=np.int64))
