"""Fixtures of tests that need a small network with a residual layer, or the shipped weights."""

import numpy as np
import pytest
import torch
from residual_networks import NARROW, model_of
from skimage import data

from latcodec import weights
from latcodec.backends.hyperprior_context import base_rate, codec
from latcodec.backends.hyperprior_context.network import ContextHyperprior
from latcodec.nn.layers import ResidualBottleneck
from latcodec.train.init import residual as start_residual
from latcodec.train.init.klt import start_from_klt


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
    start_residual.fit(network, [x])
    with torch.no_grad():
        for last in (*network.corrections, *network.details.to_scales, *network.details.from_details):
            last.weight.normal_(std=0.05)
        for knots in (*network.look_gain, *network.look_bias, *network.branch_gain):
            knots.normal_(std=0.002)
        for block in (*network.g_a, *network.g_s):
            if isinstance(block, ResidualBottleneck):
                block.f[-1].weight.normal_(std=0.02)
    return network.eval()


@pytest.fixture
def model(network) -> codec.Model:
    return model_of(network)


@pytest.fixture
def one_base(monkeypatch) -> None:
    """Latents at the rate of the file, or where the weights end it, whatever the picture."""
    monkeypatch.setattr(base_rate, "default_base", lambda *anything: None)
    monkeypatch.setattr(base_rate, "candidate_bases", lambda *anything: [])


@pytest.fixture(scope="module")
def shipped() -> codec.Model:
    """The model of the shipped weights."""
    return codec.Model(weights.load("hyperprior-context"))
