"""The hyperprior codec: a picture to one stream of bytes, and back.

    encode    analyse -> encode_latents, with an effort a search -> verify        a picture to a stream
    decode    decode_integers -> synthesise                                       a stream to a picture

The stream has the symbols of z, then those of y. The table of each symbol is computed in integers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.checks import check_single_stream, check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import MEAN_BITS, bounded, latents_in_steps, round_to_int32
from latcodec.backends.common.mean_scale import Latents, MeanScaleCoded, MeanScaleRelaxedRD, analyse, sigmas
from latcodec.backends.common.pixels import latent_shapes, to_image
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.rdoq import rdoq
from latcodec.backends.common.search import Options, SearchingCodec, UserOptions, encode_with_search
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.hyperprior.model import Model, export
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.nn.geometry import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles
from latcodec.weights import Weights

__all__ = ["RATES", "Codec", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "shown", "sigmas", "stored_config", "synthesise"]  # fmt: skip


def code(model: Model, latents: Latents, options: Options) -> MeanScaleCoded:
    """Quantise and entropy-code latents at one rate, with the effort of the options; raises DriftError."""
    return encode_with_search(HyperpriorSearch(model, latents, options), options)


encode = timed_encode(analyse, code)


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
    start = time.perf_counter()
    gains = {k: v[0].cpu().exp() for k, v in model.at_rate(rate_index).items() if k in ("y_log_gain", "z_log_gain")}
    z_mean, z_table_index = model.prior_of_z(rate_index, latents.z.shape[1:])
    z_residual = latents.z.cpu() * gains["z_log_gain"] - torch.from_numpy(z_mean / 2.0**MEAN_BITS)
    z_symbols = round_to_int32(z_residual)
    means, table_index = model.prior_of_y(z_symbols, rate_index, latents.y.shape[1:])
    networks_end = time.perf_counter()
    residual = latents.y.cpu() * gains["y_log_gain"] - torch.from_numpy(means).float() * 2.0**-MEAN_BITS
    symbols = round_to_int32(residual)
    if distortion_multiplier:
        flat = bounded(residual).numpy().ravel()
        symbols = rdoq(flat, table_index, model.tables, distortion_multiplier).reshape(symbols.shape)
    encoder = RangeEncoder(model.tables)
    encoder.encode(z_symbols.ravel(), z_table_index)
    encoder.encode(symbols.ravel(), table_index)
    stream = encoder.finish()
    crc = CodedIntegers(z_symbols, symbols, means, table_index).crc()
    seconds = {"hyper": networks_end - start, "entropy": time.perf_counter() - networks_end}
    return MeanScaleCoded((stream,), crc, encoder.bits, symbols, means, table_index, seconds)


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
        shape = tuple(self.latents.y.shape[1:])
        integers = decode_integers(self.model, coded.streams[0], self.options.rate_index, shape)
        return integers.crc() == coded.integers_crc

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


def decode(model: Model, payload: Payload) -> np.ndarray:
    """Decode a file.

    Args:
        model: The model of the file's weights.
        payload: The file.

    Returns:
        uint8 or uint16 [H, W, 3].

    Raises:
        FormatError: The file has not the one stream that this codec writes, or the stream is too short.
        DriftError: The integers differ from the encoder's.
    """
    check_single_stream(payload, "hyperprior")
    shape, z_shape = latent_shapes(payload.width, payload.height)
    check_stream_length(payload, model.least_bits_of_z(payload.rate_index, z_shape))
    run = partial(decode_integers, model, payload.streams[0], payload.rate_index, shape)
    integers = decode_checked(run, payload, CodedIntegers.crc)
    size = (payload.height, payload.width)
    return synthesise(model, integers.symbols, integers.means, payload.rate_index, size, payload.gray, payload.depth)


@dataclass(frozen=True)
class CodedIntegers:
    """The integers of a picture.

    Attributes:
        z_symbols: int32 [Z, h', w'].
        symbols: Those of y, int32 [C, h, w].
        means: Those of y, int32 [C, h, w] (MEAN_BITS).
        table_index: Those of y, uint16 [C * h * w].
    """

    z_symbols: np.ndarray
    symbols: np.ndarray
    means: np.ndarray
    table_index: np.ndarray

    def crc(self) -> int:
        """Return the CRC that the file has of the integers."""
        return crc_of(self.z_symbols, self.symbols, self.means, self.table_index)


def decode_integers(model: Model, stream: bytes, rate_index: int, shape: tuple[int, int]) -> CodedIntegers:
    """Decode the integers of a stream; shape is (h, w) of y. Raises FormatError for a damaged stream."""
    h, w = (-(-side // HYPER_STRIDE) for side in shape)
    decoder = RangeDecoder(stream, model.tables)
    _, z_table_index = model.prior_of_z(rate_index, (h, w))
    z_symbols = decoder.decode(z_table_index).reshape(-1, h, w)
    means, table_index = model.prior_of_y(z_symbols, rate_index, shape)
    symbols = decoder.decode(table_index).reshape(means.shape)
    decoder.finish()
    return CodedIntegers(z_symbols, symbols, means, table_index)


@torch.inference_mode()
def synthesise(
    model: Model, symbols: np.ndarray, means: np.ndarray, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Synthesise the picture of symbols and means of y.

    Args:
        model: Networks and tables.
        symbols: int32 [C, h, w].
        means: int32 [C, h, w] (MEAN_BITS).
        rate_index: 0..255.
        size: (height, width) of the picture, px.
        gray: Whether the three channels are averaged.
        depth: Bits a sample, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, 3].
    """
    inverse_gain = model.at_rate(rate_index)["y_log_inverse_gain"].exp()
    y = latents_in_steps(symbols, means).to(model.device)[None] * inverse_gain
    y = y.contiguous(memory_format=torch.channels_last)
    synthesis = partial(model.network.synthesis, autocast=model.autocast)
    return to_image(run_in_tiles(synthesis, y, 1, IMAGE_STRIDE, model.halo()), size, gray, depth)


def shown(
    model: Model, coded: MeanScaleCoded, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Return what a decoder shows of a picture just coded; see `synthesise`."""
    return synthesise(model, coded.symbols, coded.means, rate_index, size, gray, depth)


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
