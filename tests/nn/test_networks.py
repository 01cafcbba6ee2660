"""Layers and the hyperprior against references in float64 and known values."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from latcodec.backends.hyperprior.network import Config, Hyperprior, loss
from latcodec.nn.layers import (
    GDN,
    conv,
    deconv,
    deconv_to_pixels,
    interpolate_knots,
    leaky,
    logistic_bits,
    lower_bound,
    round_straight_through,
    with_gdn_units,
)
from latcodec.train.init.klt import fit_norms, start_from_klt
from latcodec.train.optimizer import MuonAdam, orthogonalise

SMALL = Config(widths=(12, 24, 32), latent=48, hyper_width=16, hyper_latent=8, knots=5)


def smooth_picture(side_px: int = 128) -> torch.Tensor:
    """float32 [1, 3, side, side] in 0..1: waves of at least 40 px, each channel its own."""
    y, x = torch.meshgrid(torch.arange(side_px), torch.arange(side_px), indexing="ij")
    planes = [0.5 + 0.2 * torch.sin(x / (7 + c)) + 0.2 * torch.cos(y / (9 - c) + c) for c in range(3)]
    return torch.stack(planes)[None]


def psnr_db(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * math.log10((a - b).square().mean().item())


def test_gdn_follows_its_equation():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4, 3)
    gdn = GDN(5)
    with torch.no_grad():
        gdn.gamma.copy_(torch.rand(5, 5))
        gdn.gamma_unit.copy_(torch.rand(5) + 0.5)
        gdn.beta_root.copy_(torch.rand(5) + 0.5)
    inverse = GDN(5, inverse=True)
    inverse.load_state_dict(gdn.state_dict())
    gamma = gdn.gamma * gdn.gamma_unit  # a unit for each input
    norm = torch.einsum("ij,bjhw->bihw", gamma, x.abs()) + (gdn.beta_root**2 + 1e-4)[:, None, None]
    torch.testing.assert_close(gdn(x), x / norm)
    torch.testing.assert_close(inverse(x), x * norm)


def test_inverse_gdn_nearly_undoes_gdn_at_the_start():
    x = torch.linspace(-1, 1, 60).reshape(1, 6, 2, 5)
    again = GDN(6, inverse=True)(GDN(6)(x))
    assert (again - x).abs().max() < 0.01
    assert (GDN(6)(x) - x).abs().max() > 0.005


def test_gdn_norm_stays_positive():
    gdn = GDN(3)
    with torch.no_grad():
        gdn.gamma.fill_(-2)
        gdn.beta_root.fill_(0)
    x = torch.randn(1, 3, 4, 4)
    assert torch.isfinite(gdn(x)).all() and torch.equal(gdn(x).sign(), x.sign())


def test_a_gamma_that_reached_0_can_come_back():
    gdn = GDN(2, inverse=True)
    with torch.no_grad():
        gdn.gamma.copy_(torch.tensor([[0.0, -0.01], [0.02, 0.0]]))
    x = torch.rand(1, 2, 4, 4) + 0.1
    (up,) = torch.autograd.grad(-gdn(x).sum(), gdn.gamma)  # descent makes every gamma larger
    assert (up < 0).all()
    (down,) = torch.autograd.grad(gdn(x).sum(), gdn.gamma)
    assert down[1, 0] > 0 and down[0, 1] == 0


def test_units_of_gamma_follow_the_size_of_what_comes_in():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8) * torch.tensor([0.02, 1.0, 0.0])[:, None, None]
    gdn = GDN(3)
    with torch.no_grad():
        gdn.gamma.add_(torch.rand(3, 3))
    before = gdn(x)
    gdn.fit_units(x)
    torch.testing.assert_close(gdn(x), before)
    torch.testing.assert_close(gdn.gamma_unit[:2] * x.abs().mean((0, 2, 3))[:2], torch.full((2,), 0.5))
    assert torch.isfinite(gdn.gamma_unit).all()


def test_older_weights_hold_the_square_root_of_gamma():
    root, beta_root, x = torch.randn(3, 3), torch.ones(3), torch.randn(1, 3, 4, 4)
    norm = torch.nn.functional.conv2d(x.abs(), root.square()[:, :, None, None], beta_root.square() + 1e-4)
    gdn = GDN(3)
    found = with_gdn_units({"gamma_root": root.half(), "beta_root": beta_root})
    gdn.load_state_dict(found)
    torch.testing.assert_close(gdn(x), x / norm, rtol=2e-3, atol=1e-4)
    assert with_gdn_units(found).keys() == found.keys() == gdn.state_dict().keys()
    assert set(with_gdn_units({"g_a.1.gamma_root": root})) == {"g_a.1.gamma", "g_a.1.gamma_unit"}


def test_training_fits_the_units_of_every_norm_and_changes_no_picture():
    model, x = Hyperprior(SMALL), smooth_picture(64)
    x = torch.cat([x, 1 - x])
    t = torch.linspace(0, 1, len(x))
    before = model(x, t, noise=False)["x_hat"]
    fit_norms(model, loss, x, (0.0, 1.0))
    norms = [module for module in model.modules() if isinstance(module, GDN)]
    assert len(norms) == 6 and all((norm.gamma_unit != 1).all() for norm in norms)
    torch.testing.assert_close(model(x, t, noise=False)["x_hat"], before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", [1, 2, 3, 16, 17])
def test_convolutions_divide_and_multiply_sizes(side):
    x = torch.zeros(1, 2, side, side + 1)
    assert conv(2, 3)(x).shape == (1, 3, -(-side // 2), -(-(side + 1) // 2))
    assert conv(2, 3, 3, 1)(x).shape == (1, 3, side, side + 1)
    assert deconv(2, 3)(x).shape == (1, 3, 2 * side, 2 * side + 2)


def test_leaky_slope_is_a_power_of_two():
    assert leaky()(torch.tensor([-8.0, 3.0])).tolist() == [-1, 3]
    assert leaky(1)(torch.tensor([-8.0, 3.0])).tolist() == [-4, 3]


def test_rounding_passes_the_gradient():
    x = torch.tensor([-1.5, -0.4, 0.5, 2.7], requires_grad=True)
    y = round_straight_through(x)
    assert y.tolist() == [-2, 0, 0, 3]
    (y * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4]


def test_lower_bound_lets_only_helpful_gradients_through():
    for direction, expected in ((1.0, [0.0, 1.0, 1.0]), (-1.0, [-1.0, -1.0, -1.0])):
        x = torch.tensor([0.1, 0.5, 2.0], requires_grad=True)
        y = lower_bound(x, 0.5)
        assert y.tolist() == [0.5, 0.5, 2.0]
        (direction * y).sum().backward()
        assert x.grad.tolist() == expected


def reference_bits(residual: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The logistic's mass on the unit interval, in float64 and in the log domain."""
    scale = np.pi / np.sqrt(3) / sigma
    upper, lower = (0.5 - np.abs(residual)) * scale, (-0.5 - np.abs(residual)) * scale
    # log(S(b) - S(a)) = b + log(1 - exp(a - b)) - log(1 + exp(b)) - log(1 + exp(a))
    log_mass = upper + np.log(-np.expm1(lower - upper)) - np.logaddexp(0, upper) - np.logaddexp(0, lower)
    return -log_mass / np.log(2)


@pytest.mark.parametrize("sigma", [0.08, 0.3, 1.0, 7.0, 256.0])
def test_logistic_bits_equal_the_reference(sigma):
    residual = np.linspace(-1, 1, 101) * min(20 * sigma, 1000)
    bits = logistic_bits(torch.from_numpy(residual).float(), torch.tensor(sigma))
    assert bits.dtype == torch.float32
    np.testing.assert_allclose(bits.numpy(), reference_bits(residual, np.float64(sigma)), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("sigma", [0.08, 0.5, 3.0, 40.0])
@pytest.mark.parametrize("mean", [0.0, 0.3, 0.5])
def test_probabilities_of_all_integers_sum_to_one(sigma, mean):
    residual = torch.arange(-1000.0, 1001) - mean
    total = torch.exp2(-logistic_bits(residual, torch.tensor(sigma)).double()).sum().item()
    assert total == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("distance", [3.0, 10.0, 40.0, 1000.0])
@pytest.mark.parametrize("sigma", [0.08, 0.5, 4.0])
def test_far_outliers_still_pull(distance, sigma):
    residual = torch.tensor([distance, -distance], requires_grad=True)
    scale = torch.full((2,), sigma, requires_grad=True)
    logistic_bits(residual, scale).sum().backward()
    r, h = np.array([distance, -distance]), 1e-6
    by_residual = (reference_bits(r * (1 + h), sigma) - reference_bits(r * (1 - h), sigma)) / (2 * h * r)
    by_scale = (reference_bits(r, sigma * (1 + h)) - reference_bits(r, sigma * (1 - h))) / (2 * h * sigma)
    np.testing.assert_allclose(residual.grad.numpy(), by_residual, rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(scale.grad.numpy(), by_scale, rtol=0.02, atol=1e-3)


def test_knots_are_met_and_joined_by_lines():
    knots = torch.tensor([[0.0, 5.0], [1.0, 5.0], [4.0, 1.0]])
    out = interpolate_knots(knots, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, -1.0, 2.0]))
    assert out[:, 0].tolist() == [0, 0.5, 1, 2.5, 4, 0, 4]
    assert out[:, 1].tolist() == [5, 5, 5, 3, 1, 5, 1]


@pytest.mark.parametrize("noise", [True, False])
def test_forward_shapes(noise):
    torch.manual_seed(0)
    model = Hyperprior(SMALL)
    x = torch.rand(2, 3, 64, 128)
    out = model(x, torch.tensor([0.1, 0.9]), noise=noise)
    assert out["x_hat"].shape == x.shape
    assert out["y_bits"].shape == out["z_bits"].shape == (2,)
    assert (out["y_bits"] > 0).all() and (out["z_bits"] > 0).all()
    assert model.analysis(x).shape == (2, 48, 4, 8)
    assert model.hyper_analysis(model.analysis(x)).shape == (2, 8, 1, 2)


def test_without_noise_forward_is_deterministic():
    torch.manual_seed(0)
    model, x, t = Hyperprior(SMALL), torch.rand(1, 3, 64, 64), torch.tensor([0.5])
    first, again = model(x, t, noise=False), model(x, t, noise=False)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(model(x, t)["y_bits"], model(x, t)["y_bits"])


def test_loss_reaches_every_parameter():
    torch.manual_seed(0)
    model = Hyperprior(SMALL)
    with torch.no_grad():
        model.z_log_gain.add_(4)  # or z of an untrained network rounds to zeros, which teach h_s nothing
    out = loss(model, torch.rand(2, 3, 64, 64), torch.tensor([0.2, 0.8]))
    out["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_loss_is_the_lagrangian():
    torch.manual_seed(0)
    model, t = Hyperprior(SMALL), torch.tensor([0.0, 1.0])
    out = loss(model, torch.rand(2, 3, 64, 64), t, noise=False)
    lc = torch.tensor([0.0230681 / 20, 0.0230681 / 0.1])
    torch.testing.assert_close(out["lagrangian"], out["bpp"] + lc * 255**2 * out["mse"], rtol=1e-4, atol=0)
    torch.testing.assert_close(out["loss"], (out["lagrangian"] / lc.sqrt()).mean(), rtol=1e-4, atol=0)


def test_higher_rates_cost_more_bits():
    torch.manual_seed(0)
    model, x = Hyperprior(SMALL), (smooth_picture(64) + 0.1 * torch.randn(1, 3, 64, 64)).clamp(0, 1)
    std = start_from_klt(model.g_a, model.g_s, x - 0.5)
    model.start_from_latent_std(std)
    positions = torch.linspace(0, 1, 5)
    with torch.no_grad():
        out = loss(model, x.expand(5, -1, -1, -1), positions, noise=False)
    assert (out["bpp"].diff() > 0).all()
    # The small network's basis is cut off: at high rates the error stands still, to float32's last digits.
    assert (out["mse"].diff() < 1e-6).all() and out["mse"][0] - out["mse"][-1] > 1e-4


def test_klt_start_is_a_transform_codec():
    torch.manual_seed(0)
    model, x = Hyperprior(dataclasses.replace(Config(), hyper_width=8, hyper_latent=8)), smooth_picture(64)

    def reconstructed() -> torch.Tensor:
        with torch.no_grad():
            return model.synthesis(model.analysis(x))

    before = psnr_db(reconstructed(), x)
    std = start_from_klt(model.g_a, model.g_s, x - 0.5, noise=0)
    after = psnr_db(reconstructed(), x)
    assert before < 20
    assert after > 30
    assert std.shape == (192,) and std[0] == std.max()


def test_latent_scales_follow_the_measured_std():
    model = Hyperprior(SMALL)
    before = model.scale_offset.detach().clone()
    std = torch.linspace(0, 3, 48)
    model.start_from_latent_std(std)
    torch.testing.assert_close(model.y_log_std.exp(), std.clamp_min(1e-3))
    torch.testing.assert_close(model.scale_offset - before, model.y_log_std.expand(5, -1))


@pytest.mark.parametrize("inverse", [False, True])
def test_normalisation_on_a_cpu_has_the_gradient_of_its_formula(inverse):
    torch.manual_seed(0)
    norm = GDN(5, inverse)
    with torch.no_grad():
        norm.gamma.add_(0.3 * torch.rand(5, 5))
        norm.gamma_unit.copy_(torch.rand(5) + 0.5)
    x = torch.randn(2, 5, 4, 3).to(memory_format=torch.channels_last).requires_grad_()
    towards = torch.randn(2, 5, 4, 3)
    gamma = norm.gamma * norm.gamma_unit
    scale = torch.nn.functional.conv2d(x.abs(), gamma[:, :, None, None], norm.beta_root.square() + 1e-4)
    plain, found = x * scale if inverse else x / scale, norm(x)
    torch.testing.assert_close(found, plain)
    inputs = [x, norm.gamma, norm.beta_root]
    for ours, theirs in zip(
        torch.autograd.grad((found * towards).sum(), inputs),
        torch.autograd.grad((plain * towards).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), found)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16), (24, 75)])
def test_orthogonalised_rows_are_nearly_orthonormal(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape) * 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    nearest = left @ right
    assert torch.nn.functional.cosine_similarity(orthogonalise(matrix).flatten(), nearest.flatten(), 0) > 0.97


def test_vectors_step_with_adam():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    steppers = MuonAdam(ours, 1e-2), torch.optim.Adam(theirs.parameters(), 1e-2, betas=(0.9, 0.99))
    for seed in range(5):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        for model, stepper in zip((ours, theirs), steppers, strict=True):
            stepper.zero_grad()
            model(x).square().sum().backward()
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_convolutions_step_by_the_learning_rate_whatever_the_gradient():
    layer = conv(4, 8)
    before, stepper = layer.weight.detach().clone(), MuonAdam(layer, 1e-3)
    torch.manual_seed(0)
    layer.weight.grad = torch.randn_like(layer.weight) * 1e-6
    stepper.step()
    moved = (layer.weight - before).square().mean().sqrt().item()
    assert moved == pytest.approx(0.2e-3, rel=0.3)  # 0.2 is the root mean square of an Adam step


def test_to_pixels_is_the_transposed_convolution():
    torch.manual_seed(3)
    layer = deconv(6, 3)
    for shape in ((2, 6, 5, 4), (1, 6, 1, 1)):
        h = torch.randn(shape)
        assert torch.allclose(deconv_to_pixels(layer, h), layer(h), atol=1e-5)
