"""What symbols of the context codec stand for in the picture, where that is not themselves.

Of a rare symbol of size 1 the decoder knows more than its size. Amounts are in the weights' Config; the constants here
decide the pixels of every file, and stay.
"""

import torch
from torch import Tensor

MOST_LIFT, OF_LARGER, FADES_FROM = 0.4, 1 / 3, 190 / 255


def fade(t: Tensor) -> Tensor:
    """1 at rates t up to FADES_FROM, from there on less, 0 at t = 1; same shape."""
    return ((1 - t) / (1 - FADES_FROM)).clamp(0, 1)


def lifted(symbols: Tensor, sigma: Tensor, lift: Tensor) -> Tensor:
    """What stands for symbols in the picture: those of size 1 are lift / sigma^2 larger, at most by MOST_LIFT.

    symbols, sigma: float32 of one shape, in steps; lift: float32 [B, 1, 1, 1]. Between 0, 1 and 2, where a search may
    be, the lift rises and falls in straight lines; its gradient is 0. Rounding by rate and distortion takes many a 1
    away, the more the dearer they are, and with them energy that those which stay have to make up for: synthesis cannot
    tell a 1 from a mean. By trial.
    """
    with torch.no_grad():
        share = (1 - (symbols.abs() - 1).abs()).clamp_min(0)
        added = share * symbols.sign() * lifts(sigma, lift)
    return symbols + added


def lifts(sigma: Tensor, lift: Tensor) -> Tensor:
    """By how much symbols of size 1 are larger in the picture, float32, where their standard deviation is sigma."""
    return (lift / sigma.square()).clamp_max(MOST_LIFT)


def near(symbols: Tensor, by: Tensor | float) -> Tensor:
    """What symbols, float32, stand for, in steps: those of size 1 by `by` nearer to 0, larger ones by OF_LARGER of it.

    Where steps are coarse values are sparse, and more of them lie below 1 than above. The gradient is that of symbols.
    """
    with torch.no_grad():
        size = symbols.abs()
        less = torch.where(size > 1.5, OF_LARGER, 1.0) * (size > 0.5) * symbols.sign() * by
    return symbols - less
