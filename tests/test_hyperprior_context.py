"""The context model: what each step may see, integers against floats, both directions on odd sizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends import hyperprior_context as backend
from latcodec.backends import search
from latcodec.container import Payload
from latcodec.errors import DriftError
from latcodec.models.hyperprior_context import STEPS, Config, ContextHyperprior, coding_order, loss
from latcodec.train.start import start_from_klt
from latcodec.train.tables import logistic_tables
from latcodec.weights import Weights

pytestmark = pytest.mark.usefixtures("one_thread")
NARROW = Config((8, 12, 16), (0, 1, 1), latent=24, hyper_width=16, hyper_latent=8, context_width=16, knots=3)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return data.astronaut()[:192, 100:292]


@pytest.fixture(scope="module")
def network(photograph) -> ContextHyperprior:
    torch.manual_seed(0)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    with torch.no_grad():
        network.h_s[-1].weight.mul_(10)  # a fresh network predicts next to nothing
        for last in network.corrections:
            last.weight.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="module")
def model(network) -> backend.Model:
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    return backend.Model(Weights(Path("test"), "0" * 64, "hyperprior", backend.stored_config(network), tensors))


def payload(coded, index: int, width: int, height: int) -> Payload:
    return Payload(
        backend_id=1, weights_id=b"0000", rate_index=index, width=width, height=height, gray=False, depth=8,
        integers_crc=coded.integers_crc, streams=coded.streams,
    )  # fmt: skip


def test_the_order_codes_every_latent_once_and_diagonals_first():
    order = coding_order(8)
    assert sorted(order.tolist()) == list(range(32))
    for step in range(STEPS):
        part = order.view(STEPS, -1)[step]
        assert sorted((part // 4).tolist()) == list(range(8))  # every channel once
        assert set((part % 4).tolist()) == {0, 1, 2, 3}  # every position, in another quarter of the channels
    step_of = {int(place): number for number, part in enumerate(order.view(STEPS, -1)) for place in part}
    for channel in range(8):
        second = next(p for p in range(4) if step_of[4 * channel + p] == 1)
        first = next(p for p in range(4) if step_of[4 * channel + p] == 0)
        assert first ^ second == 3  # diagonal neighbours


@pytest.mark.parametrize("index", [0, 100, 255])
def test_integers_cost_what_the_floats_say(network, model, photograph, index, monkeypatch):
    monkeypatch.setattr(search, "ROUNDING", 0.0)  # the floats round to the nearest
    coded = backend.encode(model, photograph, backend.Options(index))
    x = torch.from_numpy(photograph.copy()).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        out = network(x, torch.tensor([index / 255]), noise=False)
    expected = (out["y_bits"] + out["z_bits"]).item()
    assert abs(coded.estimated_bits - expected) < 0.01 * expected + 64
    decoded = backend.decode(model, payload(coded, index, 192, 192))
    x_hat = (out["x_hat"][0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(decoded - x_hat).mean() < 0.6


@pytest.mark.parametrize("size", [(1, 1), (16, 17), (33, 47), (64, 65), (100, 191)])
@pytest.mark.parametrize("index", [0, 255])
def test_odd_sizes(model, photograph, size, index):
    image = np.ascontiguousarray(photograph[: size[0], : size[1]])
    coded = backend.encode(model, image, backend.Options(index))
    decoded = backend.decode(model, payload(coded, index, size[1], size[0]))
    assert decoded.shape == image.shape
    assert coded.rows.size == 24 * -(-size[0] // 16) * -(-size[1] // 16)  # nothing beyond the picture is coded


def test_other_integers_are_drift(model, photograph):
    coded = backend.encode(model, photograph, backend.Options(90))
    with pytest.raises(DriftError, match="integers CRC"):
        backend.decode(model, replace(payload(coded, 90, 192, 192), integers_crc=coded.integers_crc ^ 1))


def test_a_step_sees_the_steps_before_and_no_other(model, photograph):
    """Other symbols in step k change means of later steps alone."""
    latents = backend.analyse(model, photograph)
    z = np.zeros(latents.z.shape, np.int32)
    shape = tuple(latents.y.shape[1:])

    def walk(changed: int | None) -> backend.Walked:
        def take(step: int, means: np.ndarray, rows: np.ndarray, there: np.ndarray) -> np.ndarray:
            return np.full(means.shape, 5 * (step == changed))

        return model.walk(z, 128, shape, take, lambda symbols, means: None)

    plain = walk(None).means.reshape(STEPS, -1)
    for changed in range(STEPS):
        other = walk(changed).means.reshape(STEPS, -1)
        assert (other[: changed + 1] == plain[: changed + 1]).all()
        assert changed == STEPS - 1 or (other[changed + 1] != plain[changed + 1]).any()


def test_every_parameter_learns(photograph):
    torch.manual_seed(1)
    network = ContextHyperprior(NARROW)
    x = torch.from_numpy(photograph[:128, :128].copy()).permute(2, 0, 1)[None].float().expand(2, -1, -1, -1) / 255
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x - 0.5))
    # Residual blocks and corrections start with a zero: their inner weights learn once it has moved.
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("f.4.weight") or name.startswith("corrections"):
                p.normal_(std=0.01)
    loss(network, x, torch.tensor([0.3, 0.9]))["loss"].backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name
