"""Explain files that are not sound: what a foreign file seems to be, and where a damaged one stops making sense."""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass

from latcodec.container.payload import Payload, payload_of
from latcodec.container.wire import (
    CRC_BYTES,
    MAGIC,
    SMALLEST_BYTES,
    VERSION,
    Part,
    Section,
    each_section,
    parts_of,
    read_size,
)
from latcodec.errors import FormatError

# Offset, signature and name; formats that `images` cannot read too, for which the advice is the same.
_FOREIGN_FORMATS = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (8, b"WEBP", "a WebP picture"),
    (4, b"ftypavi", "an AVIF picture"),
    (4, b"ftyphei", "a HEIF picture"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
)


@dataclass(frozen=True)
class DamagedFile:
    """What a file whose checksum fails seems to hold; nothing of it is proven.

    Attributes:
        payload: The header and the sections that could be located.
        parts: The parts of the file; the last is "unreadable" from where lengths stop adding up.
    """

    payload: Payload
    parts: list[Part]


def inspect_damaged(data: bytes) -> DamagedFile | None:
    """Return what a file whose checksum fails seems to hold, for a person to read and never for decoding.

    None stands for a file whose checksum holds, for one of another format or version, and for one whose header cannot
    be parsed.
    """
    view, end = memoryview(data).cast("B"), len(data) - CRC_BYTES
    if view[:4] != MAGIC or len(view) < SMALLEST_BYTES or view[4] != VERSION:
        return None
    if int.from_bytes(view[end:], "little") == zlib.crc32(view[:end]):
        return None
    try:
        width, height, after = read_size(view, end)
    except FormatError:
        return None
    located: list[Section] = []
    with suppress(FormatError):
        for section in each_section(view, after, end):
            located.append(section)
    stop = located[-1].end if located else after
    last = Part("checksum", end, CRC_BYTES) if stop == end else Part("unreadable", stop, len(view) - stop)
    return DamagedFile(payload_of(view, width, height, located), [*parts_of(after, located), last])


def first_bad_field(view: memoryview, end: int) -> str:
    """Return the first field that does not fit in a file whose checksum, at `end`, fails; "" if all lengths add up."""
    if view[4] != VERSION:
        return ""
    try:
        for _ in each_section(view, read_size(view, end)[2], end):
            pass
    except FormatError as error:
        return str(error)
    return ""


def identify_foreign(start: bytes) -> str:
    """Return what a file without our magic seems to be by its first bytes, and what to do."""
    if not start:
        return "the file is empty"
    if MAGIC.startswith(start):
        return f"truncated after {len(start)} bytes"
    for offset, signature, name in _FOREIGN_FORMATS:
        if start[offset : offset + len(signature)] == signature:
            return f"this is {name}; `latcodec encode` makes a latcodec file of it"
    if start.startswith(b"\xcaLC\r\n") or start.startswith(b"\xef\xbf\xbdLC"):
        return "it was transferred as text, which damaged it; transfer it as binary"
    if all(byte in b"\t\n\r\f" or 0x20 <= byte < 0x7F for byte in start):
        return "this is a text file"
    return f"it starts with {start[:4].hex(' ')}, not {MAGIC.hex(' ')}"
