"""NC-VAE: trained on noisy pictures, without a side network; one set of weights for every rate.

Source: Luo, Li, Dai, Xu, Cheng, Li, Xiong 2021, "Noise-to-Compression Variational Autoencoder for Efficient
End-to-End Optimized Image Coding".

    y = g_a(x + s n), n ~ N(0, 1)                  analysis, 1/16; the noise only in training, Eq. 2, 6
    q = round(g(t) y)                              quantiser: the symbols, integers, all at once
    n = a(t) q,  a = 1 / (g d)                     symbols in units of each channel's typical size d
    mu = M n / a,  sigma = (b(t) + c(t) S |n|) / a the rate module: two linear convolutions, mean and scale of p(q)
    R = -log2 p(q),  p(q) = L(mu, sigma) * U       Eq. 5-7
    x_hat = g_s(i(t) (q + r(t) clip(mu - q, -1/2, 1/2)))    synthesis; r draws q towards its mean inside its cell

The paper leaves open which symbols its module of Eq. 5-7 depends on. If it were all of q, q would be predicted from
itself, and the rate would be a fiction. Here M and S depend on symbols that the decoder has when it comes to a symbol.
So the adaptive coder of `contexts.py` reaches the rate of training: its contexts are M n and S |n| in integers.

Order of coding (`GROUPS`, `PHASES`): groups of channels one after another, KLT order, so the large ones first; in a
group five phases of the 4x4 lattice, each between its neighbours of the phases before. A symbol depends on
- in all channels of earlier groups, the 3x3 neighbourhood: S by rings (centre, edges, corners), M only in the first
  `MEAN_SOURCES` channels, by position (the slope of a picture is predicted by its means left and right);
- in its own channel, the positions of earlier phases that `_OWN_TAPS` lists; past the first `PREDICTED` channels, which
  have no mean to predict (M is 0 there), the last phase depends on its four nearest only.

S is not negative (squares are stored). p is L, the logistic, instead of Eq. 7's Gaussian density: integrated over the
cell, so that it is a probability however small sigma is, and straight in the tails. s: Eq. 6 says that input noise does
not touch the rate, and the Lagrangian of the clean picture can only gain from less of it, so a trained s falls towards
0; it starts at `NOISE_START`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.nn.layers import (
    GDN,
    ResidualBottleneck,
    conv,
    deconv,
    interpolate_knots,
    logistic_bits,
    lower_bound,
    rate_distortion_loss,
    round_straight_through,
)
from latcodec.rates import distortion_weight, lambda_of_index

SIGMA_MIN, SIGMA_MAX = 0.08, 256.0
NOISE_START = 0.02  # of the range 0..1
GROUPS = (1, 1, 2, 4, 8, 16, 32, 64, 64)  # channels in a group; other latents get a prefix of it
MEAN_SOURCES, PREDICTED = 16, 32
PHASES = ((0, 4, 2, 4), (4, 3, 4, 3), (2, 4, 1, 4), (4, 3, 4, 3))  # phase of a position, by row and column modulo 4
# Offsets (dy, dx) whose phase is earlier than that of a position, by its phase: the same for all positions of a phase.
_OWN_TAPS = (
    (),
    ((-2, -2), (-2, 2), (2, -2), (2, 2)),
    ((-2, 0), (0, -2), (0, 2), (2, 0)),
    ((-1, -1), (-1, 1), (1, -1), (1, 1)),
    tuple((dy, dx) for dy in range(-2, 3) for dx in range(-2, 3) if (dy + dx) % 2),
)


@dataclass(frozen=True)
class Config:
    """The sizes of the networks.

    Attributes:
        widths: Channels of the three inner stages of analysis and synthesis.
        latent: Channels of y.
        encoder_kernel: Side of the kernels of the analysis.
        decoder_kernel: Side of the kernels of the synthesis.
        encoder_blocks: Residual blocks at 1/8 of the size, between the strided layers 3 and 4 of the analysis.
        decoder_blocks: Residual blocks at 1/8 of the size, between the strided layers 1 and 2 of the synthesis.
        knots: Knots of the functions of the rate.
        input_noise: "trainable", or a fixed standard deviation as a number or its text, range 0..1.
        metric: The distortion that the networks are trained for, one of `rates.METRICS`.
    """

    widths: tuple[int, int, int] = (48, 80, 128)
    latent: int = 192
    encoder_kernel: int = 5
    decoder_kernel: int = 3
    encoder_blocks: int = 1
    decoder_blocks: int = 3
    knots: int = 9
    input_noise: str = "trainable"
    metric: str = "mse"


def groups_of(latent: int) -> tuple[int, ...]:
    """Return the sizes of the channel groups of that many latents: a prefix of GROUPS, the rest in 64s."""
    sizes, left = [], latent
    while left:
        size = GROUPS[len(sizes)] if len(sizes) < len(GROUPS) else GROUPS[-1]
        sizes.append(min(size, left))
        left -= sizes[-1]
    return tuple(sizes)


def phases_of(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the phase of each position, int64 [height, width], 0..4."""
    row, column = torch.arange(height, device=device) % 4, torch.arange(width, device=device) % 4
    row, column = torch.broadcast_tensors(row[:, None], column[None])
    late = torch.where((row + column) % 2 == 1, 4, 3)
    even = torch.where(row == column, row // 2, 2)
    return torch.where((row % 2 == 0) & (column % 2 == 0), even, late)


class RateModule(nn.Module):
    """The two linear convolutions M and S of the module's equations, in units of each channel's typical size."""

    def __init__(self, latent: int):
        super().__init__()
        self.latent, self.sources = latent, min(MEAN_SOURCES, latent)
        group = torch.repeat_interleave(torch.arange(len(groups_of(latent))), torch.tensor(groups_of(latent)))
        earlier = (group[None, :] < group[:, None]).float()  # [target, source]
        own = torch.zeros(latent, len(_OWN_TAPS), 5, 5)
        for phase, taps in enumerate(_OWN_TAPS):
            for dy, dx in taps:
                near = phase < len(_OWN_TAPS) - 1 or abs(dy) + abs(dx) == 1
                own[: latent if near else PREDICTED, phase, dy + 2, dx + 2] = 1
        self.register_buffer("earlier", earlier, persistent=False)
        self.register_buffer("own_mask", own, persistent=False)
        self.register_buffer("predicted", (torch.arange(latent) < PREDICTED).float()[:, None], persistent=False)
        # Roots of S. Its columns start so that half of a typical scale comes from the neighbours.
        count = earlier.sum(1, keepdim=True).clamp_min(1) * 9
        self.scale_root = nn.Parameter((0.3 / count).sqrt()[:, :, None].repeat(1, latent, 3) * earlier[:, :, None])
        taps = own.sum((2, 3), keepdim=True).clamp_min(1)
        self.own_scale_root = nn.Parameter(((0.3 / taps).sqrt() * own).flatten(1))
        self.mean = nn.Parameter(torch.zeros(latent, self.sources, 9))
        self.own_mean = nn.Parameter(torch.zeros(latent, len(_OWN_TAPS) * 25))

    def weights(self) -> dict[str, Tensor]:
        """Return the weights of the convolutions, 0 for positions that are not coded before.

        They are "scale" [C, C, 3] by rings, "mean" [C, sources, 3, 3] and, by phase, "own_scale" and "own_mean"
        [C, 5, 5, 5].
        """
        mean = self.mean * (self.earlier[:, : self.sources] * self.predicted)[:, :, None]
        return {
            "scale": self.scale_root.square() * self.earlier[:, :, None],
            "mean": mean.view(self.latent, self.sources, 3, 3),
            "own_scale": self.own_scale_root.square().view(self.latent, -1, 5, 5) * self.own_mask,
            "own_mean": self.own_mean.view(self.latent, -1, 5, 5) * self.own_mask * self.predicted[:, :, None, None],
        }

    def forward(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """Map n float32 [B, C, h, w] to M n and S |n|, both [B, C, h, w]."""
        weights, size = self.weights(), n.abs()
        padded = F.pad(size, (1, 1, 1, 1))
        rows = padded[:, :, :-2] + padded[:, :, 2:]
        edges = rows[:, :, :, 1:-1] + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]
        corners = rows[:, :, :, :-2] + rows[:, :, :, 2:]
        rings = torch.cat([size, edges, corners], 1)
        scale = F.conv2d(rings, weights["scale"].transpose(1, 2).flatten(1)[:, :, None, None])
        mean = F.conv2d(n[:, : self.sources], weights["mean"], padding=1)
        return mean + self._own(n, weights["own_mean"]), scale + self._own(size, weights["own_scale"])

    def _own(self, n: Tensor, weight: Tensor) -> Tensor:
        """Depthwise convolution of each position by the kernel of its phase; weight [C, 5 phases, 5, 5]."""
        by_phase = F.conv2d(n, weight.flatten(0, 1)[:, None], padding=2, groups=self.latent)
        by_phase = by_phase.view(n.shape[0], self.latent, -1, *n.shape[2:])
        phase = phases_of(n.shape[2], n.shape[3], n.device)
        return sum(by_phase[:, :, p] * (phase == p) for p in range(1, len(_OWN_TAPS)))


class NCVAE(nn.Module):
    """The transforms, the rate module and the functions of the rate; see the module's equations."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        a, b, c = config.widths
        y, k = config.latent, config.knots
        down, up = config.encoder_kernel, config.decoder_kernel
        # The strided layers stand as in the hyperprior, so that training can start from its weights.
        self.g_a = nn.Sequential(
            conv(3, a, down), GDN(a), conv(a, b, down), GDN(b), conv(b, c, down), GDN(c), conv(c, y, down)
        )
        self.g_s = nn.Sequential(
            deconv(y, c, up), GDN(c, True), deconv(c, b, up), GDN(b, True), deconv(b, a, up), GDN(a, True),
            deconv(a, 3, up),
        )  # fmt: skip
        self.encoder_blocks = nn.Sequential(*(ResidualBottleneck(c) for _ in range(config.encoder_blocks)))
        self.decoder_blocks = nn.Sequential(*(ResidualBottleneck(c) for _ in range(config.decoder_blocks)))
        self.rate = RateModule(y)
        # Gains start at the step a uniform quantiser would want: proportional to sqrt(lc), about 9 at lc = .0067.
        weights = [distortion_weight(lambda_of_index(255 * i / (k - 1))) for i in range(k)]
        log_gain = torch.tensor([math.log(9) + 0.5 * math.log(w / 0.0067) for w in weights])[:, None]
        self.y_log_gain = nn.Parameter(log_gain.repeat(1, y))
        self.y_log_inverse_gain = nn.Parameter(-log_gain.repeat(1, y))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        self.log_floor = nn.Parameter(torch.full((k, y), math.log(0.3)))  # b
        self.log_slope = nn.Parameter(torch.zeros(k, y))  # c
        self.recentre = nn.Parameter(torch.full((k, y), 0.05))  # r
        if config.input_noise == "trainable":
            self.log_noise = nn.Parameter(torch.tensor(math.log(NOISE_START)))
        else:
            self.register_buffer("fixed_noise", torch.tensor(float(config.input_noise)), persistent=False)

    def start_from_latent_std(self, std: Tensor) -> None:
        """Set the channels' typical sizes from the measured standard deviation of g_a's output, float32 [C]."""
        with torch.no_grad():
            self.y_log_std.copy_(std.clamp_min(1e-3).log())

    def input_noise(self) -> Tensor:
        """Return the standard deviation s of the input noise, float32 []."""
        return self.log_noise.exp() if self.config.input_noise == "trainable" else self.fixed_noise

    def at_rate(self, t: Tensor) -> dict[str, Tensor]:
        """Return every function of the rate at t float32 [B], tensors [B, C, 1, 1]; unit is a typical size in steps."""
        names = "y_log_gain y_log_inverse_gain log_floor log_slope recentre".split()
        rate = {name: interpolate_knots(getattr(self, name), t)[:, :, None, None] for name in names}
        return {
            "gain": rate["y_log_gain"].exp(),
            "inverse_gain": rate["y_log_inverse_gain"].exp(),
            "unit": (rate["y_log_gain"] + self.y_log_std[:, None, None]).exp(),
            "floor": rate["log_floor"].exp(),
            "slope": rate["log_slope"].exp(),
            "recentre": rate["recentre"],
        }

    def analysis(self, x: Tensor, autocast: bool = False) -> Tensor:
        """Map x float32 [B, 3, H, W] in 0..1, H and W multiples of 16, to y float32 [B, C, H/16, W/16]."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            h = self.encoder_blocks(self.g_a[:-1](x - 0.5))
        return self.g_a[-1](h.float())  # bf16 latents would be coarser than the quantiser at high rates

    def synthesis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """Map y float32 [B, C, h, w], in the units of g_a, to x_hat float32 [B, 3, 16 h, 16 w], not clamped."""
        h = self.g_s[0](y)
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_s[1:-1](self.decoder_blocks(h))
        return self.g_s[-1](h.float()) + 0.5

    def transmit(
        self, y: Tensor, rate: dict[str, Tensor], quantise: Callable[[Tensor], Tensor], autocast: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the decoder makes of latents, and what their symbols are coded with.

        Args:
            y: float32 [B, C, h, w].
            rate: Of `at_rate`.
            quantise: Maps scaled latents to symbols, or to values between them.
            autocast: Whether the synthesis runs in bf16.

        Returns:
            x_hat float32 [B, 3, 16 h, 16 w]; and "scaled", "symbols", their "mean" and the standard deviation "sigma"
            of their logistic, all in steps of the quantiser, of the shape of y.
        """
        scaled = y * rate["gain"]
        symbols = quantise(scaled)
        mean, spread = self.rate(symbols / rate["unit"])
        mean = mean * rate["unit"]
        sigma = (rate["floor"] + rate["slope"] * spread) * rate["unit"]
        sigma = lower_bound(sigma, SIGMA_MIN).clamp_max(SIGMA_MAX)
        recentred = symbols + rate["recentre"] * (mean - symbols).clamp(-0.5, 0.5)
        x_hat = self.synthesis(recentred * rate["inverse_gain"], autocast)
        return x_hat, {"scaled": scaled, "symbols": symbols, "mean": mean, "sigma": sigma}

    def forward(self, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True) -> dict[str, Tensor]:
        """Run the whole codec on a batch.

        With noise the picture has input noise and the rate is that of the scaled latents plus uniform noise, while
        contexts and synthesis get rounded ones (straight-through). Without, everything is rounded.

        Args:
            x: float32 [B, 3, H, W] in 0..1, H and W multiples of 16.
            t: Rate positions, float32 [B] in 0..1.
            autocast: Whether the transforms run in bf16.
            noise: Whether there is noise.

        Returns:
            x_hat of the shape of x, y_bits [B], and symbols, mean, sigma, y.
        """
        rate = self.at_rate(t)
        if noise:
            y = self.analysis(x + self.input_noise() * torch.randn_like(x), autocast)
        else:
            y = self.analysis(x, autocast)
        x_hat, out = self.transmit(y, rate, round_straight_through, autocast)
        scaled, symbols, mean, sigma = (out[k] for k in ("scaled", "symbols", "mean", "sigma"))
        coded = scaled + torch.rand_like(scaled) - 0.5 if noise else symbols
        bits = logistic_bits(coded - mean, sigma).sum((1, 2, 3))
        return {"x_hat": x_hat, "y_bits": bits, "symbols": symbols, "mean": mean, "sigma": sigma, "y": y}


def loss(
    model: NCVAE, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True, progress: Tensor | None = None
) -> dict[str, Tensor]:
    """Return `rate_distortion_loss`, to the picture without noise, and "input_noise", its standard deviation, [B]."""
    out = model(x, t, autocast, noise)
    result = rate_distortion_loss(out["x_hat"], x, out["y_bits"], t, noise)
    bpp = result["bpp"]
    return result | {
        "z_bpp": torch.zeros_like(bpp), "input_noise": model.input_noise().detach().expand_as(bpp),
    }  # fmt: skip
