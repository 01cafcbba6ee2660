"""Details beside the latents: exact integers, both directions on odd sizes, and what they buy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends import details as details_backend
from latcodec.backends import hyperprior_context as backend
from latcodec.backends import search
from latcodec.backends.common import crc_of, every_rate, some_rates
from latcodec.backends.hyper import SCALE_ROWS, sigmas, soft
from latcodec.container import Payload
from latcodec.errors import DriftError, OptionError
from latcodec.models.details import BLOCK, GROUPS, RATE_FUNCTIONS, Details
from latcodec.models.hyperprior_context import Config, ContextHyperprior, loss
from latcodec.models.layers import GDN, logistic_bits, round_straight_through
from latcodec.models.steps import STEPS
from latcodec.train import export_hyperprior_context, start_details, widen
from latcodec.train.checkpoint import initialise
from latcodec.train.settings import choose_trained
from latcodec.train.start import fit_norms, start_from_klt
from latcodec.train.tables import logistic_tables
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config(
    (8, 12, 16), (0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3, details=64,
    detail_width=16,
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
    return network.eval()


def model_of(network: ContextHyperprior) -> backend.Model:
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    return backend.Model(Weights(Path("test"), "0" * 64, "x", backend.stored_config(network), tensors))


@pytest.fixture
def model(network) -> backend.Model:
    return model_of(network)


def payload(coded, index: int, image: np.ndarray) -> Payload:
    return Payload(
        backend_id=5, weights_id=b"0000", rate_index=index, width=image.shape[1], height=image.shape[0], gray=False,
        depth=8 * image.itemsize, integers_crc=coded.integers_crc, streams=coded.streams,
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


def test_rows_are_those_of_the_float_network(network, model, photograph, x):
    index = 200
    coded = backend.encode(model, photograph, backend.Options(index))
    symbols = torch.from_numpy(coded.detail_symbols)[None].float()
    with torch.no_grad():
        rate = network.at_rate(torch.tensor([index / 255]))
        y = network.analysis(x)
        heard = iter(symbols.chunk(GROUPS, 1))
        taken = []

        def quantise(residual: torch.Tensor) -> torch.Tensor:
            taken.append(residual)
            return residual.round() if len(taken) <= 2 * STEPS else next(heard)  # z and y, then details

        _, prices = network.transmit(y, network.hyper_analysis(y), rate, quantise, x=x, by_price=True)
    expected = torch.cat([sigma for _, _, sigma in prices[-GROUPS:]], 1).ravel().numpy()
    found = sigmas()[coded.detail_rows - SCALE_ROWS]
    assert np.abs(np.log(found / expected)).max() < 0.15  # rows lie 0.128 apart


@pytest.mark.parametrize("name", ["scale_offset", "seen_gain", "bias", "from_latents", "from_details", "to_scales"])
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
    latents = replace(backend.analyse(model, photograph), image=None)
    coded = backend.code(model, latents, backend.Options(255))
    assert not coded.detail_symbols.any()


def test_a_network_without_details_codes_as_if_there_were_none(network, photograph):
    plain = ContextHyperprior(replace(NARROW, details=0))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("details.")})
    coded = backend.encode(model_of(plain), photograph, backend.Options(90))
    assert coded.detail_symbols.shape == (0, 12, 12) and len(coded.detail_rows) == 0
    assert crc_of(np.zeros(0, np.int32)) == 0  # so a checksum says nothing of them


def test_a_search_counts_the_details(model, photograph):
    image = np.ascontiguousarray(photograph[40:104, 60:140])
    prices = []
    for effort in (0, 2):
        coded = backend.encode(model, image, backend.Options(200, effort=effort))
        prices.append(search.price(coded, backend.shown(model, coded, 200, (64, 80), False, 8), image, 200))
    assert prices[1] < prices[0]
    latents, x = backend.analyse(model, image), torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    found = []
    for model.details.first in (0, 256):
        transmit, _ = soft(model, 200)
        with torch.no_grad():
            found.append(transmit((latents.y[None], latents.z[None]), torch.round, x))
    assert found[0][1] > found[1][1] and not torch.equal(found[0][0], found[1][0])


def test_bands_join(model, photograph, monkeypatch):
    whole = backend.encode(model, photograph, backend.Options(220))
    decoded = backend.decode(model, payload(whole, 220, photograph))
    monkeypatch.setattr(details_backend, "BAND", 1)
    parts = backend.encode(model, photograph, backend.Options(220))
    assert np.abs(parts.detail_symbols - whole.detail_symbols).max() <= 1  # sums in another order
    again = backend.decode(model, payload(whole, 220, photograph))
    assert np.abs(again.astype(int) - decoded).max() <= 1


def test_details_begin_where_they_pay(network, photograph, monkeypatch):
    model = model_of(network)
    assert export_hyperprior_context.first_details(model, [photograph]) == 0  # a transform as poor as this one's
    monkeypatch.setattr(export_hyperprior_context, "WORTH", 0.35)
    first = export_hyperprior_context.first_details(model, [photograph])
    assert 0 < first < 255
    model.details.first = first
    below, above = (backend.encode(model, photograph, backend.Options(index)) for index in (first - 1, 255))
    assert below.detail_symbols.shape == (0, 12, 12) and above.detail_symbols.any()
    decoded = backend.decode(model, payload(below, first - 1, photograph))
    assert np.array_equal(decoded, backend.shown(model, below, first - 1, (192, 192), False, 8))


def test_integers_of_every_rate_from_those_of_some():
    rates = np.arange(256)
    table = np.stack([rates * 7 - 300, np.rint(1000 * np.exp(rates / 50.0)).astype(int), 0 * rates], 1)
    found = every_rate(some_rates(table.astype(np.int32)))
    assert found.shape == (256, 3) and found.dtype == np.int64
    assert np.array_equal(found[::5], table[::5]) and np.array_equal(found[:, 0], table[:, 0])
    assert np.abs(found / np.maximum(table, 1) - 1)[:, 1].max() < 0.003
    assert np.array_equal(every_rate(table), table)


def test_the_basis_is_orthonormal_and_holds_the_most(network, x):
    basis = network.details.basis
    assert torch.allclose(basis.T @ basis, torch.eye(64), atol=1e-4)
    details = Details(64, 24, 8, 3)
    with torch.no_grad():
        u = torch.randn(1, 64, 3, 2)
        assert torch.allclose(network.details.analysis(network.details.synthesis(u)), u, atol=1e-4)
        y = network.analysis(x)
        z, rate = network.hyper_analysis(y), network.at_rate(torch.ones(1))
        rest = x - network.transmit(y, z, rate, torch.round, by_price=True)[0]
        held = network.details.analysis(rest).square().sum() / rest.square().sum()
        assert held > 0.5 > 2 * details.analysis(rest).square().sum() / rest.square().sum()


def test_the_base_hears_of_the_details_that_are_sent(network, x, monkeypatch):
    """Bits and error of those that are sent depend on the base; those that are rounded to 0 change nothing."""
    with torch.no_grad():
        rate = network.at_rate(torch.ones(1))
        own = {name: rate[f"details.{name}"] for name in RATE_FUNCTIONS}
        y = network.analysis(x)
        base = network.transmit(y, network.hyper_analysis(y), rate, torch.round)[0]
        u = network.details.analysis(x - base)
        seen, first = torch.zeros_like(y), torch.zeros(1, 2 * y.shape[1], *y.shape[2:])
    u.requires_grad_()
    u_hat, prices = network.details.transmit(u, seen, first, own, round_straight_through)
    heard = torch.autograd.grad(u_hat.sum() + sum(logistic_bits(q, sigma).sum() for _, q, sigma in prices), u)[0]
    sent = torch.cat([q for _, q, _ in prices], 1) != 0
    assert torch.equal(heard != 0, sent) and 0 < sent.float().mean() < 1
    base.requires_grad_()
    monkeypatch.setattr(network, "synthesis", lambda *anything: base)
    _, prices = network.transmit(y, network.hyper_analysis(y), rate, round_straight_through, x=x)
    bits = sum(logistic_bits(q, sigma).sum() for _, q, sigma in prices[-GROUPS:])
    assert torch.autograd.grad(bits, base)[0].abs().max() > 0


def test_wrong_numbers_of_details_are_refused():
    for channels in (3, 3 * BLOCK**2 + GROUPS):
        with pytest.raises(ValueError, match="details"):
            Details(channels, 24, 8, 3)


def test_details_train_alone(network, x):
    trained = ContextHyperprior(NARROW)
    trained.load_state_dict(network.state_dict())
    choose_trained(trained, "details.")
    loss(trained, x, torch.tensor([0.9]))["loss"].backward()
    moved = {name for name, p in trained.named_parameters() if p.grad is not None}
    assert moved == {name for name, _ in trained.named_parameters() if name.startswith("details.")}
    with pytest.raises(OptionError, match="there are: .*g_a"):
        choose_trained(trained, "g_b")


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


def test_only_more_can_be_had(narrow):
    for other in ({"latent": 16}, {"context_width": 8}, {"details": 8}):
        with pytest.raises(OptionError):
            widen.widened(narrow, replace(narrow.config, **other))


def test_new_latents_take_error_away(narrow, x, monkeypatch):
    monkeypatch.setattr(widen, "TRAINED_STEPS", 30)
    wide = widen.widened(narrow, replace(narrow.config, latent=32)).requires_grad_(False)
    through = widen._through(wide)
    rate = wide.at_rate(torch.ones(1))
    before = (wide.synthesis(wide.analysis(x) * through, rate) - x).square().mean()
    widen.fit_new_latents(wide, 24, [x], say=lambda line: None)
    rate = wide.at_rate(torch.ones(1))
    after = (wide.synthesis(wide.analysis(x) * widen._through(wide), rate) - x).square().mean()
    assert after < 0.95 * before


def test_parameters_of_a_checkpoint_are_taken(network, tmp_path):
    torch.save({"codec": "hyperprior-context", "config": "{}", "ema": network.state_dict()}, tmp_path / "a.pt")
    other = ContextHyperprior(NARROW)
    taken, _ = initialise(other, "hyperprior-context", tmp_path / "a.pt", ("details.",))
    assert taken == sum(name.startswith("details.") for name in network.state_dict())
    assert torch.equal(other.details.basis, network.details.basis)
