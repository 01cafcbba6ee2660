"""What the two hyperprior codecs share: options, results, the integers of each rate, analysis; vbq has the same fixed
point, rows and z, so that a change of those breaks its files too.

Fixed point: means have MEAN_BITS bits after the point, in units of the quantiser's step; table rows are evenly spaced
in the logarithm of the standard deviation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from latcodec.backends.common import rdoq as pricing
from latcodec.backends.common import sga as search
from latcodec.backends.common.shared import (
    RATES,
    config_from,
    every_rate,
    floats_of_integers,
    integer_nets,
    load_floats,
    part,
    replicate,
    to_tensor,
)
from latcodec.backends.hyperprior.network import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.entropy.integer_net import FRACTION_BITS, shift_round
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.prices import ROWS as SCALE_ROWS
from latcodec.nn.prices import ROWS_PER_NAT, SIGMA_MAX, SIGMA_MIN, place_of
from latcodec.nn.tiling import in_strips
from latcodec.runtime import bf16_is_fast
from latcodec.weights import Weights, trained_for

MEAN_BITS = 6
GAIN_BITS = 16  # of the gains that means are multiplied by
INVERSE_BITS = 12  # of the factor from z's values to what networks see of them
SLOPE_BITS = 3  # of the activation between the networks of contexts and of details: 2**-3
ROWS_PER_NAT_FIXED = 31973  # the same with 12 bits after the point, written out because it decides rows
Options = search.Options


def sigmas() -> np.ndarray:
    """Standard deviation of each table row in steps, float64 [SCALE_ROWS], evenly spaced in the logarithm."""
    return np.geomspace(SIGMA_MIN, SIGMA_MAX, SCALE_ROWS)


@dataclass(frozen=True)
class Latents:
    """What the networks say of one picture at every rate: y float32 [C, h, w], z float32 [Z, h', w']; the picture."""

    y: torch.Tensor
    z: torch.Tensor
    image: np.ndarray | None = None
    seconds: ClassVar[float] = 0.0  # that `at` took

    def at(self, rate_index: int) -> Latents:
        """Those of a rate: these."""
        return self


@dataclass(frozen=True)
class Coded:
    """Encoder's result: streams and CRC for the file, and what a person may ask.

    estimated_bits is the tables' ideal code length; symbols and means, int32 (2**-MEAN_BITS steps), make the decoder's
    latents, rows uint16 their price; seconds by stage.
    """

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    symbols: np.ndarray
    means: np.ndarray
    rows: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Symbols int32 [n] and their rows uint16 [n], all but those of z: what tables are fitted to."""
        return self.symbols.ravel(), self.rows


def gains_and_means(rate: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """z_mean, z_inverse_gain and mean_gain, int32 [rates, channels], from the functions of the rate in float64."""
    inverse = 2.0 ** (FRACTION_BITS + INVERSE_BITS - MEAN_BITS) / np.exp(rate["z_log_gain"])
    return {
        "z_mean": np.rint(rate["z_mean"] * 2**MEAN_BITS).astype(np.int32),
        "z_inverse_gain": np.rint(inverse).astype(np.int32),
        "mean_gain": np.rint(np.exp(rate["mean_log_gain"]) * 2**GAIN_BITS).astype(np.int32),
    }


def rows_of_channels(rate: dict[str, np.ndarray]) -> np.ndarray:
    """The table row of each channel of a z whose prior is fixed, int32 [256, Z], from the functions of the rate."""
    row = np.rint((np.maximum(rate["z_log_sigma"], np.log(SIGMA_MIN)) - np.log(SIGMA_MIN)) * ROWS_PER_NAT)
    return np.clip(row, 0, SCALE_ROWS - 1).astype(np.int32)


def fixed_prior_of_z(mean: np.ndarray, row: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Integer means int64 [Z, 1, 1] and table rows uint16 [Z * h * w] of z, from those of each channel, [Z]."""
    return mean[:, None, None], np.repeat(row.astype(np.uint16), shape[0] * shape[1])


@dataclass(frozen=True)
class RateTables:
    """Integers of every rate index from the lowest on, [256 or more, channels]: see `Model` for their use."""

    z_mean: np.ndarray
    z_inverse_gain: np.ndarray
    mean_gain: np.ndarray
    scale_offset: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: np.ndarray) -> RateTables:
        """From the functions of the rate, float64 [256 or more, channels], and the integers `more` of a subclass."""
        offset = np.rint((rate["scale_offset"] - np.log(SIGMA_MIN)) * 2**FRACTION_BITS).astype(np.int32)
        return cls(**gains_and_means(rate), scale_offset=offset, **more)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """ "rates.NAME" for a weights file."""
        return {f"rates.{k}": v for k, v in vars(self).items()}


def functions_of_rate(
    at_rate: Callable[[torch.Tensor], dict[str, torch.Tensor]], lowest_index: int = 0
) -> dict[str, np.ndarray]:
    """A network's functions of the rate, at_rate of it on the CPU, at every rate index from the lowest on, float64
    [256 - lowest_index, channels]."""
    with torch.no_grad():
        rate = at_rate(torch.arange(lowest_index, RATES) / (RATES - 1))
    return {k: v[:, :, 0, 0].double().numpy() for k, v in rate.items()}


class Model:
    """Networks, integer network, frozen tables, ready to code on a device. autocast runs synthesis in bf16.

    encodes_in_bf16: whether an encoder may see in bf16 what it searches by or looks for details in, not what it
    analyses: smooth pictures would cost a percent more. Nothing is decoded by what it sees. metric: what the networks
    were trained for, one of `rates.METRICS`.
    A subclass names the classes of its network, configuration and rate tables, and which of its networks run as floats.
    """

    network_class: type
    config_class: type
    rates_class: type[RateTables]

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = self.network_class(config_from(self.config_class, weights.config))
            load_floats(self.network, tensors, self.runs_as_floats)
            self.nets = integer_nets(tensors)
            self.hyper = self.nets["hyper"]
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            rates = {name: every_rate(table, self.lowest_index) for name, table in part(tensors, "rates.").items()}
            self.rates = self.rates_class(**rates)
            self.load_more(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not hyperprior weights: {error}") from None
        self.weights_id, self.metric = weights.id, trained_for(weights.config)
        self.device, self.autocast = torch.device(device), autocast
        self.encodes_in_bf16 = bf16_is_fast(self.device)
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)

    @staticmethod
    def runs_as_floats(name: str) -> bool:
        """What decides bits runs in integers only; the float functions of the rate that the encoder needs stay."""
        return not name.startswith("h_s.")

    @property
    def lowest_index(self) -> int:
        """The rate index of the smallest files."""
        return getattr(self.network.config, "lowest_index", 0)

    def load_more(self, tensors: dict[str, np.ndarray]) -> None:
        """What a subclass needs besides."""

    def halo(self) -> int:
        """How far the transforms reach beyond a strip, latents: 30 px."""
        return 2

    def first_row(self, number: int) -> int:
        """The table row of the smallest scale of one of the prices of `transmit`, by its number."""
        return 0

    def transmit(self, latents: tuple[torch.Tensor, ...], rate, functions: dict, quantise, autocast: bool, x):
        """(picture, prices) of the network's `transmit`; rate: the rate index; functions: what `at_rate` says of it;
        x: the picture to be sent, float32 [1, 3, H, W]."""
        return self.network.transmit(*latents, functions, quantise, autocast)

    def at_rate(self, rate_index: int) -> dict[str, torch.Tensor]:
        """The network's functions of the rate, float32 [1, C, 1, 1]."""
        return self.network.at_rate(torch.tensor([rate_index / (RATES - 1)], device=self.device))

    def least_bits(self, rows: np.ndarray) -> np.ndarray:
        """The bits that a symbol of each of these table rows costs at least."""
        return np.minimum.reduceat(self.tables.bits, self.tables.offsets[:-1])[rows]


def dequantised(symbols: np.ndarray, means: np.ndarray | int, gains: np.ndarray, gain_bits: int) -> np.ndarray:
    """What a network sees of symbols, int32, and their means (MEAN_BITS), both in steps: int64 (FRACTION_BITS).

    gains: of each channel, with gain_bits + FRACTION_BITS - MEAN_BITS bits after the point. Law 1: integers only.
    """
    values = symbols.astype(np.int64)
    values <<= MEAN_BITS
    values += means
    # Beyond this no trained latent goes; it keeps products within int64 whatever a file says.
    np.clip(values, -(2**30), 2**30, out=values)
    values *= gains
    return shift_round(values, gain_bits)


def leaky_relu(h: np.ndarray) -> np.ndarray:
    """The activation between the networks of contexts and of details, of int64 (FRACTION_BITS)."""
    sloped = shift_round(h, SLOPE_BITS)
    return np.maximum(h, sloped, out=sloped)


def means_of(mean: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Means in 2**-MEAN_BITS steps, int32, from a network's output int64 (FRACTION_BITS) and gains (GAIN_BITS)."""
    fixed = shift_round(mean * gain, FRACTION_BITS + GAIN_BITS - MEAN_BITS)
    return np.clip(fixed, -(2**24), 2**24, out=fixed).astype(np.int32)


def rows_of(log_scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Table rows, uint16, of log scales int64 and their offsets (FRACTION_BITS): (l + o) * ROWS_PER_NAT, rounded."""
    place = log_scale + offset
    place *= ROWS_PER_NAT_FIXED
    place = shift_round(place, FRACTION_BITS + 12)
    return np.clip(place, 0, SCALE_ROWS - 1, out=place).astype(np.uint16)


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray, **rate) -> Latents:
    """Run g_a and h_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate, or the one that is given
    as the network's `analysis` takes it."""
    analysis = partial(model.network.analysis, **rate)
    y = in_strips(analysis, to_tensor(image, model.device), IMAGE_STRIDE, 1, model.halo())
    z = model.network.hyper_analysis(replicate(y, HYPER_STRIDE))
    return Latents(y[0], z[0], image)


def soft(model: Model, rate, **more) -> tuple[search.Transmit, tuple[torch.Tensor, ...]]:
    """What `search.refine` needs: latents to (picture, bits), differentiable, and the gains of y and z; rate: the rate
    index, or what the model's `at_rate` takes in its place; more: for the model's `transmit`."""
    model.network.load_state_dict(floats_of_integers(model.nets), strict=False)
    functions, autocast = model.at_rate(rate), model.encodes_in_bf16
    priced = pricing.prices_of_rows(model.tables, model.device)

    def transmit(now: tuple[torch.Tensor, ...], quantise, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_hat, prices = model.transmit(now, rate, functions, quantise, autocast, x, **more)
        bits = x_hat.new_zeros(())
        for number, (_, symbols, sigma) in enumerate(prices):
            first = model.first_row(number)
            bits = bits + pricing.soft_bits(symbols, place_of(sigma), priced[first : first + SCALE_ROWS]).sum()
        return x_hat, bits

    return transmit, (functions["y_log_gain"].exp(), functions["z_log_gain"].exp())


def settled(model: Model, coded: Coded, latents: Latents) -> tuple[torch.Tensor, ...]:
    """y as it was coded, float32 [C, h, w] in steps, of symbols and means of that shape."""
    return (values(coded.symbols, coded.means),)


def values(symbols: np.ndarray, means: np.ndarray) -> torch.Tensor:
    """What symbols and means, int32 of one shape, stand for, float32 in steps."""
    return torch.from_numpy(symbols).float() + torch.from_numpy(means) * 2.0**-MEAN_BITS
