"""Write pictures into picture files, with a note for each thing that the format cannot hold.

Every file is built in memory first (PNG, TIFF and AVIF seek), so that the output can be a pipe, and an error of the
disk stays an OSError while an error of the picture is an ImageError.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from latcodec.errors import ImageError
from latcodec.images import high_depth, metadata
from latcodec.images.formats import Feature, PictureFormat, format_of_name
from latcodec.images.picture import Picture

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class _Content:
    """What a file is to hold: samples, uint8 or uint16 [H, W, 1..4], and metadata."""

    samples: np.ndarray
    icc: bytes | None
    exif: bytes | None
    xmp: bytes | None


def write_picture(picture: Picture, file: BinaryIO, name: str) -> tuple[str, ...]:
    """Write a picture to an open binary file and return a note for each thing that the format cannot hold.

    Args:
        picture: The picture.
        file: Where the bytes go; seeking is not needed.
        name: The format, in any case: png, jpeg (quality 95, 4:4:4), webp (lossless), tiff (deflate), bmp, ppm, pgm
            (gray only) or avif (quality 95, 4:4:4).

    Raises:
        OptionError: The format is unknown.
        ImageError: The picture does not fit the format. Errors of `file` itself pass unchanged.
    """
    picture_format = format_of_name(name)
    label, limit_px = picture_format.label, picture_format.max_side_px
    height, width = picture.pixels.shape[:2]
    if limit_px and max(width, height) > limit_px:
        raise ImageError(f"{width} x {height} pixels: {label} allows {limit_px} a side; write PNG or TIFF")
    if Feature.COLOUR not in picture_format.holds and not picture.gray:
        raise ImageError(f"{label} holds gray only and the picture has colour; write PPM")
    samples, sample_notes = _fit_samples(picture, picture_format)
    metadata_kept, metadata_notes = _fit_metadata(picture, picture_format)
    try:
        data = WRITERS[picture_format.writer](_Content(samples, *metadata_kept), picture_format)
    except ImageError:
        raise
    except Exception as error:  # Pillow's encoders raise ValueError, OSError, SystemError, MemoryError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot make a {label} of {width} x {height} pixels: {reason}") from error
    file.write(data)
    return sample_notes + metadata_notes


def _fit_samples(picture: Picture, picture_format: PictureFormat) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return samples [H, W, 1..4] that the format can hold, and notes on what that took away."""
    label, holds, notes = picture_format.label, picture_format.holds, []
    alpha = picture.alpha
    if alpha is not None and Feature.ALPHA not in holds:
        opaque = bool((alpha == np.iinfo(alpha.dtype).max).all())
        notes.append(f"{'opaque ' if opaque else ''}alpha dropped: {label} has none")
        alpha = None
    gray = picture.gray and (Feature.GRAY if alpha is None else Feature.GRAY_ALPHA) in holds
    if picture.gray and not gray:
        missing = "gray with alpha" if Feature.GRAY in holds else "gray"
        notes.append(f"gray stored as three equal planes: {label} has no {missing}")
    planes = [picture.pixels[..., :1] if gray else picture.pixels]
    planes += [] if alpha is None else [alpha[..., None]]
    samples = np.concatenate(planes, axis=2)
    if samples.dtype == np.uint16 and Feature.DEPTH_16 not in holds:
        notes.append(f"16 bits reduced to 8: {label} has no more")
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return samples, tuple(notes)


def _fit_metadata(picture: Picture, picture_format: PictureFormat) -> tuple[list[bytes | None], tuple[str, ...]]:
    """Return ICC, EXIF and XMP, each None where the format cannot hold it, and notes."""
    kept, notes = [], []
    for kind, name, value in (
        (Feature.ICC, "ICC", picture.icc), (Feature.EXIF, "EXIF", picture.exif), (Feature.XMP, "XMP", picture.xmp),
    ):  # fmt: skip
        problem = _metadata_problem(kind, value, picture_format) if value else None
        kept.append(None if problem else value)
        notes += [f"{name} dropped: {problem}"] if problem else []
    return kept, tuple(notes)


def _metadata_problem(kind: Feature, value: bytes, picture_format: PictureFormat) -> str | None:
    """Return why a format cannot hold a piece of metadata, or None."""
    if kind not in picture_format.holds:
        return f"{picture_format.label} has no place for it"
    limit_bytes = picture_format.max_metadata_bytes.get(kind)
    if limit_bytes is not None and len(value) > limit_bytes:
        return f"{len(value)} bytes, {picture_format.label} holds {limit_bytes}"
    if kind == Feature.EXIF:
        try:
            metadata.read_directory(value)
        except ValueError as error:
            return f"damaged: {error}"
    return None


def _write_with_pillow(content: _Content, picture_format: PictureFormat) -> bytes:
    options = {"xmp": content.xmp} if content.xmp else {}
    return _save(_image(content.samples), content, picture_format, options)


def _write_png(content: _Content, picture_format: PictureFormat) -> bytes:
    if content.samples.dtype == np.uint16 and content.samples.shape[2] > 1:
        return high_depth.write_png16(content.samples, content.icc, content.exif, content.xmp)
    from PIL import PngImagePlugin

    options = {}
    if content.xmp:
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", content.xmp)
    return _save(_image(content.samples), content, picture_format, options)


def _write_tiff(content: _Content, picture_format: PictureFormat) -> bytes:
    return high_depth.write_tiff(content.samples, content.icc, content.exif, content.xmp)


def _write_netpbm(content: _Content, picture_format: PictureFormat) -> bytes:
    height, width, planes = content.samples.shape
    deep = content.samples.dtype == np.uint16
    header = f"P{5 if planes == 1 else 6}\n{width} {height}\n{65535 if deep else 255}\n"
    return header.encode() + content.samples.astype(">u2" if deep else np.uint8).tobytes()


WRITERS = {"pillow": _write_with_pillow, "png": _write_png, "tiff": _write_tiff, "netpbm": _write_netpbm}


def _image(samples: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if samples.shape[2] == 1 else samples))


def _save(image: Image.Image, content: _Content, picture_format: PictureFormat, options: dict) -> bytes:
    """Return the file that Pillow makes with the format's options, the ICC profile, EXIF and `options`."""
    options = {**options, **picture_format.save_options}
    options |= picture_format.gray_save_options if content.samples.shape[2] == 1 else {}
    if content.icc:
        options["icc_profile"] = content.icc
    if content.exif:
        options["exif"] = b"Exif\0\0" + content.exif
    file = io.BytesIO()
    image.save(file, picture_format.pillow_name, **options)
    return file.getvalue()
