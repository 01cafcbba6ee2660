"""The results of a bench as text for the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from latcodec.bench.results import bd_rate_of


def reference(results: dict) -> str | None:
    """The anchor that sizes are told against: progressive JPEG if it is there, else the first; None without one."""
    names = list(results["anchors"])
    return "jpeg-progressive" if "jpeg-progressive" in names else names[0] if names else None


def summary(results: dict) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): one row a codec or anchor, narrow enough for 80 columns; size is the BD-rate to `reference`."""
    base = reference(results)
    heads = ["codec", "bpp", "PSNR dB", "enc s", "dec s", "MB", "bugs"]
    if base:
        heads.insert(1, "size")
    rows = []
    for name in [*results["codecs"], *results["anchors"]]:
        records = [r for r in results["means"] if r["codec"] == name]
        cells = [name] + ([percent(bd_rate_of(results, name, base))] if base else [])
        cells += [_range(records, "bpp", 2), _range(records, "psnr_db", 1), *cost_cells(records)]
        rows.append([*cells, str(sum(r["bugs"] for r in records))])
    return heads, rows


def caption(results: dict) -> str:
    """What the heads of `summary` mean."""
    base = reference(results)
    size = f"size: bits at equal PSNR against {base}; " if base else ""
    return f"{size}seconds: medians a picture; MB: most memory of a call"


def per_rate(results: dict) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): one row a codec and setting."""
    heads = ["codec", "setting", "bytes", "bpp", "PSNR dB", "MS-SSIM", "SSIM", "encode s", "decode s", "bugs"]
    digits = {"bytes": 0, "bpp": 4, "psnr_db": 2, "ms_ssim": 4, "ssim": 4, "encode_s": 3, "decode_s": 3}
    rows = []
    for record in results["means"]:
        numbers = [number(record[field], count) for field, count in digits.items()]
        rows.append([record["codec"], record["setting"], *numbers, str(record["bugs"])])
    return heads, rows


def differences(results: dict) -> list[str]:
    """BD-rate and BD-PSNR over PSNR of every codec against what ran beside it, a line each, with the overlap."""
    lines = []
    for entry in results["bd"]:
        if entry["published"] or entry["metric"] != "psnr_db":
            continue
        text = f"{entry['codec']} against {entry['anchor']}: "
        if entry["bd_rate_percent"] is None:
            text += f"n/a ({entry['reason']})"
        else:
            text += f"{percent(entry['bd_rate_percent'])} bits from {entry['low']:.1f} to {entry['high']:.1f} dB"
        if entry["bd_psnr_db"] is not None:
            text += f", {entry['bd_psnr_db']:+.2f} dB from {entry['low_bpp']:.2f} to {entry['high_bpp']:.2f} bpp"
        lines.append(text + (f"; {entry['note']}" if entry["note"] else ""))
    return lines


def plain(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table in columns of spaces; the first `texts` columns are aligned to the left, numbers to the right."""
    table = [list(heads), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        .rstrip()
        for row in table
    )  # fmt: skip


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed digits, n/a for None."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a signed percentage with one digit, n/a for None."""
    return "n/a" if value is None else f"{value:+.1f} %"


def _range(records: Sequence[dict], field: str, digits: int) -> str:
    values = [r[field] for r in records if r[field] is not None]
    if not values:
        return "n/a"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}-{high}"


def cost_cells(records: Sequence[dict]) -> list[str]:
    """Return three cells of text: the seconds of encoding, those of decoding, and megabytes of memory.

    Args:
        records: The means of one codec, a record for each setting.
    """
    cells = []
    for field in ("encode_s", "decode_s"):
        seconds = [r[field] for r in records if r[field] is not None]
        cells.append(number(statistics.median(seconds) if seconds else None, 3))
    peaks_bytes = [r["peak_memory_bytes"] for r in records if r["peak_memory_bytes"] is not None]
    return [*cells, f"{max(peaks_bytes) / 1e6:.0f}" if peaks_bytes else "n/a"]
