"""The residual layer: exact integers, both directions on odd sizes, and what it buys."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from residual_networks import NARROW, error, model_of, payload
from skimage import data

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.checks import crc_of
from latcodec.backends.common.distortion import rd_cost
from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.common.mean_scale import MeanScaleRelaxedRD, sigmas
from latcodec.backends.common.rate_tables import interpolate_rates, subsample_rates
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context import (
    picture,
    residual,
    residual_encoder,
    wiener,
)
from latcodec.backends.hyperprior_context.model import OperatingPoint
from latcodec.backends.hyperprior_context.network import AfterSynthesis, ContextHyperprior
from latcodec.backends.hyperprior_context.picture import base_picture, dequantise_latents
from latcodec.backends.hyperprior_context.reconstruction import with_centroid_shift
from latcodec.backends.hyperprior_context.residual_network import (
    GROUPS,
    LARGEST,
    groups_of,
)
from latcodec.entropy.integer_net import FRACTION_BITS
from latcodec.errors import DriftError, FormatError, WeightsError
from latcodec.train.export.tables import logistic_tables
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [(192, 192), (65, 40), (17, 31), (1, 1)])
@pytest.mark.parametrize("index", [0, 255])
def test_both_directions_agree_on_odd_sizes(model, photograph, size, index):
    image = np.ascontiguousarray(photograph[: size[0], : size[1]])
    coded = backend.encode(model, image, backend.Options(index))
    decoded = backend.decode(model, payload(coded, index, image))
    shown = backend.shown(model, coded, index, size, False, 8)
    assert decoded.shape == image.shape and np.array_equal(decoded, shown)


def test_more_bits_buy_more_than_the_latents_can_hold(model, photograph):
    coded = backend.encode(model, photograph, backend.Options(255))
    with_details = error(backend.decode(model, payload(coded, 255, photograph)), photograph)
    none = replace(coded.integers, residual_symbols=np.zeros_like(coded.integers.residual_symbols))
    without = error(backend.shown(model, replace(coded, integers=none), 255, (192, 192), False, 8), photograph)
    assert np.count_nonzero(coded.integers.residual_symbols) > 1000 and with_details < 0.5 * without


def test_rows_are_those_of_the_float_network(network, model, photograph, x, one_base, monkeypatch):
    index = 200
    monkeypatch.setattr(residual_encoder, "_best_shift", lambda *anything: 0)
    coded = backend.encode(model, photograph, backend.Options(index))
    sent = len(coded.integers.residual_symbols)
    symbols = torch.from_numpy(np.pad(coded.integers.residual_symbols, ((0, 64 - sent), (0, 0), (0, 0))))[None].float()
    with torch.no_grad():
        rate = network.at_rate(torch.tensor([index / 255]))
        y = network.analysis(x, rate)
        heard = iter(symbols.split(groups_of(64), 1))

        def quantise(residual: torch.Tensor) -> torch.Tensor:
            return next(heard)  # of details: z and y are rounded by price

        _, prices = network.transmit(y, network.hyper_analysis(y), rate, quantise, rdoq=True, after=AfterSynthesis(x))
    expected = torch.cat([sigma for _, _, sigma in prices[-GROUPS:]], 1)[:, :sent].ravel().numpy()
    found = sigmas()[coded.integers.residual_table_index - SCALE_ROWS]
    assert np.abs(np.log(found / expected)).max() < 0.15  # rows lie 0.128 apart


@pytest.mark.parametrize(
    "name",
    ["scale_offset", "bias", "base_scale_offset", "base_bias", "from_latents", "from_details", "to_scales"],
)
def test_a_platform_that_computes_something_else_is_told(network, photograph, name):
    model = model_of(network)
    coded = backend.encode(model, photograph, backend.Options(255))
    if name in residual.NETWORKS:
        net = model.residual.nets[name][-1]
        net.layers = [replace(net.layers[0], bias=net.layers[0].bias * 1.2 + 2.0 ** (net.layers[0].shift + 10))]
    else:
        table = getattr(model.residual.rates, name)
        model.residual.rates = replace(model.residual.rates, **{name: table + table // 10 + 400})
    with pytest.raises(DriftError):
        backend.decode(model, payload(coded, 255, photograph))


def test_the_checksum_covers_the_details(model, photograph, monkeypatch):
    coded = backend.encode(model, photograph, backend.Options(255))
    right = backend.decode_integers

    def wrong(*arguments):
        integers = right(*arguments)
        integers.residual_symbols.flat[5] += 1
        return integers

    monkeypatch.setattr(backend, "decode_integers", wrong)
    with pytest.raises(DriftError):
        backend.decode(model, payload(coded, 255, photograph))


def test_latents_without_a_picture_have_no_details(model, photograph):
    latents = replace(backend.analyse(model, photograph).at(100), image=None)
    coded = backend.code(model, latents, backend.Options(255))
    assert coded.integers.residual_symbols.shape == (0, 24, 24)


def test_a_network_without_details_codes_as_if_there_were_none(network, photograph):
    plain = ContextHyperprior(replace(NARROW, details=0))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("details.")})
    coded = backend.encode(model_of(plain), photograph, backend.Options(255))
    assert coded.integers.residual_symbols.shape == (0, 24, 24) and len(coded.integers.residual_table_index) == 0
    assert crc_of(np.zeros(0, np.int32)) == 0  # so a checksum says nothing of them


def test_a_search_counts_the_details(model, photograph):
    image = np.ascontiguousarray(photograph[40:104, 60:140])
    prices = []
    for effort in (0, 2):
        coded = backend.encode(model, image, backend.Options(200, effort=effort))
        prices.append(rd_cost(coded, backend.shown(model, coded, 200, (64, 80), False, 8), image, 200))
    assert prices[1] < prices[0]
    latents, x = backend.analyse(model, image).at(100), torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    found = []
    for sends in (True, False):
        rd = MeanScaleRelaxedRD(model, OperatingPoint(200, 100, sends))
        with torch.no_grad():
            found.append(rd.transmit((latents.y[None], latents.z[None]), torch.round, x))
    assert found[0][1] > found[1][1] and not torch.equal(found[0][0], found[1][0])


def test_bands_join(model, photograph, monkeypatch):
    whole = backend.encode(model, photograph, backend.Options(220))
    decoded = backend.decode(model, payload(whole, 220, photograph))
    monkeypatch.setattr(picture, "STRIPE_BLOCKS", 1)
    parts = backend.encode(model, photograph, backend.Options(220))
    assert np.abs(parts.integers.residual_symbols - whole.integers.residual_symbols).max() <= 1  # sums in another order
    again = backend.decode(model, payload(whole, 220, photograph))
    assert np.abs(again.astype(int) - decoded).max() <= 1


def test_details_begin_at_one_rate_and_the_base_ends_there(network, model, photograph, one_base):
    below, first, above = (backend.encode(model, photograph, backend.Options(index)) for index in (99, 100, 255))
    assert below.integers.residual_symbols.shape == (0, 24, 24) and first.integers.residual_symbols.any()
    decoded = backend.decode(model, payload(below, 99, photograph))
    assert np.array_equal(decoded, backend.shown(model, below, 99, (192, 192), False, 8))
    assert np.array_equal(first.symbols, above.symbols) and not np.array_equal(first.symbols, below.symbols)
    rate = network.at_rate(torch.tensor([99, 100, 255]) / 255)
    for name, value in rate.items():
        varies = not torch.equal(value[1], value[2])
        constant = ("details.bias", "details.sent")  # the bias starts at 0
        assert varies == (name.startswith(("details.", "lift")) and name not in constant), name
    assert rate["details.sent"].flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize(("channels", "num_bands"), [(0, 0), (3, 1), (4, 1), (5, 2), (33, 9), (64, 16)])
def test_frequencies_that_hold_nothing_are_not_sent(network, model, channels, num_bands):
    u = torch.zeros(1, 64, 4, 6)
    u[:, :channels] = torch.randn(1, channels, 4, 6)
    rate_params, left = model.at_rate(model.operating_point(255)), network.details.synthesis(u)
    encoder = residual_encoder.ResidualEncoder(network.details, rate_params, left, 255, model.tables)
    assert encoder.num_bands == num_bands
    table_index = np.full(4 * 24, SCALE_ROWS + 40, np.uint16)
    assert (encoder.symbols(0, table_index) != 0).any() == bool(channels)


def test_pictures_unlike_photographs_shift_the_rows(model, one_base, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    coded = backend.encode(model, noise, backend.Options(255))
    assert np.array_equal(backend.decode(model, payload(coded, 255, noise)),
                          backend.shown(model, coded, 255, (48, 64), False, 8))  # fmt: skip
    monkeypatch.setattr(residual_encoder, "_best_shift", lambda *anything: 0)
    unmoved = backend.encode(model, noise, backend.Options(255))
    assert len(coded.streams[0]) < 0.8 * len(unmoved.streams[0])


def test_the_shift_that_costs_least_is_found(model):
    prices = residual_encoder._bits_of_sizes(model.tables)
    sigma = sigmas()[35]
    wanted = np.random.default_rng(0).logistic(0, sigma * math.sqrt(3) / math.pi, 20_000).astype(np.float32)
    for said in (25, 35, 45):
        found = residual_encoder._best_shift(np.full(20_000, said, np.uint16), wanted, prices)
        assert abs(said + found - 35) <= 1
    assert residual_encoder._best_shift(np.full(5, 3, np.uint16), np.zeros(5, np.float32), prices) == 0


@pytest.mark.parametrize("num_bands", [0, 1, 3, 4, 9, 16])
@pytest.mark.parametrize("shift", [0, -100, 100])
def test_any_part_of_them_decodes(model, photograph, monkeypatch, num_bands, shift):
    monkeypatch.setattr(residual_encoder, "_bands_worth_sending", lambda *anything: num_bands)
    monkeypatch.setattr(residual_encoder, "_best_shift", lambda *anything: shift)
    image = np.ascontiguousarray(photograph[:70, :90])
    coded = backend.encode(model, image, backend.Options(230))
    assert (
        coded.integers.residual_symbols.shape == (4 * num_bands, 10, 12)
        and coded.integers.residual_table_index.size == 480 * num_bands
    )
    decoded = backend.decode(model, payload(coded, 230, image))
    assert np.array_equal(decoded, backend.shown(model, coded, 230, (70, 90), False, 8))


def test_sparse_symbols_stand_for_what_is_nearer_to_zero(network):
    symbols = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    shown = with_centroid_shift(symbols, 0.15)
    assert shown.tolist() == pytest.approx([-2.95, -0.85, 0, 0.85, 1.95])
    shown.sum().backward()
    assert symbols.grad.tolist() == [1.0] * 5
    by = network.at_rate(torch.tensor([0.2, 190 / 255, 1.0]))["details.nearer"].flatten()
    assert by.tolist() == pytest.approx([network.config.nearer] * 2 + [0.0])


@pytest.mark.parametrize("index", [150, 200, 255])
def test_an_encoder_knows_what_symbols_stand_for(network, model, photograph, x, monkeypatch, index, one_base):
    """No size next to that of any one detail would cost less, of those that are asked; the picture is what they stand
    for."""
    taken, plain_rdoq = [], pricing.rdoq

    def spy(residual, rows, tables, weight, *more):
        symbols = plain_rdoq(residual, rows, tables, weight, *more)
        taken.extend([(residual, rows, symbols, weight)] if more else [])
        return symbols

    monkeypatch.setattr(pricing, "rdoq", spy)
    coded = backend.encode(model, photograph, backend.Options(index))
    rate = model.at_rate(model.operating_point(index))
    by = rate["details.nearer"].item()
    residual, rows, symbols = (np.concatenate([one[part] for one in taken]) for part in range(3))
    assert np.array_equal(symbols, coded.integers.residual_symbols.ravel()) and symbols.any()

    def costs(symbols):
        error = residual - with_centroid_shift(torch.from_numpy(symbols).float(), by).numpy()
        return pricing.symbol_bits(symbols, rows, model.tables) + taken[0][3] * np.square(error)

    assert (costs(symbols) <= costs(symbols - np.sign(symbols)) + 1e-4).all()
    outwards = symbols + np.where(symbols == 0, np.sign(residual), np.sign(symbols)).astype(np.int32)
    # What is more than half a step from the next size is not asked whether that, which stands for less, is nearer.
    asked = np.abs(residual) - np.abs(symbols) < 0.5 - by
    worse = costs(symbols) > costs(outwards) + 1e-4
    assert not worse[asked].any() and asked.mean() > 0.8
    sent = len(coded.integers.residual_symbols)
    shown = dequantise_latents(model, coded.integers.y, rate)
    base = wiener.apply(
        base_picture(model, shown, rate, autocast=False).contiguous(), coded.integers.filter_symbols, index
    )
    u_hat = (
        with_centroid_shift(torch.from_numpy(coded.integers.residual_symbols)[None].float(), by)
        / rate["details.log_gain"].exp()
    )
    expected = base + network.details.synthesis(F.pad(u_hat, (0, 0, 0, 0, 0, 64 - sent)))
    expected = (expected[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(backend.shown(model, coded, index, (192, 192), False, 8) - expected).max() <= 1


@pytest.mark.parametrize("extreme", [-(2**31), 2**31 - 1])
def test_symbols_that_no_encoder_writes_are_no_trouble(model, extreme):
    coder = ConstantCoder(extreme)
    symbols, table_index = model.residual.code((255, 100), 16, EmptyLatents(), coder)
    assert symbols.shape == (64, 4, 6) and sum(coder.counts) == table_index.size
    assert SCALE_ROWS <= table_index.min() == table_index.max() < 2 * SCALE_ROWS


class EmptyLatents:
    """Latents that are all 0."""

    shape = (2, 3)
    symbols = (np.zeros((24, 1, 2), np.int32),)

    def residual_context(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((24, *self.shape), np.int64), np.zeros((48, *self.shape), np.int64)


class ConstantCoder:
    """A group coder all of whose shifts and symbols are one number."""

    def __init__(self, symbol: int):
        self.symbol, self.counts = symbol, []

    def code_band_shifts(self, group: int, table_index: np.ndarray) -> np.ndarray:
        return np.full(len(table_index), self.symbol, np.int32)

    def code_residual_group(self, group: int, table_index: np.ndarray) -> np.ndarray:
        self.counts.append(len(table_index))
        return np.full(len(table_index), self.symbol, np.int32)


def test_gray_pictures_pay_for_no_colour(model, photograph):
    image = photograph.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2)
    gray, colour = (backend.encode(model, image, backend.Options(220, gray=gray)) for gray in (True, False))
    assert (
        not np.delete(gray.integers.residual_symbols, np.s_[::3], 0).any()
        and colour.integers.residual_symbols[1::3].any()
    )
    shown = [backend.shown(model, coded, 220, (192, 192), True, 8) for coded in (gray, colour)]
    assert len(gray.streams[0]) < len(colour.streams[0])
    assert error(shown[0], image) < 1.02 * error(shown[1], image)


def test_a_config_of_impossible_details_is_told(network):
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    for wrong in ({"details": 24}, {"details_from": 200}, {"latents_until": 300}):
        config = backend.stored_config(network) | wrong
        with pytest.raises(WeightsError, match=next(iter(wrong))):
            backend.Model(Weights(Path("test"), "0" * 64, "x", config, tensors))


def test_how_many_are_sent_is_checked():
    counts = [residual.unpack_band_count(residual.pack_band_count(n, False))[0] for n in (0, 7, 16)]
    assert counts == [0, 7, 16]
    with pytest.raises(FormatError, match="bands of the residual layer"):
        residual.unpack_band_count(residual.pack_band_count(17, False))


def test_sizes_are_the_logarithms_that_training_sees():
    sizes = np.arange(LARGEST + 1)
    assert np.array_equal(residual.LOG_SIZES, np.rint(2**FRACTION_BITS * np.log2(1 + sizes)))


def test_integers_of_every_rate_from_those_of_some():
    rates = np.arange(256)
    table = np.stack([rates * 7 - 300, np.rint(1000 * np.exp(rates / 50.0)).astype(int), 0 * rates], 1)
    found = interpolate_rates(subsample_rates(table.astype(np.int32)))
    assert found.shape == (256, 3) and found.dtype == np.int64
    assert np.array_equal(found[::5], table[::5]) and np.array_equal(found[:, 0], table[:, 0])
    assert np.abs(found / np.maximum(table, 1) - 1)[:, 1].max() < 0.003
    assert np.array_equal(interpolate_rates(table), table)


@pytest.mark.parametrize("index", [120, 170])
def test_details_beside_a_base_in_bfloat16_cost_as_much(shipped, monkeypatch, index):
    grain = np.random.default_rng(0).normal(scale=20, size=(128, 192, 3))
    image = (data.astronaut()[:128, :192] + grain).clip(0, 255).astype(np.uint8)
    prices, streams = [], []
    for bf16 in (False, True):
        monkeypatch.setattr(shipped, "encodes_in_bf16", bf16)
        coded = backend.encode(shipped, image, backend.Options(index, lossless=False))
        shown = backend.shown(shipped, coded, index, image.shape[:2], False, 8)
        prices.append(rd_cost(coded, shown, image, index))
        streams.append(coded.streams)
    assert coded.integers.residual_symbols.any() and streams[0] != streams[1]
    assert prices[1] < 1.005 * prices[0]
