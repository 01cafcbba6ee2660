"""Steps of the quantiser fitted to what rounding does: never dearer, coarse where nothing is heard, one knot more."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.models.hyperprior_context import Config, ContextHyperprior
from latcodec.rates import LOWEST_INDEX
from latcodec.train import fit_steps
from latcodec.train.start import start_from_klt

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config((8, 12, 16), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3, step_error_bits=8)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [np.ascontiguousarray(data.astronaut()[:400, :400]), np.ascontiguousarray(data.coffee()[:400, 100:500])]


@pytest.fixture
def network(pictures) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(pictures[0]).permute(2, 0, 1)[None].float() / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x[..., :384, :384] - 0.5))
    return network.eval()


@torch.no_grad()
def test_the_lagrangian_falls_at_every_knot(network, pictures):
    fit_steps.shift(network, 0, -0.25, fit_steps.SIGNS)  # much too fine
    some, said = fit_steps.analysed(network, pictures), []
    before = [fit_steps.lagrangian(network, some, t) for t in (0.0, 0.5, 1.0)]
    fit_steps.fit(network, pictures, said.append)
    after = [fit_steps.lagrangian(network, some, t) for t in (0.0, 0.5, 1.0)]
    assert after[0] < 0.99 * before[0] and all(now <= then for now, then in zip(after, before, strict=True))
    assert len(said) == 3 and all(line.startswith("t +") for line in said)


@torch.no_grad()
def test_a_coarser_step_changes_no_network_behind_it(network, pictures):
    """What is decoded of latents that are all integers of both steps is the same, in every function of the rate."""
    (_, y, z), t = fit_steps.analysed(network, pictures)[0], torch.tensor([0.0])
    exact = lambda residual: residual  # noqa: E731
    before = network.transmit(y, z, network.at_rate(t), exact)
    fit_steps.shift(network, 0, torch.linspace(-0.3, 0.9, 24), fit_steps.SIGNS)
    fit_steps.shift(network, 0, 0.2, fit_steps.SIGNS_OF_Z)
    after = network.transmit(y, z, network.at_rate(t), exact)
    assert torch.allclose(before[0], after[0], atol=1e-4)
    for (_, one, spread), (_, other, coarse) in zip(before[1][1:], after[1][1:], strict=True):
        factor = one.abs().sum((0, 2, 3)) / other.abs().sum((0, 2, 3))
        assert factor.min() < 0.8 and factor.max() > 2.3
        clipped = coarse <= fit_steps.SIGMA_MIN * 1.001
        assert torch.allclose((spread / coarse)[~clipped], factor[None, :, None, None].expand_as(spread)[~clipped],
                              rtol=1e-3)  # fmt: skip


@torch.no_grad()
def test_channels_that_say_nothing_get_the_coarsest_step(network, pictures):
    network.g_a[-1].weight[5] *= 1e-3
    network.g_a[-1].bias[5] *= 1e-3
    found = fit_steps.steps_of_channels(network, fit_steps.analysed(network, pictures), 0.0, 60.0)
    assert found.shape == (24,) and found[5] >= found.max() - 0.06 and found.min() < 0.1


@torch.no_grad()
def test_the_lowest_rate_begins_as_that_of_index_0_and_costs_less(network, pictures):
    lower = ContextHyperprior(replace(NARROW, lowest_index=LOWEST_INDEX)).eval()
    lower.load_state_dict(fit_steps.with_lowest(lower, network.state_dict()))
    some = fit_steps.analysed(network, pictures)
    low, zero = lower.at_rate(torch.tensor([lower.lowest])), network.at_rate(torch.tensor([0.0]))
    assert all(torch.equal(low[name], zero[name]) for name in zero if name != "lift")
    before = fit_steps.lagrangian(lower, some, lower.lowest)
    fit_steps.fit(lower, pictures, lambda line: None)
    assert fit_steps.lagrangian(lower, some, lower.lowest) < 0.98 * before
    assert (lower.y_log_gain[0] < lower.y_log_gain[1]).float().mean() > 0.8
