"""The residual layer: what the latents leave of a picture, in blocks of 8 x 8 px, every frequency of it.

It is coded beside the latents at high qualities, and where a picture is unlike photographs.

    u = T' (x - x_base)                 T: 192 x K, 8 x 8 cosine transform of each of three colours, lowest K of all
    f = up(A y_hat + B (m, l)) + r      A, B: 1x1, at 1/16 of the size; up: four numbers of a latent to 2 x 2 blocks
    group k = 0..3 of the channels      l_k = C_k leaky(f + D_k log2(1 + |u_hat_0..k-1|))   D: 3x3, C: 1x1
    log sigma = c + l_k                 in units of the quantiser's step; the mean is 0
    u_hat = round(shrink(g(t) u))       p(u_hat) = L(0, sigma) * U; shrink: towards 0 by DEAD_ZONE
    x_hat = x_base + T (shift(u_hat) / g(t))    shift: `reconstruction.with_centroid_shift`, rare symbols nearer to 0

c and r are each a function of the rate t plus one of the rate of the latents, piecewise linear as in `network.py`; so
is the logarithm of g, of t alone. g is not trained: straight-through gradients do not depend on the symbols that would
stay 0, and make steps too fine. The latents' own transform bounds the quality that more bits can buy, and it has
learned photographs only; this transform has learned nothing and bounds nothing.
"""

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.reconstruction import with_centroid_shift
from latcodec.nn.layers import conv, distortion_weights, interpolate_knots, leaky, lower_bound
from latcodec.nn.symbol_costs import SIGMA_MAX, SIGMA_MIN

BLOCK = 8  # px
PER_LATENT = 2  # blocks along a side of the 16 px that a latent stands for
MAX_CHANNELS = 3 * BLOCK**2
SHARES = (1, 3, 4, 8)  # bands of each group, low frequencies first: they tell where others are
GROUPS = len(SHARES)
DEAD_ZONE = 0.15  # about what RDOQ does, which the encoder uses instead
COARSER = 1.6  # factor of the steps at t = 0, from those that are best where symbols are dense, at t = 1
MAX_SAMPLED_BASE, BASE_SPREAD = 0.74, 0.8  # of t: bases in training are no higher, and up to this share lower
LARGEST = 15  # size of a symbol as the networks see it
RATE_FUNCTIONS = ("log_gain", "scale_offset", "bias")
BASE_FUNCTIONS = ("scale_offset", "bias")  # of the rate of the latents besides


def sample_bases(t: Tensor, until: float) -> Tensor:
    """Draw rates of latents, float32 [B], beside which residual layers of rates t [B] are trained.

    Half of them are t, at most `until`; the others are anywhere below that, or a little above `until`.
    """
    anywhere = t.clamp_max(MAX_SAMPLED_BASE) * (1 - BASE_SPREAD * torch.rand_like(t))
    return torch.where(torch.rand_like(t) < 0.5, t.clamp_max(until), anywhere)


def groups_of(channels: int) -> list[int]:
    """Return how many channels each group has."""
    return [channels * share // sum(SHARES) for share in SHARES]


def colour_transform() -> Tensor:
    """Return gray, red - blue and green - magenta of red, green and blue: orthonormal, float64 [3, 3]."""
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]], dtype=torch.float64)
    return colours / colours.norm(dim=1, keepdim=True)


def cosines(side: int) -> Tensor:
    """Return an orthonormal float64 [side, side]: a row is a sample, a column a frequency of the cosine transform."""
    places = torch.arange(side, dtype=torch.float64)
    cosine = torch.cos(math.pi / side * (places[:, None] + 0.5) * places) * math.sqrt(2 / side)
    cosine[:, 0] = math.sqrt(1 / side)
    return cosine


def cosine_basis() -> Tensor:
    """Return orthonormal float32 [192, 192]: a row is a sample of `pixel_unshuffle`, a column a frequency of a colour.

    Frequencies go from low to high, the three colours of each together: gray, red - blue, green - magenta.
    """
    cosine, colours = cosines(BLOCK), colour_transform()
    order = sorted(itertools.product(range(BLOCK), repeat=2), key=lambda place: (sum(place), place))
    down, across = torch.tensor(order).T
    basis = torch.einsum("qc,if,jf->cijfq", colours, cosine[:, down], cosine[:, across])
    return basis.reshape(MAX_CHANNELS, MAX_CHANNELS).float()


class ResidualLayer(nn.Module):
    """Rate parameters, and the network that predicts the spread of symbols; see the module's equations."""

    def __init__(self, channels: int, latent: int, width: int, knots: int):
        """Make the layer: channels of it, of y, of the network inside; knots of the rate parameters."""
        super().__init__()
        if channels % sum(SHARES) or not 0 < channels <= MAX_CHANNELS:
            raise ValueError(f"{channels} details: not a multiple of {sum(SHARES)} up to {MAX_CHANNELS}")
        self.channels = channels
        self.sizes = groups_of(channels)
        self.register_buffer("basis", cosine_basis()[:, :channels].contiguous(), persistent=False)
        # The step at which a bit buys what it should, at high rates: its square is 6 / (ln 2 weight).
        weight = distortion_weights(torch.linspace(0, 1, knots)) * 255**2 / 3
        log_gain = -0.5 * (6 / (math.log(2) * weight)).log() - math.log(COARSER) * torch.linspace(1, 0, knots)
        self.register_buffer("log_gain", log_gain[:, None], persistent=False)
        self.scale_offset = nn.Parameter(log_gain[:, None].repeat(1, channels))
        self.bias = nn.Parameter(torch.zeros(knots, width))
        self.base_scale_offset = nn.Parameter(torch.zeros(knots, channels))
        self.base_bias = nn.Parameter(torch.zeros(knots, width))
        self.from_latents = conv(latent, PER_LATENT**2 * width, 1, 1)  # A
        self.from_first = conv(2 * latent, PER_LATENT**2 * width, 1, 1)  # B
        before = itertools.accumulate(self.sizes[:-1])
        self.from_details = nn.ModuleList(conv(seen, width, 3, 1) for seen in before)  # D
        self.to_scales = nn.ModuleList(conv(width, size, 1, 1) for size in self.sizes)  # C
        self.activation = leaky()
        with torch.no_grad():
            for last in self.to_scales:
                last.weight.mul_(0.1)
                last.bias.zero_()

    def at_rate(self, t: Tensor, base: Tensor) -> dict[str, Tensor]:
        """Return the rate parameters, [B, .] each, at rates t [B] beside latents of rates `base` [B]."""
        values = {name: interpolate_knots(getattr(self, name), t) for name in RATE_FUNCTIONS}
        for name in BASE_FUNCTIONS:
            values[name] = values[name] + interpolate_knots(getattr(self, f"base_{name}"), base)
        return {f"details.{name}": value for name, value in values.items()}

    def analysis(self, residual: Tensor) -> Tensor:
        """Return u [B, K, h, w] of x - x_base, float32 [B, 3, 8 h, 8 w]."""
        return F.conv2d(F.pixel_unshuffle(residual, BLOCK), self.basis.T[:, :, None, None])

    def synthesis(self, u: Tensor) -> Tensor:
        """Return what the first channels of u, float32 [B, up to K, h, w], add to the picture, [B, 3, 8 h, 8 w]."""
        return F.pixel_shuffle(F.conv2d(u, self.basis[:, : u.shape[1], None, None]), BLOCK)

    def transmit(
        self, u: Tensor, context: Tensor, hyper: Tensor, rate: dict[str, Tensor], quantise: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return what the decoder makes of u, and of each group (residual, quantised residual, sigma), in steps.

        Args:
            u: [B, K, 2 h, 2 w].
            context: Decoded latents in the domain of the context networks, [B, C, h, w].
            hyper: Output of the hyper-synthesis, [B, 2 C, h, w].
            rate: The result of `at_rate`, [B, ., 1, 1].
            quantise: Residual to symbols, or a relaxation of that.
        """
        f = F.pixel_shuffle(self.from_latents(context) + self.from_first(hyper), PER_LATENT) + rate["details.bias"]
        gain = rate["details.log_gain"].exp()
        # The base learns what symbols that are sent save and cost; most are rounded to 0 and correct nothing.
        u = torch.where((u * gain).abs() > 0.5 + DEAD_ZONE, u, u.detach())
        scaled = F.softshrink(u * gain, DEAD_ZONE).split(self.sizes, 1)
        offset = rate["details.scale_offset"].split(self.sizes, 1)
        parts, before, prices = [], [], []
        for k in range(GROUPS):
            h = f + self.from_details[k - 1](torch.cat(before, 1)) if k else f
            log_scale = self.to_scales[k](self.activation(h)) + offset[k]
            sigma = lower_bound(log_scale.clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            parts.append(quantise(scaled[k]))
            before.append((1 + parts[-1].abs().clamp_max(LARGEST)).log2())
            prices.append((scaled[k], parts[-1], sigma))
        return with_centroid_shift(torch.cat(parts, 1), rate["details.nearer"]) / gain, prices
