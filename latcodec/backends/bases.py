"""At which rate index an encoder codes latents of the context codec: that of the file, or a lower one beside details.

Latents know photographs. Type, drawings, screenshots and noise cost less where latents of a low rate say roughly what
is there, and a cosine transform of the rest, which knows nothing, says the rest.
"""

from __future__ import annotations

import numpy as np

from latcodec.rates import lambda_of_index

# From a rate index of the file on, that of the latents that photographs want in place of where the weights end it.
USUAL = ((205, 140), (175, 165))
BASES = (60, 100)
SMOOTH_BASE, SMOOTH_UNTIL = 176, 215  # of smooth photographs, whose latents say nearly all, up to that rate index
SAMPLED_ROWS = 128
FLAT = 0.3  # share of pixels that equal their left neighbours from which a picture counts as drawn
# Bits a pixel at lambda 1: of smooth photographs less than CHEAP, of noise more than DEAR, 0.7 in the mean.
CHEAP, DEAR = 0.5, 1.6
# A search finds most in latents that are coarser by a share of their rate index, with details to mend what they leave;
# not at the lowest rates, where details are dear, nor in files so small that saying so costs what it saves.
SEARCHED_LOWER, SEARCHED_FROM, SEARCHED_BITS = 9, 30, 16_000


def usual(index: int) -> int | None:
    """The rate index of latents to begin with; None for that which the rate index of the file alone means."""
    return next((base for first, base in USUAL if index >= first), None)


def worth_trying(index: int, image: np.ndarray, bits: int, all_of_them: bool = False) -> list[int]:
    """Rate indices of latents at which a picture may be coded for less than at the usual one.

    image: uint8 or uint16 [H, W, 3]; bits: what it costs there. Those that a look at these makes likely, or all.
    """
    lower = [base for base in BASES if base <= index]
    higher = [SMOOTH_BASE] if SMOOTH_BASE <= index <= SMOOTH_UNTIL else []
    if all_of_them or not lower:
        return lower + higher
    some = image[:: 1 + image.shape[0] // SAMPLED_ROWS]
    flat = (some[:, 1:] == some[:, :-1]).all(2).mean() if image.shape[1] > 1 else 0.0
    relative = bits / (image[..., 0].size * lambda_of_index(index) ** -0.6)
    return (lower if flat > FLAT or relative > DEAR else []) + (higher if relative < CHEAP else [])


def searched(base: int, bits: int) -> int:
    """The rate index of latents to search at, where without a search they have that of the file, `base`, and its stream
    so many bits."""
    return base - base // SEARCHED_LOWER if base >= SEARCHED_FROM and bits >= SEARCHED_BITS else base
