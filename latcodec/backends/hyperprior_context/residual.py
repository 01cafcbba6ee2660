"""Details of the context codec in integers: rows of their symbols, and the symbols themselves; see `models/details.py`.

The networks that tell the rows see what is decoded: latents, the hyper-synthesis' output, and groups of details before.
Their table rows follow those of the latents. Frequencies above the highest that is sent are 0 and cost nothing: a
symbol before them says how many sixteenths of all are sent, and whether a filter (`wiener.py`) comes first. Before each
group stands a symbol for each of its sixteenths: by how many rows the spread in this picture differs from what the
networks say, which have seen photographs.
Law 1: integers only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common.distortion import error_weight
from latcodec.backends.common.fixed_point import SCALE_ROWS, bounded, leaky_relu, table_index_of_scale
from latcodec.backends.common.memo import Evaluate, evaluate
from latcodec.backends.common.rate_tables import RATES, interpolate_rates, subsample_rates
from latcodec.backends.common.weights_parts import with_prefix
from latcodec.backends.hyperprior_context.reconstruction import near
from latcodec.backends.hyperprior_context.residual_network import (
    BLOCK,
    DEAD_ZONE,
    LARGEST,
    PER_LATENT,
    SHARES,
    groups_of,
)
from latcodec.entropy.integer_net import FRACTION_BITS, IntegerNet, quantise
from latcodec.entropy.tables import Tables
from latcodec.errors import FormatError
from latcodec.nn.layers import interpolate_knots
from latcodec.nn.symbol_costs import SIGMA_MIN

NETWORKS = ("from_latents", "from_first", "from_details", "to_scales")
BAND = 128  # rows of blocks that are transformed at once
AT_ONCE = 2**17  # details that are rounded at once
SIXTEENTHS = sum(SHARES)
COUNT_ROW = SCALE_ROWS + 36  # of the symbol that says how many sixteenths are sent: spread by 8
SHIFT_ROW = SCALE_ROWS + 23  # of the symbols that shift rows, most of them 0
MOST_SHIFT = 40  # rows: a factor of 170
# 4096 log2(1 + n), rounded: what the networks see of symbols of size n. Written out because it decides rows.
SIZES = np.array(
    [0, 4096, 6492, 8192, 9511, 10588, 11499, 12288, 12984, 13607, 14170, 14684, 15157, 15595, 16003, 16384],
    np.int32,
)
SYMBOL_BITS, ZERO_BITS = 10.0, 0.02  # about what a detail costs that is not 0 where others are, and one that is
SHIFT_BITS = 2.0  # about what a row more of shift costs
Shift = Callable[[int, np.ndarray], np.ndarray]  # (group, rows uint16 [sixteenths, n]) -> int32 [sixteenths]
Take = Callable[[int, np.ndarray], np.ndarray]  # (group, rows uint16 [n]) -> int32 [n]


@dataclass(frozen=True)
class Rates:
    """Integers of every rate index: scale_offset [256, K], bias [256, width]; what the base's rate adds to them."""

    scale_offset: np.ndarray
    bias: np.ndarray
    base_scale_offset: np.ndarray
    base_bias: np.ndarray


class IntegerDetails:
    """The networks of the details as integers, of all nets and tensors of a weights file; raises KeyError."""

    def __init__(self, nets: dict[str, IntegerNet], tensors: dict[str, np.ndarray]):
        self.nets = {
            name: [net for key, net in nets.items() if key.startswith(f"details.{name}.")] for name in NETWORKS
        }
        self.rates = Rates(**{k: interpolate_rates(v) for k, v in with_prefix(tensors, "details.rates.").items()})

    def walk(
        self, begin: Callable[[], tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], last: np.ndarray,
        rate_index: int, base: int, sixteenths: int, shift: Shift, take: Take, evaluate: Evaluate = evaluate,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Go through the groups, in either direction: symbols int32 [S, 2 h, 2 w] of the S channels that are sent, and
        their rows uint16 [4 S h w].

        begin: gives, of symbols of which `last` are the last, int32, decoded latents and what the hyper-synthesis
        says, integers [C, h, w] and [2 C, h, w] with FRACTION_BITS; shape: (h, w); base: the rate index of the latents;
        sixteenths: of all channels that are sent. shift and take give what is sent of a group: by how many rows those
        that the networks say are to be moved, of each sixteenth; the symbols, in the order of their rows. ask: of
        `replay.py`.
        """
        offsets = (self.rates.scale_offset[rate_index] + self.rates.base_scale_offset[base])[:, None, None]
        bias = (self.rates.bias[rate_index] + self.rates.base_bias[base])[:, None, None]
        ends = list(itertools.accumulate(groups_of(len(offsets))))
        some = len(offsets) // SIXTEENTHS
        sent = some * sixteenths
        symbols, rows, sizes, features = [], [], [], []

        def tell(k: int, begun: int, count: int) -> np.ndarray:
            if k:
                sizes.append(SIZES[np.abs(symbols[-1].clip(-LARGEST, LARGEST))])
                h = features[0] + self.nets["from_details"][k - 1](np.concatenate(sizes))
            else:
                seen, first = begin()
                first = self.nets["from_first"][0](first)
                features.append(_up(self.nets["from_latents"][0](seen) + first) + bias)
                h = features[0]
            log_scale = self.nets["to_scales"][k](leaky_relu(h))[:count]
            firsts = range(0, count, some)  # one sixteenth after another: all at once takes much memory
            return np.stack(
                [table_index_of_scale(log_scale[n:][:some], offsets[begun + n :][:some]).ravel() for n in firsts]
            )

        for k, (begun, end) in enumerate(itertools.pairwise([0, *ends])):
            if begun >= sent:
                break
            count = min(end, sent) - begun
            names = {"from_details": k - 1} if k else {"from_latents": 0, "from_first": 0}
            networks = (self.nets[name][n] for name, n in (names | {"to_scales": k}).items())
            how = np.array([rate_index, base, count])
            said = evaluate(partial(tell, k, begun, count), how, (symbols or [last])[-1], *networks)
            rows.append(_moved(said, shift(k, said)).ravel())
            symbols.append(take(k, rows[-1]).reshape(count, *(PER_LATENT * side for side in shape)))
        return (np.concatenate(symbols), np.concatenate(rows)) if symbols else none(shape)


def _moved(rows: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Rows of the details' tables, uint16 [n, m], from what the networks say, moved by int32 [n]."""
    moved = rows.astype(np.int16)
    moved += shifts.clip(-SCALE_ROWS, SCALE_ROWS).astype(np.int16)[:, None]
    moved.clip(0, SCALE_ROWS - 1, out=moved)
    moved += SCALE_ROWS
    return moved.view(np.uint16)


def none(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Symbols and rows where no details are sent; shape (h, w) of y."""
    return np.zeros((0, PER_LATENT * shape[0], PER_LATENT * shape[1]), np.int32), np.zeros(0, np.uint16)


def _up(planes: np.ndarray) -> np.ndarray:
    """[4 C, h, w] to [C, 2 h, 2 w], as `pixel_shuffle`."""
    return torch.pixel_shuffle(torch.from_numpy(planes)[None], PER_LATENT)[0].numpy()


def counted(sixteenths: int, filtered: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The symbol int32 [1] that says how many sixteenths of the details are sent, n, or if a filter comes before them
    -1 - n, and its row uint16 [1]."""
    return np.array([-1 - sixteenths if filtered else sixteenths], np.int32), np.array([COUNT_ROW], np.uint16)


def count_of(symbols: np.ndarray) -> tuple[int, bool]:
    """The sixteenths that a decoded symbol, int32 [1], says, and whether a filter comes before them; raises FormatError
    if there are not so many."""
    said, filtered = int(symbols[0]), bool(symbols[0] < 0)
    if (sixteenths := -1 - said if filtered else said) > SIXTEENTHS:
        raise FormatError(f"field stream: {sixteenths} sixteenths of the details")
    return sixteenths, filtered


def shift_rows(count: int) -> np.ndarray:
    """Rows, uint16, of the symbols that shift so many sixteenths."""
    return np.full(count, SHIFT_ROW, np.uint16)


def runs_as_floats(name: str) -> bool:
    """Gains do; the networks of the details decide bits."""
    return not name.startswith(tuple(f"details.{network}." for network in NETWORKS))


def export(details: nn.Module) -> dict[str, np.ndarray]:
    """The integers of a weights file."""
    every, tensors = torch.arange(RATES) / (RATES - 1), {}
    for name in Rates.__dataclass_fields__:
        values = interpolate_knots(getattr(details, name).detach().cpu(), every).double().numpy()
        origin = np.log(SIGMA_MIN) if name == "scale_offset" else 0.0
        fixed = np.rint((values - origin) * 2**FRACTION_BITS).astype(np.int32)
        tensors[f"details.rates.{name}"] = subsample_rates(fixed)
    for name in NETWORKS:
        found = getattr(details, name)
        for n, layer in enumerate(found if isinstance(found, nn.ModuleList) else [found]):
            # Few weights, and gains of latents are chosen to spread those of the context networks, not these.
            small = name != "from_latents"
            arrays = quantise(nn.Sequential(layer.cpu()), small).to_arrays()
            tensors |= {f"details.{name}.{n}.{k}": v for k, v in arrays.items()}
    return tensors


def chooser(
    details: nn.Module, rate: dict[str, Tensor], residual: Tensor, rate_index: int, tables: Tables
) -> tuple[int, Shift, Take]:
    """What an encoder gives `walk`, of residual, float32 [1, 3, 16 h, 16 w]: u of it, rounded by rate and distortion.

    The basis is orthonormal, so what a step of error costs in the picture is known exactly. rate: of one rate index.
    """
    step, weight = step_and_weight(rate, rate_index)
    u = step.new_empty(details.channels, *(side // BLOCK for side in residual.shape[2:]))
    for top in _tops(residual.shape[2]):
        band = details.analysis(residual[:, :, top : top + BAND * BLOCK])
        u[:, top // BLOCK : top // BLOCK + BAND] = bounded(band / step)[0]
    sixteenths = _worth_sending(u, weight)
    groups, prices = u.cpu().split(details.sizes), _prices(tables)
    by = float(rate["details.nearer"])

    def stand_for(symbols: np.ndarray) -> np.ndarray:
        return near(torch.from_numpy(symbols).float(), by).numpy()

    def shift(k: int, rows: np.ndarray) -> np.ndarray:
        wanted = groups[k].numpy().ravel()[: rows.size].reshape(rows.shape)
        return np.array([_best_shift(*one, prices) for one in zip(rows, wanted, strict=True)], np.int32)

    def take(k: int, rows: np.ndarray) -> np.ndarray:
        wanted = groups[k].numpy().ravel()[: len(rows)]
        some = range(0, len(rows), AT_ONCE)  # all of a large picture at once takes much memory
        parts = ((wanted[n:][:AT_ONCE], rows[n:][:AT_ONCE]) for n in some)
        return np.concatenate([pricing.rdoq(*part, tables, weight, stand_for) for part in parts])

    return sixteenths, shift, take


def signed_prices(tables: Tables) -> np.ndarray:
    """Bits of symbols -MAX_SYMBOL ... MAX_SYMBOL in each row of the details, float64 [SCALE_ROWS, symbols]."""
    return pricing.bits_of_tables(tables, torch.device("cpu"))[SCALE_ROWS:][:SCALE_ROWS].double().numpy()


def _prices(tables: Tables) -> np.ndarray:
    """Bits of a symbol of each size up to LARGEST in each row of the details, float64 [SCALE_ROWS, LARGEST + 1]."""
    of_rows = signed_prices(tables)
    zero = of_rows.shape[1] // 2
    return (of_rows[:, zero : zero + LARGEST + 1] + of_rows[:, zero - LARGEST : zero + 1][:, ::-1]) / 2


def _best_shift(rows: np.ndarray, wanted: np.ndarray, prices: np.ndarray) -> int:
    """By how many rows to move them all so that what rounds from wanted, float32 [n], costs least."""
    sizes = np.minimum(np.abs(wanted) + (0.5 - DEAD_ZONE), LARGEST).astype(np.int64)
    found = np.bincount(rows * np.int64(LARGEST + 1) + sizes, minlength=prices.size).reshape(prices.shape)
    shifts = np.arange(-MOST_SHIFT, MOST_SHIFT + 1)
    moved = np.clip(np.arange(SCALE_ROWS) + shifts[:, None], 0, SCALE_ROWS - 1)
    bits = (found * prices[moved]).sum((1, 2)) + SHIFT_BITS * np.abs(shifts)
    return int(shifts[bits.argmin()])


def step_and_weight(rate: dict[str, Tensor], rate_index: int) -> tuple[Tensor, float]:
    """The step of details, and the bits that a squared error of one step is worth."""
    step = (-rate["details.log_gain"]).exp()
    return step, float(error_weight(rate_index) * step.square())


def saved_by_sixteenths(u: Tensor, weight: float) -> Tensor:
    """Bits that details, float32 [..., K, h, w] in steps, save if those that pay are sent, float32 [SIXTEENTHS].

    weight: of `step_and_weight`.
    """

    def saved(size: Tensor) -> Tensor:
        bits = weight * (size.square() - (size - size.round()).square()) - SYMBOL_BITS
        return bits.clamp_min(0).sum()

    return torch.stack([saved(some.abs()) for some in u.chunk(SIXTEENTHS, -3)])  # all at once takes much memory


def _worth_sending(u: Tensor, weight: float) -> int:
    """Sixteenths up to the last that saves more than it costs; u: float32 [K, h, w], in steps; weight: as above."""
    pays = saved_by_sixteenths(u, weight) > ZERO_BITS * u.numel() / SIXTEENTHS
    return int(pays.nonzero().max()) + 1 if pays.any() else 0


def picture(details: nn.Module, rate: dict[str, Tensor], symbols: np.ndarray, base: Tensor) -> Tensor:
    """base, float32 [1, 3, 16 h, 16 w], with what symbols, int32 [K, 2 h, 2 w], add to it, in place."""
    step = (-rate["details.log_gain"]).exp()
    for top in _tops(base.shape[2]):
        some = torch.from_numpy(symbols[None, :, top // BLOCK : top // BLOCK + BAND]).to(base.device)
        if some.any():
            base[:, :, top : top + BAND * BLOCK] += details.synthesis(near(some.float(), rate["details.nearer"]) * step)
    return base


def _tops(height: int) -> range:
    """The first row of each band of a picture, px."""
    return range(0, height, BAND * BLOCK)
