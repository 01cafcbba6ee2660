"""Details beside the latents: exact integers, both directions on odd sizes, and what they buy."""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from latcodec import weights
from latcodec.backends.common import distortion, search
from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.checks import crc_of
from latcodec.backends.common.distortion import rd_cost
from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.common.mean_scale import MeanScaleRelaxedRD, sigmas
from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.common.rate_tables import interpolate_rates, subsample_rates
from latcodec.backends.common.sga import StochasticGumbelAnnealing
from latcodec.backends.hyperprior_context import base_rate as bases
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context import mode_decision as choice
from latcodec.backends.hyperprior_context import picture as picture_backend
from latcodec.backends.hyperprior_context import residual as details_backend
from latcodec.backends.hyperprior_context import residual_trial as details_look
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior, loss
from latcodec.backends.hyperprior_context.picture import base_picture, shown_latents
from latcodec.backends.hyperprior_context.reconstruction import near
from latcodec.backends.hyperprior_context.residual_network import (
    BLOCK,
    GROUPS,
    LARGEST,
    Details,
    bases_below,
    cosine_basis,
    groups_of,
)
from latcodec.container import Payload
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet
from latcodec.entropy.range_coder import RangeEncoder
from latcodec.errors import DriftError, FormatError, OptionError, WeightsError
from latcodec.nn.layers import GDN, ResidualBottleneck, logistic_bits, round_straight_through
from latcodec.train.checkpoint import initialise
from latcodec.train.export.tables import logistic_tables
from latcodec.train.init import residual as start_details
from latcodec.train.init import widen
from latcodec.train.init.klt import fit_norms, start_from_klt
from latcodec.train.settings import choose_trained
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config(
    widths=(8, 12, 16), blocks=(0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3,
    details=64, detail_width=16, details_from=100, latents_until=100, analysis_at_rate=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.ascontiguousarray(data.astronaut()[:192, 100:292])


@pytest.fixture(scope="module")
def x(photograph) -> torch.Tensor:
    return torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="module")
def network(x) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(NARROW)
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    start_details.fit(network, [x])
    with torch.no_grad():
        for last in (*network.corrections, *network.details.to_scales, *network.details.from_details):
            last.weight.normal_(std=0.05)
        for knots in (*network.look_gain, *network.look_bias, *network.branch_gain):
            knots.normal_(std=0.002)
        for block in (*network.g_a, *network.g_s):
            if isinstance(block, ResidualBottleneck):
                block.f[-1].weight.normal_(std=0.02)
    return network.eval()


def model_of(network: ContextHyperprior) -> backend.Model:
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    return backend.Model(Weights(Path("test"), "0" * 64, "x", backend.stored_config(network), tensors))


@pytest.fixture
def model(network) -> backend.Model:
    return model_of(network)


@pytest.fixture
def one_base(monkeypatch) -> None:
    """Latents at the rate of the file, or where the weights end it, whatever the picture."""
    monkeypatch.setattr(bases, "usual", lambda *anything: None)
    monkeypatch.setattr(bases, "worth_trying", lambda *anything: [])


def payload(coded, index: int, image: np.ndarray) -> Payload:
    return Payload(
        backend_id=5, weights_id=b"0000", rate_index=index, width=image.shape[1], height=image.shape[0], gray=False,
        depth=8 * image.itemsize, integers_crc=coded.integers_crc, streams=coded.streams,
        parameters=coded.parameters,
    )  # fmt: skip


def error(decoded: np.ndarray, image: np.ndarray) -> float:
    return float(np.square(decoded.astype(float) - image).mean())


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
    none = replace(coded, detail_symbols=np.zeros_like(coded.detail_symbols))
    without = error(backend.shown(model, none, 255, (192, 192), False, 8), photograph)
    assert np.count_nonzero(coded.detail_symbols) > 1000 and with_details < 0.5 * without


def test_rows_are_those_of_the_float_network(network, model, photograph, x, one_base, monkeypatch):
    index = 200
    monkeypatch.setattr(details_backend, "_best_shift", lambda *anything: 0)
    coded = backend.encode(model, photograph, backend.Options(index))
    sent = len(coded.detail_symbols)
    symbols = torch.from_numpy(np.pad(coded.detail_symbols, ((0, 64 - sent), (0, 0), (0, 0))))[None].float()
    with torch.no_grad():
        rate = network.at_rate(torch.tensor([index / 255]))
        y = network.analysis(x, rate)
        heard = iter(symbols.split(groups_of(64), 1))

        def quantise(residual: torch.Tensor) -> torch.Tensor:
            return next(heard)  # of details: z and y are rounded by price

        _, prices = network.transmit(y, network.hyper_analysis(y), rate, quantise, x=x, by_price=True)
    expected = torch.cat([sigma for _, _, sigma in prices[-GROUPS:]], 1)[:, :sent].ravel().numpy()
    found = sigmas()[coded.detail_rows - SCALE_ROWS]
    assert np.abs(np.log(found / expected)).max() < 0.15  # rows lie 0.128 apart


@pytest.mark.parametrize(
    "name",
    ["scale_offset", "bias", "base_scale_offset", "base_bias", "from_latents", "from_details", "to_scales"],
)
def test_a_platform_that_computes_something_else_is_told(network, photograph, name):
    model = model_of(network)
    coded = backend.encode(model, photograph, backend.Options(255))
    if name in details_backend.NETWORKS:
        net = model.details.nets[name][-1]
        net.layers = [replace(net.layers[0], bias=net.layers[0].bias * 1.2 + 2.0 ** (net.layers[0].shift + 10))]
    else:
        table = getattr(model.details.rates, name)
        model.details.rates = replace(model.details.rates, **{name: table + table // 10 + 400})
    with pytest.raises(DriftError):
        backend.decode(model, payload(coded, 255, photograph))


def test_the_checksum_covers_the_details(model, photograph, monkeypatch):
    coded = backend.encode(model, photograph, backend.Options(255))
    right = backend.decode_integers

    def wrong(*arguments):
        walked = right(*arguments)
        walked.detail_symbols.flat[5] += 1
        return walked

    monkeypatch.setattr(backend, "decode_integers", wrong)
    with pytest.raises(DriftError):
        backend.decode(model, payload(coded, 255, photograph))


def test_latents_without_a_picture_have_no_details(model, photograph):
    latents = replace(backend.analyse(model, photograph).at(100), image=None)
    coded = backend.code(model, latents, backend.Options(255))
    assert coded.detail_symbols.shape == (0, 24, 24)


def test_a_network_without_details_codes_as_if_there_were_none(network, photograph):
    plain = ContextHyperprior(replace(NARROW, details=0))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("details.")})
    coded = backend.encode(model_of(plain), photograph, backend.Options(255))
    assert coded.detail_symbols.shape == (0, 24, 24) and len(coded.detail_rows) == 0
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
        rd = MeanScaleRelaxedRD(model, backend.Rate(200, 100, sends))
        with torch.no_grad():
            found.append(rd.transmit((latents.y[None], latents.z[None]), torch.round, x))
    assert found[0][1] > found[1][1] and not torch.equal(found[0][0], found[1][0])


def test_bands_join(model, photograph, monkeypatch):
    whole = backend.encode(model, photograph, backend.Options(220))
    decoded = backend.decode(model, payload(whole, 220, photograph))
    monkeypatch.setattr(details_backend, "BAND", 1)
    parts = backend.encode(model, photograph, backend.Options(220))
    assert np.abs(parts.detail_symbols - whole.detail_symbols).max() <= 1  # sums in another order
    again = backend.decode(model, payload(whole, 220, photograph))
    assert np.abs(again.astype(int) - decoded).max() <= 1


def test_details_begin_at_one_rate_and_the_base_ends_there(network, model, photograph, one_base):
    below, first, above = (backend.encode(model, photograph, backend.Options(index)) for index in (99, 100, 255))
    assert below.detail_symbols.shape == (0, 24, 24) and first.detail_symbols.any()
    decoded = backend.decode(model, payload(below, 99, photograph))
    assert np.array_equal(decoded, backend.shown(model, below, 99, (192, 192), False, 8))
    assert np.array_equal(first.symbols, above.symbols) and not np.array_equal(first.symbols, below.symbols)
    rate = network.at_rate(torch.tensor([99, 100, 255]) / 255)
    for name, value in rate.items():
        varies = not torch.equal(value[1], value[2])
        constant = ("details.bias", "details.sent")  # the bias starts at 0
        assert varies == (name.startswith(("details.", "lift")) and name not in constant), name
    assert rate["details.sent"].flatten().tolist() == [0, 1, 1]


@pytest.mark.parametrize(("channels", "sixteenths"), [(0, 0), (3, 1), (4, 1), (5, 2), (33, 9), (64, 16)])
def test_frequencies_that_hold_nothing_are_not_sent(network, model, channels, sixteenths):
    u = torch.zeros(1, 64, 4, 6)
    u[:, :channels] = torch.randn(1, channels, 4, 6)
    residual = network.details.synthesis(u)
    found, _, take = details_backend.chooser(
        network.details, model.at_rate(model.rate(255)), residual, 255, model.tables
    )
    assert found == sixteenths
    rows = np.full(4 * 24, SCALE_ROWS + 40, np.uint16)
    assert (take(0, rows) != 0).any() == bool(channels)


def test_pictures_unlike_photographs_shift_the_rows(model, one_base, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    coded = backend.encode(model, noise, backend.Options(255))
    assert np.array_equal(backend.decode(model, payload(coded, 255, noise)),
                          backend.shown(model, coded, 255, (48, 64), False, 8))  # fmt: skip
    monkeypatch.setattr(details_backend, "_best_shift", lambda *anything: 0)
    unmoved = backend.encode(model, noise, backend.Options(255))
    assert len(coded.streams[0]) < 0.8 * len(unmoved.streams[0])


def test_the_shift_that_costs_least_is_found(model):
    prices = details_backend._prices(model.tables)
    sigma = sigmas()[35]
    wanted = np.random.default_rng(0).logistic(0, sigma * math.sqrt(3) / math.pi, 20_000).astype(np.float32)
    for said in (25, 35, 45):
        found = details_backend._best_shift(np.full(20_000, said, np.uint16), wanted, prices)
        assert abs(said + found - 35) <= 1
    assert details_backend._best_shift(np.full(5, 3, np.uint16), np.zeros(5, np.float32), prices) == 0


@pytest.mark.parametrize("sixteenths", [0, 1, 3, 4, 9, 16])
@pytest.mark.parametrize("shift", [0, -100, 100])
def test_any_part_of_them_decodes(model, photograph, monkeypatch, sixteenths, shift):
    monkeypatch.setattr(details_backend, "_worth_sending", lambda *anything: sixteenths)
    monkeypatch.setattr(details_backend, "_best_shift", lambda *anything: shift)
    image = np.ascontiguousarray(photograph[:70, :90])
    coded = backend.encode(model, image, backend.Options(230))
    assert coded.detail_symbols.shape == (4 * sixteenths, 10, 12) and coded.detail_rows.size == 480 * sixteenths
    decoded = backend.decode(model, payload(coded, 230, image))
    assert np.array_equal(decoded, backend.shown(model, coded, 230, (70, 90), False, 8))


def test_sparse_symbols_stand_for_what_is_nearer_to_zero(network):
    symbols = torch.tensor([-3.0, -1.0, 0.0, 1.0, 2.0], requires_grad=True)
    shown = near(symbols, 0.15)
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
    rate = model.at_rate(model.rate(index))
    by = rate["details.nearer"].item()
    residual, rows, symbols = (np.concatenate([one[part] for one in taken]) for part in range(3))
    assert np.array_equal(symbols, coded.detail_symbols.ravel()) and symbols.any()

    def costs(symbols):
        error = residual - near(torch.from_numpy(symbols).float(), by).numpy()
        return pricing.symbol_bits(symbols, rows, model.tables) + taken[0][3] * np.square(error)

    assert (costs(symbols) <= costs(symbols - np.sign(symbols)) + 1e-4).all()
    outwards = symbols + np.where(symbols == 0, np.sign(residual), np.sign(symbols)).astype(np.int32)
    # What is more than half a step from the next size is not asked whether that, which stands for less, is nearer.
    asked = np.abs(residual) - np.abs(symbols) < 0.5 - by
    worse = costs(symbols) > costs(outwards) + 1e-4
    assert not worse[asked].any() and asked.mean() > 0.8
    sent = len(coded.detail_symbols)
    shown = shown_latents(model, coded.symbols, coded.means, coded.rows, rate, (12, 12))
    base = wiener.apply(base_picture(model, shown, rate, autocast=False).contiguous(), coded.filter_symbols, index)
    u_hat = near(torch.from_numpy(coded.detail_symbols)[None].float(), by) / rate["details.log_gain"].exp()
    expected = base + network.details.synthesis(F.pad(u_hat, (0, 0, 0, 0, 0, 64 - sent)))
    expected = (expected[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(backend.shown(model, coded, index, (192, 192), False, 8) - expected).max() <= 1


@pytest.mark.parametrize("extreme", [-(2**31), 2**31 - 1])
def test_symbols_that_no_encoder_writes_are_no_trouble(model, extreme):
    shape, counts = (2, 3), []

    def take(group: int, rows: np.ndarray) -> np.ndarray:
        counts.append(len(rows))
        return np.full(len(rows), extreme, np.int32)

    seen, first = np.zeros((24, *shape), np.int64), np.zeros((48, *shape), np.int64)
    shifts = lambda group, rows: np.full(len(rows), extreme, np.int32)  # noqa: E731
    symbols, rows = model.details.walk(lambda: (seen, first), shape, seen, 255, 100, 16, shifts, take)
    assert symbols.shape == (64, 4, 6) and sum(counts) == rows.size
    assert SCALE_ROWS <= rows.min() == rows.max() < 2 * SCALE_ROWS


def test_gray_pictures_pay_for_no_colour(model, photograph):
    image = photograph.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2)
    gray, colour = (backend.encode(model, image, backend.Options(220, gray=gray)) for gray in (True, False))
    assert not np.delete(gray.detail_symbols, np.s_[::3], 0).any() and colour.detail_symbols[1::3].any()
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
    assert [details_backend.count_of(details_backend.counted(n)[0])[0] for n in (0, 7, 16)] == [0, 7, 16]
    with pytest.raises(FormatError, match="sixteenths"):
        details_backend.count_of(details_backend.counted(17)[0])


def test_sizes_are_the_logarithms_that_training_sees():
    sizes = np.arange(LARGEST + 1)
    assert np.array_equal(details_backend.SIZES, np.rint(2**FRACTION_BITS * np.log2(1 + sizes)))


def test_integers_of_every_rate_from_those_of_some():
    rates = np.arange(256)
    table = np.stack([rates * 7 - 300, np.rint(1000 * np.exp(rates / 50.0)).astype(int), 0 * rates], 1)
    found = interpolate_rates(subsample_rates(table.astype(np.int32)))
    assert found.shape == (256, 3) and found.dtype == np.int64
    assert np.array_equal(found[::5], table[::5]) and np.array_equal(found[:, 0], table[:, 0])
    assert np.abs(found / np.maximum(table, 1) - 1)[:, 1].max() < 0.003
    assert np.array_equal(interpolate_rates(table), table)


def test_the_basis_is_orthonormal_and_goes_from_low_to_high(x):
    basis = cosine_basis()
    assert torch.allclose(basis.T @ basis, torch.eye(192), atol=1e-5)
    details, every = Details(64, 24, 8, 3), Details(192, 24, 8, 3)
    u = every.analysis(x)
    assert torch.allclose(every.synthesis(u), x, atol=1e-5) and torch.equal(details.analysis(x), u[:, :64])
    assert torch.allclose(every.synthesis(u[:, :64]), details.synthesis(u[:, :64]), atol=1e-6)
    gray = u.square().mean((0, 2, 3))[::3]
    assert gray[0] > gray[1:9].sum() > gray[9:].sum()
    flat = every.analysis(torch.full((1, 3, 8, 8), 0.25))
    assert flat[0, 0] == pytest.approx(0.25 * math.sqrt(192)) and flat[0, 1:].abs().max() < 1e-6


def test_the_base_hears_of_the_details_that_are_sent(network, x, monkeypatch):
    """Bits and error of those that are sent depend on the base; those that are rounded to 0 change nothing."""
    with torch.no_grad():
        rate = network.at_rate(torch.ones(1))
        y = network.analysis(x, rate)
        base = network.transmit(y, network.hyper_analysis(y), rate, torch.round)[0]
        u = network.details.analysis(x - base)
        seen, first = torch.zeros_like(y), torch.zeros(1, 2 * y.shape[1], *y.shape[2:])
    u.requires_grad_()
    u_hat, prices = network.details.transmit(u, seen, first, rate, round_straight_through)
    heard = torch.autograd.grad(u_hat.sum() + sum(logistic_bits(q, sigma).sum() for _, q, sigma in prices), u)[0]
    sent = torch.cat([q for _, q, _ in prices], 1) != 0
    assert torch.equal(heard != 0, sent) and 0 < sent.float().mean() < 1
    base.requires_grad_()
    monkeypatch.setattr(network, "synthesis", lambda *anything: base)
    _, prices = network.transmit(y, network.hyper_analysis(y), rate, round_straight_through, x=x)
    bits = sum(logistic_bits(q, sigma).sum() for _, q, sigma in prices[-GROUPS:])
    assert torch.autograd.grad(bits, base)[0].abs().max() > 0


def test_wrong_numbers_of_details_are_refused():
    for channels in (0, 24, 3 * BLOCK**2 + 16):
        with pytest.raises(ValueError, match="details"):
            Details(channels, 24, 8, 3)


def test_rates_without_details_are_not_charged_for_them(network, x):
    with torch.no_grad():
        t = torch.tensor([90, 99, 100, 200]) / 255
        both = loss(network, x.repeat(4, 1, 1, 1), t, noise=False)
        network.details, kept = None, network.details
        base = loss(network, x.repeat(4, 1, 1, 1), t, noise=False)
        network.details = kept
    assert torch.equal(both["detail_bpp"] > 0, torch.tensor([False, False, True, True]))
    assert torch.allclose(both["mse"][:2], base["mse"][:2], rtol=1e-5)
    assert both["mse"][3] < 0.9 * base["mse"][2]


def test_details_train_alone(network, x):
    trained = ContextHyperprior(NARROW)
    trained.load_state_dict(network.state_dict())
    choose_trained(trained, "details.")
    loss(trained, x, torch.tensor([0.9]))["loss"].backward()
    moved = {name for name, p in trained.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in trained.named_parameters() if name.startswith("details.")}
    with pytest.raises(OptionError, match="there are: .*g_a"):
        choose_trained(trained, "g_b")


# Which rate the latents have.


def test_analysis_sees_the_picture_once_for_every_rate_that_is_asked_for(model, photograph, monkeypatch):
    seen, look = [], picture_backend.analyse_at
    monkeypatch.setattr(picture_backend, "analyse_at", lambda *given, **rate: seen.append(1) or look(*given, **rate))
    latents = backend.analyse(model, photograph)
    first, other = latents.at(0), latents.at(100)
    assert latents.at(0) is first and latents.at(100) is other and len(seen) == 2
    assert not torch.allclose(first.y, other.y, rtol=0.01)
    for index in (0, 30, 60):
        before = len(seen)
        coded = backend.code(model, latents, backend.Options(index))
        assert (coded.seconds["analysis"] > 0) == (len(seen) > before)
        again = backend.encode(model, photograph, backend.Options(index))
        assert coded.streams == again.streams
        assert 0 < again.seconds["analysis"] < sum(again.seconds.values())
    seen.clear()
    latents.at(100)
    assert seen, "latents of every rate were kept"


@pytest.mark.parametrize("index", [60, 130, 255])
@pytest.mark.parametrize("base", [0, 37, 60])
def test_details_beside_latents_of_any_lower_rate(model, photograph, index, base):
    image = np.ascontiguousarray(photograph[:70, :90])
    latents = backend.analyse(model, image)
    rate = model.rate(index, bytes((base,)))
    assert rate == backend.Rate(index, base, True)
    coded = backend._code(model, latents, backend.Options(index), 8.0, rate)
    assert coded.parameters == bytes((base,))
    decoded = backend.decode(model, payload(coded, index, image))
    assert np.array_equal(decoded, backend.shown(model, coded, index, (70, 90), False, 8))
    alone = backend._code(model, latents, backend.Options(base), 8.0, backend.Rate(base, base, False))
    assert np.array_equal(coded.symbols, alone.symbols) and alone.detail_symbols.size == 0
    assert coded.detail_symbols.size > 0


def test_rows_beside_other_latents_are_those_of_the_float_network(network, photograph, x, monkeypatch):
    monkeypatch.setattr(details_backend, "_best_shift", lambda *anything: 0)
    with torch.no_grad():
        for knots in (network.details.base_scale_offset, network.details.base_bias):
            knots.normal_(std=0.3)
    model, rate = model_of(network), backend.Rate(220, 64, True)
    coded = backend._code(model, backend.analyse(model, photograph), backend.Options(220), 8.0, rate)
    sent = len(coded.detail_symbols)
    symbols = torch.from_numpy(np.pad(coded.detail_symbols, ((0, 64 - sent), (0, 0), (0, 0))))[None].float()
    with torch.no_grad():
        functions = network.at_rate(torch.tensor([220 / 255]), torch.tensor([64 / 255]))
        y = network.analysis(x, functions)
        heard = iter(symbols.split(groups_of(64), 1))

        def quantise(residual: torch.Tensor) -> torch.Tensor:
            return next(heard)

        _, prices = network.transmit(y, network.hyper_analysis(y), functions, quantise, x=x, by_price=True)
        for knots in (network.details.base_scale_offset, network.details.base_bias):
            knots.zero_()
    expected = torch.cat([sigma for _, _, sigma in prices[-GROUPS:]], 1)[:, :sent].ravel().numpy()
    found = sigmas()[coded.detail_rows - SCALE_ROWS]
    assert np.abs(np.log(found / expected)).max() < 0.15


def test_what_a_file_says_of_its_base_is_checked(network, model, photograph):
    for wrong in (bytes((101,)), b"", b"12", bytes(3)):
        with pytest.raises(FormatError, match="parameters"):
            model.rate(100, wrong)
    coded = backend.encode(model, photograph[:32, :32], backend.Options(50))
    file = payload(coded, 50, photograph[:32, :32])
    with pytest.raises(FormatError, match="parameters"):
        backend.decode(model, replace(file, parameters=b"3"))
    plain = ContextHyperprior(replace(NARROW, details=0))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("details.")})
    with pytest.raises(FormatError, match="parameters"):
        model_of(plain).rate(100, bytes((50,)))
    for index in (0, 99, 100, 255):
        assert model.parameters(model.rate(index)) is None
    assert model.rate(100) == backend.Rate(100, 100, True) and model.rate(99) == backend.Rate(99, 99, False)


@pytest.mark.parametrize("index", [130, 240])
def test_the_cheapest_base_is_taken(model, photograph, monkeypatch, index):
    image = np.ascontiguousarray(photograph[:64, :96])
    monkeypatch.setattr(bases, "worth_trying", lambda *anything: [0, 60, 100, 120])
    found = backend.encode(model, image, backend.Options(index))
    least = rd_cost(found, backend.shown(model, found, index, (64, 96), False, 8), image, index)
    usual = bases.usual(index, False, lambda: choice.sharpness(model, image))
    for base in (usual, 0, 60, 100, 120):
        parameters = None if base is None else bytes((base,))
        rate = model.rate(index, parameters)
        coded = backend._code(
            model, backend.analyse(model, image), backend.Options(index), model.step_error_bits(), rate
        )
        assert rd_cost(coded, backend.shown(model, coded, index, (64, 96), False, 8), image, index) >= least
        # The cheapest need not be the one that is coded first, nor the last.
        with monkeypatch.context() as patched:
            patched.setattr(
                distortion, "rd_cost", lambda coded, *_, wanted=coded.parameters: coded.parameters != wanted
            )
            taken = backend.encode(model, image, backend.Options(index))
        assert taken.parameters == coded.parameters and taken.streams == coded.streams


def test_small_files_are_searched_at_their_own_rate():
    assert [bases.searched(110, bits) for bits in (15_999, 16_000)] == [110, 98]


def test_the_usual_base_of_photographs():
    indices = (0, 155, 169, 170, 190, 230, 231, 255)
    assert [bases.usual(index, False, lambda: 1.0) for index in indices] == [None] * 3 + [110] * 5
    assert [bases.usual(index, False, lambda: 0.0) for index in indices] == [None] * 8
    assert [bases.usual(index, True, lambda: 0.0) for index in indices] == [None] * 3 + [140] * 5
    # The sharper, the sooner, and the lower.
    found = ((0.038, 170, 110), (0.0255, 188, 110), (0.0245, 189, 140), (0.01, 205, 140), (0.0026, 229, 140))
    for sharpness, from_index, base in (*found, (0.0024, 256, None)):
        some = [bases.usual(index, False, lambda share=sharpness: share) for index in range(256)]
        assert some == [None] * from_index + [base] * (256 - from_index)


def test_sharp_photographs_have_latents_of_a_lower_rate(model, photograph, monkeypatch):
    from skimage.filters import gaussian

    tried, code = [], backend._code
    monkeypatch.setattr(backend, "_code", lambda *given: tried.append(given[-1].base) or code(*given))
    monkeypatch.setattr(bases, "LOWEST_BASE", 80)
    smooth = (255 * gaussian(photograph, 4, channel_axis=2)).astype(np.uint8)
    sharp = np.random.default_rng(0).integers(0, 256, photograph.shape).astype(np.uint8)
    monkeypatch.setattr(bases, "worth_trying", lambda *anything: [])
    found = [backend.encode(model, image, backend.Options(190)) for image in (smooth, sharp)]
    assert tried == [100, 80] and [one.parameters for one in found] == [None, bytes((80,))]
    assert choice.sharpness(model, smooth) < 0.001 < 0.3 < choice.sharpness(model, sharp)
    # Of 16 bits, and smaller than what is padded to, it is that of 8 bits.
    small = sharp[:9, :21]
    assert choice.sharpness(model, small.astype(np.uint16) * 257) == choice.sharpness(model, small) > 0


def test_what_looks_drawn(photograph):
    page = np.full((64, 64, 3), 255, np.uint8)
    page[::9] = 0
    assert bases.drawn(page) and bases.drawn(page.astype(np.uint16)) and not bases.drawn(photograph)
    assert not bases.drawn(page[:, :1])


def test_other_bases_are_tried_where_a_picture_is_unlike_photographs():
    assert bases.worth_trying(120, False, 1.0) == []
    assert bases.worth_trying(120, False, 40.0) == [60, 100]
    assert bases.worth_trying(80, True, 1.0) == [60] and bases.worth_trying(20, True, 1.0) == []
    for effort, lower in ((1, []), (3, []), (4, [60, 100]), (9, [60, 100])):
        assert bases.worth_trying(120, False, 1.0, effort) == lower
        assert bases.worth_trying(169, False, 1.0, effort) == lower
        for index in (170, 190, 240):
            assert bases.worth_trying(index, False, 1.0, effort) == [*lower, 140, None]
    assert bases.worth_trying(190, True, 1.0) == [60, 100] and bases.worth_trying(190, False, 1.0) == []


def test_a_search_is_at_a_lower_base_and_in_time(model, photograph, monkeypatch):
    image, seen = np.ascontiguousarray(photograph[:64, :96]), []

    def optimise(sga, latents, deadline, progress) -> tuple:
        seen.append((sga.rate_index, deadline - time.perf_counter()))
        return latents

    monkeypatch.setattr(StochasticGumbelAnnealing, "optimise", optimise)
    monkeypatch.setattr(bases, "worth_trying", lambda *anything: [])
    monkeypatch.setattr(bases, "SEARCHED_BITS", 0)
    priced, plain_rd_cost = [], distortion.rd_cost
    monkeypatch.setattr(
        distortion, "rd_cost", lambda coded, *rest: priced.append(coded.parameters) or plain_rd_cost(coded, *rest)
    )
    coded = backend.encode(model, image, backend.Options(80, effort=3, max_seconds=5.0))
    assert seen[0][0] == 80 and 0 < seen[0][1] < 5.0 and "search" in coded.seconds
    lower = bytes((72,))
    assert priced == [lower, None, *[lower] * len(search.SEARCHED_MULTIPLIERS)]
    backend.encode(model, image, backend.Options(80, effort=3, max_seconds=1e-6))
    assert seen[1][1] < 0.1
    assert [bases.searched(base, 20_000) for base in (0, 29, 30, 60, 110, 155)] == [0, 29, 27, 54, 98, 138]
    # Where the cheapest of plain files has latents of a lower rate, a search is at that of the file all the same.
    seen.clear()
    priced.clear()
    monkeypatch.setattr(bases, "usual", lambda *anything: bases.LOWER_BASE)
    backend.encode(model, image, backend.Options(190, effort=3))
    assert priced == [None, bytes((140,)), *[None] * len(search.SEARCHED_MULTIPLIERS)] and seen[0][0] == 190
    priced.clear()
    for index, base in ((230, None), (231, bytes((140,)))):
        backend.encode(model, image, backend.Options(index, effort=3))
        assert priced == [*dict.fromkeys((base, bytes((140,)))), *[base] * len(search.SEARCHED_MULTIPLIERS)]
        priced.clear()
    monkeypatch.setattr(bases, "usual", lambda *anything: 60)
    monkeypatch.setattr(bases, "drawn", lambda image: True)
    backend.encode(model, image, backend.Options(190, effort=3))
    assert set(priced[-len(search.SEARCHED_MULTIPLIERS) :]) == {bytes((60,))}


def test_verification_runs_no_network_twice(model, photograph, monkeypatch):
    image = np.ascontiguousarray(photograph[:64, :96])
    calls, run = [], type(model.hyper).__call__
    monkeypatch.setattr(type(model.hyper), "__call__", lambda net, x: calls.append(net) or run(net, x))
    monkeypatch.setattr(bases, "worth_trying", lambda *anything: [])
    unverified = backend.encode(model, image, backend.Options(200, verify=False))
    alone = len(calls)
    again = backend.encode(model, image, backend.Options(200))
    assert len(calls) == 2 * alone > 0 and again.streams == unverified.streams and "verify" in again.seconds
    assert again.replay is unverified.replay is None
    coded = backend._code(model, backend.analyse(model, image), backend.Options(200), 8.0, model.rate(200))
    calls.clear()
    assert backend._verify(model, coded, 200, (4, 6)) and backend._verify(model, coded, 200, (4, 6)) and not calls


def test_verification_notices_another_stream(model, photograph, monkeypatch):
    image, finish = np.ascontiguousarray(photograph[:64, :96]), RangeEncoder.finish
    for place in (3, 40, -5):

        def damaged(encoder: RangeEncoder, place: int = place) -> bytes:
            stream = bytearray(finish(encoder))
            stream[place] ^= 16
            return bytes(stream)

        with monkeypatch.context() as patched, pytest.raises((DriftError, FormatError)):
            patched.setattr(RangeEncoder, "finish", damaged)
            backend.encode(model, image, backend.Options(200))


def test_verification_notices_another_rate(model, photograph):
    image = np.ascontiguousarray(photograph[:64, :96])
    coded = backend._code(model, backend.analyse(model, image), backend.Options(200), 8.0, model.rate(200))
    assert backend._verify(model, coded, 200, (4, 6))
    for index, parameters, shape in ((199, None, (4, 6)), (200, bytes((99,)), (4, 6)), (200, None, (6, 4))):
        with pytest.raises((DriftError, FormatError)):
            backend._verify(model, replace(coded, parameters=parameters), index, shape)


PLACES = ["hyper", "from_seen", "from_first", "corrections", "z_from_seen", "z_corrections"]
PLACES += [f"details.{name}" for name in details_backend.NETWORKS]


@pytest.mark.parametrize("name", PLACES)
def test_verification_notices_other_networks(network, photograph, monkeypatch, name):
    image, model = np.ascontiguousarray(photograph[:64, :96]), model_of(network)
    verify = backend._verify

    def drifted(net: IntegerNet) -> IntegerNet:
        first, *others = net.layers
        return IntegerNet([replace(first, bias=first.bias + 2.0 ** (first.shift + 11)), *others])

    def of_others(model: backend.Model, *rest) -> bool:
        if name == "hyper":
            monkeypatch.setattr(model, "hyper", drifted(model.hyper))
        else:
            nets, which = (model.details.nets if name.startswith("details") else model.contexts), name.split(".")[-1]
            monkeypatch.setitem(nets, which, [drifted(net) for net in nets[which]])
        return verify(model, *rest)

    monkeypatch.setattr(backend, "_verify", of_others)
    with pytest.raises((DriftError, FormatError)):
        backend.encode(model, image, backend.Options(200))


def test_details_alone_are_trained_beside_all_bases(network, x):
    torch.manual_seed(0)
    t = torch.rand(4000) * 0.8 + 0.2
    base = bases_below(t, 0.6)
    assert (base <= t).all() and base.min() > 0 and 0.7 < base[t > 0.9].max() < 0.75
    assert all(((base - index / 255).abs() < 0.02)[t > 0.9].any() for index in (60, 100, 140, 180))
    trained, asked = ContextHyperprior(NARROW), []
    trained.load_state_dict(network.state_dict())
    at_rate = trained.at_rate
    trained.at_rate = lambda t, base=None: asked.append(base) or at_rate(t, base)
    for only, noise in ((None, True), ("details.", False), ("details.", True)):
        trained.requires_grad_(True)
        choose_trained(trained, only)
        loss(trained, x, torch.tensor([0.9]), noise=noise)
    assert asked[:2] == [None, None] and 0 < asked[2] < 0.75


# More latents.


@pytest.fixture(scope="module")
def narrow(x) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(replace(NARROW, blocks=(0, 0, 0), details=0))
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    with torch.no_grad():
        for last in (*network.corrections, *network.z_corrections):
            last.weight.normal_(std=0.1)
        for knots in (*network.stage_gain, *network.stage_bias):
            knots.normal_(std=0.05)
        for knots in (*network.look_gain, *network.look_bias):
            knots.normal_(std=0.005)
        for norm in (module for module in network.modules() if isinstance(module, GDN)):
            norm.gamma.add_(0.1 * torch.rand(norm.gamma.shape))
    fit_norms(network, loss, x, (0.0, 1.0))
    return network.eval()


def test_a_wider_network_does_what_the_narrow_one_did(narrow, x):
    wide = widen.widened(narrow, replace(narrow.config, latent=32, blocks=(0, 1, 1)))
    with torch.no_grad():
        for t in (0.1, 0.9):
            before, after = (net(x, torch.tensor([t]), noise=False) for net in (narrow, wide))
            assert torch.allclose(before["x_hat"], after["x_hat"], atol=1e-4)
            assert after["z_bits"] == pytest.approx(before["z_bits"].item(), rel=1e-3)


def test_blocks_and_contexts_grow_beside_those_there_are(narrow, x):
    torch.manual_seed(2)
    first = widen.widened(narrow, replace(narrow.config, blocks=(0, 1, 1)))
    with torch.no_grad():
        for block in (*first.g_a, *first.g_s):
            if isinstance(block, ResidualBottleneck):
                block.f[-1].weight.normal_(std=0.05)
        for knots in first.branch_gain:
            knots.normal_(std=0.05)
    grown = widen.widened(first, replace(first.config, blocks=(1, 1, 3), context_width=32))
    assert [type(layer).__name__ for layer in grown.g_a].count("ResidualBottleneck") == 5
    t = torch.tensor([0.4])
    with torch.no_grad():
        before, after = (net(x, t, noise=False) for net in (first, grown))
        assert torch.allclose(before["x_hat"], after["x_hat"], atol=1e-4)
        assert torch.allclose(before["y_bits"], after["y_bits"], rtol=1e-4)
        grown.corrections[0].weight[:, 16:].normal_(std=0.1)  # the new ones are there, and not yet heard
        assert not torch.allclose(before["y_bits"], grown(x, t, noise=False)["y_bits"], rtol=1e-4)


def test_only_more_can_be_had(narrow):
    for other in ({"latent": 16}, {"context_width": 8}, {"details": 16}, {"hyper_width": 24}):
        with pytest.raises(OptionError):
            widen.widened(narrow, replace(narrow.config, **other))


def test_new_latents_take_error_away(narrow, x, monkeypatch):
    monkeypatch.setattr(widen, "TRAINED_STEPS", 30)
    wide = widen.widened(narrow, replace(narrow.config, latent=32)).requires_grad_(False)
    through = widen._through(wide)
    rate = wide.at_rate(torch.ones(1))
    before = (wide.synthesis(wide.analysis(x, rate) * through, rate) - x).square().mean()
    widen.fit_new_latents(wide, 24, [x], say=lambda line: None)
    rate = wide.at_rate(torch.ones(1))
    after = (wide.synthesis(wide.analysis(x, rate) * widen._through(wide), rate) - x).square().mean()
    assert after < 0.95 * before


def test_parameters_of_a_checkpoint_are_taken(network, tmp_path):
    torch.save({"codec": "hyperprior-context", "config": "{}", "ema": network.state_dict()}, tmp_path / "a.pt")
    other = ContextHyperprior(NARROW)
    taken, _ = initialise(other, "hyperprior-context", tmp_path / "a.pt", ("details.",))
    assert taken == sum(name.startswith("details.") for name in network.state_dict())
    assert torch.equal(other.details.from_first.weight, network.details.from_first.weight)


@pytest.fixture(scope="module")
def shipped() -> backend.Model:
    return backend.Model(weights.load("hyperprior-context"))


def unlike_photographs(kind: str) -> np.ndarray:
    """Smooth false colours, uint8 [512, 512, 3]: they hold no high frequencies."""
    import matplotlib
    from scipy.ndimage import gaussian_filter

    down, across = np.mgrid[:512, :512]
    waves = np.sin(across / 17.0) + np.sin(down / 11.0) + np.sin((across + down) / 19.0)
    gray = waves if kind == "waves" else gaussian_filter(np.random.default_rng(0).normal(size=(512, 512)), 8)
    gray = (gray - gray.min()) / np.ptp(gray)
    return (255 * matplotlib.colormaps["hsv" if kind == "waves" else kind](gray)[..., :3]).astype(np.uint8)


@pytest.mark.parametrize("kind", ["photograph", "smooth", "noise", "jet", "hsv", "waves"])
@pytest.mark.parametrize("index", [88, 110])
def test_a_few_tiles_tell_whether_details_are_sent(kind, index, shipped, monkeypatch):
    """What is not looked for would not have been sent: the same bytes."""
    from skimage.filters import gaussian

    image = data.astronaut()
    if kind == "smooth":
        image = (255 * gaussian(image, 2, channel_axis=2)).astype(np.uint8)
    elif kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    elif kind != "photograph":
        image = unlike_photographs(kind)
    looks, chooser = [], details_backend.chooser
    monkeypatch.setattr(wiener, "fit", lambda *given: wiener.none())
    monkeypatch.setattr(details_backend, "chooser", lambda *given: looks.append(1) or chooser(*given))
    latents, rate = backend.analyse(shipped, image), shipped.rate(index)
    quick = backend._code(shipped, latents, backend.Options(index), 8.0, rate)
    assert len(looks) == (kind not in ("photograph", "smooth"))
    monkeypatch.setattr(choice, "details_can_pay", lambda *given: True)
    assert backend._code(shipped, latents, backend.Options(index), 8.0, rate).streams == quick.streams
    assert len(looks) == 1 + (kind not in ("photograph", "smooth"))
    assert quick.detail_symbols.any() == (kind not in ("photograph", "smooth"))


@pytest.mark.parametrize("where", ["caption", "date", "frame", "corner"])
def test_details_at_a_border_are_seen(where, shipped):
    image = data.astronaut()[:, :500].copy()
    dice = np.random.default_rng(0)
    if where == "caption":
        image[-47:] = 255 * dice.integers(0, 2, (47, 500, 1))
    elif where == "date":
        image[-30:-10, -130:-10] = 255 * dice.integers(0, 2, (20, 120, 1))
    elif where == "frame":
        inner = image[16:-16, 16:-16].copy()
        image[:] = 255 * dice.integers(0, 2, (512, 500, 1))
        image[16:-16, 16:-16] = inner
    else:
        image[:60, :60] = dice.integers(0, 256, (60, 60, 3))
    assert not bases.drawn(image)
    asked, look = [], choice.details_can_pay
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(choice, "details_can_pay", lambda *given: asked.append(look(*given)) or asked[-1])
        latents, rate = backend.analyse(shipped, image), shipped.rate(120)
        coded = backend._code(shipped, latents, backend.Options(120), 8.0, rate)
    assert asked == [True] and coded.detail_symbols.any()


def test_the_busiest_tiles_lie_inside_whatever_the_size(shipped):
    x = torch.full((1, 3, 464, 592), 0.5)
    x[..., -20:, -20:] = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    busiest = details_look.busiest(shipped.network.details, x, 64)
    assert len(busiest) == 8 and busiest[0] == (464 - 64, 592 - 64)
    assert all(0 <= top <= 400 and 0 <= left <= 528 for top, left in busiest)


@pytest.mark.parametrize(
    ("first", "later", "found"), [(9.0, 0.0, 1), (0.2, 9.0, 1), (0.7, 0.0, 2), (0.7, 0.7, 3), (0.7, 9.0, 2)]
)
def test_tiles_are_looked_at_until_it_is_clear(shipped, monkeypatch, first, later, found):
    """first, later: what tiles save of a third of what is needed; found: batches of tiles that are asked for."""
    functions, asked = shipped.at_rate(shipped.rate(120)), []
    layer, pixels = shipped.network.details, 2**18
    needed = details_look.SAVED_THERE * details_look.ZERO_BITS * pixels / 64 * (layer.channels // 16)
    saved = iter([first, later, later])
    of_tiles = lambda *given: torch.eye(16)[3] * next(saved) * needed / 3  # noqa: E731
    monkeypatch.setattr(details_look, "saved_by_sixteenths", of_tiles)
    tiles = (asked.append(n) or torch.zeros(2, 3, 64, 64) for n in range(3))
    enough = details_look.enough_saved(layer, functions, tiles, 6, 120, pixels)
    assert len(asked) == found and enough == (first > 3 or (later > 3 and found > 1))


def test_of_a_few_tiles_some_tell_little(shipped):
    assert not details_look.busiest(shipped.network.details, torch.rand(1, 3, 384, 384), 64)
    assert len(details_look.busiest(shipped.network.details, torch.rand(1, 3, 512, 304), 64)) == 4


def test_a_tile_is_synthesised_as_in_the_whole_picture(shipped, monkeypatch):
    """Inside, and at the borders, where the decoder pads."""
    image = data.astronaut()[:, :500]
    x, y = to_tensor(image, torch.device("cpu")), backend.analyse(shipped, image).at(120).y[None]
    functions, taken = shipped.at_rate(shipped.rate(120)), []
    monkeypatch.setattr(shipped, "encodes_in_bf16", False)
    places = [(0, 0), (0, 192), (192, 192), (448, 448), (256, 448), (448, 0)]
    monkeypatch.setattr(details_look, "busiest", lambda *given: places)
    monkeypatch.setattr(details_look, "enough_saved", lambda *given: taken.extend(given[2]))
    choice.details_can_pay(shipped, y, x, functions, 120)
    with torch.inference_mode():
        whole = x - shipped.network.synthesis(y, functions)
    for tile, (top, left) in zip(torch.cat(taken), places, strict=True):
        off = (tile - whole[0, :, top : top + 64, left : left + 64]).abs()
        assert off[:, 4:-4, 4:-4].max() < 0.02 and off.mean() < 0.002  # a latent on all sides is not all that is seen


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
    assert coded.detail_symbols.any() and streams[0] != streams[1]
    assert prices[1] < 1.005 * prices[0]


def test_beside_other_latents_and_in_drawings_details_are_always_looked_for(model, photograph, monkeypatch):
    monkeypatch.setattr(choice, "details_can_pay", lambda *given: pytest.fail("asked"))
    latents = backend.analyse(model, photograph)
    backend._code(model, latents, backend.Options(150), 60.0, model.rate(150))  # latents end at 100
    backend._code(model, latents, backend.Options(90), 60.0, model.rate(90, bytes((80,))))
    backend._code(model, latents, backend.Options(175), 60.0, model.rate(175))
    flat = np.full_like(photograph, 80)
    backend._code(model, backend.analyse(model, flat), backend.Options(100), 60.0, model.rate(100))
