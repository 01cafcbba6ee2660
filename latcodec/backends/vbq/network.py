"""A Gaussian VAE whose posterior serves every rate, and the hyper-latent prior of its latents.

Source: Yang, Bamler, Mandt 2020, "Variational Bayesian Quantization": model and objective of section 4.2.2, quantised
after training. The paper's model is `tempered=False`, this project's `tempered=True`.

    y, log h = g_a(x)                   the likelihood seen from latent space: its mode and its curvature,
                                        -log p(x | y') = h (y' - y)^2 / 2 + const, in units of the prior
    q(y' | x) = N(mean, variance)       the posterior: Gaussian likelihood times the prior N(m, s^2),
        d = lambda / (lambda0 h),  k = s^2 / (s^2 + d),  mean = m + k (y - m),  variance = k d
    x_hat = g_s(y'),  p(x | y') = N(x; x_hat, 0.001)

lambda prices a bit; at lambda0 = ln 2 the Lagrangian D / (2 s2) + lambda R is the negative ELBO in nats. The paper
knows only that one, and the prior N(0, 1): variance = 1 / (1 + h). Tempered, each crop has its own lambda: the same
(y, h) gives the posterior of each in closed form, and nothing has to know yet how latents will be quantised.

Prior N(0, 1) of y, or the hyper-latent's N(m, s^2), for which z is coded first (see models/hyperprior.py for z):

    z_hat = round(a(t) z - n(t)) + n(t),  z = h_a(y)
    m, l, c = h_s(z_hat / a(t), t)
    mean of y = b(t) m,  log std of y = e(t) + l,  log curvature expected = base + c

A Gaussian of variance v, sent at distortion d, is the variable y' of variance s^2 = v - d (the test channel of the
rate-distortion function), nothing if v < d: so s^2 = d softplus(K (v / d - 1)) / K. Tempered, the rate in the loss is
the divergence from that prior; a small share of the divergence from N(0, 1) keeps y in units in which the paper's
prior is right. A quantiser knows v and d before it reads a symbol: v / d says which table, d which step.

With mi_weight w the objective also holds -w I, a lower bound of the mutual information, in bits, between the first
mi_fraction of the channels, c, and what is generated from them:

    y' ~ N(0, 1),  x' ~ N(g_s(y'), 0.001 lambda / lambda0),  I = E log q(c | x') + H(c),  H(c) = ln(2 pi e) / 2 a number

Source: Ducau, Trenous, "Mutual Information in Variational Autoencoders", section 2.1.2, after Barber and Agakov 2003.
q is the posterior under N(0, 1), the variance that of the likelihood at the crop's lambda. I is of the model's own
samples; of pictures, E KL = I + KL(q(y') || p(y')), so that a codec pays for every bit: see train/diagnostics.py.
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
    logistic_bits,
    lower_bound,
    round_straight_through,
)
from latcodec.rates import LAMBDA_MAX, LAMBDA_MIN, LIKELIHOOD_VARIANCE

Z_SIGMA_MIN = 0.08
ROUNDED_SIGMA_MIN = 0.05  # of the estimate that rounds, in steps
SOFTNESS = 3.0  # K
CURVATURE_REACH = 6.0  # log h stays within this of its channel's base
RATIO_MIN, RATIO_MAX = -8.0, 16.0  # of log(v / d)
T_ELBO = math.log(math.log(2) / LAMBDA_MAX) / math.log(LAMBDA_MIN / LAMBDA_MAX)  # where lambda is lambda0


@dataclass(frozen=True)
class Config:
    """Widths of the three inner stages, of y, of the hyper-networks and of z; number of rate knots.

    tempered: train at every lambda against the hyper prior, else the paper's ELBO with N(0, 1) (the hyper prior then
    learns beside it, without touching it). normal_share: weight of the divergence from N(0, 1) when tempered.
    curvature_share: weight, in bits, of the squared error of the expected log curvature. mi_weight: of the mutual
    information of the first mi_fraction of the channels (the paper's half); 0 leaves it out. metric: the
    distortion it is trained for, one of `rates.METRICS`. Raises ValueError.
    """

    widths: tuple[int, int, int] = (48, 80, 128)
    latent: int = 192
    hyper_width: int = 128
    hyper_latent: int = 96
    knots: int = 9
    tempered: bool = True
    normal_share: float = 0.02
    curvature_share: float = 0.1
    mi_weight: float = 0.0
    mi_fraction: float = 0.5
    metric: str = "mse"

    def __post_init__(self) -> None:
        if not 0 <= self.mi_weight < math.inf:
            raise ValueError(f"mi_weight {self.mi_weight} is not a finite number from 0 on")
        if not 0 < self.mi_fraction <= 1:
            raise ValueError(f"mi_fraction {self.mi_fraction} is not in 0 < ... <= 1")


class GaussianVAE(nn.Module):
    """The networks and the functions of the rate; see the module's equations."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        a, b, c = config.widths
        y, h, z, k = config.latent, config.hyper_width, config.hyper_latent, config.knots
        self.g_a = nn.Sequential(conv(3, a), GDN(a), conv(a, b), GDN(b), conv(b, c), GDN(c), conv(c, y))
        self.curvature_head = conv(c, y, 3)
        self.g_s = nn.Sequential(
            deconv(y, c), GDN(c, True), deconv(c, b), GDN(b, True), deconv(b, a), GDN(a, True), deconv(a, 3)
        )
        self.h_a = nn.Sequential(conv(y, h, 3, 1), leaky(), conv(h, h), leaky(), conv(h, z))
        self.h_s = nn.Sequential(deconv(z + 1, h), leaky(), deconv(h, y), leaky(), conv(y, 3 * y, 1, 1))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        # An orthonormal transform has curvature 1 / s2 in the units of g_a.
        self.log_curvature = nn.Parameter(torch.full((y,), -math.log(LIKELIHOOD_VARIANCE)))
        self.mean_log_gain = nn.Parameter(torch.zeros(k, y))
        self.scale_offset = nn.Parameter(torch.zeros(k, y))
        self.z_log_gain = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))
        self.z_mean = nn.Parameter(torch.zeros(k, z))
        self.z_log_sigma = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))
        with torch.no_grad():
            self.h_s[-1].weight.mul_(0.1)
            self.h_s[-1].bias.zero_()
            self.curvature_head.weight.mul_(0.1)
            self.curvature_head.bias.zero_()

    def start_from_latent_std(self, std: Tensor) -> None:
        """Set the units of y from the measured standard deviation of g_a's output, float32 [C]."""
        with torch.no_grad():
            self.y_log_std.copy_(std.clamp_min(1e-3).log())
            self.log_curvature.add_(2 * self.y_log_std)

    def at_rate(self, t: Tensor) -> dict[str, Tensor]:
        """Every function of the rate at t float32 [B]: tensors [B, C, 1, 1]; "noise" is lambda / lambda0."""
        names = "mean_log_gain scale_offset z_log_gain z_mean z_log_sigma".split()
        rate = {name: interpolate_knots(getattr(self, name), t)[:, :, None, None] for name in names}
        lmbda = LAMBDA_MAX * torch.exp(math.log(LAMBDA_MIN / LAMBDA_MAX) * t)
        return rate | {"noise": (lmbda / math.log(2))[:, None, None, None]}

    def likelihood(self, x: Tensor, autocast: bool = False) -> tuple[Tensor, Tensor]:
        """x float32 [B, 3, H, W] in 0..1, sides multiples of 16 -> y and log h, float32 [B, C, H/16, W/16]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            features = self.g_a[:-1](x - 0.5)
        features = features.float()  # bf16 latents would be coarser than the quantiser at high rates
        y = self.g_a[-1](features) * torch.exp(-self.y_log_std)[:, None, None]
        log_h = self.curvature_head(features).clamp(-CURVATURE_REACH, CURVATURE_REACH)
        return y, log_h + self.log_curvature[:, None, None]

    def analysis(self, x: Tensor, autocast: bool = False) -> Tensor:
        """y alone, see `likelihood`."""
        return self.likelihood(x, autocast)[0]

    def synthesis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """y float32 [B, C, h, w] in units of the prior -> x_hat float32 [B, 3, 16 h, 16 w], not clamped."""
        h = self.g_s[0](y * torch.exp(self.y_log_std)[:, None, None])
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_s[1:-1](h)
        return deconv_to_pixels(self.g_s[-1], h.float()) + 0.5

    def hyper_analysis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """y float32 [B, C, h, w], h and w multiples of 4 -> z float32 [B, Z, h/4, w/4]."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.h_a[:-1](y)
        return self.h_a[-1](h.float())

    def hyper_synthesis(self, z: Tensor, t: Tensor, rate: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """z_hat / a(t) -> mean, log variance and log curvature expected of y, float32 [B, C, h, w] each."""
        plane = (2 * t - 1)[:, None, None, None].expand(-1, 1, *z.shape[2:])
        m, log_scale, log_h = self.h_s(torch.cat([z, plane], 1)).chunk(3, 1)
        log_h = log_h.clamp(-CURVATURE_REACH, CURVATURE_REACH) + self.log_curvature.detach()[:, None, None]
        return m * rate["mean_log_gain"].exp(), 2 * (log_scale + rate["scale_offset"]), log_h

    def code_z(self, y: Tensor, rate: dict[str, Tensor], autocast: bool, noise: bool) -> tuple[Tensor, Tensor]:
        """z_hat / a(t), float32 [B, Z, h/4, w/4], and its bits [B]; with `noise` the bits of z plus uniform noise."""
        gain = rate["z_log_gain"].exp()
        residual = self.hyper_analysis(y, autocast) * gain - rate["z_mean"]
        rounded = round_straight_through(residual)
        coded = residual + torch.rand_like(residual) - 0.5 if noise else rounded
        sigma = lower_bound(rate["z_log_sigma"].exp(), Z_SIGMA_MIN).expand_as(coded)
        return (rounded + rate["z_mean"]) / gain, logistic_bits(coded, sigma).sum((1, 2, 3))


def sent_variance(log_variance: Tensor, log_noise: Tensor) -> Tensor:
    """s^2 of the module's equations, from log v and log d; any shape."""
    ratio = (log_variance - log_noise).clamp(RATIO_MIN, RATIO_MAX)
    return log_noise.exp() * F.softplus(SOFTNESS * torch.expm1(ratio)) / SOFTNESS


def posterior(y: Tensor, d: Tensor, mean: Tensor | float, s2: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the posterior under the prior N(mean, s2), and its divergence from it in bits."""
    k = s2 / (s2 + d)
    shift = k * (y - mean)
    divergence = 0.5 * (torch.log1p(s2 / d) + d / (s2 + d) - 1 + shift * shift / s2)
    return mean + shift, k * d, divergence / math.log(2)


def information_bits(sample: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log2 N(sample; mean, variance) + H of a sample of N(0, 1); its mean is at most the mutual information."""
    return (1 - variance.log() - (sample - mean).square() / variance) / (2 * math.log(2))


def mutual_information(
    model: GaussianVAE, shape: tuple[int, int], rate: dict[str, Tensor], autocast: bool = False
) -> Tensor:
    """The bound I of the module's equations from one sample: bits [B, C', h, w] of latents (h, w), C' those of c."""
    noise = rate["noise"]
    sent = torch.randn(noise.shape[0], model.config.latent, *shape, device=noise.device)
    x = model.synthesis(sent.contiguous(memory_format=torch.channels_last), autocast)
    x = x + (LIKELIHOOD_VARIANCE * noise).sqrt() * torch.randn_like(x)
    y, log_h = model.likelihood(x, autocast)
    mean, variance, _ = posterior(y, noise * torch.exp(-log_h), 0.0, torch.ones_like(y))
    count = max(1, round(model.config.mi_fraction * model.config.latent))
    return information_bits(sent[:, :count], mean[:, :count], variance[:, :count])


def loss(
    model: GaussianVAE, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True, progress: Tensor | None = None
) -> dict[str, Tensor]:
    """Per picture: L = bpp + lc * 255^2 * MSE, weighted by lc^-1/2 so that no rate dominates a batch.

    With `noise` latents are samples of the posterior; without, they are rounded to steps of sqrt(12 d), which is nearly
    what a quantiser will do. Returns the scalar "loss" and, per picture [B], "bpp", "mse", "lagrangian" and "z_bpp",
    the share of z; "normal_bpp" is the divergence from N(0, 1) at the same lambda. With `noise` and mi_weight also
    "mi_bpp", the bound of the mutual information.
    """
    config, pixels = model.config, x.shape[2] * x.shape[3]
    rate = model.at_rate(t)
    y, log_h = model.likelihood(x, autocast)
    shared = (y, log_h) if config.tempered else (y.detach(), log_h.detach())
    z, z_bits = model.code_z(shared[0], rate, autocast, noise)
    mean, log_v, log_h_expected = model.hyper_synthesis(z, t, rate)
    log_d = rate["noise"].log() - log_h_expected
    s2 = sent_variance(log_v, log_d)
    d = rate["noise"] * torch.exp(-shared[1])
    sample_mean, variance, bits = posterior(shared[0], d, mean, s2)
    sample = sample_mean + variance.sqrt() * torch.randn_like(y) if noise else sample_mean
    # Around the best step a wrong one costs about 0.36 bits times the squared error of its log variance.
    wrong = config.curvature_share * (s2 / (s2 + d)).detach() * (log_h_expected - shared[1].detach()).square()
    d_normal = rate["noise"] * torch.exp(-log_h) if config.tempered else torch.exp(-log_h)
    normal_mean, normal_variance, normal_bits = posterior(y, d_normal, 0.0, torch.ones_like(y))
    lc = distortion_weights(t)

    if noise and not config.tempered:  # the ELBO alone, and beside it a surrogate for the hyper prior: D is quadratic
        sent = normal_mean + normal_variance.sqrt() * torch.randn_like(y)
        extra = (sample_mean - shared[0]).square() + variance
        beside = (extra / (2 * d * math.log(2)) + bits + wrong).sum((1, 2, 3)) + z_bits
        x_hat = model.synthesis(sent, autocast)
        bpp = normal_bits.sum((1, 2, 3)) / pixels
        mse = (x_hat - x).square().mean((1, 2, 3))
        elbo = bpp + distortion_weights(torch.full_like(t, T_ELBO)) * 255**2 * mse
        objective = elbo + beside / pixels
    else:
        if noise:
            x_hat = model.synthesis(sample, autocast)
            bpp = (bits.sum((1, 2, 3)) + z_bits) / pixels
        else:
            log_step = 0.5 * (log_d + math.log(12))
            rounded = ((y - mean) * torch.exp(-log_step)).round()
            x_hat = model.synthesis(mean + rounded * log_step.exp(), autocast).clamp(0, 1)
            sigma = (0.5 * log_v - log_step).exp().clamp(ROUNDED_SIGMA_MIN, 1e4)
            bpp = (logistic_bits(rounded, sigma).sum((1, 2, 3)) + z_bits) / pixels
        mse = (x_hat - x).square().mean((1, 2, 3))
        share = config.normal_share * normal_bits + wrong
        objective = (bpp + lc * 255**2 * mse + share.sum((1, 2, 3)) / pixels) / lc.sqrt()
    told = {"bpp": bpp, "mse": mse, "lagrangian": bpp + lc * 255**2 * mse, "z_bpp": z_bits / pixels,
            "normal_bpp": normal_bits.sum((1, 2, 3)) / pixels}  # fmt: skip
    if noise and config.mi_weight:  # last, so that the noise of all else is the same with and without
        elbo_rate = rate if config.tempered else rate | {"noise": torch.ones_like(rate["noise"])}
        told["mi_bpp"] = mutual_information(model, y.shape[2:], elbo_rate, autocast).sum((1, 2, 3)) / pixels
        objective = objective - config.mi_weight * told["mi_bpp"] / (lc.sqrt() if config.tempered else 1)
    return {"loss": objective.mean()} | told
