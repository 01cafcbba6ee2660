"""Stochastic Gumbel annealing: better latents for one picture, by gradient, in the encoder alone.

Source: Yang, Bamler, Mandt 2020, "Improving inference for neural image compression". The latents of a picture are the
variables. Rounding is relaxed to a choice between the two nearest integers, drawn with a Gumbel softmax whose
temperature falls, so that gradients pass and the choice hardens. The objective is the Lagrangian of training: bits plus
the distortion in bits (`distortion.py`). The result are latents that plain rounding turns into better symbols.

Large pictures are optimised in tiles, each with a margin of latents that do not move.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latcodec.backends.common.distortion import relaxed_distortion_bits
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE

Quantise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SgaTuning:
    """The constants of the search, set by trial on training pictures.

    Attributes:
        learning_rate: In steps of the quantiser, at the start, times the root of the number of steps.
        first_temperature: Of the relaxed rounding, at the start.
        last_temperature: Of the relaxed rounding, at the end; it falls exponentially.
        noise: Share of the Gumbel noise that is used. All of it drowns what a step could learn.
        momentum: Decay of the optimiser's mean of gradients.
        memory: Decay of the optimiser's mean of squared gradients.
        max_update: How far a latent may go in one step, in multiples of the usual way of its channel.
        freeze_radius: Distance from an integer, in steps of the quantiser, below which a latent is rounded to it
            without noise: noise on the many latents around 0 would drown the rest.
        evaluations: How often the second half of a search rounds its latents and computes their cost, to keep the best:
            a search may go too far.
        tile: Side of a tile, in latents; a multiple of 8, for the hyper-latents, which are coded in squares of 2x2.
        margin: Latents around a tile that take part but do not move; likewise a multiple of 8.
        narrow: Latents of a last tile that belong to the tile before: they would be too few pixels for MS-SSIM.
    """

    learning_rate: float = 0.12
    first_temperature: float = 0.7
    last_temperature: float = 0.25
    noise: float = 0.3
    momentum: float = 0.9
    memory: float = 0.99
    max_update: float = 10.0
    freeze_radius: float = 0.15
    evaluations: int = 4
    tile: int = 64
    margin: int = 8
    narrow: int = 2


TUNING = SgaTuning()


class RelaxedRD(Protocol):
    """A codec at one rate whose quantiser is a differentiable function: latents to a picture and bits.

    Attributes:
        gains: Steps of the quantiser in a unit of y and, if it is optimised too, of z: float32 [1, C, 1, 1] each.
    """

    gains: tuple[Tensor, ...]

    def transmit(self, latents: tuple[Tensor, ...], quantise: Quantise, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the decoder makes of latents, and what they cost.

        Args:
            latents: y float32 [1, C, h, w] and, if it is optimised too, z [1, Z, ceil(h / 4), ceil(w / 4)].
            quantise: Maps values in steps of the quantiser to symbols, or to values between them.
            x: The picture, float32 [1, 3, H, W] in 0..1.

        Returns:
            x_hat float32 [1, 3 or 1, 16 h, 16 w], and the bits of all symbols, float32 [].
        """
        ...


@dataclass(frozen=True)
class ProgressRange:
    """The part of a caller's progress, 0..1, that a piece of work reports."""

    callback: Callable[[float], None] | None
    first: float = 0.0
    size: float = 1.0

    def report(self, share: float) -> None:
        """Report the share of the piece that is done, 0..1."""
        if self.callback is not None:
            self.callback(self.first + self.size * share)


@dataclass(frozen=True)
class Tile:
    """A rectangle of latents of y: rows top..bottom, columns left..right."""

    top: int
    bottom: int
    left: int
    right: int

    def with_margin(self, height: int, width: int) -> Tile:
        """Return the tile and its margin, inside latents of that height and width."""
        margin = TUNING.margin
        return Tile(
            max(0, self.top - margin), min(height, self.bottom + margin),
            max(0, self.left - margin), min(width, self.right + margin),
        )  # fmt: skip

    def cells(self, stride: int) -> tuple[slice, slice]:
        """Return rows and columns in an array each of whose cells stands for stride x stride latents of y."""
        return (
            slice(self.top // stride, -(-self.bottom // stride)),
            slice(self.left // stride, -(-self.right // stride)),
        )


def tiles_of(height: int, width: int) -> Iterator[Tile]:
    """Yield the tiles of latents of that height and width; what would be a narrow rest belongs to the tile before."""
    for top, bottom in _spans(height):
        for left, right in _spans(width):
            yield Tile(top, bottom, left, right)


def _spans(length: int) -> list[tuple[int, int]]:
    starts = list(range(0, max(1, length - TUNING.narrow), TUNING.tile))
    return list(zip(starts, [*starts[1:], length], strict=True))


def sga_round(x: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """Round to one of the two nearest integers, relaxed.

    A value is pulled to the nearer integer, the harder the lower the temperature. What is within the freeze radius of
    an integer becomes that integer, and its gradient is passed straight through.

    Args:
        x: float32, in steps of the quantiser.
        temperature: Of the Gumbel softmax, above 0.
        generator: Source of the noise, on the device of x.
    """
    nearest = x.detach().round()
    low = x.detach().floor()
    fraction = (x - low).clamp(1e-4, 1 - 1e-4)
    uniform = torch.rand(x.shape, generator=generator, device=x.device).clamp(1e-9, 1 - 1e-7)
    # The difference of two Gumbel variables is logistic.
    noise = TUNING.noise * (uniform.log() - (-uniform).log1p())
    logit = (torch.atanh(fraction) - torch.atanh(1 - fraction)) / temperature
    relaxed = low + torch.sigmoid((logit + noise) / temperature)
    return torch.where((x - nearest).abs() < TUNING.freeze_radius, x + (nearest - x).detach(), relaxed)


class ChannelAdam:
    """Adam with one scale of the gradient for each channel, and a limit to each update.

    A scale of its own would let each of many zeros, whose gradient is noise, go as far as what matters; without a
    limit, where few latents matter, those go too far.
    """

    def __init__(self, variables: Sequence[Tensor]):
        self.variables, self.step_count = variables, 0
        self._means, self._squares = ([torch.zeros_like(v) for v in variables] for _ in range(2))

    def step(self, gradients: Sequence[Tensor], learning_rate: float) -> None:
        """Update the variables in place; gradients have their shapes, [1, C, h, w]."""
        self.step_count += 1
        momentum, memory, limit = TUNING.momentum, TUNING.memory, TUNING.max_update
        for variable, gradient, mean, square in zip(self.variables, gradients, self._means, self._squares, strict=True):
            mean.lerp_(gradient, 1 - momentum)
            square.lerp_(gradient.square().mean((2, 3), keepdim=True).expand_as(square), 1 - memory)
            scale = (square / (1 - memory**self.step_count)).sqrt_().add_(1e-9)
            update = (mean / scale / (1 - momentum**self.step_count)).clamp_(-limit, limit)
            variable.detach().sub_(learning_rate * update)


class AnnealingSchedule:
    """Temperature and learning rate of a search, by its position: 0 at the first step, 1 at the end.

    With a deadline the position follows the clock where that is faster, so that a search always comes to its end.
    """

    def __init__(self, steps: int, deadline: float = math.inf):
        self.steps, self._start = steps, time.perf_counter()
        self._available_s = max(deadline - self._start, 1e-9)

    def position(self, step: int) -> float:
        """Return the position after so many steps, 0 or more."""
        return max(step / self.steps, (time.perf_counter() - self._start) / self._available_s)

    @staticmethod
    def temperature(position: float) -> float:
        """Return the temperature of the relaxed rounding."""
        return TUNING.first_temperature * (TUNING.last_temperature / TUNING.first_temperature) ** position

    def learning_rate(self, step: int, position: float) -> float:
        """Return the learning rate, in steps of the quantiser."""
        # With a deadline there are about as many steps as the time allows.
        expected_steps = min(self.steps, max(1.0, step / position)) if step else self.steps
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * position))
        return TUNING.learning_rate / math.sqrt(expected_steps) * decay


class StochasticGumbelAnnealing:
    """Searches latents of one picture at one rate that cost less once they are rounded.

    Args:
        rd: The codec with a relaxed quantiser.
        x: The picture, float32 [3, H, W] in 0..1.
        rate_index: Sets what the distortion is worth.
        metric: The distortion, one of `rates.METRICS`.
        steps: Steps of the optimiser for each tile.
    """

    def __init__(self, rd: RelaxedRD, x: Tensor, rate_index: int, metric: str, steps: int):
        self.rd, self.x, self.rate_index, self.metric, self.steps = rd, x, rate_index, metric, steps

    def optimise(
        self,
        latents: tuple[Tensor, ...],
        deadline: float = math.inf,
        progress: Callable[[float], None] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return better latents.

        Args:
            latents: y float32 [C, h, w], where 16 h and 16 w are not less than the sides of the picture, and, if it is
                optimised too, z [Z, ceil(h / 4), ceil(w / 4)].
            deadline: Time of `time.perf_counter` by which the search ends, s.
            progress: Called with 0..1.

        Returns:
            float32 of the same shapes.
        """
        latents = tuple(values.detach().clone() for values in latents)  # clones of inference tensors have gradients
        tiles = list(tiles_of(*latents[0].shape[1:]))
        for number, tile in enumerate(tiles):
            if time.perf_counter() >= deadline:
                break
            now = time.perf_counter()
            tile_deadline = deadline if deadline == math.inf else now + (deadline - now) / (len(tiles) - number)
            tile_progress = ProgressRange(progress, number / len(tiles), 1 / len(tiles))
            search = _TileSearch(self, latents, tile)
            search.run(tile_deadline, tile_progress)
            search.store(latents)
        return latents


class _TileSearch:
    """The search inside one tile. Variables are latents in steps, so that one learning rate fits all."""

    def __init__(self, sga: StochasticGumbelAnnealing, latents: tuple[Tensor, ...], tile: Tile):
        outer = tile.with_margin(*latents[0].shape[1:])
        rows_px, columns_px = (slice(IMAGE_STRIDE * s.start, IMAGE_STRIDE * s.stop) for s in outer.cells(1))
        self.sga, self.pixels = sga, sga.x[:, rows_px, columns_px][None]
        self.cells = [outer.cells(stride) for stride in (1, HYPER_STRIDE)][: len(latents)]
        self.variables, self.masks = [], []
        for values, gain, (rows, columns), stride in zip(
            latents, sga.rd.gains, self.cells, (1, HYPER_STRIDE), strict=False
        ):
            self.variables.append((values[None, :, rows, columns] * gain).requires_grad_(True))
            mask = torch.zeros(1, 1, *self.variables[-1].shape[2:], device=values.device)
            inner_rows, inner_columns = tile.cells(stride)
            mask[:, :, _shifted(inner_rows, rows.start), _shifted(inner_columns, columns.start)] = 1
            self.masks.append(mask)
        self.best_cost, self.best = math.inf, self.variables

    def cost(self, quantise: Quantise) -> Tensor:
        """Return the rate-distortion cost of the variables, float32 [], differentiable."""
        latents = tuple(v / gain for v, gain in zip(self.variables, self.sga.rd.gains, strict=True))
        x_hat, bits = self.sga.rd.transmit(latents, quantise, self.pixels)
        x_hat = x_hat[:, :, : self.pixels.shape[2], : self.pixels.shape[3]]
        return bits + relaxed_distortion_bits(x_hat, self.pixels, self.sga.rate_index, self.sga.metric)

    def run(self, deadline: float, progress: ProgressRange) -> None:
        """Optimise the variables, and keep the best of those that are evaluated."""
        schedule, adam = AnnealingSchedule(self.sga.steps, deadline), ChannelAdam(self.variables)
        generator = torch.Generator(self.pixels.device).manual_seed(0)
        evaluated = 0
        while True:
            position = schedule.position(adam.step_count)
            if position >= 0.5 + 0.5 * evaluated / TUNING.evaluations or position >= 1:
                self.evaluate()
                evaluated = int(2 * TUNING.evaluations * (position - 0.5)) + 1
            if position >= 1:
                break
            temperature = schedule.temperature(position)
            learning_rate = schedule.learning_rate(adam.step_count, position)
            cost = self.cost(lambda v, temperature=temperature: sga_round(v, temperature, generator))
            gradients = torch.autograd.grad(cost, self.variables)
            adam.step([g * mask for g, mask in zip(gradients, self.masks, strict=True)], learning_rate)
            progress.report(min(1.0, position))
        progress.report(1.0)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Compute the cost of the rounded variables, and keep them if they are the best so far."""
        cost = float(self.cost(torch.round))
        if cost < self.best_cost:
            self.best_cost, self.best = cost, [v.detach().clone() for v in self.variables]

    @torch.no_grad()
    def store(self, latents: tuple[Tensor, ...]) -> None:
        """Put the best variables into the latents, in place, inside the tile."""
        for values, variable, mask, gain, (rows, columns) in zip(
            latents, self.best, self.masks, self.sga.rd.gains, self.cells, strict=True
        ):
            values[:, rows, columns] = torch.where(mask > 0, variable / gain, values[None, :, rows, columns])[0]


def _shifted(cells: slice, by: int) -> slice:
    return slice(cells.start - by, cells.stop - by)
