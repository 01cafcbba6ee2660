"""The alpha section: lossless, small, and safe to unpack from hostile bytes."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from latcodec.errors import FormatError
from latcodec.images.alpha import pack_alpha, unpack_alpha

RANDOM = np.random.default_rng(3)


def planes():
    rows, columns = np.mgrid[:70, :90]
    disk = np.clip(128 + (np.hypot(rows - 35, columns - 45) - 20) * 20, 0, 255).astype(np.uint8)
    for dtype in (np.uint8, np.uint16):
        top = np.iinfo(dtype).max
        yield np.full((1, 1), 7, dtype)
        yield np.full((3000, 4000), top, dtype)
        yield RANDOM.integers(0, top + 1, (13, 17), dtype=dtype)
        yield (disk.astype(dtype) * (top // 255)).astype(dtype)
        yield np.array([[0, top]], dtype)
        yield np.arange(40000).reshape(2, 20000).astype(dtype)  # too wide for WebP


@pytest.mark.parametrize("plane", list(planes()), ids=lambda plane: f"{plane.dtype}-{plane.shape}")
def test_round_trip(plane):
    data = pack_alpha(plane)
    depth, (height, width) = 8 * plane.itemsize, plane.shape
    back = unpack_alpha(data, width, height, depth)
    assert back.dtype == plane.dtype and np.array_equal(back, plane) and back.flags.c_contiguous
    if (plane == plane.flat[0]).all():
        assert len(data) == plane.itemsize
    for size in ((width + 1, height, depth), (width, height + 1, depth), (width, height, 24 - depth)):
        if len(data) > 2:
            with pytest.raises(FormatError, match="alpha section"):
                unpack_alpha(data, *size)


def test_a_plane_that_is_not_contiguous():
    plane = RANDOM.integers(0, 256, (20, 30, 4), dtype=np.uint8)[::-1, ::2, 3]
    assert np.array_equal(unpack_alpha(pack_alpha(plane), 15, 20, 8), plane)


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3), np.uint8), np.zeros((2, 2), np.int32), np.zeros((2, 2, 1), np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match="alpha must be"):
        pack_alpha(array)


def sections():
    noise = RANDOM.integers(0, 256, (30, 40), dtype=np.uint8)
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        file = io.BytesIO()
        Image.fromarray(noise).convert("L" if format == "PNG" else "RGB").save(file, format, **options)
        yield file.getvalue()


@pytest.mark.parametrize("data", list(sections()), ids=["png", "webp"])
def test_truncated_and_damaged_sections_are_format_errors(data):
    for length in [0, *range(2, 60), len(data) // 2]:
        with pytest.raises(FormatError):
            unpack_alpha(data[:length], 40, 30, 8)
    for _ in range(150):
        damaged = bytearray(data)
        damaged[RANDOM.integers(len(data) // 2)] ^= 1 << RANDOM.integers(8)
        try:
            plane = unpack_alpha(bytes(damaged), 40, 30, 8)
        except FormatError:
            continue
        assert plane.shape == (30, 40) and plane.dtype == np.uint8


def test_other_pictures_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    bomb = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bomb + struct.pack(">I", zlib.crc32(b"IHDR" + bomb)) + bytes(99)
    colour = png[:25] + b"\x02" + png[26:]
    webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\x7f" * 2
    for data in (png, colour, webp, b"junk", b"", b"\xff\xd8\xff" + bytes(99)):
        with pytest.raises(FormatError, match="alpha section"):
            unpack_alpha(data, 40, 30, 8)
