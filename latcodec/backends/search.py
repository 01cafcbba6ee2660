"""Better latents for one picture: a search by gradient in the encoder, which the decoder knows nothing of.

Source: Yang, Bamler, Mandt 2020, "Improving inference for neural image compression": stochastic Gumbel annealing. The
latents of a picture are variables; rounding them is a choice between the two nearest integers, drawn with a Gumbel
softmax whose temperature falls, so that gradients pass and the choice hardens. Objective: bits + lc 255^2 SSE / 3 of
the picture, the Lagrangian of training. What comes out are latents that plain rounding turns into better symbols.

Large pictures are searched in tiles, each with a margin of latents around it that stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latcodec.coding import Tables
from latcodec.errors import OptionError
from latcodec.rates import distortion_weight, lambda_of_index

TILE, MARGIN = 64, 8  # latents, multiples of those that share a hyper-latent
STRIDE, HYPER_STRIDE = 16, 4


# Of a few tried on training pictures: 64 steps gain twice as much as with 0.02 and temperatures from 2 down to 0.3.
LEARNING_RATE = 0.025  # in steps of the quantiser, at the start
FIRST, LAST = 1.0, 0.15  # temperatures
STEPS = (0, 0, 32, 64, 100, 160, 250, 400, 700, 1200)  # of the optimiser, by effort
ROUNDING = 40.0  # bits that a squared error of one step counts as, in rounding by rate and distortion


@dataclass(frozen=True)
class Try:
    """A way to code latents: its Coded, the picture it decodes to, and its price, bits + weight * squared error."""

    coded: object
    price: float


def best(latents, x: np.ndarray, rate_index: int, effort: int, code: Callable, show: Callable, search: Callable):
    """The cheapest Coded of a picture x, uint8 or uint16 [H, W, 3], by the Lagrangian, plain rounding among them.

    code(latents, rounding) -> Coded; show(coded) -> decoded picture; search(steps) -> better latents. Effort 1 rounds
    by rate and distortion, from 2 on latents are searched as well.
    """
    weight, peak = error_weight(rate_index), 65535 if x.dtype == np.uint16 else 255

    def tried(these, rounding: float) -> Try:
        coded = code(these, rounding)
        difference = show(coded).astype(np.float64) - x
        return Try(coded, coded.estimated_bits + weight * float(np.square(difference).sum()) / peak**2)

    tries = [tried(latents, 0.0), tried(latents, ROUNDING)]
    if STEPS[effort]:
        tries.append(tried(search(STEPS[effort]), 0.0))
    return min(tries, key=lambda one: one.price).coded


def check(effort: int, max_seconds: float) -> None:
    """Raise OptionError for what no search can do."""
    if not 0 <= effort < len(STEPS):
        raise OptionError(f"effort {effort} is outside 0 ... {len(STEPS) - 1}")
    if not 0 <= max_seconds < math.inf:
        raise OptionError(f"max_seconds {max_seconds} is not a time")


def picture(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 or uint16 [H, W, 3] as float32 [3, H, W] in 0..1."""
    peak = 65535 if image.dtype == np.uint16 else 255
    return (torch.from_numpy(image.astype(np.float32)) / peak).permute(2, 0, 1).to(device)


def error_weight(rate_index: int) -> float:
    """Bits that a squared error of 1 is worth, summed over all samples of the range 0..1, at a rate."""
    return distortion_weight(lambda_of_index(rate_index)) * 255**2 / 3


def round_by_price(residual: np.ndarray, rows: np.ndarray, tables: Tables, rounding: float) -> np.ndarray:
    """Nearest integers, int32, but one nearer to 0 where its table makes it cheaper than the error it adds.

    residual: float32 [n]; rows: uint16 [n]; rounding: bits that a squared error of 1 counts as. Source: rate-distortion
    optimised quantisation as video encoders do it.
    """
    nearest = np.rint(residual).astype(np.int32)
    places = np.flatnonzero(nearest)
    near, away = nearest[places], residual[places]
    inner = near - np.sign(near)
    saved = symbol_bits(near, rows[places], tables) - symbol_bits(inner, rows[places], tables)
    added = rounding * (np.square(away - inner) - np.square(away - near))
    nearest[places] = np.where(saved > added, inner, near)
    return nearest


def symbol_bits(symbols: np.ndarray, rows: np.ndarray, tables: Tables) -> np.ndarray:
    """Bits of symbols int32 [n] in rows uint16 [n], float64; escapes, which no rounding is about, count as 0."""
    place = tables.offsets[rows].astype(np.int64) + symbols - tables.minimums[rows]
    inside = (place >= tables.offsets[rows]) & (place < tables.offsets[1:][rows] - 1)
    return np.where(inside, tables.bits[np.where(inside, place, 0)], 0.0)


def soft_round(x: Tensor, temperature: float) -> Tensor:
    """One of the two nearest integers, softly: x is pulled to the nearer, the harder the lower the temperature."""
    low = x.detach().floor()
    fraction = (x - low).clamp(1e-4, 1 - 1e-4)
    uniform = torch.rand_like(x).clamp(1e-9, 1 - 1e-7)
    # The difference of two Gumbel variables is logistic.
    noise = uniform.log() - (-uniform).log1p()
    logit = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    return low + torch.sigmoid((logit + noise) / temperature)


Transmit = Callable[[tuple[Tensor, ...], Callable[[Tensor], Tensor]], tuple[Tensor, Tensor]]


def refine(
    transmit: Transmit, x: Tensor, latents: tuple[Tensor, ...], gains: tuple[Tensor, ...], rate_index: int, steps: int,
    deadline: float = math.inf, progress: Callable[[float], None] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Latents whose plain rounding costs less, float32 like `latents`: y [C, h, w] and, if any, z [Z, h/4, w/4], up.

    transmit(latents [1, ., ., .], quantise) -> (x_hat, bits), differentiable; gains: float32 [1, ., 1, 1], of steps a
    unit of each; x: the picture, float32 [3, H, W] in 0..1, H and W up to 16 times h and w; steps: of the optimiser;
    deadline: of time.perf_counter(), s, by which to come to an end; progress gets 0..1.
    """
    found = tuple(one.detach().clone() for one in latents)  # clones of inference tensors can have gradients
    every = list(_tiles(*found[0].shape[1:]))
    for number, tile in enumerate(every):
        if time.perf_counter() >= deadline:
            break

        def tell(part: float, number: int = number) -> None:
            if progress is not None:
                progress((number + part) / len(every))

        left = len(every) - number
        until = deadline if deadline == math.inf else time.perf_counter() + (deadline - time.perf_counter()) / left
        _refine_tile(transmit, x, found, gains, rate_index, steps, until, tell, tile)
        tell(1.0)
    return found


def _tiles(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left, right of each tile, latents."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield top, min(height, top + TILE), left, min(width, left + TILE)


def _refine_tile(transmit, x, latents, gains, rate_index, steps, deadline, tell, tile) -> None:
    """Refine latents in place inside a tile."""
    top, bottom, left, right = tile
    height, width = latents[0].shape[1:]
    outer = (max(0, top - MARGIN), min(height, bottom + MARGIN), max(0, left - MARGIN), min(width, right + MARGIN))
    pixels = x[:, STRIDE * outer[0] : STRIDE * outer[1], STRIDE * outer[2] : STRIDE * outer[3]][None]
    # Latents in steps of the quantiser, so that one learning rate fits all; only those inside the tile move.
    variables, masks = [], []
    for one, gain, stride in zip(latents, gains, (1, HYPER_STRIDE), strict=False):
        rows, columns = _cells(outer, stride)
        variables.append((one[None, :, rows, columns] * gain).requires_grad_(True))
        mask = torch.zeros(1, 1, *variables[-1].shape[2:], device=one.device)
        inside = _cells(tile, stride)
        down, across = (
            slice(i.start - o.start, i.stop - o.start) for i, o in zip(inside, (rows, columns), strict=True)
        )
        mask[:, :, down, across] = 1
        masks.append(mask)
    optimizer = torch.optim.Adam(variables, LEARNING_RATE, betas=(0.9, 0.99))
    weight = error_weight(rate_index)
    random = torch.random.get_rng_state()
    torch.manual_seed(0)
    step, start = 0, time.perf_counter()
    while True:
        # With a deadline the schedule runs by the clock where that is faster, so that it always comes to its end.
        at = max(step / steps, (time.perf_counter() - start) / max(deadline - start, 1e-9))
        if at >= 1:
            break
        temperature = FIRST * (LAST / FIRST) ** at
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * at)))
        now = tuple(v / gain for v, gain in zip(variables, gains, strict=True))
        x_hat, bits = transmit(now, lambda r, temperature=temperature: soft_round(r, temperature))
        error = (x_hat[:, :, : pixels.shape[2], : pixels.shape[3]] - pixels).square().sum()
        optimizer.zero_grad(set_to_none=True)
        (bits + weight * error).backward()
        for variable, mask in zip(variables, masks, strict=True):
            variable.grad.mul_(mask)
        optimizer.step()
        step += 1
        tell(min(1.0, at))
    torch.random.set_rng_state(random)
    with torch.no_grad():
        for one, variable, mask, gain, stride in zip(latents, variables, masks, gains, (1, HYPER_STRIDE), strict=False):
            rows, columns = _cells(outer, stride)
            one[:, rows, columns] = torch.where(mask > 0, variable / gain, one[None, :, rows, columns])[0]


def _cells(box: tuple[int, int, int, int], stride: int) -> tuple[slice, slice]:
    """Rows and columns, of latents that each stand for stride x stride of those that the box counts."""
    top, bottom, left, right = box
    return slice(top // stride, -(-bottom // stride)), slice(left // stride, -(-right // stride))
