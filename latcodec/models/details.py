"""What a transform with fewer latents than samples leaves: the residual picture in blocks, coded beside the latents.

    u = T' (x - x_base)              T: 768 x K, orthonormal, blocks of 16 x 16 pixels and three channels; K of them
    f = A y_hat + B (m, l) + r(t)    A: 3x3, B: 1x1, at 1/16 of the size; r: per rate
    group k = 0..3 of the channels   l_k = C_k leaky(f + D_k u_hat_0..k-1)   D: 3x3, C: 1x1
    log sigma = c(t) + l_k           in units of the quantiser's step; the mean is 0
    u_hat = round(shrink(g(t) u))    p(u_hat) = L(0, sigma) * U; shrink: towards 0 by DEAD_ZONE
    x_hat = x_base + T (i(t) u_hat)

g, i, c, r are piecewise linear in t (the gains in the log domain), as in `hyperprior_context.py`. The latents' own
transform bounds the quality that more bits can buy; this does not.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.models.layers import conv, distortion_weights, leaky, lower_bound

BLOCK = 16  # px
GROUPS = 4
SIGMA_MIN, SIGMA_MAX = 0.08, 256.0
DEAD_ZONE = 0.15  # about what rounding by rate and distortion does, which the encoder has in its place
COARSER = 2.0  # the steps at the lowest rate, where most details are 0, beside those that are best at high rates
RATE_FUNCTIONS = ("log_gain", "log_inverse_gain", "scale_offset", "seen_log_gain", "bias")


class Details(nn.Module):
    """Basis, functions of the rate and the network that tells the details' spread; see the module's equations."""

    def __init__(self, channels: int, latent: int, width: int, knots: int):
        super().__init__()
        if channels % GROUPS or channels > 3 * BLOCK**2:
            raise ValueError(f"{channels} details: not a multiple of {GROUPS} up to {3 * BLOCK**2}")
        self.channels = channels
        group = channels // GROUPS
        self.register_buffer("basis", torch.eye(3 * BLOCK**2, channels))
        # The step at which a bit buys what it should, at high rates: its square is 6 / (ln 2 weight).
        weight = distortion_weights(torch.linspace(0, 1, knots)) * 255**2 / 3
        log_gain = -0.5 * (6 / (math.log(2) * weight)).log() - math.log(COARSER) * torch.linspace(1, 0, knots)
        log_gain = log_gain[:, None].repeat(1, channels)
        self.log_gain = nn.Parameter(log_gain)
        self.log_inverse_gain = nn.Parameter(-log_gain)
        self.scale_offset = nn.Parameter(log_gain.clone())
        self.seen_log_gain = nn.Parameter(-log_gain)
        self.bias = nn.Parameter(torch.zeros(knots, width))
        self.from_latents = conv(latent, width, 3, 1)  # A
        self.from_first = conv(2 * latent, width, 1, 1)  # B
        self.from_details = nn.ModuleList(conv(k * group, width, 3, 1) for k in range(1, GROUPS))  # D
        self.to_scales = nn.ModuleList(conv(width, group, 1, 1) for _ in range(GROUPS))  # C
        self.activation = leaky()
        with torch.no_grad():
            for last in self.to_scales:
                last.weight.mul_(0.1)
                last.bias.zero_()

    def analysis(self, residual: Tensor) -> Tensor:
        """x - x_base, float32 [B, 3, 16 h, 16 w], to u [B, K, h, w]."""
        return F.conv2d(F.pixel_unshuffle(residual, BLOCK), self.basis.T[:, :, None, None])

    def synthesis(self, u: Tensor) -> Tensor:
        """u, float32 [B, K, h, w], to what it adds to the picture, [B, 3, 16 h, 16 w]."""
        return F.pixel_shuffle(F.conv2d(u, self.basis[:, :, None, None]), BLOCK)

    def transmit(
        self, u: Tensor, seen: Tensor, first: Tensor, rate: dict[str, Tensor], quantise: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """What the decoder makes of u [B, K, h, w], and of each group (residual, quantised residual, sigma), in steps.

        seen: decoded latents in the domain of the context networks, [B, C, h, w]; first: hyper-synthesis' output,
        [B, 2 C, h, w]; rate: `RATE_FUNCTIONS`, [B, ., 1, 1].
        """
        f = self.from_latents(seen) + self.from_first(first) + rate["bias"]
        gain = rate["log_gain"].exp()
        # The base learns what the sent ones save it and cost: most are rounded to 0 and correct nothing.
        u = torch.where((u * gain).abs() > 0.5 + DEAD_ZONE, u, u.detach())
        scaled = F.softshrink(u * gain, DEAD_ZONE).chunk(GROUPS, 1)
        offset, seen_gain = (rate[name].chunk(GROUPS, 1) for name in ("scale_offset", "seen_log_gain"))
        parts, before, prices = [], [], []
        for k in range(GROUPS):
            h = f + self.from_details[k - 1](torch.cat(before, 1)) if k else f
            log_scale = self.to_scales[k](self.activation(h)) + offset[k]
            sigma = lower_bound(log_scale.clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            parts.append(quantise(scaled[k]))
            before.append(parts[-1] * seen_gain[k].exp())
            prices.append((scaled[k], parts[-1], sigma))
        return torch.cat(parts, 1) * rate["log_inverse_gain"].exp(), prices
