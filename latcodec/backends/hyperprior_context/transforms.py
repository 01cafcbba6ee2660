"""Picture to latents and back: the transforms of the context hyperprior, one set of weights for every rate.

Synthesis is conditioned on the rate: h <- (1 + p(t)) h + q(t) after convolutions, per channel. If
`Config.analysis_at_rate`, so is analysis, and the branch of every residual block is scaled by 1 + p(t): the best
transforms of low and high rates differ, and without that each gains only what the other loses.

Source: Choi, El-Khamy, Lee 2019, "Variable rate deep image compression with a conditional autoencoder".
"""

import torch
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.config import Config, rate_knots
from latcodec.nn.layers import (
    GDN,
    ResidualBottleneck,
    conditional_conv,
    conditional_deconv,
    conv,
    deconv,
    deconv_to_pixels,
    leaky,
    scale_and_shift,
)

STAGE_FUNCTIONS = ("stage_gain", "stage_bias")  # p and q of the transposed convolutions but the last
LOOK_FUNCTIONS = ("look_gain", "look_bias")  # those of the convolutions of analysis but the last
BRANCH_FUNCTIONS = ("branch_gain",)  # of the blocks of analysis, then those of synthesis, each in order
SCALE_SPEED = 10.0  # how much faster these are learned than all other parameters


class ContextTransforms(nn.Module):
    """Analysis, synthesis, hyper-analysis, and the rate parameters that they take."""

    def __init__(self, config: Config):
        """Make the networks."""
        super().__init__()
        self.config = config
        a, b, c = config.widths
        y, h, z = config.latent, config.hyper_width, config.hyper_latent
        k, of_stages = rate_knots(config), list(zip(config.widths, config.blocks, strict=True))
        blocks = [[ResidualBottleneck(width) for _ in range(2 * n)] for width, n in of_stages]
        down, up = [part[::2] for part in blocks], [part[1::2] for part in blocks]
        self.g_a = nn.Sequential(
            conv(3, a), GDN(a), *down[0], conv(a, b), GDN(b), *down[1], conv(b, c), GDN(c), *down[2], conv(c, y)
        )
        self.g_s = nn.Sequential(
            deconv(y, c), *up[2], GDN(c, True), deconv(c, b), *up[1], GDN(b, True),
            deconv(b, a), *up[0], GDN(a, True), deconv(a, 3),
        )  # fmt: skip
        self.h_a = nn.Sequential(conv(y, h, 3, 1), leaky(), conv(h, h), leaky(), conv(h, z))
        self.y_log_std = nn.Parameter(torch.zeros(y))
        self.stage_gain = nn.ParameterList(torch.zeros(k, width) for width in reversed(config.widths))
        self.stage_bias = nn.ParameterList(torch.zeros(k, width) for width in reversed(config.widths))
        if config.analysis_at_rate:
            self.look_gain = nn.ParameterList(torch.zeros(k, width) for width in config.widths)
            self.look_bias = nn.ParameterList(torch.zeros(k, width) for width in config.widths)
            of_blocks = [width for width, n in of_stages for _ in range(n)]
            self.branch_gain = nn.ParameterList(torch.zeros(k, width) for width in of_blocks + of_blocks[::-1])

    def functions_of_transforms(self) -> dict[str, Tensor]:
        """Return the knots of the rate parameters that transforms take, float32 [K, C], by name and number."""
        found = {f"{name}.{n}": knots for name in STAGE_FUNCTIONS for n, knots in enumerate(getattr(self, name))}
        if self.config.analysis_at_rate:
            for name in LOOK_FUNCTIONS + BRANCH_FUNCTIONS:
                found |= {f"{name}.{n}": SCALE_SPEED * knots for n, knots in enumerate(getattr(self, name))}
        return found

    def analysis(self, x: Tensor, rate: dict[str, Tensor] | None = None, autocast: bool = False) -> Tensor:
        """Return y, float32 [B, C, H/16, W/16].

        Args:
            x: float32 [B, 3, H, W] in 0..1, H and W multiples of 16.
            rate: The result of `at_rate`; it is not used without `Config.analysis_at_rate`.
            autocast: Whether to run in bf16, but for the last convolution.
        """
        h = self.features(x, rate, autocast)
        return self.g_a[-1](h.float())  # bf16 latents would be coarser than the quantiser at high rates

    def features(self, x: Tensor, rate: dict[str, Tensor] | None = None, autocast: bool = False) -> Tensor:
        """Return what the last convolution of analysis sees, [B, widths[2], H/8, W/8]."""
        h, stage, block = x - 0.5, 0, 0
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            for layer in self.g_a[:-1]:
                if not self.config.analysis_at_rate or isinstance(layer, GDN):
                    h = layer(h)
                elif isinstance(layer, ResidualBottleneck):
                    h, block = layer(h, rate[f"branch_gain.{block}"]), block + 1
                else:
                    h, stage = conditional_conv(layer, h, *_of_stage(rate, LOOK_FUNCTIONS, stage)), stage + 1
        return h

    def synthesis(self, y: Tensor, rate: dict[str, Tensor], autocast: bool = False) -> Tensor:
        """Return x_hat, float32 [B, 3, 16 h, 16 w], not clamped.

        Args:
            y: float32 [B, C, h, w] in the units of g_a.
            rate: The result of `at_rate`.
            autocast: Whether to run in bf16, but for the first and last convolution.
        """
        return self.synthesis_after_first(self.g_s[0](y), rate, autocast)

    def synthesis_after_first(self, h: Tensor, rate: dict[str, Tensor], autocast: bool = False) -> Tensor:
        """Return what synthesis makes of its first convolution's output, float32 [B, widths[2], 2 h, 2 w]."""
        h, stage, block = scale_and_shift(h, *_of_stage(rate, STAGE_FUNCTIONS, 0)), 1, sum(self.config.blocks)
        with torch.autocast(h.device.type, torch.bfloat16, enabled=autocast):
            for layer in self.g_s[1:-1]:
                if isinstance(layer, nn.ConvTranspose2d):
                    h, stage = conditional_deconv(layer, h, *_of_stage(rate, STAGE_FUNCTIONS, stage)), stage + 1
                elif isinstance(layer, ResidualBottleneck):
                    h, block = layer(h, rate.get(f"branch_gain.{block}")), block + 1
                else:
                    h = layer(h)
        return deconv_to_pixels(self.g_s[-1], h.float()) + 0.5

    def hyper_analysis(self, y: Tensor, autocast: bool = False) -> Tensor:
        """Return z, float32 [B, Z, h/4, w/4], of y float32 [B, C, h, w], h and w multiples of 4."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=autocast):
            h = self.h_a[:-1](y * torch.exp(-self.y_log_std)[:, None, None])
        return self.h_a[-1](h.float())


def _of_stage(rate: dict[str, Tensor], names: tuple[str, ...], stage: int) -> list[Tensor]:
    return [rate[f"{name}.{stage}"] for name in names]
