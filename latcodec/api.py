"""Arrays and pictures <-> the bytes of an .lc file.

`encode` and `decode` take and give arrays, `encode_picture` and `decode_picture` a Picture with alpha and metadata;
`info` reads the header alone. torch is imported by the first call that needs a network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from latcodec import backends, container, rate_control, rates
from latcodec.backends import loading
from latcodec.backends.base import WireFormat
from latcodec.encoder import Encoded, Encoder
from latcodec.errors import FormatError, ImageError, OptionError
from latcodec.runtime import MAX_PIXELS, within_memory
from latcodec.settings import EncodeSettings

if TYPE_CHECKING:
    import numpy as np

    from latcodec.images import Picture

__all__ = [
    "EncodeSettings", "Encoded", "array_from_picture", "channel_bits", "decode", "decode_picture", "encode",
    "encode_picture", "info", "picture_from_array",
]  # fmt: skip


def encode_picture(
    picture: Picture,
    settings: EncodeSettings = EncodeSettings(),  # noqa: B008
    progress: Callable[[float], None] | None = None,
) -> Encoded:
    """Encode a picture.

    Args:
        picture: The picture, with alpha and metadata if it has any.
        settings: How to encode it.
        progress: Called with 0..1 by a codec that searches for long.

    Raises:
        OptionError: The settings contradict each other, the codec or the device.
        WeightsError: The weights are missing or belong to another codec.
        ImageError: This machine has not enough memory for the picture.
        DriftError: The file just written does not decode to the same integers (law 5).
    """
    height, width = picture.pixels.shape[:2]
    with within_memory(width, height):
        encoder = Encoder(picture, settings, progress)
        if settings.rate_index is None:
            return rate_control.encode_to_target(encoder)
        return encoder.finish(encoder.encode())


def decode_picture(
    data: bytes,
    *,
    device: str = "auto",
    weights: str | None = None,
    max_pixels: int = MAX_PIXELS,
    ignore_checksum: bool = False,
) -> Picture:
    """Decode an .lc file to a picture.

    Args:
        data: The bytes of the file.
        device: auto, cpu or cuda.
        weights: A weights file or a folder of them; None for the usual places.
        max_pixels: The most pixels that the file may have.
        ignore_checksum: Whether to show what is left of a damaged file, if it has a header CRC that holds.

    Raises:
        FormatError: The bytes are no .lc file, or a damaged one.
        VersionError: The file needs a newer version of latcodec.
        WeightsError: The file's weights are missing.
        DriftError: The decoded integers differ from the encoder's.
        ImageError: This machine has not enough memory for the picture.
    """
    notes = []
    try:
        payload = container.unpack(data, max_pixels=max_pixels)
    except FormatError:
        if not ignore_checksum:
            raise
        payload = container.unpack(data, max_pixels=max_pixels, ignore_checksum=True)
        notes.append("damaged: the checksum does not fit; this is what the file still says")
    backend = backends.by_wire_id(payload.backend_id)
    from latcodec.images import Picture
    from latcodec.images.alpha import unpack_alpha

    with within_memory(payload.width, payload.height):
        needed = not backend.wire_format.is_lossless(payload.parameters)
        model = loading.load_model(backend, payload.weights_id, weights, device) if needed else None
        pixels = backend.load().decode(model, payload, ignore_checksum=bool(notes))
        alpha = None  # after the pixels: a sound stream vouches for the size, a few bytes of alpha do not
        if payload.alpha is not None:
            alpha = unpack_alpha(payload.alpha, payload.width, payload.height, payload.depth)
    notes += [f"section of unknown kind {kind} ignored" for kind, _ in payload.extra]
    return Picture(pixels, payload.gray, alpha, payload.icc, payload.exif, payload.xmp, tuple(notes))


def info(data: bytes, *, max_pixels: int = MAX_PIXELS, ignore_checksum: bool = False) -> dict:
    """Return everything the header says, and the bytes of each section; this reads no weights and imports no torch.

    Args:
        data: The bytes of the file.
        max_pixels: The most pixels that the file may have.
        ignore_checksum: Whether to return what a damaged file seems to say, as far as it can be parsed, and what is
            wrong with it.

    Raises:
        FormatError: The bytes are no .lc file, or a damaged one.
        VersionError: The file needs a newer version of latcodec.
    """
    damage = ""
    try:
        payload, parts = container.unpack(data, max_pixels=max_pixels), container.sections(data)
    except FormatError as error:
        damaged = container.inspect_damaged(data) if ignore_checksum else None
        if damaged is None:
            raise
        payload, parts, damage = damaged.payload, damaged.parts, str(error)
    backend = backends.find_wire_id(payload.backend_id)
    wire_format = WireFormat() if backend is None else backend.wire_format
    rate_index = wire_format.rate_index_of(payload)
    lmbda = rates.lambda_of_index(rate_index)
    checksum = {"checksum": "does not match; what follows may be wrong", "damage": damage}
    return (checksum if damage else {"checksum": "ok"}) | {
        "format_version": container.VERSION,
        "codec": backend.name if backend else f"unknown ({payload.backend_id})",
        "weights": payload.weights_id.hex(),
        "width": payload.width,
        "height": payload.height,
        "gray": payload.gray,
        "alpha": payload.alpha is not None,
        "depth": payload.depth,
        "lossless": wire_format.is_lossless(payload.parameters),
        "rate_index": rate_index,
        "lambda": round(lmbda, 4),
        "quality": round(max(0.0, 1 + 99 * rate_index / rates.MAX_INDEX), 1),
        "integers_crc": f"{payload.integers_crc:08x}",
        "bytes": len(data),
        "bpp": 8 * len(data) / (payload.width * payload.height),
        "sections": [{"name": n, "offset": o, "bytes": size} for n, o, size in parts],
    }


def channel_bits(data: bytes, *, weights: str | None = None, max_pixels: int = MAX_PIXELS) -> list[float]:
    """Return the bits that each latent channel of an .lc file costs by its tables, without decoding the picture.

    Args:
        data: The bytes of the file.
        weights: A weights file or a folder of them; None for the usual places.
        max_pixels: The most pixels that the file may have.

    Raises:
        OptionError: The file's codec cannot attribute bits to channels.
        LatcodecError: Whatever `decode_picture` raises.
    """
    payload = container.unpack(data, max_pixels=max_pixels)
    backend = backends.by_wire_id(payload.backend_id)
    with within_memory(payload.width, payload.height):
        model = loading.load_model(backend, payload.weights_id, weights, "cpu")
        bits = backend.load().channel_bits(model, payload)
    if bits is None:
        raise OptionError(f"codec {backend.name} keeps no account of its channels")
    return [round(float(value), 1) for value in bits]


def encode(array: np.ndarray, **settings: Any) -> bytes:
    """Encode an array to the bytes of an .lc file.

    Args:
        array: uint8 or uint16: [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB or [H, W, 4] RGBA.
        **settings: The fields of `EncodeSettings`.

    Raises:
        ImageError: The array is no picture.
        LatcodecError: Whatever `encode_picture` raises.
    """
    return encode_picture(picture_from_array(array), EncodeSettings(**settings)).data


def decode(data: bytes, **settings: Any) -> np.ndarray:
    """Decode the bytes of an .lc file to an array of the shape and dtype that `encode` was given.

    Args:
        data: The bytes of the file.
        **settings: The keyword arguments of `decode_picture`, which also raises what this raises.
    """
    return array_from_picture(decode_picture(data, **settings))


def picture_from_array(array: np.ndarray) -> Picture:
    """Return the picture of an array, uint8 or uint16 [H, W] or [H, W, 1..4]; raises ImageError for another array."""
    import numpy as np

    from latcodec.images import Picture

    array = np.asarray(array)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.dtype not in (np.uint8, np.uint16) or array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"array {array.dtype} {list(array.shape)}: need uint8 or uint16, [H, W] or [H, W, 1..4]")
    if 0 in array.shape:
        raise ImageError(f"array {list(array.shape)}: it has no pixels")
    gray, has_alpha = array.shape[2] <= 2, array.shape[2] in (2, 4)
    colour = array[:, :, :1].repeat(3, 2) if gray else array[:, :, :3]
    alpha = np.ascontiguousarray(array[:, :, -1]) if has_alpha else None
    return Picture(np.ascontiguousarray(colour), gray, alpha)


def array_from_picture(picture: Picture) -> np.ndarray:
    """Return the samples of a picture, uint8 or uint16 [H, W] for gray without alpha, else [H, W, 2..4]."""
    import numpy as np

    planes = [picture.pixels[:, :, :1] if picture.gray else picture.pixels]
    planes += [] if picture.alpha is None else [picture.alpha[:, :, None]]
    array = np.concatenate(planes, 2)
    return array[:, :, 0] if array.shape[2] == 1 else array
