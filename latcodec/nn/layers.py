"""Layers that several networks share: GDN, strided and conditional convolutions, rounding, the logistic rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.rates import LAMBDA_MAX, LAMBDA_MIN, distortion_weight

MIN_MEAN_MAGNITUDE = 0.003  # of a channel that GDN normalises, in the range 0..1 of a picture


class GDN(nn.Module):
    """Divisive normalisation with absolute values, x / (beta + gamma |x|), or its inverse x * (beta + gamma |x|).

    Each column of the stored `gamma` has a unit, so that a step of the learning rate changes the norm equally whether
    the values of a channel are small or large: see `fit_units`. A negative stored gamma counts as 0 and can become
    positive again. Beta is the square of what is stored, so neither is ever negative.

    Source: Balle, Laparra, Simoncelli 2016, "Density modeling of images using a generalized normalization
    transformation"; the form without square and root is Johnston, Eban, Gordon, Balle 2019, "Computationally efficient
    neural image compression", section 3.1.

    Args:
        channels: Number of channels C.
        inverse: Whether the layer multiplies by the norm instead of dividing by it.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        self.gamma = nn.Parameter(0.01 * torch.eye(channels))  # close to the identity
        self.register_buffer("gamma_unit", torch.ones(channels))
        self.beta_root = nn.Parameter(torch.ones(channels))

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """Return gamma float32 [C, C] and beta float32 [C], none of them negative."""
        return lower_bound(self.gamma, 0.0) * self.gamma_unit, self.beta_root.square() + 1e-4

    @torch.no_grad()
    def fit_units(self, x: Tensor) -> None:
        """Choose the units for inputs like x, float32 [B, C, H, W]; the effective gamma does not change."""
        unit = 0.5 / x.abs().mean((0, 2, 3)).clamp_min(MIN_MEAN_MAGNITUDE)
        self.gamma.mul_(self.gamma_unit / unit)
        self.gamma_unit.copy_(unit)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, float32 [B, C, H, W], or undo it."""
        gamma, beta = self.coefficients()
        if x.device.type == "cpu" and x.dtype == torch.float32 and torch.is_grad_enabled():
            return _GDNOnCPU.apply(x, gamma, beta, self.inverse)
        norm = F.conv2d(x.abs(), gamma[:, :, None, None], beta)
        return x * norm if self.inverse else x / norm


def with_gdn_units(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace every `gamma_root`, the square root of gamma that older weights hold, by `gamma` and `gamma_unit`.

    Args:
        tensors: The state of a network by name.
    """
    state = {}
    for name, value in tensors.items():
        prefix = name.removesuffix("gamma_root")
        if prefix == name:
            state[name] = value
        else:
            gamma = value.float().square()
            state |= {f"{prefix}gamma": gamma, f"{prefix}gamma_unit": gamma.new_ones(len(gamma))}
    return state


class _GDNOnCPU(torch.autograd.Function):
    """GDN with a gradient that makes half as many passes over memory, which dominates its time on a CPU."""

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
        d_out = gradient.permute(0, 2, 3, 1)
        d_x = d_out * norm if context.inverse else d_out / norm
        d_norm = (d_out * x if context.inverse else (d_x * out).neg_()).flatten(0, 2)
        d_magnitude = (d_norm @ gamma).view(x.shape)
        d_x.addcmul_(d_magnitude, x.sign())
        return d_x.permute(0, 3, 1, 2), d_norm.T @ x.abs().flatten(0, 2), d_norm.sum(0), None


def conv(channels_in: int, channels_out: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    """Return a convolution that divides the size by `stride`, rounding up."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2)


def deconv(channels_in: int, channels_out: int, kernel: int = 5, stride: int = 2) -> nn.ConvTranspose2d:
    """Return a transposed convolution that multiplies the size by `stride` exactly."""
    return nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, kernel // 2, output_padding=stride - 1)


def leaky(slope_shift: int = 3) -> nn.LeakyReLU:
    """Return a leaky ReLU with slope 2**-slope_shift, which `integer_net` evaluates exactly."""
    return nn.LeakyReLU(2.0**-slope_shift)


def round_straight_through(x: Tensor) -> Tensor:
    """Return round(x), with the gradient of the identity."""
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
        # Below the bound only a gradient whose descent raises x passes.
        return gradient * ((x >= context.bound) | (gradient < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Return max(x, bound), with a gradient that can still raise an x below the bound."""
    return _LowerBound.apply(x, bound)


def logistic_bits(residual: Tensor, sigma: Tensor) -> Tensor:
    """Return the bits of residuals: -log2 of a logistic distribution's mass on the unit interval around each.

    Source: Balle, Minnen, Singh, Hwang, Johnston 2018, "Variational image compression with a scale hyperprior", Eq. 11,
    with the logistic in place of the Gaussian distribution. The logarithm of its tails is linear, so the gradient that
    an outlier gives its scale neither underflows nor reaches a floor.

    Args:
        residual: float32, any shape, in quantiser steps.
        sigma: Standard deviations, same shape.
    """
    distance = residual.abs()
    scale = (math.pi / math.sqrt(3)) / sigma
    # S(b) - S(a) = S(b) S(-a) (1 - exp(a - b)), in the log domain: differences of sigmoids underflow.
    upper, lower = (0.5 - distance) * scale, (0.5 + distance) * scale
    log_mass = F.logsigmoid(upper) + F.logsigmoid(lower) + torch.log(-torch.expm1(-scale))
    return log_mass * (-1 / math.log(2))


def scale_and_shift(h: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return (1 + gain) h + bias in the type of h; computing 1 + gain in bf16 would lose most of the gain."""
    return torch.addcmul(h if bias is None else h + bias.to(h.dtype), h, gain.to(h.dtype))


def conditional_conv(layer: nn.Conv2d, h: Tensor, gain: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return (1 + gain) layer(h) + bias, folded into the layer's weights if all pictures have the same rate.

    Source: Choi, El-Khamy, Lee 2019, "Variable rate deep image compression with a conditional autoencoder".

    Args:
        layer: A convolution to C channels.
        h: float32 or bf16 [B, C', H, W].
        gain: float32 [B, C, 1, 1], or [1, C, 1, 1] for all pictures.
        bias: The same shape as gain.
    """
    if len(gain) > 1:
        return scale_and_shift(layer(h), gain, bias)
    scale = 1 + gain.flatten()
    shift = layer.bias * scale if bias is None else torch.addcmul(bias.flatten(), layer.bias, scale)
    return F.conv2d(h, layer.weight * scale[:, None, None, None], shift, layer.stride, layer.padding)


def conditional_deconv(layer: nn.ConvTranspose2d, h: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return (1 + gain) layer(h) + bias of a transposed convolution, as `conditional_conv` does."""
    if len(gain) > 1:
        return scale_and_shift(layer(h), gain, bias)
    scale = 1 + gain.view(1, -1, 1, 1)
    shift = torch.addcmul(bias.flatten(), layer.bias, scale.flatten())
    return F.conv_transpose2d(h, layer.weight * scale, shift, layer.stride, layer.padding, layer.output_padding)


def deconv_to_pixels(layer: nn.ConvTranspose2d, h: Tensor) -> Tensor:
    """Return layer(h) of a 5x5 `deconv` to few channels, in half the time on a CPU.

    It runs a 3x3 convolution to four times as many channels, one for each position in a square of 2x2 pixels, and
    shuffles them. Sums are in another order than in the transposed convolution.

    Args:
        layer: `deconv(C, C')`.
        h: float32 [B, C, h, w].

    Returns:
        float32 [B, C', 2 h, 2 w].
    """
    taps = F.pad(layer.weight, (0, 1, 0, 1)).unflatten(3, (3, 2)).unflatten(2, (3, 2))  # tap 2 d + position, d = 0..2
    kernel = taps.flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, layer.in_channels, 3, 3)
    return F.pixel_shuffle(F.conv2d(h, kernel, layer.bias.repeat_interleave(4), padding=1), 2)


def distortion_weights(t: Tensor) -> Tensor:
    """Return lc of L = bpp + lc * 255^2 * MSE at rate positions t (rate index / 255), any shape; see `rates`."""
    return distortion_weight(LAMBDA_MAX) * torch.exp(t * math.log(LAMBDA_MAX / LAMBDA_MIN))


def rate_distortion_loss(x_hat: Tensor, x: Tensor, bits: Tensor, t: Tensor, noise: bool) -> dict[str, Tensor]:
    """Return L = bpp + lc * 255^2 * MSE of each picture and its mean, weighted so that no rate dominates a batch.

    Args:
        x_hat: Decoded pictures, float32 [B, 3, H, W].
        x: Pictures, float32 [B, 3, H, W] in 0..1.
        bits: float32 [B].
        t: Rate positions (rate index / 255), float32 [B].
        noise: Whether this is training; otherwise decoded pictures are clamped, as a decoder does.

    Returns:
        The scalar "loss", the mean of L weighted by lc^-1/2, and per picture [B] "bpp", "mse" (of the range 0..1) and
        "lagrangian".
    """
    mse = ((x_hat if noise else x_hat.clamp(0, 1)) - x).square().mean((1, 2, 3))
    bpp = bits / (x.shape[2] * x.shape[3])
    lc = distortion_weights(t)
    lagrangian = bpp + lc * 255**2 * mse
    return {"loss": (lagrangian / lc.sqrt()).mean(), "bpp": bpp, "mse": mse, "lagrangian": lagrangian}


class ResidualBottleneck(nn.Module):
    """x + f(x) with 1x1, 3x3 and 1x1 convolutions of half the width; the identity before training.

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
        """Return x + (1 + gain) f(x); gain: float32 [B, C, 1, 1], or None for 0."""
        return x + (self.f(x) if gain is None else conditional_conv(self.f[-1], self.f[:-1](x), gain))


def interpolate_knots(knots: Tensor, position: Tensor, lowest: float = 0.0) -> Tensor:
    """Evaluate piecewise linear functions of one number.

    Args:
        knots: Values at the knots, float32 [K, C]. The knots are evenly spaced over 0..1; if `lowest` is negative, the
            first one lies at `lowest` instead and the others are evenly spaced.
        position: float32 [B], clamped to lowest..1.
        lowest: The lowest position, at most 0.

    Returns:
        float32 [B, C].
    """
    num_negative = int(lowest < 0)
    place = position.clamp(0, 1) * (knots.shape[0] - 1 - num_negative)
    if num_negative:
        place = place - position.clamp(lowest, 0) / lowest
    indices = torch.arange(-num_negative, knots.shape[0] - num_negative, device=knots.device)
    hats = (1 - (place[:, None] - indices).abs()).clamp_min(0)
    return (hats[:, :, None] * knots).sum(1)
