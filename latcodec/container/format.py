"""Pack and unpack `.lc` files of format version 1. FORMAT.md in this folder is the specification."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from latcodec.container.diagnose import first_bad_field, identify_foreign
from latcodec.container.payload import Payload, check_payload, payload_of
from latcodec.container.wire import (
    ALPHA,
    ANCILLARY,
    CRC_BYTES,
    DEPTH16,
    EXIF,
    GRAY,
    HEADER_CRC,
    ICC,
    KIND_NAMES,
    MAGIC,
    MAX_SIDE_PX,
    PARAMETERS,
    SMALLEST_BYTES,
    STREAM,
    VERSION,
    XMP,
    Part,
    Section,
    each_section,
    header_crc,
    parts_of,
    read_size,
    varint,
)
from latcodec.errors import FormatError, VersionError
from latcodec.runtime import MAX_PIXELS


@dataclass(frozen=True)
class _CheckedFile:
    """A file that has passed every check of the specification: its bytes, its size in px, and its sections."""

    view: memoryview
    width: int
    height: int
    sections: Sequence[Section]


def pack(payload: Payload) -> bytes:
    """Return the file of a payload; the same payload always gives the same bytes.

    Raises:
        ValueError: A field is outside its range. Callers check what comes from files and people before.
    """
    check_payload(payload)
    head = bytes((VERSION, payload.backend_id, GRAY * bool(payload.gray) | DEPTH16 * (payload.depth == 16)))
    pieces = [MAGIC, head, bytes((payload.rate_index,)), payload.weights_id, payload.integers_crc.to_bytes(4, "little")]
    pieces += [varint(payload.width), varint(payload.height)]
    single = [(ALPHA, payload.alpha), (ICC, payload.icc), (EXIF, payload.exif), (XMP, payload.xmp)]
    single.append((HEADER_CRC, bytes(CRC_BYTES) if payload.has_header_crc else None))
    contents_by_kind = [
        (PARAMETERS, payload.parameters), *((STREAM, stream) for stream in payload.streams), *single, *payload.extra,
    ]  # fmt: skip
    for kind, contents in contents_by_kind:
        if contents is not None:
            pieces += [bytes((kind,)), varint(len(contents)), contents]
    body = bytearray(b"".join(pieces))
    if payload.has_header_crc:
        view = memoryview(body)
        located = list(each_section(view, read_size(view, len(body))[2], len(body)))
        section = next(section for section in located if section.kind == HEADER_CRC)
        body[section.start : section.end] = header_crc(view, located)
    return bytes(body) + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def unpack(data: bytes, *, max_pixels: int = MAX_PIXELS, ignore_checksum: bool = False) -> Payload:
    """Return the payload of a file after every check of the specification.

    Args:
        data: The bytes of the file.
        max_pixels: The largest width * height accepted, px.
        ignore_checksum: Whether to accept a file whose checksum fails if its header CRC holds. The contents of the last
            stream are then unchecked.

    Raises:
        FormatError: The file is no latcodec file, is damaged, or has too many pixels.
        VersionError: The file is sound but needs a newer latcodec.
    """
    checked = _check_file(data, max_pixels, ignore_checksum)
    return payload_of(checked.view, checked.width, checked.height, checked.sections)


def sections(data: bytes) -> list[Part]:
    """Return the parts of a file, from the header to the checksum; their lengths add up to that of the file.

    The length of a section includes its kind and length bytes. Raises as `unpack` does, without a limit on pixels.
    """
    checked = _check_file(data, MAX_SIDE_PX**2)
    end = len(checked.view) - CRC_BYTES
    return [*parts_of(checked.sections[0].offset, checked.sections), Part("checksum", end, CRC_BYTES)]


def _check_file(data: bytes, max_pixels: int, ignore_checksum: bool = False) -> _CheckedFile:
    """Run the checks in the order of the specification."""
    view = memoryview(data).cast("B")
    end = len(view) - CRC_BYTES
    checksum_holds = _check_envelope(view, ignore_checksum)
    _check_versions(view)
    width, height, position = read_size(view, end)
    if width * height > max_pixels:
        raise FormatError(
            f"the picture has {width} x {height} = {width * height} pixels, over the limit of {max_pixels}: "
            f"raise it with --max-pixels if you trust the file"
        )
    located = list(each_section(view, position, end))
    _check_kinds(located)
    _check_header_crc(view, located, checksum_holds)
    return _CheckedFile(view, width, height, located)


def _check_envelope(view: memoryview, ignore_checksum: bool) -> bool:
    """Check magic, length and checksum; return whether the checksum holds."""
    if view[:4] != MAGIC:
        raise FormatError(f"not a latcodec file: {identify_foreign(bytes(view[:64]))}")
    if len(view) < SMALLEST_BYTES:
        raise FormatError(f"truncated: {len(view)} bytes, the smallest latcodec file has {SMALLEST_BYTES}")
    end = len(view) - CRC_BYTES
    stored, actual = int.from_bytes(view[end:], "little"), zlib.crc32(view[:end])
    if stored != actual and not ignore_checksum:
        problem = first_bad_field(view, end)
        raise FormatError(
            f"checksum at offset {end} is {stored:08x} but the contents give {actual:08x}: the file is damaged or "
            f"incomplete{f' ({problem})' if problem else ''}; get it again from where it came from"
        )
    return stored == actual


def _check_versions(view: memoryview) -> None:
    if view[4] == 0:
        raise FormatError("format version at offset 4 is 0, which was never given out")
    if view[4] != VERSION:
        raise VersionError(f"format version at offset 4 is {view[4]}, this latcodec reads {VERSION}: update latcodec")
    if view[6] & ~(GRAY | DEPTH16):
        raise VersionError(f"flags at offset 6 are 0x{view[6]:02x}, with bits of a newer latcodec: update latcodec")


def _check_kinds(located: Sequence[Section]) -> None:
    """Check that no critical kind is unknown, that no single section is repeated, and that there is a stream."""
    for section in located:
        if section.kind not in KIND_NAMES and not section.kind & ANCILLARY:
            raise VersionError(
                f"critical section kind 0x{section.kind:02x} at offset {section.offset} is unknown: update latcodec"
            )
    seen = set()
    for section in located:
        if section.kind in seen and section.kind in KIND_NAMES and section.kind != STREAM:
            name = KIND_NAMES[section.kind]
            raise FormatError(f"section {name} at offset {section.offset} is there a second time")
        seen.add(section.kind)
    if STREAM not in seen:
        raise FormatError("no stream section")


def _check_header_crc(view: memoryview, located: Sequence[Section], checksum_holds: bool) -> None:
    end = len(view) - CRC_BYTES
    stored = [bytes(view[section.start : section.end]) for section in located if section.kind == HEADER_CRC]
    if not checksum_holds and not stored:
        raise FormatError(
            f"checksum at offset {end} does not fit, and the file has no header CRC that proves the rest sound: "
            f"only files of codecs that can decode damage have one"
        )
    if stored and stored[0] != header_crc(view[:end], located):
        raise FormatError("header CRC: more than the contents of the last stream is damaged: nothing can be decoded")
