"""The residual layer in integers: table indices and symbols of what the latents leave; see `residual_network.py`.

    number of bands, then per group: a shift of the table index for each of its bands, the symbols of its channels

The K channels (frequencies) are divided into MAX_BANDS bands of equal size, and the bands into groups. Bands above the
highest that is sent are 0 and cost nothing. The networks that predict the tables see decoded latents, the output of the
hyper-synthesis and the groups before. They have seen photographs only, so a shift per band says by how many tables the
spread in this picture differs from their prediction. Law 1: integers only.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import nn

from latcodec.backends.common import rdoq
from latcodec.backends.common.fixed_point import SCALE_ROWS, leaky_relu, table_index_of_scale
from latcodec.backends.common.memo import Evaluate, evaluate
from latcodec.backends.common.rate_tables import RATES, interpolate_rates, subsample_rates
from latcodec.backends.common.weights_parts import with_prefix
from latcodec.backends.hyperprior_context.residual_network import LARGEST, PER_LATENT, SHARES, groups_of
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet, quantise
from latcodec.entropy.tables import Tables
from latcodec.errors import FormatError
from latcodec.nn.layers import interpolate_knots
from latcodec.nn.symbol_costs import SIGMA_MIN

NETWORKS = ("from_latents", "from_first", "from_details", "to_scales")  # as weights files name them
PREFIX = "details."  # of the residual layer in weights files
MAX_BANDS = sum(SHARES)
BAND_COUNT_TABLE = SCALE_ROWS + 36  # of the symbol that says how many bands are sent: its spread is about 8
SHIFT_TABLE = SCALE_ROWS + 23  # of the symbols that shift table indices, most of which are 0
# 4096 log2(1 + n), round_to_int32: what the networks see of symbols of size n. Written out because it decides tables.
LOG_SIZES = np.array(
    [0, 4096, 6492, 8192, 9511, 10588, 11499, 12288, 12984, 13607, 14170, 14684, 15157, 15595, 16003, 16384],
    np.int32,
)


class GroupCoder(Protocol):
    """One direction of coding the groups of the residual layer."""

    def code_band_shifts(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Return by how many tables to shift each band of a group, int32 [bands]; table_index: uint16 [bands, n]."""

    def code_residual_group(self, group: int, table_index: np.ndarray) -> np.ndarray:
        """Return the symbols of a group, int32 [n]; table_index: uint16 [n], shifted."""


class DecodedLatents(Protocol):
    """The latents below a residual layer.

    Attributes:
        shape: (h, w) of y.
        symbols: Symbols of y, one array per step.
    """

    shape: tuple[int, int]
    symbols: list[np.ndarray]

    def residual_context(self) -> tuple[np.ndarray, np.ndarray]:
        """Return decoded y, integers [C, h, w], and the hyper-synthesis, [2 C, h, w], both with FRACTION_BITS."""


@dataclass(frozen=True)
class ResidualRates:
    """Integers of every rate index.

    Attributes:
        scale_offset: [256, K], added to log scales.
        bias: [256, width], added to features.
        base_scale_offset: What the base rate adds to scale_offset.
        base_bias: What the base rate adds to bias.
    """

    scale_offset: np.ndarray
    bias: np.ndarray
    base_scale_offset: np.ndarray
    base_bias: np.ndarray


class IntegerResidual:
    """The networks of the residual layer as integers."""

    def __init__(self, nets: dict[str, IntegerNet], tensors: dict[str, np.ndarray]):
        """Pick the networks and rate parameters from those of a weights file; raises KeyError."""
        self.nets = {
            name: [net for key, net in nets.items() if key.startswith(f"{PREFIX}{name}.")] for name in NETWORKS
        }
        rates = with_prefix(tensors, f"{PREFIX}rates.")
        self.rates = ResidualRates(**{name: interpolate_rates(table) for name, table in rates.items()})

    def code(
        self,
        rates: tuple[int, int],
        num_bands: int,
        latents: DecodedLatents,
        coder: GroupCoder,
        evaluate: Evaluate = evaluate,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Code the groups of the residual layer, in either direction.

        Args:
            rates: Rate index of the file and that of its latents.
            num_bands: How many of MAX_BANDS bands are sent.
            latents: What the networks see.
            coder: Writes or reads shifts and symbols.
            evaluate: See `entropy_model.run_entropy_model`.

        Returns:
            Symbols int32 [K, 2 h, 2 w] of the K channels that are sent, and their table indices uint16 [4 K h w].
        """
        groups = _Groups(self, rates, latents)
        table_index = []
        for group, channels in groups.sent(num_bands):
            predicted = evaluate(partial(groups.predict, group, channels), *groups.evaluation_inputs(group, channels))
            shifted = _shift(predicted, coder.code_band_shifts(group, predicted)).ravel()
            table_index.append(shifted)
            groups.add(coder.code_residual_group(group, shifted))
        if not table_index:
            return no_residual(latents.shape)
        return np.concatenate(groups.symbols), np.concatenate(table_index)


class _Groups:
    """Prediction of table indices, group by group."""

    def __init__(self, layer: IntegerResidual, rates: tuple[int, int], latents: DecodedLatents):
        self.nets, self.rates, self.latents = layer.nets, rates, latents
        (index, base), tables = rates, layer.rates
        self.scale_offset = (tables.scale_offset[index] + tables.base_scale_offset[base])[:, None, None]
        self.bias = (tables.bias[index] + tables.base_bias[base])[:, None, None]
        self.channels_per_band = len(self.scale_offset) // MAX_BANDS
        self.symbols: list[np.ndarray] = []
        self.log_sizes: list[np.ndarray] = []
        self.features: np.ndarray | None = None  # of the latents: the same for every group

    def sent(self, num_bands: int) -> list[tuple[int, range]]:
        """Return the number of each group that is sent and the channels of it that are sent."""
        limit = num_bands * self.channels_per_band
        ends = itertools.accumulate(groups_of(len(self.scale_offset)), initial=0)
        groups = enumerate(itertools.pairwise(ends))
        return [(group, range(first, min(end, limit))) for group, (first, end) in groups if first < limit]

    def evaluation_inputs(self, group: int, channels: range) -> list[np.ndarray | IntegerNet]:
        """Return what is new since the group before, and the networks that see it."""
        seen = [("from_details", group - 1)] if group else [("from_latents", 0), ("from_first", 0)]
        networks = [self.nets[name][number] for name, number in (*seen, ("to_scales", group))]
        return [np.array([*self.rates, len(channels)]), (self.symbols or self.latents.symbols)[-1], *networks]

    def predict(self, group: int, channels: range) -> np.ndarray:
        """Return the table index of each symbol before shifts, counted from 0, uint16 [bands, n]."""
        if group:
            self.log_sizes.append(LOG_SIZES[np.abs(self.symbols[-1].clip(-LARGEST, LARGEST))])
            h = self.features + self.nets["from_details"][group - 1](np.concatenate(self.log_sizes))
        else:
            decoded, hyper = self.latents.residual_context()
            of_hyper = self.nets["from_first"][0](hyper)
            self.features = h = _pixel_shuffle(self.nets["from_latents"][0](decoded) + of_hyper) + self.bias
        log_scale = self.nets["to_scales"][group](leaky_relu(h))[: len(channels)]
        offsets = self.scale_offset[channels.start : channels.stop]
        bands = range(0, len(channels), self.channels_per_band)  # one by one: all at once takes much memory
        size = self.channels_per_band
        return np.stack([table_index_of_scale(log_scale[n : n + size], offsets[n : n + size]).ravel() for n in bands])

    def add(self, symbols: np.ndarray) -> None:
        """Take the symbols of the next group, int32 [n]."""
        height, width = (PER_LATENT * side for side in self.latents.shape)
        self.symbols.append(symbols.reshape(-1, height, width))


def _shift(table_index: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return the tables of the residual layer, uint16 [bands, n], from predictions and int32 [bands] shifts."""
    moved = table_index.astype(np.int16)
    moved += shifts.clip(-SCALE_ROWS, SCALE_ROWS).astype(np.int16)[:, None]
    moved.clip(0, SCALE_ROWS - 1, out=moved)
    moved += SCALE_ROWS
    return moved.view(np.uint16)


def _pixel_shuffle(planes: np.ndarray) -> np.ndarray:
    """Return [4 C, h, w] as [C, 2 h, 2 w]."""
    return torch.pixel_shuffle(torch.from_numpy(planes)[None], PER_LATENT)[0].numpy()


def no_residual(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the symbols and table indices of a file without a residual layer; shape is (h, w) of y."""
    return np.zeros((0, PER_LATENT * shape[0], PER_LATENT * shape[1]), np.int32), np.zeros(0, np.uint16)


def pack_band_count(num_bands: int, has_filter: bool) -> np.ndarray:
    """Return the symbol int32 [1] that says n bands follow, or -1 - n if a Wiener filter comes before them."""
    return np.array([-1 - num_bands if has_filter else num_bands], np.int32)


def unpack_band_count(symbols: np.ndarray) -> tuple[int, bool]:
    """Return the number of bands, and whether a filter comes first, from a decoded symbol int32 [1].

    Raises:
        FormatError: There are fewer bands.
    """
    symbol, has_filter = int(symbols[0]), bool(symbols[0] < 0)
    if (num_bands := -1 - symbol if has_filter else symbol) > MAX_BANDS:
        raise FormatError(f"field stream: {num_bands} bands of the residual layer, at most {MAX_BANDS}")
    return num_bands, has_filter


def band_count_table() -> np.ndarray:
    """Return the table index of the symbol of `pack_band_count`, uint16 [1]."""
    return np.array([BAND_COUNT_TABLE], np.uint16)


def shift_tables(num_bands: int) -> np.ndarray:
    """Return the table indices of the shifts of so many bands, uint16."""
    return np.full(num_bands, SHIFT_TABLE, np.uint16)


def symbol_bits_of_tables(tables: Tables) -> np.ndarray:
    """Return bits of symbols -MAX_SYMBOL ... MAX_SYMBOL in the residual tables, float64 [tables, symbols]."""
    return rdoq.bits_of_tables(tables, torch.device("cpu"))[SCALE_ROWS:][:SCALE_ROWS].double().numpy()


def runs_as_floats(name: str) -> bool:
    """Return whether a tensor stays float: gains do, the networks of the residual layer decide bits."""
    return not name.startswith(tuple(f"{PREFIX}{network}." for network in NETWORKS))


def export(layer: nn.Module) -> dict[str, np.ndarray]:
    """Return the integers of the residual layer of a trained network for its weights file."""
    positions, tensors = torch.arange(RATES) / (RATES - 1), {}
    for name in ResidualRates.__dataclass_fields__:
        values = interpolate_knots(getattr(layer, name).detach().cpu(), positions).double().numpy()
        origin = np.log(SIGMA_MIN) if name == "scale_offset" else 0.0
        fixed = np.rint((values - origin) * 2**FRACTION_BITS).astype(np.int32)
        tensors[f"{PREFIX}rates.{name}"] = subsample_rates(fixed)
    for name in NETWORKS:
        networks = getattr(layer, name)
        for number, network in enumerate(networks if isinstance(networks, nn.ModuleList) else [networks]):
            # from_latents has few weights, and gains of latents are chosen for the context networks, not for it.
            small = name != "from_latents"
            arrays = quantise(nn.Sequential(network.cpu()), small).to_arrays()
            tensors |= {f"{PREFIX}{name}.{number}.{key}": value for key, value in arrays.items()}
    return tensors
