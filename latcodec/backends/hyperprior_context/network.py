"""Mean-scale hyperprior with a context model of four parallel steps, one set of weights for every rate.

    y = g_a(x, t)                                  analysis, 1/16 of the size
    z = h_a(y / s)                                 hyper-analysis, 1/64; s is one learned scale per channel
    u_k, w_k = D_k(r(E_k(z_hat_0..k-1 / a(t))))    step k = 0..3, 1/128; nothing at step 0
    n_k, v_k = n(t) + a(t) u_k, v(t) + w_k         mean and log scale; n, v: per channel
    z_hat_k = round(a(t) z_k - n_k) + n_k          p(z_hat_k) = L(n_k, v_k) * U
    m, l = h_s(z_hat / a(t))                       hyper-synthesis, 1/16: first of the networks that decide bits
    m_0, l_0 = (m, l)_0                            step k = 0..3, 1/32: its share of m, l
    m_k, l_k = (m, l)_k + C_k(r(A_k(e(t) y_hat_0..k-1) + B_k (m, l)_k))      r: leaky ReLU
    mu_k = b(t) m_k, log sigma_k = c(t) + l_k      in units of the quantiser's step
    y_hat_k = round(g(t) y_k - mu_k) + mu_k        p(y_hat_k) = L(mu_k, sigma_k) * U, Eq. 11 of Balle et al. 2018
    x_base = g_s(i(t) offset(y_hat), t)            synthesis; both transforms: see `transforms.py`
    x_hat = x_base + residual                      see `residual_network.py`; without a residual layer, x_base

The context sees each 2x2 square of latents, of y as of z, in four steps: see `quadtree.py`. A step sees the other
channels of its position and, from the second step on, its own channel's neighbours. A_k and E_k are 3x3 convolutions,
B_k, C_k and D_k are 1x1. C_k and D_k start at 0: then this is the hyperprior without context, from whose weights
training can start (`train/init/context.py`).

t is the rate index / 255: 0..1, a little below 0 at the lowest rates. a, b, c, e, g, i, n, v are piecewise linear in t,
per channel (a, b, e, g, i in the log domain), so that the networks see the same domain at every rate; e is at most
MAX_CONTEXT_GAIN. Beside a residual layer, t is that of the latents, which may be lower than the file's. L is the
logistic distribution of that mean and standard deviation: its tail is heavier than that of the papers' Gaussian, as the
residuals' is. Round takes the integer next to the nearest, towards 0, where the bits that saves are worth more than its
error. The offset moves y_hat away from mu where it is one step from it: `reconstruction.with_reconstruction_offset`.

Source: Minnen, Balle, Toderici 2018, "Joint autoregressive and hierarchical priors", with its serial context replaced
by a partition of each 2x2 square of latents: Li, Li, Lu 2023, "Neural video compression with diverse contexts",
section 3.3 (quadtree partition). Residual blocks: see `layers.ResidualBottleneck`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.config import Config as Config
from latcodec.backends.hyperprior_context.config import EntropyConfig, rate_knots
from latcodec.backends.hyperprior_context.quadtree import NUM_STEPS, coding_order, merge_quadtree, split_quadtree
from latcodec.backends.hyperprior_context.reconstruction import fade, with_reconstruction_offset
from latcodec.backends.hyperprior_context.residual_network import ResidualLayer, sample_bases
from latcodec.backends.hyperprior_context.transforms import ContextTransforms
from latcodec.nn.layers import (
    conv,
    deconv,
    distortion_weights,
    interpolate_knots,
    leaky,
    lower_bound,
    rate_distortion_loss,
    round_straight_through,
)
from latcodec.nn.symbol_costs import (
    SIGMA_MAX,
    SIGMA_MIN,
    TABLE_GROUPS,
    logistic_costs,
    picture_bits,
    rdoq_straight_through,
)
from latcodec.rates import MAX_INDEX

LATENT_FUNCTIONS = ("y_log_gain", "y_log_inverse_gain", "context_log_gain", "mean_log_gain", "scale_offset",
                    "z_log_gain", "z_mean", "z_log_sigma")  # fmt: skip
RATE_TOLERANCE = 1e-4  # of t: a rate index is a 255th
# A step of a channel counts for at most this where context networks see it. At low rates some channels have steps so
# coarse that their symbols are nearly always 0. Another symbol would be hundreds of times larger than all the networks
# were trained with, and what they then predict would be larger still in each step after it.
MAX_CONTEXT_GAIN = 64.0

Quantise = Callable[[Tensor], Tensor]
# Of a step: residual, quantised residual, standard deviation of its logistic, all in quantiser steps.
CodedStep = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AfterSynthesis:
    """What `ContextEntropyModel.transmit` does after synthesis.

    Attributes:
        x: The picture [B, 3, 16 h, 16 w], whose residual is sent if the network has a residual layer; None: not sent.
        quantise_residual: Quantises the residual layer; None for the function that quantises latents.
        filtered: Is applied to the picture before the residual is taken; None for nothing.
    """

    x: Tensor | None = None
    quantise_residual: Quantise | None = None
    filtered: Callable[[Tensor], Tensor] | None = None


class ContextEntropyModel(nn.Module):
    """The entropy model and its rate parameters; see the module's equations.

    A class of transforms, which has analysis, synthesis, hyper_analysis and functions_of_transforms, comes behind it in
    the order of bases.
    """

    def __init__(self, config: EntropyConfig):
        """Make the entropy model; the class of transforms comes first, through super()."""
        super().__init__(config)
        y, h, z = config.latent, config.hyper_width, config.hyper_latent
        self.lowest, k = config.lowest_index / MAX_INDEX, rate_knots(config)
        self.h_s = nn.Sequential(deconv(z, h), leaky(), deconv(h, y), leaky(), conv(y, 2 * y, 1, 1))
        c = config.context_width
        self.from_seen = nn.ModuleList(conv(step * y, c, 3, 1) for step in range(1, NUM_STEPS))  # A
        self.from_first = nn.ModuleList(conv(2 * y, c, 1, 1) for _ in range(1, NUM_STEPS))  # B
        self.corrections = nn.ModuleList(conv(c, 2 * y, 1, 1) for _ in range(1, NUM_STEPS))  # C
        c = config.z_context_width
        self.z_from_seen = nn.ModuleList(conv(step * z, c, 3, 1) for step in range(1, NUM_STEPS))  # E
        self.z_corrections = nn.ModuleList(conv(c, 2 * z, 1, 1) for _ in range(1, NUM_STEPS))  # D
        self.activation = leaky()
        self.details = ResidualLayer(config.details, y, config.detail_width, config.knots) if config.details else None
        for name, order in (("order", coding_order(y)), ("z_order", coding_order(z))):
            self.register_buffer(name, order, persistent=False)
            self.register_buffer(f"inverse_{name}", torch.argsort(order), persistent=False)
        self.register_buffer("prices", logistic_costs())  # of symbols, as tables say: what training pays
        # Gains start at the step a uniform quantiser would want: proportional to sqrt(lc), about 9 at lc = .0067.
        with torch.no_grad():
            places = torch.linspace(0, 1, config.knots)
            weights = distortion_weights(torch.cat([torch.tensor([self.lowest]), places])[-k:])
            log_gain = (math.log(9) + 0.5 * (weights / 0.0067).log())[:, None]
            self.h_s[-1].weight.mul_(0.1)
            self.h_s[-1].bias.zero_()
            for last in (*self.corrections, *self.z_corrections):
                last.weight.zero_()
                last.bias.zero_()
        self.y_log_gain = nn.Parameter(log_gain.repeat(1, y))
        self.y_log_inverse_gain = nn.Parameter(-log_gain.repeat(1, y))
        self.context_log_gain = nn.Parameter(-log_gain.repeat(1, y))
        self.mean_log_gain = nn.Parameter(log_gain.repeat(1, y))
        self.scale_offset = nn.Parameter(log_gain.repeat(1, y))
        self.z_log_gain = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))
        self.z_mean = nn.Parameter(torch.zeros(k, z))
        self.z_log_sigma = nn.Parameter(torch.linspace(math.log(1.5), math.log(6), k)[:, None].repeat(1, z))

    def start_from_latent_std(self, std: Tensor) -> None:
        """Set the prior's scales from the measured standard deviation of g_a's output, float32 [C]."""
        with torch.no_grad():
            self.y_log_std.copy_(std.clamp_min(1e-3).log())
            self.mean_log_gain.add_(self.y_log_std)
            self.scale_offset.add_(self.y_log_std)
            self.context_log_gain.sub_(self.y_log_std)

    def at_rate(self, t: Tensor, base: Tensor | None = None) -> dict[str, Tensor]:
        """Return every rate parameter, tensors [B, C, 1, 1].

        Args:
            t: Rate of the file, float32 [B].
            base: Rate of the latents below a residual layer, float32 [B]; None for that of a file without parameters.
        """
        residual_params = {}
        if self.details is not None:
            sent = t > self.config.details_from / MAX_INDEX - RATE_TOLERANCE if base is None else t >= 0
            base = t.clamp_max(self.config.latents_until / MAX_INDEX) if base is None else base
            residual_params = self.details.at_rate(t, base) | {"details.sent": sent.float()[:, None]}
        lift = self.config.lift if self.config.step_error_bits else 0.0  # RDOQ is what makes symbols rare
        reconstruction = {"lift": lift * fade(t)[:, None], "details.nearer": self.config.nearer * fade(t)[:, None]}
        functions = {name: getattr(self, name) for name in LATENT_FUNCTIONS}
        functions["context_log_gain"] = functions["context_log_gain"].clamp_max(math.log(MAX_CONTEXT_GAIN))
        functions |= self.functions_of_transforms()
        place = t if base is None else base
        values = {name: interpolate_knots(knots, place, self.lowest) for name, knots in functions.items()}
        return {name: value[:, :, None, None] for name, value in (values | reconstruction | residual_params).items()}

    def prices_of(self, kind: str) -> Tensor:
        """Return bits of symbols in the tables of "y", "residual" or "z", float32 [tables, symbols]."""
        return self.prices.chunk(len(TABLE_GROUPS))[TABLE_GROUPS.index(kind)]

    def transmit(
        self, y: Tensor, z: Tensor, rate: dict[str, Tensor], quantise: Quantise, autocast: bool = False,
        rdoq: bool = False, after: AfterSynthesis = AfterSynthesis(),
    ) -> tuple[Tensor, list[CodedStep]]:  # fmt: skip
        """Return what the decoder makes of latents, and what was coded.

        Args:
            y: float32 [B, C, h, w].
            z: float32 [B, Z, ceil(h / 4), ceil(w / 4)].
            rate: The result of `at_rate`.
            quantise: Residual to symbols, or a relaxation of that.
            autocast: Whether synthesis runs in bf16.
            rdoq: Whether y and z are quantised by RDOQ instead, as the encoder does, straight-through, and y is
                reconstructed with an offset. A search that knows of the offset finds less.
            after: What follows synthesis.

        Returns:
            x_hat [B, 3, 16 h, 16 w], and what was coded of z, of each step of y and of each group of the residual
            layer. Where h or w is odd, residuals beyond y are 0.
        """
        height, width = y.shape[2:]
        z_hat, coded_z = self.transmit_z(z, rate, quantise, rdoq)
        hyper = self.h_s(z_hat)[:, :, : height + height % 2, : width + width % 2]
        y_hat, y_reconstructed, coded_y = self.transmit_y(y, hyper, rate, quantise, rdoq)
        coded = [coded_z, *coded_y]
        x_hat = self.synthesis(y_reconstructed * rate["y_log_inverse_gain"].exp(), rate, autocast)
        if after.filtered is not None:
            x_hat = after.filtered(x_hat)
        if self.details is not None and after.x is not None:
            u = self.details.analysis(after.x - x_hat) * rate["details.sent"]
            context, hyper = y_hat * rate["context_log_gain"].exp(), hyper[:, :, :height, :width]
            u_hat, groups = self.details.transmit(u, context, hyper, rate, after.quantise_residual or quantise)
            x_hat, coded = x_hat + self.details.synthesis(u_hat), coded + groups
        return x_hat, coded

    def transmit_y(
        self, y: Tensor, hyper: Tensor, rate: dict[str, Tensor], quantise: Quantise, rdoq: bool
    ) -> tuple[Tensor, Tensor, list[CodedStep]]:
        """Return decoded y, y as synthesis sees it (both [B, C, h, w] in steps), and what was coded of each step.

        Args:
            y: float32 [B, C, h, w].
            hyper: Output of the hyper-synthesis, float32 [B, 2 C, h, w] with h and w rounded up to even numbers.
            rate: The result of `at_rate`.
            quantise: See `transmit`.
            rdoq: See `transmit`.
        """
        hyper_steps = [split_quadtree(part, self.order) for part in hyper.chunk(2, 1)]
        y_steps = split_quadtree(y * rate["y_log_gain"].exp(), self.order)
        valid = split_quadtree(torch.ones_like(y[:1]), self.order)
        mean_gain, context_gain = rate["mean_log_gain"].exp(), rate["context_log_gain"].exp()
        context, decoded, reconstructed, coded = [], [], [], []
        for step in range(NUM_STEPS):
            parameters = torch.cat([hyper_steps[0][step], hyper_steps[1][step]], 1)
            if step:
                h = self.from_seen[step - 1](torch.cat(context, 1)) + self.from_first[step - 1](parameters)
                parameters = parameters + self.corrections[step - 1](self.activation(h))
            m, log_scale = parameters.chunk(2, 1)
            mu = m * mean_gain
            sigma = lower_bound((log_scale + rate["scale_offset"]).clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            residual = (y_steps[step] - mu) * valid[step]
            if rdoq and self.config.step_error_bits:
                quantised = rdoq_straight_through(residual, sigma, self.prices_of("y"), self.config.step_error_bits)
            else:
                quantised = quantise(residual)
            coded.append((residual, quantised, torch.where(valid[step] > 0, sigma, SIGMA_MIN)))
            decoded.append(quantised + mu)
            values = with_reconstruction_offset(quantised, sigma, rate["lift"]) if rdoq else quantised
            reconstructed.append(values + mu)
            context.append(decoded[-1] * context_gain)
        height, width = y.shape[2:]
        y_hat, y_reconstructed = (
            merge_quadtree(steps, self.inverse_order)[:, :, :height, :width] for steps in (decoded, reconstructed)
        )
        if not y_steps[0].requires_grad:  # straight through, means cancel: there is no other gradient in it
            y_hat, y_reconstructed = y_hat.detach(), y_reconstructed.detach()
        return y_hat, y_reconstructed, coded

    def transmit_z(
        self, z: Tensor, rate: dict[str, Tensor], quantise: Quantise, rdoq: bool = False
    ) -> tuple[Tensor, CodedStep]:
        """Return what the hyper-synthesis sees of z, and what was coded, all float32 [B, Z, h, w].

        Args:
            z: float32 [B, Z, h, w].
            rate: The result of `at_rate`.
            quantise: See `transmit`.
            rdoq: See `transmit`.
        """
        gain = rate["z_log_gain"].exp()
        steps = split_quadtree(z * gain, self.z_order)
        valid = split_quadtree(torch.ones_like(z[:1]), self.z_order)
        context, coded = [], []
        for step in range(NUM_STEPS):
            mu, log_scale = rate["z_mean"], rate["z_log_sigma"]
            if step:
                h = self.z_from_seen[step - 1](torch.cat(context, 1))
                m, log_scale_delta = self.z_corrections[step - 1](self.activation(h)).chunk(2, 1)
                mu, log_scale = mu + m * gain, log_scale + log_scale_delta
            sigma = lower_bound(log_scale.clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            residual = (steps[step] - mu) * valid[step]
            if rdoq and self.config.step_error_bits and self.config.z_step_error_bits:
                quantised = rdoq_straight_through(residual, sigma, self.prices_of("z"), self.config.z_step_error_bits)
            else:
                quantised = quantise(residual)
            coded.append((residual, quantised, sigma.expand_as(residual)))
            context.append((quantised + mu) / gain)
        z_hat, *coded_z = (
            merge_quadtree(parts, self.inverse_z_order)[:, :, : z.shape[2], : z.shape[3]]
            for parts in (context, *zip(*coded, strict=True))
        )
        return z_hat, tuple(coded_z)

    def forward(self, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True) -> dict[str, Tensor]:
        """Return the decoded picture and its bits.

        Bits are what the tables say of what RDOQ made, which every network behind the quantiser sees too
        (straight-through).

        Args:
            x: float32 [B, 3, H, W] in 0..1, H and W multiples of 64.
            t: Rates, float32 [B].
            autocast: Whether transforms run in bf16.
            noise: For training: the gradient of the bits of y and z is that of them plus uniform noise, and a residual
                layer that is trained alone is sent at every rate, beside latents of it or a lower one.

        Returns:
            x_hat [B, 3, H, W]; y_bits, z_bits, detail_bits [B].
        """
        residual_alone = self.details is not None and not any(p.requires_grad for p in self.g_a.parameters())
        until = self.config.latents_until / MAX_INDEX
        rate = self.at_rate(t, sample_bases(t, until) if noise and residual_alone else None)
        y = self.analysis(x, rate, autocast)
        z = self.hyper_analysis(y, autocast)
        after = AfterSynthesis(x)
        x_hat, coded = self.transmit(y, z, rate, round_straight_through, autocast, rdoq=True, after=after)
        coded_z, coded_y, coded_residual = coded[0], coded[1 : 1 + NUM_STEPS], coded[1 + NUM_STEPS :]
        z_bits = picture_bits(*coded_z, self.prices_of("z"), noise)
        y_bits = torch.stack([picture_bits(*step, self.prices_of("y"), noise) for step in coded_y]).sum(0)
        # Nearly all symbols of the residual layer are 0 and free: noise would make them expensive.
        group_bits = (picture_bits(*group, self.prices_of("residual"), noise=False) for group in coded_residual)
        detail_bits = sum(group_bits, torch.zeros_like(z_bits))
        if coded_residual:
            detail_bits = detail_bits * rate["details.sent"].flatten()
        return {"x_hat": x_hat, "y_bits": y_bits, "z_bits": z_bits, "detail_bits": detail_bits}


class ContextHyperprior(ContextEntropyModel, ContextTransforms):
    """The networks and rate parameters of the default codec."""


def loss(
    model: ContextEntropyModel, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True,
    progress: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return `rate_distortion_loss`, and per picture [B] the shares of bpp "z_bpp" and "detail_bpp"."""
    out = model(x, t, autocast, noise)
    bits = out["y_bits"] + out["z_bits"] + out["detail_bits"]
    shares = {f"{name}_bpp": out[f"{name}_bits"] / (x.shape[2] * x.shape[3]) for name in ("z", "detail")}
    return rate_distortion_loss(out["x_hat"], x, bits, t, noise) | shares
