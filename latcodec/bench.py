"""Rate, distortion and time of the codecs beside JPEG, WebP and AVIF, on real files, in one run.

Rate is the whole file. PSNR is of all 8-bit RGB samples of a picture, then the mean over pictures; times are the median
of the repetitions of a warm process. A decode that fails or differs from the encoder's promise counts as a bug, in its
own column, and is never dropped.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from latcodec import codec, images, metrics
from latcodec.errors import LatcodecError, OptionError

LAMBDAS = (20.0, 12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.1)


@dataclass(frozen=True)
class Row:
    """One picture, one codec, one setting; seconds are medians, warm; bugs says what went wrong, or nothing."""

    file: str
    codec: str
    setting: str
    bytes: int
    bpp: float
    psnr_db: float | None
    ms_ssim: float | None
    encode_s: float
    decode_s: float
    estimated_bits: float | None = None
    analysis_s: float | None = None
    entropy_s: float | None = None
    bugs: str = ""


@dataclass(frozen=True)
class Anchor:
    """A codec of Pillow: save options of every quality."""

    format: str
    options: dict
    qualities: tuple[int, ...]


ANCHORS = {
    "jpeg": Anchor("JPEG", {"progressive": True, "optimize": True}, (5, 10, 20, 30, 45, 60, 75, 85, 92, 96)),
    "webp": Anchor("WEBP", {"method": 6}, (1, 5, 15, 30, 50, 70, 80, 88, 94, 98)),
    "avif": Anchor("AVIF", {"subsampling": "4:4:4", "speed": 6}, (10, 20, 30, 40, 50, 60, 70, 78, 86, 92)),
}


def _timed(call, repetitions: int):
    seconds = []
    for _ in range(max(1, repetitions)):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)


def measure_anchor(name: str, file: str, picture: images.Picture, repetitions: int = 1) -> Iterator[Row]:
    """Rows of one anchor codec over its qualities for one 8-bit picture."""
    import numpy as np
    from PIL import Image

    anchor = ANCHORS[name]
    source = Image.fromarray(picture.pixels)
    height, width = picture.pixels.shape[:2]
    for quality in anchor.qualities:

        def save(quality=quality) -> bytes:
            buffer = io.BytesIO()
            source.save(buffer, anchor.format, quality=quality, **anchor.options)
            return buffer.getvalue()

        data, encode_s = _timed(save, repetitions)
        decoded, decode_s = _timed(
            lambda data=data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), repetitions
        )
        yield Row(
            file, name, f"q{quality}", len(data), 8 * len(data) / (width * height),
            metrics.psnr_db(picture.pixels, decoded), metrics.ms_ssim(picture.pixels, decoded), encode_s, decode_s,
        )  # fmt: skip


def measure_codec(
    name: str, file: str, picture: images.Picture, lambdas: Sequence[float], repetitions: int, weights: str | None
) -> Iterator[Row]:
    """Rows of one learned codec over lambdas for one 8-bit picture, through whole .lc files."""
    for lmbda in lambdas:
        settings = codec.EncodeSettings(codec=name, lmbda=lmbda, weights=weights, strip=True)
        try:
            encoded, encode_s = _timed(lambda s=settings: codec.encode_picture(picture, s), repetitions)
            decoded, decode_s = _timed(lambda e=encoded: codec.decode_picture(e.data, weights=weights), repetitions)
        except LatcodecError as error:
            yield Row(
                file, name, f"lambda {lmbda:g}", 0, 0.0, None, None, 0.0, 0.0, bugs=f"{type(error).__name__}: {error}"
            )
            continue
        seconds = encoded.seconds
        yield Row(
            file, name, f"lambda {lmbda:g}", len(encoded.data), encoded.bpp,
            metrics.psnr_db(picture.pixels, decoded.pixels), metrics.ms_ssim(picture.pixels, decoded.pixels),
            encode_s, decode_s, encoded.estimated_bits, seconds["analysis"], seconds["hyper"] + seconds["entropy"],
        )  # fmt: skip


def run(
    paths: Sequence[str], codecs: Sequence[str], anchors: Sequence[str], lambdas: Sequence[float],
    repetitions: int = 1, weights: str | None = None,
) -> Iterator[Row]:  # fmt: skip
    """Measure every codec on every picture; raises OptionError for an unknown anchor or a 16-bit picture."""
    unknown = [a for a in anchors if a not in ANCHORS]
    if unknown:
        raise OptionError(f"anchor {unknown[0]!r} is unknown; there are: {', '.join(ANCHORS)}")
    for path in paths:
        picture = images.read(path)
        if picture.pixels.dtype.itemsize != 1:
            raise OptionError(f"{path}: 16 bits; the anchors are compared at 8 bits")
        for name in codecs:
            codec.encode_picture(picture, codec.EncodeSettings(codec=name, weights=weights))  # warm
            yield from measure_codec(name, str(path), picture, lambdas, repetitions, weights)
        for name in anchors:
            yield from measure_anchor(name, str(path), picture, repetitions)


def means(rows: Sequence[Row]) -> list[dict]:
    """One record per codec and setting: means of bpp, PSNR and MS-SSIM, medians of the times, count of bugs."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.setting), []).append(row)
    table = []
    for (name, setting), group in groups.items():
        sound = [row for row in group if not row.bugs]
        record = {"codec": name, "setting": setting, "pictures": len(group), "bugs": len(group) - len(sound)}
        for field in ("bytes", "bpp", "psnr_db", "ms_ssim"):
            values = [getattr(row, field) for row in sound if getattr(row, field) is not None]
            record[field] = statistics.fmean(values) if values else None
        for field in ("encode_s", "decode_s", "analysis_s", "entropy_s"):
            values = [getattr(row, field) for row in sound if getattr(row, field) is not None]
            record[field] = statistics.median(values) if values else None
        gaps = [abs(8 * r.bytes - r.estimated_bits) - 0.005 * r.estimated_bits for r in sound if r.estimated_bits]
        record["worst_gap_bits"] = max(gaps) if gaps else None  # beyond 0.5 % of the estimate; at most 320
        table.append(record)
    return table


def bd_rates(
    table: Sequence[dict], codecs: Sequence[str], anchors: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """BD-rate in percent of each learned codec against each anchor, from the table of `means`; None if undefined."""
    points = {
        name: [(r["bpp"], r["psnr_db"]) for r in table if r["codec"] == name and r["psnr_db"] is not None]
        for name in (*codecs, *anchors)
    }

    def difference(anchor: str, name: str) -> float | None:
        try:
            return metrics.bd_rate(points[anchor], points[name])[0]
        except OptionError:  # too few points, or curves that do not overlap
            return None

    return {name: {anchor: difference(anchor, name) for anchor in anchors} for name in codecs}
