"""The report's page: tables for people from the results, filled into page.html."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

from latcodec.report import crops as report_crops
from latcodec.report import frame as report_frame
from latcodec.report import tables as report_tables
from latcodec.report.tables import HEADINGS, Entry, number, seconds
from latcodec.text import human_bytes

WORST = 5
PARTS = (
    ("encode", "networks"), ("encode", "quantise"), ("encode", "entropy"), ("encode", "verify"),
    ("decode", "networks"), ("decode", "entropy"),
)  # fmt: skip


def render(results: dict, entries: Sequence[Entry], charts, speed, flips, pictures, names: Sequence[str]) -> str:
    """The whole page as HTML that refers to nothing outside its folder; every name in it is escaped."""
    rows, how_many = results["rows"], max((len(flip.images) for flip in flips), default=0)
    return report_frame.render(
        "page.html",
        pictures=len({row["file"] for row in rows}),
        kodak=results.get("dataset") == "kodak",
        published=bool(results.get("published")),
        created=_date(results.get("created")),
        command=results.get("command"),
        version=(results.get("environment") or {}).get("latcodec"),
        skipped=results.get("skipped") or (),
        entries=entries,
        cards=_cards(results, entries),
        charts=charts,
        speed=speed,
        flips=flips,
        most=min(how_many, 9),
        bd=_bd(results, entries),
        worst=_worst(results, entries, pictures),
        means=_means(results, entries),
        bugs=[row for row in rows if row.get("bugs")],
        how=_how(results),
        files=names,
    )


def _date(text: str | None) -> str:
    """2026-11-21 00:40 UTC of 2026-11-21T00:40:00Z."""
    return re.sub(r"(T\d+:\d+)(:[\d.]+)?Z$", r"\1 UTC", text or "").replace("T", " ", 1)


def _cards(results: dict, entries: Sequence[Entry]) -> list[dict]:
    """For each codec: size beside every anchor of the run, speed, failures; for a run of anchors alone, of those."""
    labels = {entry.name: entry.label for entry in entries}
    cards = []
    for entry in [e for e in entries if e.kind == "codec"] or entries:
        sizes = [
            (f"vs {labels[bd['anchor']]}", number(bd["bd_rate_percent"], 1, True) + " %")
            for bd in results.get("bd") or ()
            if bd["codec"] == entry.name and bd["metric"] == "psnr_db" and labels.get(bd["anchor"])
            and not bd.get("published") and bd["bd_rate_percent"] is not None
        ]  # fmt: skip
        speeds = []
        for label, field in (("encode", "encode_s"), ("decode", "decode_s")):
            speed = report_tables.seconds_per_megapixel(results, entry.name, field)
            if speed is not None:
                speeds.append((label, f"{seconds(speed)} s/MP"))
        card = {"title": entry.title, "colour": entry.colour, "sizes": sizes, "speeds": speeds}
        cards.append(
            {**card, "failures": sum(1 for r in results["rows"] if r["codec"] == entry.name and r.get("bugs"))}
        )
    return cards


def _bd(results: dict, entries: Sequence[Entry]) -> list[dict]:
    """For each codec the tables of its differences: against the anchors of the run and, folded, published curves."""
    labels = {entry.name: entry.label for entry in entries}
    everything, groups = results.get("bd") or (), []
    metrics = [m for m in HEADINGS if any(bd["metric"] == m and bd["bd_rate_percent"] is not None for bd in everything)]
    heads = [head for m in map(HEADINGS.get, metrics) for head in (f"BD-rate, {m}", f"BD-{m}, dB", f"{m} overlap, dB")]
    for entry in entries:
        tables = []
        for published in (False, True):
            lines = {}
            for bd in everything:
                if bd["codec"] == entry.name and bool(bd.get("published")) == published:
                    lines.setdefault(labels.get(bd["anchor"], bd["anchor"]), {})[bd["metric"]] = bd
            rows = [[name, *(cell for m in metrics for cell in _difference(by.get(m)))] for name, by in lines.items()]
            if rows:
                what = "published curves of the Kodak set" if published else "the others of this run"
                tables.append({"heading": f"{entry.label} against {what}", "rows": rows, "folded": published})
        if tables:
            groups.append({"title": entry.title, "colour": entry.colour, "heads": heads, "tables": tables})
    return groups


def _difference(bd: dict | None) -> tuple[str, str, str]:
    if bd is None:
        return "n/a", "n/a", "n/a"
    if bd["bd_rate_percent"] is None:
        return "n/a", number(bd.get("bd_psnr_db"), 2, True), bd.get("reason") or "n/a"
    overlap = f"{number(bd.get('low'))} … {number(bd.get('high'))}" + (f" ({bd['note']})" if bd.get("note") else "")
    return f"{number(bd['bd_rate_percent'], 1, True)} %", number(bd.get("bd_psnr_db"), 2, True), overlap


def _worst(results: dict, entries: Sequence[Entry], pictures) -> list[dict]:
    base, groups, thumbs = report_tables.reference(results), [], {}
    for entry in entries:
        unit, ranking = report_tables.per_picture(results, entry.name)
        if len(ranking) < 2 or entry == base:
            continue
        rows = []
        for badness, file in ranking[:WORST]:
            if pictures and file not in thumbs and entry.kind == "codec":
                thumbs[file] = report_crops.thumbnail(pictures.original(file))
            value = number(badness if unit == "%" else -badness, 1 if unit == "%" else 2, True)
            rows.append(
                {"file": file, "value": f"{value} {unit}", "thumb": thumbs.get(file) if entry.kind == "codec" else None}
            )
        middle, best = statistics.median(b for b, _ in ranking), ranking[-1]
        if unit == "%":
            text = f"BD-rate over PSNR against {base.title}; median of all {number(middle, 1, True)} %, "
            text += f"best {number(best[0], 1, True)} % ({best[1]})."
        else:
            text = "PSNR beside the codec's own mean over the pictures at the same settings."
        groups.append(
            {"title": entry.title, "colour": entry.colour, "text": text, "rows": rows, "folded": entry.kind != "codec"}
        )
    return groups


def _means(results: dict, entries: Sequence[Entry]) -> dict:
    """Heads and groups of rows of cells; a column that nobody has a value for is left out."""

    def drift(mean: dict) -> str:
        return " / ".join(number(value, 2, True) for value in mean["mean_error_rgb"])

    def part_seconds(field: str):
        return lambda mean: seconds(mean[field])

    columns = [
        ("size", "bytes", lambda m: f"{m['bytes']:,.0f} B"),
        ("bpp", "bpp", lambda m: number(m["bpp"], 3)),
        ("PSNR, dB", "psnr_db", lambda m: number(m["psnr_db"])),
        ("MS-SSIM", "ms_ssim", lambda m: number(m["ms_ssim"], 4)),
        ("SSIM", "ssim", lambda m: number(m["ssim"], 4)),
        ("drift R / G / B", "mean_error_rgb", drift),
        ("encode, s", "encode_s", lambda m: seconds(m["encode_s"])),
        ("decode, s", "decode_s", lambda m: seconds(m["decode_s"])),
        ("bugs", "bugs", lambda m: str(m["bugs"])),
        *((f"{job}: {part}, s", f"{job}_{part}_s", part_seconds(f"{job}_{part}_s")) for job, part in PARTS),
        ("memory", "peak_memory_bytes", lambda m: human_bytes(int(m["peak_memory_bytes"]))),
        ("GPU memory", "device_memory_bytes", lambda m: human_bytes(int(m["device_memory_bytes"]))),
        ("file − estimate", "worst_gap_bytes", lambda m: f"{number(m['worst_gap_bytes'], 0, True)} B"),
    ]
    columns = [c for c in columns if any(mean.get(c[1]) is not None for mean in results["means"])]
    groups = []
    for entry in entries:
        rows = [
            [mean["setting"], *("n/a" if mean.get(field) is None else cell(mean) for _, field, cell in columns)]
            for mean in results["means"]
            if mean["codec"] == entry.name
        ]
        groups.append({"title": entry.title, "colour": entry.colour, "rows": rows})
    return {"heads": ["setting", *(head for head, _, _ in columns)], "groups": groups}


def _how(results: dict) -> list[dict]:
    groups = []
    for heading, key in (("Codecs", "codecs"), ("Anchors", "anchors")):
        rows = []
        for name, about in (results.get(key) or {}).items():
            said = [str(about["settings"])] if about.get("settings") else []
            for key, value in about.items():
                if key not in ("title", "settings", "weights_sha256") and value and str(value) not in " ".join(said):
                    said.append(f"{key.replace('_', ' ')} {value}")
            rows.append((about.get("title") or name, "; ".join(said)))
        if rows:
            groups.append({"heading": heading, "rows": rows, "folded": False})
    environment = [(name, value) for name, value in (results.get("environment") or {}).items() if value is not None]
    notes = [(one["file"], ", ".join(one["notes"])) for one in results.get("pictures") or () if one.get("notes")]
    if notes:
        groups.append({"heading": "Pictures", "rows": notes, "folded": False})
    if environment:
        groups.append({"heading": "Environment", "rows": environment, "folded": False})
    if results.get("published"):
        rows = [
            (name, "; ".join(part for part in (curve.get("source"), curve.get("note")) if part))
            for name, curve in results["published"].items()
        ]
        groups.append({"heading": "Where the published curves come from", "rows": rows, "folded": True})
    return groups
