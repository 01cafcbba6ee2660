"""The smallest parts of the file format: numbers of kinds, varints, sections and the header CRC.

FORMAT.md in this folder is the specification.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from latcodec.errors import FormatError

MAGIC = b"\xcaLC\n"
VERSION = 1
MAX_SIDE_PX = 2**31
MAX_SECTIONS = 65_536

STREAM, PARAMETERS, ALPHA = 0x01, 0x02, 0x03
ANCILLARY = 0x80
ICC, EXIF, XMP, HEADER_CRC = 0x81, 0x82, 0x83, 0x84
KIND_NAMES = {
    STREAM: "stream",
    PARAMETERS: "parameters",
    ALPHA: "alpha",
    ICC: "icc",
    EXIF: "exif",
    XMP: "xmp",
    HEADER_CRC: "header_crc",
}

GRAY, DEPTH16 = 0x01, 0x02
FIXED_BYTES = 16
CRC_BYTES = 4
VARINT_BYTES = 5
SMALLEST_BYTES = FIXED_BYTES + 2 + 2 + CRC_BYTES  # width, height and one empty section


class Section(NamedTuple):
    """Where a section lies: its kind, its offset, and the start and end of its contents."""

    kind: int
    offset: int
    start: int
    end: int


class Part(NamedTuple):
    """A part of a file for people: header, section or checksum, with its offset and length."""

    name: str
    offset: int
    length_bytes: int


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


def each_section(view: memoryview, position: int, end: int) -> Iterator[Section]:
    """Yield the sections that must fill position..end exactly.

    Raises:
        FormatError: A section does not fit; the sections before it have been yielded.
    """
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
        yield Section(kind, offset, start, position)


def header_crc(view: memoryview, located: Sequence[Section]) -> bytes:
    """Return the contents of the header CRC section.

    Args:
        view: The file without its checksum.
        located: All of its sections, in order.
    """
    last = max(section.start for section in located if section.kind == STREAM)
    crc = position = 0
    for section in located:
        if section.kind == HEADER_CRC or section.start == last:
            crc, position = zlib.crc32(view[position : section.start], crc), section.end
    return zlib.crc32(view[position:], crc).to_bytes(CRC_BYTES, "little")


def parts_of(header_bytes: int, located: Sequence[Section]) -> list[Part]:
    """Return the header and the sections of a file as parts."""
    parts = [Part(kind_name(section.kind), section.offset, section.end - section.offset) for section in located]
    return [Part("header", 0, header_bytes), *parts]


def kind_name(kind: int) -> str:
    """Return the name of a kind of section, for people and for `latcodec info`."""
    return KIND_NAMES.get(kind) or f"unknown 0x{kind:02x}"
