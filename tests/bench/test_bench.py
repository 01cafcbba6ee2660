"""Measuring: rows that are true, failures that are shown, runs that go on, aggregates without a flattering mean."""

import dataclasses
import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from latcodec import api as codec
from latcodec import metrics, weights
from latcodec.bench import contenders, kodak, markdown, measurement, timing
from latcodec.bench import results as bench_results
from latcodec.bench import store as bench_store
from latcodec.bench import subjects as bench_subjects
from latcodec.bench import text as bench_text
from latcodec.bench.contenders import Settings, spread
from latcodec.bench.measurement import Row
from latcodec.bench.run import Bench, NoRows
from latcodec.bench.subjects import Subject
from latcodec.errors import ImageError, OptionError, WeightsError
from latcodec.images import Picture

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = Settings(lambdas=(10.0, 1.0))


class Stand:
    """A codec that stores the samples; faults make it fail the way codecs do."""

    kind, weights, settings, title, lowest_index = "anchor", None, "stored", "Stored", 0

    def __init__(self, name="stored", fault=None):
        self.name, self.fault, self.calls = name, fault, 0

    def setting_label(self, value):
        return f"lambda {value:g}"

    def encode(self, picture, value):
        self.calls += 1
        if self.fault == "encode" and value == 1:
            raise RuntimeError("out of\nbits")
        self.shape = picture.pixels.shape
        extra = bytes([self.calls % 256]) if self.fault == "random" else b"."
        return extra * int(100 / value) + picture.pixels.tobytes()

    def decode(self, data):
        pixels = np.frombuffer(data[-math.prod(self.shape) :], np.uint8).reshape(self.shape)
        if self.fault == "shape":
            return pixels[:-1]
        return (pixels // 2 * 2) if self.fault == "even" else pixels


@pytest.fixture
def subjects(photograph, tmp_path):
    from PIL import Image

    found = []
    for name, part in (("a.png", photograph[:40, :60]), ("b.png", photograph[100:164, 200:261])):
        Image.fromarray(part).save(tmp_path / name)
        found.append(bench_subjects.inspect(tmp_path / name, name))
    return found


def rows_of(contender, subjects, settings=SETTINGS):
    return list(Bench(subjects, [contender], settings).run(NoRows()))


def test_a_row_says_what_was_measured(subjects):
    row = rows_of(Stand(fault="even"), subjects[:1])[0]
    pixels = bench_subjects.read_colour(subjects[0].path).pixels
    assert (row.file, row.codec, row.kind, row.setting, row.value) == ("a.png", "stored", "anchor", "lambda 10", 10)
    assert (row.width_px, row.height_px, row.bytes) == (60, 40, 60 * 40 * 3 + 10)
    assert row.bpp == 8 * row.bytes / 2400
    assert row.psnr_db == metrics.psnr_db(pixels, pixels // 2 * 2)
    odd = [float((pixels[:, :, c] % 2).mean()) for c in range(3)]
    assert row.mse_rgb == pytest.approx(odd) and row.mean_error_rgb == pytest.approx([-part for part in odd])
    assert row.ms_ssim is None and 0.9 < row.ssim < 1
    assert row.encode_s > 0 and row.decode_s > 0 and row.read_s > 0 and row.encode_entropy_s is None
    assert row.bugs == ""


def test_a_lossless_row_has_no_number_for_infinity(subjects):
    row = rows_of(Stand(), subjects[:1])[0]
    assert row.psnr_db is None and row.mse_rgb == [0, 0, 0] and not row.bugs


@pytest.mark.parametrize(
    "fault, bugs",
    [("encode", ["", "RuntimeError: out of bits"]), ("shape", ["ImageError: 60x40 came back as 60x39"] * 2),
     ("random", ["two runs of the encoder gave different files"] * 2)],
)  # fmt: skip
def test_failed_round_trips_are_shown_and_counted(fault, bugs, subjects):
    settings = dataclasses.replace(SETTINGS, reps=3)
    rows = rows_of(Stand(fault=fault), subjects[:1], settings)
    assert [row.bugs for row in rows] == bugs
    table = bench_results.means(rows)
    assert [record["bugs"] for record in table] == [int(bool(bug)) for bug in bugs]
    assert all(record["pictures"] == 1 for record in table)


def test_memory_that_runs_out_in_a_measure_of_quality_is_a_bug_of_the_row(subjects, monkeypatch):
    def ms_ssim(*_):
        raise MemoryError("too large")

    monkeypatch.setattr(metrics, "ms_ssim", ms_ssim)
    rows = rows_of(Stand(), subjects[:1])
    assert [(row.bugs, row.bytes > 0) for row in rows] == [("MemoryError: too large", True)] * 2


def test_a_picture_that_vanishes_is_a_bug_of_every_row(subjects):
    subjects[0].path.unlink()
    assert ["cannot read" in row.bugs for row in rows_of(Stand(), subjects[:1])] == [True, True]


def test_an_interrupt_is_no_bug(subjects, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Stand, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        rows_of(Stand(), subjects)


class Kept:
    """Rows of an earlier run by picture and setting."""

    def __init__(self, rows):
        self.rows = rows

    def get(self, contender, subject, value):
        return self.rows.get((subject.file, value))


def test_finished_rows_are_not_measured_again(subjects):
    first = rows_of(Stand(), subjects)
    kept = {(row.file, row.value): row for row in first[:3]}
    stand = Stand()
    again = list(Bench(subjects, [stand], SETTINGS).run(Kept(kept)))
    assert again[:3] == first[:3] and stand.calls == 3  # warming, memory, and the one row
    assert [(r.file, r.value, r.bytes) for r in again] == [(r.file, r.value, r.bytes) for r in first]


def test_a_learned_codec_is_measured_through_whole_files(photograph, tmp_path):
    from PIL import Image

    try:
        contender = contenders.learned("hyperprior", SETTINGS)
    except WeightsError:
        pytest.skip("this checkout has no weights")
    Image.fromarray(photograph[:96, :70]).save(tmp_path / "a.png")
    row = rows_of(contender, [bench_subjects.inspect(tmp_path / "a.png", "a.png")], Settings(lambdas=(2.0,)))[0]
    data = codec.encode(photograph[:96, :70], codec="hyperprior", lmbda=2.0)
    assert row.bytes == len(data) and row.psnr_db == metrics.psnr_db(codec.decode(data), photograph[:96, :70])
    assert abs(row.gap_bytes) < 0.005 * row.bytes + 40
    parts = (row.encode_networks_s, row.encode_quantise_s, row.encode_entropy_s, row.encode_verify_s)
    assert all(part > 0 for part in (parts[0], *parts[2:])) and sum(parts) == pytest.approx(row.encode_s)
    assert row.decode_networks_s + row.decode_entropy_s == pytest.approx(row.decode_s)
    assert row.weights == weights.load("hyperprior").id.hex() == data[8:12].hex() or row.weights in data.hex()
    smaller = contender.largest_within(Picture(np.ascontiguousarray(photograph[:96, :70]), False), row.bytes)
    assert 0.7 * row.bytes < len(smaller) <= row.bytes


def test_inspect_refuses_16_bits_and_leaves_alpha_out(tmp_path):
    from PIL import Image

    Image.fromarray(np.full((5, 6), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((5, 6, 4), 40, np.uint8)).save(tmp_path / "alpha.png")
    with pytest.raises(ImageError, match="deep.png: 16 bits"):
        bench_subjects.inspect(tmp_path / "deep.png", "deep.png")
    assert bench_subjects.inspect(tmp_path / "alpha.png", "alpha.png").notes == ("alpha left out",)
    assert bench_subjects.read_colour(tmp_path / "alpha.png").alpha is None


def test_the_default_pictures_are_there():
    assert [path.name for path in bench_subjects.photographs()] == list(bench_subjects.PHOTOGRAPHS)


# Settings and names


def test_spread_keeps_the_ends():
    ladder = (20.0, 12.8, 6.4, 3.2, 1.6, 0.8, 0.4, 0.1)
    assert spread(ladder, 8) == ladder
    assert spread(ladder, 2, logarithmic=True) == (20, 0.1)
    assert spread(ladder, 1, logarithmic=True) == (2.26,)
    assert spread((0, 5, 15, 30, 50, 75, 85, 90), 3, whole=True) == (0, 40, 90)
    many = spread(ladder, 16, logarithmic=True)
    assert len(set(many)) == 16 and list(many) == sorted(many, reverse=True)


def test_settings_of_codecs_run_from_small_files_to_large_and_are_checked():
    assert Settings(lambdas=(0.1, 20.0, 1.0, 1.0)).values_of(Stand()) == (20, 1, 0.1)
    with pytest.raises(OptionError, match="lambda 50"):
        Settings(lambdas=(50.0,))


def test_names_keep_their_options():
    assert contenders.split_names("a,b:x=1,y=2,c") == ["a", "b:x=1,y=2", "c"]
    assert contenders.split_names(" a , a,none,") == ["a"]


# Time and memory


def test_the_entropy_clock_counts_and_leaves_no_trace():
    from latcodec.entropy import range_coder
    from latcodec.entropy.tables import Tables

    tables = Tables(np.array([2**23, 2**23]), np.array([0, 2]), np.array([0]))
    methods = (range_coder.RangeEncoder.encode, range_coder.RangeDecoder.decode)
    symbols, rows = np.zeros(50000, np.int32), np.zeros(50000, np.uint16)
    with timing.entropy_clock() as clock:
        encoder = range_coder.RangeEncoder(tables)
        encoder.encode(symbols, rows)
        data = encoder.finish()
        assert clock.encode_s > 0 == clock.decode_s
        assert np.array_equal(range_coder.RangeDecoder(data, tables).decode(rows), symbols)
    assert clock.decode_s > 0
    assert (range_coder.RangeEncoder.encode, range_coder.RangeDecoder.decode) == methods


def test_cuda_is_waited_for_before_the_clock_is_read(monkeypatch):
    import torch

    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    timing.now("cpu")
    assert not waited
    assert timing.now("cuda") > 0 and waited == [True]
    picture = Picture(np.zeros((4, 4, 3), np.uint8), False)
    measurement._round_trip(Stand(), picture, 1.0, "cuda")
    assert len(waited) == 5  # before and after each half of the round trip


def test_peak_memory_is_that_of_the_block():
    with timing.peak_memory() as memory:
        block = np.ones(60_000_000, np.uint8)
    if memory.process_bytes is None:
        pytest.skip("this system does not let a process reset its peak")
    assert 55_000_000 < memory.process_bytes < 90_000_000
    del block
    with timing.peak_memory() as memory:
        pass
    assert memory.process_bytes < 20_000_000


# The store


def test_rows_are_found_again_by_file_codec_setting_and_way_of_measuring(subjects, tmp_path, monkeypatch):
    stand, folder = Stand(fault="even"), tmp_path / "report"
    rows = rows_of(stand, subjects)
    store = bench_store.Store(folder, SETTINGS)
    for row, subject in zip(rows, [subjects[0]] * 2 + [subjects[1]] * 2, strict=True):
        store.put(stand, subject, row)
    store.close()
    with open(folder / "rows.jsonl", "a") as file:
        file.write('{"key": "half a li')
    store = bench_store.Store(folder, SETTINGS)
    assert [store.get(stand, subjects[0], value) for value in (10.0, 1.0)] == rows[:2]
    renamed = dataclasses.replace(subjects[1], file="elsewhere.png")
    assert store.get(stand, renamed, 1.0) == dataclasses.replace(rows[3], file="elsewhere.png")
    assert store.get(stand, dataclasses.replace(subjects[0], sha256="0"), 1.0) is None
    assert store.get(stand, subjects[0], 2.0) is None and store.get(Stand("other"), subjects[0], 1.0) is None
    store.put(stand, subjects[0], dataclasses.replace(rows[0], value=5.0))  # after the half line
    store.close()
    with closing(bench_store.Store(folder, dataclasses.replace(SETTINGS, reps=2))) as other:
        assert other.get(stand, subjects[0], 1.0) is None
    with monkeypatch.context() as patch:
        patch.setattr(bench_store, "processor", lambda: "another")
        with closing(bench_store.Store(folder, SETTINGS)) as other:
            assert other.get(stand, subjects[0], 1.0) is None
    store = bench_store.Store(folder, SETTINGS)
    assert store.found == 5 and store.get(stand, subjects[0], 5.0)
    store.close()
    with closing(bench_store.Store(folder, SETTINGS, afresh=True)) as empty:
        assert empty.found == 0


def test_other_code_of_a_codec_is_measured_again(subjects, tmp_path, monkeypatch):
    stand = Stand()
    row = rows_of(stand, subjects[:1])[0]
    stand.kind = "codec"
    with closing(bench_store.Store(tmp_path, SETTINGS)) as store:
        store.put(stand, subjects[0], row)
        assert store.get(stand, subjects[0], row.value) == row
        monkeypatch.setattr(bench_store, "code_fingerprint", lambda: "another")
        assert store.get(stand, subjects[0], row.value) is None


def test_a_failure_is_tried_again(subjects, tmp_path):
    stand = Stand()
    row = rows_of(stand, subjects[:1])[0]
    for bugs, there in (("a bug", False), ("", True)):
        store = bench_store.Store(tmp_path / "report", SETTINGS)
        store.put(stand, subjects[0], dataclasses.replace(row, bugs=bugs))
        assert (store.get(stand, subjects[0], row.value) is not None) == there
        store.close()


# Aggregates


def made_up(name, kind, points, files=("a.png", "b.png"), bugs=()):
    """Rows of made-up curves: (bpp, PSNR) of every picture the same."""
    return [
        Row(file, name, kind, f"q{i}", i, None, 10, 10, bytes=100, bpp=bpp, psnr_db=psnr,
                  ms_ssim=1 - 10 ** (-psnr / 20), encode_s=0.1, decode_s=0.2, bugs="bad" if (file, i) in bugs else "")
        for i, (bpp, psnr) in enumerate(points) for file in files
    ]  # fmt: skip


CURVE = [(0.25, 28.0), (0.5, 31.0), (1.0, 34.5), (2.0, 38.0)]
HALF = [(bpp / 2, psnr) for bpp, psnr in CURVE]


def test_differences_state_their_overlap():
    table = bench_results.means(made_up("new", "codec", HALF) + made_up("old", "anchor", CURVE))
    psnr, ms_ssim = bench_results.differences(table, {})
    assert (psnr["codec"], psnr["anchor"], psnr["metric"]) == ("new", "old", "psnr_db")
    assert psnr["bd_rate_percent"] == pytest.approx(-50) and (psnr["low"], psnr["high"]) == (28, 38)
    assert psnr["bd_psnr_db"] == pytest.approx(3.25, abs=0.3)
    assert (psnr["low_bpp"], psnr["high_bpp"]) == pytest.approx((0.25, 1))
    assert ms_ssim["bd_rate_percent"] == pytest.approx(-50) and ms_ssim["high"] == pytest.approx(19)


def test_a_setting_with_a_failure_is_left_out_of_the_curve_and_said():
    rows = made_up("new", "codec", HALF, bugs={("b.png", 0)}) + made_up("old", "anchor", CURVE)
    entry = bench_results.differences(bench_results.means(rows), {})[0]
    assert entry["low"] == 31 and "1 settings with failed round trips left out" in entry["note"]


def test_ms_ssim_is_held_against_the_size_of_the_pictures_that_have_it():
    rows = made_up("new", "codec", HALF) + made_up("old", "anchor", CURVE)
    small = [dataclasses.replace(row, file="tiny.png", bpp=100 + row.bpp, ms_ssim=None) for row in rows]
    subjects = [Subject(file, Path(file), 10, 10, False, "0", None) for file in ("a.png", "b.png", "tiny.png")]
    stands = [Stand("new"), Stand("old")]
    settings = Settings(lambdas=(1.0,))
    values = {"new": (0, 1, 2, 3), "old": (0, 1, 2, 3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Settings, "values_of", lambda self, contender: values[contender.name])
        record = bench_results.assemble(Bench(subjects, stands, settings), rows + small, "")
    assert record["means"][0]["ms_ssim"] == pytest.approx(rows[0].ms_ssim) and record["means"][0]["bpp"] > 30
    ms_ssim = next(entry for entry in record["bd"] if entry["metric"] == "ms_ssim")
    assert ms_ssim["bd_rate_percent"] == pytest.approx(-50) and ms_ssim["low_bpp"] == pytest.approx(0.25)


def test_settings_that_give_the_same_files_are_one_point():
    same = [*CURVE, CURVE[-1]]
    table = bench_results.means(made_up("new", "codec", HALF) + made_up("old", "anchor", same))
    assert bench_results.differences(table, {})[0]["bd_rate_percent"] == pytest.approx(-50)


def test_undefined_differences_have_a_reason():
    far = [(bpp, psnr + 20) for bpp, psnr in CURVE]
    entry = bench_results.differences(
        bench_results.means(made_up("new", "codec", far) + made_up("old", "anchor", CURVE)), {}
    )[0]
    assert entry["bd_rate_percent"] is None and "do not overlap" in entry["reason"]


def test_published_curves_are_compared_with():
    published = {"VTM": {"bpp": [0.5, 1.0, 2.0], "psnr_db": [31.0, 34.5, 38.0], "ms_ssim": None}}
    entries = bench_results.differences(bench_results.means(made_up("new", "codec", HALF)), published)
    assert [(e["anchor"], e["metric"], e["published"]) for e in entries] == [("VTM", "psnr_db", True)]
    assert entries[0]["bd_rate_percent"] == pytest.approx(-50, abs=1)


def test_pictures_without_loss_count_as_well_as_eight_bits_can_tell():
    rows = made_up("new", "codec", HALF)
    first = [row for row in rows if row.value == rows[0].value]
    rows[0] = dataclasses.replace(rows[0], psnr_db=None)
    mean = bench_results.means(rows)[0]
    # A picture rounded to 8 bits is off by 1/12 in the mean square.
    others = sum(row.psnr_db for row in first[1:])
    assert mean["psnr_db"] == pytest.approx((others - 10 * math.log10(1 / 12 / 255**2)) / len(first))
    assert mean["without_loss"] == 1 and bench_results.means(rows)[1]["without_loss"] == 0
    table = bench_results.means(rows + made_up("old", "anchor", CURVE))
    (entry, *_), said = bench_results.differences(table, {}), "1 files without loss count as 58.9 dB"
    assert entry["note"] == said


def test_the_record_is_strict_json_in_order(subjects):
    stands = [Stand("b"), Stand("a", fault="encode")]
    rows = list(Bench(subjects, stands, SETTINGS).run(NoRows()))
    results = bench_results.assemble(Bench(subjects, stands, SETTINGS), rows, "latcodec bench", ["x: left out"])
    assert json.loads(json.dumps(results, allow_nan=False)) == json.loads(json.dumps(results))
    assert [(r["file"], r["codec"], r["value"]) for r in results["rows"]] == [
        (file, name, value) for file in ("a.png", "b.png") for name in ("b", "a") for value in (10, 1)
    ]
    assert results["dataset"] is None and results["published"] == {} and results["skipped"] == ["x: left out"]
    assert set(results["anchors"]) == {"a", "b"} and results["pictures"][0]["width_px"] == 60
    assert "threads" in results["environment"]
    lines = bench_results.tsv(results).splitlines()
    assert len(lines) == 9 and {line.count("\t") for line in lines} == {lines[0].count("\t")}
    assert lines[0].startswith("file\tcodec\tkind\tsetting") and "mean_error_r\tmean_error_g" in lines[0]


def test_kodak_is_recognised_and_published_curves_need_all_of_it(subjects):
    stand = Stand(fault="even")
    some = [dataclasses.replace(subject, kodak=f"kodim{i:02d}") for i, subject in enumerate(subjects)]
    rows = rows_of(stand, some)
    results = bench_results.assemble(Bench(some, [stand], SETTINGS), rows, "")
    assert results["dataset"] == "kodak" and not results["published"]
    whole = [dataclasses.replace(subjects[0], kodak=f"kodim{i:02d}", file=str(i)) for i in range(kodak.COUNT)]
    rows = [dataclasses.replace(row, file=s.file) for s in whole for row in rows[:2]]
    assert "VTM" in bench_results.assemble(Bench(whole, [stand], SETTINGS), rows, "")["published"]


def test_text_tables(subjects):
    rows = made_up("new", "codec", HALF) + made_up("jpeg", "anchor", CURVE, bugs={("a.png", 3)})
    codecs = {"new": {"title": "new", "weights": "12ab"}}
    table = bench_results.means(rows)
    results = {"means": table, "codecs": codecs, "anchors": {"jpeg": {}}, "bd": bench_results.differences(table, {}),
               "environment": {"CPU": "x", "threads": "1", "device": "cpu"}, "pictures": [1, 2], "published": {},
               "command": "latcodec bench"}  # fmt: skip
    heads, cells = bench_text.summary(results)
    assert cells[0][:4] == ["new", "-50.1 %", "0.12-1.00", "28.0-38.0"] and cells[1][-1] == "1"
    text = bench_text.plain(heads, cells)
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "new against jpeg: -50.1 % bits from 28.0 to 34.5 dB" in bench_text.differences(results)[0]
    full = markdown.results_part(results, "x.png")
    assert "| new | -50.1 % | 0.100 | 0.200 | n/a | 0 |" in full and "![PSNR against bits per pixel](x.png)" in full
    short = markdown.readme_part(results, "docs/x.png", "docs/results.md")
    assert "| new |  | 0.100 | 0.200 | n/a |\n| jpeg | -50.1 % |" in short and "[docs/results.md]" in short
    readme = f"head\n{markdown.BEGIN}\nstale\n{markdown.END}\ntail\n"
    renewed = markdown.replace_part(readme, short)
    assert renewed.startswith("head\n") and renewed.endswith("tail\n") and "stale" not in renewed
    assert markdown.replace_part(renewed, short) == renewed
    for wrong in ("", f"{markdown.END}{markdown.BEGIN}", readme + readme):
        with pytest.raises(OptionError, match="once"):
            markdown.replace_part(wrong, short)
