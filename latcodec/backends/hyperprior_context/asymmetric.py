"""A context hyperprior with a heavy analysis and a light synthesis, one set of weights for every rate.

The entropy model and the loss are those of `network.py`. The transforms are:

    analysis    patches of 8 x 8 px -> 1x1 -> gated 3x3 blocks at 1/8 -> 2x2 squares -> 1x1 -> gated 3x3 blocks at 1/16
    synthesis   gated 3x3 blocks at 1/16 -> 1x1 -> pixel shuffle to 1/4 -> gated pointwise blocks -> 4 x 4 px each

Every block knows the rate: the first convolution of a block is scaled per channel by 1 + s(t), s piecewise linear in
the rate position t. With the default widths analysis costs about 29 kMAC a pixel and synthesis 11.

Sources: a body at low resolution and a pointwise renderer at 1/4 of the size: PULSE (Microsoft 2026), ablation at equal
MACs. Gated convolutions: Dauphin, Fan, Auli, Grangier 2017, "Language modeling with gated convolutional networks".
Scales of the rate: Choi, El-Khamy, Lee 2019, "Variable rate deep image compression with a conditional autoencoder".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.config import AsymmetricConfig as Config
from latcodec.backends.hyperprior_context.config import rate_knots
from latcodec.backends.hyperprior_context.network import ContextEntropyModel, loss
from latcodec.nn.layers import conv, leaky

__all__ = ["AsymmetricHyperprior", "Config", "GatedBlock", "loss"]

PATCH, RENDERED, COLOURS = 8, 4, 3  # px of a patch of the analysis, of one of the renderer; channels of a picture
SCALE_SPEED = 10.0  # how much faster the scales of the rate are learned than all other parameters
SLOPE = 0.125  # of the leaky ReLU


class GatedBlock(nn.Module):
    """Return x + b(leaky(u) * v) with (u, v) = (1 + scale) * a(x): the identity before training."""

    def __init__(self, channels: int, kernel: int = 3, expansion: int = 1):
        """Make a block.

        Args:
            channels: Channels of the input and output.
            kernel: Side of the kernel of a, 3 or 1; that of b is 1.
            expansion: Channels of (u, v) together, as a multiple of `channels`.
        """
        super().__init__()
        inner = expansion * channels // 2
        self.a = nn.Conv2d(channels, 2 * inner, kernel, padding=kernel // 2)
        self.b = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)
        with torch.no_grad():
            self.a.bias[inner:] = 1  # gates begin open

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return a tensor like x [B, channels, h, w]; scale: [B or 1, expansion * channels, 1, 1], 0 for none."""
        h = self.a(x)
        u, v = torch.addcmul(h, h, scale.to(h.dtype)).chunk(2, 1)
        return x + self.b(F.leaky_relu(u, SLOPE) * v)


class AsymmetricTransforms(nn.Module):
    """Analysis, synthesis, hyper-analysis, and the rate parameters that they take."""

    def __init__(self, config: Config):
        """Make the networks."""
        super().__init__()
        self.config = config
        width, y, renderer = config.analysis_width, config.latent, config.renderer_width
        h, z, knots = config.hyper_width, config.hyper_latent, rate_knots(config)
        self.g_a = nn.ModuleDict({
            "patches": nn.Conv2d(COLOURS * PATCH**2, width, 1),
            "blocks_8": nn.ModuleList(GatedBlock(width) for _ in range(config.analysis_blocks_8)),
            "squares": nn.Conv2d(4 * width, y, 1),
            "blocks_16": nn.ModuleList(GatedBlock(y) for _ in range(config.analysis_blocks_16)),
        })  # fmt: skip
        self.g_s = nn.ModuleDict({
            "blocks_16": nn.ModuleList(GatedBlock(y) for _ in range(config.synthesis_blocks)),
            "expand": nn.Conv2d(y, 16 * renderer, 1),
            "renderer": nn.ModuleList(GatedBlock(renderer, 1, 2) for _ in range(config.renderer_blocks)),
            "patches": nn.Conv2d(renderer, COLOURS * RENDERED**2, 1),
        })  # fmt: skip
        self.h_a = nn.Sequential(conv(y, h, 3, 1), leaky(), conv(h, h), leaky(), conv(h, z))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        self.block_scale = nn.ParameterDict({
            name: torch.zeros(knots, block.a.out_channels) for name, block in self._blocks().items()
        })  # fmt: skip

    def _blocks(self) -> dict[str, GatedBlock]:
        found = {}
        for transform, name in (("g_a", "blocks_8"), ("g_a", "blocks_16"), ("g_s", "blocks_16"), ("g_s", "renderer")):
            blocks = getattr(self, transform)[name]
            found |= {f"{transform}_{name}_{number}": block for number, block in enumerate(blocks)}
        return found

    def functions_of_transforms(self) -> dict[str, Tensor]:
        """Return the knots of the rate parameters that transforms take, float32 [K, C], by name."""
        return {f"block_scale.{name}": SCALE_SPEED * knots for name, knots in self.block_scale.items()}

    def _run(self, transform: str, name: str, h: Tensor, rate: dict[str, Tensor]) -> Tensor:
        for number, block in enumerate(getattr(self, transform)[name]):
            h = block(h, rate[f"block_scale.{transform}_{name}_{number}"])
        return h

    def analysis(self, x: Tensor, rate: dict[str, Tensor], autocast: bool = False) -> Tensor:
        """Return y, float32 [B, C, H/16, W/16].

        Args:
            x: float32 [B, 3, H, W] in 0..1, H and W multiples of 16.
            rate: The result of `at_rate`.
            autocast: Whether to run in bf16.
        """
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            h = self.g_a["patches"](_unshuffle(x - 0.5, PATCH))
            h = self._run("g_a", "blocks_8", h, rate)
            h = self.g_a["squares"](_unshuffle(h, 2))
            h = self._run("g_a", "blocks_16", h, rate)
        return h.float()

    def synthesis(self, y: Tensor, rate: dict[str, Tensor], autocast: bool = False) -> Tensor:
        """Return x_hat, float32 [B, 3, 16 h, 16 w], not clamped.

        Args:
            y: float32 [B, C, h, w] in the units of the analysis.
            rate: The result of `at_rate`.
            autocast: Whether to run in bf16.
        """
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self._run("g_s", "blocks_16", y, rate)
            h = F.pixel_shuffle(self.g_s["expand"](h), 4).contiguous(memory_format=torch.channels_last)
            h = self._run("g_s", "renderer", h, rate)
            h = self.g_s["patches"](h)
        return F.pixel_shuffle(h.float(), RENDERED) + 0.5

    def hyper_analysis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """Return z, float32 [B, Z, h/4, w/4], of y float32 [B, C, h, w], h and w multiples of 4."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.h_a[:-1](y * torch.exp(-self.y_log_std)[:, None, None])
        return self.h_a[-1](h.float())

    @torch.no_grad()
    def start_from_klt(self, x: Tensor) -> Tensor:
        """Make the transforms a block transform of 16 x 16 px fitted to x, float32 [B, 3, H, W] around 0.

        Returns the standard deviation of each latent, float32 [C]. Before training blocks are the identity, so the
        analysis is a Karhunen-Loeve transform in two stages and the synthesis its transpose.
        """
        patches, squares = self.g_a["patches"], self.g_a["squares"]
        expand, out = self.g_s["expand"], self.g_s["patches"]
        for layer in (patches, squares, expand, out):
            layer.bias.zero_()
        h = _unshuffle(x, PATCH)
        first = _principal_axes(h, patches.out_channels)
        patches.weight.copy_(first[:, :, None, None])
        h = _unshuffle(patches(h), 2)
        second = _principal_axes(h, squares.out_channels)
        squares.weight.copy_(second[:, :, None, None])
        # What one latent adds to its 16 x 16 px: [y, 4 squares x width] through the transposes of both stages.
        of_squares = F.pixel_shuffle(second[:, :, None, None], 2)
        of_patches = torch.einsum("nwij,wc->ncij", of_squares, first)
        pictures = F.pixel_shuffle(of_patches, PATCH)
        channels = F.pixel_unshuffle(pictures, RENDERED)  # [y, 48, 4, 4]
        weight = torch.zeros(squares.out_channels, self.config.renderer_width, 4, 4)
        weight[:, : channels.shape[1]] = channels
        expand.weight.normal_(std=0.001).add_(weight.flatten(1).T[:, :, None, None])
        out.weight.zero_()
        out.weight[:, : out.out_channels, 0, 0] = torch.eye(out.out_channels)
        return squares(h).std((0, 2, 3))


class AsymmetricHyperprior(ContextEntropyModel, AsymmetricTransforms):
    """The networks and rate parameters."""


def _unshuffle(x: Tensor, factor: int) -> Tensor:
    return F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)


def _principal_axes(h: Tensor, count: int) -> Tensor:
    """The leading eigenvectors of the second moments of the channels of h [B, C, h, w], float32 [count, C]."""
    flat = h.permute(0, 2, 3, 1).reshape(-1, h.shape[1]).double()
    _, vectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    return vectors.flip(1)[:, :count].T.float()
