"""At which rate index an encoder codes latents of the context codec: that of the file, or a lower one beside details.

Latents know photographs. Type, drawings, screenshots and noise cost less where latents of a low rate say roughly what
is there, and a cosine transform of the rest, which knows nothing, says the rest.
"""

from __future__ import annotations

import numpy as np

from latcodec.rates import lambda_of_index

BASES = (60, 100)
SAMPLED_ROWS = 128
FLAT = 0.3  # share of pixels that equal their left neighbours from which a picture counts as drawn
DEAR = 1.6  # bits a pixel at lambda 1, more than twice as many as photographs cost in the mean
SEARCHED_LOWER = 12  # rate indices: a search finds most in coarser latents, with details to mend what they leave


def worth_trying(index: int, image: np.ndarray, bits: int, all_of_them: bool = False) -> list[int]:
    """Rate indices of latents at which a picture may be coded for less than at its own rate index.

    image: uint8 or uint16 [H, W, 3]; bits: what it costs at its own. Only of pictures unlike photographs, or of all.
    """
    lower = [base for base in BASES if base <= index]
    if all_of_them or not lower:
        return lower
    some = image[:: 1 + image.shape[0] // SAMPLED_ROWS]
    flat = (some[:, 1:] == some[:, :-1]).all(2).mean() if image.shape[1] > 1 else 0.0
    dear = bits > DEAR * lambda_of_index(index) ** -0.6 * image[..., 0].size
    return lower if flat > FLAT or dear else []


def searched(base: int) -> int:
    """The rate index of latents to search at, where a picture would be coded at `base` without details."""
    return max(base - SEARCHED_LOWER, base * 4 // 5)
