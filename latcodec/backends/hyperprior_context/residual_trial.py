"""Whether details of a picture may pay, and beside which latents, as a look at the picture tells. Of encoders only."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.hyperprior_context.residual import SIXTEENTHS, ZERO_BITS, saved_by_sixteenths, step_and_weight
from latcodec.backends.hyperprior_context.residual_network import BLOCK
from latcodec.nn.layers import interpolate_knots

# Where details pay if anywhere, as the picture itself tells: in the tiles that hold most of this sixteenth. The share
# of a picture that is looked at first, the fewest tiles that tell enough, and the part of all that must be saved which
# these must save. The busiest come first: where the others had to save more than HOPED times as much each as those
# seen, they are not looked at. By trial.
TOLD_BY, BUSIEST, FEWEST, SAVED_THERE, HOPED = 7, 0.1, 4, 0.16, 5.0
SHARP_BY, SHARP_INDEX, SHARP_STEPS = 9, 188, 1.2  # the sixteenth; the rate index whose steps it is in; what counts


def sharpness(details: nn.Module, x: Tensor) -> float:
    """The share of what sixteenth SHARP_BY of the frequencies holds in a picture, float32 [1, 3, H, W], sides no less
    than BLOCK, that is more than SHARP_STEPS steps of rate index SHARP_INDEX: it tells best where few latents pay."""
    t = torch.tensor([SHARP_INDEX / (RATES - 1)], device=x.device)
    gain = interpolate_knots(details.log_gain, t).exp()
    return float(((_some_of(details, x, SHARP_BY) * gain).abs() > SHARP_STEPS).float().mean())


def _some_of(details: nn.Module, x: Tensor, sixteenth: int) -> Tensor:
    """A sixteenth of the frequencies of x, float32 [1, 3, H, W], of its whole blocks."""
    some = details.channels // SIXTEENTHS
    basis = details.basis[:, sixteenth * some : (sixteenth + 1) * some].T[:, :, None, None]
    height, width = (side // BLOCK * BLOCK for side in x.shape[2:])
    return F.conv2d(F.pixel_unshuffle(x[:, :, :height, :width], BLOCK), basis)


def busiest(details: nn.Module, x: Tensor, side: int) -> list[tuple[int, int]]:
    """Row and column, px, of the squares of `side` px, a multiple of BLOCK, in which details of a picture, float32
    [1, 3, H, W], sides no less than that, are likely to save most, the busiest first; the last of a row or column ends
    at the border. None of a small picture, of which a few tell little."""
    energy = _some_of(details, x, TOLD_BY).square().sum(1, keepdim=True)
    squares = F.avg_pool2d(energy, side // BLOCK, ceil_mode=True)[0, 0]
    if BUSIEST * squares.numel() < FEWEST:
        return []
    places = squares.flatten().topk(int(BUSIEST * squares.numel())).indices.tolist()
    rows, columns = zip(*(divmod(place, squares.shape[1]) for place in places), strict=True)
    last_row, last_column = (length - side for length in x.shape[2:])
    return [(min(r * side, last_row), min(c * side, last_column)) for r, c in zip(rows, columns, strict=True)]


def enough_saved(
    details: nn.Module, rate: dict[str, Tensor], tiles: Iterable[Tensor], count: int, rate_index: int, pixels: int
) -> bool:
    """Whether details of a picture of so many pixels can pay, as the busiest tiles of what latents leave of it tell,
    float32 [n, 3, S, S] each, `count` in all; no more of them are asked for than it takes to see that."""
    step, weight = step_and_weight(rate, rate_index)
    needed = SAVED_THERE * ZERO_BITS * pixels / BLOCK**2 * (details.channels // SIXTEENTHS)
    saved, seen = torch.zeros(SIXTEENTHS, device=step.device), 0
    for some in tiles:
        saved, seen = saved + saved_by_sixteenths(details.analysis(some) / step, weight), seen + len(some)
        if saved.max() > needed:
            return True
        if saved.max() * (1 + HOPED * (count - seen) / seen) < needed:
            break
    return False
