"""Pictures that cost less without loss than with: type, screenshots, drawings.

A codec of photographs describes an edge anew wherever it meets one; a dictionary has met it before. So where the price
of a lossless WebP, lambda times its bits, is below bits and errors of everything learned, the file holds that instead,
and `PARAMETERS` say so. The integers of such a file are the samples of the picture; it needs no weights.

The stream is the WebP and then zeros up to one byte for PIXELS_A_BYTE pixels: so the length of a file, as with other
streams, bounds how large a picture it can ask for.
"""

from __future__ import annotations

import zlib

import numpy as np

from latcodec.backends.common.checks import check_stream_length, decode_checked
from latcodec.backends.hyperprior_context.wire import LOSSLESS_PARAMETERS
from latcodec.container import Payload
from latcodec.errors import DriftError, FormatError
from latcodec.images.lossless import pack_pixels, unpack_pixels

PARAMETERS = LOSSLESS_PARAMETERS
PIXELS_A_BYTE = 4096
QUICK, THOROUGH = 75, 100  # of libwebp: the second saves 1 to 3 % more, in two to three times the time


def pack(image: np.ndarray, effort: int, verify: bool) -> bytes | None:
    """The stream of a picture, uint8 [H, W, 3]; None for one that it cannot hold: 16 bits, or a side over 16,383 px.

    effort: more than 0 takes longer. verify: decode it again (law 5). Raises DriftError if that gives another picture.
    """
    streams = [pack_pixels(image, quality) for quality in ((QUICK, THOROUGH) if effort else (QUICK,))]
    if None in streams:
        return None
    height, width = image.shape[:2]
    stream = min(streams, key=len).ljust(-(-width * height // PIXELS_A_BYTE), b"\0")
    if verify:
        try:
            same = np.array_equal(unpack_pixels(stream, width, height), image)
        except FormatError:
            same = False
        if not same:
            raise DriftError("the lossless stream just written does not decode to the same picture on this machine")
    return stream


def unpack(payload: Payload) -> np.ndarray:
    """The picture of a file whose parameters are PARAMETERS, uint8 [H, W, 3].

    Raises FormatError for a damaged stream or one of another kind of picture, DriftError if it is another picture.
    """
    if payload.depth != 8:
        raise FormatError(f"field flags: {payload.depth} bits, but the stream without loss has 8")
    check_stream_length(payload, 8 * payload.width * payload.height / PIXELS_A_BYTE)
    pixels = unpack_pixels(payload.streams[0], payload.width, payload.height)
    decode_checked(lambda: pixels, payload, crc)
    if payload.gray and (pixels != pixels[..., :1]).any():
        raise FormatError("field flags: gray, but the stream is of a picture with colours")
    return pixels


def crc(image: np.ndarray) -> int:
    """CRC-32 of the samples, row by row."""
    return zlib.crc32(np.ascontiguousarray(image))
