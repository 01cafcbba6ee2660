"""A bench's results as text: tables for the terminal, and the part of README between its markers."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence

from latcodec.bench.results import bd_rate_of
from latcodec.errors import OptionError

BEGIN, END = "<!-- bench: made by `make bench`, not by hand -->", "<!-- bench end -->"


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
        cells = [name] + ([_percent(bd_rate_of(results, name, base))] if base else [])
        cells += [_range(records, "bpp", 2), _range(records, "psnr_db", 1), *_costs(records)]
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
            text += f"{_percent(entry['bd_rate_percent'])} bits from {entry['low']:.1f} to {entry['high']:.1f} dB"
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


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers aligned to the right."""
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def readme_part(results: dict, figure: str) -> str:
    """What stands between README's markers: where it was made, the figure, sizes at equal quality, times, each rate."""
    env, anchors, codecs = results["environment"], list(results["anchors"]), list(results["codecs"])
    count = len(results["pictures"])
    pictures = "The 24 Kodak pictures" if results["published"] else f"{count} picture{'s' if count != 1 else ''}"
    means = ", means over the pictures" if count != 1 else ""
    threads = f"{env['threads']} thread{'s' if env['threads'] != '1' else ''}"
    where = f"{pictures}, whole files{means}; made by `{anywhere(results['command'])}` on "
    where += f"{env['CPU']}, {threads}, device {env['device']}."
    what = "Bits at equal PSNR (BD-rate): less than zero is smaller than the codec above the column. Seconds a picture "
    what += "are medians over all settings; memory is what a call holds beyond libraries and weights."
    image = f"![PSNR against bits a pixel]({figure})"
    text = "\n\n".join(textwrap.fill(part, 120, break_on_hyphens=False) for part in (where, image, what)) + "\n\n"
    heads = ["codec", *anchors, "encode s", "decode s", "memory MB", "failed round trips"]
    rows = []
    for name in codecs + anchors:
        rates = ["" if name == anchor else _percent(bd_rate_of(results, name, anchor)) for anchor in anchors]
        records = [r for r in results["means"] if r["codec"] == name]
        rows.append([name, *rates, *_costs(records), str(sum(r["bugs"] for r in records))])
    text += markdown(heads, rows) + "\n"
    for name in codecs:
        heads = ["", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"]
        rows = [
            [r["setting"], number(r["bpp"], 3), number(r["psnr_db"], 2), number(r["ms_ssim"], 4)]
            + [number(r["encode_s"], 3), number(r["decode_s"], 3)]
            for r in results["means"]
            if r["codec"] == name
        ]
        weights = results["codecs"][name]["weights"]
        text += f"\n`{name}` (weights {weights}) at each rate:\n\n{markdown(heads, rows)}\n"
    return text


def with_part(readme: str, part: str) -> str:
    """README's text with what is between its markers replaced; raises OptionError without one pair of them."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end) or BEGIN in rest or END in head + tail:
        raise OptionError(f"needs the lines {BEGIN} and {END}, once each and in this order")
    return f"{head}{BEGIN}\n\n{part.strip()}\n\n{END}{tail}"


def number(value: float | None, digits: int) -> str:
    """Fixed digits, n/a for None."""
    return "n/a" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.1f} %"


def _range(records: Sequence[dict], field: str, digits: int) -> str:
    values = [r[field] for r in records if r[field] is not None]
    if not values:
        return "n/a"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}-{high}"


def _costs(records: Sequence[dict]) -> list[str]:
    """Seconds of encoding and decoding, and megabytes."""
    cells = []
    for field in ("encode_s", "decode_s"):
        there = [r[field] for r in records if r[field] is not None]
        cells.append(number(statistics.median(there) if there else None, 3))
    most = [r["peak_memory_bytes"] for r in records if r["peak_memory_bytes"] is not None]
    return [*cells, f"{max(most) / 1e6:.0f}" if most else "n/a"]


def anywhere(command: str) -> str:
    """The command without the folders of this machine: of every path its last part."""
    words = [(word, word.rstrip("/").rpartition("/")[2]) for word in command.split(" ")]
    return " ".join(word if "/" not in word else last if "." in last else f"{last}/" for word, last in words)
