"""At which rate index the encoder codes latents: that of the file, or a lower one with a residual layer beside them.

Latents know photographs. Type, drawings, screenshots and noise cost less where latents of a low rate describe the
picture roughly and a cosine transform, which knows nothing, describes the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.rates import lambda_of_index


def default_base(rate_index: int, screen_content: bool, sharpness: Callable[[], float]) -> int | None:
    """Return the base rate index to try first; None for that which the rate index of the file alone implies.

    Args:
        rate_index: Rate index of the file.
        screen_content: See `content.is_screen_content`.
        sharpness: Computes `residual_trial.sharpness` of the picture, where it is needed.
    """
    if rate_index < TUNING.lower_base_from:
        return None
    if screen_content:
        return TUNING.lower_base
    factor = math.exp((TUNING.sharp_at - rate_index) / TUNING.sharp_falls)
    limit = TUNING.sharp * min(max(factor, TUNING.min_sharp), TUNING.max_sharp)
    if (share := sharpness()) < limit:
        return None
    return TUNING.lowest_base if share >= TUNING.sharp else TUNING.lower_base


def candidate_bases(rate_index: int, screen_content: bool, bpp: float, effort: int = 0) -> list[int | None]:
    """Return base rate indices, as of `default_base`, at which a picture may cost less than at that one.

    Args:
        rate_index: Rate index of the file.
        screen_content: See `content.is_screen_content`.
        bpp: What the picture costs at the default base.
        effort: With one, bases are included that may win in any photograph; from `Tuning.thorough_effort` on, all.
    """
    bases: list[int | None] = [base for base in TUNING.candidate_bases if base <= rate_index]
    is_noise = bpp > TUNING.noise_bpp * lambda_of_index(rate_index) ** -0.6
    if effort < TUNING.thorough_effort and not screen_content and not is_noise:
        bases = []
    return bases + ([TUNING.lower_base, None] if effort and rate_index >= TUNING.lower_base_from else [])


def search_base(base_rate_index: int, file_bits: int) -> int:
    """Return the base rate index for a search.

    Args:
        base_rate_index: That of the file without search.
        file_bits: Size of that file.
    """
    if base_rate_index < TUNING.search_coarser_from or file_bits < TUNING.search_min_bits:
        return base_rate_index
    return base_rate_index - base_rate_index // TUNING.search_coarser_by
