"""The report's curves as data, their looks, and where on a chart their names stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# name: (light, dark). Codecs: Okabe and Ito's colours, which no common colour blindness confuses; anchors are thinner,
# dashed each in its own way, and darker. Every light value differs from all others: it is replaced by var(--name).
COLOURS = {
    "paper": ("#ffffff", "#14171b"), "ink": ("#1c2127", "#e4e7eb"), "muted": ("#5b6470", "#a3adb9"),
    "grid": ("#e3e6ea", "#2b3138"), "published": ("#8a939e", "#79838f"),
    "codec0": ("#0072b2", "#4db1ec"), "codec1": ("#d55e00", "#ff8a3c"), "codec2": ("#009e73", "#2fcf9f"),
    "codec3": ("#b8529a", "#e68fcb"), "codec4": ("#7a6a00", "#d8c545"), "codec5": ("#3d3d8f", "#a4a4f2"),
    "anchor0": ("#8c5a2b", "#d0a06e"), "anchor1": ("#b07d4a", "#b08660"), "anchor2": ("#2f7f8c", "#74c4d0"),
    "anchor3": ("#6b4fa1", "#b79fe6"), "anchor4": ("#6f7a1f", "#b4c057"), "anchor5": ("#a33a4a", "#ee8f9c"),
}  # fmt: skip
DASHES = ((None, None), (3, 1.5), (6, 1.5), (5, 1.5, 1.5, 1.5), (1.8, 1.2), (9, 2), (5, 1.5, 1.2, 1.5, 1.2, 1.5))
# Where a name can stand beside its point, best first: alignment, px to the right, px up.
PLACES = (
    ("left", 9, 0), ("right", -9, 0), ("center", 0, 15), ("center", 0, -15), ("left", 8, 11), ("left", 8, -11),
    ("right", -8, 11), ("right", -8, -11), ("left", 6, 22), ("left", 6, -22),
)  # fmt: skip


@dataclass(frozen=True)
class Point:
    """A place on a chart, in the units of its axes, and what to say of it."""

    x: float
    y: float
    text: str = ""


@dataclass(frozen=True)
class Series:
    """One curve. key: its number on the page; kind: codec, anchor or published; colour: in COLOURS; dash: in DASHES."""

    key: int
    label: str
    kind: str
    colour: str
    dash: int
    points: tuple[Point, ...]


def _spread(places: list[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending places moved apart to at least `gap`, within low..high as far as that holds them."""
    moved = []
    for place in places:
        moved.append(max(place, moved[-1] + gap if moved else low))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], moved[i + 1] - gap if i + 1 < len(moved) else high)
    for i, place in enumerate(moved):
        moved[i] = max(place, moved[i - 1] + gap if i else place)
    return moved


def label_ends(axes, series: Sequence[Series], name: str) -> None:
    """Names in the right margin, each beside the end of its curve or tied to it by a thin line."""
    from matplotlib.transforms import blended_transform_factory

    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    ends = []
    for one in series:
        inside = [p for p in one.points if low <= p.x <= high and bottom <= p.y <= top]
        if not inside:
            continue
        last = inside[-1]
        beyond = next((p for p in one.points if p.x > high), None)
        if beyond is not None:
            part = math.log(high / last.x) / math.log(beyond.x / last.x)
            last = Point(high, min(last.y + part * (beyond.y - last.y), top))
        ends.append((last.y, one.key, one, last))
    ends.sort(key=lambda end: end[:2])
    unit = (top - bottom) / axes.get_window_extent().height
    places = _spread([end[0] for end in ends], 15.5 * unit, bottom, top)
    margin = blended_transform_factory(axes.transAxes, axes.transData)
    for place, (_, _, one, last) in zip(places, ends, strict=True):
        colour, start = COLOURS[one.colour][0], math.log(last.x / low) / math.log(high / low)
        (leader,) = axes.plot(
            [start, 1.0, 1.015],
            [last.y, last.y if start > 0.985 else place, place],
            color=colour,
            linewidth=0.6,
            transform=margin,
            clip_on=False,
            gid=f"{name}-s{one.key}-l",
        )
        if start < 0.985:
            leader.set_dashes((1, 3))
        codec = one.kind == "codec"
        text = axes.text(1.02, place, one.label, transform=margin, va="center", color=colour)
        text.set_parse_math(False)
        text.set(gid=f"{name}-s{one.key}-t", fontsize=13 if codec else 12, fontweight="bold" if codec else "normal")


def label_points(axes, series: Sequence[Series], name: str) -> None:
    """The name of each series beside its last point, where it covers least of the points and the names before it."""
    area = axes.get_window_extent()
    to_px = axes.transData.transform
    ends = [(one, to_px((one.points[-1].x, one.points[-1].y))) for one in series]
    taken = [(x - 6, y - 6, x + 6, y + 6) for one in series for x, y in (to_px((p.x, p.y)) for p in one.points)]
    inside = (area.x0, area.y0, area.x1, area.y1)
    for one, (x, y) in sorted(ends, key=lambda end: end[0].kind != "codec"):
        bold = one.kind == "codec"
        width = len(one.label) * (7.7 if bold else 6.9)
        best = None
        for align, dx, dy in PLACES:
            left = x + dx - {"left": 0, "center": width / 2, "right": width}[align]
            place = (left, y + dy - 7, left + width, y + dy + 7)
            cost = sum(_overlap(place, other) for other in taken) + 3 * (14 * width - _overlap(place, inside))
            if best is None or cost < best[0] - 1:
                best = cost, align, dx, dy, place
        _, align, dx, dy, place = best
        taken.append(place)
        text = axes.annotate(
            one.label,
            (one.points[-1].x, one.points[-1].y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha=align,
            va="center",
        )
        text.set(gid=f"{name}-s{one.key}-t", color=COLOURS[one.colour][0], fontsize=12)
        text.set(fontweight="bold" if bold else "normal", parse_math=False)


def _overlap(a: tuple, b: tuple) -> float:
    """Area in px that two boxes (left, bottom, right, top) share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
