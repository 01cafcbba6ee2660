"""NC-VAE's backend on a network as small as it can be: files come back, damage is told, integers are the network's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latcodec.backends.nc_vae import codec as backend
from latcodec.backends.nc_vae.adaptive import Step, StepEncoder, run_entropy_model
from latcodec.backends.nc_vae.contexts import MEAN_BITS, scale_sigmas
from latcodec.backends.nc_vae.network import NCVAE, Config
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeEncoder
from latcodec.errors import DriftError, FormatError, WeightsError
from latcodec.train.export import nc_vae as export_nc_vae
from latcodec.train.init.klt import start_from_klt
from latcodec.weights import Weights, load_file

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Config(widths=(12, 16, 24), latent=40, knots=4, encoder_blocks=1, decoder_blocks=1)


def network() -> NCVAE:
    """A block transform codec with a rate module that does something."""
    from skimage import data

    torch.manual_seed(0)
    model = NCVAE(SMALL).eval()
    x = torch.from_numpy(data.chelsea()[:256, :448].copy()).permute(2, 0, 1)[None].float() / 255
    model.start_from_latent_std(start_from_klt(model.g_a, model.g_s, x - 0.5))
    with torch.no_grad():
        model.rate.own_mean[:2].fill_(0.2)
        model.rate.mean.normal_(std=0.05)
    return model


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    from skimage import data

    torch.set_num_threads(1)
    return export_nc_vae.fit(network(), [np.ascontiguousarray(data.astronaut()[:192, :256])])


def model_of(tensors: dict[str, np.ndarray]) -> backend.Model:
    return backend.Model(Weights(Path("w"), "ab" * 32, "nc-vae", backend.stored_config(network()), tensors))


@pytest.fixture(scope="module")
def model(tensors) -> backend.Model:
    return model_of(tensors)


def payload(model: backend.Model, image: np.ndarray, index: int, gray: bool = False) -> Payload:
    coded = backend.encode(model, image, backend.Options(index))
    depth = 16 if image.dtype == np.uint16 else 8
    height, width = image.shape[:2]
    return Payload(4, b"abcd", index, width, height, gray, depth, coded.integers_crc, coded.streams)


def psnr_db(a: np.ndarray, b: np.ndarray, peak: float = 255) -> float:
    return float(-10 * np.log10(((a.astype(float) - b) ** 2).mean() / peak**2))


def test_better_rates_cost_more_and_give_more(model, photograph):
    image = np.ascontiguousarray(photograph[:192, :256])
    bits, quality = [], []
    for index in (0, 85, 170, 255):
        file = payload(model, image, index)
        bits.append(len(file.streams[0]))
        quality.append(psnr_db(backend.decode(model, file), image))
    assert bits == sorted(bits) and quality == sorted(quality) and quality[-1] > 30


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (17, 31), (65, 15), (16, 16), (100, 130)])
def test_any_size(model, photograph, size):
    image = np.ascontiguousarray(photograph[: size[0], : size[1]])
    again = backend.decode(model, payload(model, image, 200))
    assert again.shape == image.shape and again.dtype == np.uint8 and psnr_db(again, image) > 18


def test_depth_and_gray(model, photograph):
    image = np.ascontiguousarray(photograph[:64, :80])
    deep = backend.decode(model, payload(model, image.astype(np.uint16) * 257, 200))
    assert deep.dtype == np.uint16 and psnr_db(deep, image.astype(float) * 257, 65535) > 24
    gray = backend.decode(model, payload(model, np.repeat(image[:, :, 1:2], 3, 2), 200, gray=True))
    assert np.array_equal(gray[:, :, 0], gray[:, :, 1]) and np.array_equal(gray[:, :, 0], gray[:, :, 2])


def test_same_bytes_again_and_in_tiles(model, photograph, monkeypatch):
    image = np.ascontiguousarray(photograph[:240, :400])
    first = payload(model, image, 120)
    assert payload(model, image, 120) == first
    decoded = backend.decode(model, first)
    monkeypatch.setattr("latcodec.nn.tiling.TILE_LATENTS", 1)
    split = backend.encode(model, image, backend.Options(120))
    symbols = backend.encode(model, image, backend.Options(120)).symbols
    assert (split.symbols != symbols).mean() < 1e-3
    assert np.abs(backend.decode(model, first).astype(int) - decoded).max() <= 1


def test_the_estimate_is_the_file(model, photograph):
    image = np.ascontiguousarray(photograph[:160, :200])
    for index in (0, 128, 255):
        coded = backend.encode(model, image, backend.Options(index))
        assert abs(8 * len(coded.streams[0]) - coded.estimated_bits) < 0.005 * coded.estimated_bits + 96


def test_the_integers_say_what_the_network_says(model, photograph):
    """Means and rows of the contexts against the rate module in floats."""
    image = np.ascontiguousarray(photograph[:128, :160])
    net, latents = network(), backend.analyse(model, image)
    for index in (0, 100, 255):
        rows = []

        class Spy:
            def encode(self, symbols, step_rows, tables, counts, rows=rows):
                rows.append(step_rows)

        symbols, means = backend.quantise_and_encode(model, latents, index, Spy(), adaptive=False)
        with torch.no_grad():
            rate = net.at_rate(torch.tensor([index / 255]))
            mean, spread = net.rate(torch.from_numpy(symbols)[None].float() / rate["unit"])
            mean = (mean * rate["unit"])[0, : len(means)].numpy()
            assert not mean[32:].any()
            sigma = ((rate["floor"] + rate["slope"] * spread) * rate["unit"])[0].numpy().clip(0.08, 256)
        error = np.abs(means / 2**MEAN_BITS - mean)
        assert (error < 2**-MEAN_BITS + 2e-3 * np.abs(mean) + 2e-3 * sigma[:32]).all()
        # The scale rows that were taken: sizes within a row of the network's, but for what rounding of |n| does.
        reached = np.concatenate([np.where(r < 100, r // 5, r - 80) for r in rows])
        expected = np.searchsorted(np.sqrt(scale_sigmas()[1:] * scale_sigmas()[:-1]), sigma.ravel())
        assert abs(np.sort(reached) - np.sort(expected)).mean() < 0.25


def test_tables_fitted_to_pictures_are_cheaper(tensors, photograph):
    image = np.ascontiguousarray(photograph[100:260, 100:300])
    start = tensors | {k: v for k, v in backend.export(network(), export_nc_vae.logistic_tables()).items()}
    bits = [
        backend.encode(model_of(t), image, backend.Options(128, verify=False)).estimated_bits for t in (tensors, start)
    ]
    assert bits[0] < bits[1]


def test_drift_and_damage(model, photograph):
    image = np.ascontiguousarray(photograph[:64, :96])
    good = payload(model, image, 60)
    with pytest.raises(DriftError, match="CRC"):
        backend.decode(model, dataclasses.replace(good, integers_crc=good.integers_crc ^ 1))
    with pytest.raises(DriftError):
        backend.decode(model, dataclasses.replace(good, streams=(good.streams[0][:-8],)))
    with pytest.raises(FormatError, match="sections"):
        backend.decode(model, dataclasses.replace(good, streams=good.streams * 2))
    with pytest.raises(FormatError, match="sections"):
        backend.decode(model, dataclasses.replace(good, parameters=b"1"))
    with pytest.raises(FormatError, match="cannot hold"):
        backend.decode(model, dataclasses.replace(good, width=2**14, height=2**14))
    rng = np.random.default_rng(0)
    for _ in range(20):
        with pytest.raises((DriftError, FormatError)):
            backend.decode(model, dataclasses.replace(good, streams=(rng.bytes(4 * int(rng.integers(0, 400))),)))


class Cheapest:
    """A quantiser whose symbols are those of the fewest bits."""

    def quantise(self, step: Step) -> np.ndarray:
        tables = step.tables
        best = [
            tables.minimums[r] + np.argmax(tables.weights[tables.offsets[r] : tables.offsets[r + 1] - 1])
            for r in range(tables.num_tables)
        ]
        return (step.sign * np.array(best)[step.table_index] + step.centre).astype(np.int32)


def test_other_rows_in_a_channel_never_cost_less_than_promised(model):
    """What `decode` checks before it allocates: a stream of the cheapest symbols is at least that long."""
    for index in (0, 255):
        coder = RangeEncoder(model.tables)
        shape = (12, 12)
        run_entropy_model(model.contexts, model.tables, index, shape, StepEncoder(coder, Cheapest()))
        assert 8 * len(coder.finish()) + 64 >= model.least_bits[index] * 144


@pytest.mark.parametrize("name", ["float.g_s.0.weight", "contexts.unit", "tables.weights", "contexts.groups"])
def test_broken_weights(tensors, name):
    for broken in ({k: v for k, v in tensors.items() if k != name}, tensors | {name: tensors[name][:3]}):
        with pytest.raises(WeightsError, match="not nc-vae weights"):
            model_of(broken)


def test_strange_pictures(model):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    checks = np.indices((48, 48, 3)).sum(0).astype(np.uint8) % 2 * 255
    for image in (noise, checks, np.zeros_like(noise), np.full_like(noise, 255)):
        for index in (0, 255):
            assert backend.decode(model, payload(model, image, index)).shape == image.shape


def test_export_writes_weights_that_load(tmp_path, photograph):
    from PIL import Image

    net = network()
    state = {"ema": net.state_dict(), "config": json.dumps(dataclasses.asdict(net.config)), "codec": "nc-vae",
             "settings": "{}", "step": 1, "elapsed_s": 0.0}  # fmt: skip
    torch.save(state, tmp_path / "checkpoint.pt")
    Image.fromarray(photograph[:128, :128]).save(tmp_path / "picture.png")
    picture = str(tmp_path / "picture.png")
    out = export_nc_vae.export(tmp_path / "checkpoint.pt", tmp_path / "w.safetensors", "command", [picture])
    loaded = load_file(out)
    model = backend.Model(loaded)
    image = np.ascontiguousarray(photograph[:40, :50])
    assert backend.decode(model, payload(model, image, 99)).shape == image.shape
    with pytest.raises(WeightsError, match="not a checkpoint"):
        export_nc_vae.export(out, tmp_path / "again.safetensors", "command", [picture])
