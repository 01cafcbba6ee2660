"""PLN: a two-level probabilistic ladder network whose posterior samples are what is coded; nothing is rounded.

Source: Flamich 2019, "Compression without quantization" (probabilistic ladder network, chapters 3 and 4), after
Sonderby et al. 2016, "Ladder variational autoencoders". Conditioned on the rate index / 255 = t; c counts channels.

    mu_x = g_a(x)                                          1/16 of the size; evidence N(mu_x, s1(t, c)^2) about z1
    mu_2 = h_a(mu_x / s)                                   1/64; evidence N(mu_2, s2(t, c)^2) about z2
    p(z2) = N(n(t, c), v(t, c)^2)                          q(z2|x) = product of the evidence and p(z2)
    m, l = h_s(z2)                                         top-down: the network that decides bits
    R = softplus(4 a) / 4, a = l + o(t, c) - log s1        nats that the decoder expects of a dimension
    p(z1|z2) = N(b(t, c) m, s1^2 (exp(2 R) - 1))           q(z1|x, z2) = product of the evidence and p(z1|z2)
    x_hat = g_s(z1)

For a Gaussian source with known variance and squared error, evidence of one precision everywhere is the optimal test
channel: s1^2 is the water level. So s1 depends on rate and channel alone, and the expected KL of a dimension,
R = log(1 + s_p^2 / s1^2) / 2, is known to the decoder from z2: nothing of the bit allocation has to be sent.
exp(a) is the predicted standard deviation of mu_x in units of s1; below the water level R falls to 0 fast.

With w = 1 - exp(-2 R) and d = mu_x - m the product has mean m + w d and variance w s1^2, and
KL = R - w / 2 + w exp(-2 R) d^2 / (2 s1^2): nothing divides by a variance that may vanish.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.nn.layers import (
    GDN,
    conv,
    deconv,
    deconv_to_pixels,
    distortion_weights,
    interpolate_knots,
    leaky,
    lower_bound,
)
from latcodec.rates import distortion_weight, lambda_of_index

RAMP = 4.0  # sharpness of the ramp that turns a into R
PLACE_MIN, PLACE_MAX = -3.0, 8.0  # of a: up to 11.5 bits per dimension
EVALUATION_TILE = 32  # latents: side of the fixed noise that evaluation repeats


@dataclass(frozen=True)
class Config:
    """Widths of the three inner stages, of z1, of the hyper-networks and of z2; number of rate knots; the objective.

    likelihood: "gaussian" (mean squared error) or "laplace" (the thesis'). gamma: learn the likelihood's scale, from
    above and never below its target. warmup: share of the run in which the weight of the KL rises from 1/2 to 1.
    metric: the distortion it is trained for, one of `rates.METRICS`.
    """

    widths: tuple[int, int, int] = (48, 80, 128)
    latent: int = 192
    hyper_width: int = 128
    hyper_latent: int = 96
    knots: int = 9
    likelihood: str = "gaussian"
    gamma: bool = False
    warmup: float = 0.01
    metric: str = "mse"


def gaussian_product(mean_a: Tensor, sigma_a: Tensor, mean_b: Tensor, sigma_b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the normalised product of two Gaussian densities."""
    precision = sigma_a**-2 + sigma_b**-2
    return (mean_a * sigma_a**-2 + mean_b * sigma_b**-2) / precision, precision**-0.5


def posterior(evidence: Tensor, log_sigma: Tensor, mean: Tensor, nats: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and KL to the prior (nats) of evidence N(., sigma^2) times a prior of R nats."""
    left = torch.exp(-2 * nats)
    weight = -torch.expm1(-2 * nats)
    difference = evidence - mean
    kl = nats - 0.5 * weight + 0.5 * weight * left * (difference * torch.exp(-log_sigma)).square()
    return mean + weight * difference, (weight + 1e-12).sqrt() * torch.exp(log_sigma), kl


class Ladder(nn.Module):
    """The networks and the functions of the rate; see the module's equations."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        a, b, c = config.widths
        y, h, z, k = config.latent, config.hyper_width, config.hyper_latent, config.knots
        self.g_a = nn.Sequential(conv(3, a), GDN(a), conv(a, b), GDN(b), conv(b, c), GDN(c), conv(c, y))
        self.g_s = nn.Sequential(
            deconv(y, c), GDN(c, True), deconv(c, b), GDN(b, True), deconv(b, a), GDN(a, True), deconv(a, 3)
        )
        self.h_a = nn.Sequential(conv(y, h, 3, 1), leaky(), conv(h, h), leaky(), conv(h, z))
        self.h_s = nn.Sequential(deconv(z, h), leaky(), deconv(h, y), leaky(), conv(y, 2 * y, 1, 1))
        # The noise of a uniform quantiser whose step is right at this rate: 1/9 at lc = .0067, proportional to lc^-1/2.
        weights = [distortion_weight(lambda_of_index(255 * i / (k - 1))) for i in range(k)]
        log_sigma = torch.tensor([-math.log(9 * math.sqrt(12)) - 0.5 * math.log(w / 0.0067) for w in weights])[:, None]
        self.z1_log_sigma = nn.Parameter(log_sigma.repeat(1, y))
        self.mean_log_gain = nn.Parameter(torch.zeros(k, y))
        self.scale_offset = nn.Parameter(torch.zeros(k, y))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        self.z2_log_sigma = nn.Parameter(torch.linspace(math.log(0.2), math.log(0.05), k)[:, None].repeat(1, z))
        self.z2_mean = nn.Parameter(torch.zeros(k, z))
        self.z2_log_std = nn.Parameter(torch.zeros(k, z))
        if config.gamma:  # log of the likelihood's scale over its target
            self.log_gamma = nn.Parameter(torch.full((k, 1), 0.5))
        with torch.no_grad():
            self.h_s[-1].weight.mul_(0.1)
            self.h_s[-1].bias.zero_()
        noise = torch.Generator().manual_seed(0)
        shape = (y + z, EVALUATION_TILE, EVALUATION_TILE)
        self.register_buffer("evaluation_noise", torch.randn(shape, generator=noise), persistent=False)

    def start_from_latent_std(self, std: Tensor) -> None:
        """Set the prior's scales from the measured standard deviation of g_a's output, float32 [C]."""
        with torch.no_grad():
            self.y_log_std.copy_(std.clamp_min(1e-3).log())
            self.mean_log_gain.add_(self.y_log_std)
            self.scale_offset.add_(self.y_log_std)

    def at_rate(self, t: Tensor) -> dict[str, Tensor]:
        """Every function of the rate at t float32 [B]: tensors [B, C, 1, 1]."""
        names = "z1_log_sigma mean_log_gain scale_offset z2_log_sigma z2_mean z2_log_std".split()
        return {name: interpolate_knots(getattr(self, name), t)[:, :, None, None] for name in names}

    def analysis(self, x: Tensor, autocast: bool = False) -> Tensor:
        """x float32 [B, 3, H, W] in 0..1, H and W multiples of 16 -> mu_x float32 [B, C, H/16, W/16]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_a[:-1](x - 0.5)
        return self.g_a[-1](h.float())  # bf16 latents would be coarser than the noise at high rates

    def synthesis(self, z1: Tensor, autocast: bool = False) -> Tensor:
        """z1 float32 [B, C, h, w] -> x_hat float32 [B, 3, 16 h, 16 w], not clamped."""
        h = self.g_s[0](z1)
        with torch.autocast(z1.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_s[1:-1](h)
        return deconv_to_pixels(self.g_s[-1], h.float()) + 0.5

    def hyper_analysis(self, mu_x: Tensor, autocast: bool = False) -> Tensor:
        """mu_x float32 [B, C, h, w], h and w multiples of 4 -> mu_2 float32 [B, Z, h/4, w/4]."""
        with torch.autocast(mu_x.device.type, torch.bfloat16, enabled=autocast):
            h = self.h_a[:-1](mu_x * torch.exp(-self.y_log_std)[:, None, None])
        return self.h_a[-1](h.float())

    def prior_of_z1(self, z2: Tensor, rate: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and expected nats R of z1, float32 [B, C, h, w] both, from z2 float32 [B, Z, h/4, w/4]."""
        m, log_scale = self.h_s(z2).chunk(2, 1)
        place = (log_scale + rate["scale_offset"] - rate["z1_log_sigma"]).clamp(PLACE_MIN, PLACE_MAX)
        return m * rate["mean_log_gain"].exp(), F.softplus(RAMP * place) / RAMP

    def nats_of_z2(self, rate: dict[str, Tensor]) -> Tensor:
        """Expected nats of each channel of z2, float32 [B, Z, 1, 1]."""
        return 0.5 * F.softplus(2 * (rate["z2_log_std"] - rate["z2_log_sigma"]))

    def forward(self, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True) -> dict[str, Tensor]:
        """x float32 [B, 3, H, W] (multiples of 64), t float32 [B] -> x_hat, kl1 [B], kl2 [B] in bits.

        Both levels are posterior samples; without `noise` those of a fixed noise, so that evaluation repeats.
        """
        rate = self.at_rate(t)
        mu_x = self.analysis(x, autocast)
        mu_2 = self.hyper_analysis(mu_x, autocast)
        mean, sigma, kl2 = posterior(mu_2, rate["z2_log_sigma"], rate["z2_mean"], self.nats_of_z2(rate))
        z2 = mean + sigma * (torch.randn_like(mean) if noise else self._fixed_noise(mean, self.config.latent))
        prior_mean, nats = self.prior_of_z1(z2, rate)
        mean, sigma, kl1 = posterior(mu_x, rate["z1_log_sigma"], prior_mean, nats)
        z1 = mean + sigma * (torch.randn_like(mean) if noise else self._fixed_noise(mean, 0))
        return {
            "x_hat": self.synthesis(z1, autocast),
            "kl1": kl1.sum((1, 2, 3)) / math.log(2),
            "kl2": kl2.sum((1, 2, 3)) / math.log(2),
        }

    def _fixed_noise(self, like: Tensor, first: int) -> Tensor:
        channels, height, width = like.shape[1:]
        tile = self.evaluation_noise[first : first + channels]
        return tile.repeat(1, -(-height // EVALUATION_TILE), -(-width // EVALUATION_TILE))[:, :height, :width]


def loss(
    model: Ladder,
    x: Tensor,
    t: Tensor,
    autocast: bool = False,
    noise: bool = True,
    progress: Tensor | None = None,
) -> dict[str, Tensor]:
    """Per picture: L = bpp + lc * 255^2 * MSE, bpp the KL of both levels, weighted by lc^-1/2.

    The Laplace likelihood has the scale at which its slope is that of the squared error at the distortion one expects;
    a learned gamma divides the distortion and keeps its normaliser (3 log gamma nats per pixel), and is clamped at 1.
    It ends there, with the plain objective, where the distortion is below 1.5 nats (Laplace: 3) per pixel; above, at
    the highest rates, it stays larger and its model spends fewer bits than lambda says. Returns the scalar "loss" and,
    per picture [B], "bpp", "mse" (of the [0, 1] range), "lagrangian" (always of squared error) and "z_bpp", the share
    of z2.
    """
    out = model(x, t, autocast, noise)
    x_hat = out["x_hat"] if noise else out["x_hat"].clamp(0, 1)
    mse = (x_hat - x).square().mean((1, 2, 3))
    pixels = x.shape[2] * x.shape[3]
    bpp = (out["kl1"] + out["kl2"]) / pixels
    lc = distortion_weights(t)
    lagrangian = bpp + lc * 255**2 * mse
    power = 2.0
    distortion = lc * 255**2 * mse
    if model.config.likelihood == "laplace":
        expected = 0.028 * (lc / 0.0067) ** -0.4  # root mean squared error of a trained model, roughly
        power, distortion = 1.0, 2 * lc * 255**2 * expected * (x_hat - x).abs().mean((1, 2, 3))
    if model.config.gamma:
        log_gamma = lower_bound(interpolate_knots(model.log_gamma, t)[:, 0], 0.0)
        distortion = distortion * torch.exp(-power * log_gamma) + log_gamma * (3 / math.log(2))
    weight = 1.0
    if progress is not None and model.config.warmup > 0:
        weight = 0.5 + 0.5 * (progress / model.config.warmup).clamp_max(1)
    objective = weight * bpp + distortion
    return {"loss": (objective / lc.sqrt()).mean(), "bpp": bpp, "mse": mse, "lagrangian": lagrangian,
            "z_bpp": out["kl2"] / pixels}  # fmt: skip
