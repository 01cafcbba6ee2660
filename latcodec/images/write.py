"""Pictures into picture files: PNG, JPEG, WebP, TIFF, BMP, PPM/PGM, AVIF, with a note for each loss.

Every file is built in memory first (PNG, TIFF and AVIF seek), so that what is open can be a pipe, and an error of the
disk stays an OSError while an error of the picture is an ImageError.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from latcodec.errors import ImageError, OptionError
from latcodec.images import high_depth as deep
from latcodec.images import metadata

if TYPE_CHECKING:
    from latcodec.images.read import Picture

PNG_LEVEL = 2  # kodim05: 31 ms and 799 kB; level 1: 28 ms, 802 kB; level 6: 78 ms, 814 kB (Pillow 13, zlib-ng)
FORMAT_OF_SUFFIX = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg", ".webp": "webp", ".tif": "tiff",
    ".tiff": "tiff", ".bmp": "bmp", ".ppm": "ppm", ".pnm": "ppm", ".pgm": "pgm", ".avif": "avif",
}  # fmt: skip
_CARRIES = {
    "png": {"16 bits", "gray", "alpha", "ICC", "EXIF", "XMP"},
    "tiff": {"16 bits", "gray", "alpha", "ICC", "EXIF", "XMP"},
    "jpeg": {"gray", "ICC", "EXIF", "XMP"},
    "webp": {"alpha", "ICC", "EXIF", "XMP"},
    "avif": {"gray", "alpha", "ICC", "EXIF", "XMP"},
    "bmp": {"gray"},
    "ppm": {"16 bits", "gray"},
    "pgm": {"16 bits", "gray"},
}
_NAMES = {"jpeg": "JPEG", "webp": "WebP"}
_LONGEST_SIDE_PX = {"jpeg": 65500, "webp": 16383, "avif": 65536}
_JPEG_SEGMENT_BYTES = 65533
_XMP_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"


def format_of_suffix(path: str | os.PathLike) -> str:
    """Return the format name `write` takes for a path's suffix, in any case; raises OptionError."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMAT_OF_SUFFIX:
        what = f"unknown picture suffix {suffix!r}" if suffix else "the name has no suffix"
        raise OptionError(f"{os.fspath(path)}: {what}; use one of {' '.join(FORMAT_OF_SUFFIX)}")
    return FORMAT_OF_SUFFIX[suffix]


def write(picture: Picture, file: BinaryIO, format: str) -> tuple[str, ...]:
    """Write a picture to an open binary file (seeking is not needed) and return a note for each thing it cannot carry.

    format: png, jpeg (quality 95, 4:4:4), webp (lossless), tiff (deflate), bmp, ppm, pgm (gray only) or avif
    (quality 95, 4:4:4), in any case. Raises OptionError for another name, ImageError if the picture does not fit the
    format; errors of `file` itself pass unchanged.
    """
    format = format.lower()
    if format not in _CARRIES:
        raise OptionError(f"unknown picture format {format!r}; use one of {' '.join(_CARRIES)}")
    name = _NAMES.get(format, format.upper())
    height, width = picture.pixels.shape[:2]
    longest = _LONGEST_SIDE_PX.get(format)
    if longest and max(width, height) > longest:
        raise ImageError(f"{width} x {height} pixels: {name} allows {longest} a side; write PNG or TIFF")
    if format == "pgm" and not picture.gray:
        raise ImageError("PGM holds gray only and the picture has colour; write PPM")
    samples, notes = _fit(picture, format, name)
    extras, said = _extras(picture, format, name)
    try:
        data = _encode(samples, format, *extras)
    except ImageError:
        raise
    except Exception as error:  # Pillow's encoders raise ValueError, OSError, SystemError, MemoryError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot make a {name} of {width} x {height} pixels: {reason}") from error
    file.write(data)
    return notes + said


def _fit(picture: Picture, format: str, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return samples [H, W, 1..4] that the format can hold, and notes on what that took away."""
    can, notes = _CARRIES[format], []
    alpha = picture.alpha
    if alpha is not None and "alpha" not in can:
        opaque = bool((alpha == np.iinfo(alpha.dtype).max).all())
        notes.append(f"{'opaque ' if opaque else ''}alpha dropped: {name} has none")
        alpha = None
    gray = picture.gray and "gray" in can and not (format == "avif" and alpha is not None)
    if picture.gray and not gray:
        why = "gray with alpha" if format == "avif" else "gray"
        notes.append(f"gray stored as three equal planes: {name} has no {why}")
    planes = [picture.pixels[..., :1] if gray else picture.pixels]
    planes += [] if alpha is None else [alpha[..., None]]
    samples = np.concatenate(planes, axis=2)
    if samples.dtype == np.uint16 and "16 bits" not in can:
        notes.append(f"16 bits reduced to 8: {name} has no more")
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return samples, tuple(notes)


def _extras(picture: Picture, format: str, name: str) -> tuple[tuple[bytes | None, ...], tuple[str, ...]]:
    """Return (icc, exif, xmp), each None where the format cannot hold it, and notes."""
    kept, notes = [], []
    for what, value in (("ICC", picture.icc), ("EXIF", picture.exif), ("XMP", picture.xmp)):
        reason = _refusal(what, value, format, name) if value else None
        kept.append(None if reason else value)
        notes += [f"{what} dropped: {reason}"] if reason else []
    return tuple(kept), tuple(notes)


def _refusal(what: str, value: bytes, format: str, name: str) -> str | None:
    if what not in _CARRIES[format]:
        return f"{name} has no place for it"
    if format == "jpeg":
        overhead = {"EXIF": 6, "XMP": len(_XMP_JPEG_HEADER)}.get(what)
        if overhead and overhead + len(value) > _JPEG_SEGMENT_BYTES:
            return f"{len(value)} bytes, a JPEG segment holds {_JPEG_SEGMENT_BYTES - overhead}"
        if what == "ICC" and len(value) > 255 * (_JPEG_SEGMENT_BYTES - 14):
            return f"{len(value)} bytes are too many for JPEG"
    if what == "EXIF":
        try:
            metadata.read_directory(value)
        except ValueError as error:
            return f"damaged: {error}"
    return None


def _encode(samples: np.ndarray, format: str, icc: bytes | None, exif: bytes | None, xmp: bytes | None) -> bytes:
    planes, deep_samples = samples.shape[2], samples.dtype == np.uint16
    if format == "tiff":
        return deep.write_tiff(samples, icc, exif, xmp)
    if format in ("ppm", "pgm"):
        height, width = samples.shape[:2]
        header = f"P{5 if planes == 1 else 6}\n{width} {height}\n{65535 if deep_samples else 255}\n"
        return header.encode() + samples.astype(">u2" if deep_samples else np.uint8).tobytes()
    if format == "png" and deep_samples and planes > 1:
        return deep.write_png16(samples, icc, exif, xmp)
    from PIL import Image, PngImagePlugin

    image = Image.fromarray(np.ascontiguousarray(samples[..., 0] if planes == 1 else samples))
    options: dict = {}
    if icc:
        options["icc_profile"] = icc
    if exif:
        options["exif"] = b"Exif\0\0" + exif
    if format == "png":
        options["compress_level"] = PNG_LEVEL
        if xmp:
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp)
    elif xmp:
        options["xmp"] = xmp
    options |= {
        "jpeg": {"quality": 95, "subsampling": 0},
        "webp": {"lossless": True, "exact": True, "method": 4},
        "avif": {"quality": 95, "subsampling": "4:0:0" if planes == 1 else "4:4:4"},
    }.get(format, {})
    file = io.BytesIO()
    image.save(file, format.upper(), **options)
    return file.getvalue()
