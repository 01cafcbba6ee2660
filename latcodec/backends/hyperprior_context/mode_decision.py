"""Which of the ways to code a picture is the cheapest, before any search.

Latents at the rate of the file, latents at a lower rate with a residual layer, or no loss at all. What cannot be the
cheapest, as a look at the picture tells, is not tried. `codec.py` names the points and codes them; this module chooses.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from latcodec.backends.hyperprior_context import base_rate
from latcodec.backends.hyperprior_context.content import is_lossless_candidate, is_screen_content
from latcodec.backends.hyperprior_context.model import Model, OperatingPoint
from latcodec.backends.hyperprior_context.residual_trial import sharpness
from latcodec.backends.hyperprior_context.tuning import TUNING

if TYPE_CHECKING:
    from latcodec.backends.hyperprior_context.codec import Coded, Options


class PictureCoder(Protocol):
    """Codes one picture with the same options in several ways.

    Attributes:
        model: Networks and tables.
        image: The picture, uint8 or uint16 [H, W, 3].
        options: Those of the encoder.
        analysis_s: Seconds spent in analysis so far.
    """

    model: Model
    image: np.ndarray
    options: Options
    analysis_s: float

    def encode_at(self, point: OperatingPoint) -> Coded:
        """Code latents at an operating point."""

    def lossless_trial(self) -> Coded | None:
        """Code the picture without loss; None where that cannot be, or cannot be cheaper."""

    def rd_cost(self, coded: Coded) -> float:
        """Return the bits of a result and what its error is worth in bits."""


class TileCoder(Protocol):
    """Tells what a tile of a picture costs."""

    def lossy_cost(self) -> float:
        """Return the rate-distortion cost of the tile with loss."""

    def lossless_cost(self) -> float:
        """Return its cost without loss; infinite where that cannot be."""


def choose_mode(coder: PictureCoder) -> Coded:
    """Return the cheapest result of those that are tried: the default base, lossless, and other bases."""
    start, analysed_s = time.perf_counter(), coder.analysis_s
    model, rate_index = coder.model, coder.options.rate_index
    screen_content = is_screen_content(coder.image)
    base = None
    if model.residual is not None:
        base = base_rate.default_base(rate_index, screen_content, partial(sharpness, model, coder.image))
    first = point_with_base(model, rate_index, base)
    best = coder.encode_at(first)
    lossless = coder.lossless_trial()
    others = _other_points(coder, first, best, screen_content)
    if lossless is None and not others:
        return best
    least = coder.rd_cost(best)
    if lossless is not None and (cost := coder.rd_cost(lossless)) < least:
        others = [] if cost < TUNING.early_exit_ratio * least else others
        best, least = lossless, cost
    for point in others:
        coded = coder.encode_at(point)
        if (cost := coder.rd_cost(coded)) < least:
            best, least = coded, cost
        del coded  # or two are held beside the next one
    # The time of the decision, and of the results that lost, less what is counted as analysis.
    seconds = time.perf_counter() - start - sum(best.seconds.values()) - (coder.analysis_s - analysed_s)
    return replace(best, seconds=best.seconds | {"choice": seconds})


def point_with_base(model: Model, rate_index: int, base: int | None) -> OperatingPoint:
    """Return the operating point with a base rate index; None for that which the rate index implies."""
    return model.operating_point(rate_index, None if base is None else bytes((base,)))


def _other_points(
    coder: PictureCoder, first: OperatingPoint, coded: Coded, screen_content: bool
) -> list[OperatingPoint]:
    """Return the operating points to try after the first, which was coded, in ascending order."""
    if coder.model.residual is None:
        return []
    options, bpp = coder.options, 8 * len(coded.streams[0]) / coder.image[..., 0].size
    bases = base_rate.candidate_bases(options.rate_index, screen_content, bpp, options.effort)
    return sorted({point_with_base(coder.model, options.rate_index, base) for base in bases} - {first})


def search_point(model: Model, first: Coded, image: np.ndarray | None, options: Options) -> OperatingPoint:
    """Return the operating point at which a search runs, or at which effort 1 fits a filter.

    Args:
        model: Networks and tables.
        first: The result without search.
        image: The picture, uint8 or uint16 [H, W, 3]; None if it is unknown.
        options: Those of the encoder.
    """
    point = model.operating_point(options.rate_index, first.parameters)
    own_rates = range(TUNING.search_own_rate_from, TUNING.search_own_rate_to + 1)
    is_photograph = options.steps and image is not None and not is_screen_content(image)
    if is_photograph and point.rate_index in own_rates:
        return model.operating_point(point.rate_index)
    if not options.effort or point.base_rate_index != point.rate_index or model.residual is None:
        return point
    file_bits = 8 * len(first.streams[0])
    base = base_rate.search_base(point.base_rate_index, file_bits) if options.steps else point.base_rate_index
    # Parameters with a base rate make room for a filter.
    has_no_filter = point.rate_index >= 0 and not point.has_residual
    if base != point.base_rate_index or (has_no_filter and file_bits >= TUNING.search_min_bits):
        return model.operating_point(point.rate_index, bytes((base,)))
    return point


def lossless_limit(image: np.ndarray, coder_of: Callable[[np.ndarray], TileCoder]) -> float | None:
    """Return the cost below which a large picture is to be coded without loss before any network has seen all of it.

    A few tiles tell what it would cost with loss, so that a screenshot passes no network in vain.

    Args:
        image: uint8 or uint16 [H, W, 3].
        coder_of: Makes the coder of a tile.

    Returns:
        None of a small picture, of one that is no candidate, and where tiles do not make it clear.
    """
    if image[..., 0].size < TUNING.early_lossless_px or not is_lossless_candidate(image):
        return None
    side = TUNING.early_lossless_tile_px
    tops, lefts = (range(0, length - side + 1, side) for length in image.shape[:2])
    tiles = [image[top : top + side, left : left + side] for top in tops for left in lefts]
    changes = np.array([(tile[:, 1:] != tile[:, :-1]).any(2).sum() for tile in tiles])
    busy = [place for place in np.argsort(-changes, kind="stable") if changes[place]]
    step = max(1, -(-len(busy) // TUNING.early_lossless_tiles))
    sample = busy[step // 2 :: step]
    if not sample:
        return None
    coders = [coder_of(tiles[place]) for place in sample]
    lossy_cost = sum(coder.lossy_cost() for coder in coders)
    if sum(coder.lossless_cost() for coder in coders) >= TUNING.early_exit_ratio * lossy_cost:
        return None
    # Bits and errors are proportional to changes of colour; a tile that is not sampled is charged without loss anyway.
    return TUNING.early_exit_ratio * lossy_cost * changes.sum() / changes[sample].sum()
