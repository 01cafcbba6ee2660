"""Pixels without loss as sections of the container: what the alpha plane and pictures that cost least so share.

Pixels are a simple lossless WebP, uint8. The decoder reads size and depth from the header itself and calls a library
only if they are the picture's: a section cannot ask for more than the picture takes, some 20 bytes a pixel. Source:
WebP lossless bitstream (RFC 9649) 3.4.
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
    """Lend Pillow our limit: it refuses twice that, before WebP allocates, and asks again while it loads a TIFF."""
    from PIL import Image

    with _PILLOW_LIMIT:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def pack_pixels(pixels: np.ndarray, quality: int) -> bytes | None:
    """Bytes of pixels, uint8 [H, W, 3], as lossless WebP, for quality, 0 ... 100, of libwebp's effort.

    None for what no WebP holds, 16 bits or a side over 16,383 px, and where libwebp is missing or cannot do it.
    """
    from PIL import Image

    if not can_pack(pixels):
        return None
    file = io.BytesIO()
    try:
        image = Image.fromarray(np.ascontiguousarray(pixels))
        image.save(file, "WEBP", lossless=True, quality=quality, method=4, exact=True)
    except (ValueError, OSError, MemoryError):  # libwebp found no memory
        return None
    return file.getvalue()


def can_pack(pixels: np.ndarray) -> bool:
    """Whether a lossless WebP holds pixels, [H, W] or [H, W, 3], and can be written here."""
    from PIL import features

    return pixels.dtype == np.uint8 and max(pixels.shape) <= WEBP_LONGEST_SIDE_PX and features.check("webp")


def unpack_pixels(data: bytes, width: int, height: int) -> np.ndarray:
    """The pixels, uint8 [height, width, 3].

    Raises FormatError if the section is damaged, truncated or of another size than the picture.
    """
    if (found := webp_size(data)) != (width, height):
        what = "no lossless WebP" if found is None else "{} x {} px".format(*found)
        raise FormatError(f"stream: {what}, but the picture has {width} x {height} px")
    pixels = load(data, "WEBP", (width, height), "stream")
    if pixels.shape != (height, width, 3):
        raise FormatError(f"stream: decoded to {list(pixels.shape)}, not {[height, width, 3]}")
    return pixels


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height), px, of a simple lossless WebP, by its first bytes; None for anything else."""
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8L" or len(data) < 25 or data[20] != 0x2F:
        return None
    packed = int.from_bytes(data[21:25], "little")
    return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1


def load(data: bytes, kind: str, size: tuple[int, int], section: str) -> np.ndarray:
    """What Pillow reads of a PNG or WebP, `kind`, whose header says `size`, (width, height), px.

    section: its name, for a person. Raises FormatError if it is damaged, or of more frames than one; ImageError where
    Pillow cannot read such files, MemoryError.
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
