"""What kind of content a picture is, as a few of its rows tell. The encoder alone uses this."""

from __future__ import annotations

import numpy as np

from latcodec.backends.hyperprior_context.tuning import TUNING


def is_screen_content(image: np.ndarray) -> bool:
    """Return whether a picture, uint8 or uint16 [H, W, 3], looks like type, a drawing or a screenshot."""
    rows = image[:: 1 + image.shape[0] // TUNING.sampled_rows]
    same = rows[:, 1:] == rows[:, :-1]
    return image.shape[1] > 1 and bool((same[..., 0] & same[..., 1] & same[..., 2]).mean() > TUNING.flat_share)


def is_lossless_candidate(image: np.ndarray) -> bool:
    """Return whether a picture, uint8 or uint16 [H, W, 3], may cost least when it is coded without loss.

    That is screen content, and pictures of few colours such as halftones, which are noise to networks.
    """
    return is_screen_content(image) or (image.dtype == np.uint8 and _has_few_colours(image))


def _has_few_colours(image: np.ndarray) -> bool:
    row_step, column_step = (1 + side // TUNING.sampled_rows for side in image.shape[:2])
    pixels = image[::row_step, ::column_step].reshape(-1, 3)
    gray = (pixels == pixels[:, :1]).all()
    colours = np.unique(pixels[:, 0] if gray else pixels @ np.array([1, 2**8, 2**16]))
    return len(colours) <= (TUNING.few_grays if gray else TUNING.few_colours)
