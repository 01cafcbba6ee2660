"""The report's page stands alone, names everyone, survives gaps in the results, and escapes what it did not write."""

import base64
import copy
import html.parser
import io
import math
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from PIL import Image

from latcodec.report import crops as report_crops
from latcodec.report import curves as report_curves
from latcodec.report import files as report
from latcodec.report import labels as report_labels
from latcodec.report import page as report_page
from latcodec.report import tables as report_tables

HOSTILE = '<script>alert("x")</script> & {{ 7 * 7 }} naïve 写真.png'
FILES = ("a.png", "b.png", "c.png", HOSTILE)
VOID = {"meta", "link", "img", "input", "br", "hr"}


def row(file: str, codec: str, kind: str, step: int, gain_db: float) -> dict:
    bpp = 0.1 * 2**step
    return {
        "file": file, "codec": codec, "kind": kind, "setting": f"q{step}", "value": float(step), "width_px": 200,
        "height_px": 180, "bytes": round(bpp * 200 * 180 / 8), "bpp": bpp, "psnr_db": 26 + 3 * step + gain_db,
        "ms_ssim": 1 - 0.1 / 2**step, "ssim": 1 - 0.2 / 2**step, "mean_error_rgb": [0.1, -0.2, 0.0],
        "encode_s": 0.1 + 0.01 * step, "decode_s": 0.02, "peak_memory_bytes": 10**7, "bugs": "",
    }  # fmt: skip


def made(files=FILES, codecs=("hyperprior", "pln"), anchors=("jpeg-progressive", "webp"), steps=4) -> dict:
    """A record such as bench writes: the codecs better than the anchors, and each picture a little worse."""
    rows = []
    for number, file in enumerate(files):
        rows += [row(file, name, "codec", step, 2 - 0.1 * number) for name in codecs for step in range(steps)]
        rows += [row(file, name, "anchor", step, -0.2 * i) for i, name in enumerate(anchors) for step in range(steps)]
    means = []
    for name in dict.fromkeys(r["codec"] for r in rows):
        for step in range(steps):
            group = [r for r in rows if r["codec"] == name and r["value"] == step]
            mean = {**group[0], "pictures": len(group), "bugs": 0}
            mean["psnr_db"] = sum(r["psnr_db"] for r in group) / len(group)
            means.append(mean)
    bd = [
        {"codec": c, "anchor": a, "metric": "psnr_db", "bd_rate_percent": -33.25, "bd_psnr_db": 2.0, "low": 26.0,
         "high": 35.0, "published": False, "note": "", "reason": None}
        for c in codecs for a in anchors
    ]  # fmt: skip
    return {
        "format": 1, "created": "2026-11-21T00:40:00Z", "command": "latcodec bench x/ -o <here>", "dataset": None,
        "environment": {"latcodec": "0.1", "cpu": "a <fast> one"}, "skipped": [], "rows": rows, "means": means,
        "codecs": {c: {"title": c, "settings": "lambda 20 … 0.1", "weights": "1a2b3c4d"} for c in codecs},
        "anchors": {a: {"title": f"{a}, set up well", "settings": "quality 1 2 3"} for a in anchors}, "bd": bd,
        "published": {},
    }  # fmt: skip


class Pictures:
    """Noise for originals; the codecs of `unable` have no file that small."""

    def __init__(self, unable=()):
        self.unable = unable

    def original(self, file):
        return np.random.default_rng(len(file)).integers(0, 256, (180, 200, 3), dtype=np.uint8)

    def coded(self, file, codec, bpp):
        if codec in self.unable:
            return None
        return self.original(file) // 32 * 32, int(bpp * 200 * 180 / 8)


class Page(html.parser.HTMLParser):
    """Elements of a page, its text, and proof that what opens also closes."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def written(results, folder, pictures=None) -> Page:
    """The page, written without drawing the charts' files, which takes most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_curves, "file_bytes", lambda figure, kind: b"")
        report.write(results, folder, pictures)
    return Page((folder / "index.html").read_text(encoding="utf-8"))


def test_the_folder_holds_the_page_and_the_curves(tmp_path):
    paths = report.write(made(), tmp_path / "new")
    assert {path.name for path in paths} == {
        "index.html", "curves_psnr.svg", "curves_psnr.png", "curves_ms_ssim.svg", "curves_ms_ssim.png", "speed.svg",
        "speed.png",
    }  # fmt: skip
    for path in paths:
        if path.suffix == ".svg":
            xml.etree.ElementTree.parse(path)
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width >= 1600


def test_the_page_refers_to_nothing_outside_its_folder(tmp_path):
    page = written(made(), tmp_path, Pictures())
    beside = {path.name for path in tmp_path.iterdir()} | {"results.tsv", "results.json"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("href", "src", "xlink:href", "srcset", "action", "poster"):
            target = attributes.get(name, "data:")
            assert target.startswith("data:") or target[1:] in ids or target in beside, target
        for target in re.findall(r"url\(([^)]*)\)", " ".join(str(value) for value in attributes.values())):
            assert target[1:] in ids
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    assert not re.search(r"url\(|@import|@font-face", style)
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {
        "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink",
    }  # fmt: skip


def test_the_same_results_make_the_same_files(tmp_path):
    first, second = ({p.name: p.read_bytes() for p in report.write(made(), tmp_path, Pictures())} for _ in range(2))
    assert first == second  # and older ones are no obstacle


def test_every_codec_and_picture_is_named(tmp_path):
    page = written(made(), tmp_path, Pictures())
    for name in ("hyperprior", "pln", "JPEG progressive", "WebP", *FILES, "1a2b3c4d", "−33.2 %", "26.00 … 35.00"):
        assert name in page.words
    assert "latcodec bench x/ -o <here>" in page.words and "a <fast> one" in page.words
    assert "2026-11-21 00:40 UTC" in page.words and "Every round trip was sound" in page.words
    assert all(image.get("alt") is not None for image in page.all("img"))
    assert all(attributes.get("aria-label") for _, attributes in page.elements if attributes.get("role") == "img")


def test_names_from_outside_are_escaped(tmp_path):
    results = made(codecs=("<i>x</i>&$y$",))
    results["skipped"] = ["<img src=x>.png: no picture"]
    page = written(results, tmp_path, Pictures())
    assert len(page.all("script")) == 1 and not page.all("i")
    assert HOSTILE in page.words and "<i>x</i>&$y$" in page.words and "<img src=x>.png: no picture" in page.words


def test_one_picture_and_one_rate_are_enough(tmp_path):
    assert "1 picture, 4 codecs" in written(made(files=("a.png",)), tmp_path / "1", Pictures()).words
    results = made(files=("a.png",), steps=1)
    for bd in results["bd"]:
        bd.update(
            bd_rate_percent=None, bd_psnr_db=None, low=None, high=None, reason="the anchor curve needs two points"
        )
    assert "hyperprior" in written(results, tmp_path / "2", Pictures()).words


@pytest.mark.parametrize("metric", ["psnr_db", "ms_ssim", "mean_error_rgb", "encode_s"])
def test_a_missing_measure_is_left_out(tmp_path, metric):
    results = made()
    for record in results["rows"] + results["means"]:
        record[metric] = None
    page = written(results, tmp_path, Pictures())
    names = {path.name for path in tmp_path.iterdir()}
    assert ("curves_psnr.svg" in names) == (metric != "psnr_db")
    assert ("curves_ms_ssim.svg" in names) == (metric != "ms_ssim")
    assert "hyperprior" in page.words


def test_a_missing_measure_of_one_setting_is_said(tmp_path):
    results = made()
    results["means"][0]["ms_ssim"] = None
    assert "n/a" in written(results, tmp_path).words


def test_failures_are_counted_and_shown(tmp_path):
    results = made()
    for record in results["rows"] + results["means"]:
        if record["codec"] == "pln":
            record.update(dict.fromkeys(("bytes", "bpp", "psnr_db", "ms_ssim", "ssim", "encode_s", "decode_s")))
            record["bugs"] = "DriftError: <not> the same" if "pictures" not in record else len(FILES)
    page = written(results, tmp_path, Pictures(unable=("pln",)))
    assert f"{4 * len(FILES)} failed round trips" in page.words
    assert page.words.count("DriftError: <not> the same") == 4 * len(FILES)
    assert "Cannot be made so small: pln" in page.words


def test_a_setting_with_a_failure_is_on_no_curve():
    results = made()
    mean = next(m for m in results["means"] if m["codec"] == "pln" and m["setting"] == "q0")
    mean.update(bugs=1, psnr_db=90.0)  # only the easiest picture came back
    row = next(r for r in results["rows"] if r["codec"] == "pln" and r["setting"] == "q0")
    row.update(bugs="two runs of the encoder gave different files", psnr_db=90.0)
    sound = [[m for m in report_tables._of(made(), "pln") if m["setting"] != "q0"]]
    assert [report_tables._of(results, "pln")] == sound
    points = {series.label: len(series.points) for series, _ in report_tables.curves(results, "psnr_db")}
    assert points["pln"] == 3 and points["hyperprior"] == 4
    assert max(badness for badness, _ in report_tables.per_picture(results, "pln")[1]) < 0


def test_ms_ssim_is_drawn_over_the_size_of_the_pictures_that_have_it():
    results = made()
    for record in results["rows"]:
        if record["file"] == "a.png":
            record.update(ms_ssim=None, bpp=50.0)
    for mean in results["means"]:
        mean["bpp"] += 10
    first = report_tables.curves(results, "ms_ssim")[0][0].points[0]
    assert first.x == pytest.approx(0.1) and "0.100 bpp" in first.text


def test_what_was_left_out_of_a_picture_is_said(tmp_path):
    results = made() | {"pictures": [{"file": "a.png", "notes": ["alpha left out"]}, {"file": "b.png", "notes": []}]}
    assert "alpha left out" in written(results, tmp_path).words
    assert "A setting with a failed round trip is left out" not in written(results, tmp_path).words


@pytest.mark.parametrize("names", [{"anchors": ()}, {"codecs": ()}, {"codecs": (), "anchors": ()}])
def test_either_kind_may_be_missing(tmp_path, names):
    page = written(made(**names), tmp_path, Pictures())
    assert "How it was measured" in page.words
    if "codecs" not in names:
        assert "beside the codec's own mean" in page.words


def test_published_curves_are_drawn_thin_and_listed(tmp_path):
    results = made()
    results["dataset"] = "kodak"
    curve = {"bpp": [0.1, 0.5, 1.0], "psnr_db": [28.0, 34.0, 38.0], "ms_ssim": None, "source": "a table", "note": ""}
    results["published"] = {"VTM": curve, "Other": curve}
    results["bd"].append({**results["bd"][0], "anchor": "Other", "published": True, "bd_rate_percent": 12.34})
    page = written(results, tmp_path)
    assert "VTM (VVC)" in page.words and "+12.3 %" in page.words and "a table" in page.words
    assert "4 pictures of the Kodak set" in page.words


def test_worst_pictures_come_first_and_at_most_five():
    files = tuple(f"{n}.png" for n in range(8))
    results = made(files=files)
    unit, ranking = report_tables.per_picture(results, "hyperprior")
    assert unit == "%" and [file for _, file in ranking] == list(reversed(files))
    groups = report_page._worst(results, report_tables.entries(results), None)
    assert [r["file"] for r in groups[0]["rows"]] == list(reversed(files))[:5]
    alone = made(files=files, anchors=())
    unit, ranking = report_tables.per_picture(alone, "hyperprior")
    assert unit == "dB" and ranking[0] == (pytest.approx(0.35), "7.png")


def test_crops_are_the_pixels_themselves():
    results = made()
    flips = report_crops.flips(results, report_tables.entries(results), Pictures())
    assert [flip.file for flip in flips] == [HOSTILE, "b.png", "a.png"]
    first = flips[0].images
    assert [image[3] for image in first] == ["original", "hyperprior", "pln", "jpeg-progressive", "webp"]
    data = base64.b64decode(first[0][1].split(",")[1])
    with Image.open(io.BytesIO(data)) as image:
        crop = np.asarray(image.convert("RGB"))
    assert np.array_equal(crop, Pictures().original(flips[0].file))  # smaller than a crop: all of it


def test_crops_stay_within_their_budget(monkeypatch):
    results = made()
    monkeypatch.setattr(report_crops, "BUDGET_BYTES", 1)
    assert len(report_crops.flips(results, report_tables.entries(results), Pictures())) == 1


def test_the_box_is_where_the_difference_is():
    original = np.zeros((600, 900, 3), np.uint8)
    coded = original.copy()
    coded[500:520, 700:720] = 255
    top, left = report_crops.box(original, [coded])
    assert top <= 500 and top + report_crops.HEIGHT_PX >= 520
    assert left <= 700 and left + report_crops.WIDTH_PX >= 720


def test_colours_are_distinct_and_readable():
    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a, b):
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    colours = report_labels.COLOURS
    light = [pair[0] for pair in colours.values()]
    assert len(set(light)) == len(light)  # each is replaced by a variable of its own
    for name, pair in colours.items():
        if name not in ("paper", "grid"):
            for colour, paper in zip(pair, colours["paper"], strict=True):
                assert contrast(colour, paper) > 3, name


def test_marks_carry_their_text_and_colours_are_variables():
    results = made()
    series = [one for one, _ in report_tables.curves(results, "psnr_db")]
    svg = report_curves.inline_svg(report_curves.rate_quality(series, "PSNR", "narrow", "n"), "n", "narrow")
    tree = xml.etree.ElementTree.fromstring(svg)
    texts = [element.get("data-text") for element in tree.iter() if element.get("data-text")]
    assert "hyperprior, q0: 0.100 bpp, 27.85 dB" in texts and len(texts) == 16
    assert not re.search(r"#[0-9a-f]{6}\b", svg) and "var(--codec0)" in svg and "font-family" not in svg


def test_numbers_for_people():
    assert report_tables.number(-12.345, 1, True) == "−12.3"
    assert report_tables.number(-0.001, 2, True) == "0.00"
    assert report_tables.number(None) == report_tables.number(math.inf) == "n/a"
    assert [report_tables.seconds(s) for s in (0.0042, 0.0421, 0.421, 4.21, 42.1)] == [
        "0.0042", "0.042", "0.42", "4.2", "42",
    ]  # fmt: skip


def test_names_in_the_margin_keep_apart():
    moved = report_labels._spread([1.0, 1.1, 1.2, 9.9], 1.0, 0.0, 10.0)
    assert all(b - a > 0.999 for a, b in zip(moved, moved[1:], strict=False)) and moved[-1] <= 10


def test_readme_figure_is_one_small_png(tmp_path):
    results = copy.deepcopy(made())
    report.readme_figure(results, tmp_path / "docs" / "figure.png", "Kodak")
    with Image.open(tmp_path / "docs" / "figure.png") as image:
        assert image.format == "PNG" and image.width == 1920
    assert (tmp_path / "docs" / "figure.png").stat().st_size < 150_000
