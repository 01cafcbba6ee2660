"""models/gaussian_vae.py: shapes, gradients, the closed form of the posterior."""

import math

import pytest
import torch

from latcodec.backends.common.weights_parts import config_from
from latcodec.backends.vbq.network import (
    T_ELBO,
    Config,
    GaussianVAE,
    information_bits,
    loss,
    mutual_information,
    posterior,
    sent_variance,
)
from latcodec.errors import WeightsError
from latcodec.train.init.klt import start_from_klt

SMALL = {"widths": (8, 12, 16), "latent": 20, "hyper_width": 12, "hyper_latent": 6}


def _started(tempered: bool = True, **options) -> tuple[GaussianVAE, torch.Tensor]:
    torch.manual_seed(1)
    model = GaussianVAE(Config(**SMALL, tempered=tempered, **options)).to(memory_format=torch.channels_last)
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


@pytest.mark.parametrize("tempered", [True, False])
def test_mutual_information_is_a_term_of_its_own(tempered):
    t = torch.tensor([0.0, 0.3, 0.7, 1.0])
    found = {}
    for weight in (0.0, 0.25, 0.5):
        model, x = _started(tempered, mi_weight=weight)
        torch.manual_seed(3)
        found[weight] = loss(model, x, t, autocast=False)
    without, some, more = found.values()
    assert "mi_bpp" not in without and some["mi_bpp"].shape == (4,) and (some["mi_bpp"] > 0).any()
    for name in ("bpp", "mse", "lagrangian", "z_bpp", "normal_bpp"):  # the same bits: nothing else sees the term
        assert torch.equal(without[name], some[name]) and torch.equal(without[name], more[name]), name
    first, second = (out["loss"] - without["loss"] for out in (some, more))
    assert first != 0 and second.item() == pytest.approx(2 * first.item(), rel=1e-4)


@pytest.mark.parametrize("weight, passes", [(0.0, 1), (0.1, 2)])
def test_without_weight_nothing_is_generated(weight, passes):
    model, x = _started(mi_weight=weight)
    calls = []
    model.g_s[0].register_forward_hook(lambda *_: calls.append("g_s"))
    model.g_a[0].register_forward_hook(lambda *_: calls.append("g_a"))
    loss(model, x, torch.full((4,), 0.5))
    assert sorted(calls) == ["g_a"] * passes + ["g_s"] * passes


def test_the_bound_of_a_gaussian_channel_is_its_capacity():
    d = 0.1
    torch.manual_seed(4)
    sent = torch.randn(200_000, dtype=torch.float64)
    seen = sent + math.sqrt(d) * torch.randn_like(sent)
    mean, variance, _ = posterior(seen, torch.full_like(sent, d), 0.0, torch.ones_like(sent))
    capacity = 0.5 * math.log2(1 + 1 / d)
    assert information_bits(sent, mean, variance).mean().item() == pytest.approx(capacity, abs=0.01)
    wrong = information_bits(sent, mean, 3 * variance).mean().item()
    blind = information_bits(sent, torch.zeros_like(sent), torch.ones_like(sent)).mean().item()
    assert wrong < capacity - 0.1 and blind == pytest.approx(0, abs=0.01)


def test_mutual_information_acts_on_its_channels_alone():
    model, _ = _started(mi_fraction=0.25)
    rate = model.at_rate(torch.tensor([0.5]))
    bits = mutual_information(model, (4, 4), rate)
    assert bits.shape == (1, 5, 4, 4)
    bits.sum().backward()
    of_channel = model.curvature_head.weight.grad.abs().amax((1, 2, 3))
    assert (of_channel[:5] > 0).all() and (of_channel[5:] == 0).all()
    assert all(p.grad.abs().max() > 0 for p in [*model.g_a.parameters()][:2] + [*model.g_s.parameters()])


def test_training_with_the_term_raises_the_bound():
    bounds = []
    for weight in (0.0, 1.0):
        model, x = _started(mi_weight=weight)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for step in range(15):
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss(model, x[:2, :, :64, :64], torch.tensor([0.25, 0.75]))["loss"].backward()
            optimizer.step()
        torch.manual_seed(100)
        with torch.no_grad():
            bounds.append(mutual_information(model, (8, 8), model.at_rate(torch.full((4,), 0.5))).mean().item())
    assert bounds[1] > bounds[0] + 0.02


@pytest.mark.parametrize("options", [{"mi_weight": -0.1}, {"mi_weight": math.nan}, {"mi_weight": math.inf},
                                     {"mi_fraction": 0.0}, {"mi_fraction": 1.1}])  # fmt: skip
def test_senseless_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Config(**options)


def test_a_config_from_before_the_term_is_read_and_an_unknown_key_is_not():
    stored = {"widths": [48, 80, 128], "latent": 192, "tempered": False}
    assert config_from(Config, stored) == Config(tempered=False)
    with pytest.raises(WeightsError, match="mi_wait"):
        config_from(Config, stored | {"mi_wait": 0.1})
