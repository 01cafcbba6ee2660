"""At which rate index an encoder codes latents of the context codec: that of the file, or another one beside details.

Latents know photographs. Type, drawings, screenshots and noise cost less where latents of a low rate say roughly what
is there, and a cosine transform of the rest, which knows nothing, says the rest. Some cost least without any loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from latcodec.rates import lambda_of_index

# Dense details mend what latents leave, which then are best of a lower rate: from index LOWER_FROM on in photographs
# whose `details_look.sharpness` reaches a limit, SHARP at index SHARP_AT, lower by a factor of e each SHARP_FALLS
# indices, between LEAST_SHARP and MOST_SHARP times SHARP. By trial on training pictures and on some that no AVIF has
# smoothed.
LOWER_FROM, LOWER_BASE = 170, 140
LOWEST_BASE = 110  # of photographs with no less than SHARP
SHARP, SHARP_AT, SHARP_FALLS, LEAST_SHARP, MOST_SHARP = 0.025, 188, 18.0, 0.1, 1.5
# Indices at which a search is in latents of the file's own rate, in photographs: it finds most where these say most.
SEARCHED_AS_THEY_ARE = range(170, 231)
BASES = (60, 100)  # of pictures that are no photographs
THOROUGH = 4  # the effort from which these are tried in every picture
SAMPLED_ROWS = 128
FLAT = 0.3  # share of pixels that equal their left neighbours from which a picture counts as drawn
FEW_COLOURS, FEW_GRAYS = 256, 32  # of a palette; gray photographs have no more than the first
DEAR = 1.6  # bits a pixel at lambda 1 from which it counts as noise; 0.7 in the mean
# A search finds most in latents that are coarser by a share of their rate index, with details to mend what they leave;
# not at the lowest rates, where details are dear, nor in files so small that saying so costs what it saves.
SEARCHED_LOWER, SEARCHED_FROM, SEARCHED_BITS = 9, 30, 16_000


def drawn(image: np.ndarray) -> bool:
    """Whether a picture, uint8 or uint16 [H, W, 3], looks like type, a drawing or a screenshot."""
    some = image[:: 1 + image.shape[0] // SAMPLED_ROWS]
    same = some[:, 1:] == some[:, :-1]
    return image.shape[1] > 1 and bool((same[..., 0] & same[..., 1] & same[..., 2]).mean() > FLAT)


def may_be_whole(image: np.ndarray) -> bool:
    """Whether a picture, uint8 or uint16 [H, W, 3], may cost least without any loss: what looks drawn, and what has few
    colours, as halftones and dithered pictures, which to networks are noise."""
    return drawn(image) or (image.dtype == np.uint8 and _few_colours(image))


def _few_colours(image: np.ndarray) -> bool:
    down, across = (1 + side // SAMPLED_ROWS for side in image.shape[:2])
    some = image[::down, ::across].reshape(-1, 3)
    gray = (some == some[:, :1]).all()
    colours = np.unique(some[:, 0] if gray else some @ np.array([1, 2**8, 2**16]))
    return len(colours) <= (FEW_GRAYS if gray else FEW_COLOURS)


def usual(index: int, is_drawn: bool, sharpness: Callable[[], float]) -> int | None:
    """The rate index of latents to begin with; None for that which the rate index of the file alone means.

    sharpness: gives `details_look.sharpness` of the picture.
    """
    if index < LOWER_FROM:
        return None
    if is_drawn:
        return LOWER_BASE
    factor = math.exp((SHARP_AT - index) / SHARP_FALLS)
    if (share := sharpness()) < SHARP * min(max(factor, LEAST_SHARP), MOST_SHARP):
        return None
    return LOWEST_BASE if share >= SHARP else LOWER_BASE


def worth_trying(index: int, is_drawn: bool, bits_a_pixel: float, effort: int = 0) -> list[int | None]:
    """Rate indices of latents, as of `usual`, at which a picture may be coded for less than at that one.

    bits_a_pixel: what it costs there. Those that a look at these makes likely, with an effort those that may win in
    any photograph too, from THOROUGH on all.
    """
    lower = [base for base in BASES if base <= index]
    if effort < THOROUGH and not is_drawn and bits_a_pixel <= DEAR * lambda_of_index(index) ** -0.6:
        lower = []
    return lower + ([LOWER_BASE, None] if effort and index >= LOWER_FROM else [])


def searched(base: int, bits: int) -> int:
    """The rate index of latents to search at, where without a search they have that of the file, `base`, and its stream
    so many bits."""
    return base - base // SEARCHED_LOWER if base >= SEARCHED_FROM and bits >= SEARCHED_BITS else base
