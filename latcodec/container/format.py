"""The latcodec file format, version 1 (`.lc`). This docstring is the specification.

A file is a header, sections and a checksum, with nothing between or after them::

    offset  size  field
    0       4     magic            CA 4C 43 0A  (0xCA "LC" newline)
    4       1     format version   1
    5       1     backend id       the codec that made the streams; ids are append-only, their table is in `backends`
    6       1     flags            bit 0: gray; bit 1: 16 bits per sample instead of 8; bits 2..7: reserved, 0
    7       1     rate index       0..255, the quantised log-lambda the model is conditioned on; parameters may go below
    8       4     weights id       first four bytes of the SHA-256 of the weights file
    12      4     integers CRC     CRC-32 of every integer the decoder derives
    16      1..5  width            varint, px, 1..2**31
    .       1..5  height           varint, px, 1..2**31
    .       .     sections         one or more, up to the checksum
    end-4   4     checksum         CRC-32 of all bytes before it

    section: kind (1 byte), length (varint, 1..5 bytes), contents (length bytes, may be none)

Fixed-size integers are unsigned and little-endian. A varint is unsigned LEB128: seven bits a byte, lowest first, the
high bit set on all bytes but the last, at most five bytes, always the shortest form (a last byte 0 after another is
refused). CRC-32 is that of zlib and PNG (polynomial 0xEDB88320).

Section kinds are written numbers and append-only: a number is never reused, not even of a kind that is given up. ::

    kind  name        may repeat  contents
    0x01  stream      yes         what the backend wrote, entropy-coded; at least one; their order is that of the file
    0x02  parameters  no          settings private to the backend
    0x03  alpha       no          lossless alpha plane (`images.pack_alpha`)
    0x81  icc         no          ICC profile
    0x82  exif        no          EXIF block
    0x83  xmp         no          XMP packet
    0x84  guard       no          CRC-32 (4 bytes) of all bytes before the checksum but the contents of the last stream
                                  and of the guard itself

The high bit of a kind marks it *ancillary*: a reader that does not know the kind shows the same pixels without it,
and keeps it, in order, in `Payload.extra`. Without the high bit it is *critical*: a reader that does not know it must
refuse the file. Alpha is critical because a picture without its transparency is another picture. Sections may stand in
any order; `pack` writes parameters, streams, alpha, icc, exif, xmp, guard, extra. A file has at most 65,536 sections.

A guard vouches for a file whose checksum fails because its last stream is damaged: a codec that can decode such a
stream asks for one, and a reader that is told to ignore the checksum goes by it. Without a guard there is no ignoring.

Versioning. Three things hold in every version there will ever be: the magic, the version byte at offset 4, and the
CRC-32 of everything before it in the last four bytes. So a reader tells a damaged file (`FormatError`) from a sound
file of a newer version (`VersionError`) although it cannot read the latter. Additions that an old reader may ignore
are ancillary sections; additions that it must not ignore are critical sections or reserved flag bits; only a change of
the table above makes a new version.

Checks, in this order, all before anything is allocated by a number from the file:

1.  magic                                              FormatError, with a guess at what the file is instead
2.  length of at least the smallest file               FormatError
3.  checksum                                           FormatError, naming the field that does not fit, if one does not
4.  version: 0 was never given out, > 1 is newer       FormatError, VersionError
5.  reserved flag bits (the checksum holds, so a newer writer meant them)   VersionError
6.  width and height: canonical varints, 1..2**31      FormatError
7.  width * height <= max_pixels                       FormatError, naming the limit and `--max-pixels`
8.  sections: lengths add up exactly to the checksum's offset; number of sections   FormatError
9.  unknown critical kinds                             VersionError
10. repeated single sections, no stream                FormatError
11. guard, if there is one                             FormatError

Contents are copied out of the file, never expanded, so memory is bounded by the length of the file. The header, the
checksum and the head of one stream are at most 31 bytes for a picture within the default limit and a stream < 256 MiB.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass

from latcodec.container.diagnose import guess, symptom
from latcodec.container.wire import (
    ALPHA,
    ANCILLARY,
    CRC_BYTES,
    DEPTH16,
    EXIF,
    GRAY,
    GUARD,
    ICC,
    KIND_NAMES,
    MAGIC,
    MAX_SECTIONS,
    MAX_SIDE_PX,
    PARAMETERS,
    SMALLEST_BYTES,
    STREAM,
    VERSION,
    XMP,
    Section,
    each_section,
    guard_of,
    kind_name,
    read_sections,
    read_size,
    varint,
)
from latcodec.errors import FormatError, VersionError
from latcodec.runtime import MAX_PIXELS


@dataclass(frozen=True)
class Payload:
    """All that a file says; the specification above gives range and meaning of each field."""

    backend_id: int  # 0..255
    weights_id: bytes  # 4 bytes
    rate_index: int  # 0..255
    width: int  # px
    height: int  # px
    gray: bool
    depth: int  # 8 or 16 bits per sample
    integers_crc: int  # u32
    streams: tuple[bytes, ...]
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    parameters: bytes | None = None
    guard: bool = False  # whether the file has one
    extra: tuple[tuple[int, bytes], ...] = ()  # (kind, contents) of ancillary sections this version does not know


def pack(payload: Payload) -> bytes:
    """Return the bytes of the file that says `payload`; the same payload always gives the same bytes.

    Raises ValueError for a field outside its range: nothing a file or a person says gets here unchecked.
    """
    _check_payload(payload)
    head = bytes((VERSION, payload.backend_id, GRAY * bool(payload.gray) | DEPTH16 * (payload.depth == 16)))
    pieces = [MAGIC, head, bytes((payload.rate_index,)), payload.weights_id, payload.integers_crc.to_bytes(4, "little")]
    pieces += [varint(payload.width), varint(payload.height)]
    single = [(ALPHA, payload.alpha), (ICC, payload.icc), (EXIF, payload.exif), (XMP, payload.xmp)]
    single.append((GUARD, bytes(CRC_BYTES) if payload.guard else None))
    parts = [(PARAMETERS, payload.parameters), *((STREAM, s) for s in payload.streams), *single, *payload.extra]
    for kind, contents in parts:
        if contents is not None:
            pieces += [bytes((kind,)), varint(len(contents)), contents]
    body = bytearray(b"".join(pieces))
    if payload.guard:
        found = read_sections(memoryview(body), read_size(memoryview(body), len(body))[2], len(body))
        start, end = next((start, end) for kind, _, start, end in found if kind == GUARD)
        body[start:end] = guard_of(memoryview(body), found)
    return bytes(body) + zlib.crc32(body).to_bytes(CRC_BYTES, "little")


def unpack(data: bytes, *, max_pixels: int = MAX_PIXELS, ignore_checksum: bool = False) -> Payload:
    """Return what the file `data` says, after every check of the specification.

    max_pixels: largest width * height accepted, px. ignore_checksum: go by the guard where the checksum fails; the
    contents of the last stream are then unchecked.
    Raises FormatError (not ours, damaged, or over the limit) or VersionError (sound, but of a newer latcodec).
    """
    return _payload(*_checked(data, max_pixels, ignore_checksum))


def survey(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[Payload, list[tuple[str, int, int]], str]:
    """Return what `unpack` and `sections` do and "", or what a damaged file seems to say and what is wrong with it.

    Nothing vouches for a file whose checksum fails: this is for telling a person what it was, never for decoding. Its
    last part is "unreadable" from where lengths stop adding up. Raises as `unpack` does if the checksum is right, and
    FormatError if it is not and not even the header can be parsed.
    """
    try:
        return unpack(data, max_pixels=max_pixels), sections(data), ""
    except FormatError as error:
        damage = error
    view, end = memoryview(data).cast("B"), len(data) - CRC_BYTES
    if view[:4] != MAGIC or len(view) < SMALLEST_BYTES or view[4] != VERSION:
        raise damage
    if int.from_bytes(view[end:], "little") == zlib.crc32(view[:end]):
        raise damage
    try:
        width, height, after = read_size(view, end)
    except FormatError:
        raise damage from None
    found: list[Section] = []
    with suppress(FormatError):
        for section in each_section(view, after, end):
            found.append(section)
    stop = found[-1][3] if found else after
    parts = [("header", 0, after), *((kind_name(kind), offset, last - offset) for kind, offset, _, last in found)]
    parts.append(("checksum", end, CRC_BYTES) if stop == end else ("unreadable", stop, len(view) - stop))
    return _payload(view, width, height, found), parts, str(damage)


def _payload(view: memoryview, width: int, height: int, found: list[Section]) -> Payload:
    """Return what the header and the sections that were found say."""
    single: dict[int, bytes] = {}
    streams, extra = [], []
    for kind, _, start, end in found:
        contents = bytes(view[start:end])
        if kind == STREAM:
            streams.append(contents)
        elif kind in KIND_NAMES:
            single[kind] = contents
        else:
            extra.append((kind, contents))
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
        guard=GUARD in single,
        extra=tuple(extra),
    )


def sections(data: bytes) -> list[tuple[str, int, int]]:
    """Return (name, offset, length in bytes) of each part of the file; they tile it, so the lengths add up to it.

    A section's length includes its kind and length bytes. Raises as `unpack` does, but knows no limit on pixels.
    """
    view, _, _, found = _checked(data, MAX_SIDE_PX**2)
    parts = [("header", 0, found[0][1])]
    parts += [(kind_name(kind), offset, end - offset) for kind, offset, _, end in found]
    return [*parts, ("checksum", len(view) - CRC_BYTES, CRC_BYTES)]


def _checked(data: bytes, max_pixels: int, ignore_checksum: bool = False) -> tuple[memoryview, int, int, list[Section]]:
    """Run every check; return the file, width, height and (kind, offset, contents start, contents end) per section."""
    view = memoryview(data).cast("B")
    if view[:4] != MAGIC:
        raise FormatError(f"not a latcodec file: {guess(bytes(view[:64]))}")
    if len(view) < SMALLEST_BYTES:
        raise FormatError(f"truncated: {len(view)} bytes, the smallest latcodec file has {SMALLEST_BYTES}")
    end = len(view) - CRC_BYTES
    stored, actual = int.from_bytes(view[end:], "little"), zlib.crc32(view[:end])
    if stored != actual and not ignore_checksum:
        raise FormatError(
            f"checksum at offset {end} is {stored:08x} but the contents give {actual:08x}: "
            f"the file is damaged or incomplete{symptom(view, end)}; get it again from where it came from"
        )
    if view[4] == 0:
        raise FormatError("format version at offset 4 is 0, which was never given out")
    if view[4] != VERSION:
        raise VersionError(f"format version at offset 4 is {view[4]}, this latcodec reads {VERSION}: update latcodec")
    if view[6] & ~(GRAY | DEPTH16):
        raise VersionError(f"flags at offset 6 are 0x{view[6]:02x}, with bits of a newer latcodec: update latcodec")
    width, height, position = read_size(view, end)
    if width * height > max_pixels:
        raise FormatError(
            f"the picture has {width} x {height} = {width * height} pixels, over the limit of {max_pixels}: "
            f"raise it with --max-pixels if you trust the file"
        )
    found = read_sections(view, position, end)
    seen = set()
    for kind, offset, _, _ in found:
        if kind not in KIND_NAMES and not kind & ANCILLARY:
            raise VersionError(f"critical section kind 0x{kind:02x} at offset {offset} is unknown: update latcodec")
    for kind, offset, _, _ in found:
        if kind in seen and kind in KIND_NAMES and kind != STREAM:
            raise FormatError(f"section {KIND_NAMES[kind]} at offset {offset} is there a second time")
        seen.add(kind)
    if STREAM not in seen:
        raise FormatError("no stream section")
    guards = [bytes(view[start:end]) for kind, _, start, end in found if kind == GUARD]
    if stored != actual and not guards:
        raise FormatError(
            f"checksum at offset {end} does not fit, and the file has no guard that says its header is sound: "
            f"only files of codecs that can decode damage have one"
        )
    if guards and guards[0] != guard_of(view[:end], found):
        raise FormatError("guard: more than the contents of the last stream is damaged: nothing can be decoded")
    return view, width, height, found


def _check_payload(payload: Payload) -> None:
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
