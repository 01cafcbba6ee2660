"""The parts of a latcodec file that `container` puts together: its numbers, varints, sections, the guard.

What each of them means is in the specification, the docstring of `container.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from latcodec.errors import FormatError

MAGIC = b"\xcaLC\n"
VERSION = 1
MAX_SIDE_PX = 2**31
MAX_SECTIONS = 65_536

STREAM, PARAMETERS, ALPHA = 0x01, 0x02, 0x03
ANCILLARY = 0x80
ICC, EXIF, XMP, GUARD = 0x81, 0x82, 0x83, 0x84
KIND_NAMES = {STREAM: "stream", PARAMETERS: "parameters", ALPHA: "alpha", ICC: "icc", EXIF: "exif", XMP: "xmp",
              GUARD: "guard"}  # fmt: skip

GRAY, DEPTH16 = 0x01, 0x02
FIXED_BYTES = 16
CRC_BYTES = 4
VARINT_BYTES = 5
SMALLEST_BYTES = FIXED_BYTES + 2 + 2 + CRC_BYTES  # width, height and one empty section

Section = tuple[int, int, int, int]  # kind, offset, start and end of the contents


def varint(value: int) -> bytes:
    """Return the shortest LEB128 form of `value`, 0 <= value < 2**35."""
    if not 0 <= value < 1 << 7 * VARINT_BYTES:
        raise ValueError(f"{value} does not fit into a varint of {VARINT_BYTES} bytes")
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(view: memoryview, position: int, end: int, field: str) -> tuple[int, int]:
    """Return the value at `position` and the offset after it; `field` is its name in errors."""
    value = 0
    for i in range(VARINT_BYTES):
        if position + i >= end:
            raise FormatError(f"{field} at offset {position} runs past the end")
        byte = view[position + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if byte == 0 and i > 0:
                raise FormatError(f"{field} at offset {position} is not in its shortest form")
            return value, position + i + 1
    raise FormatError(f"{field} at offset {position} is longer than {VARINT_BYTES} bytes")


def read_size(view: memoryview, end: int) -> tuple[int, int, int]:
    """Return width, height and the offset after them."""
    width, position = read_varint(view, FIXED_BYTES, end, "width")
    height, after = read_varint(view, position, end, "height")
    for name, value, offset in (("width", width, FIXED_BYTES), ("height", height, position)):
        if not 1 <= value <= MAX_SIDE_PX:
            raise FormatError(f"{name} at offset {offset} is {value}, not in 1..{MAX_SIDE_PX}")
    return width, height, after


def read_sections(view: memoryview, position: int, end: int) -> list[Section]:
    """Return (kind, offset, contents start, contents end) of the sections that must fill position..end exactly."""
    return list(each_section(view, position, end))


def each_section(view: memoryview, position: int, end: int) -> Iterator[Section]:
    """As `read_sections`, one section after the other, up to the first that does not fit."""
    count = 0
    while position < end:
        offset, kind = position, view[position]
        name = f"section {kind_name(kind)}"
        length, start = read_varint(view, offset + 1, end, f"length of {name}")
        if length > end - start:
            raise FormatError(f"{name} at offset {offset} needs {length} bytes, {end - start} are there")
        if count == MAX_SECTIONS:
            raise FormatError(f"more than {MAX_SECTIONS} sections at offset {offset}")
        position, count = start + length, count + 1
        yield kind, offset, start, position


def guard_of(view: memoryview, found: list[Section]) -> bytes:
    """Return what the guard of a file without its checksum has to be; found: as of `read_sections`."""
    last = max(start for kind, _, start, _ in found if kind == STREAM)
    crc = position = 0
    for kind, _, start, end in found:
        if kind == GUARD or start == last:
            crc, position = zlib.crc32(view[position:start], crc), end
    return zlib.crc32(view[position:], crc).to_bytes(CRC_BYTES, "little")


def kind_name(kind: int) -> str:
    return KIND_NAMES.get(kind) or f"unknown 0x{kind:02x}"
