"""Lossless pixels as sections of the container, for pictures that are cheapest so and for alpha planes.

Pixels are a simple lossless WebP, uint8. The decoder reads size and depth from the header itself and calls a library
only if they are the picture's: a section cannot ask for more memory than the picture takes, about 20 bytes a pixel.

Source: WebP lossless bitstream (RFC 9649) 3.4.
"""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from latcodec.errors import FormatError, ImageError

WEBP_LONGEST_SIDE_PX = 16383
_PILLOW_LIMIT = threading.RLock()  # Image.MAX_IMAGE_PIXELS is global; it is changed only while a picture is read


@contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
    """Set Pillow's own limit meanwhile: it refuses twice as many pixels, before WebP or TIFF allocate memory."""
    from PIL import Image

    with _PILLOW_LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def pack_pixels(pixels: np.ndarray, quality: int) -> bytes | None:
    """Return pixels as a lossless WebP.

    Args:
        pixels: uint8 or uint16 [H, W, 3].
        quality: The effort of libwebp, 0 ... 100.

    Returns:
        The file; None for 16 bits or a side over 16,383 px, which no WebP holds, and where libwebp is missing or fails.
    """
    from PIL import Image

    if not fits_webp(pixels):
        return None
    file = io.BytesIO()
    try:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(file, "WEBP", lossless=True, quality=quality, method=4, exact=True)
    except (ValueError, OSError, MemoryError):  # libwebp raises these without enough memory
        return None
    return file.getvalue()


def fits_webp(pixels: np.ndarray) -> bool:
    """Return whether a lossless WebP holds pixels, [H, W] or [H, W, 3], and can be written here."""
    from PIL import features

    return pixels.dtype == np.uint8 and max(pixels.shape) <= WEBP_LONGEST_SIDE_PX and bool(features.check("webp"))


def unpack_pixels(data: bytes, width: int, height: int) -> np.ndarray:
    """Return the pixels of a section, uint8 [height, width, 3].

    Raises:
        FormatError: The section is damaged, truncated, or of another size than the picture.
    """
    if (size := webp_size(data)) != (width, height):
        contents = "no lossless WebP" if size is None else "{} x {} px".format(*size)
        raise FormatError(f"stream: {contents}, but the picture has {width} x {height} px")
    pixels = load_section(data, "WEBP", (width, height), "stream")
    if pixels.shape != (height, width, 3):
        raise FormatError(f"stream: decoded to {list(pixels.shape)}, not {[height, width, 3]}")
    return pixels


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height, px, of a simple lossless WebP, by its first bytes; None for anything else."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or len(data) < 25 or data[20] != 0x2F:
        return None
    packed = int.from_bytes(data[21:25], "little")
    return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1


def load_section(data: bytes, kind: str, size: tuple[int, int], section: str) -> np.ndarray:
    """Return the samples of a PNG or WebP.

    Args:
        data: The bytes of the section.
        kind: Pillow's name of the format.
        size: Width and height by the header, px.
        section: The name of the section, for errors.

    Raises:
        FormatError: The section is damaged, or has more frames than one.
        ImageError: Pillow cannot read this format here.
        MemoryError: There is not enough memory.
    """
    from PIL import Image, features

    if kind == "WEBP" and not features.check("webp"):
        raise ImageError(f"{section}: a lossless WebP, which this Pillow was built without; install one that reads it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pillow_limit(size[0] * size[1]), Image.open(io.BytesIO(data), formats=[kind]) as image:
                if image.size != size or getattr(image, "n_frames", 1) != 1:
                    raise FormatError(f"{section}: two sizes or frames in one section; the file is damaged")
                image.load()
                return np.array(image)
    except (FormatError, MemoryError):
        raise
    except Exception as error:  # on hostile bytes Pillow raises nearly every built-in error
        raise FormatError(f"{section}: damaged {kind}: {' '.join(str(error).split())[:200]}") from error
