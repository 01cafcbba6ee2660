"""What each latent channel of a Gaussian posterior is worth: divergence, mutual information, gap, active or not.

N places of the crops, drawn from all, are the data; a channel's posterior there is q_i = N(mean_i, variance_i), its
prior p_i.

    kl_bits   = mean of KL(q_i || p_i)                              what a coder of samples pays for the channel
    mi_bits   = mean of log2 q_i(y) - log2 q(y),  y ~ q_i           a lower bound of I_q(x; y)
    gap_bits  = KL(q(y) || p(y))                                    what is paid for a prior that does not fit
    q(y) = mean of q_j(y) over the N points, p(y) likewise

mi_bits is InfoNCE with the exact density as critic: it cannot exceed log2 N, its ceiling, and a channel near that has
more (Poole et al. 2019, "On variational bounds of mutual information", section 2.3). With one prior for all places
KL = MI + gap exactly (Hoffman, Johnson 2016, "ELBO surgery"), and gap_bits is that difference. Where the prior is
conditional (a hyper-latent was coded first), KL is less than MI + gap by what the condition told.

Active: the variance over the data of the posterior mean, in units of the channel, is above 0.01 (Burda et al. 2016,
"Importance weighted autoencoders", section 5.3; units: the standard deviation that the model itself starts from).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.pln import network as ladder
from latcodec.backends.vbq import network as gaussian_vae
from latcodec.errors import OptionError

ACTIVE_VARIANCE = 0.01
POINTS = 1024  # 10 bits of ceiling; the cost grows with its square
BATCH = 8


@dataclass(frozen=True)
class Level:
    """Posterior and prior of one level of latents at all places, float32 [C, N] each; unit [C]: see Active above."""

    name: str
    mean: Tensor
    variance: Tensor
    prior_mean: Tensor
    prior_variance: Tensor
    unit: Tensor


def can(model: torch.nn.Module) -> bool:
    """Whether a model has the Gaussian posteriors this file is about: those of vbq and pln."""
    return isinstance(model, (gaussian_vae.GaussianVAE, ladder.Ladder))


@torch.no_grad()
def diagnose(
    model: torch.nn.Module, crops: np.ndarray, t: float, *, prior: str | None = None, points: int = POINTS,
    seed: int = 0, autocast: bool = False,
) -> dict:  # fmt: skip
    """The channels of a model on validation crops at one rate, as plain Python values.

    crops: uint8 [n, 3, s, s], s a multiple of 64. t: rate index / 255, 0 ... 1. prior: of vbq, "hyper" or "normal",
    N(0, 1); otherwise that of its objective. points: places to draw from all, the N of the ceiling. Does not touch
    torch's global random state. Returns {"t", "points", "ceiling_bits", "active_variance", "levels": {name: {"prior",
    "channels": [{"channel", "kl_bits", "mi_bits", "gap_bits", "variance_of_mean", "active"}], "active": count,
    "kl_bits", "mi_bits": mean of the channels}}}; bits are per place of the level. Raises OptionError.
    """
    if not can(model):
        raise OptionError(f"{type(model).__name__} has no Gaussian posterior to diagnose")
    if points < 1 or not len(crops):
        raise OptionError("a diagnosis needs at least one crop and one point")
    device = next(model.parameters()).device
    parts: list[list[Level]] = []
    for start in range(0, len(crops), BATCH):
        x = torch.from_numpy(np.ascontiguousarray(crops[start : start + BATCH])).to(device).float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        rate = torch.full((len(x),), float(t), device=device)
        if isinstance(model, ladder.Ladder):
            if prior is not None:
                raise OptionError(f"prior {prior}: the ladder has but its own")
            parts.append(_of_ladder(model, x, rate, autocast))
        else:
            parts.append(_of_gaussian_vae(model, x, rate, autocast, prior))
    levels = {}
    for same in zip(*parts, strict=True):
        tensors = ("mean", "variance", "prior_mean", "prior_variance")
        joined = {name: torch.cat([getattr(part, name) for part in same], 1) for name in tensors}
        levels[same[0].name] = of_level(Level(same[0].name, **joined, unit=same[0].unit), points, seed)
    most = max(level["points"] for level in levels.values())
    return {"t": float(t), "points": most, "ceiling_bits": math.log2(most), "active_variance": ACTIVE_VARIANCE,
            "levels": levels}  # fmt: skip


@torch.no_grad()
def of_level(level: Level, points: int = POINTS, seed: int = 0) -> dict:
    """The entry of one level in what `diagnose` returns, and its "points", fewer if it has fewer places."""
    dice = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(level.mean.shape[1], generator=dice)[:points].to(level.mean.device)
    noise = torch.randn(level.mean.shape[0], len(chosen), generator=dice).to(level.mean.device)
    means, variances = level.mean[:, chosen], level.variance[:, chosen]
    priors = level.prior_mean[:, chosen], level.prior_variance[:, chosen]
    kl = _divergence(means, variances, *priors).mean(1) / math.log(2)
    spread = means.var(1, correction=0) / level.unit.square()
    fixed = all(bool((part == part[:, :1]).all()) for part in priors)
    rows = []
    for channel, (mean, variance) in enumerate(zip(means, variances, strict=True)):
        sample = mean + variance.sqrt() * noise[channel]
        mixed = _log_mixture(sample, mean, variance)
        mi = (_log_density(sample, mean, variance) - mixed).mean().item() / math.log(2)
        paid = kl[channel].item()
        if fixed:
            gap = paid - mi
        else:
            prior = _log_mixture(sample, *(part[channel] for part in priors))
            gap = (mixed - prior).mean().item() / math.log(2)
        rows.append({"channel": channel, "kl_bits": paid, "mi_bits": mi, "gap_bits": gap,
                     "variance_of_mean": spread[channel].item(),
                     "active": spread[channel].item() > ACTIVE_VARIANCE})  # fmt: skip
    return {
        "prior": "fixed" if fixed else "conditional",
        "points": len(chosen),
        "channels": rows,
        "active": sum(row["active"] for row in rows),
        "kl_bits": sum(row["kl_bits"] for row in rows) / len(rows),
        "mi_bits": sum(row["mi_bits"] for row in rows) / len(rows),
    }


def _divergence(mean: Tensor, variance: Tensor, prior_mean: Tensor, prior_variance: Tensor) -> Tensor:
    """KL(q_i || p_i) in nats, same shape."""
    ratio = variance / prior_variance
    return 0.5 * (ratio - 1 - ratio.log() + (mean - prior_mean).square() / prior_variance)


def _log_density(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(y; mean, variance) + log(2 pi) / 2, which cancels in every difference."""
    return -0.5 * (variance.log() + (y - mean).square() / variance)


def _log_mixture(y: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log of the mean over j of N(y_i; mean_j, variance_j), likewise; [N] from three [N]."""
    return torch.logsumexp(_log_density(y[:, None], mean, variance), 1) - math.log(len(mean))


def _places(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [C, B h w]"""
    return x.transpose(0, 1).flatten(1).float()


def _of_gaussian_vae(model, x: Tensor, t: Tensor, autocast: bool, prior: str | None) -> list[Level]:
    prior = prior or ("hyper" if model.config.tempered else "normal")
    if prior not in ("hyper", "normal"):
        raise OptionError(f"prior {prior}: hyper or normal")
    rate = model.at_rate(t)
    y, log_h = model.likelihood(x, autocast)
    noise = rate["noise"] if prior == "hyper" or model.config.tempered else torch.ones_like(rate["noise"])
    prior_mean, s2 = torch.zeros_like(y), torch.ones_like(y)
    if prior == "hyper":
        z, _ = model.code_z(y, rate, autocast, noise=False)
        prior_mean, log_v, log_h_expected = model.hyper_synthesis(z, t, rate)
        s2 = gaussian_vae.sent_variance(log_v, noise.log() - log_h_expected)
    mean, variance, _ = gaussian_vae.posterior(y, noise * torch.exp(-log_h), prior_mean, s2)
    unit = torch.ones(y.shape[1], device=y.device)
    return [Level("y", *map(_places, (mean, variance, prior_mean, s2)), unit)]


def _of_ladder(model, x: Tensor, t: Tensor, autocast: bool) -> list[Level]:
    """z2 as the model samples it in evaluation; q = evidence times prior, so that p_i = q_i where nothing is seen."""
    rate = model.at_rate(t)
    mu_x = model.analysis(x, autocast)
    mu_2 = model.hyper_analysis(mu_x, autocast)
    nats = model.nats_of_z2(rate)
    mean_2, sigma_2, _ = ladder.posterior(mu_2, rate["z2_log_sigma"], rate["z2_mean"], nats)
    z2 = mean_2 + sigma_2 * model._fixed_noise(mean_2, model.config.latent)
    found = []
    prior_mean, nats_1 = model.prior_of_z1(z2, rate)
    mean_1, sigma_1, _ = ladder.posterior(mu_x, rate["z1_log_sigma"], prior_mean, nats_1)
    for name, mean, sigma, centre, log_sigma, expected, unit in (
        ("z1", mean_1, sigma_1, prior_mean, rate["z1_log_sigma"], nats_1, model.y_log_std.exp()),
        ("z2", mean_2, sigma_2, rate["z2_mean"], rate["z2_log_sigma"], nats, rate["z2_log_std"].exp()[0, :, 0, 0]),
    ):
        # Variance of p: sigma^2 (exp(2 R) - 1), kept off zero as the posterior's own is.
        prior_variance = (torch.expm1(2 * expected) + 1e-12) * torch.exp(2 * log_sigma)
        every = (t.expand_as(mean) for t in (mean, sigma.square(), centre, prior_variance))
        found.append(Level(name, *map(_places, every), unit))
    return found
