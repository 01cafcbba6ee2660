"""NC-VAE's network: shapes, causality of its rate, gradients, both ends of the rates."""

import dataclasses

import pytest
import torch

from latcodec.backends.nc_vae.network import _OWN_TAPS, GROUPS, NCVAE, Config, RateModule, groups_of, loss, phases_of
from latcodec.nn.layers import conv, deconv
from latcodec.train.init.klt import start_from_klt

SMALL = Config(widths=(12, 16, 24), latent=20, knots=4, encoder_blocks=1, decoder_blocks=1)


def network(config: Config = SMALL, seed: int = 0) -> NCVAE:
    torch.manual_seed(seed)
    model = NCVAE(config)
    x = pictures(8)
    model.start_from_latent_std(start_from_klt(model.g_a, model.g_s, x - 0.5))
    return model


def pictures(count: int, side_px: int = 64) -> torch.Tensor:
    """Smooth random pictures, float32 [count, 3, side, side] in 0..1."""
    noise = torch.randn(count, 3, side_px // 8, side_px // 8)
    x = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic") * 0.15 + 0.5
    return (x + 0.02 * torch.randn_like(x)).clamp(0, 1)


def stir(rate: RateModule) -> None:
    """Give every weight of the rate module a value that matters."""
    with torch.no_grad():
        for parameter in rate.parameters():
            parameter.copy_(torch.rand_like(parameter) * 0.2 + 0.05)


def test_groups_and_phases_cover_everything():
    assert sum(GROUPS) == Config().latent and groups_of(192) == GROUPS
    assert groups_of(20) == (1, 1, 2, 4, 8, 4) and sum(groups_of(300)) == 300
    phase = phases_of(9, 13)
    assert phase.shape == (9, 13) and set(phase.unique().tolist()) == set(range(5))
    assert torch.bincount(phases_of(8, 8).ravel()).tolist() == [4, 4, 8, 16, 32]


def test_own_taps_lead_to_earlier_phases_only():
    phase = phases_of(16, 16)
    for y in range(4, 12):
        for x in range(4, 12):
            for dy, dx in _OWN_TAPS[phase[y, x]]:
                assert phase[y + dy, x + dx] < phase[y, x]


def test_the_rate_of_a_symbol_depends_on_earlier_ones_only():
    torch.manual_seed(0)
    rate = RateModule(20).double()
    stir(rate)
    n = torch.randn(1, 20, 9, 10, dtype=torch.float64, requires_grad=True)
    sizes = groups_of(20)
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    when = group[:, None, None] * 5 + phases_of(9, 10)
    out = rate(n)
    for part in out:
        for channel in (0, 1, 3, 7, 10, 19):
            for y in (3, 4, 5):
                for x in (3, 4, 5, 6):
                    (gradient,) = torch.autograd.grad(part[0, channel, y, x], n, retain_graph=True)
                    assert not gradient[0][when >= when[channel, y, x]].any()
                    if when[channel, y, x]:
                        assert gradient.any()


def test_scales_are_never_negative():
    rate = RateModule(20)
    stir(rate)
    with torch.no_grad():
        rate.scale_root.neg_()
        assert rate(torch.randn(2, 20, 5, 6))[1].min() >= 0


def test_shapes_and_both_ends_of_the_rate():
    model = network()
    x = pictures(2)
    low, high = (loss(model, x, torch.full((2,), t), noise=False) for t in (0.0, 1.0))
    for out in (low, high):
        assert out["loss"].shape == () and all(v.shape == (2,) for k, v in out.items() if k != "loss")
        assert all(torch.isfinite(v).all() for v in out.values())
    assert (low["bpp"] < 0.5 * high["bpp"]).all() and (low["mse"] > high["mse"]).all()
    assert (high["mse"] < 3e-3).all()
    y = model.analysis(x)
    assert y.shape == (2, 20, 4, 4) and model.synthesis(y).shape == x.shape


def test_gradient_reaches_every_parameter():
    model = network()
    loss(model, pictures(4), torch.tensor([0.0, 0.3, 0.7, 1.0]))["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        # Nothing flows into the inside of a residual block whose last convolution is still 0.
        if ".f.0." not in name and ".f.2." not in name:
            assert parameter.grad.any(), name


def test_half_precision_inside_changes_little():
    model = network()
    x, t = pictures(2), torch.tensor([0.2, 0.9])
    exact, half = (loss(model, x, t, autocast, noise=False) for autocast in (False, True))
    assert torch.isfinite(half["loss"])
    torch.testing.assert_close(half["bpp"], exact["bpp"], rtol=0.1, atol=0.05)
    loss(model, x, t, True)["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_evaluation_is_deterministic_and_training_is_not():
    model = network()
    x, t = pictures(2), torch.tensor([0.1, 0.8])
    again = [loss(model, x, t, noise=False)["loss"] for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(*[loss(model, x, t)["bpp"] for _ in range(2)])


def test_input_noise():
    model = network(dataclasses.replace(SMALL, input_noise="0.3"))
    assert "log_noise" not in dict(model.named_parameters()) and model.input_noise() == pytest.approx(0.3)
    x, t = pictures(2), torch.tensor([0.5, 0.5])
    torch.manual_seed(1)
    noisy = model(x, t)["symbols"]
    assert (noisy != model(x, t, noise=False)["symbols"]).any()
    quiet = network(dataclasses.replace(SMALL, input_noise="0"))
    assert torch.equal(quiet(x, t)["symbols"], quiet(x, t, noise=False)["symbols"])
    trained = network()
    out = loss(trained, x, t)
    assert out["input_noise"].tolist() == pytest.approx([0.02, 0.02])


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_the_klt_start_works_for_any_kernel(kernel):
    g_a = torch.nn.Sequential(conv(3, 12, kernel), conv(12, 48, kernel))
    g_s = torch.nn.Sequential(deconv(48, 12, kernel), deconv(12, 3, kernel))
    x = pictures(4) - 0.5
    start_from_klt(g_a, g_s, x, noise=0)
    torch.testing.assert_close(g_s(g_a(x)), x, rtol=1e-4, atol=1e-5)  # nothing is left out, so a rotation and back
