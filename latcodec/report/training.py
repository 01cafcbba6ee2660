"""The page of a training run, report.html, from the files that the run leaves (train/record.py).

One file that needs nothing beside it: curves against steps, rate and distortion of every validation, the same crops
over time, latent channels. Rows that a crash cut off are passed over; what is not there yet is left out.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

from latcodec import files
from latcodec.report import curves as report_curves
from latcodec.report import frame as report_frame
from latcodec.report.labels import COLOURS, Point, Series
from latcodec.report.tables import number

MOST_POINTS = 400  # of a curve; more steps are averaged
MOST_COLUMNS = 9  # of reconstructions, and curves of validations: the first, the last and some between
PANELS = (
    ("loss", "Loss", "what is minimised"), ("bpp", "Rate", "bits a pixel"), ("psnr_db", "Distortion", "PSNR, dB"),
    ("ms_ssim", "MS-SSIM", "of the crops"), ("lr", "Learning rate", ""), ("norm", "Gradient norm", "before clipping"),
)  # fmt: skip
NOT_SHOWN = ("step", "minutes", "pictures_per_s", "data_share", "side_px")


def write(folder: Path) -> Path:
    """Write report.html into the folder of a run, over an older one; returns its path. Raises OSError, ImportError."""
    folder = Path(folder)
    curves, log = _lines(folder / "curves.jsonl"), _lines(folder / "log.jsonl")
    about = json.loads((folder / "run.json").read_text())
    page = report_frame.render(
        "training.html",
        codec=about["settings"]["codec"],
        held_out=about["held_out"],
        facts=_facts(about, curves),
        panels=_panels(curves),
        chart=_validations(log),
        table=_last(log),
        columns=_crops(folder / "crops"),
        channels=_channels(folder / "channels.json"),
        settings=_settings(about),
    )
    path = folder / "report.html"
    with files.open_output(path, force=True) as file:
        file.write(page.encode(errors="backslashreplace"))
    return path


def _lines(path: Path) -> list[dict]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _some(items: Sequence, most: int) -> list:
    """First, last and evenly spaced ones between, at most so many."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _facts(about: dict, curves: list[dict]) -> list[tuple[str, str]]:
    """What the head of the page says of the run."""
    settings, last = about["settings"], curves[-1] if curves else {}
    budget = _counted(settings["steps"], "step") if settings["steps"] else f"{settings['minutes']:g} min"
    facts = [("step", f"{last.get('step', 0)} of {budget}"), ("trained for", f"{last.get('minutes', 0):.1f} min")]
    recent = curves[-10:]
    if recent:
        speed = sum(row["pictures_per_s"] for row in recent) / len(recent)
        waiting = sum(row["data_share"] for row in recent) / len(recent)
        facts += [("pictures a second", f"{speed:.3g} of {last['side_px']} px"), ("waiting for data", f"{waiting:.1%}")]
    held_out = about["held_out"] or f"none, {'the first 8' if about['pictures'] > 8 else 'all'} instead"
    facts += [("pictures", f"{about['pictures']} of {about['megapixels']:.0f} MP"), ("held out", f"{held_out}"),
              ("parameters", f"{about['parameters'] / 1e6:.2f} M"), ("device", about["device"])]  # fmt: skip
    facts += [("processes", str(about["processes"]))] if about["processes"] > 1 else []
    return facts


def _settings(about: dict) -> list[tuple[str, str]]:
    """What the run was told, except for what is off, and its network: names and values as text."""

    def text(value: object) -> str:
        if isinstance(value, list):
            return ", ".join(" = ".join(one) if isinstance(one, list) else str(one) for one in value)
        return "yes" if value is True else str(value)

    told = [
        (name, text(value))
        for name, value in about["settings"].items()
        if value is not None and value is not False and value != []
    ]
    return [*told, ("network", ", ".join(f"{name} = {value}" for name, value in about["config"].items()))]


def _counted(count: int, thing: str) -> str:
    """1 step, 2 steps"""
    return f"{count} {thing}{'s' if count != 1 else ''}"


def _panels(curves: list[dict]) -> list[dict]:
    """One small chart for each number that the rows have and that changes."""
    names = [name for name, _, _ in PANELS] + sorted({n for row in curves for n in row} - {p[0] for p in PANELS})
    known = {name: (title, unit) for name, title, unit in PANELS}
    panels = []
    for name in names:
        points = [
            (r["step"], r[name]) for r in curves if isinstance(r.get(name), int | float) and name not in NOT_SHOWN
        ]
        points = [(x, y) for x, y in points if math.isfinite(y)]
        if len(points) < 2 or (name not in known and len({y for _, y in points}) == 1):
            continue
        title, unit = known.get(name, (name, ""))
        logarithmic = name in ("loss", "norm") and min(y for _, y in points) > 0
        said = f"{title}: " + ", ".join(f"{number(y, 3)} at step {x}" for x, y in (points[0], points[-1]))
        drawing = report_curves.inline_svg(
            _small(_thinned(points), logarithmic, name != "lr"), f"panel-{name}", "panel"
        )
        panels.append({"title": title, "unit": unit, "svg": drawing, "alt": said})
    return panels


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of runs of points, so that at most MOST_POINTS are left."""
    size = -(-len(points) // MOST_POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(run[-1][0], sum(y for _, y in run) / len(run)) for run in runs]


def _small(points: list[tuple[float, float]], logarithmic: bool, noisy: bool):
    """A Figure of one curve; if it is noisy and has many points, its running mean on top."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(420 / 72, 230 / 72), dpi=72, facecolor=COLOURS["paper"][0])
    axes = figure.add_axes((0.14, 0.13, 0.84, 0.83))
    axes.set_facecolor("none")
    axes.grid(True, color=COLOURS["grid"][0], linewidth=1)
    axes.tick_params(colors=COLOURS["muted"][0], labelsize=11, length=0, pad=4, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(COLOURS["muted"][0])
    x, y = [p[0] for p in points], [p[1] for p in points]
    own = COLOURS["codec0"][0]
    many = noisy and len(points) > 40
    axes.plot(x, y, color=own, linewidth=1 if many else 2, alpha=0.35 if many else 1, solid_joinstyle="round")
    if many:
        reach = len(points) // 20
        means = [sum(y[max(0, i - reach) : i + 1]) / (i + 1 - max(0, i - reach)) for i in range(len(y))]
        axes.plot(x, means, color=own, linewidth=2.2)
        low, high = sorted(y)[len(y) // 100], sorted(y)[-1 - len(y) // 100]  # a spike may leave the chart
        room = 0.06 * (high - low) or 1
        axes.set_ylim(low / 1.1 if logarithmic else low - room, high * 1.1 if logarithmic else high + room)
    if logarithmic and max(y) > 5 * min(y):
        axes.set_yscale("log")
        report_curves._decimal_ticks(axes.yaxis, *axes.get_ylim())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def _validations(log: list[dict]) -> dict | None:
    """Rate and distortion at evaluations, the last one strong, drawn wide and narrow."""
    chosen = _some([row for row in log if row.get("validation")], MOST_COLUMNS)
    if not chosen:
        return None
    series = []
    for key, row in enumerate(chosen):
        points = tuple(
            Point(r["bpp"], r["psnr_db"], f"step {row['step']}: {r['bpp']:.3f} bpp, {r['psnr_db']:.2f} dB")
            for r in row["validation"]
        )
        last = row is chosen[-1]
        series.append(
            Series(key, f"step {row['step']}", "codec" if last else "anchor", "codec1" if last else "codec0", 0, points)
        )
    drawn = {}
    for size in ("wide", "narrow"):
        figure = report_curves.rate_quality(series, "PSNR, dB", size, f"validation-{size}")
        figure.axes[0].set_xlabel("bits a pixel, as the model counts them")
        for line in figure.axes[0].lines:  # older is fainter
            key = int((line.get_gid() or "-s0").split("-s")[1].split("-")[0])
            line.set_alpha(0.3 + 0.7 * (key + 1) / len(series))
        drawn[size] = report_curves.inline_svg(figure, f"validation-{size}", size)
    ends = []
    for row in (chosen[0], chosen[-1]):
        low, high = row["validation"][0]["psnr_db"], row["validation"][-1]["psnr_db"]
        ends.append(f"step {row['step']} from {low:.1f} to {high:.1f} dB")
    alt = f"PSNR against bits a pixel: {', '.join(ends)}"
    return {**drawn, "alt": alt, "steps": [row["step"] for row in chosen], "legend": []}


def _last(log: list[dict]) -> dict | None:
    """The last validation as rows of text, each with its change since the one before."""
    log = [row for row in log if row.get("validation")]
    if not log:
        return None
    last, before = log[-1], log[-2] if len(log) > 1 else None
    has_similarity = "ms_ssim" in last["validation"][0]
    rows = []
    for i, row in enumerate(last["validation"]):
        cells = [f"{row['t']:.2f}", number(row["bpp"], 3), number(row["psnr_db"], 2), number(row["lagrangian"], 3)]
        cells += [number(row["ms_ssim"], 4)] if has_similarity else []
        if before:
            old = before["validation"][i]["lagrangian"]
            cells.append(f"{number(100 * (row['lagrangian'] / old - 1), 2, True)} %")
        rows.append(cells)
    heads = ["rate t", "bpp", "PSNR, dB", "Lagrangian"] + (["MS-SSIM"] if has_similarity else [])
    heads += [f"since step {before['step']}"] if before else []
    return {"heads": heads, "rows": rows, "step": last["step"]}


def _crops(folder: Path) -> list[dict]:
    """For each crop the original and, at both ends of the rates, its reconstructions: (step, data URI, bpp)."""
    import numpy as np

    files_ = _some(sorted(path for path in folder.glob("*.npz") if path.stem.isdigit()), MOST_COLUMNS)
    groups: list[dict] = []
    for path in files_:
        with np.load(path) as found:
            original, shown, bpp = found["original"], found["shown"], found["bpp"]
        for n, picture in enumerate(original):
            if len(groups) <= n:
                side = picture.shape[-1]
                groups.append(
                    {"original": _uri(picture), "side": side, "rows": [("lowest rate", []), ("highest rate", [])]}
                )
            for (_, row), pixels, cost in zip(groups[n]["rows"], shown[:, n], bpp[:, n], strict=True):
                row.append({"step": int(path.stem), "uri": _uri(pixels), "bpp": f"{cost:.2f}"})
    return groups


def _uri(pixels) -> str:
    """uint8 [3, h, w] as a data URI: WebP, near lossless where it is small anyway."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "WEBP", quality=92)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _channels(path: Path) -> dict | None:
    """The table of latent channels, the dearest first; None if the model has none."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    levels = []
    for name, level in found["levels"].items():
        rows = sorted(level["channels"], key=lambda row: -row["kl_bits"])
        cells = [
            (str(row["channel"]), number(row["kl_bits"], 3), number(row["mi_bits"], 3), number(row["gap_bits"], 3),
             f"{row['variance_of_mean']:.3g}", "yes" if row["active"] else "no")
            for row in rows
        ]  # fmt: skip
        about = f"{level['active']} of {_counted(len(rows), 'channel')} active, {level['kl_bits']:.3f} bits of KL and "
        about += f"{level['mi_bits']:.3f} of mutual information a channel and place; {level['prior']} prior"
        levels.append({"name": name, "about": about, "rows": cells})
    return {
        "step": found["step"],
        "t": f"{found['t']:.2f}",
        "ceiling": f"{found['ceiling_bits']:.0f}",
        "levels": levels,
    }
