"""The fields of a file as Python values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latcodec.container.wire import (
    ALPHA,
    ANCILLARY,
    DEPTH16,
    EXIF,
    GRAY,
    HEADER_CRC,
    ICC,
    KIND_NAMES,
    MAX_SECTIONS,
    MAX_SIDE_PX,
    PARAMETERS,
    STREAM,
    XMP,
    Section,
)


@dataclass(frozen=True)
class Payload:
    """The contents of a file; FORMAT.md gives the range and meaning of each field.

    Attributes:
        backend_id: The codec, 0..255.
        weights_id: The first 4 bytes of the SHA-256 of the weights file.
        rate_index: The quantised lambda, 0..255.
        width: px.
        height: px.
        gray: Whether the picture has no colour.
        depth: 8 or 16 bits per sample.
        integers_crc: The CRC-32 of every integer that the decoder derives.
        streams: The entropy-coded streams, at least one.
        alpha: The alpha plane as `images.alpha` packs it.
        icc: The ICC profile.
        exif: The EXIF block.
        xmp: The XMP packet.
        parameters: Settings private to the codec.
        has_header_crc: Whether the file has a CRC of all but its last stream.
        extra: (kind, contents) of each ancillary section that this version does not know, in order.
    """

    backend_id: int
    weights_id: bytes
    rate_index: int
    width: int
    height: int
    gray: bool
    depth: int
    integers_crc: int
    streams: tuple[bytes, ...]
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    parameters: bytes | None = None
    has_header_crc: bool = False
    extra: tuple[tuple[int, bytes], ...] = ()


def payload_of(view: memoryview, width: int, height: int, located: Iterable[Section]) -> Payload:
    """Return the payload of a file whose header and sections have been located; nothing is checked here."""
    single: dict[int, bytes] = {}
    streams, extra = [], []
    for section in located:
        contents = bytes(view[section.start : section.end])
        if section.kind == STREAM:
            streams.append(contents)
        elif section.kind in KIND_NAMES:
            single[section.kind] = contents
        else:
            extra.append((section.kind, contents))
    return Payload(
        backend_id=view[5],
        weights_id=bytes(view[8:12]),
        rate_index=view[7],
        width=width,
        height=height,
        gray=bool(view[6] & GRAY),
        depth=16 if view[6] & DEPTH16 else 8,
        integers_crc=int.from_bytes(view[12:16], "little"),
        streams=tuple(streams),
        alpha=single.get(ALPHA),
        icc=single.get(ICC),
        exif=single.get(EXIF),
        xmp=single.get(XMP),
        parameters=single.get(PARAMETERS),
        has_header_crc=HEADER_CRC in single,
        extra=tuple(extra),
    )


def check_payload(payload: Payload) -> None:
    """Raise ValueError for a field outside its range."""
    ranges = (
        ("backend_id", payload.backend_id, 0, 255),
        ("rate_index", payload.rate_index, 0, 255),
        ("width", payload.width, 1, MAX_SIDE_PX),
        ("height", payload.height, 1, MAX_SIDE_PX),
        ("integers_crc", payload.integers_crc, 0, 2**32 - 1),
    )
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, not in {low}..{high}")
    if payload.depth not in (8, 16):
        raise ValueError(f"depth is {payload.depth}, not 8 or 16")
    if len(payload.weights_id) != 4:
        raise ValueError(f"weights_id has {len(payload.weights_id)} bytes, not 4")
    if not 1 <= len(payload.streams) <= MAX_SECTIONS - len(KIND_NAMES) - len(payload.extra):
        raise ValueError(f"{len(payload.streams)} streams: too few or too many")
    for kind, _ in payload.extra:
        if kind in KIND_NAMES or not ANCILLARY <= kind <= 255:
            raise ValueError(f"extra section kind {kind} is not an unknown ancillary kind")
