"""Metadata: TIFF and EXIF directories as raw bytes, orientation, and notes on what a Picture cannot hold.

EXIF is a TIFF file without pixels, so one reader and one writer of directories serve three purposes: find the
orientation, copy the descriptive tags of a TIFF into EXIF, and copy them back into a TIFF. Values are copied as bytes
in the byte order of the file: nothing is decoded, so nothing is re-encoded wrongly.

Source: TIFF 6.0 (Adobe, 1992) section 2; Exif 2.32 (CIPA DC-008) section 4.6; BigTIFF (libtiff).
"""

import re
import struct
from typing import Any, Literal, TypeAlias

import numpy as np

EXIF_IFD, GPS_IFD, INTEROP_IFD = 34665, 34853, 40965
ORIENTATION, XMP, ICC, IPTC, PHOTOSHOP = 274, 700, 34675, 33723, 34377
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# Tags that describe the picture to people and keep their meaning in EXIF: names, dates, camera, resolution, GPS.
DESCRIPTIVE = frozenset(
    {269, 270, 271, 272, 282, 283, 285, 296, 305, 306, 315, 316, 18246, 18249, 33432, EXIF_IFD, GPS_IFD}
    | set(range(40091, 40096))
)
# Tags that say how the pixels are stored: used by the reader, meaningless after it.
_STRUCTURAL = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, ORIENTATION, 277, 278, 279, 280, 281, 284, 288, 289, 290, 291}
    | {292, 293, 297, 317, 318, 319, 320, 321, 322, 323, 324, 325, 332, 334, 338, 339, 340, 341, 347}
    | set(range(512, 522))
    | {529, 530, 531, 532, XMP, ICC}
)
# A directory: for each tag its type, count, and value; None stands for a value that cannot be read.
Directory: TypeAlias = dict[int, tuple[int, int, Any]]
ByteOrder: TypeAlias = Literal["<", ">"]
_SRGB_CHROMATICITY = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def byte_order(data: bytes) -> ByteOrder:
    """Return "<" or ">" for bytes that start with a TIFF or BigTIFF header; raises ValueError otherwise."""
    if data[:4] in (b"II*\0", b"II+\0"):
        return "<"
    if data[:4] in (b"MM\0*", b"MM\0+"):
        return ">"
    raise ValueError("no TIFF header")


def read_directory(data: bytes, offset: int | None = None) -> Directory:
    """Return {tag: (type, count, value bytes | nested dict | None)} of the first directory, or of the one at `offset`.

    None stands for a value that lies outside `data` or has an unknown type, and for a damaged sub-directory (EXIF, GPS,
    interoperability).

    Raises:
        ValueError: The directory itself lies outside `data`, or its values overlap.
    """
    order, big = byte_order(data), data[2:3] == b"+" or data[3:4] == b"+"
    word, entry_bytes, count_format, value_bytes = ("Q", 20, "Q", 8) if big else ("I", 12, "H", 4)
    nested = offset is not None
    try:
        if offset is None:
            (offset,) = struct.unpack_from(order + word, data, 8 if big else 4)
        (entries,) = struct.unpack_from(order + count_format, data, offset)
        start = offset + struct.calcsize(count_format)
        if start + entries * entry_bytes > len(data):
            raise ValueError(f"directory at byte {offset} runs past the end")
        directory: Directory = {}
        total = 0
        for at in range(start, start + entries * entry_bytes, entry_bytes):
            tag, kind, count = struct.unpack_from(order + "HH" + word, data, at)
            size = _TYPE_BYTES.get(kind, 0) * count
            where = at + entry_bytes - value_bytes
            if size > value_bytes:
                (where,) = struct.unpack_from(order + word, data, where)
            readable = size > 0 and where + size <= len(data)
            total += size if readable else 0
            if total > len(data):
                raise ValueError(f"directory at byte {offset} has values that overlap")
            directory[tag] = (kind, count, data[where : where + size] if readable else None)
    except struct.error as error:
        raise ValueError(f"directory at byte {offset} is cut short") from error
    for tag in (INTEROP_IFD,) if nested else (EXIF_IFD, GPS_IFD):
        if tag in directory:
            directory[tag] = (4, 1, _nested(data, order, directory[tag]))
    return directory


def _nested(data: bytes, order: ByteOrder, entry: tuple) -> Directory | None:
    """Return the directory that an entry points to, None if it is damaged."""
    kind, _, value = entry
    if kind not in (4, 13) or not isinstance(value, bytes):
        return None
    try:
        return read_directory(data, struct.unpack_from(order + "I", value)[0])
    except (ValueError, RecursionError):
        return None


def write_directory(directory: Directory, order: ByteOrder, offset: int) -> bytes:
    """Return the bytes of a classic TIFF directory that will lie at `offset`; entries without a value are left out."""
    entries = sorted((tag, entry) for tag, entry in directory.items() if entry[2] is not None)
    table, blob = b"", b""
    start = offset + 2 + 12 * len(entries) + 4
    for tag, (kind, count, value) in entries:
        position = start + len(blob)
        if isinstance(value, dict):
            blob += write_directory(value, order, position)
            value = struct.pack(order + "I", position)
        elif len(value) > 4:
            blob += value + b"\0" * (len(value) % 2)
            value = struct.pack(order + "I", position)
        table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    return struct.pack(order + "H", len(entries)) + table + bytes(4) + blob


def integers(directory: Directory, tag: int, order: ByteOrder, default: tuple[int, ...]) -> tuple[int, ...]:
    """Return the values of a BYTE, SHORT or LONG tag, or `default` where it is missing or of another type."""
    kind, count, value = directory.get(tag, (0, 0, None))
    letter = {1: "B", 3: "H", 4: "I"}.get(kind)
    return struct.unpack(f"{order}{count}{letter}", value) if letter and value else default


def exif_of_tiff(data: bytes, directory: Directory) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the descriptive tags of a TIFF's directory as EXIF bytes (None if it has none), and notes on the rest."""
    kept = {tag: entry for tag, entry in directory.items() if tag in DESCRIPTIVE and entry[2] is not None}
    lost = [tag for tag in sorted(directory) if tag not in kept and tag not in _STRUCTURAL]
    names = {IPTC: "IPTC", PHOTOSHOP: "Photoshop block", 37724: "Photoshop layers"}
    notes = (f"TIFF tags dropped: {', '.join(names.get(tag, str(tag)) for tag in lost)}",) if lost else ()
    if not kept:
        return None, notes
    order = byte_order(data)
    header = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    return header + write_directory(kept, order, 8), notes


def take_orientation(exif: bytes) -> tuple[int, bytes]:
    """Return the EXIF orientation (1..8, 1 if absent or out of range) and the same EXIF with that field set to 1.

    Only the bytes of the field change: maker notes and thumbnails, which hold absolute offsets, stay valid.
    """
    try:
        order = byte_order(exif)
        (offset,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, offset)
        for at in range(offset + 2, offset + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
            if tag == ORIENTATION and kind in (3, 4) and count == 1:
                layout = order + ("H" if kind == 3 else "I")
                (value,) = struct.unpack_from(layout, exif, at + 8)
                patched = bytearray(exif)
                struct.pack_into(layout, patched, at + 8, 1)
                return (value, bytes(patched)) if 1 <= value <= 8 else (1, exif)
    except (ValueError, struct.error):
        pass
    return 1, exif


def upright(samples: np.ndarray, orientation: int) -> np.ndarray:
    """Turn samples [H, W, ...] as EXIF orientation 1..8 asks.

    Source: Exif 2.32, tag 274.
    """
    if orientation in (5, 7):
        samples = np.swapaxes(samples, 0, 1)
    if orientation in (6, 8):
        return np.rot90(samples, -1 if orientation == 6 else 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 7: (0, 1)}.get(orientation, ())
    return np.flip(samples, flips) if flips else samples


def reset_xmp_orientation(xmp: bytes) -> bytes:
    """Return XMP whose tiff:Orientation is 1, for pixels that have been turned upright."""
    return re.sub(rb"(tiff:Orientation(?:\s*=\s*[\"']|>))[2-8]", rb"\g<1>1", xmp)


def raw_exif(info: dict) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the EXIF in Pillow's `info` without its JPEG prefix (also ImageMagick's hex text in PNG), and notes."""
    exif = info.get("exif") or b""
    if not exif and "Raw profile type exif" in info:
        try:
            exif = bytes.fromhex("".join(str(info["Raw profile type exif"]).split("\n")[3:]))
        except ValueError:
            return None, ("EXIF dropped: its hexadecimal text is damaged",)
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if not exif:
        return None, ()
    try:
        byte_order(exif)
    except ValueError:
        return None, ("EXIF dropped: it does not start with a TIFF header",)
    return exif, ()


def _png_has_cicp(data: bytes) -> bool:
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name in (b"cICP", b"IDAT"):
            return name == b"cICP"
        at += 12 + length
    return False


def dropped_notes(kind: str, data: bytes, info: dict, text: dict, has_exif: bool) -> tuple[str, ...]:
    """Return a note for each thing in a file that a Picture cannot hold.

    Programs write a resolution of 72 or 96 dpi by default, which is not worth a note; with EXIF it is kept there.

    Args:
        kind: Pillow's name of the format.
        data: The bytes of the file, for what Pillow does not parse.
        info: What Pillow reports.
        text: The text chunks that Pillow reports.
        has_exif: Whether the file has EXIF.
    """
    notes = []
    words = sorted(set(text) - {"XML:com.adobe.xmp", "Raw profile type exif"})
    if words:
        notes.append(f"text dropped: {', '.join(' '.join(str(word).split())[:40] for word in words[:8])}")
    if info.get("comment"):
        notes.append("comment dropped")
    if info.get("photoshop"):
        notes.append("Photoshop and IPTC block dropped")
    if "mp" in info and kind == "JPEG":
        notes.append("the pictures attached to this JPEG (gain map, preview) dropped")
    dpi = info.get("dpi")
    if kind != "TIFF" and not has_exif and dpi and not any(round(float(v)) in (0, 1, 72, 96) for v in dpi):
        notes.append(f"resolution dropped: {float(dpi[0]):g} x {float(dpi[1]):g} dpi")
    if kind == "PNG" and _png_has_cicp(data):
        notes.append("colour space dropped: PNG cICP chunk")
    elif kind == "PNG" and not info.get("icc_profile") and "srgb" not in info:
        if abs(info.get("gamma", 1 / 2.2) * 2.2 - 1) > 0.01:
            notes.append(f"gamma dropped: {info['gamma']:g}")
        chromaticity = info.get("chromaticity", _SRGB_CHROMATICITY)
        if any(abs(a - b) > 0.001 for a, b in zip(chromaticity, _SRGB_CHROMATICITY, strict=False)):
            notes.append("primaries dropped: PNG cHRM chunk")
    if kind == "AVIF":
        notes.extend(_avif_notes(data))
    return tuple(notes)


def _avif_notes(data: bytes) -> list[str]:
    """Return notes on bit depth and colour space from the av1C and colr boxes.

    Source: AV1 in ISOBMFF 2.3.3; ISO 14496-12 12.1.5.
    """
    notes = []
    head = data[:65536]
    at = head.find(b"av1C")
    if at >= 0 and len(head) > at + 6 and head[at + 6] & 0x40:
        notes.append(f"{12 if head[at + 6] & 0x20 else 10} bits reduced to 8")
    at = head.find(b"colrnclx")
    if at >= 0 and len(head) >= at + 12:
        primaries, transfer = struct.unpack_from(">HH", head, at + 8)
        if primaries not in (1, 2) or transfer not in (1, 2, 6, 13, 14, 15):
            notes.append(f"colour space dropped: AVIF primaries {primaries}, transfer {transfer}")
    return notes
