"""The report folder's page and charts, from the results of a bench.

`write` makes index.html, one file that needs no network and nothing beside it, and the charts as SVG and PNG. Numbers
come from tables.py, drawings from curves.py, crops from crops.py; page.html is the page's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from latcodec import files
from latcodec.report import crops as report_crops
from latcodec.report import curves as report_curves
from latcodec.report import page as report_page
from latcodec.report import tables as report_tables
from latcodec.report.curves import WIDTHS
from latcodec.report.labels import DASHES, Series
from latcodec.report.tables import HEADINGS, METRICS

NAMES = {"psnr_db": "curves_psnr", "ms_ssim": "curves_ms_ssim"}


def write(
    results: dict,
    folder: Path,
    pictures: report_crops.Pictures | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write index.html and the charts into `folder`, over older ones; returns their paths.

    results: the record of results.json. pictures: gives pixels for crops and thumbnails, which are left out without
    it. say: told of the steps that take seconds.
    """
    entries = report_tables.entries(results)
    written = {}
    charts = [chart for metric in METRICS if (chart := _quality_chart(results, metric, written))]
    speed = _speed_chart(results, written)
    flips = report_crops.flips(results, entries, pictures, say) if pictures else []
    page = report_page.render(results, entries, charts, speed, flips, pictures, list(written))
    written["index.html"] = page.encode(errors="backslashreplace")  # names of files need not be Unicode
    paths = []
    for name, data in written.items():
        path = Path(folder) / name
        with files.open_output(path, force=True) as file:
            file.write(data)
        paths.append(path)
    return paths


def readme_figure(results: dict, path: Path, title: str = "") -> None:
    """Write one PNG plot of PSNR over bits a pixel to `path`, over an older one."""
    series = [one for one, _ in report_tables.curves(results, "psnr_db")]
    figure = report_curves.rate_quality(series, METRICS["psnr_db"], "file", "readme", title)
    with files.open_output(Path(path), force=True) as file:
        file.write(report_curves.file_bytes(figure, "png"))


def _quality_chart(results: dict, metric: str, written: dict[str, bytes]) -> dict | None:
    """What the page needs of one chart, its files added to `written`; None without a point."""
    series = [one for one, _ in report_tables.curves(results, metric)]
    if not series:
        return None
    name, label = NAMES[metric], METRICS[metric]
    title = f"{HEADINGS[metric]} against size, {_subject(results)}"
    figure = report_curves.rate_quality(series, label, "file", name, title)
    for kind in ("svg", "png"):
        written[f"{name}.{kind}"] = report_curves.file_bytes(figure, kind)
    drawn = {}
    for size in ("wide", "narrow"):
        prefix = f"{name}-{size}"
        figure = report_curves.rate_quality(series, label, size, prefix)
        drawn[size] = report_curves.inline_svg(figure, prefix, size)
    alt = report_tables.described(series, HEADINGS[metric])
    return {**drawn, "heading": HEADINGS[metric], "alt": alt, "legend": _legend(series)}


def _speed_chart(results: dict, written: dict[str, bytes]) -> dict | None:
    panels, x_label, missing = report_tables.speeds(results)
    if not panels:
        return None
    figure = report_curves.speed_size(panels, x_label, "file", "speed", f"Speed against size, {_subject(results)}")
    for kind in ("svg", "png"):
        written[f"speed.{kind}"] = report_curves.file_bytes(figure, kind)
    drawn = {}
    for size in ("wide", "narrow"):
        figure = report_curves.speed_size(panels, x_label, size, f"speed-{size}")
        drawn[size] = report_curves.inline_svg(figure, f"speed-{size}", size)
    base = report_tables.reference(results)
    text = "Whole calls, warm, median over pictures and settings; down and to the left is better."
    if base:
        text += f" Size is the BD-rate over PSNR, {base.title} being 100 %."
    if missing:
        text += f" Not on it, for want of curves that overlap: {', '.join(missing)}."
    alt = "; ".join(f"{heading}: " + ", ".join(one.points[0].text for one in series) for heading, series in panels)
    return {**drawn, "alt": f"Speed against size. {alt}.", "text": text, "legend": []}


def _subject(results: dict) -> str:
    count = len({row["file"] for row in results["rows"]})
    kodak = "Kodak, " if results.get("dataset") == "kodak" else ""
    return f"{kodak}{count} picture{'s' if count != 1 else ''}"


def _legend(series: Sequence[Series]) -> list[dict]:
    """A button's label and line for each curve."""
    found = []
    for one in series:
        dash = DASHES[one.dash % len(DASHES)]
        steps = " ".join(f"{step * WIDTHS[one.kind]:g}" for step in dash) if dash[0] else ""
        width = WIDTHS[one.kind] + 0.4
        found.append({"label": one.label, "key": one.key, "colour": one.colour, "dash": steps, "width": width})
    return found
