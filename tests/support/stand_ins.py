"""A codec and picture files as small as they can be: the .lc file stores the bytes of the "picture" as they are.

A picture that begins with bad, bug or stop raises ImageError, a bug or Ctrl-C; one with the word frames drops some,
one with the word large misses a target.
"""

import math
import types
from dataclasses import dataclass
from pathlib import Path

from latcodec import container
from latcodec.errors import ImageError
from latcodec.runtime import MAX_PIXELS


@dataclass(frozen=True)
class EncodeSettings:
    codec: str
    lmbda: float | None
    quality: float | None
    bpp: float | None
    psnr: float | None
    size_bytes: int | None
    device: str
    weights: str | None
    verify: bool
    strip: bool


@dataclass(frozen=True)
class Samples:
    shape: tuple[int, ...] = (2, 3, 3)


def file_of(data: bytes) -> bytes:
    return container.pack(container.Payload(1, b"abcd", 128, 3, 2, False, 8, 0, (data,)))


def read(source, *, max_pixels):
    data = Path(source).read_bytes() if isinstance(source, Path) else source.read()
    if data.startswith(b"bad"):
        raise ImageError("not a picture")
    if data.startswith(b"bug"):
        raise ZeroDivisionError("a bug")
    if data.startswith(b"stop"):
        raise KeyboardInterrupt
    return types.SimpleNamespace(pixels=Samples(), data=data, notes=("2 further frames dropped",) * (b"frames" in data))


def write(picture, file, format):
    file.write(f"{format}:".encode() + picture.data)
    return ("16 bits cut to 8",) if format == "jpeg" else ()


def check_codec(codec, flags=()):
    pass


def pick_device(name):
    return name


def encode_picture(picture, settings, progress=None):
    data = file_of(picture.data)
    missed = "9 bytes cannot be reached" if b"large" in picture.data else ""
    return types.SimpleNamespace(
        data=data, rate_index=128, lmbda=settings.lmbda or 1.0, bpp=len(data) * 8 / 6, estimated_bits=8.0 * len(data),
        psnr_db=math.inf, seconds={"networks": 0.01, "entropy": 0.002}, trials=1,
        notes=(missed,) * bool(missed) + ("profile dropped",) * settings.strip, details={}, missed=missed,
    )  # fmt: skip


def decode_picture(data, *, device="auto", weights=None, max_pixels=MAX_PIXELS, ignore_checksum=False):
    return types.SimpleNamespace(pixels=Samples(), data=container.unpack(data).streams[0], notes=())
