"""What is said of a file that is not a sound latcodec file: what it seems to be, where it stops making sense."""

from __future__ import annotations

from latcodec.container.wire import MAGIC, VERSION, read_sections, read_size
from latcodec.errors import FormatError

OTHER_FORMATS = (  # offset, signature, what to call it
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


def symptom(view: memoryview, end: int) -> str:
    """Return " (first field that does not fit)" for a file whose checksum fails, or "" if its lengths do add up."""
    if view[4] != VERSION:
        return ""
    try:
        read_sections(view, read_size(view, end)[2], end)
    except FormatError as error:
        return f" ({error})"
    return ""


def guess(start: bytes) -> str:
    """Return what a file that starts with `start` seems to be, and what to do."""
    if not start:
        return "the file is empty"
    if MAGIC.startswith(start):
        return f"truncated after {len(start)} bytes"
    for offset, signature, name in OTHER_FORMATS:
        if start[offset : offset + len(signature)] == signature:
            return f"this is {name}; `latcodec encode` makes a latcodec file of it"
    if start.startswith(b"\xcaLC\r\n") or start.startswith(b"\xef\xbf\xbdLC"):
        return "it was transferred as text, which damaged it; transfer it as binary"
    if all(byte in b"\t\n\r\f" or 0x20 <= byte < 0x7F for byte in start):
        return "this is a text file"
    return f"it starts with {start[:4].hex(' ')}, not {MAGIC.hex(' ')}"
