"""Better latents for one picture: a search by gradient in the encoder, which the decoder knows nothing of.

Source: Yang, Bamler, Mandt 2020, "Improving inference for neural image compression": stochastic Gumbel annealing. The
latents of a picture are variables; rounding them is a choice between the two nearest integers, drawn with a Gumbel
softmax whose temperature falls, so that gradients pass and the choice hardens. Objective: bits + what the error counts
as (`distortion.py`), the Lagrangian of training. What comes out are latents that plain rounding turns into better
symbols.

Large pictures are searched in tiles, each with a margin of latents around it that stay as they are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.base import Codec, EncodeRequest
from latcodec.backends.common.distortion import distortion_bits, relaxed_distortion_bits
from latcodec.errors import DriftError, OptionError
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.rates import STEP_ERROR_BITS

TILE, MARGIN = 64, 8  # latents, multiples of those under a 2x2 square of hyper-latents, which are coded in steps
NARROW = 2  # latents of a last tile, which with its margin would be too few pixels for MS-SSIM
# (latents, quantise, picture [1, 3, h, w] or None) -> (x_hat, bits)
Transmit = Callable[[tuple[Tensor, ...], Callable[[Tensor], Tensor], Tensor], tuple[Tensor, Tensor]]

LEARNING_RATE = 0.12  # in steps of the quantiser, at the start, over the root of how many steps there will be
FIRST, LAST = 0.7, 0.25  # temperatures
NOISE = 0.3  # of a Gumbel softmax: all of it drowns what a step finds out
MOMENTUM, MEMORY = 0.9, 0.99  # of the optimiser
FARTHEST = 10.0  # times the usual way of its channel that a latent goes in a step at most
STEPS = (0, 15, 40, 80, 160, 240, 350, 500, 800, 1200)  # of the optimiser, by effort
SECTION_BITS = 16  # of a file, beside what a section contains, or more where that is long
JUDGED = 4  # times that the second half of a search is rounded and priced, to keep the best: a search may go too far
CERTAIN = 0.15  # steps: what is as near to an integer is rounded to it; noise on all of many zeros would drown the rest
SETTLED = CERTAIN  # steps: how far a latent is, at the start, from what rounding by rate and distortion chose, at most
# What `rdoq.rdoq` takes for latents that were found, one after another: the search has weighed most of it.
FOUND_ERROR_BITS = (0.0, 30.0, 60.0, 100.0, 150.0)


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """What a person may set of a codec that can search for better latents; raises OptionError for wrong values.

    Attributes:
        effort: 0..9; 0 rounds by rate and distortion, others search better latents first, each for longer.
        max_seconds: The time that the search may take, in seconds; 0 for no limit.
    """

    effort: int = 0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.effort < len(STEPS):
            raise OptionError(f"effort {self.effort} is outside 0 ... {len(STEPS) - 1}")
        if not 0 <= self.max_seconds < math.inf:
            raise OptionError(f"max_seconds {self.max_seconds} is not a time")

    @property
    def steps(self) -> int:
        """Of the search; 0 for none."""
        return STEPS[self.effort]

    @property
    def found_error_bits(self) -> tuple[float, ...]:
        """With which latents that were found are rounded, see FOUND_ERROR_BITS."""
        return FOUND_ERROR_BITS


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""


class SearchingCodec(Codec):
    """A codec whose options are `UserOptions`."""

    options_class: type = UserOptions

    def searches(self, options: UserOptions) -> bool:
        """Return whether the effort is one that searches."""
        return options.steps > 0


def code(
    model, latents, options: Options, plain: Callable, decodes: Callable, shown: Callable, soft: Callable,
    settled: Callable, step_error_bits: float | None = None, first=None, other=None,
):  # fmt: skip
    """The Coded of latents at one rate: that of plain latents, or with an effort the cheapest that is found.

    plain(model, latents, options, error bits) -> Coded; decodes(model, coded, rate_index, shape of y) says whether the
    decoder finds the same integers; shown(model, coded, rate_index, size, gray, depth): its picture; soft(model,
    rate_index, coded) -> (transmit, gains) of `refine`, coded being what `plain` makes; settled(model, coded, latents):
    y as it was coded, and z where that is not always the nearest integers, float32 [C, h, w] in steps; step_error_bits:
    what `rdoq.rdoq` takes for an error of one step, STEP_ERROR_BITS if None, 0 for the nearest integers;
    first: what `plain` makes, if it is known already; other: a Coded of another kind, than which a search is to find no
    dearer one. Raises DriftError if what was written does not decode (law 5).
    """
    start = time.perf_counter()
    error_bits = STEP_ERROR_BITS if step_error_bits is None else step_error_bits
    if options.effort and latents.image is not None:
        coded = _cheapest(model, latents, options, plain, shown, soft, settled, start, error_bits, first, other)
        coded = replace(coded, seconds={"search": time.perf_counter() - start} | coded.seconds)
    else:
        coded = first or plain(model, latents, options, error_bits)
    if options.verify:
        start = time.perf_counter()
        if not decodes(model, coded, options.rate_index, tuple(latents.y.shape[1:])):
            raise DriftError("the stream just written does not decode to the same integers on this machine")
        coded = replace(coded, seconds=coded.seconds | {"verify": time.perf_counter() - start})
    return coded


def _cheapest(
    model, latents, options: Options, plain, shown, soft, settled, start: float, error_bits: float, first, other
):  # fmt: skip
    """Of the ways to code latents the one of least `price`; without search is one of them."""
    image, index = latents.image, options.rate_index
    gray, metric = options.gray, model.metric
    deadline = start + options.max_seconds if options.max_seconds else math.inf

    def priced(coded) -> tuple[float, object]:
        decoded = shown(model, coded, index, image.shape[:2], gray, 8 * image.itemsize)
        return price(coded, decoded, image, index, metric), coded

    first = first or plain(model, latents, options, error_bits)
    if not options.steps and other is None:
        return first
    best = min(map(priced, filter(None, (first, other))), key=lambda one: one[0])
    if not options.steps:
        return best[1]
    transmit, gains = soft(model, index, first)
    heard = _gray(transmit) if gray else transmit
    names = [name for name in ("y", "z") if hasattr(latents, name)]
    variables = [getattr(latents, name) for name in names]
    for number, chosen in enumerate(settled(model, first, latents)):
        variables[number] = near(variables[number], chosen.to(model.device), gains[number][0])
    x = picture(image, model.device)
    found = refine(heard, x, tuple(variables), gains, index, options.steps, deadline, options.progress, metric)
    better = replace(latents, **dict(zip(names, found, strict=True)))
    for bits in options.found_error_bits:
        best = min(best, priced(plain(model, better, options, bits)), key=lambda one: one[0])
    return best[1]


def near(latents: Tensor, chosen: Tensor, gain: Tensor) -> Tensor:
    """Latents so near to what was chosen for them that the nearest integers are the same choice; float32 [C, h, w],
    chosen in steps; gain: float32 [C, 1, 1], of steps a unit."""
    return (chosen + (latents * gain - chosen).clamp(-SETTLED, SETTLED)) / gain


def price(coded, decoded: np.ndarray, image: np.ndarray, rate_index: int, metric: str = "mse") -> float:
    """Bits of streams and parameters + those that the error counts as, of which training minimises an estimate;
    decoded, image: uint8 or uint16 [H, W, 3]; metric: of `rates.METRICS`."""
    sections = [*coded.streams, *([coded.parameters] if coded.parameters is not None else [])]
    bits = 8 * sum(map(len, sections)) + SECTION_BITS * len(sections)
    return bits + distortion_bits(decoded, image, rate_index, metric)


def _gray(transmit: Transmit) -> Transmit:
    """`transmit` of a gray picture, whose three channels the decoder averages."""

    def averaged(now: tuple[Tensor, ...], quantise: Callable, x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, bits = transmit(now, quantise, x)
        return x_hat.mean(1, keepdim=True), bits

    return averaged


def picture(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 or uint16 [H, W, 3] as float32 [3, H, W] in 0..1."""
    peak = 65535 if image.dtype == np.uint16 else 255
    return (torch.from_numpy(image.astype(np.float32)) / peak).permute(2, 0, 1).to(device)


def soft_round(x: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """One of the two nearest integers, softly: x is pulled to the nearer, the harder the lower the temperature; what is
    within CERTAIN of one is that one, its gradient passed straight through."""
    nearest = x.detach().round()
    low = x.detach().floor()
    fraction = (x - low).clamp(1e-4, 1 - 1e-4)
    uniform = torch.rand(x.shape, generator=generator, device=x.device).clamp(1e-9, 1 - 1e-7)
    # The difference of two Gumbel variables is logistic.
    noise = NOISE * (uniform.log() - (-uniform).log1p())
    logit = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    soft = low + torch.sigmoid((logit + noise) / temperature)
    return torch.where((x - nearest).abs() < CERTAIN, x + (nearest - x).detach(), soft)


def refine(
    transmit: Transmit, x: Tensor, latents: tuple[Tensor, ...], gains: tuple[Tensor, ...], rate_index: int, steps: int,
    deadline: float = math.inf, progress: Callable[[float], None] | None = None, metric: str = "mse",
) -> tuple[Tensor, ...]:  # fmt: skip
    """Latents whose plain rounding costs less, float32 like `latents`: y [C, h, w] and, if any, z [Z, h/4, w/4], up.

    transmit(latents [1, ., ., .], quantise, picture [1, 3, ., .]) -> (x_hat, bits), differentiable; gains: float32
    [1, ., 1, 1], of steps a unit of each; x: the picture, float32 [3, H, W] in 0..1, H and W up to 16 times h and w;
    steps: of the optimiser; deadline: of time.perf_counter(), s, by which to come to an end; progress gets 0..1;
    metric: of `rates.METRICS`.
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
        _refine_tile(transmit, x, found, gains, rate_index, steps, until, tell, tile, metric)
        tell(1.0)
    return found


def _tiles(height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, bottom, left, right of each tile, latents; what would be a narrow rest belongs to the tile before."""
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            yield top, bottom, left, right


def _spans(length: int) -> list[tuple[int, int]]:
    starts = list(range(0, max(1, length - NARROW), TILE))
    return list(zip(starts, [*starts[1:], length], strict=True))


def _refine_tile(transmit, x, latents, gains, rate_index, steps, deadline, tell, tile, metric) -> None:
    """Refine latents in place inside a tile."""
    top, bottom, left, right = tile
    height, width = latents[0].shape[1:]
    outer = (max(0, top - MARGIN), min(height, bottom + MARGIN), max(0, left - MARGIN), min(width, right + MARGIN))
    first_row, last_row, first_column, last_column = (IMAGE_STRIDE * edge for edge in outer)
    pixels = x[:, first_row:last_row, first_column:last_column][None]
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
    means, squares = ([torch.zeros_like(v) for v in variables] for _ in range(2))
    generator = torch.Generator(x.device).manual_seed(0)
    step, start, judged, kept = 0, time.perf_counter(), 0, (math.inf, variables)

    def cost_of(now: tuple[Tensor, ...], quantise: Callable[[Tensor], Tensor]) -> Tensor:
        x_hat, bits = transmit(now, quantise, pixels)
        inside = x_hat[:, :, : pixels.shape[2], : pixels.shape[3]]
        return bits + relaxed_distortion_bits(inside, pixels, rate_index, metric)

    while True:
        # With a deadline the schedule runs by the clock where that is faster, so that it always comes to its end.
        at = max(step / steps, (time.perf_counter() - start) / max(deadline - start, 1e-9))
        now = tuple(v / gain for v, gain in zip(variables, gains, strict=True))
        if at >= 0.5 + 0.5 * judged / JUDGED or at >= 1:
            with torch.no_grad():
                found = float(cost_of(now, torch.round))
            kept = min(kept, (found, [v.detach().clone() for v in variables]), key=lambda one: one[0])
            judged = int(2 * JUDGED * (at - 0.5)) + 1
        if at >= 1:
            break
        temperature = FIRST * (LAST / FIRST) ** at
        # With a deadline, about as many steps as the time allows.
        count = min(steps, max(1.0, step / at)) if step else steps
        rate = LEARNING_RATE / math.sqrt(count) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * at)))
        cost = cost_of(now, lambda r, temperature=temperature: soft_round(r, temperature, generator))
        step += 1
        for variable, gradient, mask, mean, square in zip(
            variables, torch.autograd.grad(cost, variables), masks, means, squares, strict=True
        ):
            _descend(variable.detach(), gradient * mask, mean, square, rate, step)
        tell(min(1.0, at))
    with torch.no_grad():
        for one, variable, mask, gain, stride in zip(latents, kept[1], masks, gains, (1, HYPER_STRIDE), strict=False):
            rows, columns = _cells(outer, stride)
            one[:, rows, columns] = torch.where(mask > 0, variable / gain, one[None, :, rows, columns])[0]


def _descend(variable: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, rate: float, step: int) -> None:
    """A step of Adam, in place, with one scale of the gradient for each channel, [1, C, h, w] all.

    A scale of its own would let each of many zeros, whose gradient is noise, go as far as what matters; without a
    limit, where few latents matter, those go too far.
    """
    mean.lerp_(gradient, 1 - MOMENTUM)
    square.lerp_(gradient.square().mean((2, 3), keepdim=True).expand_as(square), 1 - MEMORY)
    scale = (square / (1 - MEMORY**step)).sqrt_().add_(1e-9)
    variable.sub_(rate * (mean / scale / (1 - MOMENTUM**step)).clamp_(-FARTHEST, FARTHEST))


def _cells(box: tuple[int, int, int, int], stride: int) -> tuple[slice, slice]:
    """Rows and columns, of latents that each stand for stride x stride of those that the box counts."""
    top, bottom, left, right = box
    return slice(top // stride, -(-bottom // stride)), slice(left // stride, -(-right // stride))
