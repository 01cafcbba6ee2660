"""What a bench came to: means, differences between curves, and the record that results.json and the report hold."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone

from latcodec import metrics
from latcodec.bench import environment, kodak
from latcodec.bench.contenders import Contender, Learned, Settings
from latcodec.bench.measurement import Row
from latcodec.bench.run import Bench
from latcodec.bench.subjects import Subject
from latcodec.errors import OptionError

FORMAT = 1
_MEANS = ("bytes", "bpp", "psnr_db", "ms_ssim", "ssim")
_CHANNEL_MEANS = ("mse_rgb", "mean_error_rgb")
_MEDIANS = tuple(field.name for field in fields(Row) if field.name.endswith("_s"))
_MAXIMA = ("peak_memory_bytes", "device_memory_bytes", "gap_bytes")
METRICS = ("psnr_db", "ms_ssim")
WHOLE_DB = 10 * math.log10(12 * 255**2)  # of the rounding to 8 bits that made the picture: 58.9 dB


def assemble(bench: Bench, rows: Sequence[Row], command: str, skipped: Sequence[str] = ()) -> dict:
    """Return the record of a run, ready for JSON: nothing in it is infinite or not a number.

    Args:
        bench: What was measured.
        rows: Its rows, in any order.
        command: The command that makes the record again.
        skipped: A line for each input that could not be used.
    """
    rows = _ordered(bench, rows)
    kodak_names = {subject.kodak for subject in bench.subjects}
    is_whole_kodak = len(kodak_names) == kodak.COUNT == len(bench.subjects) and None not in kodak_names
    published = kodak.published() if is_whole_kodak else {}
    table = means(rows)
    with_ms_ssim = means([row for row in rows if row.bugs or row.ms_ssim is not None])
    return {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "dataset": "kodak" if bench.subjects and None not in kodak_names else None,
        "environment": environment.describe(bench.settings.device, bench.settings.threads),
        "settings": asdict(bench.settings),
        "codecs": {c.name: _described(c, bench.settings) for c in bench.contenders if c.kind == "codec"},
        "anchors": {c.name: _described(c, bench.settings) for c in bench.contenders if c.kind == "anchor"},
        "pictures": [_picture(subject, rows) for subject in bench.subjects],
        "skipped": list(skipped),
        "rows": [asdict(row) for row in rows],
        "means": table,
        "bd": differences(table, published, with_ms_ssim),
        "published": published,
    }


def _ordered(bench: Bench, rows: Sequence[Row]) -> list[Row]:
    """Return rows by picture, contender and setting, in the order that the bench names them."""
    measurements = bench.measurements()
    order = {(subject.file, contender.name, value): n for n, (contender, subject, value) in enumerate(measurements)}
    files = {subject.file: n for n, subject in enumerate(bench.subjects)}
    return sorted(rows, key=lambda row: (files[row.file], order[row.file, row.codec, row.value]))


def _described(contender: Contender, settings: Settings) -> dict:
    labels = ", ".join(contender.setting_label(value) for value in settings.values_of(contender))
    record = {"title": contender.title, "settings": f"{contender.settings}; {labels}"}
    if isinstance(contender, Learned):
        record |= {"weights": contender.weights, "weights_sha256": contender.weights_sha256}
        record["weights_file"] = contender.weights_file
    return record


def _picture(subject: Subject, rows: Sequence[Row]) -> dict:
    seconds = [row.read_s for row in rows if row.file == subject.file and row.read_s is not None]
    record = asdict(subject)
    del record["path"]
    return record | {"notes": list(subject.notes), "read_s": statistics.median(seconds) if seconds else None}


def means(rows: Sequence[Row]) -> list[dict]:
    """One record per codec and setting: means of size and quality and medians of times over the sound rows, maxima of
    memory and of the gap to the estimate, how many rows are not sound, and how many are without loss. These count as
    WHOLE_DB in a mean of PSNR; means of MS-SSIM and SSIM are of the pictures large enough for them.
    """
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.kind != "codec"):
        groups.setdefault((row.codec, row.value), []).append(row)
    table = []
    for group in groups.values():
        first, sound = group[0], [row for row in group if not row.bugs]
        record = {"codec": first.codec, "kind": first.kind, "setting": first.setting, "value": first.value}
        record |= {"pictures": len(group), "bugs": len(group) - len(sound)}
        columns = {f.name: [getattr(row, f.name) for row in sound] for f in fields(Row)}
        for name in _MEANS:
            there = [value for value in columns[name] if value is not None]
            if name == "psnr_db":
                record["without_loss"] = len(sound) - len(there)
                there += record["without_loss"] * [WHOLE_DB]
            record[name] = statistics.fmean(there) if there else None
        for name in _CHANNEL_MEANS:
            there = [value for value in columns[name] if value is not None]
            record[name] = [statistics.fmean(channel) for channel in zip(*there, strict=True)] if there else None
        for name in _MEDIANS + _MAXIMA:
            there = [value for value in columns[name] if value is not None]
            key = "worst_gap_bytes" if name == "gap_bytes" else name
            record[key] = (max if name in _MAXIMA else statistics.median)(there) if there else None
        table.append(record)
    codecs = list(dict.fromkeys(row.codec for row in rows))
    return sorted(table, key=lambda record: codecs.index(record["codec"]))


def curve(table: Sequence[dict], name: str, metric: str) -> tuple[list[tuple[float, float]], int]:
    """Points (bpp, dB) of a codec from the table of `means`, and how many settings are left out for failures.

    A mean over the pictures that a codec did not fail on cannot be compared with a mean over all of them.
    """
    records = [r for r in table if r["codec"] == name]
    points = [(r["bpp"], _decibels(metric, r[metric])) for r in records if not r["bugs"] and r["bpp"] is not None]
    # Settings that give the same files are one point.
    return list(dict.fromkeys((x, y) for x, y in points if y is not None)), sum(1 for r in records if r["bugs"])


def _decibels(metric: str, value: float | None) -> float | None:
    if metric == "ms_ssim":
        return metrics.ms_ssim_db(value)
    return value if value is not None and math.isfinite(value) else None


def differences(table: Sequence[dict], published: dict[str, dict], large: Sequence[dict] | None = None) -> list[dict]:
    """BD-rate and BD-PSNR of every codec against every anchor, every other codec and every published curve.

    large: the table of the pictures that have an MS-SSIM, so that their quality is held against their own size.
    """
    kinds = {record["codec"]: record["kind"] for record in table}
    found = []
    for metric in METRICS:
        of_metric = large if metric == "ms_ssim" and large is not None else table
        curves = {name: curve(of_metric, name, metric) for name in kinds}
        for name in (n for n, kind in kinds.items() if kind == "codec"):
            others = sorted((n for n in kinds if n != name), key=lambda n: kinds[n] == "codec")
            for other in others:
                left_out = curves[name][1] + curves[other][1]
                entry = _difference(curves[other][0], curves[name][0])
                notes = [f"{left_out} settings with failed round trips left out"] if left_out else []
                whole = sum(r["without_loss"] for r in of_metric if r["codec"] in (name, other))
                if whole and metric == "psnr_db":
                    notes.append(f"{whole} files without loss count as {WHOLE_DB:.1f} dB")
                about = {"codec": name, "anchor": other, "metric": metric, "published": False}
                found.append(about | {"note": "; ".join(notes)} | entry)
            for other, one in published.items():
                if one[metric]:
                    heights = [_decibels(metric, value) for value in one[metric]]
                    points = [(x, y) for x, y in zip(one["bpp"], heights, strict=True) if y is not None]
                    entry = _difference(points, curves[name][0])
                    about = {"codec": name, "anchor": other, "metric": metric, "published": True, "note": ""}
                    found.append(about | entry)
    return found


def _difference(anchor: list[tuple[float, float]], test: list[tuple[float, float]]) -> dict:
    """BD-rate with its overlap in dB, BD-PSNR with its overlap in bpp; None with the reason where undefined."""
    entry = dict.fromkeys(("bd_rate_percent", "low", "high", "bd_psnr_db", "low_bpp", "high_bpp", "reason"))
    try:
        entry["bd_rate_percent"], (entry["low"], entry["high"]) = metrics.bd_rate(anchor, test)
    except OptionError as error:
        entry["reason"] = str(error)
    try:
        entry["bd_psnr_db"], (entry["low_bpp"], entry["high_bpp"]) = metrics.bd_psnr(anchor, test)
    except OptionError as error:
        entry["reason"] = entry["reason"] or str(error)
    return entry


def bd_rate_of(results: dict, codec: str, anchor: str, metric: str = "psnr_db") -> float | None:
    """BD-rate in percent of one codec or anchor against another; None if it is undefined."""
    points = [curve(results["means"], name, metric)[0] for name in (anchor, codec)]
    try:
        return metrics.bd_rate(*points)[0]
    except OptionError:
        return None


def tsv(results: dict) -> str:
    """The rows as tab-separated text, one a file, codec and setting; channels in three columns, n/a for None."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter="\t", lineterminator="\n")
    heads: list[str] = []
    for field in fields(Row):
        channels = field.name.endswith("_rgb")
        heads += [f"{field.name[:-3]}{c}" for c in "rgb"] if channels else [field.name]
    writer.writerow(heads)
    for row in results["rows"]:
        cells: list = []
        for field in fields(Row):
            value = row[field.name]
            cells += (value or [None] * 3) if field.name.endswith("_rgb") else [value]
        writer.writerow(
            ["n/a" if value is None else f"{value:.7g}" if isinstance(value, float) else value for value in cells]
        )
    return buffer.getvalue()
