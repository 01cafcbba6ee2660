"""The format: literal bytes in, one refusal each; equality out."""

import random
import re
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import latcodec.container
from latcodec import backends
from latcodec.container import MAX_SIDE_PX, Payload, inspect_damaged, pack, sections, unpack
from latcodec.container.wire import ANCILLARY, KIND_NAMES, MAX_SECTIONS
from latcodec.errors import FormatError, LatcodecError, VersionError

TINY = Payload(
    backend_id=1,
    weights_id=b"\xde\xad\xbe\xef",
    rate_index=128,
    width=768,
    height=5,
    gray=False,
    depth=8,
    integers_crc=0x01020304,
    streams=(b"abcd",),
)
TINY_BYTES = bytes.fromhex("ca4c430a 01 01 00 80 deadbeef 04030201 8006 05 01 04 61626364 347557ab")
FULL = Payload(
    backend_id=255,
    weights_id=b"\0\1\2\3",
    rate_index=0,
    width=2**28,
    height=1,
    gray=True,
    depth=16,
    integers_crc=2**32 - 1,
    streams=(b"", b"x" * 300, b"abcd"),
    alpha=b"alpha",
    icc=b"",
    exif=b"Exif\0\0",
    xmp=b"<x/>",
    parameters=b"\0",
    extra=((0x85, b"later"), (0xFF, b""), (0x85, b"again")),
)
HEAD = TINY_BYTES[:16]
SIZE = b"\x80\x06\x05"
STREAM = b"\x01\x04abcd"


def sealed(body: bytes) -> bytes:
    """A file whose checksum holds, whatever else it says."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def changed(offset: int, value: int) -> bytes:
    body = bytearray(TINY_BYTES[:-4])
    body[offset] = value
    return sealed(bytes(body))


def test_golden_bytes():
    assert pack(TINY) == TINY_BYTES
    assert unpack(TINY_BYTES) == TINY


def test_golden_bytes_of_every_field():
    expected = (
        "ca4c430a 01 ff 03 00 00010203 ffffffff 8080808001 01"
        "02 01 00  01 00  01 ac02" + "78" * 300 + "01 04 61626364  03 05 616c706861"
        "81 00  82 06 457869660000  83 04 3c782f3e  85 05 6c61746572  ff 00  85 05 616761696e"
    )
    assert pack(FULL) == sealed(bytes.fromhex(expected))
    assert unpack(pack(FULL)) == FULL


def test_golden_bytes_of_a_header_crc():
    protected = replace(TINY, streams=(b"ab", b"cd"), icc=b"i", has_header_crc=True)
    head = TINY_BYTES[:19] + bytes.fromhex("01 02 6162  01 02")
    rest = bytes.fromhex("81 01 69  84 04")
    crc = zlib.crc32(head + rest).to_bytes(4, "little")
    assert pack(protected) == sealed(head + b"cd" + rest + crc)


def test_a_header_crc_replaces_the_checksum_on_demand():
    data = pack(replace(TINY, streams=(b"ab", b"cdefg"), has_header_crc=True))
    start = data.index(b"cdefg")
    for position in range(len(data)):
        hurt = bytearray(data)
        hurt[position] ^= 1
        with pytest.raises((FormatError, VersionError)):
            unpack(bytes(hurt))
        if start <= position < start + 5 or position >= len(data) - 4:
            left = unpack(bytes(hurt), ignore_checksum=True)
            assert replace(left, streams=(b"ab", b"cdefg")) == unpack(data)
        else:
            with pytest.raises((FormatError, VersionError)):
                unpack(bytes(hurt), ignore_checksum=True)


def test_without_a_header_crc_no_checksum_is_ignored():
    assert unpack(TINY_BYTES, ignore_checksum=True) == TINY
    with pytest.raises(FormatError, match="no header CRC"):
        unpack(TINY_BYTES[:-5] + b"!" + TINY_BYTES[-4:], ignore_checksum=True)


def test_a_wrong_header_crc_is_refused_under_a_right_checksum():
    body = bytearray(pack(replace(TINY, has_header_crc=True))[:-4])
    body[-1] ^= 1
    with pytest.raises(FormatError, match="header CRC"):
        unpack(sealed(bytes(body)))


def test_kind_numbers_are_append_only():
    known = {0x01: "stream", 0x02: "parameters", 0x03: "alpha", 0x81: "icc", 0x82: "exif", 0x83: "xmp"}
    known[0x84] = "header_crc"
    assert known.items() <= KIND_NAMES.items()


blobs = st.binary(max_size=300)
payloads = st.builds(
    Payload,
    backend_id=st.integers(0, 255),
    weights_id=st.binary(min_size=4, max_size=4),
    rate_index=st.integers(0, 255),
    width=st.integers(1, MAX_SIDE_PX),
    height=st.integers(1, MAX_SIDE_PX),
    gray=st.booleans(),
    depth=st.sampled_from((8, 16)),
    integers_crc=st.integers(0, 2**32 - 1),
    streams=st.lists(blobs, min_size=1, max_size=4).map(tuple),
    has_header_crc=st.booleans(),
    alpha=st.none() | blobs,
    icc=st.none() | blobs,
    exif=st.none() | blobs,
    xmp=st.none() | blobs,
    parameters=st.none() | blobs,
    extra=st.lists(st.tuples(st.integers(0x85, 0xFF), blobs), max_size=3).map(tuple),
)


@given(payloads)
@settings(deadline=None)
def test_round_trip(payload):
    data = pack(payload)
    assert unpack(data, max_pixels=2**62) == payload
    assert unpack(memoryview(bytearray(data)), max_pixels=2**62) == payload
    parts = sections(data)
    assert parts[0][:2] == ("header", 0)
    assert [offset for _, offset, _ in parts[1:]] == [offset + length for _, offset, length in parts[:-1]]
    assert sum(length for _, _, length in parts) == len(data)


def test_sections():
    assert sections(TINY_BYTES) == [("header", 0, 19), ("stream", 19, 6), ("checksum", 25, 4)]
    names = "header parameters stream stream stream alpha icc exif xmp".split()
    assert [name for name, _, _ in sections(pack(FULL))][:-4] == names
    assert [name for name, _, _ in sections(pack(FULL))][-4:-1] == ["unknown 0x85", "unknown 0xff", "unknown 0x85"]


def test_sections_may_stand_in_any_order():
    body = HEAD + SIZE + b"\x83\x01x\x90\x01y" + STREAM + b"\x02\x01p\x01\x01q"
    expected = replace(TINY, xmp=b"x", extra=((0x90, b"y"),), parameters=b"p", streams=(b"abcd", b"q"))
    assert unpack(sealed(body)) == expected


@pytest.mark.parametrize("width, height", [(1, 1), (768, 512), (16384, 16384), (2**21, 128), (2**28, 1)])
@pytest.mark.parametrize("size_bytes", [0, 127, 24_000, 3_000_000])
def test_overhead(width, height, size_bytes):
    data = pack(replace(TINY, width=width, height=height, streams=(bytes(size_bytes),)))
    unpack(data)
    assert len(data) - size_bytes <= 32


REFUSALS = {
    "empty": (b"", FormatError, "empty"),
    "text": (b"P6 is not\n this\n", FormatError, "text file"),
    "one byte": (b"\xca", FormatError, "truncated after 1 bytes"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(30), FormatError, "PNG"),
    "jpeg": (b"\xff\xd8\xff\xe0" + bytes(30), FormatError, "JPEG"),
    "webp": (b"RIFF\x10\0\0\0WEBPVP8 ", FormatError, "WebP"),
    "avif": (b"\0\0\0\x20ftypavif", FormatError, "AVIF"),
    "binary": (bytes(40), FormatError, "starts with 00 00 00 00"),
    "as text": (TINY_BYTES.replace(b"\n", b"\r\n"), FormatError, "transferred as text"),
    "as utf-8": (TINY_BYTES.decode(errors="replace").encode(), FormatError, "transferred as text"),
    "magic only": (TINY_BYTES[:4], FormatError, "4 bytes, the smallest"),
    "23 bytes": (TINY_BYTES[:23], FormatError, "23 bytes, the smallest"),
    "checksum": (TINY_BYTES[:-1] + b"\0", FormatError, "checksum at offset 25"),
    "truncated": (TINY_BYTES[:-3], FormatError, "section stream at offset 19 needs 4 bytes, 1 are there"),
    "appended": (TINY_BYTES + b"\0", FormatError, "checksum at offset 26"),
    "two files": (TINY_BYTES + TINY_BYTES, FormatError, "checksum"),
    "version 0": (changed(4, 0), FormatError, "format version at offset 4 is 0"),
    "version 2": (changed(4, 2), VersionError, "format version at offset 4 is 2"),
    "version 2, unreadable": (sealed(b"\xcaLC\n\x02" + b"\xff" * 30), VersionError, "update latcodec"),
    "version 2, damaged": (changed(4, 2)[:-1] + b"\0", FormatError, "checksum"),
    "reserved flag": (changed(6, 0x04), VersionError, "flags at offset 6 are 0x04"),
    "highest flag": (changed(6, 0x80), VersionError, "flags at offset 6 are 0x80"),
    "width 0": (sealed(HEAD + b"\0\x05" + STREAM), FormatError, "width at offset 16 is 0"),
    "height 0": (sealed(HEAD + b"\x80\x06\0" + STREAM), FormatError, "height at offset 18 is 0"),
    "width over": (
        sealed(HEAD + b"\x81\x80\x80\x80\x08\x01" + STREAM),
        FormatError,
        "width at offset 16 is 2147483649",
    ),
    "width long": (sealed(HEAD + b"\x80\x80\x80\x80\x80\x01" + STREAM), FormatError, "width .* longer than 5 bytes"),
    "width not shortest": (sealed(HEAD + b"\x85\x00\x05" + STREAM), FormatError, "width .* shortest form"),
    "width cut": (sealed(HEAD + b"\xff\xff\xff\xff"), FormatError, "width at offset 16 runs past the end"),
    "height cut": (sealed(HEAD + b"\x01\xff\xff\xff"), FormatError, "height at offset 17 runs past the end"),
    "pixels": (sealed(HEAD + b"\x81\x80\x01\x80\x80\x01" + STREAM), FormatError, "limit of 268435456.*--max-pixels"),
    "no section": (sealed(HEAD + b"\x80\x80\x04\x05"), FormatError, "no stream section"),
    "no stream": (sealed(HEAD + SIZE + b"\x02\x01p"), FormatError, "no stream section"),
    "no length": (sealed(HEAD + SIZE + STREAM + b"\x01"), FormatError, "length of section stream at offset 26"),
    "length not shortest": (sealed(HEAD + SIZE + b"\x01\x81\0a"), FormatError, "length of section stream .* shortest"),
    "length over": (sealed(HEAD + SIZE + b"\x01\x05abcd"), FormatError, "section stream at offset 19 needs 5 bytes, 4"),
    "length huge": (sealed(HEAD + SIZE + b"\x01\xff\xff\xff\xff\x7f"), FormatError, "needs 34359738367 bytes, 0"),
    "length under": (sealed(HEAD + SIZE + b"\x01\x03abcd"), FormatError, "length of section unknown 0x64 at offset 25"),
    "critical": (sealed(HEAD + SIZE + STREAM + b"\x04\x01?"), VersionError, "critical section kind 0x04 at offset 25"),
    "critical 0": (sealed(HEAD + SIZE + STREAM + b"\0\0"), VersionError, "critical section kind 0x00"),
    "no stream, critical": (sealed(HEAD + SIZE + b"\x7f\0"), VersionError, "critical section kind 0x7f"),
    "two parameters": (sealed(HEAD + SIZE + STREAM + b"\x02\0\x02\0"), FormatError, "section parameters at offset 27"),
    "two alpha": (sealed(HEAD + SIZE + STREAM + b"\x03\0\x03\0"), FormatError, "section alpha .* second time"),
    "two icc": (sealed(HEAD + SIZE + STREAM + b"\x81\0\x81\0"), FormatError, "section icc .* second time"),
    "two exif": (sealed(HEAD + SIZE + STREAM + b"\x82\0\x82\0"), FormatError, "section exif .* second time"),
    "two xmp": (sealed(HEAD + SIZE + STREAM + b"\x83\0\x83\0"), FormatError, "section xmp .* second time"),
    "sections": (sealed(HEAD + SIZE + b"\x01\0" * (MAX_SECTIONS + 1)), FormatError, "more than 65536 sections"),
}


@pytest.mark.parametrize("data, error, words", REFUSALS.values(), ids=REFUSALS)
def test_refusal(data, error, words):
    with pytest.raises(error, match=words) as caught:
        unpack(data)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_max_pixels_is_the_largest_accepted():
    assert unpack(TINY_BYTES, max_pixels=768 * 5) == TINY
    with pytest.raises(FormatError, match="768 x 5 = 3840 pixels, over the limit of 3839"):
        unpack(TINY_BYTES, max_pixels=768 * 5 - 1)


@pytest.mark.parametrize("data", [TINY_BYTES, pack(FULL)], ids=["tiny", "full"])
def test_every_truncation_and_extension_is_refused(data):
    for length in range(len(data)):
        with pytest.raises(FormatError):
            unpack(data[:length])
    for byte in range(256):
        with pytest.raises(FormatError):
            unpack(data + bytes((byte,)))


@pytest.mark.parametrize("data", [TINY_BYTES, pack(FULL)], ids=["tiny", "full"])
def test_every_bit_flip_is_refused(data):
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            unpack(bytes(flipped))


def test_mutations_with_a_sound_checksum_give_a_payload_or_an_error():
    generator = random.Random(0)
    original = pack(FULL)[:-4]
    for _ in range(3000):
        body = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            at = generator.randrange(4, len(body) - 20)
            body[at : at + generator.choice((0, 1, 1, 2, 9))] = generator.randbytes(generator.choice((0, 1, 1, 3)))
        data = sealed(bytes(body))
        try:
            payload = unpack(data)
        except LatcodecError:
            continue
        assert unpack(pack(payload)) == payload
        assert len(pack(payload)) == len(data)  # nothing the file says is dropped, each form is the shortest


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_any_body_with_a_sound_checksum(body):
    for data in (body, b"\xcaLC\n" + body, sealed(b"\xcaLC\n" + body), sealed(HEAD + body), sealed(HEAD + SIZE + body)):
        try:
            unpack(data)
            sections(data)
        except LatcodecError:
            pass


@pytest.mark.parametrize(
    "change",
    [
        {"backend_id": 256},
        {"rate_index": -1},
        {"width": 0},
        {"height": MAX_SIDE_PX + 1},
        {"integers_crc": 2**32},
        {"depth": 10},
        {"weights_id": b"abc"},
        {"streams": ()},
        {"extra": ((0x04, b""),)},
        {"extra": ((0x81, b""),)},
        {"extra": ((256, b""),)},
    ],
    ids=str,
)
def test_pack_refuses_what_the_format_cannot_say(change):
    with pytest.raises(ValueError):
        pack(replace(TINY, **change))


def test_what_is_sound_or_no_latcodec_file_is_not_inspected_as_damaged():
    for data in (TINY_BYTES, pack(FULL), b"", TINY_BYTES[:20], b"\x89PNG" + bytes(40), changed(4, 2)[:-1] + b"\0"):
        assert inspect_damaged(data) is None


def test_inspection_of_every_truncation():
    """Wherever a file is cut, its parts tile it, and all but the one that was cut are those of the whole file."""
    whole, parts = pack(FULL), sections(pack(FULL))
    for length in range(len(whole)):
        damaged = inspect_damaged(whole[:length])
        if damaged is None:
            assert length < parts[0].length_bytes + 4  # the last four bytes are taken for the checksum
            continue
        payload, found = damaged.payload, damaged.parts
        assert (payload.width, payload.height, payload.rate_index) == (FULL.width, FULL.height, FULL.rate_index)
        assert found[:-1] == parts[: len(found) - 1]
        assert sum(part.length_bytes for part in found) == length


def test_inspection_of_every_bit_flip():
    whole = pack(FULL)
    for position in range(len(whole)):
        for bit in range(8):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            damaged = inspect_damaged(bytes(flipped))
            if damaged is None:
                assert position < 5 or 16 <= position < sections(whole)[0].length_bytes  # magic, version, width, height
                continue
            assert sum(part.length_bytes for part in damaged.parts) == len(whole)


def test_imports_the_standard_library_only():
    code = "import sys, latcodec.container; print({'numpy', 'torch', 'PIL', 'constriction'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


SPECIFICATION = Path(latcodec.container.__file__).with_name("FORMAT.md").read_text(encoding="utf-8")


def test_the_specification_names_every_kind():
    """The table of sections: kind, name, whether critical or ancillary."""
    rows = re.findall(r"^\| 0x([0-9a-f]{2}) \| (\w+) \| (critical|ancillary) \|", SPECIFICATION, re.MULTILINE)
    assert {int(kind, 16): name for kind, name, _ in rows} == KIND_NAMES
    assert all((int(kind, 16) >= ANCILLARY) == (status == "ancillary") for kind, _, status in rows)


def test_the_specification_names_every_backend():
    rows = re.findall(r"^\| (\d+) \| ([\w-]+) \|$", SPECIFICATION, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(row.wire_id, row.name) for row in backends.BACKENDS]


def test_the_specification_shows_a_file_of_today():
    """The annotated hex dump, line by line, is a golden file."""
    lines = re.findall(r"^(\d\d)  ((?:[0-9a-f]{2} )+) ", SPECIFICATION, re.MULTILINE)
    data = b"".join(bytes.fromhex(dump) for _, dump in lines)
    golden = Path(__file__).parents[1] / "golden" / "context-dot.lc"
    assert data == golden.read_bytes()
    assert all(data[int(offset) :].startswith(bytes.fromhex(dump)) for offset, dump in lines)
