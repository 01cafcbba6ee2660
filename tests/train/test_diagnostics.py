"""train/diagnostics.py: channels whose information is known, and the sums that the losses know too."""

import json
import math

import numpy as np
import pytest
import torch

from latcodec.backends.hyperprior import network as hyperprior
from latcodec.backends.pln import network as ladder
from latcodec.backends.vbq import network as gaussian_vae
from latcodec.errors import OptionError
from latcodec.train import diagnostics
from latcodec.train.diagnostics import Level, diagnose, of_level
from latcodec.train.init.klt import start_from_klt

SMALL = {"widths": (8, 12, 16), "latent": 20, "hyper_width": 12, "hyper_latent": 6}
N = 1024


def level(mean, variance, prior_mean=0.0, prior_variance=1.0):
    """One channel at N places."""
    parts = (mean, variance, prior_mean, prior_variance)
    return Level("y", *(torch.as_tensor(p, dtype=torch.float32).expand(N)[None] for p in parts), torch.ones(1))


def normal(seed=0):
    return torch.randn(N, generator=torch.Generator().manual_seed(seed))


def only(found):
    (row,) = found["channels"]
    return row


@pytest.mark.parametrize("variance", [0.5, 0.1, 0.02])
def test_a_channel_whose_posteriors_add_up_to_the_prior(variance):
    u = normal()
    u = (u - u.mean()) / u.std(correction=0)
    row = only(of_level(level(math.sqrt(1 - variance) * u, variance)))
    capacity = 0.5 * math.log2(1 / variance)
    assert row["kl_bits"] == pytest.approx(capacity, abs=1e-3)
    assert row["mi_bits"] == pytest.approx(capacity, abs=0.08)
    assert row["gap_bits"] == pytest.approx(0, abs=0.08)
    assert row["kl_bits"] == pytest.approx(row["mi_bits"] + row["gap_bits"])
    assert row["active"] and row["variance_of_mean"] == pytest.approx(1 - variance, rel=1e-3)


def test_a_dead_channel_has_nothing():
    found = of_level(level(0.0, 1.0))
    row = only(found)
    assert found["prior"] == "fixed" and found["active"] == 0 and not row["active"]
    assert all(abs(row[name]) < 1e-5 for name in ("kl_bits", "mi_bits", "gap_bits", "variance_of_mean"))


def test_a_prior_that_does_not_fit_is_all_gap():
    row = only(of_level(level(2.0, 1.0)))
    assert row["kl_bits"] == pytest.approx(2 / math.log(2), rel=1e-5) and row["mi_bits"] == pytest.approx(0, abs=1e-5)
    assert row["gap_bits"] == pytest.approx(row["kl_bits"]) and not row["active"]


@pytest.mark.parametrize("points", [16, 256, N])
def test_no_channel_exceeds_the_ceiling(points):
    found = of_level(level(torch.linspace(-3, 3, N), 1e-10), points)
    assert found["points"] == points
    assert math.log2(points) - 0.01 < only(found)["mi_bits"] <= math.log2(points) + 1e-4


def test_what_the_condition_told_is_not_paid():
    u = normal()
    found = of_level(level(u, 0.25, u, 0.25))
    row = only(found)
    assert found["prior"] == "conditional" and row["kl_bits"] == pytest.approx(0, abs=1e-6)
    assert row["mi_bits"] == pytest.approx(0.5 * math.log2(5), abs=0.1) and row["gap_bits"] == pytest.approx(
        0, abs=1e-5
    )
    shifted = only(of_level(level(u, 0.25, u + 3, 0.25)))
    assert shifted["mi_bits"] == row["mi_bits"] and shifted["gap_bits"] > 1


@pytest.mark.parametrize("spread, active", [(0.09, False), (0.11, True)])
def test_the_threshold_of_active_units(spread, active):
    u = normal()
    u = spread * (u - u.mean()) / u.std(correction=0)
    found = of_level(level(u, 1.0))
    assert only(found)["active"] is active and found["active"] == int(active)
    other = Level("y", *(getattr(level(u, 1.0), n) for n in ("mean", "variance", "prior_mean", "prior_variance")),
                  torch.full((1,), 2.0))  # fmt: skip
    assert of_level(other)["active"] == 0


def started(module, network, **options):
    torch.manual_seed(1)
    model = getattr(module, network)(module.Config(**SMALL, **options)).to(memory_format=torch.channels_last)
    crops = np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16)).repeat(8, 2).repeat(8, 3).astype(np.uint8)
    x = torch.from_numpy(crops).float() / 255
    model.start_from_latent_std(start_from_klt(model.g_a, model.g_s, x - 0.5))
    return model, crops, x


@pytest.mark.parametrize("tempered, prior", [(True, "hyper"), (True, "normal"), (False, "normal")])
def test_the_divergences_of_vbq_are_those_of_its_loss(tempered, prior):
    model, crops, x = started(gaussian_vae, "GaussianVAE", tempered=tempered)
    found = diagnose(model, crops, 0.5, prior=prior, points=10**6)
    (y,) = found["levels"].values()
    assert y["points"] == found["points"] == 10 * 8 * 8 and found["ceiling_bits"] == math.log2(640)
    assert y["prior"] == ("conditional" if prior == "hyper" else "fixed") and len(y["channels"]) == SMALL["latent"]
    with torch.no_grad():
        out = gaussian_vae.loss(model, x, torch.full((10,), 0.5))
    expected = out["normal_bpp"] if prior == "normal" else out["bpp"] - out["z_bpp"]
    assert sum(row["kl_bits"] for row in y["channels"]) / 256 == pytest.approx(expected.mean().item(), rel=1e-3)


def test_the_divergences_of_the_ladder_are_those_of_its_loss():
    model, crops, x = started(ladder, "Ladder")
    found = diagnose(model, crops, 0.5, points=10**6)
    with torch.no_grad():
        out = model(x, torch.full((10,), 0.5), noise=False)
    for name, kl, prior, places in (("z1", "kl1", "conditional", 64), ("z2", "kl2", "fixed", 4)):
        level = found["levels"][name]
        total = sum(row["kl_bits"] for row in level["channels"]) * places
        assert level["prior"] == prior and total == pytest.approx(out[kl].mean().item(), rel=1e-3), name


def test_a_channel_the_encoder_says_nothing_of():
    model, crops, _ = started(gaussian_vae, "GaussianVAE", tempered=False)
    with torch.no_grad():
        model.log_curvature[3] = -40
    channels = diagnose(model, crops, 0.5)["levels"]["y"]["channels"]
    assert not channels[3]["active"] and abs(channels[3]["kl_bits"]) < 1e-5 and abs(channels[3]["mi_bits"]) < 1e-5
    assert channels[0]["active"] and channels[0]["mi_bits"] > 1


def test_it_repeats_is_json_and_leaves_the_random_state_alone():
    for module, network in ((gaussian_vae, "GaussianVAE"), (ladder, "Ladder")):
        model, crops, _ = started(module, network)
        state = torch.get_rng_state()
        first, second, other = (diagnose(model, crops, 0.3, points=64, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert first == second != other
        assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_more_rate_is_more_information():
    model, crops, _ = started(gaussian_vae, "GaussianVAE")
    low, high = (diagnose(model, crops, t, prior="normal", points=256)["levels"]["y"] for t in (0.0, 1.0))
    assert low["mi_bits"] < high["mi_bits"] and low["active"] <= high["active"]


def test_what_cannot_be_diagnosed_is_told():
    rounding = hyperprior.Hyperprior(hyperprior.Config(**SMALL))
    model, crops, _ = started(gaussian_vae, "GaussianVAE")
    assert not diagnostics.can(rounding) and diagnostics.can(model)
    with pytest.raises(OptionError, match="Hyperprior has no Gaussian posterior"):
        diagnose(rounding, crops, 0.5)
    with pytest.raises(OptionError, match="prior laplace"):
        diagnose(model, crops, 0.5, prior="laplace")
    with pytest.raises(OptionError, match="at least one"):
        diagnose(model, crops[:0], 0.5)
