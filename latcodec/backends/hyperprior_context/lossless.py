"""Pictures that cost less without loss than with it: type, screenshots, drawings.

A codec of photographs describes an edge anew wherever it occurs; a dictionary refers to the first one. Where a lossless
WebP costs less than everything learned, bits and errors together, the file holds that instead, and its parameters are
`wire.LOSSLESS_PARAMETERS`. The integers of such a file are the samples of the picture, and it needs no weights.

The stream is the WebP, padded with zeros to one byte per PIXELS_PER_BYTE pixels: so the length of a file bounds how
large a picture it can ask for, as with other streams.
"""

from __future__ import annotations

import zlib

import numpy as np

from latcodec.backends.common.checks import check_stream_length, decode_checked
from latcodec.container import Payload
from latcodec.errors import DriftError, FormatError
from latcodec.images.lossless import pack_pixels, unpack_pixels

PIXELS_PER_BYTE = 4096
QUICK, THOROUGH = 75, 100  # qualities of libwebp: the second saves 1 to 3 % more, in two to three times the time


def pack(image: np.ndarray, effort: int, verify: bool) -> bytes | None:
    """Return the stream of a picture.

    Args:
        image: uint8 [H, W, 3].
        effort: More than 0 also tries THOROUGH.
        verify: Whether to decode the stream again (law 5).

    Returns:
        None for a picture that no stream can hold: one of 16 bits, or with a side over 16,383 px.

    Raises:
        DriftError: The stream decodes to another picture.
    """
    streams = [pack_pixels(image, quality) for quality in ((QUICK, THOROUGH) if effort else (QUICK,))]
    if None in streams:
        return None
    height, width = image.shape[:2]
    stream = min(streams, key=len).ljust(-(-width * height // PIXELS_PER_BYTE), b"\0")
    if verify and not _decodes_to(stream, image):
        raise DriftError("the lossless stream just written does not decode to the same picture on this machine")
    return stream


def _decodes_to(stream: bytes, image: np.ndarray) -> bool:
    try:
        return np.array_equal(unpack_pixels(stream, image.shape[1], image.shape[0]), image)
    except FormatError:
        return False


def unpack(payload: Payload) -> np.ndarray:
    """Return the picture of a lossless file, uint8 [H, W, 3].

    Raises:
        FormatError: The stream is damaged, or of another kind of picture.
        DriftError: It decodes to another picture.
    """
    if payload.depth != 8:
        raise FormatError(f"field flags: {payload.depth} bits, but the lossless stream has 8")
    check_stream_length(payload, 8 * payload.width * payload.height / PIXELS_PER_BYTE)
    pixels = unpack_pixels(payload.streams[0], payload.width, payload.height)
    decode_checked(lambda: pixels, payload, crc)
    if payload.gray and (pixels != pixels[..., :1]).any():
        raise FormatError("field flags: gray, but the stream is of a picture with colours")
    return pixels


def crc(image: np.ndarray) -> int:
    """Return the CRC-32 of the samples, row by row."""
    return zlib.crc32(np.ascontiguousarray(image))
