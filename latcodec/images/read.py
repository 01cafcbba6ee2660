"""Picture files <-> arrays, and nothing that a person put into the picture is lost without a note.

`read` gives a Picture: 8 or 16 bits, gray or colour, alpha, ICC, EXIF, XMP, upright. `write` puts one into a file and
returns a note for each thing that format cannot carry. Pillow does the work, inside functions of this room's files only
(`images*.py`); what it would silently cut to 8 bits goes through `images_16bit`. Reading is in this file.
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from latcodec.errors import ImageError
from latcodec.images import high_depth as deep
from latcodec.images import metadata
from latcodec.images.alpha import pack_alpha, unpack_alpha
from latcodec.images.lossless import pack_pixels, pillow_limit, unpack_pixels
from latcodec.images.write import format_of_suffix, write

__all__ = ["MAX_PIXELS", "Picture", "format_of_suffix", "pack_alpha", "pack_pixels", "read", "unpack_alpha",
           "unpack_pixels", "write"]  # fmt: skip

MAX_PIXELS = 268_435_456


@dataclass(frozen=True)
class Picture:
    """One upright picture and what travels with it.

    pixels: uint8 or uint16 [H, W, 3], C-contiguous, in the colour space of `icc` (sRGB if None); gray has three equal
    planes. alpha: same dtype, [H, W], not premultiplied, or None. exif: from the TIFF header on, orientation 1.
    notes: one phrase for each thing the file held that is not here.
    """

    pixels: np.ndarray
    gray: bool
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()


def read(source: str | os.PathLike | bytes | BinaryIO, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF, BMP, PPM/PGM/PBM, AVIF or GIF file.

    source: a path, the file's bytes, or an open binary file (standard input), read to its end.
    max_pixels: width * height allowed, checked in the header before pixels are decoded.
    Raises ImageError with the file's name and one reason: missing, unknown, damaged, truncated, over the limit, or of
    a kind (floating point, 32 bits) that no Picture can hold.
    """
    name = _name(source)
    try:
        data = _bytes(source, 8 * max_pixels + 2**26)
        if _kind(data) is None:
            raise ImageError("not a PNG, JPEG, WebP, TIFF, BMP, PPM, AVIF or GIF file")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            picture = _read(data, max_pixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    said = dict.fromkeys("reader warns: " + " ".join(str(warning.message).split()) for warning in caught)
    return Picture(**{**vars(picture), "notes": picture.notes + tuple(said)})


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


def _name(source) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "picture bytes"
    return str(getattr(source, "name", "picture file"))


def _bytes(source, limit: int) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    try:
        if isinstance(source, str | os.PathLike):
            with open(source, "rb") as file:
                return _read_up_to(file, limit)
        return _read_up_to(source, limit)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read: {getattr(error, 'strerror', None) or error}") from error


def _read_up_to(file: BinaryIO, limit: int) -> bytes:
    parts, total = [], 0
    while part := file.read(2**20):
        if not parts and _kind(part) is None:
            return part[:64]  # a film or a disk image is not read to its end to be refused
        parts.append(part)
        total += len(part)
        if total > limit:
            raise ImageError(f"the file is over {limit} bytes, more than max-pixels allows")
    return b"".join(parts)


def _kind(data: bytes) -> str | None:
    """Return Pillow's format name for the first bytes of a file, or None."""
    for kind, magics in {
        "PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "GIF": (b"GIF87a", b"GIF89a"), "BMP": (b"BM",),
        "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "PPM": (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf"),
    }.items():  # fmt: skip
        if data.startswith(magics):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    return None


def _read(data: bytes, max_pixels: int) -> Picture:
    kind = _kind(data)
    exif, xmp, icc, notes, orientation = None, None, None, (), 1
    if kind == "PPM" and deep.is_netpbm16(data):
        with _one_reason():
            pixels, alpha = deep.read_netpbm16(data, max_pixels), None
        return _picture(pixels, alpha, None, None, None, ())
    if kind == "TIFF":
        with _one_reason():
            directory, order = metadata.read_directory(data), metadata.byte_order(data)
            exif, notes = metadata.exif_of_tiff(data, directory)
            orientation = metadata.integers(directory, metadata.ORIENTATION, order, (1,))[0]
            icc, xmp = (directory.get(tag, (0, 0, None))[2] for tag in (metadata.ICC, metadata.XMP))
            xmp = metadata.reset_xmp_orientation(xmp) if xmp and orientation != 1 else xmp
            if deep.tiff_needs_tifffile(directory, order):
                pixels, alpha, said = deep.read_tiff(data, max_pixels)
                pixels, alpha = metadata.upright(pixels, orientation), metadata.upright(alpha, orientation)
                return _picture(pixels, alpha, icc, exif, xmp, said + notes)
    with _one_reason():
        pixels, alpha, info, more, keep_icc = _pillow(data, kind, max_pixels)
    if kind != "TIFF":  # Pillow has turned a TIFF already
        exif, said = metadata.raw_exif(info)
        icc, xmp, notes = info.get("icc_profile"), info.get("xmp"), notes + said
        orientation, exif = metadata.take_orientation(exif) if exif else (1, None)
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        xmp = metadata.reset_xmp_orientation(xmp) if xmp and orientation != 1 else xmp
        pixels, alpha = metadata.upright(pixels, orientation), metadata.upright(alpha, orientation)
    return _picture(pixels, alpha, icc if keep_icc else None, exif, xmp, more + notes)


def _pillow(data: bytes, kind: str, max_pixels: int):
    """Return pixels, alpha, Pillow's info, notes and whether the ICC profile still fits the pixels."""
    from PIL import Image

    with pillow_limit(max_pixels), Image.open(io.BytesIO(data), formats=[kind]) as image:
        deep.check_size(*image.size, max_pixels)
        frames = getattr(image, "n_frames", 1)
        notes = (f"{frames - 1} further frames dropped",) if frames > 1 else ()
        if (
            kind == "TIFF"
        ):  # Pillow turns a TIFF while loading and falls back on XMP, which no other format here follows
            image.getexif()[metadata.ORIENTATION] = image.tag_v2.get(metadata.ORIENTATION, 1)
        image.load()
        info = dict(image.info)
        if frames > 1:
            info.pop("mp", None)  # the frames of a multi-picture JPEG are in the note above
        bits = data[24] if kind == "PNG" else 8
        exif = info.get("exif") or "Raw profile type exif" in info
        notes += metadata.leftovers(kind, data, info, getattr(image, "text", {}), bool(exif))
        if kind == "PNG" and bits == 16 and data[25] != 0:
            pixels, alpha = deep.read_png16(data)
            return pixels, alpha, info, notes, True
        pixels, alpha, more, keep_icc = _samples(image, info, bits)
        if kind == "TIFF":
            more += _tiff_losses(data, image.mode)
        return pixels, alpha, info, notes + more, keep_icc


def _samples(image, info: dict, bits: int):
    """Return pixels, alpha, notes and whether the ICC profile still fits, for one loaded Pillow image.

    Source: Pillow handbook, "Concepts: Modes".
    """
    mode = image.mode
    if mode in ("1", "L") or mode.startswith("I;16"):
        plane = np.asarray(image.convert("L") if mode == "1" else image)
        plane = plane.astype(np.uint16 if mode.startswith("I;16") else np.uint8)
        key = info.get("transparency")
        if isinstance(key, int):  # a PNG colour key counts in the file's bits; Pillow scales pixels of 1, 2, 4 to 8
            key = key * 255 // (2**bits - 1) if bits < 8 and mode == "L" else key
            return plane, _alpha_of_key(plane == key, plane.dtype), (), True
        return plane, None, (), True
    if mode == "I":
        plane = np.asarray(image)
        if plane.min() < 0 or plane.max() > 65535:
            raise ImageError("32-bit samples outside 0..65535; convert the picture to 16 bits first")
        return plane.astype(np.uint16), None, (), True
    if mode == "F":
        raise ImageError("floating-point samples; convert the picture to 16-bit integers first")
    if mode == "RGB":
        pixels = np.asarray(image)
        key = info.get("transparency")
        if isinstance(key, tuple) and len(key) == 3:
            return pixels, _alpha_of_key((pixels == key).all(axis=2), pixels.dtype), (), True
        return pixels, None, (), True
    if mode in ("LA", "La"):
        both = np.asarray(image.convert("LA"))
        return both[..., 0], both[..., 1], (), True
    if mode in ("RGBA", "RGBa", "PA") or (mode == "P" and image.has_transparency_data):
        four = np.asarray(image.convert("RGBA"))
        return four[..., :3], four[..., 3], (), True
    if mode in ("P", "RGBX"):
        return np.asarray(image.convert("RGB")), None, (), True
    if mode == "CMYK":
        return _from_cmyk(image, info)
    if mode in ("YCbCr", "LAB", "HSV"):
        return np.asarray(image.convert("RGB")), None, (f"{mode} converted to sRGB",), mode == "YCbCr"
    raise ImageError(f"pictures of mode {mode} are not supported; convert it to RGB first")


def _alpha_of_key(transparent: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.where(transparent, 0, np.iinfo(dtype).max).astype(dtype)


def _from_cmyk(image, info: dict):
    from PIL import ImageCms

    profile = info.get("icc_profile")
    if profile:
        try:
            source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            colours = ImageCms.profileToProfile(
                image, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", False,
                ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )  # fmt: skip
            return (
                np.asarray(colours),
                None,
                ("CMYK converted to sRGB through its ICC profile, which is dropped",),
                False,
            )
        except (ImageCms.PyCMSError, OSError):
            note = "CMYK converted to sRGB without its ICC profile, which is unusable and dropped"
            return np.asarray(image.convert("RGB")), None, (note,), False
    return np.asarray(image.convert("RGB")), None, ("CMYK without ICC profile converted to sRGB",), False


def _tiff_losses(data: bytes, mode: str) -> tuple[str, ...]:
    """Return notes on channels and bits that Pillow leaves out of a TIFF without a word."""
    from PIL import Image

    directory, order = metadata.read_directory(data), metadata.byte_order(data)
    bits = max(metadata.integers(directory, 258, order, (1,)))
    channels = metadata.integers(directory, 277, order, (1,))[0]
    unused = channels - Image.getmodebands(mode)
    notes = (f"{unused} extra channels dropped",) if unused > 0 else ()
    return notes + ((f"{bits} bits reduced to 8",) if bits > 8 and mode not in ("I", "F") else ())


def _picture(pixels, alpha, icc, exif, xmp, notes) -> Picture:
    gray = pixels.ndim == 2
    planes = np.repeat(pixels[..., None], 3, axis=2) if gray else np.array(pixels, order="C")
    alpha = None if alpha is None else np.array(alpha, order="C")
    return Picture(planes, gray, alpha, icc or None, exif or None, xmp or None, tuple(notes))
