"""What the mean-scale hyperprior codecs share: model, latents, results, analysis, and the relaxed quantiser.

Fixed point: see `fixed_point.py`. Integers of each rate: see `rate_tables.py`.
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
    """Return the standard deviation of each table in steps, float64 [SCALE_ROWS], evenly spaced in the logarithm."""
    return np.geomspace(SIGMA_MIN, SIGMA_MAX, SCALE_ROWS)


@dataclass(frozen=True)
class Latents:
    """The latents of one picture, which serve every rate.

    Attributes:
        y: float32 [C, h, w].
        z: float32 [Z, ceil(h / 4), ceil(w / 4)].
        image: The picture, uint8 or uint16 [H, W, 3]; None if it is not known.
        seconds: The time that `at` took.
    """

    y: torch.Tensor
    z: torch.Tensor
    image: np.ndarray | None = None
    seconds: ClassVar[float] = 0.0

    def at(self, rate_index: int) -> Latents:
        """Return the latents of a rate index, which are these."""
        return self


@dataclass(frozen=True)
class MeanScaleCoded:
    """The encoder's result.

    Attributes:
        streams: The streams of the file.
        integers_crc: The CRC-32 of every integer that the decoder derives.
        estimated_bits: The ideal code length by the tables.
        symbols: Those of y, int32.
        means: Those of y, int32 (MEAN_BITS).
        rows: The table indices of y, uint16 [n].
        seconds: The time that each stage took.
        parameters: The parameters section of the file; None for no such section.
        details: What else the codec reports about this encode.
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
        """Return symbols int32 [n] and table indices uint16 [n] of y, which tables are fitted to."""
        return self.symbols.ravel(), self.rows


class MeanScaleModel:
    """Networks, integer networks and tables, ready to code on a device.

    A subclass names the classes of its network, configuration and rate tables, and which of its networks run as floats.

    Args:
        weights: A weights file.
        device: Where the networks run.
        autocast: Whether synthesis runs in bf16.

    Attributes:
        network: The float networks; an encoder that searches loads the integer networks into it as floats.
        nets: The integer networks, by name.
        hyper: The integer network of the hyper-synthesis.
        tables: The tables of all symbols.
        rates: The integers of every rate index.
        metric: The distortion that the weights were trained for, one of `rates.METRICS`.
        encodes_in_bf16: Whether an encoder may run the synthesis in bf16 where it only compares, as in a search. The
            analysis never does: smooth pictures would cost a percent more. Nothing is decoded from it.

    Raises:
        WeightsError: The weights are not those of this codec.
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
        """Return whether a state of that name is stored as floats; what decides bits runs in integers only."""
        return not name.startswith("h_s.")

    @property
    def lowest_index(self) -> int:
        """The rate index of the smallest files."""
        return getattr(self.network.config, "lowest_index", 0)

    def load_more(self, tensors: dict[str, np.ndarray]) -> None:
        """Load what a subclass needs besides; raises KeyError, ValueError or WeightsError."""

    def halo(self) -> int:
        """Return how far the transforms reach beyond a tile, in latents; here 30 px."""
        return 2

    def first_row(self, number: int) -> int:
        """Return the table index of the smallest scale of one of the residuals of `transmit`, by its number."""
        return 0

    def transmit(
        self,
        latents: tuple[torch.Tensor, ...],
        rate: Any,
        rate_params: dict[str, torch.Tensor],
        quantise: Quantise,
        autocast: bool,
        x: torch.Tensor,
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]]:
        """Return x_hat and residuals of the network's `transmit`.

        Args:
            latents: y and z, float32 [1, C, h, w].
            rate: What `at_rate` takes.
            rate_params: What `at_rate` returns.
            quantise: Maps residuals to symbols, or to values between them.
            autocast: Whether the synthesis runs in bf16.
            x: The picture to be sent, float32 [1, 3, H, W].
        """
        return self.network.transmit(*latents, rate_params, quantise, autocast)

    def at_rate(self, rate_index: int) -> dict[str, torch.Tensor]:
        """Return the network's functions of the rate, float32 [1, C, 1, 1]."""
        return self.network.at_rate(torch.tensor([rate_index / (RATES - 1)], device=self.device))

    def least_bits(self, table_index: np.ndarray) -> np.ndarray:
        """Return the bits that a symbol of each of these tables costs at least."""
        return np.minimum.reduceat(self.tables.bits, self.tables.offsets[:-1])[table_index]


@torch.inference_mode()
def analyse(model: MeanScaleModel, image: np.ndarray, **rate: Any) -> Latents:
    """Analyse a picture: run g_a and h_a.

    Args:
        model: The networks.
        image: uint8 or uint16 [H, W, 3].
        rate: The arguments of a rate-conditioned analysis; none where the latents serve every rate.
    """
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
