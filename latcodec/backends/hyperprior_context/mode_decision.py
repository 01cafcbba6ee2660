"""The cheapest of the ways in which the context codec can code a picture without a search, and what is coded beside
latents.

Latents of the rate of the file, latents of another rate with details beside them (`bases.py`), or no loss at all
(`lossless.py`). What cannot be cheapest, by a look at the picture, is not tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial

import numpy as np
import torch

from latcodec.backends.common import distortion, search
from latcodec.backends.common.mean_scale import Latents
from latcodec.backends.common.pixels import to_tensor
from latcodec.backends.hyperprior_context import base_rate as bases
from latcodec.backends.hyperprior_context import residual as details
from latcodec.backends.hyperprior_context import residual_trial as details_look
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.entropy_model import Model, Rate
from latcodec.backends.hyperprior_context.picture import base_picture, shown_latents
from latcodec.nn.geometry import IMAGE_STRIDE

# Latents along a side of what is looked at for details first; how many tiles at once at most; in how many parts.
TILE, TILES_AT_ONCE, FIRST_LOOKS = 4, 32, 3
CLEARLY = 0.5  # of the price with loss, below which no loss is best without a look at other bases
LARGE_PX = 2**20  # of a picture, from which a few squares say what all of it would cost with loss
SQUARE, SQUARES = 256, 4  # px along a side; how many
BF16_UNTIL = 175  # the rate index to which details of a base in bf16 cost no more: .0 % at 156, .1 at 188, .6 at 250


def cheapest(
    model: Model, latents: Latents, options: search.Options, code: Callable, shown: Callable, without_loss: Callable
):
    """The Coded of least price, see `distortion.rd_cost`, of those that are tried.

    code(rate) -> Coded of latents at a rate; shown(model, coded, rate index, size, gray, depth): what a decoder shows;
    without_loss(picture, options) -> Coded, or None where there is no point in it.
    """
    start, index, image = time.perf_counter(), options.rate_index, latents.image
    analysed_s = latents.seconds
    if image is None:
        return code(model.rate(index))
    drawn, usual, others = bases.drawn(image), None, set()

    def rate_of(base: int | None) -> Rate:
        return model.rate(index, None if base is None else bytes((base,)))

    if model.details is not None:
        usual = bases.usual(index, drawn, partial(sharpness, model, image))
    first = rate_of(usual)
    best = code(first)
    whole = without_loss(image, options)
    if model.details is not None:
        bits_a_pixel = 8 * len(best.streams[0]) / image[..., 0].size
        some = bases.worth_trying(index, drawn, bits_a_pixel, options.effort)
        others = set(map(rate_of, some)) - {first}
    if whole is None and not others:
        return best

    def price(coded) -> float:
        decoded = shown(model, coded, index, image.shape[:2], options.gray, 8 * image.itemsize)
        return distortion.rd_cost(coded, decoded, image, index, model.metric)

    least = price(best)
    if whole is not None and (cost := distortion.rd_cost(whole, image, image, index)) < least:
        others = set() if cost < CLEARLY * least else others
        best, least = whole, cost
    for rate in sorted(others, key=astuple):
        coded = code(rate)
        if (cost := price(coded)) < least:
            best, least = coded, cost
        del coded  # or two are held beside the next one
    # Of choosing, and of those that lost, less what is counted as analysis.
    seconds = time.perf_counter() - start - sum(best.seconds.values()) - (latents.seconds - analysed_s)
    return replace(best, seconds=best.seconds | {"choice": seconds})


def without_loss_at_once(image: np.ndarray, options: search.Options, code: Callable, without_loss: Callable):
    """The Coded without loss of a large picture, uint8 [H, W, 3], that is drawn or has few colours, if a few squares of
    it say that with loss all of it would cost much more; None if they do not, or there is none. So a screen is not put
    through networks in vain.

    code(square) -> what `distortion.rd_cost` says of a square with loss; without_loss: as in `cheapest`.
    """
    start = time.perf_counter()
    if image[..., 0].size < LARGE_PX or not bases.may_be_whole(image):
        return None
    tops, lefts = (range(0, side - SQUARE + 1, SQUARE) for side in image.shape[:2])
    squares = [image[top : top + SQUARE, left : left + SQUARE] for top in tops for left in lefts]
    changes = np.array([(square[:, 1:] != square[:, :-1]).any(2).sum() for square in squares])
    busy = [place for place in np.argsort(-changes, kind="stable") if changes[place]]
    step = max(1, -(-len(busy) // SQUARES))
    some = busy[step // 2 :: step]
    if not some:
        return None

    def price_without_loss(picture: np.ndarray) -> tuple[float, object]:
        found = without_loss(picture, options)
        return (np.inf if found is None else distortion.rd_cost(found, picture, picture, options.rate_index)), found

    with_loss = sum(code(squares[place]) for place in some)
    if sum(price_without_loss(squares[place])[0] for place in some) >= CLEARLY * with_loss:
        return None
    # Bits and errors go with changes of colour; a square that is missed pays without loss whatever it costs.
    price, whole = price_without_loss(image)
    if price >= CLEARLY * with_loss * changes.sum() / changes[some].sum():
        return None
    return replace(whole, seconds={"choice": time.perf_counter() - start})


@torch.inference_mode()
def rest(
    model: Model, y: tuple[np.ndarray, np.ndarray, np.ndarray], image: np.ndarray | None,
    functions: dict[str, torch.Tensor], rate: Rate, options: search.Options,
) -> tuple[np.ndarray, int, details.Shift | None, details.Take | None]:  # fmt: skip
    """What is coded of a picture, uint8 or uint16 [H, W, 3], beside latents: the symbols of a filter, and what
    `details.chooser` gives. Nothing without a picture, nor where it is not worth the synthesis to find it.

    y: symbols, means and rows of y, as in `Walked`; functions: what `Model.at_rate` says.
    """
    nothing = wiener.none(), 0, None, None
    if image is None:
        return nothing
    size, x = image.shape[:2], to_tensor(image, model.device)
    shown = shown_latents(model, *y, functions, tuple(side // IMAGE_STRIDE for side in x.shape[2:]))
    own = rate.base == rate.index < bases.LOWER_FROM and rate == model.rate(rate.index)
    if own and not options.effort and not bases.drawn(image):
        if not details_can_pay(model, shown, x, functions, rate.index):
            return nothing
    in_bf16 = model.encodes_in_bf16 and rate.index <= BF16_UNTIL
    base = base_picture(model, shown, functions, in_bf16).contiguous()
    filter_symbols = wiener.fit(base, x, rate.index, size, options.gray, model.tables)
    x -= wiener.apply(base, filter_symbols, rate.index)
    del base, shown  # or they are held beside what the details take
    if options.gray:
        x[:] = x.mean(1, keepdim=True)
    return filter_symbols, *details.chooser(model.network.details, functions, x, rate.index, model.tables)


@torch.inference_mode()
def sharpness(model: Model, image: np.ndarray) -> float:
    """`details_look.sharpness` of a picture, uint8 or uint16 [H, W, 3]."""
    return details_look.sharpness(model.network.details, to_tensor(image, model.device))


@torch.inference_mode()
def details_can_pay(
    model: Model, y: torch.Tensor, x: torch.Tensor, functions: dict[str, torch.Tensor], rate_index: int
) -> bool:
    """Whether details may pay beside latents of the file's rate, as the busiest tiles of a photograph tell: most need
    none at most rates, and then the rest need not be synthesised. True of a picture of few tiles.

    y: what synthesis sees, float32 [1, C, h, w]; x: the picture, float32 [1, 3, 16 h, 16 w]; functions: what
    `Model.at_rate` says.
    """
    side, edge = TILE + 2, TILE * IMAGE_STRIDE  # a tile with a latent on all sides; px of it alone
    if min(y.shape[2:]) < side or not (busiest := details_look.busiest(model.network.details, x, edge)):
        return True
    down, across = (length - side for length in y.shape[2:])

    def residual(some: list[tuple[int, int]]) -> torch.Tensor:
        # At a border both are on the other side: what is cut ends where the picture ends, and is padded as that is.
        starts = [
            (min(max(top // IMAGE_STRIDE - 1, 0), down), min(max(left // IMAGE_STRIDE - 1, 0), across))
            for top, left in some
        ]
        cut = torch.cat([y[:, :, top : top + side, left : left + side] for top, left in starts])
        cut = cut.contiguous(memory_format=torch.channels_last)
        base = model.network.synthesis(cut, functions, model.encodes_in_bf16)
        parts = []
        for one, (top, left), (first, leftmost) in zip(base, some, starts, strict=True):
            inner = one[:, top - first * IMAGE_STRIDE :][:, :edge, left - leftmost * IMAGE_STRIDE :][..., :edge]
            parts.append(x[0, :, top : top + edge, left : left + edge] - inner)
        return torch.stack(parts)

    at_once = min(TILES_AT_ONCE, -(-len(busiest) // FIRST_LOOKS))
    tiles = (residual(busiest[n:][:at_once]) for n in range(0, len(busiest), at_once))
    pixels = x.shape[2] * x.shape[3]
    return details_look.enough_saved(model.network.details, functions, tiles, len(busiest), rate_index, pixels)
