"""What bench prints and keeps, and what it does with input that cannot be used."""

import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from latcodec.bench import contenders, documents, kodak, markdown, measurement
from latcodec.bench import store as bench_store
from latcodec.bench import subjects as bench_subjects
from latcodec.bench.run import Bench
from latcodec.cli import bench_inputs, bench_outputs
from latcodec.cli import main as cli
from latcodec.errors import ImageError
from latcodec.report import files as report

pytestmark = pytest.mark.usefixtures("one_thread")
FEW = ("--codecs", "none", "--anchors", "jpeg,webp", "--rates", "2")


@pytest.fixture
def run(tmp_path, monkeypatch, photograph):
    """Runs the command in a folder with album/a.png, album/b.png; the report's page is not drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        report, "write", lambda results, folder, pictures, say: (folder / "index.html").write_text("page")
    )
    Path("album").mkdir()
    Image.fromarray(photograph[:40, :60]).save("album/a.png")
    Image.fromarray(photograph[100:164, 200:260]).save("album/b.png")

    def invoke(*arguments):
        return CliRunner().invoke(cli.cli, ("bench", *arguments))

    return invoke


def results_of(folder="report"):
    return json.loads((Path(folder) / "results.json").read_text())


def timeless(rows):
    return [{k: v for k, v in row.items() if not k.endswith("_s") and "memory" not in k} for row in rows]


def test_without_a_report_every_rate_is_printed(run):
    result = run("album", *FEW)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["codec", "setting", "bytes"]
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["jpeg", "q5"],
        ["jpeg", "q90"],
        ["webp", "q0"],
        ["webp", "q90"],
    ]
    assert lines[6].split()[:3] == ["codec", "size", "bpp"] and len(lines) == 10
    assert "jpeg: 0 of 8 rows done" in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["album"]


def test_the_report_folder(run):
    result = run("album", *FEW, "-o", "report", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("report").iterdir()) == [
        "index.html", "results.json", "results.tsv", "rows.jsonl",
    ]  # fmt: skip
    results = results_of()
    assert results["command"] == (
        "latcodec bench album --codecs none --anchors jpeg,webp --rates 2 --output report --threads 1"
    )
    assert [row["file"] for row in results["rows"]] == ["a.png"] * 4 + ["b.png"] * 4
    assert results["settings"]["threads"] == 1 and results["environment"]["threads"] == "1"
    assert len(Path("report/results.tsv").read_text().splitlines()) == 9
    assert "q5" not in result.stdout and "report/index.html" in result.stdout


def test_a_stopped_run_goes_on_and_gives_the_same_rows(run, monkeypatch):
    run("album", *FEW, "-o", "whole")
    real, count = measurement.measure, [0]

    def measure(*arguments):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measurement, "measure", measure)
    stopped = run("album", *FEW, "-o", "report")
    assert stopped.exit_code == 130 and "report: 3 of 8 rows kept; the same command goes on" in stopped.stderr
    assert not Path("report/results.json").exists()
    assert run("album", *FEW, "-o", "report").exit_code == 0
    assert count[0] == 4 + 5
    assert timeless(results_of()["rows"]) == timeless(results_of("whole")["rows"])
    assert run("album", *FEW, "-o", "report").exit_code == 0
    assert count[0] == 9
    assert run("album", *FEW, "-o", "report", "--force").exit_code == 0
    assert count[0] == 17


def test_json_is_the_whole_record_and_quiet_says_nothing(run):
    result = run("album", *FEW, "--json", "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    assert [record["codec"] for record in json.loads(result.stdout)["means"]] == ["jpeg", "jpeg", "webp", "webp"]
    result = run("album", *FEW, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_what_is_no_good_is_one_line_each_and_the_rest_runs(run):
    Path("empty").mkdir()
    Path("album/broken.png").write_bytes(Path("album/a.png").read_bytes()[:300])
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save("album/deep.png")
    result = run(
        "album", "empty", "gone.png", "--codecs", "nope", "--anchors", "jpeg,heif,webp:metod=1", "--rates", "1"
    )
    assert result.exit_code == 1
    said = [line for line in result.stderr.splitlines() if line.startswith("latcodec: ")]
    for start in ("codec 'nope' is unknown", "anchor 'heif' is unknown", "anchor webp: option 'metod'",
                  "empty: the folder", "album/broken.png: damaged", "album/deep.png: 16 bits",
                  "gone.png: cannot read"):  # fmt: skip
        assert sum(line.removeprefix("latcodec: ").startswith(start) for line in said) == 1, start
    assert len(said) == 7 and "jpeg" in result.stdout and "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments, what",
    [("empty", "nothing to measure: no picture"), ("album --codecs nope --anchors none", "no codec or anchor"),
     ("album --lambdas 1,x", "not a list of numbers"), ("album --lambdas 50", "lambda 50"),
     ("album --lambdas 1 --rates 3", "exclude each other"), ("album --device cuda", "device cuda"),
     ("album -o album", "holds other things"), ("album -o album/a.png", "is not a folder"),
     ("-", "no picture is left"), ("--fetch kodak", "--fetch kodak DIR"), ("album --fetch-from x", "--fetch"),
     ("album --readme README.md", "once each"), ("album --readme latin.md", "latin.md: 'utf-8'"),
     ("album --results README.md", "README.md: needs the lines")],
)  # fmt: skip
def test_wrong_usage_is_refused_before_any_work(run, monkeypatch, arguments, what):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Bench, "run", lambda *_: pytest.fail("measured"))
    Path("empty").mkdir()
    Path("README.md").write_text("no markers")
    Path("latin.md").write_bytes(b"\xff")
    few = () if "--codecs" in arguments or "--lambdas" in arguments else FEW
    result = run(*arguments.split(), *few)
    assert result.exit_code == 2 and what in result.stderr and "Traceback" not in result.stderr, result.output


def test_an_output_that_cannot_be_written_costs_only_the_report(run):
    Path("file").write_text("")
    result = run("album", *FEW, "-o", "file/report")
    assert result.exit_code == 1 and "q90" in result.stdout
    assert "measuring without a report" in result.stderr and result.stderr.count("latcodec: ") == 1


def test_a_failed_round_trip_is_said_and_counted(run, monkeypatch):
    from latcodec.bench.anchors import Anchor

    real = Anchor.decode
    monkeypatch.setattr(Anchor, "decode", lambda self, data: real(self, data)[: 1 if self.name == "webp" else None])
    result = run("album", *FEW, "-o", "report")
    assert result.exit_code == 1
    assert "latcodec: a.png: webp, q0: ImageError: 60x40 came back as 60x1" in result.stderr
    assert [record["bugs"] for record in results_of()["means"]] == [0, 0, 2, 2]
    assert [line.split()[-1] for line in result.stdout.splitlines()[1:3]] == ["0", "4"]


def test_a_weights_file_names_the_codec():
    vbq = Path(cli.__file__).parents[2] / "weights" / "vbq.safetensors"
    settings = contenders.Settings(weights=str(vbq))
    problems = bench_outputs.Problems()
    found = bench_inputs.contenders_of(None, "none", settings, problems)
    assert [(one.name, one.weights_file) for one in found] == [("vbq", vbq.name)] and not problems.lines


def test_names_that_are_the_same_in_two_folders_keep_their_paths(run):
    Path("other").mkdir()
    Path("other/a.png").write_bytes(Path("album/a.png").read_bytes())
    result = run("album", "other", "album/b.png", *FEW, "--json")
    assert [p["file"] for p in json.loads(result.stdout)["pictures"]] == ["album/a.png", "b.png", "other/a.png"]


def test_a_path_below_one_folder_is_not_taken_for_that_of_another(run):
    for place in ("x/y", "y"):
        Path(place).mkdir(parents=True)
        Path(place, "a.png").write_bytes(Path("album/a.png" if place == "y" else "album/b.png").read_bytes())
    result = run("x", "y", "--codecs", "none", "--anchors", "jpeg", "--rates", "1", "--json")
    assert [p["file"] for p in json.loads(result.stdout)["pictures"]] == ["x/y/a.png", "a.png"]
    result = run("x", "y", "album", "--codecs", "none", "--anchors", "jpeg", "--rates", "1", "--json")
    found = [p["file"] for p in json.loads(result.stdout)["pictures"]]
    assert found == ["x/y/a.png", "y/a.png", "album/a.png", "b.png"]


def test_what_is_not_measured_of_a_picture_is_said(run, photograph):
    Image.fromarray(np.dstack([photograph[:20, :20], photograph[:20, :20, :1]])).save("album/clear.png")
    frames = [Image.fromarray(photograph[i : i + 20, :20]) for i in (0, 20, 40)]
    frames[0].save("album/film.gif", save_all=True, append_images=frames[1:])
    result = run("album", *FEW)
    assert result.exit_code == 0
    assert "clear.png: alpha left out\n" in result.stderr and "film.gif: 2 further frames dropped\n" in result.stderr
    assert "left out" not in run("album", *FEW, "--quiet").stderr


def test_a_name_that_is_no_unicode_does_not_cost_the_report(run):
    try:
        Path(os.fsdecode(b"album/\xff.png")).write_bytes(Path("album/a.png").read_bytes())
    except OSError:
        pytest.skip("this file system has Unicode names only")
    result = run("album", *FEW, "-o", "report")
    assert result.exit_code == 0, result.output
    assert "\\udcff.png" in Path("report/results.tsv").read_text(encoding="utf-8")


def test_the_progress_bar_takes_no_name_for_markup(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", Terminal())
    with bench_outputs.progress(1, False) as bar:
        bar.advance("jpeg  a[/b].png")


def test_a_full_disk_costs_the_rows_on_it_and_not_those_measured(run, monkeypatch):
    real, count = bench_store.Store.put, [0]

    def put(*arguments):
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(bench_store.Store, "put", put)
    result = run("album", *FEW, "-o", "report")
    assert result.exit_code == 1 and count[0] == 3
    assert result.stderr.count("latcodec: ") == 1 and "No space left on device; from here on" in result.stderr
    assert len(results_of()["rows"]) == 8


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ImageError("a.png: cannot read")])
def test_a_report_that_fails_costs_only_the_report(run, monkeypatch, error):
    def write(*_):
        raise error

    monkeypatch.setattr(report, "write", write)
    result = run("album", *FEW, "-o", "report")
    assert result.exit_code == 1 and result.stderr.count("latcodec: ") == 1
    assert "q90" in result.stdout and "index.html" not in result.stdout and len(results_of()["rows"]) == 8


def test_what_was_written_into_readme_during_the_run_stays(run, monkeypatch):
    monkeypatch.setattr(documents, "readme_figure", lambda *_: None)
    Path("README.md").write_text(f"old\n{markdown.BEGIN}\n{markdown.END}\n")
    real = measurement.measure

    def measure(*arguments):
        Path("README.md").write_text(f"new\n{markdown.BEGIN}\n{markdown.END}\n")
        return real(*arguments)

    monkeypatch.setattr(measurement, "measure", measure)
    assert run("album", *FEW, "--readme", "README.md").exit_code == 0
    assert Path("README.md").read_text().startswith("new\n") and "| webp |" in Path("README.md").read_text()
    monkeypatch.setattr(
        measurement, "measure", lambda *arguments: Path("README.md").unlink(missing_ok=True) or real(*arguments)
    )
    result = run("album", *FEW, "--readme", "README.md")
    assert result.exit_code == 1 and "latcodec: README.md: No such file" in result.stderr and "q90" in result.stdout


def test_readme_is_renewed_between_its_markers(run, monkeypatch):
    monkeypatch.setattr(
        documents, "readme_figure", lambda results, path: path.parent.mkdir() or path.write_bytes(b"png")
    )
    Path("README.md").write_text(f"head\n{markdown.BEGIN}\n{markdown.END}\ntail\n")
    assert run("album", *FEW, "--readme", "README.md", "--quiet").exit_code == 0
    text = Path("README.md").read_text()
    assert text.startswith("head\n") and text.endswith("tail\n") and "| webp |" in text
    assert "made by `latcodec bench album --codecs none" in text and Path("docs/rate-distortion.png").exists()


def test_the_page_of_results_is_made_and_renewed(run, monkeypatch):
    monkeypatch.setattr(documents, "readme_figure", lambda results, path: path.write_bytes(b"png"))
    Path("README.md").write_text(f"head\n{markdown.BEGIN}\n{markdown.END}\n")
    Path("pages").mkdir()
    arguments = ("album", *FEW, "--quiet", "--readme", "README.md", "--results", "pages/results.md")
    assert run(*arguments).exit_code == 0
    page = Path("pages/results.md")
    assert "](pages/rate-distortion.png)" in Path("README.md").read_text()
    assert page.read_text().startswith("# Results\n") and "](rate-distortion.png)" in page.read_text()
    assert Path("pages/rate-distortion.png").exists()
    page.write_text(f"by hand\n{markdown.BEGIN}\nstale\n{markdown.END}\n")
    assert run(*arguments).exit_code == 0
    assert (
        page.read_text().startswith("by hand\n") and "stale" not in page.read_text() and "| webp |" in page.read_text()
    )


def test_one_is_no_plural(run, monkeypatch):
    monkeypatch.setattr(documents, "readme_figure", lambda *_: None)
    Path("README.md").write_text(f"{markdown.BEGIN}\n{markdown.END}\n")
    one = ("album/a.png", "--codecs", "none", "--anchors", "jpeg", "--rates", "1")
    result = run(*one, "--readme", "README.md")
    assert "jpeg: 0 of 1 row done after" in result.stderr
    assert "1 picture, whole files; made by" in Path("README.md").read_text()


def test_without_a_path_the_photographs_of_scikit_image_are_taken(run, monkeypatch):
    seen = []
    monkeypatch.setattr(bench_subjects, "PHOTOGRAPHS", bench_subjects.PHOTOGRAPHS[2:3])

    def measure(contender, subject, picture, value, settings):
        seen.append(subject.file)
        return measurement.blank_row(contender, subject, value)

    monkeypatch.setattr(measurement, "measure", measure)
    assert run("--codecs", "none", "--anchors", "jpeg", "--rates", "1").exit_code == 0
    assert seen == ["chelsea.png"]


def test_fetch_measures_nothing(run, monkeypatch):
    asked = []
    monkeypatch.setattr(kodak, "fetch", lambda folder, **options: asked.append((folder, options["url"])) or [1, 2])
    result = run("--fetch", "kodak", "pictures")
    assert result.exit_code == 0 and asked == [(Path("pictures"), kodak.URL)]
    assert "pictures: all 2 Kodak pictures are here" in result.stderr
    assert (
        run("--fetch", "kodak", "pictures", "--fetch-from", "http://x/").exit_code == 0 and asked[1][1] == "http://x/"
    )


@pytest.mark.slow
def test_a_real_report_on_the_default_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.cli, ["bench", "--rates", "2", "-o", "real", "--threads", "1"])
    assert result.exit_code == 0, result.output
    assert (Path("real") / "index.html").stat().st_size > 100_000
