"""The entropy model run over one picture, in exact integers, identically in the encoder and the decoder (law 1).

    z, 4 steps -> hyper-synthesis -> y, 4 steps -> Wiener filter, number of bands -> residual layer, up to 4 groups

Before each step `run_entropy_model` predicts means and table indices from everything coded so far, and a `StepCoder`
turns them into symbols: `step_coder.StepEncoder` quantises and writes, `step_coder.StepDecoder` reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from typing import Protocol

import numpy as np

from latcodec.backends.common.checks import crc_of
from latcodec.backends.common.fixed_point import (
    GAIN_BITS,
    INVERSE_BITS,
    dequantise,
    fixed_point_means,
    leaky_relu,
    table_index_of_scale,
)
from latcodec.backends.common.memo import Evaluate, evaluate
from latcodec.backends.hyperprior_context import residual, wiener
from latcodec.backends.hyperprior_context.model import (
    CONTEXT_NETWORKS,
    Z_CONTEXT_NETWORKS,
    Z_TABLE,
    Model,
    OperatingPoint,
)
from latcodec.backends.hyperprior_context.quadtree import (
    NUM_STEPS,
    gather_valid,
    merge_quadtree_steps,
    split_quadtree_step,
    valid_masks,
)
from latcodec.entropy.integer_net import LIMIT, IntegerNet
from latcodec.nn.geometry import HYPER_STRIDE


@dataclass(frozen=True)
class StepPrediction:
    """What the entropy model says of one step of latents before its symbols are known.

    Attributes:
        means: int32 [C, h2, w2], with MEAN_BITS fractional bits, in quantiser steps.
        table_index: uint16 [n], of the valid latents.
        valid_mask: bool [C, h2, w2], with n times True; elsewhere symbols are 0.
    """

    means: np.ndarray
    table_index: np.ndarray
    valid_mask: np.ndarray


@dataclass(frozen=True)
class CodedLatents:
    """The integers of y or of z.

    Attributes:
        symbols: int32 [4 C, h2, w2] in coding order, one step after another.
        means: int32 of that shape, see `StepPrediction`.
        table_index: uint16 [C h w], of the valid latents.
        shape: (h, w).
    """

    symbols: np.ndarray
    means: np.ndarray
    table_index: np.ndarray
    shape: tuple[int, int]

    def valid_mask(self) -> np.ndarray:
        """Return which symbols lie inside the border, bool [4 C, h2, w2]."""
        return np.concatenate(valid_masks(len(self.symbols) // NUM_STEPS, self.shape))


@dataclass(frozen=True)
class CodedIntegers:
    """All integers of a picture: what a stream stands for.

    Attributes:
        z: Integers of the hyper-latents.
        y: Integers of the latents.
        residual_symbols: int32 [K, 2 h, 2 w] of the K channels of lowest frequency, which are those sent.
        residual_table_index: uint16 [4 K h w].
        filter_symbols: int32 [n] of the Wiener filter, see `wiener.py`.
    """

    z: CodedLatents
    y: CodedLatents
    residual_symbols: np.ndarray
    residual_table_index: np.ndarray
    filter_symbols: np.ndarray

    def crc(self) -> int:
        """Return the CRC-32 that files hold; the order of the fields is part of the format."""
        return crc_of(
            self.z.symbols,
            self.z.means,
            self.z.table_index,
            self.y.symbols,
            self.y.means,
            self.y.table_index,
            self.residual_symbols,
            self.residual_table_index,
            self.filter_symbols,
        )


class StepCoder(residual.GroupCoder, Protocol):
    """One direction of coding. Methods are called in the order in which the stream holds what they code."""

    def code_z_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Return the symbols of a step of z, int32 [Z, h2, w2], 0 where they are not valid."""

    def code_y_step(self, step: int, prediction: StepPrediction) -> np.ndarray:
        """Return the symbols of a step of y, int32 [C, h2, w2], 0 where they are not valid."""

    def begin_residual(self, y: CodedLatents) -> tuple[np.ndarray, int]:
        """Return the filter symbols and the number of bands of the residual layer."""


def run_entropy_model(
    model: Model, point: OperatingPoint, shape: tuple[int, int], coder: StepCoder, evaluate: Evaluate = evaluate
) -> CodedIntegers:
    """Run the entropy model over one picture.

    Args:
        model: Networks and tables.
        point: Operating point of the file.
        shape: (h, w) of y.
        coder: Writes or reads the symbols.
        evaluate: Computes what follows from integers coded before, or recalls it: see `memo.py`.

    Returns:
        All integers of the picture.
    """
    z = _HyperLatentSteps(model, point, shape)
    coded_z = z.code(coder.code_z_step, evaluate)
    y = _LatentSteps(model, point, shape, z)
    coded_y = y.code(coder.code_y_step, evaluate)
    if not point.has_residual:
        return CodedIntegers(coded_z, coded_y, *residual.no_residual(shape), wiener.no_filter())
    filter_symbols, num_bands = coder.begin_residual(coded_y)
    rates = point.rate_index, point.base_rate_index
    coded_residual = model.residual.code(rates, num_bands, y, coder, evaluate)
    return CodedIntegers(coded_z, coded_y, *coded_residual, filter_symbols)


class _Steps(ABC):
    """The steps of one kind of latents; means and table indices of a step follow from the symbols of those before."""

    scale_offset: np.ndarray  # int [C, 1, 1], added to log scales

    def __init__(self, model: Model, point: OperatingPoint, channels: int, shape: tuple[int, int]):
        self.model, self.point, self.shape = model, point, shape
        self.valid_masks = valid_masks(channels, shape)
        self.symbols: list[np.ndarray] = []
        self.means: list[np.ndarray] = []
        self.decoded_context: list[np.ndarray] = []  # of each step but the last: what context networks see of it

    @abstractmethod
    def evaluation_inputs(self, step: int) -> list[np.ndarray | IntegerNet]:
        """Return what is new since the step before: its symbols, and the networks that see them."""

    @abstractmethod
    def predict_params(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the means, int32 [C, h2, w2], and the table indices, uint16 [n], of a step."""

    def code(self, code_step: Callable[[int, StepPrediction], np.ndarray], evaluate: Evaluate) -> CodedLatents:
        """Code all steps by one of the methods of a `StepCoder`."""
        table_index = []
        for step, valid_mask in enumerate(self.valid_masks):
            params = evaluate(partial(self.predict_params, step), *self.evaluation_inputs(step))
            prediction = StepPrediction(*params, valid_mask)
            self.means.append(prediction.means)
            table_index.append(prediction.table_index)
            self.symbols.append(code_step(step, prediction))
        parts = self.symbols, self.means, table_index
        return CodedLatents(*map(np.concatenate, parts), self.shape)

    def valid_tables(self, step: int, log_scale: np.ndarray) -> np.ndarray:
        """Return the table index of the valid latents of a step, uint16 [n], counted from 0."""
        return gather_valid(table_index_of_scale(log_scale, self.scale_offset), self.valid_masks[step])

    def parameter_delta(self, names: tuple[str, ...], step: int, *hyper: np.ndarray) -> np.ndarray:
        """Return what context adds to the means and log scales of a step, int64 [2, C, h2, w2].

        Args:
            names: Names of the context networks.
            step: 1 ... 3.
            hyper: Means and log scales of the hyper-synthesis, for a network that sees them.
        """
        spatial, *of_hyper, parameters = self.model.context_networks(names, step)
        h = spatial(np.concatenate(self.decoded_context))
        for network in of_hyper:
            h += network(np.concatenate(hyper))
        return parameters(leaky_relu(h)).reshape(2, -1, *h.shape[1:])


class _HyperLatentSteps(_Steps):
    """The steps of z, whose prior is one mean and scale per channel."""

    def __init__(self, model: Model, point: OperatingPoint, y_shape: tuple[int, int]):
        self.y_shape = y_shape
        self.gain, self.inverse_gain, self.prior_mean, self.scale_offset = model.integers_at(
            point, "z_gain", "z_inverse_gain", "z_mean", "z_scale_offset"
        )
        shape = -(-y_shape[0] // HYPER_STRIDE), -(-y_shape[1] // HYPER_STRIDE)
        super().__init__(model, point, len(self.gain), shape)

    def evaluation_inputs(self, step: int) -> list[np.ndarray | IntegerNet]:
        if not step:
            return [np.array([*self.y_shape, *astuple(self.point)])]
        return [self.symbols[-1], *self.model.context_networks(Z_CONTEXT_NETWORKS, step)]

    def predict_params(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        mean = log_scale = np.zeros(self.valid_masks[step].shape, np.int64)
        if step:
            self.decoded_context.append(dequantise(self.symbols[-1], self.means[-1], self.inverse_gain, INVERSE_BITS))
            mean, log_scale = self.parameter_delta(Z_CONTEXT_NETWORKS, step)
        table_index = self.valid_tables(step, log_scale) + np.uint16(Z_TABLE)
        return (self.prior_mean + fixed_point_means(mean, self.gain)).astype(np.int32), table_index

    def hyper_synthesis(self) -> np.ndarray:
        """Return means and log scales of y before context, int32 [2, C, h, w], with even h and w."""
        z_hat = [
            dequantise(symbols, means, self.inverse_gain, INVERSE_BITS)
            for symbols, means in zip(self.symbols, self.means, strict=True)
        ]
        out = self.model.hyper(merge_quadtree_steps(z_hat, self.shape)).astype(np.int32)
        height, width = (side + side % 2 for side in self.y_shape)
        return out.reshape(2, -1, *out.shape[1:])[..., :height, :width]


class _LatentSteps(_Steps):
    """The steps of y, whose means and scales come from the hyper-synthesis and the steps before."""

    def __init__(self, model: Model, point: OperatingPoint, shape: tuple[int, int], z: _HyperLatentSteps):
        self.z = z
        self.mean_gain, self.scale_offset, self.context_gain = model.integers_at(
            point, "mean_gain", "scale_offset", "context_gain"
        )
        self.hyper: np.ndarray | None = None  # computed at step 0, released by `residual_context`
        super().__init__(model, point, len(self.mean_gain), shape)

    def evaluation_inputs(self, step: int) -> list[np.ndarray | IntegerNet]:
        if not step:
            return [self.z.symbols[-1], self.model.hyper]
        return [self.symbols[-1], *self.model.context_networks(CONTEXT_NETWORKS, step)]

    def predict_params(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        if not step:
            self.hyper = self.z.hyper_synthesis()
        mean, log_scale = split_quadtree_step(self.hyper, step, np.int64)
        if step:
            self._extend_context()
            delta = self.parameter_delta(CONTEXT_NETWORKS, step, mean, log_scale)
            mean, log_scale = mean + delta[0], log_scale + delta[1]
        return fixed_point_means(mean, self.mean_gain), self.valid_tables(step, log_scale)

    def _extend_context(self) -> None:
        y_hat = dequantise(self.symbols[-1], self.means[-1], self.context_gain, GAIN_BITS)
        # The networks clip what they see to LIMIT in any case.
        self.decoded_context.append(y_hat.clip(-LIMIT, LIMIT).astype(np.int32))

    def residual_context(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what the residual layer sees: decoded y, int32 [C, h, w], and the hyper-synthesis, [2 C, h, w]."""
        self._extend_context()
        hyper, self.hyper = self.hyper, None  # or it is held beside what the residual layer computes
        height, width = self.shape
        decoded = merge_quadtree_steps(self.decoded_context, self.shape)
        return decoded, hyper.reshape(-1, *hyper.shape[2:])[:, :height, :width]
