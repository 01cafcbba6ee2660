"""What at least two models share: GDN, strided convolutions, rounding, the logistic rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.rates import LAMBDA_MAX, LAMBDA_MIN, distortion_weight

SMALLEST_SIZE = 0.003  # of a channel that GDN sees, of the range of a picture


class GDN(nn.Module):
    """Divisive normalisation with absolute values, x / (beta + gamma |x|), or its inverse x * (beta + gamma |x|).

    Source: Balle et al. 2016, "Density modeling of images using a generalized normalization transformation"; the
    square-root-free form is Johnston et al. 2019, "Computationally efficient neural image compression", section 3.1.
    Each column of `gamma` has a unit of its own, float32 [C], so that a step of the learning rate moves the norm alike
    whether a channel's values are a hundredth of the picture's range or all of it: `fit_units`. Below 0 gamma counts as
    0 and can come back; beta is the square of what is stored: neither is ever negative.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.gamma = nn.Parameter(0.01 * torch.eye(channels))  # next to the identity
        self.register_buffer("gamma_unit", torch.ones(channels))
        self.beta_root = nn.Parameter(torch.ones(channels))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """gamma float32 [C, C] and beta [C], none of them negative."""
        return lower_bound(self.gamma, 0.0) * self.gamma_unit, self.beta_root.square() + 1e-4

    @torch.no_grad()
    def fit_units(self, x: Tensor) -> None:
        """Choose the units for inputs like x, float32 [B, C, H, W]; gamma times unit stays what it is."""
        unit = 0.5 / x.abs().mean((0, 2, 3)).clamp_min(SMALLEST_SIZE)
        self.gamma.mul_(self.gamma_unit / unit)
        self.gamma_unit.copy_(unit)

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.coefficients()
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled():
            return _NormOnCPU.apply(x, gamma, beta, self.inverse)
        norm = F.conv2d(x.abs(), gamma[:, :, None, None], beta)
        return x * norm if self.inverse else x / norm


def with_gamma(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name in which a gamma of GDN and its units stand for every `gamma_root`, the square root of gamma that
    older weights hold."""
    found = {}
    for name, value in tensors.items():
        prefix = name.removesuffix("gamma_root")
        if prefix == name:
            found[name] = value
        else:
            gamma = value.float().square()
            found |= {f"{prefix}gamma": gamma, f"{prefix}gamma_unit": gamma.new_ones(len(gamma))}
    return found


class _NormOnCPU(torch.autograd.Function):
    """GDN whose gradient makes half as many passes over memory, which is what it costs on a CPU."""

    @staticmethod
    def forward(context, x: Tensor, gamma: Tensor, beta: Tensor, inverse: bool) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        norm = torch.addmm(beta, pixels.abs().flatten(0, 2), gamma.T).view(pixels.shape)
        out = pixels * norm if inverse else pixels / norm
        context.save_for_backward(pixels, gamma, norm, out)
        context.inverse = inverse
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(context, gradient: Tensor):
        x, gamma, norm, out = context.saved_tensors
        g = gradient.permute(0, 2, 3, 1)
        through = g * norm if context.inverse else g / norm
        of_norm = g * x if context.inverse else (through * out).neg_()
        flat = of_norm.flatten(0, 2)
        to_size = (flat @ gamma).view(x.shape)
        through.addcmul_(to_size, x.sign())
        return through.permute(0, 3, 1, 2), flat.T @ x.abs().flatten(0, 2), flat.sum(0), None


def conv(channels_in: int, channels_out: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """A convolution that divides the size by `stride`, rounding up."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2)


def deconv(channels_in: int, channels_out: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """A transposed convolution that multiplies the size by `stride` exactly."""
    return nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, kernel // 2, output_padding=stride - 1)


def leaky(slope_shift: int = 3) -> nn.LeakyReLU:
    """Leaky ReLU whose slope is the power of two 2**-slope_shift, so that `integer_net` can run it exactly."""
    return nn.LeakyReLU(2.0**-slope_shift)


def round_straight_through(x: Tensor) -> Tensor:
    """round(x) forward, the identity backward."""
    return x + (x.round() - x).detach()


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor, bound: float) -> Tensor:
        context.save_for_backward(x)
        context.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(context, gradient: Tensor):
        (x,) = context.saved_tensors
        # Below the bound only a gradient that would raise x may pass.
        return gradient * ((x >= context.bound) | (gradient < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """max(x, bound) whose gradient still pulls x up from below the bound."""
    return _LowerBound.apply(x, bound)


def logistic_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """-log2 of the mass that a logistic distribution of std sigma puts on the unit interval around `residual`.

    Same shape, float32. Source: Balle et al. 2018, Eq. 11, with the logistic in place of the Gaussian: its log-tails
    are straight, so an outlier pulls its scale with a gradient that neither underflows nor meets a floor.
    """
    distance = residual.abs()
    scale = (math.pi / math.sqrt(3)) / sigma
    # S(b) - S(a) = S(b) S(-a) (1 - exp(a - b)), in the log domain: differences of sigmoids underflow.
    upper, lower = (0.5 - distance) * scale, (0.5 + distance) * scale
    log_mass = F.logsigmoid(upper) + F.logsigmoid(lower) + torch.log(-torch.expm1(-scale))
    return log_mass * (-1 / math.log(2))


def scaled(h: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """(1 + gain) h + bias in the type of h; 1 + gain would lose most of it in bf16."""
    return torch.addcmul(h if bias is None else h + bias.to(h.dtype), h, gain.to(h.dtype))


def conv_at_rate(layer: nn.Conv2d, h: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """(1 + gain) layer(h) + bias; gain and bias [B, C, 1, 1]. Of one rate it is a convolution, and costs no more."""
    if len(gain) > 1:
        return scaled(layer(h), gain, bias)
    scale = 1 + gain.flatten()
    shift = layer.bias * scale if bias is None else torch.addcmul(bias.flatten(), layer.bias, scale)
    return F.conv2d(h, layer.weight * scale[:, None, None, None], shift, layer.stride, layer.padding)


def deconv_at_rate(layer: nn.ConvTranspose2d, h: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """`conv_at_rate` of a transposed convolution."""
    if len(gain) > 1:
        return scaled(layer(h), gain, bias)
    scale = 1 + gain.view(1, -1, 1, 1)
    shift = torch.addcmul(bias.flatten(), layer.bias, scale.flatten())
    return F.conv_transpose2d(h, layer.weight * scale, shift, layer.stride, layer.padding, layer.output_padding)


def to_pixels(layer: nn.ConvTranspose2d, h: Tensor) -> Tensor:
    """layer(h) of a 5x5 `deconv` to few channels, [B, C, h, w] to [B, few, 2 h, 2 w], in half the time on a CPU: a 3x3
    convolution to four times as many channels, one for each place in a square of 2x2. Sums are in another order."""
    places = F.pad(layer.weight, (0, 1, 0, 1)).unflatten(3, (3, 2)).unflatten(2, (3, 2))  # tap 2 d + place, d = 0..2
    kernel = places.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, layer.in_channels, 3, 3)
    return F.pixel_shuffle(F.conv2d(h, kernel, layer.bias.repeat_interleave(4), padding=1), 2)


def distortion_weights(t: Tensor) -> Tensor:
    """lc of L = bpp + lc * 255^2 * MSE at rate positions t (rate index / 255), same shape; see latcodec/rates.py."""
    return distortion_weight(LAMBDA_MAX) * torch.exp(t * math.log(LAMBDA_MAX / LAMBDA_MIN))


def rate_and_distortion(x_hat: Tensor, x: Tensor, bits: Tensor, t: Tensor, noise: bool) -> dict[str, Tensor]:
    """Per picture: L = bpp + lc * 255^2 * MSE, weighted by lc^-1/2 so that no rate dominates a batch.

    x_hat and x float32 [B, 3, H, W], bits and t [B]; without `noise` pictures are clamped, as a decoder does. Returns
    the scalar "loss" and, per picture [B], "bpp", "mse" (of the [0, 1] range) and "lagrangian".
    """
    mse = ((x_hat if noise else x_hat.clamp(0, 1)) - x).square().mean((1, 2, 3))
    bpp = bits / (x.shape[2] * x.shape[3])
    lc = distortion_weights(t)
    lagrangian = bpp + lc * 255**2 * mse
    return {"loss": (lagrangian / lc.sqrt()).mean(), "bpp": bpp, "mse": mse, "lagrangian": lagrangian}


class Residual(nn.Module):
    """x + f(x) with a bottleneck of half the width: 1x1, 3x3, 1x1 convolutions. The identity before training.

    Source: He, Yang, Peng, Chen, Qin, Wang 2022, "ELIC", section 3.3, residual bottleneck blocks.
    """

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.f = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            leaky(),
            nn.Conv2d(half, half, 3, padding=1),
            leaky(),
            nn.Conv2d(half, channels, 1),
        )
        nn.init.zeros_(self.f[-1].weight)
        nn.init.zeros_(self.f[-1].bias)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """x + (1 + gain) f(x); gain: [B, C, 1, 1], 0 if there is none."""
        return x + (self.f(x) if gain is None else conv_at_rate(self.f[-1], self.f[:-1](x), gain))


def interpolate_knots(knots: Tensor, position: Tensor, lowest: float = 0.0) -> Tensor:
    """Piecewise linear functions of one number: knots float32 [K, C], position float32 [B] in 0..1 -> [B, C].

    lowest: under 0 there is one more knot, the first, at that position; the others are evenly spread over 0..1.
    """
    below = int(lowest < 0)
    place = position.clamp(0, 1) * (knots.shape[0] - 1 - below)
    if below:
        place = place - position.clamp(lowest, 0) / lowest
    hats = (1 - (place[:, None] - torch.arange(-below, knots.shape[0] - below, device=knots.device)).abs()).clamp_min(0)
    return (hats[:, :, None] * knots).sum(1)
