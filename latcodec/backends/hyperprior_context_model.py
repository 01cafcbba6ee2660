"""Networks and integers of the context hyperprior, and the walk through its steps: no bytes.

Latents of a step lie in planes of half the size of y (pixel_unshuffle), in the order of `coding_order`; where y has an
odd number of rows or columns, the positions beyond its border are not coded: their symbol is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from latcodec.backends import details
from latcodec.backends.hyper import GAIN_BITS, MEAN_BITS, SLOPE_BITS, means_of, rows_of
from latcodec.backends.hyper import Model as HyperModel
from latcodec.backends.hyper import RateTables as HyperRateTables
from latcodec.integer_net import LIMIT, shift_round
from latcodec.models.hyperprior_context import IMAGE_STRIDE, STEPS, Config, ContextHyperprior, coding_order
from latcodec.models.layers import round_straight_through

CONTEXTS = ("from_seen", "from_first", "corrections")


@dataclass(frozen=True)
class RateTables(HyperRateTables):
    """context_gain: from what steps decoded to what the context networks see."""

    context_gain: np.ndarray


@dataclass(frozen=True)
class Walked:
    """Integers of a picture: symbols and means of y int32 [4 C, h2, w2] in coding order, rows uint16 of those coded;
    symbols of the details int32 [K, h, w] and their rows uint16 [K * h * w], K 0 if there are none."""

    symbols: np.ndarray
    means: np.ndarray
    rows: np.ndarray
    detail_symbols: np.ndarray
    detail_rows: np.ndarray


class Model(HyperModel):
    """Networks, integer networks, frozen tables of the codec with contexts; see `hyper.Model`."""

    network_class, config_class, rates_class = ContextHyperprior, Config, RateTables

    @staticmethod
    def runs_as_floats(name: str) -> bool:
        """What decides bits runs in integers only; the float functions of the rate that the encoder needs stay."""
        return not name.startswith(("h_s.", *(f"{one}." for one in CONTEXTS))) and details.runs_as_floats(name)

    def load_more(self, tensors: dict[str, np.ndarray]) -> None:
        """The context networks, those of the details, and the coding order."""
        self.contexts = {one: [self.nets[f"{one}.{step}"] for step in range(1, STEPS)] for one in CONTEXTS}
        self.order = coding_order(self.network.config.latent).numpy()
        self.inverse_order = np.argsort(self.order)
        self.details = details.IntegerDetails(self.nets, tensors) if self.network.config.details else None

    def sends_details(self, rate_index: int) -> bool:
        """Whether details pay at this rate."""
        return self.details is not None and rate_index >= self.details.first

    def halo(self) -> int:
        """How far the transforms reach beyond a strip, latents: 30 px, and a sample of its stage for each block."""
        blocks = self.network.config.blocks
        return -(-(30 + sum(n * 2 ** (stage + 1) for stage, n in enumerate(blocks))) // IMAGE_STRIDE)

    def transmit(self, latents: tuple[torch.Tensor, ...], rate_index: int, rate: dict, quantise, autocast: bool, x):
        """(picture, prices) of the network's `transmit`, details included."""
        if self.sends_details(rate_index):
            height, width = (IMAGE_STRIDE * side for side in latents[0].shape[2:])
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
        else:
            x = None
        return self.network.transmit(*latents, rate, quantise, autocast, x, round_straight_through)

    def walk(
        self, z_symbols: np.ndarray, rate_index: int, shape: tuple[int, int], take: Callable, begin_details: Callable
    ) -> Walked:
        """Go through the steps of y and the details, in either direction; z_symbols int32 [Z, h', w'], shape (h, w).

        take(step, means, rows, there) gives the symbols of a step, int32 [C, h2, w2]: means int32 of that shape, rows
        uint16 of the coded ones, `there` the mask of those. Law 1: integers only. mean = m * gain; row = (l + offset -
        log SIGMA_MIN) * ROWS_PER_NAT, rounded; the next steps see (symbol + mean) * context gain.
        begin_details(symbols of y, means of y) gives `take` of `details.IntegerDetails.walk`.
        """
        height, width = (-(-side // 2) for side in shape)
        # As int32, which all of it fits: the copies of a large picture add up.
        hyper = self.hyper_synthesis(z_symbols, rate_index).astype(np.int32)
        squares = hyper[:, : 2 * height, : 2 * width].reshape(2, -1, height, 2, width, 2)
        gains, offsets, context_gains = (
            np.repeat(table[rate_index], STEPS)[self.order].reshape(STEPS, -1, 1, 1)
            for table in (self.rates.mean_gain, self.rates.scale_offset, self.rates.context_gain)
        )
        all_there = self.there(shape)
        # What the context networks see of the steps before; they clip it.
        seen = np.zeros((len(self.order), height, width), np.int32)
        each = len(self.order) // STEPS
        symbols, means, rows = [], [], []
        for step in range(STEPS):
            # Mean and log scale: those of the step's places in the 2x2 squares.
            own = slice(step * each, (step + 1) * each)
            channel, place = np.divmod(self.order[own], STEPS)
            mean, log_scale = squares[:, channel, :, place // 2, :, place % 2].transpose(1, 0, 2, 3).astype(np.int64)
            if step:
                mean, log_scale = self._corrected(step, mean, log_scale, seen[: own.start])
            means.append(means_of(mean, gains[step]))
            rows.append(rows_of(log_scale, offsets[step])[all_there[step]])
            symbols.append(take(step, means[-1], rows[-1], all_there[step]))
            y_hat = np.clip((symbols[-1].astype(np.int64) << MEAN_BITS) + means[-1], -(2**30), 2**30)
            seen[own] = shift_round(y_hat * context_gains[step], GAIN_BITS).clip(-LIMIT, LIMIT)
        y = np.concatenate(symbols), np.concatenate(means), np.concatenate(rows)
        if not self.sends_details(rate_index):
            return Walked(*y, np.zeros((0, *shape), np.int32), np.zeros(0, np.uint16))
        decoded, hyper = self.to_planes(seen, shape), hyper[:, : shape[0], : shape[1]]
        return Walked(*y, *self.details.walk(decoded, hyper, rate_index, begin_details(*y[:2])))

    def to_planes(self, ordered: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """[4 C, h2, w2] in coding order to [C, h, w]."""
        _, height, width = ordered.shape
        planes = ordered[self.inverse_order].reshape(-1, 2, 2, height, width).transpose(0, 3, 1, 4, 2)
        return planes.reshape(-1, 2 * height, 2 * width)[:, : shape[0], : shape[1]]

    def _corrected(
        self, step: int, mean: np.ndarray, log_scale: np.ndarray, seen: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the hyper-synthesis says of a step, int64 [C, h2, w2] twice, after a look at the steps before."""
        from_seen, from_first, corrections = (self.contexts[one][step - 1] for one in CONTEXTS)
        h = from_seen(seen) + from_first(np.concatenate([mean, log_scale]))
        more = corrections(np.maximum(h, shift_round(h, SLOPE_BITS)))
        return mean + more[: len(mean)], log_scale + more[len(mean) :]

    def there(self, shape: tuple[int, int]) -> np.ndarray:
        """Which latents of each step lie inside y, bool [STEPS, C, h2, w2]; shape (h, w) of y."""
        height, width = (-(-side // 2) for side in shape)
        position = self.order % STEPS
        row = 2 * np.arange(height)[None, :, None] + position[:, None, None] // 2
        column = 2 * np.arange(width)[None, None, :] + position[:, None, None] % 2
        return ((row < shape[0]) & (column < shape[1])).reshape(STEPS, -1, height, width)
