"""The ladder network: the product of Gaussians, its KL, shapes, gradients and repeatability."""

import math

import pytest
import torch

from latcodec.backends.pln.network import Config, Ladder, gaussian_product, loss, posterior
from latcodec.entropy.integer_net import quantise
from latcodec.nn.layers import distortion_weights
from latcodec.train.init.klt import start_from_klt

SMALL = {"widths": (8, 12, 16), "latent": 24, "hyper_width": 16, "hyper_latent": 8}


def _model(**options) -> Ladder:
    torch.manual_seed(0)
    model = Ladder(Config(**SMALL, **options))
    model.start_from_latent_std(start_from_klt(model.g_a, model.g_s, _picture() - 0.5))
    return model


def _picture(count: int = 2, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand((count, 3, side // 8, side // 8), generator=generator)
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")


def test_product_of_gaussians_is_the_right_one():
    mean, sigma = gaussian_product(*(torch.tensor(v, dtype=torch.float64) for v in (3.0, 0.1, 0.0, 1.0)))
    assert mean.item() == pytest.approx(3 / 1.01, abs=1e-12)  # 2.970; the thesis' swapped weights give 0.0297
    assert sigma.item() == pytest.approx(math.sqrt(0.01 / 1.01), abs=1e-12)


@pytest.mark.parametrize("nats", [1e-3, 0.05, 0.7, 5.0])
def test_posterior_is_the_product_and_its_kl(nats):
    evidence, log_sigma, prior_mean = (torch.tensor(v, dtype=torch.float64) for v in (1.7, -0.4, 0.6))
    nats = torch.tensor(nats, dtype=torch.float64)
    prior_sigma = log_sigma.exp() * torch.expm1(2 * nats).sqrt()
    mean, sigma, kl = posterior(evidence, log_sigma, prior_mean, nats)
    expected_mean, expected_sigma = gaussian_product(evidence, log_sigma.exp(), prior_mean, prior_sigma)
    assert mean.item() == pytest.approx(expected_mean.item(), rel=1e-9)
    assert sigma.item() == pytest.approx(expected_sigma.item(), rel=1e-6)
    q, p = (torch.distributions.Normal(m, s) for m, s in ((expected_mean, expected_sigma), (prior_mean, prior_sigma)))
    assert kl.item() == pytest.approx(torch.distributions.kl_divergence(q, p).item(), rel=1e-6)


def test_expected_kl_of_a_calibrated_source_is_the_allocation():
    nats = torch.tensor(0.8)
    evidence = torch.randn(200_000, generator=torch.Generator().manual_seed(2)) * torch.exp(nats)
    *_, kl = posterior(evidence, torch.zeros(()), torch.zeros(()), nats)
    assert kl.mean().item() == pytest.approx(nats.item(), rel=0.01)


def test_shapes_and_both_ends_of_the_rates():
    model = _model()
    x = _picture(2)
    with torch.no_grad():
        out = loss(model, x, torch.tensor([0.0, 1.0]), noise=False)
        direct = model(x, torch.tensor([0.0, 1.0]))
    assert direct["x_hat"].shape == x.shape
    assert {"loss", "bpp", "mse", "lagrangian", "z_bpp"} <= set(out)
    assert all(torch.isfinite(v).all() for v in out.values())
    assert out["bpp"].shape == (2,) and out["bpp"][1] > 2 * out["bpp"][0]
    assert out["mse"][1] < out["mse"][0]
    assert (out["z_bpp"] < out["bpp"]).all()


@pytest.mark.parametrize("options", [{}, {"likelihood": "laplace"}, {"gamma": True}])
def test_gradient_reaches_everything(options):
    model = _model(**options)
    progress = torch.tensor(0.005)
    out = loss(model, _picture(4), torch.linspace(0, 1, 4), progress=progress)
    out["loss"].backward()
    for name, parameter in model.named_parameters():
        if name == "y_log_std":
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("noise", [True, False])
def test_no_nan_under_bf16_autocast(noise):
    model = _model()
    out = loss(model, _picture(4), torch.linspace(0, 1, 4), autocast=True, noise=noise)
    assert all(torch.isfinite(v).all() for v in out.values())
    out["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_evaluation_repeats_and_training_samples():
    model = _model()
    x, t = _picture(), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        first, second = (loss(model, x, t, noise=False)["mse"] for _ in range(2))
        drawn, again = (loss(model, x, t)["mse"] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(drawn, again)
    assert torch.allclose(first, drawn, rtol=0.2)


def test_sizes_beyond_the_fixed_noise_are_evaluated():
    model = _model()
    with torch.no_grad():
        out = loss(model, torch.rand(1, 3, 64, 16 * 33 + 48), torch.tensor([0.5]), noise=False)
    assert torch.isfinite(out["loss"])


def test_warmup_weighs_the_kl_by_half_at_first_and_fully_later():
    model = _model()
    x, t = _picture(), torch.tensor([0.5, 0.5])
    out = [
        loss(model, x, t, noise=False, progress=None if p is None else torch.tensor(p)) for p in (0.0, 0.01, 1.0, None)
    ]
    losses = [o["loss"].item() for o in out]
    assert losses[0] < losses[1] == losses[2] == losses[3]


def test_learned_gamma_ends_at_the_plain_objective():
    plain, learned = _model(), _model(gamma=True)
    learned.load_state_dict(plain.state_dict(), strict=False)
    x, t = _picture(), torch.tensor([0.5, 0.5])
    with torch.no_grad():
        above = loss(learned, x, t, noise=False)["loss"]
        learned.log_gamma.fill_(-1.0)
        below = loss(learned, x, t, noise=False)["loss"]
        assert torch.allclose(below, loss(plain, x, t, noise=False)["loss"])
    assert not torch.allclose(above, below)


def test_a_larger_gamma_divides_the_distortion_and_pays_its_normaliser():
    plain, learned = _model(), _model(gamma=True)
    learned.load_state_dict(plain.state_dict(), strict=False)
    x, t = _picture()[:1], torch.tensor([0.5])
    with torch.no_grad():
        learned.log_gamma.fill_(0.7)
        out = loss(plain, x, t, noise=False)
        found = loss(learned, x, t, noise=False)["loss"]
        root = distortion_weights(t).sqrt()
        distortion = out["lagrangian"] - out["bpp"]
        # nats to bits: 3 samples a pixel, each with log gamma of a Gaussian whose variance is gamma^2 of its target's
        expected = (out["bpp"] + distortion * math.exp(-1.4) + 3 * 0.7 / math.log(2)) / root
    assert torch.allclose(found, expected.mean(), rtol=1e-5)


def test_the_laplace_likelihood_has_the_slope_of_squared_error_where_errors_are_expected(monkeypatch):
    squared, absolute = _model(), _model(likelihood="laplace")
    x, t = torch.full((1, 3, 64, 64), 0.5), torch.tensor([0.5])
    lc = distortion_weights(t).item()
    expected = 0.028 * (lc / 0.0067) ** -0.4
    slopes = []
    for model in (squared, absolute):
        losses = []
        for error in (0.99 * expected, 1.01 * expected):
            zero = torch.zeros(1)
            out = {"x_hat": x + error, "kl1": zero, "kl2": zero}
            monkeypatch.setattr(model, "forward", lambda *_, out=out: out)
            losses.append(loss(model, x, t)["loss"].item())
        slopes.append(losses[1] - losses[0])
    assert slopes[0] > 0 and slopes[1] == pytest.approx(slopes[0], rel=0.01)


def test_top_down_network_runs_in_exact_integers():
    net = quantise(_model().h_s)
    assert len(net.layers) == 3
