"""The NC-VAE codec: a picture to one stream of bytes, and back; no network decides a bit.

    encode    analyse -> quantise_and_encode -> verify        a picture to a stream
    decode    decode_integers -> synthesise                   a stream to a picture

The stream has the symbols in the order of `contexts.py`, coded with tables that follow the picture (`adaptive.py`).
Contexts, predictions and tables are integers; those of each rate index are part of the weights.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from latcodec.backends.base import EncodeRequest
from latcodec.backends.common.checks import check_single_stream, check_stream_length, crc_of, decode_checked
from latcodec.backends.common.fixed_point import bounded
from latcodec.backends.common.pixels import latent_shapes, to_image, to_tensor
from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.rdoq import rdoq
from latcodec.backends.common.search import Options, SearchingCodec, UserOptions, encode_with_search
from latcodec.backends.common.sga import Quantise
from latcodec.backends.common.timing import timed_encode
from latcodec.backends.common.weights_parts import config_from, floats_to_arrays, load_floats, stored_config
from latcodec.backends.nc_vae import contexts as ctx
from latcodec.backends.nc_vae.adaptive import Step, StepDecoder, StepEncoder, SymbolEncoder, run_entropy_model
from latcodec.backends.nc_vae.contexts import MEAN_BITS, Contexts
from latcodec.backends.nc_vae.network import NCVAE, PREDICTED, Config, groups_of
from latcodec.container import Payload
from latcodec.entropy.range_coder import RangeDecoder, RangeEncoder
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.geometry import IMAGE_STRIDE
from latcodec.nn.layers import logistic_bits
from latcodec.nn.tiling import run_in_tiles
from latcodec.runtime import bf16_is_fast
from latcodec.weights import Weights, trained_for

__all__ = ["RATES", "Codec", "Coded", "Latents", "Model", "Options", "analyse", "code", "decode", "encode", "export",
           "quantise_and_encode", "shown", "stored_config", "synthesise"]  # fmt: skip

_HALO = 4  # latents: the residual blocks reach further than the strided layers
_PARTS = ("groups", "scale", "mean", "own_scale", "own_mean", "unit", "inverse_unit", "floor", "slope", "bounds")


@dataclass(frozen=True)
class Latents:
    """What the network says of one picture at every rate: y float32 [C, h, w]; the picture."""

    y: torch.Tensor
    image: np.ndarray | None = None


@dataclass(frozen=True)
class Coded:
    """Encoder's result: streams and CRC for the file, and what a person may ask.

    estimated_bits is the tables' ideal code length; symbols int32 [C, h, w] and the means of the first P channels,
    int32 [P, h, w] (2**-MEAN_BITS steps), make the decoder's latents; seconds by stage.
    """

    streams: tuple[bytes, ...]
    integers_crc: int
    estimated_bits: float
    symbols: np.ndarray
    means: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    parameters: bytes | None = None
    details: dict[str, object] = field(default_factory=dict)


class Model:
    """Transforms, frozen contexts and tables, ready to code on a device. autocast runs synthesis in bf16."""

    lowest_index = 0

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = NCVAE(config_from(Config, weights.config))
            load_floats(self.network, tensors, _floats)
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            self.contexts = Contexts(**{name: tensors[f"contexts.{name}"] for name in _PARTS}, product=_product)
            if self.tables.num_tables != ctx.NUM_TABLES:
                raise WeightsError(f"{self.tables.num_tables} tables, {ctx.NUM_TABLES} are needed")
            if self.contexts.channels != self.network.config.latent:
                raise WeightsError(f"contexts of {self.contexts.channels} channels")
        except (KeyError, TypeError, ValueError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not nc-vae weights: {error}") from None
        self.weights_id, self.metric = weights.id, trained_for(weights.config)
        self.device, self.autocast = torch.device(device), autocast
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        # Rows never narrow: a neighbourhood only adds to the floor. So these bits a symbol of channel 0 costs at least.
        least = np.minimum.reduceat(self.tables.bits, self.tables.offsets[:-1])
        rows = ctx.table_index_of(np.arange(ctx.NUM_SCALES)[:, None], np.arange(ctx.FRACTIONS)[None])
        from_row = np.minimum.accumulate(least[rows].min(1)[::-1])[::-1]
        self.least_bits = from_row[np.searchsorted(self.contexts.bounds, self.contexts.floor[:, 0], side="right")]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of two float64 matrices, on torch's threads."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


@torch.inference_mode()
def analyse(model: Model, image: np.ndarray) -> Latents:
    """Run g_a on an image, uint8 or uint16 [H, W, 3]; the result serves every rate."""
    return Latents(
        run_in_tiles(model.network.analysis, to_tensor(image, model.device), IMAGE_STRIDE, 1, _HALO)[0], image
    )


def code(model: Model, latents: Latents, options: Options) -> Coded:
    """Quantise and entropy-code latents at one rate, with the effort that the options say."""
    return encode_with_search(NCVAESearch(model, latents, options), options)


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
        integers = decode_integers(
            self.model, coded.streams[0], self.options.rate_index, tuple(self.latents.y.shape[1:])
        )
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


class NCVAERelaxedRD:
    """The codec at one rate with a relaxed quantiser; see `sga.RelaxedRD`.

    Args:
        model: Networks and contexts; the float weights of its contexts are put into its network.
        rate_index: 0..255.
    """

    def __init__(self, model: Model, rate_index: int):
        model.network.load_state_dict(_floats_of_contexts(model), strict=False)
        rate = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))
        self._model, self._rate_params = model, rate | _rate_of_contexts(model, rate_index)
        self._autocast = bf16_is_fast(model.device)
        self.gains = (self._rate_params["gain"],)

    def transmit(
        self, latents: tuple[torch.Tensor, ...], quantise: Quantise, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_hat and the bits of y, see `sga.RelaxedRD`."""
        x_hat, out = self._model.network.transmit(*latents, self._rate_params, quantise, self._autocast)
        return x_hat, logistic_bits(out["symbols"] - out["mean"], out["sigma"]).sum()


def _floats_of_contexts(model: Model) -> dict[str, torch.Tensor]:
    """Parameters of the rate module from the integers it became."""
    contexts, latent = model.contexts, model.network.config.latent
    scale, own_scale = (torch.from_numpy(v * 2.0**-ctx.WEIGHT_BITS) for v in (contexts.scale, contexts.own_scale))
    mean, own_mean = (torch.from_numpy(v * 2.0**-ctx.MEAN_WEIGHT_BITS) for v in (contexts.mean, contexts.own_mean))
    missing = latent - len(mean)
    return {
        "rate.scale_root": scale.sqrt().float(),
        "rate.own_scale_root": own_scale.sqrt().flatten(1).float(),
        "rate.mean": F.pad(mean.flatten(2), (0, 0, 0, 0, 0, missing)).float(),
        "rate.own_mean": F.pad(own_mean.flatten(1), (0, 0, 0, missing)).float(),
    }


def _rate_of_contexts(model: Model, rate_index: int) -> dict[str, torch.Tensor]:
    """unit, floor and slope of a rate from the integers they became, float32 [1, C, 1, 1]."""
    unit, slope = (v[rate_index] * 2.0**-ctx.UNIT_BITS for v in (model.contexts.unit, model.contexts.slope))
    floor = model.contexts.floor[rate_index] * 2.0**-ctx.SIZE_BITS
    found = {"unit": unit, "floor": floor / unit, "slope": slope / unit}
    return {k: torch.from_numpy(v).float().view(1, -1, 1, 1).to(model.device) for k, v in found.items()}


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


def encode_latents(model: Model, latents: Latents, rate_index: int, distortion_multiplier: float = 0.0) -> Coded:
    """Quantise and entropy-code latents at one rate; distortion_multiplier: that of `rdoq`, 0 for nearest integers."""
    start = time.perf_counter()
    encoder = RangeEncoder(model.tables)
    symbols, means = quantise_and_encode(model, latents, rate_index, encoder, distortion_multiplier)
    stream = encoder.finish()
    seconds = {"entropy": time.perf_counter() - start}
    return Coded((stream,), crc_of(symbols, means), encoder.bits, symbols, means, seconds)


def shown(model: Model, coded: Coded, rate_index: int, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """What a decoder shows of a picture just coded, uint8 or uint16 [H, W, 3]; size is (height, width)."""
    return synthesise(model, coded.symbols, coded.means, rate_index, size, gray, depth)


encode = timed_encode(analyse, code)


def decode_integers(
    model: Model, stream: bytes, rate_index: int, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Symbols int32 [C, h, w] and means int32 [P, h, w]."""
    decoder = RangeDecoder(stream, model.tables)
    symbols, means = run_entropy_model(model.contexts, model.tables, rate_index, shape, StepDecoder(decoder))
    decoder.finish()
    return symbols, means


@torch.inference_mode()
def synthesise(
    model: Model, symbols: np.ndarray, means: np.ndarray, rate_index: int, size: tuple[int, int], gray: bool, depth: int
) -> np.ndarray:
    """Symbols int32 [C, h, w], means int32 [P, h, w] to an image, uint8 or uint16 [H, W, 3]; size: (height, width)."""
    rate = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))
    q = torch.from_numpy(symbols).to(model.device).float()
    away = -q
    away[: len(means)] += torch.from_numpy(means).to(model.device) * 2.0**-MEAN_BITS
    y = (q[None] + rate["recentre"] * away.clamp_(-0.5, 0.5)) * rate["inverse_gain"]
    y = y.contiguous(memory_format=torch.channels_last)
    x = run_in_tiles(lambda part: model.network.synthesis(part, model.autocast), y, 1, IMAGE_STRIDE, _HALO)
    return to_image(x, size, gray, depth)


def decode(model: Model, payload: Payload) -> np.ndarray:
    """Decode to an image, uint8 or uint16 [H, W, 3].

    Raises DriftError if the integers differ from the encoder's, FormatError if the file has not the one stream this
    codec writes.
    """
    check_single_stream(payload, "nc-vae")
    shape, _ = latent_shapes(payload.width, payload.height)
    check_stream_length(payload, model.least_bits[payload.rate_index] * shape[0] * shape[1])
    symbols, means = decode_checked(
        lambda: decode_integers(model, payload.streams[0], payload.rate_index, shape),
        payload, lambda found: crc_of(*found),
    )  # fmt: skip
    size = (payload.height, payload.width)
    return synthesise(model, symbols, means, payload.rate_index, size, payload.gray, payload.depth)


def _floats(name: str) -> bool:
    """What stays float: all but the rate module, which becomes the contexts, and what only training needs."""
    return not name.startswith(("rate.", "log_noise", "log_floor", "log_slope", "y_log_std"))


def export(network: NCVAE, tables: Tables) -> dict[str, np.ndarray]:
    """Everything a weights file holds: float16 transforms, contexts, frozen tables."""
    tensors = floats_to_arrays(network, _floats)
    with torch.no_grad():
        every = network.cpu().at_rate(torch.arange(RATES) / (RATES - 1))
        rate = {k: v[:, :, 0, 0].double().numpy() for k, v in every.items()}
        weights = {k: v.double().numpy() for k, v in network.rate.weights().items()}
    sigmas = ctx.scale_sigmas()
    integers = {
        "groups": np.array(groups_of(network.config.latent)),
        **{k: np.rint(weights[k] * 2**ctx.WEIGHT_BITS) for k in ("scale", "own_scale")},
        **{k: np.rint(weights[k][:PREDICTED] * 2**ctx.MEAN_WEIGHT_BITS) for k in ("mean", "own_mean")},
        "unit": np.rint(rate["unit"] * 2**ctx.UNIT_BITS).clip(1, 2**22),
        "inverse_unit": np.rint(2.0**ctx.INVERSE_BITS / rate["unit"]).clip(1, 2**30),
        "floor": np.rint(rate["floor"] * rate["unit"] * 2**ctx.SIZE_BITS).clip(0, 2**30),
        "slope": np.rint(rate["slope"] * rate["unit"] * 2**ctx.UNIT_BITS).clip(0, 2**22),
        "bounds": np.rint(np.sqrt(sigmas[1:] * sigmas[:-1]) * 2**ctx.SIZE_BITS),
    }
    tensors |= {f"contexts.{k}": v.astype(np.int32) for k, v in integers.items()}
    tensors |= {f"tables.{k}": getattr(tables, k) for k in ("weights", "offsets", "minimums")}
    return tensors


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
