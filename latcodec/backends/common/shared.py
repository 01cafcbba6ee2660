"""What backends share: pictures to tensors and back, shapes, parts of a weights file, what a decoder refuses."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends.hyperprior.network import HYPER_STRIDE, IMAGE_STRIDE
from latcodec.container.format import Payload
from latcodec.entropy.integer_net import IntegerNet
from latcodec.errors import DriftError, FormatError, WeightsError
from latcodec.nn.layers import with_gamma
from latcodec.rates import RATE_STEP

RATES = 256


def latent_shapes(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(h, w) of y and of z for a picture in px: y has just the cells the picture touches."""
    y = (-(-height // IMAGE_STRIDE), -(-width // IMAGE_STRIDE))
    return y, (-(-y[0] // HYPER_STRIDE), -(-y[1] // HYPER_STRIDE))


def replicate(x: Tensor, multiple: int) -> Tensor:
    """Pad [1, C, h, w] on the right and below by replication to a multiple; smooth continuations cost few bits."""
    down, right = -x.shape[2] % multiple, -x.shape[3] % multiple
    return F.pad(x, (0, right, 0, down), mode="replicate") if down or right else x


def to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """uint8 or uint16 [H, W, 3] as float32 [1, 3, H', W'] in 0..1, sides padded to a multiple of IMAGE_STRIDE."""
    peak = 65535 if image.dtype == np.uint16 else 255
    x = torch.from_numpy(image.astype(np.float32)).to(device)
    return replicate(x.permute(2, 0, 1)[None] / peak, IMAGE_STRIDE)


def to_image(x: Tensor, size: tuple[int, int], gray: bool, depth: int) -> np.ndarray:
    """float [1, 3, H', W'] in about 0..1 as uint8 or uint16 [H, W, 3]; size is (height, width), depth 8 or 16 bits."""
    x = x[0, :, : size[0], : size[1]]
    if gray:
        x = x.mean(0, keepdim=True).expand(3, -1, -1)
    peak = 65535 if depth == 16 else 255
    x = torch.nan_to_num(x).clamp(0, 1).mul(peak).round().permute(1, 2, 0).contiguous().cpu()
    return x.numpy().astype(np.uint16 if depth == 16 else np.uint8)


def rounded(x: Tensor) -> np.ndarray:
    """Nearest integers, int32. NaN and infinities of a strange picture must not reach the coder as undefined ones."""
    return bounded(x).round().to(torch.int32).numpy()


def bounded(x: Tensor) -> Tensor:
    """x without NaN, within +-2**24."""
    return torch.nan_to_num(x).clamp(-(2**24), 2**24)


def crc_of(*arrays: np.ndarray) -> int:
    """CRC-32 of integers, little-endian, one after another: rows (uint16) as such, everything else as int32."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array, "<u2" if array.dtype == np.uint16 else "<i4"), crc)
    return crc


def part(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names begin so, under the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def floats_to_arrays(
    network: nn.Module, keep: Callable[[str], bool], small: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """ "float.NAME" of the network's state: float16 weights, float32 vectors; weights of convolutions whose names begin
    with one of `small` as int8 and a float32 unit of each first index, "unit.NAME"."""
    arrays = {}
    for name, tensor in network.state_dict().items():
        if not keep(name):
            continue
        value = tensor.detach().cpu().float().numpy()
        if value.ndim == 4 and name.startswith(small):
            unit = np.maximum(np.abs(value).max((1, 2, 3)), 1e-12) / 127
            arrays[f"unit.{name}"] = unit
            arrays[f"float.{name}"] = np.rint(value / unit[:, None, None, None]).astype(np.int8)
        else:
            arrays[f"float.{name}"] = value.astype(np.float16 if value.ndim > 1 else np.float32)
    return arrays


def floats_from_arrays(tensors: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """The float32 state that `floats_to_arrays` kept."""
    state = {}
    for name, value in part(tensors, "float.").items():
        unit = tensors.get(f"unit.{name}")
        state[name] = torch.from_numpy(value).float()
        if unit is not None:
            state[name] *= torch.from_numpy(unit)[:, None, None, None]
    return with_gamma(state)


def load_floats(network: nn.Module, tensors: dict[str, np.ndarray], keep: Callable[[str], bool]) -> None:
    """Put what `floats_to_arrays` gave into a network; raises KeyError or RuntimeError if something is missing."""
    state = floats_from_arrays(tensors)
    network.load_state_dict({k: state[k] for k in network.state_dict() if keep(k)}, strict=False)


def integer_nets(tensors: dict[str, np.ndarray]) -> dict[str, IntegerNet]:
    """The integer networks of a weights file by their names there; raises WeightsError."""
    names = sorted(name.removesuffix(".0.kind") for name in tensors if name.endswith(".0.kind"))
    return {name: IntegerNet.from_arrays(part(tensors, f"{name}.")) for name in names}


def floats_of_integers(nets: dict[str, IntegerNet]) -> dict[str, Tensor]:
    """The float32 state that the networks of `integer_nets` stand for.

    "hyper" is h_s, whose layers are every other module. Networks "PART.n", of one layer each, are the list PART in
    order, or PART itself where there is only one.
    """
    state, parts = {}, [name.rpartition(".")[0] for name in nets]
    for number, (name, net) in enumerate(nets.items()):
        if name == "hyper":
            layers = [f"h_s.{2 * n}" for n in range(len(net.layers))]
        else:
            of = parts[number]
            layers = [of if parts.count(of) == 1 else f"{of}.{number - parts.index(of)}"]
        state |= net.to_floats(layers)
    return state


def some_rates(table: np.ndarray) -> np.ndarray:
    """Every RATE_STEP-th row of integers of each rate index, [256 or more, C], which are smooth: for a weights file."""
    return table[::RATE_STEP]


def every_rate(table: np.ndarray, lowest_index: int = 0) -> np.ndarray:
    """int64 [256 - lowest_index, C] from what a weights file holds: all rows, or some, between which lines are drawn in
    integers. The first row is that of the lowest rate index. Raises WeightsError for another number of rows."""
    table, rows = table.astype(np.int64), RATES - lowest_index
    if len(table) == rows:
        return table
    if len(table) != (rows - 1) // RATE_STEP + 1:
        raise WeightsError(f"rates: {len(table)} rows, not those of indices from {lowest_index} on")
    low, part = np.divmod(np.arange(rows), RATE_STEP)
    low, part = np.minimum(low, len(table) - 1), part.reshape(-1, *[1] * (table.ndim - 1))
    high = np.minimum(low + 1, len(table) - 1)
    return (table[low] * (RATE_STEP - part) + table[high] * part + RATE_STEP // 2) // RATE_STEP


def config_from(config_class: type, stored: dict):
    """The configuration that `stored_config` gave; weights older than a field have its default. Raises WeightsError."""
    known = set(config_class.__dataclass_fields__)
    if not isinstance(stored, dict) or not set(stored) <= known:
        raise WeightsError(f"config {str(stored)[:200]} has other keys than {sorted(known)}")
    return config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()})


def stored_config(network: nn.Module) -> dict:
    """The configuration as JSON keeps it."""
    return json.loads(json.dumps(asdict(network.config)))


def timed(analyse: Callable, code: Callable) -> Callable:
    """`encode(model, image, options)` of a backend: networks, then code, the time of both in `seconds`."""

    def encode(model, image: np.ndarray, options):
        """Encode an image, uint8 or uint16 [H, W, 3]; raises DriftError if what was written does not decode (law 5)."""
        start = time.perf_counter()
        latents = analyse(model, image)
        analysed = time.perf_counter() - start
        coded = code(model, latents, options)
        analysed += coded.seconds.get("analysis", 0.0)  # of a codec whose networks look once they know the rate
        return replace(coded, seconds=coded.seconds | {"analysis": analysed})

    return encode


def must_be_one_stream(payload: Payload, codec: str, parameters: bool = False) -> None:
    """Raise FormatError unless the file has the one stream that most codecs write, and no parameters where a codec has
    none."""
    if len(payload.streams) != 1 or (payload.parameters is not None and not parameters):
        raise FormatError(
            f"field sections: {len(payload.streams)} streams, the {codec} codec has exactly 1 and no more"
        )


def must_hold(payload: Payload, least_bits: float, stream: int = 0) -> None:
    """Raise FormatError if a stream is too short for the picture, before anything of its size is allocated."""
    found = len(payload.streams[stream])
    if least_bits > 8 * found + 64:
        raise FormatError(f"field stream: {found} bytes cannot hold {payload.width} x {payload.height} pixels")


def integers_of(decode: Callable, payload: Payload, crc: Callable):
    """What `decode` gives, if `crc` of it is the encoder's.

    Raises DriftError if not: the file's own checksum was right, so this platform computes something else.
    """
    try:
        found = decode()
    except FormatError as error:
        raise DriftError(f"the stream does not decode with these weights on this machine: {error}") from None
    if crc(found) != payload.integers_crc:
        raise DriftError(
            "field integers CRC: the decoded integers differ from the encoder's, although file and weights are right: "
            "this platform computes something else; please report it with the output of `latcodec info`"
        )
    return found
