"""Details of the context codec in integers: rows of their symbols, and the symbols themselves; see `models/details.py`.

The networks that tell the rows see what is decoded: latents, the hyper-synthesis' output, and groups of details before.
Their table rows follow those of the latents. Law 1: integers only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from latcodec.backends import search
from latcodec.backends.common import bounded, every_rate, part, some_rates
from latcodec.backends.hyper import GAIN_BITS, MEAN_BITS, SCALE_ROWS, dequantised, leaky_relu, rows_of
from latcodec.integer_net import FRACTION_BITS, IntegerNet, quantise
from latcodec.models.details import BLOCK, GROUPS, SIGMA_MIN

NETWORKS = ("from_latents", "from_first", "from_details", "to_scales")
BAND = 64  # rows of blocks that are transformed at once


@dataclass(frozen=True)
class Rates:
    """Integers of every rate index: scale_offset and seen_gain [256, K], bias [256, width]."""

    scale_offset: np.ndarray
    seen_gain: np.ndarray
    bias: np.ndarray


class IntegerDetails:
    """The networks of the details as integers, of all nets and tensors of a weights file; raises KeyError.

    first: the rate index from which details are sent; below it they would save nothing.
    """

    def __init__(self, nets: dict[str, IntegerNet], tensors: dict[str, np.ndarray]):
        own = part(tensors, "details.")
        self.nets = {
            name: [net for key, net in nets.items() if key.startswith(f"details.{name}.")] for name in NETWORKS
        }
        self.first = int(own["first"][0])
        self.rates = Rates(**{k: every_rate(v) for k, v in part(own, "rates.").items()})

    def start(self, first: np.ndarray, rate_index: int) -> np.ndarray:
        """What `walk` wants of the hyper-synthesis' output, integers [2 C, h, w] with FRACTION_BITS; it is smaller."""
        return self.nets["from_first"][0](first) + self.rates.bias[rate_index][:, None, None]

    def walk(
        self, seen: np.ndarray, start: np.ndarray, rate_index: int, take: Callable[[int, np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Go through the groups, in either direction: symbols int32 [K, h, w] and their rows uint16 [K * h * w].

        seen: decoded latents, integers [C, h, w] with FRACTION_BITS; start: see there. take(group, rows) gives the
        symbols of a group, int32 [K / GROUPS, h, w].
        """
        offsets, gains = (
            np.split(table[rate_index][:, None, None], GROUPS)
            for table in (self.rates.scale_offset, self.rates.seen_gain)
        )
        f = self.nets["from_latents"][0](seen) + start
        symbols, rows, before = [], [], []
        for k in range(GROUPS):
            h = f + self.nets["from_details"][k - 1](np.concatenate(before)) if k else f
            log_scale = self.nets["to_scales"][k](leaky_relu(h))
            rows.append(rows_of(log_scale, offsets[k]).ravel() + np.uint16(SCALE_ROWS))
            symbols.append(take(k, rows[-1]))
            before.append(dequantised(symbols[-1], 0, gains[k], GAIN_BITS))
        return np.concatenate(symbols), np.concatenate(rows)


def runs_as_floats(name: str) -> bool:
    """Basis and gains do; the networks of the details decide bits."""
    return not name.startswith(tuple(f"details.{network}." for network in NETWORKS))


def export(details: nn.Module, rate: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The integers of a weights file; rate: the functions of the rate, float64 [256, channels], by name."""
    seen_gain = np.exp(rate["details.seen_log_gain"]) * 2.0 ** (GAIN_BITS + FRACTION_BITS - MEAN_BITS)
    rates = {
        "scale_offset": (rate["details.scale_offset"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS,
        "seen_gain": seen_gain,
        "bias": rate["details.bias"] * 2**FRACTION_BITS,
    }
    tensors = {f"details.rates.{k}": some_rates(np.rint(v).astype(np.int32)) for k, v in rates.items()}
    tensors["details.first"] = np.zeros(1, np.int32)
    for name in NETWORKS:
        found = getattr(details, name)
        for n, layer in enumerate(found if isinstance(found, nn.ModuleList) else [found]):
            arrays = quantise(nn.Sequential(layer.cpu()), small=True).to_arrays()
            tensors |= {f"details.{name}.{n}.{k}": v for k, v in arrays.items()}
    return tensors


def chooser(
    details: nn.Module, rate: dict[str, Tensor], residual: Tensor, rate_index: int, tables
) -> Callable[[int, np.ndarray], np.ndarray]:
    """`take` of an encoder: u of residual, float32 [1, 3, 16 h, 16 w], rounded by rate and distortion.

    The basis is orthonormal, so what a step of error costs in the picture is known exactly. rate: of one rate index.
    """
    bands = [details.analysis(residual[:, :, top : top + BAND * BLOCK]) for top in _tops(residual.shape[2])]
    step = rate["details.log_inverse_gain"].exp()
    u = bounded(torch.cat(bands, 2) / step).cpu().numpy()[0]
    weights = (search.error_weight(rate_index) * step.square()).cpu().numpy()[0]
    groups, of_group = np.split(u, GROUPS), np.split(weights, GROUPS)

    def take(k: int, rows: np.ndarray) -> np.ndarray:
        wanted = groups[k]
        prices = np.broadcast_to(of_group[k], wanted.shape).ravel()
        return search.round_by_price(wanted.ravel(), rows, tables, prices).reshape(wanted.shape)

    return take


def picture(details: nn.Module, rate: dict[str, Tensor], symbols: np.ndarray, base: Tensor) -> Tensor:
    """base, float32 [1, 3, 16 h, 16 w], with what symbols, int32 [K, h, w], add to it, in place."""
    step = rate["details.log_inverse_gain"].exp()
    for top in _tops(base.shape[2]):
        some = torch.from_numpy(symbols[None, :, top // BLOCK : top // BLOCK + BAND]).to(base.device)
        if some.any():
            base[:, :, top : top + BAND * BLOCK] += details.synthesis(some.float() * step)
    return base


def _tops(height: int) -> range:
    """The first row of each band of a picture, px."""
    return range(0, height, BAND * BLOCK)
