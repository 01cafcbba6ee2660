"""The picture that readers return, writers take and codecs encode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Picture:
    """One upright picture and what travels with it.

    Attributes:
        pixels: uint8 or uint16 [H, W, 3], C-contiguous, in the colour space of `icc` (sRGB if None). Gray pictures have
            three equal planes.
        gray: Whether the picture has no colour.
        alpha: Transparency, [H, W] of the same dtype, not premultiplied, or None.
        icc: The ICC profile.
        exif: The EXIF block from its TIFF header on, with orientation 1.
        xmp: The XMP packet.
        notes: One phrase for each thing that the file held and this picture does not.
    """

    pixels: np.ndarray
    gray: bool
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    notes: tuple[str, ...] = ()
