"""What a decoder checks of a file beside its container: sections, stream length, CRC of the decoded integers."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from latcodec.container import Payload
from latcodec.errors import DriftError, FormatError

Integers = TypeVar("Integers")
_SLACK_BITS = 64  # of the range coder's state, which a stream may lack beside the least bits of its symbols


def crc_of(*arrays: np.ndarray) -> int:
    """Return the CRC-32 of integers, little-endian, one array after another.

    Table indices (uint16) are hashed as such, everything else as int32.
    """
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array, "<u2" if array.dtype == np.uint16 else "<i4"), crc)
    return crc


def check_single_stream(payload: Payload, codec: str, parameters: bool = False) -> None:
    """Check that a file has the one stream that most codecs write.

    Args:
        payload: the file.
        codec: name of the codec, for the message.
        parameters: whether the codec's files may have parameters.

    Raises:
        FormatError: the file has another number of streams, or parameters where the codec has none.
    """
    if len(payload.streams) != 1 or (payload.parameters is not None and not parameters):
        raise FormatError(
            f"field sections: {len(payload.streams)} streams, the {codec} codec has exactly 1 and no more"
        )


def check_stream_length(payload: Payload, least_bits: float, stream: int = 0) -> None:
    """Check that a stream is long enough for the picture, before anything of the picture's size is allocated.

    Args:
        payload: the file.
        least_bits: bits that the symbols of the picture cost at least.
        stream: number of the stream in the file.

    Raises:
        FormatError: the stream is too short.
    """
    length_bytes = len(payload.streams[stream])
    if least_bits > 8 * length_bytes + _SLACK_BITS:
        raise FormatError(f"field stream: {length_bytes} bytes cannot hold {payload.width} x {payload.height} pixels")


def decode_checked(decode: Callable[[], Integers], payload: Payload, crc: Callable[[Integers], int]) -> Integers:
    """Decode the integers of a file and compare their CRC with the encoder's.

    Args:
        decode: decodes the integers.
        payload: the file.
        crc: computes the CRC of what `decode` returns.

    Returns:
        What `decode` returns.

    Raises:
        DriftError: the integers differ. The file's own checksum was right, so this platform computes something else.
    """
    try:
        integers = decode()
    except FormatError as error:
        raise DriftError(f"the stream does not decode with these weights on this machine: {error}") from None
    if crc(integers) != payload.integers_crc:
        raise DriftError(
            "field integers CRC: the decoded integers differ from the encoder's, although file and weights are right: "
            "this platform computes something else; please report it with the output of `latcodec info`"
        )
    return integers
