"""models/gaussian_vae.py: shapes, gradients, the closed form of the posterior."""

import math

import pytest
import torch

from latcodec.models.gaussian_vae import T_ELBO, Config, GaussianVAE, loss, posterior, sent_variance
from latcodec.train.start import start_from_klt

SMALL = {"widths": (8, 12, 16), "latent": 20, "hyper_width": 12, "hyper_latent": 6}


def _started(tempered: bool = True) -> tuple[GaussianVAE, torch.Tensor]:
    torch.manual_seed(1)
    model = GaussianVAE(Config(**SMALL, tempered=tempered)).to(memory_format=torch.channels_last)
    coarse = torch.rand(4, 3, 16, 16)
    x = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bilinear")
    model.start_from_latent_std(start_from_klt(model.g_a, model.g_s, x - 0.5))
    return model, x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tempered", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_loss_is_finite_and_reaches_every_parameter(tempered, autocast):
    model, x = _started(tempered)
    out = loss(model, x, torch.tensor([0.0, 0.3, 0.7, 1.0]), autocast)
    for name in ("bpp", "mse", "lagrangian", "z_bpp", "normal_bpp"):
        assert out[name].shape == (4,) and out[name].isfinite().all(), name
    out["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_rounding_is_deterministic_and_the_rate_rises_with_t():
    model, x = _started()
    with torch.no_grad():
        runs = [loss(model, x, torch.full((4,), t), noise=False) for t in (0.0, 0.5, 1.0, 1.0)]
    assert torch.equal(runs[2]["bpp"], runs[3]["bpp"]) and torch.equal(runs[2]["mse"], runs[3]["mse"])
    assert (runs[0]["bpp"] < runs[1]["bpp"]).all() and (runs[1]["bpp"] < runs[2]["bpp"]).all()
    assert (runs[0]["mse"] >= runs[1]["mse"]).all()


def test_in_the_plain_model_the_hyper_prior_does_not_touch_the_vae():
    model, x = _started(tempered=False)
    gradients = []
    for t in (0.1, 0.9):
        model.zero_grad()
        torch.manual_seed(2)
        shape = (4, 20, 8, 8)  # the same noise reaches the same place whatever t is
        assert model.analysis(x).shape == shape
        loss(model, x, torch.full((4,), t))["loss"].backward()
        gradients.append([p.grad.clone() for n, p in model.named_parameters() if n.startswith(("g_", "curvature"))])
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b)


def test_posterior_is_the_product_of_likelihood_and_prior():
    y, d, mean, s2 = (torch.tensor(v, dtype=torch.float64) for v in (1.5, 0.3, -0.2, 0.7))
    got_mean, got_variance, bits = posterior(y, d, mean, s2)
    assert got_variance.item() == pytest.approx(1 / (1 / 0.7 + 1 / 0.3))
    assert got_mean.item() == pytest.approx(got_variance.item() * (-0.2 / 0.7 + 1.5 / 0.3))
    p, q = (torch.distributions.Normal(m, v.sqrt()) for m, v in ((mean, s2), (got_mean, got_variance)))
    assert bits.item() == pytest.approx(torch.distributions.kl_divergence(q, p).item() / math.log(2))


def test_what_is_sent_is_the_test_channel_of_the_rate_distortion_function():
    log_v = torch.tensor([-9.0, 0.0, 3.0, 6.0], dtype=torch.float64)
    s2 = sent_variance(log_v, torch.zeros(4, dtype=torch.float64))
    assert s2[0] < 0.02 and s2[3].item() == pytest.approx(math.exp(6) - 1, rel=1e-6)
    assert (s2.diff() > 0).all()


def test_lambda_of_the_elbo():
    assert 20 * 0.005**T_ELBO == pytest.approx(math.log(2))
