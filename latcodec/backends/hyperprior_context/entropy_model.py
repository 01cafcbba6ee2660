"""Networks and integers of the context hyperprior, and the walk through its steps: no bytes.

Latents of a step lie in planes of half the size (pixel_unshuffle), in the order of `coding_order`; where there is an
odd number of rows or columns, the positions beyond the border are not coded: their symbol is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from latcodec.backends.common.fixed_point import (
    GAIN_BITS,
    INVERSE_BITS,
    MEAN_BITS,
    SCALE_ROWS,
    dequantise,
    fixed_point_means,
    leaky_relu,
    table_index_of_scale,
)
from latcodec.backends.common.mean_scale import MeanScaleModel as HyperModel
from latcodec.backends.common.memo import Evaluate, evaluate
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.rate_tables import RateTables as HyperRateTables
from latcodec.backends.hyperprior_context import residual as details
from latcodec.backends.hyperprior_context import wiener
from latcodec.backends.hyperprior_context.coding_order import from_coding_order, of_step, picked, there
from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
from latcodec.backends.hyperprior_context.quadtree import STEPS, places
from latcodec.backends.hyperprior_context.wire import NEGATIVE_RATE_TAG, negative_rate_index
from latcodec.entropy.integer_net import FRACTION_BITS, LIMIT, IntegerNet
from latcodec.errors import FormatError, WeightsError
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.layers import round_straight_through
from latcodec.nn.symbol_costs import SIGMA_MIN

CONTEXTS = ("from_seen", "from_first", "corrections")
Z_CONTEXTS = ("z_from_seen", "z_corrections")
Z_ROW = 2 * SCALE_ROWS  # the first table row of z: after those of y and of details
ROWS = 3 * SCALE_ROWS
Take = Callable[[int, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class RateTables(HyperRateTables):
    """context_gain: from what steps decoded to what the context networks see. z_gain, z_scale_offset: as mean_gain and
    scale_offset, of z."""

    context_gain: np.ndarray
    z_gain: np.ndarray
    z_scale_offset: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: np.ndarray) -> RateTables:
        """See `hyper.RateTables.of`."""
        context_gain = np.exp(rate["context_log_gain"]) * 2.0 ** (GAIN_BITS + FRACTION_BITS - MEAN_BITS)
        z_scale_offset = (rate["z_log_sigma"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS
        return super().of(
            rate,
            context_gain=np.rint(context_gain).astype(np.int32),
            z_gain=np.rint(np.exp(rate["z_log_gain"]) * 2**GAIN_BITS).astype(np.int32),
            z_scale_offset=np.rint(z_scale_offset).astype(np.int32),
            **more,
        )


@dataclass(frozen=True)
class Rate:
    """index: the rate index of a file; base: that at which its latents are coded; details: whether the file says
    something of details beside them."""

    index: int
    base: int
    details: bool


@dataclass(frozen=True)
class Walked:
    """Integers of a picture: symbols and means of z int32 [4 Z, h4, w4] and of y int32 [4 C, h2, w2] in coding order,
    rows uint16 of those coded; symbols of the details int32 [S, 2 h, 2 w] and their rows uint16 [4 S h w], of the S
    channels of lowest frequency, which are those sent; symbols of the filter int32 [n], see `wiener.py`."""

    z_symbols: np.ndarray
    z_means: np.ndarray
    z_rows: np.ndarray
    symbols: np.ndarray
    means: np.ndarray
    rows: np.ndarray
    detail_symbols: np.ndarray
    detail_rows: np.ndarray
    filter_symbols: np.ndarray


class Model(HyperModel):
    """Networks, integer networks, frozen tables of the codec with contexts; see `hyper.Model`."""

    network_class, config_class, rates_class = ContextHyperprior, Config, RateTables

    @staticmethod
    def runs_as_floats(name: str) -> bool:
        """What decides bits runs in integers only, prices are in its tables; the float functions of the rate that the
        encoder needs stay."""
        of_integers = ("h_s.", "prices", *(f"{one}." for one in CONTEXTS + Z_CONTEXTS))
        return not name.startswith(of_integers) and details.runs_as_floats(name)

    def load_more(self, tensors: dict[str, np.ndarray]) -> None:
        """The context networks and those of the details."""
        if self.tables.num_tables != ROWS:
            raise WeightsError(f"tables: there are {self.tables.num_tables} tables, not {ROWS}")
        self.contexts = {one: [self.nets[f"{one}.{k}"] for k in range(1, STEPS)] for one in CONTEXTS + Z_CONTEXTS}
        self.details = details.IntegerDetails(self.nets, tensors) if self.network.config.details else None
        self._functions: dict[tuple, dict[str, torch.Tensor]] = {}

    def rate(self, index: int, parameters: bytes | None = None) -> Rate:
        """What the rate index and the parameters of a file mean. One byte: the rate index of the latents, up to that of
        the file, beside which there are details; None: that of the file or where the weights say that latents end, with
        details if they say so. Two bytes, the first of them NEGATIVE_RATE_TAG: how far below index 0 the file is, which
        then says 0; a negative index stands for both. Raises FormatError."""
        config = self.network.config
        if (said := negative_rate_index(parameters)) is not None:
            if index not in (0, said) or not self.lowest_index <= said < 0:
                raise FormatError(
                    f"field parameters: rate index {said} beside {index}, the lowest is {self.lowest_index}"
                )
            index, parameters = said, None
        if parameters is None:
            if self.details is None:
                return Rate(index, index, False)
            return Rate(index, min(index, config.latents_until), index >= config.details_from)
        if self.details is None:
            raise FormatError("field parameters: these weights have no details, which they speak of")
        if len(parameters) != 1 or parameters[0] > index:
            raise FormatError(f"field parameters: {list(parameters[:4])} is not one rate index up to {index}")
        return Rate(index, parameters[0], True)

    def parameters(self, rate: Rate) -> bytes | None:
        """What a file of that rate says besides its index: the inverse of `rate`."""
        if rate.index < 0:
            return bytes((NEGATIVE_RATE_TAG, -rate.index))
        return None if rate == self.rate(rate.index) else bytes((rate.base,))

    def at_rate(self, rate: Rate) -> dict[str, torch.Tensor]:
        """The network's functions of the rate, float32 [1, C, 1, 1], which are kept: nobody may change them."""
        key = self.network, self.device, rate.index, rate.base
        if key not in self._functions:
            with torch.inference_mode(False), torch.no_grad():  # a search puts them into what it differentiates
                places = torch.tensor([[rate.index], [rate.base]], device=self.device) / (RATES - 1)
                self._functions = dict([*self._functions.items()][-3:]) | {key: self.network.at_rate(*places)}
        return self._functions[key]

    def step_error_bits(self) -> float:
        """Bits that a squared error of one step of y counts as where the encoder rounds by rate and distortion."""
        return self.network.config.step_error_bits

    def z_step_error_bits(self, error_bits: float) -> float:
        """The same of z, where y is rounded with error_bits: 0 where that is 0, and not less than that."""
        of_z = self.network.config.z_step_error_bits
        return max(error_bits, of_z) if error_bits and of_z else 0.0

    def halo(self) -> int:
        """See `hyper.Model.halo`: 30 px, and a sample of its stage for each block."""
        blocks = self.network.config.blocks
        return -(-(30 + sum(n * 2 ** (stage + 1) for stage, n in enumerate(blocks))) // IMAGE_STRIDE)

    def first_row(self, number: int) -> int:
        """See `hyper.Model.first_row`: z comes first, then the steps of y, then details."""
        if number == 0:
            return Z_ROW
        return SCALE_ROWS if number > STEPS else 0

    def transmit(
        self, latents: tuple[torch.Tensor, ...], rate: Rate, functions: dict, quantise, autocast: bool, x,
        filtered: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):  # fmt: skip
        """(picture, prices) of the network's `transmit`, details included; functions: what `at_rate` says; filtered:
        what is done to the picture before details."""
        if rate.details:
            height, width = (IMAGE_STRIDE * side for side in latents[0].shape[2:])
            x = F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]), mode="replicate")
        else:
            x = None
        return self.network.transmit(
            *latents, functions, quantise, autocast, x, round_straight_through, filtered=filtered
        )

    def least_bits_of_z(self, rate: Rate, shape: tuple[int, int]) -> float:
        """The bits that z costs at least: those of the first step, whose rows alone are known; shape (h, w) of z.

        The other steps of z are decoded, or found too short, before anything larger is allocated.
        """
        offsets = self.rates.z_scale_offset[rate.base - self.lowest_index]
        rows = table_index_of_scale(np.zeros(len(offsets), np.int64), offsets)
        counts = np.zeros(len(offsets), np.int64)
        for channels, down, across in places(0):
            counts[channels] = len(range(shape[0])[down]) * len(range(shape[1])[across])
        return float((self.least_bits(rows + Z_ROW) * counts).sum())

    def walk(
        self,
        rate: Rate,
        shape: tuple[int, int],
        take_z: Take,
        take: Take,
        begin_details: Callable,
        evaluate: Evaluate = evaluate,
    ) -> Walked:
        """Go through the steps of z, of y and the details, in either direction; shape (h, w) of y.

        take(step, means, rows, there) gives the symbols of a step, int32 [C, h2, w2]: means int32 of that shape, rows
        uint16 of the coded ones, `there` the mask of those; take_z the same of z. Law 1: integers only.
        begin_details(symbols of y, means of y, rows of y) gives the symbols of a filter, and `sixteenths`, `shift` and
        `take` of `details.IntegerDetails.walk`. ask: of `replay.py`, of whom all is asked that follows from symbols.
        """
        z = self._walk_z(rate, shape, take_z, evaluate)
        gains, offsets, context_gains = self._at_base(rate, "mean_gain", "scale_offset", "context_gain")
        all_there = there(len(gains), shape)
        symbols, means, rows, seen, hyper = [], [], [], [], []

        def see() -> None:
            y_hat = dequantise(symbols[-1], means[-1], context_gains, GAIN_BITS)
            # The networks clip what they see to LIMIT in any case.
            seen.append(y_hat.clip(-LIMIT, LIMIT).astype(np.int32))

        def tell(step: int) -> tuple[np.ndarray, np.ndarray]:
            if not step:
                hyper.append(self._hyper(rate, shape, *z[:2]))
            mean, log_scale = of_step(hyper[0], step, np.int64)
            if step:
                see()
                more = self._correction(CONTEXTS, step, seen, mean, log_scale)
                mean, log_scale = mean + more[0], log_scale + more[1]
            return fixed_point_means(mean, gains), picked(table_index_of_scale(log_scale, offsets), all_there[step])

        def begin() -> tuple[np.ndarray, np.ndarray]:
            see()
            said = hyper.pop()
            return from_coding_order(seen, shape), said.reshape(-1, *said.shape[2:])[:, : shape[0], : shape[1]]

        for step in range(STEPS):
            networks = self._networks(CONTEXTS, step) or [self.hyper]
            mean, row = evaluate(partial(tell, step), (symbols or z[0])[-1], *networks)
            means.append(mean)
            rows.append(row)
            symbols.append(take(step, mean, row, all_there[step]))
        walked = [np.concatenate(part) for part in (*z, symbols, means, rows)]
        if not rate.details:
            return Walked(*walked, *details.none(shape), wiener.none())
        filter_symbols, *how = begin_details(*walked[3:])
        found = self.details.walk(begin, shape, symbols[-1], rate.index, rate.base, *how, evaluate)
        return Walked(*walked, *found, filter_symbols)

    def _walk_z(
        self, rate: Rate, shape: tuple[int, int], take: Take, evaluate: Evaluate
    ) -> tuple[list[np.ndarray], ...]:
        """Symbols, means and rows of z of each step, as in `Walked`; shape (h, w) of y."""
        names = "z_gain", "z_inverse_gain", "z_mean", "z_scale_offset"
        gains, inverse_gains, prior_means, offsets = self._at_base(rate, *names)
        all_there = there(len(gains), _shape_of_z(shape))
        symbols, means, rows, seen = [], [], [], []

        def tell(step: int) -> tuple[np.ndarray, np.ndarray]:
            mean = log_scale = np.zeros(all_there[step].shape, np.int64)
            if step:
                seen.append(dequantise(symbols[-1], means[-1], inverse_gains, INVERSE_BITS))
                mean, log_scale = self._correction(Z_CONTEXTS, step, seen)
            row = picked(table_index_of_scale(log_scale, offsets), all_there[step]) + np.uint16(Z_ROW)
            return (prior_means + fixed_point_means(mean, gains)).astype(np.int32), row

        for step in range(STEPS):
            given = [symbols[-1], *self._networks(Z_CONTEXTS, step)] if step else [np.array([*shape, *astuple(rate)])]
            mean, row = evaluate(partial(tell, step), *given)
            means.append(mean)
            rows.append(row)
            symbols.append(take(step, mean, row, all_there[step]))
        return symbols, means, rows

    def _hyper(
        self, rate: Rate, shape: tuple[int, int], symbols: list[np.ndarray], means: list[np.ndarray]
    ) -> np.ndarray:
        """What the hyper-synthesis makes of symbols and means of z, int32, which all of it fits, [2, C, h, w], sides
        rounded up to even ones."""
        gains = self._at_base(rate, "z_inverse_gain") * STEPS
        seen = [dequantise(*one, INVERSE_BITS) for one in zip(symbols, means, gains, strict=True)]
        found = self.hyper(from_coding_order(seen, _shape_of_z(shape))).astype(np.int32)
        return found.reshape(2, -1, *found.shape[1:])[..., : shape[0] + shape[0] % 2, : shape[1] + shape[1] % 2]

    def _at_base(self, rate: Rate, *names: str) -> list[np.ndarray]:  # of `RateTables`, [C, 1, 1] each
        return [getattr(self.rates, name)[rate.base - self.lowest_index][:, None, None] for name in names]

    def _networks(self, names: tuple[str, ...], step: int) -> list[IntegerNet]:
        """The context networks of a step, none of the first."""
        return [self.contexts[one][step - 1] for one in names] if step else []

    def _correction(self, names: tuple[str, ...], step: int, seen: list[np.ndarray], *own: np.ndarray) -> np.ndarray:
        """What is to be added to a step's means and log scales, int64 [2, C, h2, w2], after a look at the steps before
        and, where there is a network for it, at what the hyper-synthesis says of this one."""
        from_seen, *from_first, corrections = self._networks(names, step)
        h = from_seen(np.concatenate(seen))
        for network in from_first:
            h += network(np.concatenate(own))
        return corrections(leaky_relu(h)).reshape(2, -1, *h.shape[1:])


def _shape_of_z(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // HYPER_STRIDE), -(-shape[1] // HYPER_STRIDE)
