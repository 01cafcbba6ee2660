"""backends/vbq.py beyond what test_backends.py asks of every codec: its quantisers, priors, free lambda and escapes."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data

from latcodec import api as codec
from latcodec import container
from latcodec.backends import Backend
from latcodec.backends.loading import load_model
from latcodec.backends.vbq import codec as vbq
from latcodec.backends.vbq.entropy_model import NO_LAMBDA
from latcodec.backends.vbq.grids import ONE, PointGrid, StepGrid, fixed_exp, level_of
from latcodec.errors import DriftError, FormatError, OptionError
from latcodec.images import Picture
from latcodec.metrics import psnr_db

pytestmark = pytest.mark.usefixtures("one_thread")

ROW = Backend(2, "vbq", "latcodec.backends.vbq.codec")
SETS = [(quantizer, prior) for quantizer in vbq.QUANTIZERS for prior in vbq.PRIORS]


@pytest.fixture
def model():
    return load_model(ROW, None, None, "cpu")


def crop(size: int = 96) -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[60 : 60 + size, 180 : 180 + size])


def filed(model, image: np.ndarray, options: vbq.Options):
    """(payload after the file's bytes, what the encoder said)."""
    coded = vbq.encode(model, image, options)
    height, width = image.shape[:2]
    payload = container.Payload(2, model.weights_id, options.rate_index, width, height, False, 8, coded.integers_crc,
                                coded.streams, parameters=coded.parameters)  # fmt: skip
    return container.unpack(container.pack(payload)), coded


@pytest.mark.parametrize("quantizer, prior", SETS)
def test_every_quantiser_with_every_prior_is_a_real_file(model, quantizer, prior):
    image = crop()
    for index in (40, 220):
        payload, coded = filed(model, image, vbq.Options(index, True, quantizer=quantizer, prior=prior))
        expected = vbq.synthesise(model, coded.latents, image.shape[:2], False, 8)
        assert np.array_equal(vbq.decode(model, payload), expected)
        size = len(container.pack(payload))
        assert abs(8 * size - coded.estimated_bits) < 0.003 * coded.estimated_bits + 320
    assert psnr_db(image, expected) > 24
    assert (payload.parameters is None) == ((quantizer, prior) == ("vbq", "hyper"))


def test_the_posterior_and_the_true_code_length_pay(model):
    """At equal lambda the Lagrangian, in bits a pixel, orders what the quantisers know."""
    image = crop(160)
    lagrangian = {}
    for quantizer, prior in SETS:
        costs = []
        for index in (60, 130, 200):
            coded = vbq.encode(model, image, vbq.Options(index, False, quantizer=quantizer, prior=prior))
            decoded = vbq.synthesise(model, coded.latents, image.shape[:2], False, 8)
            noise = np.exp(model.noise(index, NO_LAMBDA) / 4096) * np.log(2)
            costs.append(coded.estimated_bits + np.square(decoded / 255 - image / 255).sum() / (0.002 * noise))
        lagrangian[quantizer, prior] = np.mean(costs) / image[..., 0].size
    for prior in vbq.PRIORS:
        assert lagrangian["vbq", prior] < 0.95 * lagrangian["algorithm1", prior]
        assert lagrangian["algorithm1", prior] < lagrangian["uniform", prior]
    assert lagrangian["vbq", "hyper"] < 0.95 * lagrangian["vbq", "factorized"]


def test_two_hundred_lambdas_have_no_steps(model):
    image = crop(64)
    latents = vbq.analyse(model, image)
    bits, errors = [], []
    for lmbda in np.exp2(np.linspace(-6, 5, 200)):
        coded = vbq.code(model, latents, vbq.Options(0, False, free_lambda=float(lmbda)))
        decoded = vbq.synthesise(model, coded.latents, image.shape[:2], False, 16)
        bits.append(coded.estimated_bits)
        errors.append(np.square(decoded / 65535 - image / 255).mean())
    bits, errors = np.array(bits), np.array(errors)
    assert bits[0] > 10 * bits[-1] and errors[-1] > 10 * errors[0]
    rise, fall = np.diff(bits), np.diff(np.log(errors))
    assert rise.max() < max(40, 0.01 * bits.max()), "one code point"
    assert (rise > 0).mean() < 0.15 and (fall < 0).mean() < 0.25
    assert (-rise / bits[:-1]).max() < 0.12 and fall.max() < 0.15, "a step"


def test_collapsed_channels_cost_nothing(model):
    image = crop(128)
    payload, coded = filed(model, image, vbq.Options(30))
    bits = vbq.channel_bits(model, payload)
    assert bits.shape == (model.network.config.latent,)
    assert bits.sum() <= coded.estimated_bits < bits.sum() + 2000
    latents = vbq.analyse(model, image)
    # What a channel can tell: its variance over the noise that lambda allows.
    told = (latents.y.square() * latents.log_h.exp()).mean((1, 2)).numpy() / np.exp(model.noise(30, NO_LAMBDA) / 4096)
    per_latent = bits / coded.symbols[0].size
    assert per_latent[told < 0.05].max(initial=0) < 0.05
    assert (per_latent < 0.02).mean() > 0.4 and per_latent.max() > 1


@pytest.mark.parametrize("quantizer, prior", SETS)
def test_pictures_like_no_photograph(model, quantizer, prior):
    rng = np.random.default_rng(0)
    stripes = np.zeros((48, 64, 3), np.uint8)
    stripes[::2, :, 0], stripes[:, ::3, 1] = 255, 255
    for image in (rng.integers(0, 256, (48, 64, 3), np.uint8), stripes, np.full((1, 1, 3), 255, np.uint8)):
        for index in (0, 255):
            payload, coded = filed(model, image, vbq.Options(index, True, quantizer=quantizer, prior=prior))
            expected = vbq.synthesise(model, coded.latents, image.shape[:2], False, 8)
            assert np.array_equal(vbq.decode(model, payload), expected)


@pytest.mark.parametrize("prior", vbq.PRIORS)
@pytest.mark.parametrize("quantizer", ["vbq", "algorithm1"])
def test_code_points_never_seen_are_escaped(model, quantizer, prior):
    latents = vbq.analyse(model, crop(64))
    wild = replace(latents, y=latents.y * torch.linspace(1, 30, len(latents.y))[:, None, None])
    coded = vbq.code(model, wild, vbq.Options(255, True, quantizer=quantizer, prior=prior))
    first, _, grid = model.sets[quantizer, prior]
    escaped = coded.symbols.ravel() >= grid.sizes[coded.rows.astype(int) - first]
    assert escaped.sum() > 100
    off = np.abs(coded.latents * ONE - wild.y.numpy()).ravel()
    assert np.median(off[escaped]) < 0.5 and (off < 5 + 0.5 * np.abs(wild.y.numpy()).ravel()).all()


def test_lambda_beyond_the_rate_index(model):
    image = crop(64)
    sizes = [filed(model, image, vbq.Options(0, free_lambda=v))[1].estimated_bits for v in (2.0**-6, 0.1, 20, 32)]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    one = filed(model, image, vbq.Options(100, free_lambda=1.0))[0]
    other = filed(model, image, vbq.Options(3, free_lambda=1.0))[0]
    assert one.streams == other.streams and one.parameters == other.parameters


def test_the_rate_index_of_a_free_lambda_is_exact():
    """Law 1: it picks tables, so no logarithm's last digit may matter."""
    for lambda_code in range(-2048, 1793):
        found = vbq.Options(0, free_lambda=2 ** (lambda_code / 256)).nearest_index
        place = 255 * math.log(20 / 2 ** (lambda_code / 256)) / math.log(200)
        assert lambda_code == 128 or found == min(255, max(0, math.floor(place + 0.5)))
    assert vbq.Options(0, free_lambda=2**0.5).nearest_index == 128, "exactly between two"
    assert abs(vbq._LOG2_20 - math.log2(20) * 2**40) < 1


def test_a_free_lambda_is_told_and_cannot_be_searched():
    picture = Picture(crop(32), False)
    encoded = codec.encode_picture(picture, codec.EncodeSettings(codec="vbq:free_lambda=32", device="cpu"))
    assert encoded.lmbda == 32
    for goal in ({"bpp": 1.0}, {"psnr": 40.0}, {"size_bytes": 500}):
        with pytest.raises(OptionError, match="free_lambda"):
            codec.encode_picture(picture, codec.EncodeSettings(codec="vbq:free_lambda=32", device="cpu", **goal))


@pytest.mark.parametrize("symbol", [-1, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("quantizer, prior", [s for s in SETS if s[0] != "uniform"])
def test_a_sound_stream_of_impossible_symbols_is_told(model, quantizer, prior, symbol):
    """Their stream decodes and its checksum is right: only the grid can refuse."""
    grid, noise = model.sets[quantizer, prior][2], model.noise(100, NO_LAMBDA)
    if prior == "hyper":
        shape = model.rates.z_mean.shape[1], 1, 1
        field = model.prior_of_y(np.zeros(shape, np.int32), 100, (2, 2))
    else:
        field = model.factorized_prior()
    rows = np.broadcast_to(grid.rows(field, noise), (model.network.config.latent, 2, 2))
    symbols = np.zeros(rows.shape, np.int32)
    symbols[-1, 0, 1] = symbol
    with pytest.raises(ValueError, match="no c"):
        grid.values(symbols, rows, field, noise)


@pytest.mark.parametrize(
    "wrong", [{"quantizer": "vq"}, {"prior": "none"}, {"free_lambda": 1e-9}, {"free_lambda": -1.0}]
)
def test_wrong_options(wrong):
    with pytest.raises(OptionError):
        vbq.Options(0, **wrong)


@pytest.mark.parametrize("parameters", [b"", b"\0\0\0", b"\5\0\0\0", b"\0\2\0\0", b"\0\0\xff\x7f", b"\0" * 5])
def test_wrong_parameters_are_told(model, parameters):
    payload, _ = filed(model, crop(32), vbq.Options(100))
    with pytest.raises(FormatError, match="parameters"):
        vbq.decode(model, replace(payload, parameters=parameters))


def test_other_parameters_are_told(model):
    payload, _ = filed(model, crop(32), vbq.Options(100))
    for parameters in (b"\0\1\0\x80", b"\1\0\0\x80", b"\2\0\0\x80", b"\0\0\0\0"):
        with pytest.raises((DriftError, FormatError)):
            vbq.decode(model, replace(payload, parameters=parameters))


def test_a_small_file_cannot_ask_for_much(model):
    payload, _ = filed(model, crop(32), vbq.Options(100, prior="factorized"))
    with pytest.raises(FormatError, match="cannot hold"):
        vbq.decode(model, replace(payload, width=2**14, height=2**14))


def test_integers_that_differ_are_told(model):
    payload, _ = filed(model, crop(), vbq.Options(200))
    quantiles = model.sets["vbq", "hyper"][2].quantiles.values.copy()
    quantiles[0, 1:-1] += 40
    for name, change in {
        "exp": lambda m: setattr(m, "exp_table", m.exp_table + 40),
        "curvature": lambda m: setattr(m, "log_curvature", m.log_curvature + 400),
        "noise": lambda m: setattr(m, "rates", replace(m.rates, noise=m.rates.noise + 400)),
        "plane": lambda m: setattr(m, "rates", replace(m.rates, plane=m.rates.plane + 400)),
        "quantiles": lambda m: m.sets.update({("vbq", "hyper"): _with_quantiles(m, quantiles)}),
    }.items():
        other = copy.copy(model)
        other.sets = dict(model.sets)
        change(other)
        with pytest.raises(DriftError):
            vbq.decode(other, payload)
            pytest.fail(f"{name} was changed and nobody noticed")


def _with_quantiles(model, values):
    first, count, grid = model.sets["vbq", "hyper"]
    return first, count, PointGrid(grid.entries, grid.starts, replace(grid.quantiles, values=values))


def test_integers_are_those_of_always(model):
    """Frozen, here in Python's own integers: a change of the integer path breaks every old file."""
    rng = np.random.default_rng(5)
    rates = {k: v.astype(object) for k, v in vars(model.rates).items()}
    for index in (0, 100, 255):
        symbols = rng.integers(-9, 10, (rates["z_mean"].shape[1], 2, 3)).astype(np.int32)
        z = symbols.astype(object) * 64 + rates["z_mean"][index][:, None, None]
        fixed = (z * rates["z_inverse_gain"][index][:, None, None] + 2**11) // 2**12
        plane = np.full((1, 2, 3), rates["plane"][index])
        out = model.hyper(np.concatenate([fixed, plane]).astype(np.int64))[:, :7, :11].astype(object)
        mean, log_scale, log_h = np.split(out, 3)
        log_scale = log_scale + rates["scale_offset"][index][:, None, None]
        field = model.prior_of_y(symbols, index, (7, 11))
        assert np.array_equal(field.mean, (mean * rates["mean_gain"][index][:, None, None] + 2**11) // 2**12)
        assert np.array_equal(field.log_variance, 2 * np.clip(log_scale, -8 * 4096, 5 * 4096))
        assert np.array_equal(field.log_curvature, np.clip(log_h, -24576, 24576) + model.log_curvature)
        ratio = field.log_variance + field.log_curvature - int(rates["noise"][index])
        levels = np.clip(((ratio + 7 * 4096) * 14336 + 2**23) // 2**24, 0, 71)
        assert np.array_equal(level_of(ratio), levels)
    steps = [StepGrid(model.exp_table).step(noise) for noise in (-8000, 0, 8000, 21000)]
    assert steps == [185114, 491300, 1304832, 6381504]
    logs = np.arange(-14 * 4096, 10 * 4096, 97)
    assert np.abs(fixed_exp(logs, model.exp_table) / 2**20 / np.exp(logs / 4096) - 1)[logs > -5 * 4096].max() < 2e-3


def test_the_tables_are_small(model):
    assert model.tables.weights.nbytes < 1_000_000
