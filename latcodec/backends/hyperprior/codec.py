"""The hyperprior codec: network, integers, bytes.

One stream: the symbols of z, then those of y, both coded with the logistic tables; the row of each is computed in
integers. Fixed point: see `fixed_point.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.checks import check_single_stream, check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import (
    INVERSE_BITS,
    MEAN_BITS,
    bounded,
    dequantise,
    fixed_point_means,
    latents_in_steps,
    round_to_int32,
    table_index_of_scale,
)
from latcodec.backends.common.mean_scale import (
    Latents,
    MeanScaleCoded,
    MeanScaleModel,
    MeanScaleRelaxedRD,
    analyse,
    sigmas,
)
from latcodec.backends.common.pixels import latent_shapes, to_image
from latcodec.backends.common.rate_tables import (
    RATES,
    fixed_prior_of_z,
    rate_params_of_every_index,
    table_index_of_channels,
)
from latcodec.backends.common.rate_tables import RateTables as HyperRateTables
from latcodec.backends.common.rdoq import rdoq
from latcodec.backends.common.search import Options, SearchingCodec, UserOptions, encode_with_search
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.common.weights_parts import floats_to_arrays, stored_config
from latcodec.backends.hyperprior.network import Config, Hyperprior
from latcodec.container import Payload
from latcodec.entropy.integer_net import quantise
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import Tables
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles
from latcodec.weights import Weights

__all__ = ["RATES", "Codec", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "shown", "sigmas", "stored_config", "synthesise"]  # fmt: skip


@dataclass(frozen=True)
class RateTables(HyperRateTables):
    """z_row: the table row of each channel of z."""

    z_row: np.ndarray

    @classmethod
    def of(cls, rate: dict[str, np.ndarray], **more: np.ndarray) -> RateTables:
        """See `hyper.RateTables.of`."""
        return super().of(rate, z_row=table_index_of_channels(rate), **more)


class Model(MeanScaleModel):
    """Networks, integer network, frozen tables of the hyperprior codec; see `MeanScaleModel`."""

    network_class, config_class, rates_class = Hyperprior, Config, RateTables

    def prior_of_z(self, rate_index: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Integer means int64 [Z, 1, 1] and table rows uint16 [Z * h * w] of z."""
        return fixed_prior_of_z(self.rates.z_mean[rate_index], self.rates.z_row[rate_index], shape)

    def least_bits_of_z(self, rate_index: int, shape: tuple[int, int]) -> float:
        """The bits that z costs at least; shape (h, w) of z."""
        return self.least_bits(self.rates.z_row[rate_index]).sum() * shape[0] * shape[1]

    def hyper_synthesis(self, z_symbols: np.ndarray, rate_index: int) -> np.ndarray:
        """Means and log scales, int64 [2 C, 4 h', 4 w'], from z's symbols int32 [Z, h', w']. Law 1: integers only."""
        mean, inverse_gain = (v[rate_index][:, None, None] for v in (self.rates.z_mean, self.rates.z_inverse_gain))
        return self.hyper(dequantise(z_symbols, mean, inverse_gain, INVERSE_BITS))

    def prior_of_y(
        self, z_symbols: np.ndarray, rate_index: int, shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Integer means int32 [C, h, w] and table rows uint16 [C * h * w] of y, from z's symbols int32 [Z, h', w'].

        Law 1: integers only. mean = m * gain; row = (l + offset - log SIGMA_MIN) * SCALES_PER_NAT, rounded.
        """
        out = self.hyper_synthesis(z_symbols, rate_index)[:, : shape[0], : shape[1]]
        mean, log_scale = out[: len(out) // 2], out[len(out) // 2 :]
        gain, offset = (v[rate_index][:, None, None] for v in (self.rates.mean_gain, self.rates.scale_offset))
        return fixed_point_means(mean, gain), table_index_of_scale(log_scale, offset).ravel()


def code(model: Model, latents: Latents, options: Options) -> MeanScaleCoded:
    """Quantise and entropy-code latents at one rate, with the effort that the options say."""
    return encode_with_search(HyperpriorSearch(model, latents, options), options)


@dataclass(frozen=True)
class HyperpriorSearch:
    """One picture at one rate, as the search sees it; see `search.SearchProblem`."""

    model: Model
    latents: Latents
    options: Options

    @property
    def metric(self) -> str:
        """The distortion that the weights were trained for."""
        return self.model.metric

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self.model.device

    def encode(self, latents: Latents, distortion_multiplier: float) -> MeanScaleCoded:
        """Quantise and entropy-code latents."""
        return encode_latents(self.model, latents, self.options.rate_index, distortion_multiplier)

    def verify(self, coded: MeanScaleCoded) -> bool:
        """Return whether the stream decodes to the integers that the encoder coded."""
        integers = decode_integers(
            self.model, coded.streams[0], self.options.rate_index, tuple(self.latents.y.shape[1:])
        )
        return crc_of(*integers) == coded.integers_crc

    def reconstruct(self, coded: MeanScaleCoded) -> np.ndarray:
        """Return the picture that a decoder shows."""
        image = self.latents.image
        return shown(self.model, coded, self.options.rate_index, image.shape[:2], self.options.gray, 8 * image.itemsize)

    def relaxed_rd(self, coded: MeanScaleCoded) -> MeanScaleRelaxedRD:
        """Return the codec with a relaxed quantiser."""
        return MeanScaleRelaxedRD(self.model, self.options.rate_index)

    def dequantised_start(self, coded: MeanScaleCoded) -> tuple[torch.Tensor, ...]:
        """Return y as it was coded; z is always the nearest integers."""
        return (latents_in_steps(coded.symbols, coded.means),)


@torch.inference_mode()
def encode_latents(
    model: Model, latents: Latents, rate_index: int, distortion_multiplier: float = 0.0
) -> MeanScaleCoded:
    """Quantise and entropy-code latents at one rate.

    Args:
        model: Networks and tables.
        latents: y and z of the picture.
        rate_index: 0..255.
        distortion_multiplier: That of `rdoq` for y; 0 for the nearest integers. z is always the nearest integers.
    """
    start, index = time.perf_counter(), rate_index
    rate = {k: v[0].cpu() for k, v in model.at_rate(index).items()}
    z_mean, z_rows = model.prior_of_z(index, latents.z.shape[1:])
    z_symbols = round_to_int32(latents.z.cpu() * rate["z_log_gain"].exp() - torch.from_numpy(z_mean / 2.0**MEAN_BITS))
    means, y_rows = model.prior_of_y(z_symbols, index, latents.y.shape[1:])
    networks = time.perf_counter()
    residual = latents.y.cpu() * rate["y_log_gain"].exp() - torch.from_numpy(means).float() * 2.0**-MEAN_BITS
    y_symbols = round_to_int32(residual)
    if distortion_multiplier:
        flat = bounded(residual).numpy().ravel()
        y_symbols = rdoq(flat, y_rows, model.tables, distortion_multiplier).reshape(y_symbols.shape)
    encoder = RangeEncoder(model.tables)
    encoder.encode(z_symbols.ravel(), z_rows)
    encoder.encode(y_symbols.ravel(), y_rows)
    stream = encoder.finish()
    crc = crc_of(z_symbols, y_symbols, means, y_rows)
    coded = time.perf_counter()
    seconds = {"hyper": networks - start, "entropy": coded - networks}
    return MeanScaleCoded((stream,), crc, encoder.bits, y_symbols, means, y_rows, seconds)


def shown(
    model: Model, coded: MeanScaleCoded, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """What a decoder shows of a picture just coded, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    return synthesise(model, coded.symbols, coded.means, rate_index, size, gray, depth)


encode = timed_encode(analyse, code)


def decode_integers(model: Model, stream: bytes, rate_index: int, shape: tuple[int, int]):
    """Symbols of z and y, means and rows; shape is (h, w) of y."""
    h, w = (-(-side // HYPER_STRIDE) for side in shape)
    decoder = RangeDecoder(stream, model.tables)
    _, z_rows = model.prior_of_z(rate_index, (h, w))
    z_symbols = decoder.decode(z_rows).reshape(-1, h, w)
    means, y_rows = model.prior_of_y(z_symbols, rate_index, shape)
    y_symbols = decoder.decode(y_rows).reshape(means.shape)
    decoder.finish()
    return z_symbols, y_symbols, means, y_rows


@torch.inference_mode()
def synthesise(
    model: Model, symbols: np.ndarray, means: np.ndarray, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Latents of one rate, int32 [C, h, w] both, to an image, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    inverse = model.at_rate(rate_index)["y_log_inverse_gain"].exp()
    y = (latents_in_steps(symbols, means).to(model.device)[None] * inverse).contiguous(
        memory_format=torch.channels_last
    )
    x = run_in_tiles(lambda some: model.network.synthesis(some, model.autocast), y, 1, IMAGE_STRIDE, model.halo())
    return to_image(x, size, gray, depth)


def decode(model: Model, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3].

    Raises DriftError if the integers differ from the encoder's, FormatError if the file has not the one stream this
    codec writes.
    """
    check_single_stream(payload, "hyperprior")
    shape, z_shape = latent_shapes(payload.width, payload.height)
    check_stream_length(payload, model.least_bits_of_z(payload.rate_index, z_shape))
    _, y, means, _ = decode_checked(
        lambda: decode_integers(model, payload.streams[0], payload.rate_index, shape),
        payload, lambda found: crc_of(*found),
    )  # fmt: skip
    size = (payload.height, payload.width)
    return synthesise(model, y, means, payload.rate_index, size, payload.gray, payload.depth)


def export(network: Hyperprior, tables: Tables) -> dict[str, np.ndarray]:
    """Everything a weights file holds: float16 networks, the integer network, frozen tables, integers of each rate."""
    tensors = floats_to_arrays(network, Model.runs_as_floats)
    tensors |= RateTables.of(rate_params_of_every_index(network.cpu().at_rate)).to_arrays()
    tensors |= {f"hyper.{k}": v for k, v in quantise(network.h_s.cpu()).to_arrays().items()}
    tensors |= {"tables.weights": tables.weights, "tables.offsets": tables.offsets, "tables.minimums": tables.minimums}
    return tensors


class Codec(SearchingCodec):
    """The hyperprior codec as the rest of latcodec sees it."""

    def load_model(self, weights: Weights, device: str) -> Model:
        """Return the model of a weights file on a device; raises WeightsError."""
        return Model(weights, device)

    def analyse(self, model: Model, image: np.ndarray) -> Latents:
        """Return the latents of an image, uint8 or uint16 [H, W, 3]."""
        return analyse(model, image)

    def code(self, model: Model, latents: Latents, options: UserOptions, request: EncodeRequest) -> MeanScaleCoded:
        """Quantise and entropy-code latents at the requested rate; raises DriftError."""
        return code(model, latents, Options(**vars(request), **vars(options)))

    def decode(self, model: Model, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
        """Decode a file to an image, uint8 or uint16 [H, W, 3]; raises FormatError or DriftError."""
        return decode(model, payload)
