"""What a training run can be told, where it starts from, and how it fails."""

import errno
import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from skimage import data as photographs

from latcodec import api as codec
from latcodec import metrics
from latcodec.cli import main as cli
from latcodec.errors import ImageError, LatcodecError, OptionError, WeightsError
from latcodec.images import Picture
from latcodec.nn.layers import distortion_weights
from latcodec.train import checkpoint, data, objective, plans, settings
from latcodec.train import trainer as loop
from latcodec.train.init.source import initialise, read_source
from latcodec.train.record import read_lines
from latcodec.train.trainer import Trainer, TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"widths": "8,12,16", "latent": "16", "hyper_width": "12", "hyper_latent": "8", "knots": "3"}
TRANSFORM = {k: NARROW[k] for k in ("widths", "latent", "knots")}
CODECS = {"hyperprior": NARROW, "vbq": NARROW, "pln": NARROW, "nc-vae": TRANSFORM}
WEIGHTS = Path(__file__).parents[2] / "weights"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(3):
        Image.fromarray(photographs.astronaut()[n * 60 : n * 60 + 200, 150:350]).save(folder / f"{n}.png")
    return folder


def given(pictures: Path, out: Path, codec_name: str = "hyperprior", **more) -> TrainSettings:
    sizes = {"steps": 2, "patch": 64, "final_patch": 64, "batch_size": 2, "autocast": False}
    sizes |= {"options": tuple(CODECS.get(codec_name, NARROW).items())}
    return TrainSettings(codec_name, (str(pictures),), str(out), **sizes | more)


def trained(wanted: TrainSettings) -> tuple[dict, list[str]]:
    lines: list[str] = []
    return torch.load(Trainer(wanted, lines.append).run(), weights_only=True), lines


def network(codec_name: str, **options) -> tuple[torch.nn.Module, object]:
    plan = plans.plan_of(codec_name)
    torch.manual_seed(0)
    return plan.network(plan.config(**options)), plan.loss


SMALL = {"widths": (8, 12, 16), "latent": 16, "hyper_width": 12, "hyper_latent": 8, "knots": 3}


# Objective.


@pytest.mark.parametrize("codec_name", ["hyperprior", "hyperprior-context", "vbq", "pln"])
def test_ms_ssim_takes_the_place_of_the_squared_error(codec_name):
    """For every model: what is minimised is (bpp + l (1 - MS-SSIM) + its own) / sqrt(lc), l = 1280 lc."""
    model, plain = network(codec_name, **SMALL)
    told = objective.loss_for_metric(plain, "ms-ssim", model.config)
    x = torch.from_numpy(photographs.astronaut()[None, :192, 100:292].copy()).permute(0, 3, 1, 2).float() / 255
    t = torch.tensor([0.4])
    results = []
    for loss in (plain, told):
        torch.manual_seed(1)
        results.append(loss(model, x, t, False, True, torch.tensor(1.0)))
    one, two = results
    lc = distortion_weights(t)
    assert torch.equal(one["bpp"], two["bpp"]) and 0 < two["ms_ssim"].item() < 1
    expected = 1280 * lc * (1 - two["ms_ssim"]) - lc * 255**2 * one["mse"]
    assert two["lagrangian"].item() == pytest.approx((one["lagrangian"] + expected).item(), rel=1e-5)
    assert two["loss"].item() == pytest.approx((one["loss"] + expected / lc.sqrt()).item(), rel=1e-4)
    with torch.no_grad(), objective.SynthesisRecorder(model) as recorder:
        rows = told(model, x, t, False, False)
    shown, original = (p[0].permute(1, 2, 0).numpy() for p in (recorder.pictures[0].clamp(0, 1), x))
    assert rows["ms_ssim"].item() == pytest.approx(metrics.ms_ssim(shown, original, peak=1.0), abs=1e-5)
    assert "synthesis" not in vars(model)  # the collector is gone


def test_ms_ssim_improves_when_it_is_trained(pictures, tmp_path):
    """Against the same steps on squared error, at the same bits or fewer and a lower PSNR."""
    rows = {}
    for metric in settings.METRICS:
        out = tmp_path / metric
        trained(given(pictures, out, metric=metric, steps=25, lr=2e-3, ema=0.8, patch=192, final_patch=192))
        rows[metric] = read_lines(out / "log.jsonl")[-1]["validation"]
    assert all("ms_ssim" in row for row in rows["ms-ssim"]) and "ms_ssim" not in rows["mse"][0]
    assert np.mean([row["psnr_db"] for row in rows["ms-ssim"]]) < np.mean([row["psnr_db"] for row in rows["mse"]])
    before = tmp_path / "before"
    trained(given(pictures, before, metric="ms-ssim", steps=25, stop_at_step=0, patch=192, final_patch=192))
    start = read_lines(before / "log.jsonl")[-1]["validation"]
    better = [a["lagrangian"] < b["lagrangian"] for a, b in zip(rows["ms-ssim"], start, strict=True)]
    assert sum(better) >= 7


@pytest.mark.parametrize(
    "codec_name, options",
    [("vbq", {"tempered": False}), ("pln", {"likelihood": "laplace"}), ("pln", {"gamma": True})],
    ids=str,
)
def test_ms_ssim_is_refused_where_the_objective_is_another(codec_name, options):
    model, loss = network(codec_name, **SMALL, **options)
    with pytest.raises(OptionError, match=next(iter(options))):
        objective.loss_for_metric(loss, "ms-ssim", model.config)


def test_a_range_of_rates_is_the_only_one_drawn_and_validated(pictures, tmp_path):
    wanted = given(pictures, tmp_path, lambda_range=(1.0, 4.0))
    low, high = wanted.t_range()
    from latcodec.rates import lambda_of_index

    assert (lambda_of_index(255 * low), lambda_of_index(255 * high)) == pytest.approx((4, 1))
    training, _ = data.load([str(pictures)], 64)
    drawn = np.concatenate([data.Crops(training, 0, wanted.t_range()).plan(s, 8, 64)[1] for s in range(20)])
    assert low - 1e-6 <= drawn.min() < low + 0.02 and high - 0.02 < drawn.max() <= high + 1e-6
    state, _ = trained(wanted)
    assert json.loads(state["settings"])["lambda_range"] == [1.0, 4.0]
    rows = read_lines(tmp_path / "log.jsonl")[-1]["validation"]
    assert (rows[0]["t"], rows[-1]["t"]) == pytest.approx((low, high))
    assert replace(wanted, lambda_range=(4.0, 1.0)).t_range() == wanted.t_range()


@pytest.mark.parametrize(
    "more, message",
    [({"lambda_range": (0.01, 1.0)}, "--lambda-range: 0.01"), ({"metric": "ms-ssim"}, "--patch 192"),
     ({"metric": "vmaf"}, "--metric vmaf"), ({"lambda_range": (1.0, float("nan"))}, "--lambda-range")],
    ids=str,
)  # fmt: skip
def test_settings_out_of_range(pictures, tmp_path, more, message):
    with pytest.raises(OptionError, match=message):
        Trainer(given(pictures, tmp_path, **more), lambda line: None).run()


def test_named_options_are_fields_of_the_network(pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "run", lambda trainer: seen.append(trainer.settings) or tmp_path)
    monkeypatch.setattr("latcodec.cli.train._export", lambda *given: None)
    arguments = ["train", str(pictures), "-o", str(tmp_path), "--steps", "1"]
    named = [
        "--mi-weight",
        "0.1",
        "--mi-fraction",
        "0.25",
        "--gamma",
        "--likelihood",
        "laplace",
        "--input-noise",
        "0.1",
    ]
    extra = ["-Olatent=32", "--metric", "ms-ssim", "--lambda-range", "1", "2"]
    extra += ["--checkpoint-minutes", "7", "--validate-minutes", "0.5"]
    done = CliRunner().invoke(cli.cli, [*arguments, *named, *extra])
    assert done.exit_code == 0, done.output
    assert dict(seen[0].options) == {
        "mi_weight": "0.1", "mi_fraction": "0.25", "gamma": "1", "likelihood": "laplace", "input_noise": "0.1",
        "latent": "32",
    }  # fmt: skip
    assert (seen[0].metric, seen[0].patch, seen[0].lambda_range) == ("ms-ssim", 192, (1.0, 2.0))
    assert (seen[0].checkpoint_minutes, seen[0].validate_minutes) == (7.0, 0.5)


def test_the_weight_of_mutual_information_reaches_the_network(pictures, tmp_path):
    options = (*NARROW.items(), ("mi_weight", "0.25"), ("mi_fraction", "0.75"))
    state, lines = trained(given(pictures, tmp_path, "vbq", options=options))
    config = json.loads(state["config"])
    assert (config["mi_weight"], config["mi_fraction"]) == (0.25, 0.75)
    assert any("mi_bpp" in line for line in lines)
    channels = json.loads((tmp_path / "channels.json").read_text())
    assert len(channels["levels"]["y"]["channels"]) == 16 and channels["step"] == 2


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
def test_what_a_network_is_trained_for_is_kept_with_it(metric):
    """Of every codec; also where it starts from a network that was trained for something else."""
    for name in plans.PLANS:
        config_class = plans.plan_of(name).config
        for before in ({}, {"metric": "mse"}, {"metric": "ms-ssim"}):
            assert settings.config_of(name, config_class, before, (), metric).metric == metric
            assert settings.config_of(name, config_class, before, ()).metric == before.get("metric", "mse")
    with pytest.raises(OptionError, match="vmaf"):
        settings.config_of("hyperprior-context", plans.plan_of("hyperprior-context").config, {"metric": "vmaf"}, ())


def test_a_network_cannot_say_that_it_was_trained_for_something_else():
    config_class = plans.plan_of("hyperprior-context").config
    for metric in (None, "mse", "ms-ssim"):
        with pytest.raises(OptionError, match="metric is no option of hyperprior-context"):
            settings.config_of("hyperprior-context", config_class, {}, (("metric", "ms-ssim"),), metric)


def test_details_mend_squared_errors_only():
    config_class = plans.plan_of("hyperprior-context").config
    with pytest.raises(OptionError, match="details=0"):
        settings.config_of("hyperprior-context", config_class, {"details": 64}, (), "ms-ssim")
    assert settings.config_of("hyperprior-context", config_class, {"details": 64}, (), "mse").details == 64


# Start.


@pytest.mark.parametrize("codec_name", list(CODECS))
def test_shipped_weights_start_a_run_as_they_are(codec_name):
    """Also the parts that weights hold as integers: the rates of a network just read are those of the codec."""
    path = WEIGHTS / f"{codec_name}.safetensors"
    source = read_source(path)
    assert source.codec == codec_name
    plan = plans.plan_of(codec_name)
    model = plan.network(settings.config_of(codec_name, plan.config, source.config, ()))
    taken, total = initialise(model, codec_name, source)
    assert taken == total and set(source.tensors) >= set(model.state_dict())
    picture = photographs.astronaut()[:256, 128:384]
    index = 100
    x = torch.from_numpy(picture[None].copy()).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        out = plan.loss(model.eval(), x, torch.tensor([index / 255]), False, noise=False)
    coded = codec.encode_picture(
        Picture(picture, False), codec.EncodeSettings(lmbda=codec_lambda(index), codec=codec_name, device="cpu")
    )
    assert coded.rate_index == index
    decoded = codec.decode(coded.data, device="cpu")
    error = metrics.mse(picture, decoded) * distortion_weights(torch.tensor([index / 255])).item()
    # What codecs do beyond the estimate (prices, samplers) moves along the curve, not off it.
    assert out["lagrangian"].item() == pytest.approx(coded.bpp + error, rel=0.12)


def codec_lambda(index: int) -> float:
    from latcodec.rates import lambda_of_index

    return lambda_of_index(index)


def test_fine_tuned_weights_are_others_and_encode(pictures, tmp_path):
    """The path a person takes, by the commands: train, fine-tune from the weights, encode with them, decode."""
    base = [f"-O{name}={value}" for name, value in NARROW.items()]
    common = ["--steps", "2", "--batch-size", "2", "--patch", "64", "--final-patch", "64", "--device", "cpu"]
    first, second = tmp_path / "first", tmp_path / "second"

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(cli.cli, list(arguments))
        assert done.exit_code == 0, done.output
        return done.output

    invoke("train", str(pictures), "-o", str(first), *common, *base)
    start = first / "hyperprior.safetensors"
    said = invoke("train", str(pictures), "-o", str(second), *common, "--init", str(start), "--only", "g_,h_")
    total = len(network("hyperprior", **SMALL)[0].state_dict())
    assert f"{total} of {total} tensors taken over" in said
    assert [row["step"] for row in read_lines(second / "log.jsonl")] == [0, 2]  # what there was to improve on, first
    one, two = (json.loads((out / "index.json").read_text())["hyperprior.safetensors"] for out in (first, second))
    assert one["id"] != two["id"] and "--init hyperprior.safetensors --only g_,h_" in two["command"]
    assert one["config"] == two["config"]
    tuned = second / "hyperprior.safetensors"
    coded, decoded = tmp_path / "0.lc", tmp_path / "0.png"
    named = ["--codec", "hyperprior", "--weights", str(tuned)]
    invoke("encode", str(pictures / "0.png"), "-o", str(coded), *named)
    assert two["id"] in invoke("info", str(coded))
    invoke("decode", str(coded), "-o", str(decoded), "--weights", str(tuned))
    with Image.open(decoded) as image:
        assert image.size == (200, 200)
    wrong = CliRunner().invoke(cli.cli, ["decode", str(coded), "-o", str(decoded), "-f", "--weights", str(start)])
    assert wrong.exit_code == 1 and two["id"] in wrong.output


def test_a_start_that_fits_nothing_is_told(pictures, tmp_path):
    trained(given(pictures, tmp_path / "pln", "pln"))
    options = (("widths", "20,24,28"), ("latent", "20"), ("hyper_width", "20"), ("hyper_latent", "12"))
    total = len(network("hyperprior", **SMALL)[0].state_dict())
    with pytest.raises(WeightsError, match=f"1 of {total} tensors of pln fit this hyperprior network"):
        start = str(tmp_path / "pln" / "ema.pt")
        Trainer(given(pictures, tmp_path / "a", options=options, init=start), lambda line: None).run()
    (tmp_path / "other.pt").write_bytes(b"")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="neither weights nor a checkpoint"):
        Trainer(given(pictures, tmp_path / "b", init=str(tmp_path / "other.pt")), lambda line: None).run()


def test_training_fits_the_units_of_norms_that_it_trains(pictures, tmp_path):
    first, _ = trained(given(pictures, tmp_path / "first"))
    units = [name for name in first["model"] if name.endswith("gamma_unit")]
    assert len(units) == 6 and all((first["model"][name] != 1).all() for name in units)
    start = str(tmp_path / "first" / "checkpoint.pt")
    other, _ = trained(given(pictures, tmp_path / "other", init=start, only="h_s.", seed=5))
    for name, value in other["model"].items():
        assert name.startswith("h_s.") or torch.equal(value, first["ema"][name]), name


def test_averages_of_an_older_version_are_a_start_but_its_run_is_over(pictures, tmp_path):
    now, _ = trained(given(pictures, tmp_path))
    older = {}
    for name, value in now["ema"].items():
        if name.endswith("gamma"):
            value = (value.clamp_min(0) * now["ema"][f"{name}_unit"]).sqrt()
        if not name.endswith("gamma_unit"):
            older[f"{name}_root" if name.endswith("gamma") else name] = value
    torch.save(now | {"model": older, "ema": older}, tmp_path / loop.CHECKPOINT)
    with pytest.raises(WeightsError, match="older version; go on from its averages in a new run: --init ema.pt"):
        Trainer(given(pictures, tmp_path, resume=True), lambda line: None).run()
    _, lines = trained(given(pictures, tmp_path / "next", init=str(tmp_path / loop.CHECKPOINT)))
    assert any(f"{len(now['ema'])} of {len(now['ema'])} tensors taken over" in line for line in lines)
    found = checkpoint.averaged_network(tmp_path / loop.CHECKPOINT, "hyperprior")
    x, t = torch.rand(1, 3, 64, 64), torch.tensor([0.5])
    model, _ = network("hyperprior", **SMALL)
    model.load_state_dict(now["ema"])
    torch.testing.assert_close(found(x, t, noise=False)["x_hat"], model(x, t, noise=False)["x_hat"], atol=1e-4, rtol=0)


def test_denormals_are_0_while_a_run_lasts_and_no_longer(pictures, tmp_path, monkeypatch):
    tiny, seen, real = torch.tensor([1e-40]), [], loop.plan_of

    def looks(codec_name):
        seen.append((tiny * 1.5).item())
        return real(codec_name)

    monkeypatch.setattr(loop, "plan_of", looks)
    Trainer(given(pictures, tmp_path), lambda line: None).run()
    assert set(seen) == {0.0} and (tiny * 1.5).item() > 0


# Failure.


def test_a_checkpoint_of_another_codec_or_network_is_one_line(pictures, tmp_path):
    trained(given(pictures, tmp_path))
    with pytest.raises(WeightsError, match="a checkpoint of hyperprior, not of vbq"):
        Trainer(given(pictures, tmp_path, "vbq", resume=True), lambda line: None).run()
    wider = (*NARROW.items(), ("latent", "24"))
    with pytest.raises(WeightsError, match="not a checkpoint of this network") as error:
        Trainer(given(pictures, tmp_path, resume=True, options=wider), lambda line: None).run()
    assert "\n" not in str(error.value)
    torch.save({"codec": "hyperprior", "config": "{}"}, tmp_path / loop.CHECKPOINT)
    with pytest.raises(WeightsError, match="it has no 'model'"):
        Trainer(given(pictures, tmp_path, resume=True), lambda line: None).run()


def test_a_resumed_run_says_what_is_other_than_before(pictures, tmp_path):
    trained(given(pictures, tmp_path))
    few = tmp_path / "few"
    few.mkdir()
    (few / "0.png").write_bytes((pictures / "0.png").read_bytes())
    _, lines = trained(given(few, tmp_path, steps=3, lr=1e-4, resume=True))
    assert any(line.endswith("; other steps, lr, pictures than before") for line in lines)


def test_a_resumed_run_says_what_its_checkpoint_did_not_know(pictures, tmp_path):
    trained(given(pictures, tmp_path, "hyperprior-context"))
    state = torch.load(tmp_path / loop.CHECKPOINT, weights_only=True)
    config = json.loads(state["config"])
    del config["step_error_bits"]
    torch.save(state | {"config": json.dumps(config)}, tmp_path / loop.CHECKPOINT)
    _, lines = trained(given(pictures, tmp_path, "hyperprior-context", steps=3, resume=True))
    assert any(line.endswith("; other steps than before; it did not say step_error_bits 60.0") for line in lines)
    wider = (*NARROW.items(), ("step_error_bits", "7"))
    _, lines = trained(given(pictures, tmp_path, "hyperprior-context", steps=4, resume=True, options=wider))
    assert any(line.endswith("; other steps, step_error_bits than before") for line in lines)


@pytest.mark.parametrize("kind", ["tensor", "array", "device"])
def test_no_memory_says_what_to_lower(pictures, tmp_path, monkeypatch, kind):
    real = loop.plan_of
    errors = {"array": MemoryError(), "device": torch.OutOfMemoryError("CUDA out of memory")}

    def full(model, x, t, autocast=False, noise=True, progress=None):
        if kind in errors:
            raise errors[kind]
        return torch.empty(2**55)

    monkeypatch.setattr(loop, "plan_of", lambda codec: replace(real(codec), loss=full))
    with pytest.raises(
        LatcodecError, match="out of memory in step 0 with 2 crops of 64 px: lower --batch-size"
    ) as error:
        Trainer(given(pictures, tmp_path), lambda line: None).run()
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_old_checkpoint(pictures, tmp_path):
    """A real write that fails: files of this process may not grow beyond a few kilobytes."""
    good, _ = trained(given(pictures, tmp_path))
    before = (tmp_path / loop.CHECKPOINT).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(LatcodecError, match=r"checkpoint.pt: cannot be written: .*; the one before it stays"):
            Trainer(given(pictures, tmp_path, steps=3, resume=True), lambda line: None).run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / loop.CHECKPOINT).read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if "tmp" in path.name]


def test_a_folder_that_cannot_be_read_is_one_line(pictures, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        data.find([str(pictures)])


# Data.


def test_pictures_of_one_name_have_one_order(tmp_path):
    for folder in "cab":
        (tmp_path / folder).mkdir()
        Image.fromarray(photographs.astronaut()[:64, :64]).save(tmp_path / folder / "same.png")
    found = data.find([str(tmp_path / folder) for folder in "bca"])
    assert [path.parent.name for path in found] == ["a", "b", "c"]


def test_what_does_not_fit_in_memory_is_kept_decoded(pictures, tmp_path):
    plain, _ = data.load([str(pictures)], 64)
    lines: list[str] = []
    store = data.PictureStore(None, tmp_path / "decoded", plain[0].nbytes, lines.append)
    spilled, _ = data.load([str(pictures)], 64, store, threads=1)
    kinds = [isinstance(p, np.memmap) for p in spilled]
    assert kinds == [False, True, True] and len(lines) == 1 and "too large for memory" in lines[0]
    assert all(np.array_equal(a, b) for a, b in zip(plain, spilled, strict=True))
    batches = [data.Crops(p, 0).batch(3, 8, 64)[0] for p in (plain, spilled)]
    assert np.array_equal(*batches) and data.digest(plain) == data.digest(spilled)
    kept = sorted((tmp_path / "decoded").iterdir())
    again, _ = data.load([str(pictures)], 64, data.PictureStore(None, tmp_path / "decoded", 0, lines.append))
    assert len(kept) == 2 and len(list((tmp_path / "decoded").iterdir())) == 3
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))


def test_there_is_an_idea_of_free_memory():
    assert 2**20 < data.free_memory() < 2**50


def test_the_feeder_gives_what_the_crops_give_whatever_it_prepared(pictures):
    training, _ = data.load([str(pictures)], 64)
    crops = data.Crops(training, 5)
    feeders = [data.Feeder(crops, True, (rank, 2)) for rank in (0, 1)]
    places = data.Feeder(crops, False)
    for step, count, side in [(0, 5, 64), (1, 5, 64), (2, 3, 128), (9, 3, 128)]:
        x, t = crops.batch(step, count, side)
        for rank, feeder in enumerate(feeders):
            part_x, part_t = feeder.take(step, count, side)
            assert np.array_equal(part_x, x[rank::2]) and np.array_equal(part_t, t[rank::2])
        assert np.array_equal(crops.cut(places.take(step, count, side)[0], side), x)
    for feeder in (*feeders, places):
        assert feeder.waited_s > 0
        feeder.close()


def test_crops_cut_on_a_device_are_those_cut_here(pictures):
    training, _ = data.load([str(pictures)], 64)
    crops = data.Crops(training, 2)
    places, _ = crops.plan(7, 9, 64)
    on_device = data.DevicePictures(training, torch.device("cpu")).crop(torch.from_numpy(places), 64)
    assert torch.equal((on_device * 255).round().byte(), torch.from_numpy(crops.cut(places, 64)))


@pytest.mark.gpu
def test_a_recorded_step_is_the_plain_one_on_cuda(pictures, tmp_path, monkeypatch):
    """Whether crops are cut on the device or here; to what the order of sums makes of it in a few steps."""
    wanted = {"steps": 6, "device": "cuda", "lr": 1e-3}
    states = {"recorded": trained(given(pictures, tmp_path / "recorded", **wanted))[0]["model"]}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *given: (0, 0))
    states["cut here"] = trained(given(pictures, tmp_path / "here", **wanted))[0]["model"]
    monkeypatch.setattr("latcodec.train.step.Stepper._capture", lambda *given: 1 / 0)
    states["plain"] = trained(given(pictures, tmp_path / "plain", **wanted))[0]["model"]
    start = trained(given(pictures, tmp_path / "start", **wanted, stop_at_step=0))[0]["model"]
    vectors = {k: torch.cat([v.float().ravel() for v in state.values()]) for k, state in states.items()}
    way = (vectors["plain"] - torch.cat([v.float().ravel() for v in start.values()])).norm()
    for vector in vectors.values():
        assert (vector - vectors["plain"]).norm() < 0.2 * way


@pytest.mark.alone
def test_a_slow_disk_is_waited_for_and_shown(pictures, tmp_path, monkeypatch):
    import time

    real = data.Crops.cut
    monkeypatch.setattr(data.Crops, "cut", lambda *given: time.sleep(0.2) or real(*given))
    trained(given(pictures, tmp_path, steps=5))
    rows = read_lines(tmp_path / "curves.jsonl")
    assert rows[-1]["data_share"] > 0.5 and rows[-1]["pictures_per_s"] < 2 / 0.1
