"""The alpha section of the container: one plane, lossless, a few bytes if constant.

The section has one of three forms, which differ in their first bytes: a constant (1 or 2 bytes, big-endian), a gray PNG
(8 or 16 bits), or a simple lossless WebP (8 bits, the plane in each of R, G, B). The encoder keeps the shortest. The
decoder reads size and depth from the header itself and calls a library only if they are the picture's: the section
cannot ask for more memory than the picture.

Source: PNG 3rd edition 11.2.1; WebP lossless bitstream (RFC 9649) 3.4.
"""

import io
import struct

import numpy as np

from latcodec.errors import FormatError
from latcodec.images.lossless import fits_webp, load_section, pack_pixels, webp_size

_PNG_HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


def pack_alpha(alpha: np.ndarray) -> bytes:
    """Return the section of an alpha plane, uint8 or uint16 [H, W], H and W >= 1.

    Raises:
        ValueError: The array has another shape or dtype.
    """
    if alpha.ndim != 2 or alpha.size == 0 or alpha.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"alpha must be uint8 or uint16 [H, W], not {alpha.dtype} {list(alpha.shape)}")
    first = int(alpha.flat[0])
    if (alpha == first).all():
        return first.to_bytes(alpha.itemsize, "big")
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(alpha)).save(file, "PNG", optimize=True)
    packed = [file.getvalue()]
    as_webp = pack_pixels(alpha[:, :, None].repeat(3, 2), quality=100) if fits_webp(alpha) else None
    packed += [as_webp] if as_webp is not None else []
    return min(packed, key=len)


def unpack_alpha(data: bytes, width: int, height: int, depth: int) -> np.ndarray:
    """Return the plane, uint8 (depth 8) or uint16 (depth 16) [height, width].

    Raises:
        FormatError: The section is damaged, truncated, or of another size or depth than the picture.
    """
    dtype = np.uint8 if depth == 8 else np.uint16
    if len(data) == depth // 8:
        return np.full((height, width), int.from_bytes(data, "big"), dtype)
    kind = "PNG" if data.startswith(_PNG_HEAD) else "WEBP"
    header = _png_header(data) if kind == "PNG" else _webp_header(data)
    if header != (width, height, depth):
        size = "{} x {} px of {} bits".format(*header)
        raise FormatError(f"alpha section: {size}, but the picture has {width} x {height} px of {depth} bits")
    plane = load_section(data, kind, (width, height), "alpha section")
    plane = np.array(plane[..., 1] if plane.ndim == 3 else plane, dtype)
    if plane.shape != (height, width):
        raise FormatError(f"alpha section: decoded to {list(plane.shape)}, not {[height, width]}")
    return plane


def _png_header(data: bytes) -> tuple[int, int, int]:
    if len(data) < 33:
        raise FormatError(f"alpha section: PNG header truncated at {len(data)} of 33 bytes")
    width, height, bits, colour, compression, filtering, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if (colour, compression, filtering, interlace) != (0, 0, 0, 0) or bits not in (8, 16):
        raise FormatError("alpha section: the PNG is not plain gray of 8 or 16 bits")
    return width, height, bits


def _webp_header(data: bytes) -> tuple[int, int, int]:
    if (size := webp_size(data)) is None:
        raise FormatError(f"alpha section: starts with {data[:16].hex()}: neither constant, gray PNG nor lossless WebP")
    return (*size, 8)
