"""The NC-VAE codec: a picture to one stream of bytes, and back; no network decides a bit.

    encode    analyse -> quantise_and_encode -> verify        a picture to a stream
    decode    decode_integers -> synthesise                   a stream to a picture

The stream has the symbols in the order of `contexts.py`, coded with tables that follow the picture (`adaptive.py`).
Contexts, predictions and tables are integers; those of each rate index are part of the weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.checks import check_single_stream, check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import bounded
from latcodec.backends.common.pixels import latent_shapes, to_image, to_tensor
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.rdoq import rdoq
from latcodec.backends.common.search import Options, SearchingCodec, UserOptions, encode_with_search
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.nc_vae.adaptive import Step, StepDecoder, StepEncoder, SymbolEncoder, run_entropy_model
from latcodec.backends.nc_vae.contexts import MEAN_BITS
from latcodec.backends.nc_vae.model import Model, NCVAERelaxedRD, export
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import Tables
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.tiling import run_in_tiles
from latcodec.weights import Weights

__all__ = ["RATES", "Codec", "Coded", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "quantise_and_encode", "shown", "stored_config", "synthesise"]  # fmt: skip

_HALO = 4  # in latents: the residual blocks reach further than the strided layers


@dataclass(frozen=True)
class Latents:
    """The latents of one picture, which serve every rate.

    Attributes:
        y: float32 [C, h, w].
        image: The picture, uint8 or uint16 [H, W, 3]; None if it is not known.
    """

    y: torch.Tensor
    image: np.ndarray | None = None


@dataclass(frozen=True)
class Coded:
    """The encoder's result.

    Attributes:
        streams: The streams of the file.
        integers_crc: The CRC-32 of every integer that the decoder derives.
        estimated_bits: The ideal code length by the tables.
        symbols: int32 [C, h, w].
        means: Those of the first P channels, int32 [P, h, w] (MEAN_BITS).
        seconds: The time that each stage took.
        parameters: The parameters section of the file; None for no such section.
        details: What else the codec reports about this encode.
    """

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    symbols: np.ndarray
    means: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray) -> Latents:
    """Run g_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate."""
    y = run_in_tiles(model.network.analysis, to_tensor(image, model.device), IMAGE_STRIDE, 1, _HALO)
    return Latents(y[0], image)


def code(model: Model, latents: Latents, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate, with the effort of the options; raises DriftError."""
    return encode_with_search(NCVAESearch(model, latents, options), options)


encode = timed_encode(analyse, code)


def encode_latents(model: Model, latents: Latents, rate_index: int, distortion_multiplier: float = 0.0) -> Coded:
    """Quantise and entropy-code latents at one rate.

    Args:
        model: Networks, contexts, tables.
        latents: y of the picture.
        rate_index: 0..255.
        distortion_multiplier: That of `rdoq`; 0 for the nearest integers.
    """
    start = time.perf_counter()
    encoder = RangeEncoder(model.tables)
    symbols, means = quantise_and_encode(model, latents, rate_index, encoder, distortion_multiplier)
    stream = encoder.finish()
    seconds = {"entropy": time.perf_counter() - start}
    return Coded((stream,), crc_of(symbols, means), encoder.bits, symbols, means, seconds)


@torch.inference_mode()
def quantise_and_encode(
    model: Model,
    latents: Latents,
    rate_index: int,
    encoder: SymbolEncoder,
    distortion_multiplier: float = 0.0,
    adaptive: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Quantise latents and put them into an encoder.

    Args:
        model: Networks, contexts, tables.
        latents: y of the picture.
        rate_index: 0..255.
        encoder: Gets the symbols.
        distortion_multiplier: That of `rdoq`; 0 for the nearest integers.
        adaptive: That of `run_entropy_model`.

    Returns:
        Symbols and means, as of `run_entropy_model`.
    """
    gain = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))["gain"][0].cpu()
    # NaN and infinities of a strange picture must not reach the coder as undefined integers.
    scaled = bounded(latents.y.cpu() * gain).numpy()
    quantiser = LatentQuantiser(scaled, model.tables, distortion_multiplier)
    coder = StepEncoder(encoder, quantiser)
    return run_entropy_model(model.contexts, model.tables, rate_index, scaled.shape[1:], coder, adaptive)


@dataclass(frozen=True)
class LatentQuantiser:
    """Quantises the latents of each step; see `adaptive.StepQuantiser`.

    Attributes:
        scaled: Latents float32 [C, h, w], in steps of the quantiser.
        tables: The frozen tables, by which `rdoq` knows bits.
        distortion_multiplier: That of `rdoq`; 0 for the nearest integers.
    """

    scaled: np.ndarray
    tables: Tables
    distortion_multiplier: float

    def quantise(self, step: Step) -> np.ndarray:
        """Return the symbols of a step, int32 [c, n]."""
        values = step.gather(self.scaled)
        if not self.distortion_multiplier:
            return np.rint(values).astype(np.int32)
        residual = step.sign * (values - step.centre)
        symbols = rdoq(residual.ravel(), step.table_index.ravel(), self.tables, self.distortion_multiplier)
        return step.sign * symbols.reshape(residual.shape) + step.centre


@dataclass(frozen=True)
class NCVAESearch:
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

    def encode(self, latents: Latents, distortion_multiplier: float) -> Coded:
        """Quantise and entropy-code latents."""
        return encode_latents(self.model, latents, self.options.rate_index, distortion_multiplier)

    def verify(self, coded: Coded) -> bool:
        """Return whether the stream decodes to the integers that the encoder coded."""
        shape = tuple(self.latents.y.shape[1:])
        integers = decode_integers(self.model, coded.streams[0], self.options.rate_index, shape)
        return crc_of(*integers) == coded.integers_crc

    def reconstruct(self, coded: Coded) -> np.ndarray:
        """Return the picture that a decoder shows."""
        image = self.latents.image
        return shown(self.model, coded, self.options.rate_index, image.shape[:2], self.options.gray, 8 * image.itemsize)

    def relaxed_rd(self, coded: Coded) -> NCVAERelaxedRD:
        """Return the codec with a relaxed quantiser."""
        return NCVAERelaxedRD(self.model, self.options.rate_index)

    def dequantised_start(self, coded: Coded) -> tuple[torch.Tensor, ...]:
        """Return y as it was coded."""
        return (torch.from_numpy(coded.symbols).float(),)


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
    check_single_stream(payload, "nc-vae")
    shape, _ = latent_shapes(payload.width, payload.height)
    check_stream_length(payload, model.least_bits[payload.rate_index] * shape[0] * shape[1])
    run = partial(decode_integers, model, payload.streams[0], payload.rate_index, shape)
    symbols, means = decode_checked(run, payload, lambda integers: crc_of(*integers))
    size = (payload.height, payload.width)
    return synthesise(model, symbols, means, payload.rate_index, size, payload.gray, payload.depth)


def decode_integers(
    model: Model, stream: bytes, rate_index: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode symbols int32 [C, h, w] and means int32 [P, h, w]; shape is (h, w). Raises FormatError for damage."""
    decoder = RangeDecoder(stream, model.tables)
    symbols, means = run_entropy_model(model.contexts, model.tables, rate_index, shape, StepDecoder(decoder))
    decoder.finish()
    return symbols, means


@torch.inference_mode()
def synthesise(
    model: Model, symbols: np.ndarray, means: np.ndarray, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Synthesise the picture of symbols and means.

    Args:
        model: Networks.
        symbols: int32 [C, h, w].
        means: int32 [P, h, w] (MEAN_BITS).
        rate_index: 0..255.
        size: (height, width) of the picture, px.
        gray: Whether the three channels are averaged.
        depth: Bits a sample, 8 or 16.

    Returns:
        uint8 or uint16 [H, W, 3].
    """
    rate = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))
    q = torch.from_numpy(symbols).to(model.device).float()
    to_mean = -q
    to_mean[: len(means)] += torch.from_numpy(means).to(model.device) * 2.0**-MEAN_BITS
    y = (q[None] + rate["recentre"] * to_mean.clamp_(-0.5, 0.5)) * rate["inverse_gain"]
    y = y.contiguous(memory_format=torch.channels_last)
    synthesis = partial(model.network.synthesis, autocast=model.autocast)
    return to_image(run_in_tiles(synthesis, y, 1, IMAGE_STRIDE, _HALO), size, gray, depth)


def shown(model: Model, coded: Coded, rate_index: int, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """Return what a decoder shows of a picture just coded; see `synthesise`."""
    return synthesise(model, coded.symbols, coded.means, rate_index, size, gray, depth)


class Codec(SearchingCodec):
    """The nc-vae codec as the rest of latcodec sees it."""

    def load_model(self, weights: Weights, device: str) -> Model:
        """Return the model of a weights file on a device; raises WeightsError."""
        return Model(weights, device)

    def analyse(self, model: Model, image: np.ndarray) -> Latents:
        """Return the latents of an image, uint8 or uint16 [H, W, 3]."""
        return analyse(model, image)

    def code(self, model: Model, latents: Latents, options: UserOptions, request: EncodeRequest) -> Coded:
        """Quantise and entropy-code latents at the requested rate; raises DriftError."""
        return code(model, latents, Options(**vars(request), **vars(options)))

    def decode(self, model: Model, payload: Payload, ignore_checksum: bool = False) -> np.ndarray:
        """Decode a file to an image, uint8 or uint16 [H, W, 3]; raises FormatError or DriftError."""
        return decode(model, payload)
