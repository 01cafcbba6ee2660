"""Crops that a person flips between: the same place of one picture, by every codec, at equal size of the whole file."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from latcodec import metrics
from latcodec.report.tables import Entry, number, per_picture

WIDTH_PX, HEIGHT_PX = 360, 240
BUDGET_BYTES = 3_000_000  # of all crops together, as files; a third more as text in the page
AIM_DB = 30.0  # the first codec's PSNR that the size is taken from, within AIM_BPP: neither hideous nor flawless
AIM_BPP = 0.15, 0.5


class Pictures(Protocol):
    """Where pixels come from; bench has one."""

    def original(self, file: str):
        """The picture `file` of the rows as uint8 [H, W, 3]."""

    def coded(self, file: str, codec: str, bpp: float):
        """(uint8 [H, W, 3], bytes) of the codec's or anchor's largest file of at most `bpp`; None if there is none."""


@dataclass
class Flip:
    """One picture's stack. images: (label, data URI, caption, codec or anchor or original); absent: labels left out."""

    file: str
    why: str
    aim_bpp: float
    width_px: int
    height_px: int
    images: list[tuple[str, str, str, str]] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def uri(data: bytes, kind: str) -> str:
    """A data URI of an image file; kind as in image/kind."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def thumbnail(pixels, width_px: int = 192) -> str:
    """A small JPEG of uint8 [H, W, 3] as a data URI."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((width_px, 2 * width_px), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70, optimize=True)
    return uri(buffer.getvalue(), "jpeg")


def chosen(results: dict, entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """(file, why) of up to three pictures: where the first codec does worst, middling and best; else the first ones."""
    first = next((entry for entry in entries if entry.kind == "codec"), None)
    _, ranking = per_picture(results, first.name) if first else ("", [])
    files = [file for _, file in ranking]
    if len(files) < 3:
        return [(file, "") for file in list(dict.fromkeys(row["file"] for row in results["rows"]))[:3]]
    return [
        (files[0], f"the picture that {first.label} does worst on"),
        (files[len(files) // 2], f"a middling one for {first.label}"),
        (files[-1], "its best"),
    ]


def aim_bpp(results: dict, file: str, entries: Sequence[Entry]) -> float | None:
    """The size to compare at: the first codec's (or anchor's) file of about AIM_DB, which every codec can reach."""
    rows = {entry: [] for entry in entries}
    for entry in entries:
        rows[entry] = [r for r in results["rows"] if (r["file"], r["codec"]) == (file, entry.name) and r.get("psnr_db")]
    first = next((found for found in rows.values() if found), None)
    if first is None:
        return None
    rate = min(first, key=lambda row: abs(row["psnr_db"] - AIM_DB))["bpp"]
    least = [min(row["bpp"] for row in found) for entry, found in rows.items() if found and entry.kind == "codec"]
    return max([min(max(rate, AIM_BPP[0]), AIM_BPP[1]), *least])


def box(original, coded: Sequence) -> tuple[int, int]:
    """Top and left of the place where the codecs together differ most from the original, on a grid of 32 px."""
    import numpy as np

    height, width = original.shape[:2]
    error = np.zeros((height, width))
    for pixels in coded:
        error += np.square(pixels.astype(np.float64) - original).sum(axis=2)
    total = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = min(HEIGHT_PX, height), min(WIDTH_PX, width)
    tops, lefts = ({*range(0, side - size + 1, 32), side - size} for side, size in ((height, h), (width, w)))
    return max(
        ((y, x) for y in sorted(tops) for x in sorted(lefts)),
        key=lambda p: total[p[0] + h, p[1] + w] - total[p[0], p[1] + w] - total[p[0] + h, p[1]] + total[p],
    )


def flips(
    results: dict, entries: Sequence[Entry], pictures: Pictures, say: Callable[[str], None] = lambda line: None
) -> list[Flip]:
    """Stacks of lossless crops, as many as BUDGET_BYTES holds (at least one). say: told of each picture begun."""
    from PIL import Image

    found, spent = [], 0
    for file, why in chosen(results, entries):
        rate = aim_bpp(results, file, entries)
        if rate is None:
            continue
        say(f"crops of {file}")
        original = pictures.original(file)
        coded = {entry: pictures.coded(file, entry.name, rate) for entry in entries}
        able = {entry: result for entry, result in coded.items() if result is not None}
        if not able:
            continue
        top, left = box(original, [pixels for pixels, _ in able.values()])
        height, width = min(HEIGHT_PX, original.shape[0]), min(WIDTH_PX, original.shape[1])
        flip = Flip(file, why, rate, width, height, absent=[e.label for e, result in coded.items() if result is None])
        stack = [("original", original, "the picture as it was", "original")]
        for entry, (pixels, size_bytes) in able.items():
            bpp = 8 * size_bytes / (original.shape[0] * original.shape[1])
            psnr = metrics.psnr_db(original, pixels)
            about = f"{size_bytes:,} bytes, {bpp:.3f} bpp, {number(psnr)} dB over the whole picture"
            stack.append((entry.label, pixels, about, entry.name))
        size = 0
        for label, pixels, about, name in stack:
            buffer = io.BytesIO()
            crop = Image.fromarray(pixels[top : top + height, left : left + width])
            crop.save(buffer, "WEBP", lossless=True, method=4, quality=60)
            size += buffer.tell()
            flip.images.append((label, uri(buffer.getvalue(), "webp"), about, name))
        if found and spent + size > BUDGET_BYTES:
            break
        spent += size
        found.append(flip)
    return found
