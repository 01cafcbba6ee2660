"""Settings, searches and what travels through a file, with the shipped weights."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

import latcodec
from latcodec import api, backends, container, rates, runtime
from latcodec.api import EncodeSettings, decode_picture, encode_picture
from latcodec.backends import loading
from latcodec.errors import DriftError, FormatError, ImageError, OptionError, VersionError, WeightsError
from latcodec.images import Picture
from latcodec.metrics import psnr_db
from latcodec.rates import LOWEST_INDEX

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    runtime.set_threads(1)
    assert torch.get_num_threads() == 1
    yield
    runtime.set_threads(before)


@pytest.fixture(scope="module")
def picture() -> Picture:
    return Picture(np.ascontiguousarray(data.astronaut()[60:124, 180:276]), gray=False)


def settings(**given) -> EncodeSettings:
    return EncodeSettings(device="cpu", **given)


def size_at(picture: Picture, index: int) -> int:
    return len(encode_picture(picture, settings(lmbda=rates.lambda_of_index(index))).data)


# The package.


def test_the_package_has_what_it_names():
    from latcodec.backends.vbq import arrays

    assert latcodec.__all__ == ["__version__", "decode", "encode", "info", "vbq"]
    assert latcodec.vbq is arrays and (latcodec.encode, latcodec.decode, latcodec.info) == (
        api.encode, api.decode, api.info
    )  # fmt: skip
    with pytest.raises(AttributeError, match="vqb"):
        _ = latcodec.vqb
    assert all(hasattr(api, name) for name in api.__all__)


# Settings.


@pytest.mark.parametrize("first", ["lmbda", "quality", "bpp", "psnr", "size_bytes"])
@pytest.mark.parametrize("second", ["lmbda", "quality", "bpp", "psnr", "size_bytes"])
def test_rate_options_exclude_each_other(first, second):
    if first == second:
        EncodeSettings(**{first: 1})
        return
    with pytest.raises(OptionError, match=f"{first}.*exclude|{second}.*exclude"):
        EncodeSettings(**{first: 1, second: 1})


def test_rate_index_of_settings():
    assert EncodeSettings().rate_index == EncodeSettings(lmbda=1.0).rate_index == rates.index_of_lambda(1.0)
    assert EncodeSettings(quality=1).rate_index == 0 and EncodeSettings(quality=100).rate_index == 255
    assert EncodeSettings(lmbda=20).rate_index == 0 and EncodeSettings(lmbda=0.1).rate_index == 255
    assert EncodeSettings(bpp=1).rate_index is EncodeSettings(psnr=1).rate_index is None
    assert EncodeSettings(size_bytes=1).rate_index is None


@pytest.mark.parametrize("given", [{"lmbda": 0}, {"lmbda": 0.09}, {"lmbda": 42}, {"quality": 0}, {"quality": 101}])
def test_rates_out_of_range(picture, given):
    with pytest.raises(OptionError, match="outside"):
        encode_picture(picture, settings(**given))


def test_unknown_codec(picture):
    with pytest.raises(OptionError, match="'jpeg' is unknown; there are: hyperprior"):
        encode_picture(picture, settings(codec="jpeg"))


def test_unknown_device(picture):
    with pytest.raises(OptionError, match="'tpu'"):
        encode_picture(picture, EncodeSettings(device="tpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda(picture):
    with pytest.raises(OptionError, match="cuda"):
        encode_picture(picture, EncodeSettings(device="cuda"))
    whole = encode_picture(picture, settings()).data
    with pytest.raises(OptionError, match="cuda"):
        decode_picture(whole, device="cuda")


# Encoding.


def test_what_an_encode_says(picture):
    encoded = encode_picture(picture, settings(lmbda=2))
    payload = container.unpack(encoded.data)
    assert (payload.width, payload.height, payload.gray, payload.depth) == (96, 64, False, 8)
    assert payload.rate_index == encoded.rate_index == rates.index_of_lambda(2)
    assert encoded.lmbda == pytest.approx(2, rel=0.02)
    assert encoded.bpp == 8 * len(encoded.data) / (64 * 96)
    assert abs(8 * len(encoded.data) - encoded.estimated_bits) < 0.005 * encoded.estimated_bits + 320
    assert encoded.trials == 1 and encoded.psnr_db is None and encoded.notes == ()
    assert all(value >= 0 for value in encoded.seconds.values())


def test_same_settings_same_bytes(picture):
    for given in ({}, {"quality": 70}, {"size_bytes": 900}):
        assert encode_picture(picture, settings(**given)).data == encode_picture(picture, settings(**given)).data


def test_container_costs_at_most_32_bytes(picture):
    whole = encode_picture(picture, settings()).data
    assert len(whole) - sum(map(len, container.unpack(whole).streams)) <= 32


# Searches.


@pytest.mark.parametrize("limit", [400, 777, 1200, 1500])
def test_size_is_the_best_that_fits(picture, limit):
    encoded = encode_picture(picture, settings(size_bytes=limit))
    assert len(encoded.data) <= limit and encoded.notes == ()
    assert encoded.trials <= 9
    assert size_at(picture, encoded.rate_index + 1) > limit


@pytest.mark.parametrize("bpp", [0.6, 1.5])
def test_bpp_is_the_best_that_fits(picture, bpp):
    encoded = encode_picture(picture, settings(bpp=bpp))
    assert encoded.bpp <= bpp and encoded.notes == ()
    assert encoded.trials <= 9
    assert 8 * size_at(picture, encoded.rate_index + 1) > bpp * 64 * 96


@pytest.mark.parametrize("target", [28.0, 31.5])
def test_psnr_is_reached_with_the_smallest_file(picture, target):
    encoded = encode_picture(picture, settings(psnr=target))
    assert encoded.notes == () and encoded.trials <= 9
    measured = psnr_db(picture.pixels, decode_picture(encoded.data, device="cpu").pixels)
    assert measured == pytest.approx(encoded.psnr_db) and measured >= target
    below = encode_picture(picture, settings(lmbda=rates.lambda_of_index(encoded.rate_index - 1)))
    assert psnr_db(picture.pixels, decode_picture(below.data, device="cpu").pixels) < target


def test_a_search_and_its_rate_give_the_same_file(picture):
    searched = encode_picture(picture, settings(size_bytes=900))
    assert searched.data == encode_picture(picture, settings(lmbda=searched.lmbda)).data


def test_a_size_that_cannot_be_reached_is_noted(picture):
    for given in ({"size_bytes": 50}, {"bpp": 0.001}):
        encoded = encode_picture(picture, settings(**given))
        assert encoded.rate_index == LOWEST_INDEX
        assert encoded.notes == (encoded.missed,) and "cannot be reached" in encoded.missed
        assert (
            f"smallest file: {'' if 'bpp' not in given else f'{encoded.bpp:.3g} bpp, '}{len(encoded.data)} bytes"
            in (encoded.missed)
        )
        assert encoded.trials <= 10


def test_a_size_larger_than_the_largest_file_is_no_failure(picture):
    encoded = encode_picture(picture, settings(size_bytes=10**6))
    assert encoded.rate_index == 255 and encoded.notes == () and encoded.trials <= 9


def test_a_psnr_that_cannot_be_reached_is_noted(picture):
    encoded = encode_picture(picture, settings(psnr=90))
    assert encoded.rate_index == 255 and encoded.trials <= 9
    assert len(encoded.notes) == 1 and "cannot be reached" in encoded.notes[0]
    assert encoded.psnr_db == psnr_db(picture.pixels, decode_picture(encoded.data, device="cpu").pixels)


def test_a_psnr_below_the_worst_takes_the_smallest_file(picture):
    encoded = encode_picture(picture, settings(psnr=5))
    assert encoded.rate_index == LOWEST_INDEX and encoded.notes == () and encoded.trials <= 10


def test_a_search_for_better_latents_meets_the_target_with_more_quality(picture):
    plain = encode_picture(picture, settings(size_bytes=1200))
    told = []
    found = encode_picture(picture, settings(size_bytes=1200, codec=f"{backends.DEFAULT}:effort=3"), told.append)
    assert len(found.data) <= 1200 and found.notes == () and found.missed == ""
    assert found.trials in (10, 11, 12)
    assert told == sorted(told) and told[-1] == pytest.approx(1)
    measured = [psnr_db(picture.pixels, decode_picture(one.data, device="cpu").pixels) for one in (plain, found)]
    assert measured[1] > measured[0]


def test_the_seconds_of_a_search_are_those_of_all_trials(picture, monkeypatch):
    from latcodec.backends.common.sga import StochasticGumbelAnnealing
    from latcodec.backends.hyperprior_context import codec as hyperprior_context
    from latcodec.rate_control import SHORT_EFFORT

    given, began = [], time.perf_counter()

    def optimise(sga, latents, deadline, progress):
        given.append((sga.steps, deadline - began))
        return latents

    monkeypatch.setattr(StochasticGumbelAnnealing, "optimise", optimise)
    encode_picture(picture, settings(psnr=30, codec=f"{backends.DEFAULT}:effort=9,max_seconds=60"))
    short, long = (hyperprior_context.Options(0, effort=effort).steps for effort in (SHORT_EFFORT, 9))
    expected = [short, long, long]
    assert 2 <= len(given) <= 3 and [steps for steps, _ in given] == expected[: len(given)]
    assert all(deadline < 61 for _, deadline in given) and given[0][1] < 30
    given.clear()
    late = encode_picture(picture, settings(psnr=30, codec=f"{backends.DEFAULT}:effort=9,max_seconds=0.001"))
    assert given == [] and late.data == encode_picture(picture, settings(psnr=30)).data
    assert len(late.notes) == 1 and "max_seconds was over" in late.notes[0]


def test_psnr_of_sixteen_bits(picture):
    deep = Picture(picture.pixels.astype(np.uint16) * 257, gray=False)
    encoded = encode_picture(deep, settings(psnr=29))
    assert 29 <= encoded.psnr_db < 30


# What travels with the pixels.


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_arrays(dtype, channels):
    rng = np.random.default_rng(0)
    colour = data.astronaut()[60:83, 180:217]
    alpha = rng.integers(0, 256, colour.shape[:2])
    planes = {None: colour[..., 1], 1: colour[..., 1:2], 2: np.dstack([colour[..., 1], alpha]), 3: colour}
    planes[4] = np.dstack([colour, alpha])
    array = (planes[channels].astype(np.uint32) * (257 if dtype is np.uint16 else 1)).astype(dtype)
    if channels in (2, 4) and dtype is np.uint16:
        array[..., -1] -= array[..., -1] % 7
    whole = latcodec.encode(array, lmbda=0.2, device="cpu")
    decoded = latcodec.decode(whole, device="cpu")
    assert decoded.dtype == dtype
    assert decoded.shape == (array.shape[:2] if channels == 1 else array.shape)
    assert psnr_db(array.reshape(decoded.shape)[..., :3], decoded[..., :3], np.iinfo(dtype).max) > 24 or channels == 2
    if channels in (2, 4):
        assert np.array_equal(decoded[..., -1], array[..., -1])
    said = latcodec.info(whole)
    assert (said["gray"], said["alpha"], said["depth"]) == (
        channels in (None, 1, 2),
        channels in (2, 4),
        8 * array.itemsize,
    )


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4), np.int16),
        np.zeros((4, 4, 5), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((2, 2, 2, 3), np.uint8),
    ],
    ids=lambda a: f"{a.dtype} {a.shape}",
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(ImageError):
        latcodec.encode(array)


def test_views_are_fine():
    array = np.asfortranarray(data.astronaut()[60:92, 180:212])[::-1, ::-1]
    assert latcodec.encode(array, device="cpu") == latcodec.encode(array.copy(), device="cpu")


def test_metadata_is_carried(picture):
    carried = Picture(picture.pixels, False, None, b"profile", b"II*\0exif", b"<xmp/>")
    encoded = encode_picture(carried, settings())
    decoded = decode_picture(encoded.data, device="cpu")
    assert (decoded.icc, decoded.exif, decoded.xmp) == (b"profile", b"II*\0exif", b"<xmp/>")
    assert encoded.notes == ()


def test_strip_leaves_metadata_out_and_says_so(picture):
    carried = Picture(picture.pixels, False, np.full((64, 96), 7, np.uint8), b"profile", b"II*\0exif", b"<xmp/>")
    encoded = encode_picture(carried, settings(strip=True))
    decoded = decode_picture(encoded.data, device="cpu")
    assert (decoded.icc, decoded.exif, decoded.xmp) == (None, None, None)
    assert (decoded.alpha == 7).all()
    assert len(encoded.notes) == 1 and "--strip" in encoded.notes[0]
    assert encode_picture(picture, settings(strip=True)).notes == ()


def test_unknown_ancillary_sections_are_noted(picture):
    payload = container.unpack(encode_picture(picture, settings()).data)
    fields = {**vars(payload), "extra": ((0xF0, b"later"),)}
    decoded = decode_picture(container.pack(container.Payload(**fields)), device="cpu")
    assert len(decoded.notes) == 1 and str(0xF0) in decoded.notes[0]


# Decoding.


def test_unknown_wire_id():
    whole = container.pack(container.Payload(250, b"abcd", 0, 4, 4, False, 8, 0, (b"",)))
    with pytest.raises(VersionError, match="backend id: 250"):
        decode_picture(whole)
    assert api.info(whole)["codec"] == "unknown (250)"


def test_errors_come_before_networks(picture, monkeypatch):
    whole = encode_picture(picture, settings()).data
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    for damaged in (b"", b"hello", whole[:-1], whole + b"\0"):
        with pytest.raises(FormatError):
            decode_picture(damaged)
    with pytest.raises(FormatError, match="--max-pixels"):
        decode_picture(whole, max_pixels=64 * 96 - 1)


def test_three_errors_for_three_causes(picture):
    whole = encode_picture(picture, settings()).data
    payload = container.unpack(whole)

    def changed(**fields) -> bytes:
        return container.pack(container.Payload(**{**vars(payload), **fields}))

    with pytest.raises(FormatError):
        decode_picture(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:], device="cpu")
    with pytest.raises(WeightsError, match="01020304"):
        decode_picture(changed(weights_id=b"\1\2\3\4"), device="cpu")
    with pytest.raises(DriftError):
        decode_picture(changed(integers_crc=payload.integers_crc ^ 1), device="cpu")


def test_alpha_of_another_size_is_told(picture):
    transparent = Picture(picture.pixels, False, np.arange(64 * 96, dtype=np.uint8).reshape(64, 96))
    payload = container.unpack(encode_picture(transparent, settings()).data)
    for fields in ({"alpha": b""}, {"alpha": b"\1\2"}, {"alpha": payload.alpha[:-9]}, {"width": 95}):
        with pytest.raises(FormatError, match="alpha"):
            decode_picture(container.pack(container.Payload(**{**vars(payload), **fields})), device="cpu")


def test_weights_may_be_named(picture, tmp_path):
    shipped = ROOT / "weights"
    whole = encode_picture(picture, settings(weights=str(shipped))).data
    assert whole == encode_picture(picture, settings()).data
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(WeightsError, match=str(place)):
            decode_picture(whole, weights=str(place))


def test_info_says_what_is_there(picture):
    carried = Picture(picture.pixels, False, np.full((64, 96), 7, np.uint8), icc=b"profile")
    whole = encode_picture(carried, settings(lmbda=0.15)).data  # whose latents have a lower rate, and say it
    said = api.info(whole)
    assert (said["codec"], said["width"], said["height"]) == (backends.DEFAULT, 96, 64)
    assert (said["gray"], said["alpha"], said["depth"]) == (False, True, 8)
    assert said["lambda"] == pytest.approx(0.15, rel=0.02)
    assert rates.lambda_of_quality(said["quality"]) == pytest.approx(0.15, rel=0.02)
    assert said["bytes"] == len(whole) == sum(section["bytes"] for section in said["sections"])
    names = ["header", "parameters", "stream", "alpha", "icc", "checksum"]
    assert [section["name"] for section in said["sections"]] == names
    assert said["bpp"] == 8 * len(whole) / (64 * 96)


def test_info_imports_no_torch():
    whole = container.pack(container.Payload(1, b"abcd", 0, 4, 4, False, 8, 0, (b"1234",)))
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import latcodec; latcodec.info({whole!r}); print(*sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "constriction", "PIL", "scipy", "safetensors"} & set(run.stdout.split())


def test_what_no_memory_can_hold_is_refused_before_any_weights_are_read(picture, monkeypatch):
    whole = encode_picture(picture).data
    monkeypatch.setattr(runtime, "MEMORY_BYTES_PER_PIXEL", 2**60)
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    for call in (lambda: encode_picture(picture), lambda: decode_picture(whole)):
        with pytest.raises(ImageError, match="need about"):
            call()


def test_torch_out_of_memory_is_a_memory_error(picture, monkeypatch):
    def fails(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(loading, "load_model", fails)
    with pytest.raises(MemoryError):
        encode_picture(picture)
