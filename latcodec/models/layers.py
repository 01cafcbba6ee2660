"""What at least two models share: GDN, strided convolutions, rounding, the logistic rate."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GDN(nn.Module):
    """Divisive normalisation with absolute values, x / (beta + gamma |x|), or its inverse x * (beta + gamma |x|).

    Source: Balle et al. 2016, "Density modeling of images using a generalized normalization transformation"; the
    square-root-free form is Johnston et al. 2019, "Computationally efficient neural image compression", section 3.1.
    `gamma` and `beta` are squares of the stored parameters, so they stay non-negative.
    """

    def __init__(self, channels: int, inverse: bool = False):
        super().__init__()
        self.inverse = inverse
        # Next to the identity: gamma = 0.01 I, and off the diagonal small enough not to matter, large enough to learn.
        self.gamma_root = nn.Parameter(0.1 * torch.eye(channels) + 0.001 * (1 - torch.eye(channels)))
        self.beta_root = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = F.conv2d(x.abs(), self.gamma_root.square()[:, :, None, None], self.beta_root.square() + 1e-4)
        return x * norm if self.inverse else x / norm


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


def interpolate_knots(knots: Tensor, position: Tensor) -> Tensor:
    """Piecewise linear functions of one number: knots float32 [K, C], position float32 [B] in 0..1 -> [B, C]."""
    place = position.clamp(0, 1) * (knots.shape[0] - 1)
    left = place.floor().clamp_max(knots.shape[0] - 2).long()
    weight = (place - left)[:, None]
    return knots[left] * (1 - weight) + knots[left + 1] * weight
