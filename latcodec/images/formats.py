"""The picture formats: one table, from which suffixes, detection, choices of the command line and refusals derive.

A new format that Pillow reads and writes is one row. A format that Pillow would reduce to 8 bits also names a reader of
`images.read` and a writer of `images.write`. This module imports the standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Flag, auto
from pathlib import Path

from latcodec.errors import OptionError


class Feature(Flag):
    """What a picture format can hold."""

    COLOUR = auto()
    GRAY = auto()
    ALPHA = auto()
    GRAY_ALPHA = auto()
    DEPTH_16 = auto()
    ICC = auto()
    EXIF = auto()
    XMP = auto()


METADATA = Feature.ICC | Feature.EXIF | Feature.XMP
EVERYTHING = Feature.COLOUR | Feature.GRAY | Feature.ALPHA | Feature.GRAY_ALPHA | Feature.DEPTH_16 | METADATA
NOTHING = Feature(0)


@dataclass(frozen=True)
class PictureFormat:
    """A row of the table.

    Attributes:
        name: What `--format` and `write_picture` take.
        label: The name for people.
        suffixes: Suffixes in lower case; outputs get the first.
        signature: A regular expression that the first bytes of a file match.
        pillow_name: Pillow's name of the format.
        holds: What can be written; NOTHING for a format that is only read.
        reader: The entry of `images.read.READERS` that reads it.
        writer: The entry of `images.write.WRITERS` that writes it.
        save_options: Pillow's options for saving.
        gray_save_options: Options that replace those for gray pictures.
        max_side_px: The longest side allowed, None without a limit.
        max_metadata_bytes: The most bytes of a kind of metadata.
    """

    name: str
    label: str
    suffixes: tuple[str, ...]
    signature: bytes
    pillow_name: str
    holds: Feature = NOTHING
    reader: str = "pillow"
    writer: str = "pillow"
    save_options: Mapping[str, object] = field(default_factory=dict)
    gray_save_options: Mapping[str, object] = field(default_factory=dict)
    max_side_px: int | None = None
    max_metadata_bytes: Mapping[Feature, int] = field(default_factory=dict)


# A JPEG segment holds 65533 bytes, of which EXIF spends 6, XMP 29 and each of at most 255 ICC segments 14 on a header.
_JPEG_METADATA_BYTES = {Feature.EXIF: 65527, Feature.XMP: 65504, Feature.ICC: 255 * 65519}
# PNG level 2: kodim05 takes 31 ms and 799 kB; level 1: 28 ms, 802 kB; level 6: 78 ms, 814 kB (Pillow 13, zlib-ng).
FORMATS = (
    PictureFormat(
        "png", "PNG", (".png",), rb"\x89PNG\r\n\x1a\n", "PNG", EVERYTHING,
        reader="png", writer="png", save_options={"compress_level": 2},
    ),
    PictureFormat(
        "jpeg", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), rb"\xff\xd8\xff", "JPEG",
        Feature.COLOUR | Feature.GRAY | METADATA,
        save_options={"quality": 95, "subsampling": 0}, max_side_px=65500, max_metadata_bytes=_JPEG_METADATA_BYTES,
    ),
    PictureFormat(
        "webp", "WebP", (".webp",), rb"RIFF....WEBP", "WEBP", Feature.COLOUR | Feature.ALPHA | METADATA,
        save_options={"lossless": True, "exact": True, "method": 4}, max_side_px=16383,
    ),
    PictureFormat(
        "tiff", "TIFF", (".tif", ".tiff"), rb"II[*+]\0|MM\0[*+]", "TIFF", EVERYTHING, reader="tiff", writer="tiff",
    ),
    PictureFormat("bmp", "BMP", (".bmp",), rb"BM", "BMP", Feature.COLOUR | Feature.GRAY),
    PictureFormat(
        "ppm", "PPM", (".ppm", ".pnm"), rb"P[36]", "PPM", Feature.COLOUR | Feature.GRAY | Feature.DEPTH_16,
        reader="netpbm", writer="netpbm",
    ),
    PictureFormat(
        "pgm", "PGM", (".pgm",), rb"P[25f]", "PPM", Feature.GRAY | Feature.DEPTH_16, reader="netpbm", writer="netpbm",
    ),
    PictureFormat("pbm", "PBM", (".pbm",), rb"P[14]", "PPM"),
    PictureFormat(
        "avif", "AVIF", (".avif",), rb"....ftyp(avif|avis|mif1|msf1)", "AVIF",
        Feature.COLOUR | Feature.GRAY | Feature.ALPHA | METADATA,
        save_options={"quality": 95, "subsampling": "4:4:4"}, gray_save_options={"subsampling": "4:0:0"},
        max_side_px=65536,
    ),
    PictureFormat("gif", "GIF", (".gif",), rb"GIF8[79]a", "GIF"),
)  # fmt: skip

PICTURE_SUFFIXES = frozenset(suffix for row in FORMATS for suffix in row.suffixes)
WRITABLE = {row.name: row for row in FORMATS if row.holds}
DEFAULT_FORMAT = "png"
_FORMAT_OF_SUFFIX = {suffix: row.name for row in WRITABLE.values() for suffix in row.suffixes}
_SIGNATURES = [(re.compile(row.signature, re.DOTALL), row) for row in FORMATS]


def format_of_bytes(data: bytes) -> PictureFormat | None:
    """Return the format of a file by its first bytes, at least 12 of them, or None for an unknown one."""
    return next((row for signature, row in _SIGNATURES if signature.match(data)), None)


def format_of_name(name: str) -> PictureFormat:
    """Return the format to write for a name in any case.

    Raises:
        OptionError: The name is unknown, or the format is only read.
    """
    if name.lower() not in WRITABLE:
        raise OptionError(f"unknown picture format {name.lower()!r}; use one of {' '.join(WRITABLE)}")
    return WRITABLE[name.lower()]


def format_of_suffix(path: str | os.PathLike) -> str:
    """Return the name of the format to write for a path's suffix in any case.

    Raises:
        OptionError: The suffix is missing or unknown, or its format is only read.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMAT_OF_SUFFIX:
        problem = f"unknown picture suffix {suffix!r}" if suffix else "the name has no suffix"
        raise OptionError(f"{os.fspath(path)}: {problem}; use one of {' '.join(_FORMAT_OF_SUFFIX)}")
    return _FORMAT_OF_SUFFIX[suffix]


def readable_labels() -> str:
    """Return the names of all formats for a sentence: "PNG, JPEG or GIF"."""
    *labels, last = (row.label for row in FORMATS)
    return f"{', '.join(labels)} or {last}"
