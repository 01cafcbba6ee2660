"""Read picture files: any format of the table, 8 or 16 bits, turned upright, with alpha and metadata.

Pillow does most of the work; what it would cut to 8 bits without a warning goes through `images.high_depth`.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from latcodec.errors import ImageError
from latcodec.images import high_depth, metadata
from latcodec.images.formats import PictureFormat, format_of_bytes, readable_labels
from latcodec.images.lossless import pillow_limit
from latcodec.images.picture import Picture
from latcodec.runtime import MAX_PIXELS

if TYPE_CHECKING:
    from PIL import Image

_CHUNK_BYTES = 2**20
_TIFF_BITS, _TIFF_CHANNELS = 258, 277
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class _Samples:
    """Decoded samples.

    Attributes:
        pixels: uint8 or uint16, [H, W] for gray or [H, W, 3].
        alpha: [H, W] of the same dtype, or None.
        notes: One phrase for each thing lost.
        keep_icc: Whether the ICC profile of the file still describes the pixels.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    keep_icc: bool = True


def read_picture(source: str | os.PathLike | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture file of any format in `images.formats`.

    Args:
        source: A path, the file's bytes, or an open binary file (standard input), which is read to its end.
        max_pixels: The largest width * height allowed; it is checked in the header before pixels are decoded.

    Raises:
        ImageError: The file is missing, unknown, damaged, truncated, over the limit, or of a kind (floating point, 32
            bits) that no Picture can hold. The message begins with the file's name.
    """
    name = _name(source)
    try:
        data = _read_bytes(source, 8 * max_pixels + 2**26)
        picture_format = format_of_bytes(data)
        if picture_format is None:
            raise ImageError(f"not a {readable_labels()} file")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = READERS[picture_format.reader](data, picture_format, max_pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    spoken = dict.fromkeys("reader warns: " + " ".join(str(warning.message).split()) for warning in caught)
    return replace(picture, notes=picture.notes + tuple(spoken))


@contextmanager
def _one_reason() -> Iterator[None]:
    """Turn whatever a library raises into ImageError: on hostile bytes they raise nearly every built-in error."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        reason = {
            "UnidentifiedImageError": "the header is damaged or truncated",
            "DecompressionBombError": "more than twice the pixels that max-pixels allows",
            "MemoryError": "not enough memory",
        }.get(type(error).__name__) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        raise ImageError(f"damaged or unsupported picture: {reason[:200]}") from error


def _name(source: str | os.PathLike | bytes | BinaryIO) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "picture bytes"
    return str(getattr(source, "name", "picture file"))


def _read_bytes(source: str | os.PathLike | bytes | BinaryIO, limit_bytes: int) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                return _read_up_to(file, limit_bytes)
        return _read_up_to(source, limit_bytes)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read: {getattr(error, 'strerror', None) or error}") from error


def _read_up_to(file: BinaryIO, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while part := file.read(_CHUNK_BYTES):
        if not parts and format_of_bytes(part) is None:
            return part[:64]  # a film or a disk image is not read to its end to be refused
        parts.append(part)
        total += len(part)
        if total > limit_bytes:
            raise ImageError(f"the file is over {limit_bytes} bytes, more than max-pixels allows")
    return b"".join(parts)


def _read_with_pillow(data: bytes, picture_format: PictureFormat, max_pixels: int) -> Picture:
    """Read a file whose metadata Pillow reports and whose orientation it does not apply."""
    with _one_reason():
        samples, info = _decode_with_pillow(data, picture_format, max_pixels)
    exif, notes = metadata.raw_exif(info)
    orientation, exif = metadata.take_orientation(exif) if exif else (1, None)
    xmp = info.get("xmp")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    xmp = metadata.reset_xmp_orientation(xmp) if xmp and orientation != 1 else xmp
    return _picture(_upright(samples, orientation), info.get("icc_profile"), exif, xmp, notes)


def _read_netpbm(data: bytes, picture_format: PictureFormat, max_pixels: int) -> Picture:
    """Read a PGM or PPM; one of more than 8 bits is not left to Pillow."""
    if not high_depth.is_netpbm16(data):
        return _read_with_pillow(data, picture_format, max_pixels)
    with _one_reason():
        return _picture(_Samples(high_depth.read_netpbm16(data, max_pixels)), None, None, None, ())


def _read_tiff(data: bytes, picture_format: PictureFormat, max_pixels: int) -> Picture:
    """Read a TIFF: metadata from its directory, samples through Pillow, which turns them upright, or tifffile."""
    with _one_reason():
        directory, order = metadata.read_directory(data), metadata.byte_order(data)
        exif, notes = metadata.exif_of_tiff(data, directory)
        orientation = metadata.integers(directory, metadata.ORIENTATION, order, (1,))[0]
        icc, xmp = (directory.get(tag, (0, 0, None))[2] for tag in (metadata.ICC, metadata.XMP))
        xmp = metadata.reset_xmp_orientation(xmp) if xmp and orientation != 1 else xmp
        if high_depth.tiff_needs_tifffile(directory, order):
            pixels, alpha, losses = high_depth.read_tiff(data, max_pixels)
            samples = _upright(_Samples(pixels, alpha, losses), orientation)
        else:
            samples, _ = _decode_with_pillow(data, picture_format, max_pixels)
    return _picture(samples, icc, exif, xmp, notes)


READERS = {"pillow": _read_with_pillow, "png": _read_with_pillow, "netpbm": _read_netpbm, "tiff": _read_tiff}


def _decode_with_pillow(data: bytes, picture_format: PictureFormat, max_pixels: int) -> tuple[_Samples, dict]:
    """Return the samples of a file and what Pillow reports beside them."""
    from PIL import Image, TiffImagePlugin

    kind = picture_format.pillow_name
    with pillow_limit(max_pixels), Image.open(io.BytesIO(data), formats=[kind]) as image:
        high_depth.check_size(*image.size, max_pixels)
        frames = getattr(image, "n_frames", 1)
        notes = [f"{frames - 1} further frames dropped"] if frames > 1 else []
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow turns a TIFF while loading and falls back on XMP, which no other format here follows.
            image.getexif()[metadata.ORIENTATION] = image.tag_v2.get(metadata.ORIENTATION, 1)
        image.load()
        info = dict(image.info)
        if frames > 1:
            info.pop("mp", None)  # the frames of a multi-picture JPEG are in the note above
        has_exif = bool(info.get("exif") or "Raw profile type exif" in info)
        notes += metadata.dropped_notes(kind, data, info, getattr(image, "text", {}), has_exif)
        bits, colour_type = (data[24], data[25]) if kind == "PNG" else (8, 0)
        if bits == 16 and colour_type != 0:
            return _Samples(*high_depth.read_png16(data), tuple(notes)), info
        samples = _samples(image, info, bits)
        losses = _tiff_losses(data, image.mode) if kind == "TIFF" else ()
        return replace(samples, notes=(*notes, *samples.notes, *losses)), info


def _samples(image: Image.Image, info: dict, bits: int) -> _Samples:
    """Return the samples of a loaded Pillow image.

    Args:
        image: The image.
        info: What Pillow reports beside it.
        bits: The bits of a sample in the file.

    Source: Pillow handbook, "Concepts: Modes".
    """
    mode = image.mode
    if mode in ("1", "L", "I", "F", *_SIXTEEN_BIT_MODES):
        return _gray_samples(image, info, bits)
    if mode == "RGB":
        pixels = np.asarray(image)
        key = info.get("transparency")
        has_key = isinstance(key, tuple) and len(key) == 3
        return _Samples(pixels, _alpha_of_key((pixels == key).all(axis=2), pixels.dtype) if has_key else None)
    if mode in ("LA", "La"):
        planes = np.asarray(image.convert("LA"))
        return _Samples(planes[..., 0], planes[..., 1])
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and image.has_transparency_data):
        planes = np.asarray(image.convert("RGBA"))
        return _Samples(planes[..., :3], planes[..., 3])
    if mode in ("P", "RGBX"):
        return _Samples(np.asarray(image.convert("RGB")))
    if mode == "CMYK":
        return _from_cmyk(image, info)
    if mode in ("YCbCr", "LAB", "HSV"):
        return _Samples(np.asarray(image.convert("RGB")), None, (f"{mode} converted to sRGB",), mode == "YCbCr")
    raise ImageError(f"pictures of mode {mode} are not supported; convert it to RGB first")


def _gray_samples(image: Image.Image, info: dict, bits: int) -> _Samples:
    """Return the samples of an image of one plane."""
    mode = image.mode
    if mode == "F":
        raise ImageError("floating-point samples; convert the picture to 16-bit integers first")
    if mode == "I":
        plane = np.asarray(image)
        if plane.min() < 0 or plane.max() > 65535:
            raise ImageError("32-bit samples outside 0..65535; convert the picture to 16 bits first")
        return _Samples(plane.astype(np.uint16))
    plane = np.asarray(image.convert("L") if mode == "1" else image)
    plane = plane.astype(np.uint16 if mode in _SIXTEEN_BIT_MODES else np.uint8)
    key = info.get("transparency")
    if not isinstance(key, int):
        return _Samples(plane)
    # A PNG colour key counts in the file's bits; Pillow scales pixels of 1, 2 and 4 bits to 8.
    key = key * 255 // (2**bits - 1) if bits < 8 and mode == "L" else key
    return _Samples(plane, _alpha_of_key(plane == key, plane.dtype))


def _alpha_of_key(transparent: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.where(transparent, 0, np.iinfo(dtype).max).astype(dtype)


def _from_cmyk(image: Image.Image, info: dict) -> _Samples:
    from PIL import ImageCms

    profile = info.get("icc_profile")
    if not profile:
        return _Samples(
            np.asarray(image.convert("RGB")), None, ("CMYK without ICC profile converted to sRGB",), keep_icc=False
        )
    note = "CMYK converted to sRGB through its ICC profile, which is dropped"
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        colours = ImageCms.profileToProfile(
            image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", False,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (ImageCms.PyCMSError, OSError):
        note = "CMYK converted to sRGB without its ICC profile, which is unusable and dropped"
        colours = image.convert("RGB")
    return _Samples(np.asarray(colours), None, (note,), keep_icc=False)


def _tiff_losses(data: bytes, mode: str) -> tuple[str, ...]:
    """Return notes on channels and bits that Pillow leaves out of a TIFF without a warning."""
    from PIL import Image

    directory, order = metadata.read_directory(data), metadata.byte_order(data)
    bits = max(metadata.integers(directory, _TIFF_BITS, order, (1,)))
    channels = metadata.integers(directory, _TIFF_CHANNELS, order, (1,))[0]
    unused = channels - Image.getmodebands(mode)
    notes = (f"{unused} extra channels dropped",) if unused > 0 else ()
    return notes + ((f"{bits} bits reduced to 8",) if bits > 8 and mode not in ("I", "F") else ())


def _upright(samples: _Samples, orientation: int) -> _Samples:
    """Turn samples as an EXIF orientation, 1..8, asks."""
    alpha = samples.alpha
    return replace(
        samples,
        pixels=metadata.upright(samples.pixels, orientation),
        alpha=None if alpha is None else metadata.upright(alpha, orientation),
    )


def _picture(
    samples: _Samples, icc: bytes | None, exif: bytes | None, xmp: bytes | None, notes: tuple[str, ...]
) -> Picture:
    """Assemble a Picture, whose gray has three planes and whose arrays are its own."""
    gray = samples.pixels.ndim == 2
    pixels = np.repeat(samples.pixels[..., None], 3, axis=2) if gray else np.array(samples.pixels, order="C")
    alpha = None if samples.alpha is None else np.array(samples.alpha, order="C")
    icc = icc if samples.keep_icc else None
    return Picture(pixels, gray, alpha, icc or None, exif or None, xmp or None, samples.notes + notes)
