"""The report's charts, drawn by matplotlib: rate against quality, and speed against size.

One drawing serves three uses: a file (SVG with its text as outlines, PNG), and inline SVG for the page, whose colours
are CSS variables and whose text is text. Sizes are in CSS pixels (72 to the inch, so that 1 pt = 1 px).
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from latcodec.report.labels import COLOURS, DASHES, Series, label_ends, label_points

MARKERS = {"codec": "o", "anchor": "s", "published": ""}
WIDTHS = {"codec": 2.6, "anchor": 1.5, "published": 0.9}
SIZES = {"wide": (960, 540), "narrow": (360, 400), "file": (960, 600)}


def rate_quality(series: Sequence[Series], quality: str, size: str, name: str, title: str = ""):
    """A matplotlib Figure of quality (in dB, the label says of what) over log bpp; name prefixes the ids of an SVG."""
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _figure(size, title)
    shown = [p for s in series for p in s.points if s.kind == "codec"] or [p for s in series for p in s.points]
    low, high = min(p.x for p in shown), max(p.x for p in shown)
    span = max(math.log(high / low), 0.7)
    low, high = low * math.exp(-0.06 * span), high * math.exp(0.12 * span)
    heights = [p.y for s in series for p in s.points if low <= p.x <= high]
    bottom, top = max(min(heights), min(p.y for p in shown) - 2), max(heights)
    room = 0.05 * max(top - bottom, 1)
    axes.set(xscale="log", xlim=(low, high), ylim=(bottom - room, top + room))
    axes.set_xlabel("bits a pixel (whole file)")
    axes.set_ylabel(quality)
    _decimal_ticks(axes.xaxis, low, high)
    axes.yaxis.set_major_locator(MaxNLocator(12, steps=[1, 2, 5, 10], integer=top - bottom > 4))
    for one in sorted(series, key=lambda one: ["published", "anchor", "codec"].index(one.kind)):
        _curve(axes, one, f"{name}-s{one.key}")
    if size != "narrow":
        label_ends(axes, series, name)
    return figure


def speed_size(panels: Sequence[tuple[str, Sequence[Series]]], x_label: str, size: str, name: str, title: str = ""):
    """A Figure of one panel per (heading, series): seconds a megapixel, log, over size; one point or one curve each."""
    figure, all_axes = _figure(size, title, len(panels))
    points = [p for _, series in panels for s in series for p in s.points]
    low, high = min(p.x for p in points), max(p.x for p in points)
    room = max(0.08 * (high - low), 0.02 * high)
    for number, ((heading, series), axes) in enumerate(zip(panels, all_axes, strict=True)):
        bottom, top = min(p.y for p in points), max(p.y for p in points)
        right = (0.3 if size == "narrow" else 0.38) * (high - low + 2 * room)
        axes.set(yscale="log", xlim=(low - room, high + room + right), ylim=(bottom / 1.7, top * 1.7))
        axes.set_title(heading, loc="left", fontsize=13, color=COLOURS["ink"][0], fontweight="bold")
        axes.set_xlabel(x_label)
        _decimal_ticks(axes.yaxis, bottom / 1.7, top * 1.7)
        if number == 0 or size == "narrow":
            axes.set_ylabel("seconds a megapixel")
        for one in series:
            _curve(axes, one, f"{name}-{number}-s{one.key}", points_only=len(one.points) == 1)
        label_points(axes, series, name)
    return figure


def _figure(size: str, title: str, panels: int = 1):
    from matplotlib.figure import Figure

    width, height = SIZES[size]
    rows = panels if size == "narrow" else 1
    height *= rows if rows > 1 else 1
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=COLOURS["paper"][0])
    left, right = (46, 8) if size == "narrow" else (60, 170 if panels == 1 else 12)
    top, bottom = 26 if panels > 1 else 10, 44
    if title:
        figure.text(
            16 / width, 1 - 26 / height, title, fontsize=17, fontweight="bold", color=COLOURS["ink"][0], va="center"
        )
        top += 40
    grid = figure.subplots(rows, panels if rows == 1 else 1, squeeze=False).ravel()
    gap = 0.42 if rows > 1 else 0.16
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, gap, gap * 0.6)
    ink, muted, line = (COLOURS[name][0] for name in ("ink", "muted", "grid"))
    for axes in grid:
        axes.set_facecolor("none")
        axes.grid(True, color=line, linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(colors=muted, labelsize=12, length=0, pad=5, which="both")
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(fontsize=12.5, color=ink)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(muted)
    return figure, grid


def _decimal_ticks(axis, low: float, high: float) -> None:
    """1, 2 and 5 times the powers of ten, written as decimals; closer ones where that leaves fewer than three."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [round(d * 10.0**e, 9) for e in range(-6, 7) for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    if len(ticks) > 8:
        ticks = [t for t in ticks if math.isclose(10 ** round(math.log10(t)), t)]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _curve(axes, one: Series, name: str, points_only: bool = False) -> None:
    colour, dash = COLOURS[one.colour][0], DASHES[one.dash % len(DASHES)]
    x, y = [p.x for p in one.points], [p.y for p in one.points]
    if not points_only:
        (line,) = axes.plot(x, y, color=colour, linewidth=WIDTHS[one.kind], solid_joinstyle="round", gid=name)
        if dash[0]:
            line.set_dashes(dash)
    (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
    inside = [p for p in one.points if x0 <= p.x <= x1 and y0 <= p.y <= y1]
    if MARKERS[one.kind] and inside:
        large = 9 if points_only and one.kind == "codec" else 6
        (marks,) = axes.plot(
            [p.x for p in inside], [p.y for p in inside], marker=MARKERS[one.kind], color=colour, gid=f"{name}-m",
            markersize=large if one.kind == "codec" else 3.2 if not points_only else 6,
            markeredgecolor=COLOURS["paper"][0], markeredgewidth=0.8 if one.kind == "codec" else 0, linestyle="none",
        )  # fmt: skip
        marks.texts = [p.text for p in inside]


def file_bytes(figure, kind: str) -> bytes:
    """The figure as an "svg" or "png" file; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    settings = {"svg.fonttype": "path", "svg.hashsalt": "latcodec", "font.family": "DejaVu Sans"}
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=144, metadata=metadata)
    return _fewer_colours(buffer) if kind == "png" else buffer.getvalue()


def _fewer_colours(file: io.BytesIO) -> bytes:
    """The PNG with a palette: a chart has few colours, and the file is a third of the size."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def inline_svg(figure, name: str, kind: str) -> str:
    """The figure as an <svg class=kind> without ids that another figure has, its colours as var(--colour).

    Screen readers pass over it; a pointer reads the text of a Point at its mark in data-text.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "DejaVu Sans"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    space = "{http://www.w3.org/2000/svg}"
    ElementTree.register_namespace("", space[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(buffer.getvalue())
    texts = {line.get_gid(): line.texts for axes in figure.axes for line in axes.lines if hasattr(line, "texts")}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{space}metadata", f"{space}title") or (child.text or "").startswith("*{"):
                parent.remove(child)
    for group in root.iter(f"{space}g"):
        ident = group.attrib.pop("id", "")
        match = re.fullmatch(rf"{re.escape(name)}.*-s(\d+)(-[mlt])?", ident)
        if match:
            group.set("class", f"series s{match[1]}")
        if ident.endswith("-m"):
            for mark, text in zip(group.iter(f"{space}use"), texts[ident], strict=True):
                mark.set("data-text", text)
    width, height = (float(part) for part in root.get("viewBox").split()[2:])
    root.attrib = {"class": kind, "viewBox": f"0 0 {width:g} {height:g}", "aria-hidden": "true", "focusable": "false"}
    text = ElementTree.tostring(root, encoding="unicode")
    text = re.sub(r"font-family: [^;\"]+;?|font: ([^;\"]*?) *'DejaVu Sans'", lambda m: _font(m[1]), text)
    for colour, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{colour})")
    return re.sub(r"\n\s*", "\n", text)


def _font(shorthand: str | None) -> str:
    """CSS `font: bold 13px` without the family, which the page decides."""
    if shorthand is None:
        return ""
    size = re.search(r"[\d.]+px", shorthand)
    weight = "font-weight: bold; " if re.search(r"\bbold\b|\b[67]00\b", shorthand) else ""
    return weight + (f"font-size: {size[0]}" if size else "")
