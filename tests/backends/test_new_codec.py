"""A new codec is one folder and one row: everything else works with it at once."""

import numpy as np
import pytest

import latcodec
from latcodec import api, backends, container, settings, weights
from latcodec.backends.base import WireFormat
from latcodec.errors import OptionError
from latcodec.images import Picture

TOY = """
import zlib
from dataclasses import dataclass, field

import numpy as np

from latcodec.backends import base
from latcodec.errors import DriftError


@dataclass(frozen=True)
class Options:
    level: int = 6


@dataclass(frozen=True)
class Model:
    weights_id: bytes
    metric: str = "mse"
    lowest_index: int = 0


@dataclass(frozen=True)
class Coded:
    streams: tuple
    integers_crc: int
    estimated_bits: float
    parameters: bytes | None = None
    seconds: dict = field(default_factory=dict)
    details: dict = field(default_factory=dict)


def step_of(rate_index, depth):
    return (256 - rate_index) * (257 if depth == 16 else 1)


class Codec(base.Codec):
    options_class = Options

    def load_model(self, weights, device):
        return Model(weights.id)

    def analyse(self, model, image):
        return image

    def code(self, model, latents, options, request):
        step = step_of(request.rate_index, 8 * latents.itemsize)
        integers = np.rint(latents / step).astype(np.int32).tobytes()
        stream = zlib.compress(integers, options.level)
        return Coded((stream,), zlib.crc32(integers), 8.0 * len(stream))

    def decode(self, model, payload, ignore_checksum=False):
        data = zlib.decompress(payload.streams[0])
        if zlib.crc32(data) != payload.integers_crc:
            raise DriftError("other integers")
        integers = np.frombuffer(data, np.int32).reshape(payload.height, payload.width, 3)
        samples = (integers * step_of(payload.rate_index, payload.depth)).clip(0, 2**payload.depth - 1)
        return samples.astype(f"uint{payload.depth}")
"""
NAME = "toy"


@pytest.fixture
def toy(tmp_path, monkeypatch) -> str:
    """Adds the codec; the path of its weights."""
    folder = tmp_path / "latcodec_toy"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "codec.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    row = backends.Backend(200, NAME, "latcodec_toy.codec")
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, row))
    path = tmp_path / "toy.safetensors"
    weights.save(path, NAME, {}, "", {"nothing": np.zeros(1, np.float32)})
    return str(path)


def array(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 2), (7, 9, 3), (7, 9, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_it_encodes_and_decodes(toy, shape, dtype):
    samples = array(*shape, dtype=dtype)
    data = latcodec.encode(samples, codec=NAME, lmbda=0.1, weights=toy, device="cpu")
    decoded = latcodec.decode(data, weights=toy, device="cpu")
    step = 257 if dtype is np.uint16 else 1
    assert decoded.dtype == dtype and decoded.shape == shape
    assert np.abs(decoded.astype(int) - samples.astype(int)).max() <= step // 2


def test_its_files_name_it(toy):
    header = latcodec.info(latcodec.encode(array(4, 5, 3), codec=NAME, quality=50, weights=toy, device="cpu"))
    assert header["codec"] == NAME and header["quality"] == pytest.approx(50, abs=0.3) and not header["lossless"]


def test_its_options_are_read_and_checked(toy):
    samples = np.zeros((40, 40, 3), np.uint8)
    sizes = [
        len(latcodec.encode(samples, codec=f"{NAME}:level={level}", weights=toy, device="cpu")) for level in (0, 9)
    ]
    assert sizes[0] > 20 * sizes[1]
    settings.check_codec(f"{NAME}:level=9")
    with pytest.raises(OptionError, match="there are: level"):
        settings.check_codec(f"{NAME}:effort=9")


def test_targets_are_reached_with_it(toy):
    samples = array(24, 24, 3)
    met = {
        "size_bytes": lambda encoded: len(encoded.data) <= 1500,
        "bpp": lambda encoded: encoded.bpp <= 15,
        "psnr": lambda encoded: encoded.psnr_db >= 30,
    }
    for name, limit in {"size_bytes": 1500, "bpp": 15.0, "psnr": 30.0}.items():
        chosen = api.EncodeSettings(codec=NAME, weights=toy, device="cpu", **{name: limit})
        encoded = api.encode_picture(Picture(samples, False), chosen)
        assert encoded.missed == "" and encoded.trials > 1 and met[name](encoded)


def test_what_it_does_not_say_has_defaults(toy):
    data = latcodec.encode(array(4, 5, 3), codec=NAME, weights=toy, device="cpu")
    row = backends.by_name(NAME)
    assert type(row.wire_format) is WireFormat and row.wire_format.rate_index_of(container.unpack(data)) >= 0
    codec = row.load()
    assert not codec.decodes_damaged and not codec.searches(codec.options_class())
    with pytest.raises(OptionError, match="toy"):
        api.channel_bits(data, weights=toy)
