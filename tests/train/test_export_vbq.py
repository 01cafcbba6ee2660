"""train/export_vbq.py: a network of any training, few pictures, and yet weights that code anything."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.vbq import codec as vbq
from latcodec.backends.vbq.codebooks import entropy_constrained, k_means, uniform_start
from latcodec.backends.vbq.entropy_model import Model
from latcodec.backends.vbq.network import Config, GaussianVAE
from latcodec.container import Payload
from latcodec.errors import WeightsError
from latcodec.train.export.vbq import export, fit
from latcodec.train.init.klt import start_from_klt
from latcodec.weights import Weights, load_file, save

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"widths": (8, 12, 16), "latent": 20, "hyper_width": 12, "hyper_latent": 6}


@pytest.fixture(scope="module")
def fitted():
    torch.manual_seed(1)
    network = GaussianVAE(Config(**SMALL)).eval()
    pictures = [np.ascontiguousarray(p[40:168, 60:188]) for p in (data.astronaut(), data.chelsea())]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255 - 0.5
    network.start_from_latent_std(start_from_klt(network.g_a, network.g_s, x))
    lines = []
    return network, pictures, fit(network, pictures, lines.append), lines


def test_what_is_fitted_codes_with_every_quantiser_and_prior(fitted, tmp_path):
    network, pictures, tensors, lines = fitted
    path = tmp_path / "vbq.safetensors"
    save(path, "vbq", stored_config(network), "test", tensors)
    model = Model(load_file(path))
    for quantizer in vbq.QUANTIZERS:
        for prior in vbq.PRIORS:
            coded = vbq.encode(model, pictures[0][:50, :70], vbq.Options(180, True, quantizer=quantizer, prior=prior))
            payload = Payload(2, model.weights_id, 180, 70, 50, False, 8, coded.integers_crc, coded.streams,
                              parameters=coded.parameters)  # fmt: skip
            assert vbq.decode(model, payload).shape == (50, 70, 3)
    assert any("caution" in line for line in lines)


def test_counting_with_the_tables_of_the_round_before_pays(fitted):
    prices = [float(line.split(": ")[1].split()[0]) for line in fitted[3] if line.startswith("vbq hyper round")]
    assert prices == sorted(prices, reverse=True) and len(prices) == 2


@pytest.mark.parametrize("missing", ["prior.exp", "tables.weights", "set.vbq-hyper.entries", "float.g_a.0.weight"])
def test_weights_that_lack_something_are_told(fitted, missing):
    network, _, tensors, _ = fitted
    broken = {k: v for k, v in tensors.items() if k != missing}
    with pytest.raises(WeightsError, match="not vbq weights"):
        Model(Weights(Path("x"), "0" * 64, "vbq", stored_config(network), broken))


def test_no_checkpoint_is_told(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"none")
    with pytest.raises(WeightsError):
        export(tmp_path / "x.pt", tmp_path / "w.safetensors", "command", [])


def test_entropy_constrained_is_cheaper_than_a_uniform_grid():
    rng = np.random.default_rng(0)
    samples, weights = np.abs(rng.laplace(size=50_000)).astype(np.float32), np.full(50_000, 0.5, np.float32)
    start = uniform_start(1.5, float(samples.max()), True)
    _, counts, first = entropy_constrained(samples, weights, start, True, rounds=1)
    centres, counts, price = entropy_constrained(samples, weights, start, True)
    assert price < 0.9 * first and counts.sum() == 50_000 and centres[0] == 0
    # R(D) of a Laplacian is over this bound of Shannon's; a scalar quantiser loses at most a quarter of a bit.
    bound = np.log2(2 * np.e) - 0.5 * np.log2(2 * np.pi * np.e * 0.5 / (0.5 * np.log(2))) + 0.5 / np.log(2)
    assert bound - 0.2 < price < bound + 0.3


def test_k_means_finds_clusters():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(m, 0.1, 500) for m in (-3, 0, 5)])
    assert k_means(samples, 3) == pytest.approx([-3, 0, 5], abs=0.05)
