"""The float network of the residual layer: its basis, and what training sees of it."""

import math

import pytest
import torch
from residual_networks import NARROW

from latcodec.backends.hyperprior_context.network import AfterSynthesis, ContextHyperprior, loss
from latcodec.backends.hyperprior_context.residual_network import (
    BLOCK,
    GROUPS,
    ResidualLayer,
    cosine_basis,
    sample_bases,
)
from latcodec.errors import OptionError
from latcodec.nn.layers import logistic_bits, round_straight_through
from latcodec.train.init.source import initialise, read_source
from latcodec.train.settings import choose_trained

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_basis_is_orthonormal_and_goes_from_low_to_high(x):
    basis = cosine_basis()
    assert torch.allclose(basis.T @ basis, torch.eye(192), atol=1e-5)
    details, every = ResidualLayer(64, 24, 8, 3), ResidualLayer(192, 24, 8, 3)
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
    _, prices = network.transmit(y, network.hyper_analysis(y), rate, round_straight_through, after=AfterSynthesis(x))
    bits = sum(logistic_bits(q, sigma).sum() for _, q, sigma in prices[-GROUPS:])
    assert torch.autograd.grad(bits, base)[0].abs().max() > 0


def test_wrong_numbers_of_details_are_refused():
    for channels in (0, 24, 3 * BLOCK**2 + 16):
        with pytest.raises(ValueError, match="details"):
            ResidualLayer(channels, 24, 8, 3)


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


def test_details_alone_are_trained_beside_all_bases(network, x):
    torch.manual_seed(0)
    t = torch.rand(4000) * 0.8 + 0.2
    base = sample_bases(t, 0.6)
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


def test_parameters_of_a_checkpoint_are_taken(network, tmp_path):
    torch.save({"codec": "hyperprior-context", "config": "{}", "ema": network.state_dict()}, tmp_path / "a.pt")
    other = ContextHyperprior(NARROW)
    taken, _ = initialise(other, "hyperprior-context", read_source(tmp_path / "a.pt"), ("details.",))
    assert taken == sum(name.startswith("details.") for name in network.state_dict())
    assert torch.equal(other.details.from_first.weight, network.details.from_first.weight)
