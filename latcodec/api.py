"""Pictures <-> .lc bytes: where the container meets a backend.

`encode` and `decode` take and give arrays, `encode_picture` and `decode_picture` a Picture with alpha and metadata;
`info` reads the header alone. torch is imported by the first call that needs a network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from latcodec import backends, rates, weights
from latcodec import rate_control as codec_targets
from latcodec import settings as codec_options
from latcodec.backends.base import EncodeRequest, WireFormat
from latcodec.container import format as container
from latcodec.container.format import Payload
from latcodec.errors import FormatError, ImageError, OptionError
from latcodec.runtime import MAX_PIXELS, pick_device, within_memory
from latcodec.settings import Encoded, EncodeSettings

if TYPE_CHECKING:
    import numpy as np

    from latcodec.images import Picture


def set_threads(count: int) -> None:
    """Number of CPU threads the networks use."""
    import torch

    torch.set_num_threads(count)


def check_options(codec: str, device: str, flags: Collection[str] = ()) -> None:
    """Raise OptionError for a codec, options or a device that no picture could be encoded with.

    flags: names of the options that a person gave as flags of the command line.
    """
    codec_options.check_codec(codec, flags)
    pick_device(device)


_models: dict[tuple[str, str, str], object] = {}  # by codec, weights and device; networks take long to build


def load_model(
    backend: backends.Backend, weights_id: bytes | None, selected: str | None, device: str = "auto",
    metric: str | None = None,
):  # fmt: skip
    """The backend's model with its default weights, of a metric if one is named, or those of an id, ready on a device;
    kept for the next call."""
    found = weights.load(backend.name, weights_id, selected, metric)
    key = (backend.name, found.sha256, pick_device(device))
    if key not in _models:
        if len(_models) > 1:
            _models.clear()
        _models[key] = backend.load().load_model(found, key[2])
    return _models[key]


def encode_picture(
    picture: Picture,
    settings: EncodeSettings = EncodeSettings(),  # noqa: B008
    progress: Callable[[float], None] | None = None,
) -> Encoded:
    """Encode a picture; progress: called with 0..1 by a codec that searches for long.

    Raises OptionError, WeightsError, ImageError (memory) or DriftError (law 5).
    """
    height, width = picture.pixels.shape[:2]
    with within_memory(width, height):
        return _encode(picture, settings, progress)


def _encode(picture: Picture, settings: EncodeSettings, progress: Callable[[float], None] | None) -> Encoded:
    from latcodec.images.alpha import pack_alpha

    name, given = codec_options.split_codec(settings.codec)
    backend = backends.by_name(name)
    coder = backend.load()
    options = codec_options.read_options(coder.options_class, given)
    free_lambda = coder.fixed_lambda(options)
    if free_lambda is not None and settings.rate_index is None:
        raise OptionError("free_lambda leaves nothing to search: give it or one of bpp, psnr and size")
    model = load_model(backend, None, settings.weights, settings.device, given.get("metric"))
    start = time.perf_counter()
    height, width = picture.pixels.shape[:2]
    seconds = {"analysis": 0.0}
    target = settings.target(width * height)

    @cache
    def latents():
        analysed = time.perf_counter()
        found = coder.analyse(model, picture.pixels)
        seconds["analysis"] = time.perf_counter() - analysed
        return found

    frame = Payload(
        backend_id=backend.wire_id,
        weights_id=model.weights_id,
        rate_index=0,
        width=width,
        height=height,
        gray=picture.gray,
        depth=16 if picture.pixels.dtype.itemsize == 2 else 8,
        integers_crc=0,
        streams=(b"",),
        alpha=None if picture.alpha is None else pack_alpha(picture.alpha),
        icc=None if settings.strip else picture.icc or None,
        exif=None if settings.strip else picture.exif or None,
        xmp=None if settings.strip else picture.xmp or None,
        guard=coder.decodes_damaged,
    )

    def attempt(index: int, verify: bool, span: tuple[float, float] = (0.0, 1.0), **changed) -> codec_targets.Trial:
        told = None
        if progress is not None:
            told = lambda part: progress(span[0] + (span[1] - span[0]) * part)  # noqa: E731
        how, request = replace(options, **changed), EncodeRequest(index, verify, picture.gray, told)
        whole = None
        if target is None:
            whole = coder.early_lossless(model, picture.pixels, how, request)
        return tried(index, coder.code(model, latents(), how, request) if whole is None else whole)

    def tried(index: int, coded) -> codec_targets.Trial:
        index = max(index, 0) if backend.wire_format.is_lossless(coded.parameters) else index
        said = {name: getattr(coded, name) for name in ("streams", "integers_crc", "parameters")}
        data = container.pack(replace(frame, rate_index=max(index, 0), **said))
        return codec_targets.Trial(index, data, coded, psnr(data) if settings.psnr is not None else None)

    def decoded(data: bytes) -> np.ndarray:
        return coder.decode(model, container.unpack(data, max_pixels=width * height))

    def psnr(data: bytes) -> float:
        from latcodec.metrics import psnr_db

        return float(psnr_db(picture.pixels, decoded(data), 65535 if frame.depth == 16 else 255))

    def quality(trial: codec_targets.Trial) -> float:
        from latcodec.backends.common.distortion import distortion_bits

        return -distortion_bits(decoded(trial.data), picture.pixels, 0, model.metric)

    trials, missed, notes = 1, "", []
    lowest_index = model.lowest_index
    if target is None:
        if settings.rate_index < lowest_index:
            most = math.floor(rates.lambda_of_index(lowest_index))
            raise OptionError(f"lambda {settings.lmbda:g}: with these weights it ends at {most}")
        trial = attempt(settings.rate_index, settings.verify)
    else:
        search = None
        if coder.searches(options):
            search = codec_targets.Search(
                options.effort, start + options.max_seconds if options.max_seconds else math.inf
            )
        coded = coder.lossless_trial(picture.pixels, options, EncodeRequest(0, settings.verify))
        whole = None if coded is None else tried(rates.MAX_INDEX, coded)
        options = coder.lossy_options(options)  # or bytes and dB would not rise with the index
        trial, trials, searches = codec_targets.reach(
            target, attempt, settings.verify, search, whole, lowest_index, quality
        )
        if search is not None and not searches:
            notes.append("max_seconds was over before anything was searched: this is the file without effort")
        trials += searches
        if not target.met(trial):
            missed = settings.missed(trial, width * height)
            notes.append(missed)
    if settings.strip and any((picture.icc, picture.exif, picture.xmp)):
        notes.append("metadata left out (--strip)")
    return Encoded(
        data=trial.data,
        rate_index=trial.index,
        lmbda=free_lambda or rates.lambda_of_index(trial.index),
        bpp=8 * len(trial.data) / (width * height),
        estimated_bits=trial.coded.estimated_bits,
        psnr_db=trial.psnr_db,
        seconds=seconds | trial.coded.seconds,
        trials=trials,
        notes=tuple(notes),
        details=trial.coded.details,
        missed=missed,
    )


def decode_picture(
    data: bytes,
    *,
    device: str = "auto",
    weights: str | None = None,
    max_pixels: int = MAX_PIXELS,
    ignore_checksum: bool = False,
) -> Picture:
    """Decode an .lc file; raises FormatError, VersionError, WeightsError, DriftError or ImageError (memory).

    ignore_checksum: show what is left of a damaged file, if its codec can (one with a guard) and its header is sound.
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
        model = load_model(backend, payload.weights_id, weights, device) if needed else None
        pixels = backend.load().decode(model, payload, ignore_checksum=bool(notes))
        alpha = None  # after the pixels: a sound stream vouches for the size, a few bytes of alpha do not
        if payload.alpha is not None:
            alpha = unpack_alpha(payload.alpha, payload.width, payload.height, payload.depth)
    notes += [f"section of unknown kind {kind} ignored" for kind, _ in payload.extra]
    return Picture(pixels, payload.gray, alpha, payload.icc, payload.exif, payload.xmp, tuple(notes))


def info(data: bytes, *, max_pixels: int = MAX_PIXELS, ignore_checksum: bool = False) -> dict:
    """Everything the header says, and the bytes of each section; reads no weights and imports no torch.

    ignore_checksum: say what a damaged file seems to say, as far as it can be parsed, and what is wrong with it.
    Raises FormatError or VersionError.
    """
    payload, parts, damage = container.survey(data, max_pixels=max_pixels)
    if damage and not ignore_checksum:
        raise FormatError(damage)
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
    """Bits that each latent channel of an .lc file costs, by its tables; decodes the integers, not the picture.

    Raises OptionError if the codec has no such account, and what `decode_picture` raises.
    """
    payload = container.unpack(data, max_pixels=max_pixels)
    backend = backends.by_wire_id(payload.backend_id)
    with within_memory(payload.width, payload.height):
        model = load_model(backend, payload.weights_id, weights, "cpu")
        bits = backend.load().channel_bits(model, payload)
    if bits is None:
        raise OptionError(f"codec {backend.name} keeps no account of its channels")
    return [round(float(value), 1) for value in bits]


def encode(array: np.ndarray, **settings) -> bytes:
    """Encode an array, uint8 or uint16: [H, W] gray, [H, W, 2] gray and alpha, [H, W, 3] RGB or [H, W, 4] RGBA.

    settings: the fields of `EncodeSettings`. Raises ImageError for another array and what `encode_picture` raises.
    """
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
    picture = Picture(np.ascontiguousarray(colour), gray, alpha)
    return encode_picture(picture, EncodeSettings(**settings)).data


def decode(data: bytes, **settings) -> np.ndarray:
    """Decode to an array of the shape and dtype that `encode` was given; settings as of `decode_picture`."""
    import numpy as np

    picture = decode_picture(data, **settings)
    planes = [picture.pixels[:, :, :1] if picture.gray else picture.pixels]
    planes += [] if picture.alpha is None else [picture.alpha[:, :, None]]
    array = np.concatenate(planes, 2)
    return array[:, :, 0] if array.shape[2] == 1 else array
