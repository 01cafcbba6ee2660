"""The content of the report, computed from the results: who took part, curves, speeds, worst pictures, sentences.

The record `results` is what bench writes as results.json; its keys are read here and in the page's template only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from latcodec import metrics
from latcodec.errors import OptionError
from latcodec.report.labels import Point, Series

HEADINGS = {"psnr_db": "PSNR", "ms_ssim": "MS-SSIM", "ssim": "SSIM"}
METRICS = {"psnr_db": "PSNR, dB", "ms_ssim": "MS-SSIM, dB: −10 log₁₀(1 − MS-SSIM)"}
# The published curves that are drawn; the tables have all of them. Key in kodak.json -> label.
DRAWN = {
    "VTM": "VTM (VVC)", "BPG444": "BPG 4:4:4", "mbt2018-mean": "mean-scale hyperprior",
    "bmshj2018-hyperprior": "scale hyperprior", "Balle2017 (TFC, retrained)": "Ballé 2017",
}  # fmt: skip
ANCHORS = {
    "jpeg": "JPEG", "jpeg-progressive": "JPEG progressive", "webp": "WebP", "avif": "AVIF", "jpeg2000": "JPEG 2000",
    "jpegxl": "JPEG XL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A codec or anchor of the run.

    key: its number; label: its title up to the comma, where that is unlike the others'; kind: codec or anchor; colour:
    a name in labels.COLOURS; dash: an index into labels.DASHES.
    """

    key: int
    name: str
    title: str
    label: str
    kind: str
    colour: str
    dash: int


def entries(results: dict) -> list[Entry]:
    """Everyone who has a row, codecs first, in the order of the rows."""
    kinds = {}
    for row in results["rows"]:
        kinds.setdefault(row["codec"], row["kind"])
    abouts = {name: (results.get(f"{kind}s") or {}).get(name, {}) for name, kind in kinds.items()}
    titles = {name: about.get("title") or name for name, about in abouts.items()}
    labels = {name: ANCHORS.get(name) or title.split(",")[0] for name, title in titles.items()}
    twice = {name for name, label in labels.items() if list(labels.values()).count(label) > 1}
    names = sorted(kinds, key=lambda name: kinds[name] != "codec")
    found, counts = [], {"codec": 0, "anchor": 0}
    for name in names:
        kind = "codec" if kinds[name] == "codec" else "anchor"
        place = counts[kind]
        if kind == "anchor" and name in ANCHORS:  # the same look in every report
            place = list(ANCHORS).index(name)
        dash = place + 1 if kind == "anchor" else place // 6
        found.append(
            Entry(
                len(found),
                name,
                titles[name],
                name if name in twice else labels[name],
                kind,
                f"{kind}{place % 6}",
                dash,
            )
        )
        counts[kind] += 1
    return found


def number(value, digits: int = 2, sign: bool = False) -> str:
    """A number for people, n/a for None; a real minus sign."""
    if value is None or not math.isfinite(value):
        return "n/a"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    return text.replace("-", "−") if float(text.replace(",", "")) else text.lstrip("-+")


def seconds(value: float | None) -> str:
    """Seconds with two or three digits that mean something: 0.0042, 0.25, 12."""
    if value is None:
        return "n/a"
    return number(value, 0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3 if value >= 0.01 else 4)


def _height(value: float | None, metric: str) -> float | None:
    """A place on the chart's axis: dB; None for what is missing or infinite."""
    if value is None or not math.isfinite(value):
        return None
    return metrics.ms_ssim_db(value) if metric == "ms_ssim" else value


def _of(results: dict, name: str) -> list[dict]:
    """The settings of a codec without failures: a mean over the pictures it managed compares with no other mean."""
    return [m for m in results["means"] if m["codec"] == name and m.get("bpp") and not m.get("bugs")]


def _bpp(results: dict, mean: dict, metric: str) -> float:
    """Mean size at one setting of the pictures that have the metric, which may not be all of them."""
    rows = (row for row in results["rows"] if (row["codec"], row["setting"]) == (mean["codec"], mean["setting"]))
    sizes = [row["bpp"] for row in rows if row.get(metric) is not None]
    return statistics.fmean(sizes) if sizes else mean["bpp"]


def curves(results: dict, metric: str) -> list[tuple[Series, Entry | None]]:
    """The drawn curves of a metric with a point or more each; published ones (no Entry) if the results have them."""
    found = []
    for entry in entries(results):
        points = []
        for mean in sorted(_of(results, entry.name), key=lambda mean: mean["bpp"]):
            height = _height(mean.get(metric), metric)
            if height is not None:
                quality = number(mean[metric], 2) + " dB" if metric == "psnr_db" else number(mean[metric], 4)
                bpp = _bpp(results, mean, metric)
                points.append(Point(bpp, height, f"{entry.label}, {mean['setting']}: {bpp:.3f} bpp, {quality}"))
        if points:
            found.append((Series(entry.key, entry.label, entry.kind, entry.colour, entry.dash, tuple(points)), entry))
    if not found:
        return []
    for key, (name, label) in enumerate(DRAWN.items(), len(entries(results))):
        curve = (results.get("published") or {}).get(name)
        if curve and curve.get(metric):
            heights = [_height(value, metric) for value in curve[metric]]
            pairs = sorted((x, y) for x, y in zip(curve["bpp"], heights, strict=True) if y is not None)
            points = tuple(Point(x, y, f"{label}, published: {x:.3f} bpp") for x, y in pairs)
            found.append((Series(key, label, "published", "published", 0, points), None))
    return found


def described(series: Sequence[Series], what: str) -> str:
    """A chart in words: every curve's height at one rate that most of them reach."""
    ranges = [(s.points[0].x, s.points[-1].x) for s in series if s.kind != "published"]
    middle = math.sqrt(max(low for low, _ in ranges) * min(high for _, high in ranges))
    at = next((rate for rate in (0.1, 0.2, 0.5, 1, 2, 5) if rate >= middle), middle)
    said = []
    for one in series:
        for a, b in zip(one.points, one.points[1:], strict=False):
            if a.x <= at <= b.x and a.x < b.x:
                part = math.log(at / a.x) / math.log(b.x / a.x)
                said.append((a.y + part * (b.y - a.y), one.label))
                break
    heights = ", ".join(f"{label} {height:.1f}" for height, label in sorted(said, reverse=True))
    return f"{what} over bits a pixel on a logarithmic axis, {len(series)} curves." + (
        f" At {at:.2g} bits a pixel, from the best: {heights} dB." if said else ""
    )


def reference(results: dict) -> Entry | None:
    """The anchor that speeds and worst pictures are told against: a progressive JPEG, else any JPEG, else the first."""
    anchors = [e for e in entries(results) if e.kind == "anchor" and len(_of(results, e.name)) > 1]
    return min(anchors, key=lambda e: (e.name != "jpeg-progressive", not e.name.startswith("jpeg")), default=None)


def _bd_rate(anchor: Sequence[dict], test: Sequence[dict]) -> float | None:
    """BD-rate in percent over PSNR of rows or means; None where it is undefined."""

    def points(records):
        sound = (r for r in records if r.get("bpp") and not r.get("bugs"))
        pairs = {r["psnr_db"]: r["bpp"] for r in sound if _height(r.get("psnr_db"), "psnr_db")}
        return [(bpp, psnr) for psnr, bpp in pairs.items()]

    try:
        return metrics.bd_rate(points(anchor), points(test))[0]
    except OptionError:
        return None


def seconds_per_megapixel(results: dict, name: str, field: str, setting: str | None = None) -> float | None:
    """Median over the sound rows of a codec of seconds / megapixels; field: encode_s or decode_s."""
    values = [
        row[field] / (1e-6 * row["width_px"] * row["height_px"])
        for row in results["rows"]
        if row["codec"] == name and setting in (None, row["setting"]) and row.get(field) and not row.get("bugs")
    ]
    return statistics.median(values) if values else None


def speeds(results: dict) -> tuple[list[tuple[str, list[Series]]], str, list[str]]:
    """(panels, label of the x axis, titles of who is not on it): size at equal PSNR if there is an anchor, else bpp."""
    base, panels, missing = reference(results), [], []
    x_label = f"size at equal PSNR, % of {base.label}" if base else "bits a pixel"
    for heading, field in (("Encode", "encode_s"), ("Decode", "decode_s")):
        series = []
        for entry in entries(results):
            points = []
            if base:
                percent = 0.0 if entry == base else _bd_rate(_of(results, base.name), _of(results, entry.name))
                speed = seconds_per_megapixel(results, entry.name, field)
                if percent is not None and speed:
                    text = f"{entry.label}: {number(100 + percent, 0)} %, {seconds(speed)} s a megapixel"
                    points = [Point(100 + percent, speed, text)]
            else:
                for mean in sorted(_of(results, entry.name), key=lambda mean: mean["bpp"]):
                    speed = seconds_per_megapixel(results, entry.name, field, mean["setting"])
                    if speed:
                        text = f"{entry.label}, {mean['setting']}: {mean['bpp']:.3f} bpp, {seconds(speed)} s"
                        points.append(Point(mean["bpp"], speed, f"{text} a megapixel"))
            if points:
                series.append(Series(entry.key, entry.label, entry.kind, entry.colour, entry.dash, tuple(points)))
            elif entry.label not in missing:
                missing.append(entry.label)
        if series:
            panels.append((heading, series))
    return panels, x_label, missing


def per_picture(results: dict, name: str) -> tuple[str, list[tuple[float, str]]]:
    """("%" or "dB", [(badness, file)]): every picture of a codec, worst first.

    Badness is the BD-rate in percent against the `reference`; without one, or where it is undefined for every picture,
    how many dB PSNR is under the codec's own mean over the pictures at the same settings.
    """
    base, files = reference(results), list(dict.fromkeys(row["file"] for row in results["rows"]))
    rows = {}
    for row in results["rows"]:
        rows.setdefault((row["codec"], row["file"]), []).append(row)
    found = []
    if base:
        for file in files:
            percent = _bd_rate(rows.get((base.name, file), ()), rows.get((name, file), ()))
            if percent is not None:
                found.append((percent, file))
    unit = "%" if found else "dB"
    if not found and len(files) > 1:
        means = {mean["setting"]: mean.get("psnr_db") for mean in _of(results, name)}
        for file in files:
            under = [
                means[row["setting"]] - row["psnr_db"]
                for row in rows.get((name, file), ())
                if row.get("psnr_db") is not None and means.get(row["setting"]) is not None
            ]
            if under:
                found.append((statistics.fmean(under), file))
    return unit, sorted(found, key=lambda pair: (-pair[0], pair[1]))
