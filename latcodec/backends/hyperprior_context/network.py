"""Mean-scale hyperprior with a context model of four parallel steps, one set of weights for every rate.

Source: Minnen, Balle, Toderici 2018, "Joint autoregressive and hierarchical priors", with its serial context replaced
by a partition of each 2x2 square of latents: Li, Li, Lu 2023, "Neural video compression with diverse contexts",
section 3.3 (quadtree partition). Residual blocks: see `layers.ResidualBottleneck`.

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
    x_base = g_s(i(t) lift(y_hat), t)              synthesis; both: see `context_transforms.py`
    x_hat = x_base + details                       see `details.py`; without any, x_base

Of each 2x2 square of latents, of y as of z, a step codes every position once, in another quarter of the channels each,
diagonal neighbours first: `coding_order`. So a step sees the other channels of its position and, from the second step
on, its own channel's neighbours. A_k and E_k are 3x3 convolutions, B_k, C_k and D_k are 1x1; C_k and D_k start at 0:
then this is the hyperprior without context, whose weights training can start from (`train/start_context.py`). t in
0..1, a little below 0 at the lowest rates, is the rate index / 255; a, b, c, e, g, i, n, v are piecewise linear
in t, per channel (a, b, e, g, i in the log domain), so that the networks see the same domain at every rate; e is at
most LOUDEST. Beside details, t is that of the latents, which may be lower than the file's. L is the logistic
distribution of that mean and standard deviation: heavier in the tail than the papers' Gaussian, as the residuals are.
Round takes the integer next to the nearest, towards 0, where the bits it saves are worth more than its error:
`rdoq_straight_through`; lift moves y_hat away from mu where it is one step from it, less at the highest rates of
files: `reconstruction.lifted`.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latcodec.backends.hyperprior_context.config import Config as Config
from latcodec.backends.hyperprior_context.config import EntropyConfig, rate_knots
from latcodec.backends.hyperprior_context.quadtree import STEPS, coding_order, from_steps, in_steps
from latcodec.backends.hyperprior_context.reconstruction import fade, lifted
from latcodec.backends.hyperprior_context.residual_network import Details, bases_below
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
NEAR = 1e-4  # of t: a rate index is a 255th
# That a step of a channel counts for at most where context networks see it. At low rates some channels have steps so
# coarse that their symbols are nearly always 0; one that is not would be hundreds of times as loud as all the networks
# were trained with, and what they then predict is louder still in each step after it.
LOUDEST = 64.0


class ContextEntropyModel(nn.Module):
    """The entropy model and its functions of the rate; see the module's equations. A class of transforms, which has
    analysis, synthesis, hyper_analysis and functions_of_transforms, comes behind it in the order of bases."""

    def __init__(self, config: EntropyConfig):
        super().__init__(config)
        y, h, z = config.latent, config.hyper_width, config.hyper_latent
        self.lowest, k = config.lowest_index / MAX_INDEX, rate_knots(config)
        self.h_s = nn.Sequential(deconv(z, h), leaky(), deconv(h, y), leaky(), conv(y, 2 * y, 1, 1))
        c = config.context_width
        self.from_seen = nn.ModuleList(conv(step * y, c, 3, 1) for step in range(1, STEPS))  # A
        self.from_first = nn.ModuleList(conv(2 * y, c, 1, 1) for _ in range(1, STEPS))  # B
        self.corrections = nn.ModuleList(conv(c, 2 * y, 1, 1) for _ in range(1, STEPS))  # C
        c = config.z_context_width
        self.z_from_seen = nn.ModuleList(conv(step * z, c, 3, 1) for step in range(1, STEPS))  # E
        self.z_corrections = nn.ModuleList(conv(c, 2 * z, 1, 1) for _ in range(1, STEPS))  # D
        self.activation = leaky()
        self.details = Details(config.details, y, config.detail_width, config.knots) if config.details else None
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
        """Every function of the rate at t float32 [B]: tensors [B, C, 1, 1].

        base: the rate of the latents, float32 [B], beside which details are sent; None: what a file has that does not
        say it.
        """
        of_details = {}
        if self.details is not None:
            sent = t > self.config.details_from / MAX_INDEX - NEAR if base is None else t >= 0
            base = t.clamp_max(self.config.latents_until / MAX_INDEX) if base is None else base
            of_details = self.details.at_rate(t, base) | {"details.sent": sent.float()[:, None]}
        lift = self.config.lift if self.config.step_error_bits else 0.0  # of what is rounded by price
        shown = {"lift": lift * fade(t)[:, None], "details.nearer": self.config.nearer * fade(t)[:, None]}
        functions = {name: getattr(self, name) for name in LATENT_FUNCTIONS}
        functions["context_log_gain"] = functions["context_log_gain"].clamp_max(math.log(LOUDEST))
        functions |= self.functions_of_transforms()
        place = t if base is None else base
        values = {name: interpolate_knots(knots, place, self.lowest) for name, knots in functions.items()}
        return {name: value[:, :, None, None] for name, value in (values | shown | of_details).items()}

    def prices_of(self, kind: str) -> Tensor:
        """Bits of symbols in the rows of "y", "residual" or "z", float32 [tables, symbols]: see `symbol_costs`."""
        return self.prices.chunk(len(TABLE_GROUPS))[TABLE_GROUPS.index(kind)]

    def transmit(
        self, y: Tensor, z: Tensor, rate: dict[str, Tensor], quantise: Callable[[Tensor], Tensor],
        autocast: bool = False, x: Tensor | None = None, quantise_details: Callable[[Tensor], Tensor] | None = None,
        by_price: bool = False, filtered: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:  # fmt: skip
        """What the decoder makes of latents, float32 y [B, C, h, w], z [B, Z, ceil(h/4), ceil(w/4)], and their prices.

        quantise: residual -> symbols, or something softer. x: the picture [B, 3, 16 h, 16 w], whose details are sent
        too if this network has any; None: not. quantise_details: theirs, if another one. by_price: y and z are rounded
        by rate and distortion in place of that, as the encoder does, straight-through, and y is lifted; a search that
        hears of the lift finds less. filtered: what is done to the picture before details. Returns x_hat
        [B, 3, 16 h, 16 w] and, of z, of each step of y and of each group of details, (residual, quantised residual,
        standard deviation of its logistic), all in steps. Where h or w is odd, residuals beyond y are 0.
        """
        height, width = y.shape[2:]
        z_hat, price_of_z = self.transmit_z(z, rate, quantise, by_price)
        hyper = self.h_s(z_hat)[:, :, : height + height % 2, : width + width % 2]
        first = [in_steps(part, self.order) for part in hyper.chunk(2, 1)]
        y_steps = in_steps(y * rate["y_log_gain"].exp(), self.order)
        there = in_steps(torch.ones_like(y[:1]), self.order)
        mean_gain, context_gain = rate["mean_log_gain"].exp(), rate["context_log_gain"].exp()
        seen, parts, shown, prices = [], [], [], [price_of_z]
        for step in range(STEPS):
            parameters = torch.cat([first[0][step], first[1][step]], 1)
            if step:
                h = self.from_seen[step - 1](torch.cat(seen, 1)) + self.from_first[step - 1](parameters)
                parameters = parameters + self.corrections[step - 1](self.activation(h))
            m, log_scale = parameters.chunk(2, 1)
            mu = m * mean_gain
            sigma = lower_bound((log_scale + rate["scale_offset"]).clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            residual = (y_steps[step] - mu) * there[step]
            if by_price and self.config.step_error_bits:
                quantised = rdoq_straight_through(residual, sigma, self.prices_of("y"), self.config.step_error_bits)
            else:
                quantised = quantise(residual)
            prices.append((residual, quantised, torch.where(there[step] > 0, sigma, SIGMA_MIN)))
            parts.append(quantised + mu)
            shown.append((lifted(quantised, sigma, rate["lift"]) if by_price else quantised) + mu)
            seen.append(parts[-1] * context_gain)
        y_hat, y_shown = (from_steps(one, self.inverse_order)[:, :, :height, :width] for one in (parts, shown))
        if not y_steps[0].requires_grad:  # straight through, means cancel: there is no other gradient in it
            y_hat, y_shown = y_hat.detach(), y_shown.detach()
        x_hat = self.synthesis(y_shown * rate["y_log_inverse_gain"].exp(), rate, autocast)
        if filtered is not None:
            x_hat = filtered(x_hat)
        if self.details is not None and x is not None:
            u = self.details.analysis(x - x_hat) * rate["details.sent"]
            context, first = y_hat * context_gain, hyper[:, :, :height, :width]
            u_hat, more = self.details.transmit(u, context, first, rate, quantise_details or quantise)
            x_hat, prices = x_hat + self.details.synthesis(u_hat), prices + more
        return x_hat, prices

    def transmit_z(
        self, z: Tensor, rate: dict[str, Tensor], quantise: Callable[[Tensor], Tensor], by_price: bool = False
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """What the hyper-synthesis sees of z, and its price, as in `transmit`; float32 [B, Z, h, w] all of them."""
        gain = rate["z_log_gain"].exp()
        steps = in_steps(z * gain, self.z_order)
        there = in_steps(torch.ones_like(z[:1]), self.z_order)
        seen, prices = [], []
        for step in range(STEPS):
            mu, log_scale = rate["z_mean"], rate["z_log_sigma"]
            if step:
                h = self.z_from_seen[step - 1](torch.cat(seen, 1))
                m, more = self.z_corrections[step - 1](self.activation(h)).chunk(2, 1)
                mu, log_scale = mu + m * gain, log_scale + more
            sigma = lower_bound(log_scale.clamp_max(math.log(SIGMA_MAX)).exp(), SIGMA_MIN)
            residual = (steps[step] - mu) * there[step]
            if by_price and self.config.step_error_bits and self.config.z_step_error_bits:
                quantised = rdoq_straight_through(residual, sigma, self.prices_of("z"), self.config.z_step_error_bits)
            else:
                quantised = quantise(residual)
            prices.append((residual, quantised, sigma.expand_as(residual)))
            seen.append((quantised + mu) / gain)
        z_hat, *price_of_z = (
            from_steps(parts, self.inverse_z_order)[:, :, : z.shape[2], : z.shape[3]]
            for parts in (seen, *zip(*prices, strict=True))
        )
        return z_hat, tuple(price_of_z)

    def forward(self, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True) -> dict[str, Tensor]:
        """x float32 [B, 3, H, W] (multiples of 64), t float32 [B] -> x_hat; y_bits, z_bits, detail_bits [B].

        Bits are what the tables say of what was rounded by rate and distortion, which every network behind the
        quantiser sees too (straight-through). With `noise` the gradient of bits that y and z get is that of them plus
        uniform noise, and details that are trained alone are sent at every rate, beside latents of it or a lower one.
        """
        alone = self.details is not None and not any(p.requires_grad for p in self.g_a.parameters())
        until = self.config.latents_until / MAX_INDEX
        rate = self.at_rate(t, bases_below(t, until) if noise and alone else None)
        y = self.analysis(x, rate, autocast)
        z = self.hyper_analysis(y, autocast)
        x_hat, prices = self.transmit(y, z, rate, round_straight_through, autocast, x, by_price=True)
        of_z, of_y, of_details = prices[0], prices[1 : 1 + STEPS], prices[1 + STEPS :]
        z_bits = picture_bits(*of_z, self.prices_of("z"), noise)
        y_bits = torch.stack([picture_bits(*part, self.prices_of("y"), noise) for part in of_y]).sum(0)
        # Nearly all details are 0 and free: noise on them would cost what they do not.
        found = (picture_bits(*part, self.prices_of("residual"), noise=False) for part in of_details)
        detail_bits = sum(found, torch.zeros_like(z_bits))
        if of_details:
            detail_bits = detail_bits * rate["details.sent"].flatten()
        return {"x_hat": x_hat, "y_bits": y_bits, "z_bits": z_bits, "detail_bits": detail_bits}


class ContextHyperprior(ContextEntropyModel, ContextTransforms):
    """The networks and the functions of the rate of the default codec."""


def loss(
    model: ContextEntropyModel, x: Tensor, t: Tensor, autocast: bool = False, noise: bool = True,
    progress: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """`rate_distortion_loss`, and per picture [B] the shares of bpp "z_bpp" and "detail_bpp"."""
    out = model(x, t, autocast, noise)
    bits = out["y_bits"] + out["z_bits"] + out["detail_bits"]
    shares = {f"{name}_bpp": out[f"{name}_bits"] / (x.shape[2] * x.shape[3]) for name in ("z", "detail")}
    return rate_distortion_loss(out["x_hat"], x, bits, t, noise) | shares
