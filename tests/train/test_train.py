"""The training loop on a few tiny pictures and a narrow network."""

import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from latcodec import api as codec
from latcodec import images
from latcodec.api import EncodeSettings
from latcodec.backends.hyperprior import network as hyperprior
from latcodec.errors import ImageError, LatcodecError, OptionError, WeightsError
from latcodec.images import Picture
from latcodec.train import data
from latcodec.train import trainer as loop
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export import hyperprior as export
from latcodec.train.trainer import Trainer, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = functools.partial(hyperprior.Config, widths=(12, 16, 20), latent=24, hyper_width=16, hyper_latent=8, knots=3)
HELD_OUT = next(f"v{i}" for i in range(10**4) if data.is_validation(Path(f"v{i}.png")))


REAL_PLAN = loop.plan_of


def narrow(monkeypatch, loss) -> None:
    def plan_of(codec):
        return replace(REAL_PLAN(codec), config=NARROW, loss=loss)

    monkeypatch.setattr(loop, "plan_of", plan_of)


@pytest.fixture(autouse=True)
def narrow_networks(monkeypatch):
    narrow(monkeypatch, hyperprior.loss)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A folder of four training pictures and one to validate with, 100 x 120 px."""
    folder = tmp_path_factory.mktemp("pictures")
    astronaut, cat = photographs.astronaut(), photographs.chelsea()
    crops = {"a": astronaut[60:160, 180:300], "b": cat[80:180, 120:240], "c": astronaut[200:300, 100:220]}
    crops |= {"d": cat[150:250, 200:320], HELD_OUT: astronaut[300:400, 300:420]}
    assert not any(data.is_validation(Path(name)) for name in "abcd")
    for name, crop in crops.items():
        Image.fromarray(crop).save(folder / f"{name}.png")
    return folder


def settings(pictures: Path, out: Path, **given) -> TrainSettings:
    given = {"steps": 6, "patch": 64, "final_patch": 64, "batch_size": 2, "autocast": False, **given}
    return TrainSettings("hyperprior", (str(pictures),), str(out), **given)


def trained(pictures: Path, out: Path, **given) -> tuple[dict, list[str]]:
    """The checkpoint of a run, and the lines it reported."""
    lines = []
    checkpoint = Trainer(settings(pictures, out, **given), lines.append).run()
    assert checkpoint == out / loop.CHECKPOINT
    return torch.load(checkpoint, weights_only=True), lines


def tensors_of(state, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {name: state}
    if isinstance(state, dict):
        return {k: v for key, part in state.items() for k, v in tensors_of(part, f"{name}.{key}").items()}
    return {}


def assert_equal_states(first: dict, second: dict) -> None:
    for part in ("model", "ema", "optimizer"):
        a, b = tensors_of(first[part]), tensors_of(second[part])
        assert a.keys() == b.keys() and a
        assert [name for name in a if not torch.equal(a[name], b[name])] == [], part
    assert first["step"] == second["step"]


def test_a_run_learns(pictures, tmp_path):
    start, _ = trained(pictures, tmp_path, steps=40, lr=2e-3, stop_at_step=0)
    state, lines = trained(pictures, tmp_path, steps=40, lr=2e-3, batch_size=4, ema=0.8, resume=True)
    before, after = (
        [row["lagrangian"] for row in json.loads(line)["validation"]]
        for line in (tmp_path / "log.jsonl").read_text().splitlines()
    )
    assert start["step"] == 0 and state["step"] == 40
    assert all(np.isfinite(before)) and all(np.isfinite(after))
    assert sum(b < a for a, b in zip(before, after, strict=True)) >= 7
    assert sum(after) < 0.95 * sum(before)
    assert lines[0].startswith("4 pictures") and "1 held out" in lines[0]


@pytest.mark.parametrize(("count", "told"), [(1, "1 picture, "), (9, "9 pictures, ")])
def test_where_nothing_is_held_out_the_first_are_validated_on(pictures, tmp_path, count, told):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in "abcdefghi"[:count]:
        (folder / f"{name}.png").write_bytes((pictures / "a.png").read_bytes())
    assert not any(data.is_validation(path) for path in folder.iterdir())
    _, lines = trained(folder, tmp_path / "out", stop_at_step=0)
    assert lines[0].startswith(told)
    assert lines[0].endswith(f"; 0 held out, validated on {min(count, 8)} of those trained on")


def test_every_parameter_moves(pictures, tmp_path):
    before, _ = trained(pictures, tmp_path / "a", stop_at_step=0)
    after, _ = trained(pictures, tmp_path / "b", steps=3, batch_size=4)
    still = [n for n in before["model"] if torch.equal(before["model"][n], after["model"][n])]
    assert still == []


def test_same_seed_same_weights(pictures, tmp_path):
    first, _ = trained(pictures, tmp_path / "a", steps=2)
    second, _ = trained(pictures, tmp_path / "b", steps=2)
    other, _ = trained(pictures, tmp_path / "c", steps=2, seed=1)
    assert_equal_states(first, second)
    assert not torch.equal(first["model"]["g_a.0.weight"], other["model"]["g_a.0.weight"])


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(pictures, tmp_path):
    straight, _ = trained(pictures, tmp_path / "straight")
    half, _ = trained(pictures, tmp_path / "halves", stop_at_step=3)
    assert half["step"] == 3
    resumed, lines = trained(pictures, tmp_path / "halves", resume=True)
    assert any("resumed at step 3" in line for line in lines)
    assert_equal_states(resumed, straight)
    assert not torch.equal(half["model"]["g_a.0.weight"], straight["model"]["g_a.0.weight"])
    assert resumed["elapsed_s"] > half["elapsed_s"] > 0


def test_a_run_without_its_checkpoint_goes_on_from_its_averages(pictures, tmp_path):
    half, _ = trained(pictures, tmp_path, stop_at_step=3)
    (tmp_path / loop.CHECKPOINT).unlink()
    start, lines = trained(pictures, tmp_path, stop_at_step=3, resume=True)
    assert any("resumed at step 3" in line and "the optimiser starts anew" in line for line in lines)
    for name, average in half["ema"].items():
        kept = average.half().float() if average.dim() == 4 else average
        assert torch.equal(start["model"][name], kept), name
    assert start["elapsed_s"] == half["elapsed_s"]
    resumed, _ = trained(pictures, tmp_path, resume=True)
    assert resumed["step"] > 3


def test_averages_are_not_overwritten_by_a_new_run(pictures, tmp_path):
    trained(pictures, tmp_path, stop_at_step=1)
    (tmp_path / loop.CHECKPOINT).unlink()
    before = (tmp_path / loop.AVERAGE).read_bytes()
    with pytest.raises(OptionError, match="--resume"):
        trained(pictures, tmp_path)
    assert (tmp_path / loop.AVERAGE).read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(pictures, tmp_path):
    first, _ = trained(pictures, tmp_path, steps=2)
    again, _ = trained(pictures, tmp_path, steps=2, resume=True)
    assert_equal_states(first, again)


def test_ema_follows_the_weights(pictures, tmp_path):
    state, _ = trained(pictures, tmp_path, steps=3)
    assert state["ema"].keys() == state["model"].keys()
    assert not torch.equal(state["ema"]["g_a.0.weight"], state["model"]["g_a.0.weight"])
    assert (state["ema"]["g_a.0.weight"] - state["model"]["g_a.0.weight"]).abs().max() < 0.01


def test_the_learning_rate_falls_to_zero():
    given = TrainSettings("hyperprior", (), "", steps=100, lr=1.0, decay_from=0.1)
    assert loop.learning_rate(0, given) == loop.learning_rate(0.1, given) == 1
    assert loop.learning_rate(0.55, given) == pytest.approx(0.5)
    assert loop.learning_rate(1, given) == pytest.approx(0, abs=1e-12)


def test_a_budget_of_minutes_ends(pictures, tmp_path):
    state, _ = trained(pictures, tmp_path, steps=None, minutes=0.01)
    assert state["step"] >= 1 and state["elapsed_s"] >= 0.6


def poison(monkeypatch, at_step: int) -> None:
    """The loss of the step with this number, counted from the start of the test, is not a number."""
    calls = []

    def poisoned(model, x, t, autocast=False, noise=True, progress=None):
        out = hyperprior.loss(model, x, t, autocast, noise)
        if noise:
            calls.append(1)
            out["loss"] = out["loss"] * (float("nan") if len(calls) == at_step + 1 else 1)
        return out

    narrow(monkeypatch, poisoned)


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(pictures, tmp_path, monkeypatch):
    good, _ = trained(pictures, tmp_path, stop_at_step=2)
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    poison(monkeypatch, 2)
    with pytest.raises(LatcodecError, match="not finite at step 4"):
        Trainer(settings(pictures, tmp_path, resume=True), lambda line: None).run()
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    assert all(torch.isfinite(value).all() for value in tensors_of(good["model"]).values())


def test_an_infinite_gradient_stops_too(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_, **__: torch.tensor(float("inf")))
    with pytest.raises(LatcodecError, match="not finite at step 0"):
        Trainer(settings(pictures, tmp_path), lambda line: None).run()


def test_no_checkpoint_is_promised_that_is_not_there(pictures, tmp_path, monkeypatch):
    poison(monkeypatch, 0)
    with pytest.raises(LatcodecError) as error:
        Trainer(settings(pictures, tmp_path), lambda line: None).run()
    assert (tmp_path / loop.CHECKPOINT).exists() or "good state" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02garbage"])
def test_a_damaged_checkpoint_is_told(pictures, tmp_path, content):
    (tmp_path / loop.CHECKPOINT).write_bytes(content)
    with pytest.raises(WeightsError, match="checkpoint"):
        averaged_network(tmp_path / loop.CHECKPOINT, "hyperprior")
    with pytest.raises(LatcodecError, match="checkpoint"):
        Trainer(settings(pictures, tmp_path, resume=True), lambda line: None).run()
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == content


@pytest.mark.parametrize(
    "given",
    [
        {"steps": None},
        {"minutes": 1.0},
        {"patch": 128},  # larger than final_patch: pictures may be too small
        {"patch": 48},
        {"final_patch": 96},
        {"patch": 0},
    ],
    ids=str,
)
def test_contradictory_settings(pictures, tmp_path, given):
    with pytest.raises((OptionError, ImageError)):
        Trainer(settings(pictures, tmp_path, **given), lambda line: None).run()


def test_options_change_the_network_and_a_resumed_run_keeps_them(pictures, tmp_path):
    state, _ = trained(pictures, tmp_path, steps=2, options=(("latent", "20"), ("widths", "8,12,16")))
    config = json.loads(state["config"])
    assert (config["latent"], config["widths"], config["hyper_width"]) == (20, [8, 12, 16], 16)
    again, _ = trained(pictures, tmp_path, steps=3, resume=True)
    assert again["config"] == state["config"] and again["step"] == 3
    tuned, lines = trained(pictures, tmp_path / "tuned", steps=1, init=str(tmp_path / "ema.pt"))
    assert tuned["config"] == state["config"]
    total = len(tuned["model"])
    assert any(f"{total} of {total} tensors taken over" in line for line in lines)


@pytest.mark.parametrize(
    "option, message",
    [(("width", "3"), "no option of hyperprior; there are: widths"), (("latent", "many"), "latent=many"),
     (("widths", "8,12"), "can be made")],
)  # fmt: skip
def test_options_that_make_no_network(pictures, tmp_path, option, message):
    with pytest.raises(OptionError, match=message):
        Trainer(settings(pictures, tmp_path, options=(option,))).run()


def test_an_unknown_codec(pictures, tmp_path):
    with pytest.raises(OptionError, match="hyperprior"):
        Trainer(TrainSettings("jpeg", (str(pictures),), str(tmp_path), steps=1), lambda line: None).run()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(pictures, tmp_path):
    with pytest.raises(OptionError, match="cuda"):
        Trainer(settings(pictures, tmp_path, device="cuda"), lambda line: None).run()


# Data.


def test_validation_is_fixed_and_apart(pictures):
    training, held_out = data.load([str(pictures)], 64)
    assert (len(training), len(held_out)) == (4, 1)
    assert np.array_equal(held_out[0], photographs.astronaut()[300:400, 300:420])
    assert not any(np.array_equal(held_out[0], picture) for picture in training)
    some = [str(pictures / "a.png"), str(pictures / f"{HELD_OUT}.png")]
    assert [len(part) for part in data.load(some, 64)] == [1, 1]


def test_validation_is_about_two_per_cent():
    share = sum(data.is_validation(Path(f"{i}.png")) for i in range(10_000)) / 10_000
    assert 0.015 < share < 0.025
    assert data.is_validation(Path(f"elsewhere/{HELD_OUT}.jpg"))


def test_batches_are_a_function_of_seed_and_step(pictures):
    training, _ = data.load([str(pictures)], 64)
    crops, again = data.Crops(training, 3), data.Crops(training, 3)
    crops.batch(99, 5, 64)
    for step in (0, 7, 2**40):
        (x, t), (x_again, t_again) = crops.batch(step, 4, 64), again.batch(step, 4, 64)
        assert np.array_equal(x, x_again) and np.array_equal(t, t_again)
    assert not np.array_equal(crops.batch(0, 4, 64)[0], crops.batch(1, 4, 64)[0])
    assert not np.array_equal(crops.batch(0, 4, 64)[0], data.Crops(training, 4).batch(0, 4, 64)[0])


def test_batches_are_crops_of_every_rate(pictures):
    training, _ = data.load([str(pictures)], 64)
    x, t = data.Crops(training, 0).batch(0, 8, 64)
    assert x.shape == (8, 3, 64, 64) and x.dtype == np.uint8 and t.dtype == np.float32
    assert sorted((t * 8).astype(int)) == list(range(8))
    for crop in x:
        views = [crop[:, ::v, ::h].transpose(1, 2, 0) for v in (1, -1) for h in (1, -1)]
        windows = [np.lib.stride_tricks.sliding_window_view(p, (64, 64, 3))[:, :, 0] for p in training]
        assert any((w[:, :, 0, 0] == v[0, 0]).all(2).any() and _occurs(v, w) for v in views for w in windows)


def _occurs(crop: np.ndarray, windows: np.ndarray) -> bool:
    places = np.argwhere((windows[:, :, 0, 0] == crop[0, 0]).all(2))
    return any(np.array_equal(windows[y, x], crop) for y, x in places)


def test_large_pictures_are_drawn_more_often():
    small, large = np.zeros((64, 64, 3), np.uint8), np.full((64, 192, 3), 255, np.uint8)
    x, _ = data.Crops([small, large], 0).batch(0, 400, 64)
    assert 0.68 < (x[:, 0, 0, 0] == 255).mean() < 0.82


def test_validation_crops_are_the_centres():
    pictures = [np.full((70, 80, 3), i, np.uint8) for i in range(40)]
    crops = data.validation_crops(pictures, 64)
    assert crops.shape == (16, 3, 64, 64)
    assert len({int(crop[0, 0, 0]) for crop in crops}) == 16


def test_a_broken_picture_is_skipped_by_name(pictures, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes((pictures / "a.png").read_bytes()[:500])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("hello")
    Image.fromarray(photographs.chelsea()[:70, :70]).save(tmp_path / "good.png")
    Image.fromarray(photographs.chelsea()[:30, :70]).save(tmp_path / "small.png")
    training, _ = data.load([str(tmp_path)], 64)
    assert len(training) == 1
    said = capsys.readouterr().err
    assert "broken.png" in said and "text.jpg" in said and "notes.txt" not in said
    assert "1 picture under 64 px skipped" in said


def test_training_reads_what_encode_reads(tmp_path, capsys):
    """Upright, 16 bits rounded to 8, and what `images.read_picture` refuses is skipped by name."""
    pixels = np.random.default_rng(1).integers(0, 256, (5, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(data.load_one(tmp_path / "turned.png"), np.rot90(pixels, -1))
    deep = Picture(pixels * np.uint16(257) + (pixels < 255) * np.uint16(100), False)
    with open(tmp_path / "deep.png", "wb") as file:
        images.write_picture(deep, file, "png")
    np.testing.assert_array_equal(data.load_one(tmp_path / "deep.png"), pixels)
    (tmp_path / "broken.png").write_bytes((tmp_path / "turned.png").read_bytes()[:60])
    assert data.load_one(tmp_path / "broken.png") is None
    assert "broken.png" in capsys.readouterr().err


def test_nothing_to_train_on(tmp_path, capsys):
    with pytest.raises(ImageError, match="no pictures found"):
        data.load([str(tmp_path)], 64)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(ImageError, match="no readable picture"):
        data.load([str(tmp_path)], 64)
    with pytest.raises(ImageError, match="missing: no such file or folder"):
        data.load([str(tmp_path), str(tmp_path / "missing")], 64)


# Export.


def test_exported_weights_encode_and_decode(pictures, tmp_path):
    Trainer(settings(pictures, tmp_path, steps=4), lambda line: None).run()
    out = tmp_path / "weights" / "tiny.safetensors"
    out.parent.mkdir()
    assert export.export(tmp_path / loop.CHECKPOINT, out, "latcodec train tiny", [str(pictures)]) == out
    index = json.loads((out.parent / "index.json").read_text())
    assert index["tiny.safetensors"]["command"] == "latcodec train tiny"
    image = photographs.astronaut()[60:130, 180:270]
    for place in (out, out.parent):
        whole = codec.encode(image, codec="hyperprior", lmbda=0.5, weights=str(place), device="cpu")
        decoded = codec.decode(whole, weights=str(place), device="cpu")
        assert decoded.shape == image.shape
        assert np.square(decoded.astype(float) - image).mean() < 0.5 * image.var()
    with pytest.raises(WeightsError, match="not found"):
        codec.decode(whole, device="cpu")
    with pytest.raises(OptionError):
        EncodeSettings(weights=str(out), lmbda=1, quality=2)


def test_exporting_twice_gives_the_same_weights(pictures, tmp_path):
    Trainer(settings(pictures, tmp_path, steps=1), lambda line: None).run()
    made = [
        export.export(tmp_path / loop.CHECKPOINT, tmp_path / f"{n}.safetensors", "c", [str(pictures)]) for n in "ab"
    ]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_fitted_tables_code_better_than_the_logistic(pictures, tmp_path):
    from latcodec.backends.hyperprior import codec as backend
    from latcodec.entropy.range_coder import ideal_bits
    from latcodec.train.export.tables import logistic_tables
    from latcodec.weights import load

    Trainer(settings(pictures, tmp_path, steps=4), lambda line: None).run()
    out = export.export(tmp_path / loop.CHECKPOINT, tmp_path / "w.safetensors", "c", [str(pictures)])
    model = backend.Model(load("hyperprior", selected=str(out)))
    logistic = logistic_tables(backend.sigmas())
    fitted_bits = logistic_bits = 0.0
    for name in "abcd":
        latents = backend.analyse(model, np.asarray(Image.open(pictures / f"{name}.png")))
        for index in (40, 150, 240):
            coded = backend.code(model, latents, backend.Options(index))
            fitted_bits += ideal_bits(coded.symbols.ravel(), coded.rows, model.tables)
            logistic_bits += ideal_bits(coded.symbols.ravel(), coded.rows, logistic)
    assert fitted_bits < logistic_bits


def test_training_needs_neither_rich_nor_constriction():
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
        "sys.modules['rich'] = sys.modules['constriction'] = None; "
        "import latcodec.train.trainer; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "torch" in loaded and not {"click", "scipy", "safetensors", "matplotlib"} & loaded
