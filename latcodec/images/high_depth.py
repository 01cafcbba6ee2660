"""Picture files that Pillow cannot hold at full depth: 16-bit PNG with colour or alpha, 16-bit TIFF and PPM.

Pillow 13 has no 16-bit colour mode: it opens these files and keeps the high byte of each sample without a warning.
imagecodecs (libpng) and tifffile read all bits; both are imported only for such a file. TIFF is written here because
Pillow can neither write 16-bit colour nor copy EXIF byte for byte.

Source: PNG 3rd edition (W3C) 11.2-11.3; TIFF 6.0 sections 3, 14, 18; Netpbm ppm(5), pgm(5).
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from latcodec.errors import ImageError
from latcodec.images.metadata import (
    DESCRIPTIVE,
    ICC,
    ORIENTATION,
    XMP,
    ByteOrder,
    Directory,
    byte_order,
    integers,
    read_directory,
    write_directory,
)

if TYPE_CHECKING:
    import tifffile

PNG_LEVEL_16BIT = 1  # levels 2 to 6 win under 0.5 % on photographs
TIFF_LEVEL = 3
_TOKEN_GAP = rb"(?:[ \t\n\v\f\r]|#[^\n\r]*[\n\r])+"
_NETPBM = re.compile(rb"P([2356])" + 3 * (_TOKEN_GAP + rb"(\d{1,10})") + rb"[ \t\n\v\f\r]")


def _library(name: str, purpose: str) -> ModuleType:
    """Import an optional library, or raise ImageError that names the package to install."""
    try:
        return import_module(name)
    except ImportError as error:
        raise ImageError(f"{purpose} needs {name}: pip install {name}") from error


def read_png16(data: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pixels uint16 [H, W] or [H, W, 3] and alpha uint16 [H, W] or None; a tRNS colour key becomes alpha.

    Raises:
        ImageError: imagecodecs is not installed. Damaged data raises imagecodecs.PngError.
    """
    samples = np.atleast_3d(_library("imagecodecs", "a 16-bit PNG with colour or alpha").png_decode(data))
    channels = samples.shape[2]
    pixels = samples[..., 0] if channels < 3 else samples[..., :3]
    return pixels, samples[..., -1] if channels in (2, 4) else None


def write_png16(samples: np.ndarray, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return a PNG file of uint16 samples [H, W, 1..4] (gray, gray + alpha, RGB, RGBA)."""
    png = _library("imagecodecs", "writing 16-bit PNG").png_encode(
        samples[..., 0] if samples.shape[2] == 1 else samples, level=PNG_LEVEL_16BIT
    )
    chunks = b""
    if icc:
        chunks += _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc, 9))
    if exif:
        chunks += _chunk(b"eXIf", exif)
    if xmp:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    return png[:33] + chunks + png[33:]  # 33 = signature and IHDR: iCCP must stand before PLTE and IDAT


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def is_netpbm16(data: bytes) -> bool:
    """Return whether these are the first bytes of a PGM or PPM with more than 8 bits per sample."""
    header = _NETPBM.match(data[:65536])
    return header is not None and int(header[4]) > 255


def read_netpbm16(data: bytes, max_pixels: int) -> np.ndarray:
    """Return uint16 [H, W] (PGM) or [H, W, 3] (PPM) scaled from 0..maxval to 0..65535; raises ImageError."""
    header = _NETPBM.match(data[:65536])
    if header is None:
        raise ImageError("not a PGM or PPM header")
    kind, width, height, maxval = (int(value) for value in header.groups())
    check_size(width, height, max_pixels)
    if maxval > 65535:
        raise ImageError(f"maxval is {maxval}; PGM and PPM allow at most 65535")
    shape = (height, width) if kind in (2, 5) else (height, width, 3)
    count = width * height * (1 if kind in (2, 5) else 3)
    if kind >= 5:
        if len(data) - header.end() < 2 * count:
            raise ImageError(f"truncated: {len(data) - header.end()} of {2 * count} sample bytes")
        samples = np.frombuffer(data, ">u2", count, header.end())
    else:
        words = re.sub(rb"#[^\n\r]*", b"", data[header.end() :]).split(None, count)[:count]
        if len(words) < count:
            raise ImageError(f"truncated: {len(words)} of {count} samples")
        if not all(word.isdigit() and len(word) <= 5 for word in words):
            raise ImageError("samples of a plain PGM or PPM must be decimal numbers up to maxval")
        samples = np.array(words, dtype="S5").astype(np.uint32)
    if samples.max() > maxval:
        raise ImageError(f"sample {samples.max()} is above maxval {maxval}")
    return scale_to_16(samples.reshape(shape), maxval)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise ImageError unless both sides are positive and the picture has at most `max_pixels` pixels."""
    if width < 1 or height < 1:
        raise ImageError(f"the picture is empty: {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels are over the limit of {max_pixels}; raise max-pixels to read it")


def scale_to_16(samples: np.ndarray, maxval: int) -> np.ndarray:
    """Return samples 0..maxval as native uint16 0..65535, rounded to nearest; distinct values stay distinct."""
    if maxval == 65535:
        return samples.astype(np.uint16)
    return ((samples.astype(np.uint32) * 65535 + maxval // 2) // maxval).astype(np.uint16)


def read_tiff(data: bytes, max_pixels: int) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Read the first page of a TIFF of 8 to 16 unsigned bits per sample, gray or RGB, with or without alpha.

    Orientation is not applied.

    Returns:
        Pixels, uint8 or uint16 [H, W] or [H, W, 3]; alpha, [H, W] or None, by which premultiplied colour is divided;
        notes.

    Raises:
        ImageError: The page holds what a Picture cannot. Damaged data raises the errors of tifffile.
    """
    tifffile = _library("tifffile", "a TIFF of more than 8 bits per sample")
    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # else it prints to stderr before it raises
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = tiff.pages[0]
        check_size(page.imagewidth, page.imagelength, max_pixels)
        _check_tiff_page(page, len(data))
        planar = page.planarconfig == 2
        size = (page.imagelength, page.imagewidth)
        channels = page.samplesperpixel
        samples = page.asarray(maxworkers=1).reshape((channels, *size) if planar else (*size, channels))
        samples = np.moveaxis(samples, 0, -1) if planar else samples
        extra = tuple(int(value) for value in page.extrasamples)
        notes = [f"{len(tiff.pages) - 1} further frames dropped"] if len(tiff.pages) > 1 else []
        bits, minimum_is_white, colours = page.bitspersample, page.photometric == 0, 3 if page.photometric == 2 else 1
    if channels < colours:
        raise ImageError(f"a TIFF of RGB needs 3 samples per pixel, this one has {channels}")
    samples = scale_to_16(samples, 2**bits - 1) if bits > 8 else samples
    top = 65535 if bits > 8 else 255
    pixels = samples[..., :colours]
    pixels = top - pixels if minimum_is_white else pixels
    alpha_at = next((colours + i for i, kind in enumerate(extra[: channels - colours]) if kind in (1, 2)), None)
    alpha = None
    if alpha_at is not None:
        alpha = samples[..., alpha_at]
        if extra[alpha_at - colours] == 1:
            pixels = _divide_by_alpha(pixels, alpha, top)
            notes.append("premultiplied alpha divided out")
    unused = channels - colours - (alpha is not None)
    notes += [f"{unused} extra channels dropped"] if unused else []
    return pixels[..., 0] if colours == 1 else pixels, alpha, tuple(notes)


def _check_tiff_page(page: tifffile.TiffPage, file_bytes: int) -> None:
    """Raise ImageError unless a page holds what `read_tiff` reads and all of its strips or tiles lie in the file."""
    bits, channels = page.bitspersample, page.samplesperpixel
    if page.sampleformat != 1 or not isinstance(bits, int) or not 8 <= bits <= 16 or page.imagedepth != 1:
        raise ImageError(f"TIFF samples are {page.dtype}; convert them to 8 or 16 unsigned bits first")
    if page.photometric not in (0, 1, 2) or channels > 8:
        raise ImageError(f"TIFF of photometric {int(page.photometric)} with {channels} x {bits} bits: convert to RGB")
    expected = int(np.prod(page.chunked))
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(segments) < expected or any(size == 0 or at + size > file_bytes for at, size in segments):
        raise ImageError("truncated: strips or tiles of the TIFF are missing")
    # An uncompressed strip that is too short would be filled up with zeros.
    if page.compression == 1 and sum(page.databytecounts) * 8 < page.imagewidth * page.imagelength * channels * bits:
        raise ImageError("truncated: the strips of the TIFF are shorter than its size says")


def _divide_by_alpha(pixels: np.ndarray, alpha: np.ndarray, top: int) -> np.ndarray:
    """Return colour that is no longer premultiplied, of the dtype of alpha; top: the largest sample."""
    divisor = np.maximum(alpha, 1).astype(np.uint32)[..., None]
    return np.minimum((pixels.astype(np.uint32) * top + divisor // 2) // divisor, top).astype(alpha.dtype)


def write_tiff(samples: np.ndarray, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    """Return a TIFF compressed by deflate with horizontal prediction, in the byte order of EXIF.

    Args:
        samples: uint8 or uint16 [H, W, 1..4].
        icc: The ICC profile.
        exif: EXIF from its TIFF header on; its descriptive tags, EXIF and GPS directories are written.
        xmp: The XMP packet.

    Raises:
        ValueError: `exif` is damaged, or the file would exceed the 4 GiB of a classic TIFF.
    """
    height, width, planes = samples.shape
    order = byte_order(exif) if exif else "<"
    strip_rows = min(height, max(1, 2**20 // (width * planes * samples.itemsize)))
    strips = []
    for top in range(0, height, strip_rows):
        strip = samples[top : top + strip_rows].copy()
        strip[:, 1:] -= samples[top : top + strip_rows, :-1]  # modulo 2**bits, as predictor 2 wants
        strips.append(zlib.compress(strip.astype(strip.dtype.newbyteorder(order)).tobytes(), TIFF_LEVEL))
    offsets = np.cumsum([8] + [len(strip) for strip in strips])
    end = int(offsets[-1]) + int(offsets[-1]) % 2
    if end + 8 * len(strips) + len(icc or b"") + len(exif or b"") + len(xmp or b"") + 1024 >= 2**32:
        raise ValueError("TIFF over 4 GiB")
    tags: Directory = {
        **({tag: value for tag, value in read_directory(exif).items() if tag in DESCRIPTIVE} if exif else {}),
        256: _longs(order, width),
        257: _longs(order, height),
        258: _shorts(order, *[8 * samples.itemsize] * planes),
        259: _shorts(order, 8),
        262: _shorts(order, 2 if planes >= 3 else 1),
        273: _longs(order, *map(int, offsets[:-1])),
        ORIENTATION: _shorts(order, 1),  # explicit: without it Pillow follows an orientation in XMP
        277: _shorts(order, planes),
        278: _longs(order, strip_rows),
        279: _longs(order, *map(len, strips)),
        284: _shorts(order, 1),
        317: _shorts(order, 2),
    }
    if planes in (2, 4):
        tags[338] = _shorts(order, 2)
    if icc:
        tags[ICC] = (7, len(icc), icc)
    if xmp:
        tags[XMP] = (1, len(xmp), xmp)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", end)
    body = head + b"".join(strips)
    return body.ljust(end, b"\0") + write_directory(tags, order, end)


def _shorts(order: str, *values: int) -> tuple[int, int, bytes]:
    """Return a directory entry of SHORT values: type, count, bytes."""
    return 3, len(values), struct.pack(f"{order}{len(values)}H", *values)


def _longs(order: str, *values: int) -> tuple[int, int, bytes]:
    """Return a directory entry of LONG values: type, count, bytes."""
    return 4, len(values), struct.pack(f"{order}{len(values)}I", *values)


def tiff_needs_tifffile(directory: Directory, order: ByteOrder) -> bool:
    """Return whether Pillow would reduce or refuse this TIFF: over 8 bits, or planes stored one after the other.

    CMYK and other photometrics stay with Pillow, which converts them.
    """
    bits = integers(directory, 258, order, (1,))
    planar = integers(directory, 284, order, (1,))[0] == 2
    gray_or_rgb = integers(directory, 262, order, (1,))[0] in (0, 1, 2)
    return gray_or_rgb and (max(bits) > 8 or (planar and min(bits) == 8))
