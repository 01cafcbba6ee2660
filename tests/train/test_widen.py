"""A widened network does at first what the narrow one did."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from residual_networks import NARROW
from skimage import data

from latcodec.backends.hyperprior_context.network import ContextHyperprior, loss
from latcodec.errors import OptionError
from latcodec.nn.layers import GDN, ResidualBottleneck
from latcodec.train.init import widen
from latcodec.train.init.klt import fit_norms, start_from_klt

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    """A photograph, float32 [1, 3, 192, 192] in 0..1."""
    photograph = np.ascontiguousarray(data.astronaut()[:192, 100:292])
    return torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 255


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
