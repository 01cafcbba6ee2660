"""What the two hyperprior codecs share: options, results, the integers of each rate, analysis; vbq has the same fixed
point, rows and z, so that a change of those breaks its files too.

Fixed point: means have MEAN_BITS bits after the point, in units of the quantiser's step; table rows are evenly spaced
in the logarithm of the standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from latcodec.backends.common.fixed_point import SCALE_ROWS
from latcodec.backends.common.pixels import pad_to_multiple, to_tensor
from latcodec.backends.common.rate_tables import RATES, RateTables, interpolate_rates
from latcodec.backends.common.rdoq import bits_of_tables, relaxed_bits
from latcodec.backends.common.sga import Quantise
from latcodec.backends.common.weights_parts import (
    config_from,
    floats_of_integers,
    integer_nets,
    load_floats,
    with_prefix,
)
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.symbol_costs import SIGMA_MAX, SIGMA_MIN, table_position
from latcodec.nn.tiling import run_in_tiles
from latcodec.runtime import bf16_is_fast
from latcodec.weights import Weights, trained_for


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
class MeanScaleCoded:
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


class MeanScaleModel:
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
            rates = with_prefix(tensors, "rates.")
            self.rates = self.rates_class(**{k: interpolate_rates(v, self.lowest_index) for k, v in rates.items()})
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


@torch.inference_mode()
def analyse(model: MeanScaleModel, image: np.ndarray, **rate) -> Latents:
    """Run g_a and h_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate, or the one that is given
    as the network's `analysis` takes it."""
    analysis = partial(model.network.analysis, **rate)
    y = run_in_tiles(analysis, to_tensor(image, model.device), IMAGE_STRIDE, 1, model.halo())
    z = model.network.hyper_analysis(pad_to_multiple(y, HYPER_STRIDE))
    return Latents(y[0], z[0], image)


class MeanScaleRelaxedRD:
    """A hyperprior codec at one rate with a relaxed quantiser; see `sga.RelaxedRD`.

    Args:
        model: Networks and tables; the float weights of its integer networks are put into its network.
        rate: The rate index, or what the model's `at_rate` takes in its place.
        more: Further arguments of the model's `transmit`.
    """

    def __init__(self, model: MeanScaleModel, rate: Any, **more: Any):
        model.network.load_state_dict(floats_of_integers(model.nets), strict=False)
        self._model, self._rate, self._more = model, rate, more
        self._rate_params = model.at_rate(rate)
        self._table_bits = bits_of_tables(model.tables, model.device)
        self.gains = self._rate_params["y_log_gain"].exp(), self._rate_params["z_log_gain"].exp()

    def transmit(
        self, latents: tuple[torch.Tensor, ...], quantise: Quantise, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_hat and bits of y and z, see `sga.RelaxedRD`."""
        model = self._model
        x_hat, residuals = model.transmit(
            latents, self._rate, self._rate_params, quantise, model.encodes_in_bf16, x, **self._more
        )
        bits = x_hat.new_zeros(())
        for number, (_, symbols, sigma) in enumerate(residuals):
            first = model.first_row(number)
            table_bits = self._table_bits[first : first + SCALE_ROWS]
            bits = bits + relaxed_bits(symbols, table_position(sigma), table_bits).sum()
        return x_hat, bits
