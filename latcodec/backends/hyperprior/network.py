"""Mean-scale hyperprior with one set of weights for every rate.

Source: Balle, Minnen, Singh, Hwang, Johnston 2018, "Variational image compression with a scale hyperprior"; the mean
is Minnen, Balle, Toderici 2018, "Joint autoregressive and hierarchical priors", without its context model.

    y = g_a(x)                                     analysis, 1/16 of the size
    z = h_a(y / s)                                 hyper-analysis, 1/64; s is one learned scale per channel
    z_hat = round(a(t) z - n(t)) + n(t)            n, v: mean and log scale per channel; p(z_hat) = L(n(t), v(t)) * U
    m, l = h_s(z_hat / a(t))                       hyper-synthesis: the network that decides bits
    mu = b(t) m, log sigma = c(t) + l              in units of the quantiser's step
    y_hat = round(g(t) y - mu) + mu                p(y_hat) = L(mu, sigma) * U, Eq. 11
    x_hat = g_s(i(t) y_hat)                        synthesis

t in 0..1 is the rate index / 255; a, b, c, g, i, n, v are piecewise linear in t, per channel (the gains in the log
domain). So h_s sees the same domain at every rate, and a change of rate is a shift of its log scales: integers stay
small. L is the logistic distribution of that mean and standard deviation: heavier in the tail than the papers'
Gaussian, as the residuals are. The prior of z is one per channel and rate and shares the frozen
tables of y.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latcodec.nn.layers import (
    GDN,
    conv,
    deconv,
    deconv_to_pixels,
    interpolate_knots,
    leaky,
    logistic_bits,
    lower_bound,
    rate_distortion_loss,
    round_straight_through,
)
from latcodec.nn.symbol_costs import SIGMA_MAX, SIGMA_MIN
from latcodec.rates import distortion_weight, lambda_of_index


@dataclass(frozen=True)
class Config:
    """The sizes of the networks.

    Attributes:
        widths: Channels of the three inner stages of analysis and synthesis.
        latent: Channels of y.
        hyper_width: Channels inside the hyper-networks.
        hyper_latent: Channels of z.
        knots: Knots of the functions of the rate.
        metric: The distortion that the networks are trained for, one of `rates.METRICS`.
    """

    widths: tuple[int, int, int] = (48, 80, 128)
    latent: int = 192
    hyper_width: int = 128
    hyper_latent: int = 96
    knots: int = 9
    metric: str = "mse"


class Hyperprior(nn.Module):
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
        # Gains start at the step a uniform quantiser would want: proportional to sqrt(lc), about 9 at lc = .0067.
        weights = [distortion_weight(lambda_of_index(255 * i / (k - 1))) for i in range(k)]
        log_gain = torch.tensor([math.log(9) + 0.5 * math.log(w / 0.0067) for w in weights])[:, None]
        self.y_log_gain = nn.Parameter(log_gain.repeat(1, y))
        self.y_log_inverse_gain = nn.Parameter(-log_gain.repeat(1, y))
        self.mean_log_gain = nn.Parameter(log_gain.repeat(1, y))
        self.scale_offset = nn.Parameter(log_gain.repeat(1, y))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        self.z_log_gain = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))
        self.z_mean = nn.Parameter(torch.zeros(k, z))
        self.z_log_sigma = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))
        with torch.no_grad():
            self.h_s[-1].weight.mul_(0.1)
            self.h_s[-1].bias.zero_()

    def start_from_latent_std(self, std: Tensor) -> None:
        """Set the prior's scales from the measured standard deviation of g_a's output, float32 [C]."""
        with torch.no_grad():
            self.y_log_std.copy_(std.clamp_min(1e-3).log())
            self.mean_log_gain.add_(self.y_log_std)
            self.scale_offset.add_(self.y_log_std)

    def at_rate(self, t: Tensor) -> dict[str, Tensor]:
        """Return every function of the rate at t float32 [B], as tensors [B, C, 1, 1]."""
        names = "y_log_gain y_log_inverse_gain mean_log_gain scale_offset z_log_gain z_mean z_log_sigma".split()
        return {name: interpolate_knots(getattr(self, name), t)[:, :, None, None] for name in names}

    def analysis(self, x: Tensor, autocast: bool = False) -> Tensor:
        """Map x float32 [B, 3, H, W] in 0..1, H and W multiples of 16, to y float32 [B, C, H/16, W/16]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_a[:-1](x - 0.5)
        return self.g_a[-1](h.float())  # bf16 latents would be coarser than the quantiser at high rates

    def synthesis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """Map y float32 [B, C, h, w], in the units of g_a, to x_hat float32 [B, 3, 16 h, 16 w], not clamped."""
        h = self.g_s[0](y)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_s[1:-1](h)
        return deconv_to_pixels(self.g_s[-1], h.float()) + 0.5

    def hyper_analysis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """Map y float32 [B, C, h, w], h and w multiples of 4, to z float32 [B, Z, h/4, w/4]."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.h_a[:-1](y * torch.exp(-self.y_log_std)[:, None, None])
        return self.h_a[-1](h.float())

    def transmit(
        self,
        y: Tensor,
        z: Tensor,
        rate: dict[str, Tensor],
        quantise: Callable[[Tensor], Tensor],
        autocast: bool = False,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return what the decoder makes of latents, and what their symbols are coded with.

        Args:
            y: float32 [B, C, h, w].
            z: float32 [B, Z, ceil(h / 4), ceil(w / 4)].
            rate: Of `at_rate`.
            quantise: Maps residuals to symbols, or to values between them.
            autocast: Whether the synthesis runs in bf16.

        Returns:
            x_hat float32 [B, 3, 16 h, 16 w]; and of z and then of y the residual, the quantised residual and the
            standard deviation of its logistic, all in steps of the quantiser.
        """
        z_gain = rate["z_log_gain"].exp()
        z_residual = z * z_gain - rate["z_mean"]
        z_quantised = quantise(z_residual)
        z_sigma = lower_bound(rate["z_log_sigma"].exp(), SIGMA_MIN).expand_as(z_residual)
        parameters = self.h_s((z_quantised + rate["z_mean"]) / z_gain)[:, :, : y.shape[2], : y.shape[3]]
        m, log_scale = parameters.chunk(2, 1)
        mu = m * rate["mean_log_gain"].exp()
        sigma = lower_bound((log_scale + rate["scale_offset"]).clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
        residual = y * rate["y_log_gain"].exp() - mu
        quantised = quantise(residual)
        x_hat = self.synthesis((quantised + mu) * rate["y_log_inverse_gain"].exp(), autocast)
        return x_hat, [(z_residual, z_quantised, z_sigma), (residual, quantised, sigma)]

    def forward(self, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True) -> dict[str, Tensor]:
        """Run the whole codec on a batch.

        With noise the rate is that of y and z plus uniform noise, while synthesis and hyper-synthesis get rounded
        values (straight-through). Without, everything is rounded and the rate is what the tables charge.

        Args:
            x: float32 [B, 3, H, W] in 0..1, H and W multiples of 64.
            t: Rate positions, float32 [B] in 0..1.
            autocast: Whether the transforms run in bf16.
            noise: Whether the rate is that of noisy latents.

        Returns:
            x_hat of the shape of x, y_bits [B], z_bits [B].
        """
        y = self.analysis(x, autocast)
        z = self.hyper_analysis(y, autocast)
        x_hat, (of_z, of_y) = self.transmit(y, z, self.at_rate(t), round_straight_through, autocast)
        return {"x_hat": x_hat, "y_bits": latent_bits(*of_y, noise), "z_bits": latent_bits(*of_z, noise)}


def latent_bits(residual: Tensor, quantised: Tensor, sigma: Tensor, noise: bool) -> Tensor:
    """Return the bits of each picture, float32 [B], of the quantised residual or, with noise, of the noisy residual."""
    coded = residual + torch.rand_like(residual) - 0.5 if noise else quantised
    return logistic_bits(coded, sigma).sum((1, 2, 3))


def loss(
    model: Hyperprior, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True, progress: Tensor | None = None
) -> dict[str, Tensor]:
    """Return `rate_distortion_loss`, and per picture [B] the share of bpp that z takes, "z_bpp"."""
    out = model(x, t, autocast, noise)
    result = rate_distortion_loss(out["x_hat"], x, out["y_bits"] + out["z_bits"], t, noise)
    return result | {"z_bpp": out["z_bits"] / (x.shape[2] * x.shape[3])}
