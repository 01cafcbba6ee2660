"""Pictures without loss: the section, when the default codec takes it, and what a damaged one is."""

import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont, features

from latcodec import api as codec
from latcodec import backends, container
from latcodec.backends.common import distortion
from latcodec.backends.common.distortion import rd_cost
from latcodec.backends.common.sga import StochasticGumbelAnnealing
from latcodec.backends.hyperprior_context import codec as backend
from latcodec.backends.hyperprior_context import lossless, mode_decision
from latcodec.backends.hyperprior_context.content import is_lossless_candidate, is_screen_content
from latcodec.backends.hyperprior_context.tuning import TUNING
from latcodec.backends.hyperprior_context.wire import LOSSLESS_PARAMETERS
from latcodec.backends.loading import load_model
from latcodec.errors import DriftError, FormatError, ImageError
from latcodec.images import Picture
from latcodec.images.lossless import pack_pixels, unpack_pixels
from latcodec.settings import EncodeSettings

BACKEND = backends.by_name("hyperprior-context")


@pytest.fixture(scope="module")
def page() -> np.ndarray:
    """Black type on white, uint8 [96, 160, 3]."""
    picture = Image.new("RGB", (160, 96), "white")
    for row in range(5):
        ImageDraw.Draw(picture).text((4, 4 + 18 * row), "a page of type, again", "black", ImageFont.load_default(12))
    return np.array(picture)


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    from skimage.data import astronaut

    return np.ascontiguousarray(astronaut()[100:196, 150:310])


@pytest.fixture(scope="module")
def poster(photograph) -> np.ndarray:
    """A picture of eight colours: at low rates it costs less with loss."""
    return np.array(Image.fromarray(photograph[:48, :64]).quantize(8, dither=Image.Dither.NONE).convert("RGB"))


@pytest.fixture(scope="module")
def model():
    return load_model(BACKEND, None, None, "cpu")


def file_of(image: np.ndarray, gray: bool = False, **how) -> bytes:
    return codec.encode_picture(Picture(image, gray), EncodeSettings(**how)).data


def is_lossless(data: bytes) -> bool:
    return codec.info(data)["lossless"]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (17, 31)])
@pytest.mark.parametrize("quality", [lossless.QUICK, lossless.THOROUGH])
def test_pixels_come_back(size, quality):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    stream = pack_pixels(pixels, quality)
    assert np.array_equal(unpack_pixels(stream, size[1], size[0]), pixels)
    strided = np.repeat(pixels, 2, 1)[:, ::2]
    assert pack_pixels(strided, quality) == stream


def test_what_no_stream_holds(page):
    assert pack_pixels(page.astype(np.uint16), 75) is None
    assert pack_pixels(np.zeros((1, 16384, 3), np.uint8), 75) is None
    assert lossless.pack(page.astype(np.uint16), 0, True) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_streams_are_format_errors(data):
    pixels = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    stream = bytearray(pack_pixels(pixels, 75))
    place = data.draw(st.integers(0, len(stream) - 1))
    if data.draw(st.booleans()):
        stream = stream[:place]
    else:
        stream[place] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack_pixels(bytes(stream), 30, 20)
    except FormatError as error:
        assert "stream" in str(error)
    else:
        assert found.shape == (20, 30, 3) and found.dtype == np.uint8


def test_another_size_is_refused_before_it_is_decoded(page, monkeypatch):
    stream = pack_pixels(page, 75)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    for size in ((161, 96), (160, 95), (96, 160)):
        with pytest.raises(FormatError, match=r"stream: 160 x 96 px, but the picture has"):
            unpack_pixels(stream, *size)
    with pytest.raises(FormatError, match="no lossless WebP"):
        unpack_pixels(b"RIFF" + stream[4:12] + b"VP8X" + stream[16:], 160, 96)


def test_a_stream_with_alpha_is_refused(page):
    file = io.BytesIO()
    Image.fromarray(np.dstack([page, page[..., :1] // 2])).save(file, "WEBP", lossless=True, exact=True)
    data = file.getvalue()
    start = data.index(b"VP8L")  # as a simple file, without the header that says there is alpha
    simple = b"RIFF" + (len(data) - start + 4).to_bytes(4, "little") + b"WEBP" + data[start:]
    with pytest.raises(FormatError, match="stream"):
        unpack_pixels(simple, 160, 96)


@pytest.mark.parametrize("lmbda", [0.1, 1.0, 20.0])
def test_type_is_coded_without_loss(page, lmbda):
    data = file_of(page, lmbda=lmbda)
    assert is_lossless(data) and np.array_equal(codec.decode(data), page)
    assert len(data) < 40 + len(pack_pixels(page, lossless.QUICK))


@pytest.mark.parametrize("lmbda", [0.1, 1.0, 20.0])
def test_halftones_are_coded_without_loss(photograph, lmbda):
    """Dots of black on white, few of whose neighbours are alike: no drawing to look at, and noise to networks."""
    halftone = np.array(Image.fromarray(photograph // 3 + 85).convert("1").convert("RGB"))
    assert not is_screen_content(halftone)
    data = file_of(halftone, lmbda=lmbda)
    assert is_lossless(data) and np.array_equal(codec.decode(data), halftone)


@pytest.mark.parametrize(("gray", "most"), [(False, TUNING.few_colours), (True, TUNING.few_grays)])
def test_how_many_colours_are_few(gray, most):
    """Fewer if they are gray: no gray picture has more than 256."""
    for count in (most, most + 1):
        number = np.resize(np.arange(count), (33, 31))
        picture = np.stack([number % 256, number if gray else number // 256, number % 256], 2).astype(np.uint8)
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == count and not is_screen_content(picture)
        assert is_lossless_candidate(picture) == (count == most)
        assert not is_lossless_candidate(picture.astype(np.uint16))


def test_gray_type_stays_gray(page):
    data = codec.encode(page[..., 0], lmbda=1.0)
    assert is_lossless(data) and np.array_equal(codec.decode(data), page[..., 0])


def test_alpha_travels_beside_it(page):
    rgba = np.dstack([page, np.random.default_rng(2).integers(0, 256, (96, 160), np.uint8)])
    data = codec.encode(rgba, lmbda=1.0)
    assert is_lossless(data) and np.array_equal(codec.decode(data), rgba)


def test_sixteen_bits_and_photographs_are_not(page, photograph):
    assert not is_lossless(file_of(page.astype(np.uint16) * 257, lmbda=1.0))
    assert not is_lossless(file_of(photograph, lmbda=0.1))
    assert not is_lossless(file_of(page, lmbda=1.0, codec="hyperprior"))


def test_the_cheaper_one_is_taken(model, page, monkeypatch):
    """Whatever the prices, and whether the difference is clear or not."""
    monkeypatch.setattr(distortion, "rd_cost", lambda coded, *_: prices[coded.parameters == LOSSLESS_PARAMETERS])
    options, latents = backend.Options(150), backend.analyse(model, page)
    for with_loss, without in ((1.0, 0.9), (1.0, TUNING.early_exit_ratio - 0.1), (1.0, 1.1)):
        prices = {False: with_loss, True: without}
        coded = backend.code(model, latents, options)
        assert (coded.parameters == LOSSLESS_PARAMETERS) == (without < with_loss)


def tune(monkeypatch, **changed) -> None:
    """Give the mode decision other constants."""
    monkeypatch.setattr(mode_decision, "TUNING", replace(TUNING, **changed))


@pytest.fixture
def of_squares(monkeypatch):
    """Squares of 32 px, pictures large from 4,096 pixels on; gives the pictures that networks saw."""
    seen, analyse = [], backend.analyse
    tune(monkeypatch, early_lossless_px=4096, early_lossless_tile_px=32)
    monkeypatch.setattr(backend, "analyse", lambda model, image: seen.append(image) or analyse(model, image))
    return seen


@pytest.mark.parametrize("gray", [False, True])
def test_no_network_sees_all_of_a_large_page(page, of_squares, monkeypatch, gray):
    data = file_of(page, gray, lmbda=0.4)
    assert is_lossless(data) and 0 < len(of_squares) <= TUNING.early_lossless_tiles
    assert {square.shape for square in of_squares} == {(32, 32, 3)}
    of_squares.clear()
    tune(monkeypatch, early_lossless_px=page.size, early_lossless_tile_px=32)
    assert file_of(page, gray, lmbda=0.4) == data and [one.shape for one in of_squares] == [page.shape]
    of_squares.clear()
    small = file_of(page[:, :32], gray, lmbda=0.4)
    assert is_lossless(small) and [one.shape for one in of_squares] == [(96, 32, 3)]


def test_where_squares_do_not_make_it_clear_all_is_looked_at(page, photograph, of_squares):
    """A photograph in a page is not kept for the page's sake, nor a page without any change for nothing's."""
    for image, kept in ((np.hstack([page, photograph]), False), (np.full_like(page, 200), True)):
        of_squares.clear()
        data = file_of(image, lmbda=3.2)
        assert of_squares[-1].shape == image.shape
        assert kept or not is_lossless(data)
    assert np.array_equal(codec.decode(data), np.full_like(page, 200))


def test_a_target_and_another_codec_know_no_squares(page, of_squares):
    file_of(page, size_bytes=5000)
    assert {one.shape for one in of_squares} <= {page.shape}
    of_squares.clear()
    assert not is_lossless(file_of(page, lmbda=1.0, codec="hyperprior-context:lossless=no"))
    assert [one.shape for one in of_squares] == [page.shape]


def test_no_loss_is_cheaper_than_any_base(model, page):
    latents = backend.analyse(model, page)
    found = backend.code(model, latents, backend.Options(128))
    least = rd_cost(found, page, page, 128)
    assert found.details == {"lossless": True} and found.estimated_bits == 8 * len(found.streams[0])
    for base in (None, 60, 100):
        rate = model.operating_point(128, None if base is None else bytes((base,)))
        coded = backend.encode_at(model, latents, backend.Options(128), model.step_error_bits(), rate)
        assert rd_cost(coded, backend.shown(model, coded, 128, (96, 160), False, 8), page, 128) > least


def test_a_search_is_not_begun_and_files_do_not_grow(model, page, monkeypatch):
    monkeypatch.setattr(StochasticGumbelAnnealing, "optimise", lambda *_: pytest.fail("searched"))
    plain, more = (backend.encode(model, page, backend.Options(128, effort=effort)) for effort in (0, 9))
    assert more.parameters == LOSSLESS_PARAMETERS and len(more.streams[0]) <= len(plain.streams[0])


def test_tables_are_not_fitted_to_them(model, page):
    symbols, rows = backend.encode(model, page, backend.Options(128)).counted()
    assert len(symbols) == len(rows) == 0


def test_sizes_are_met_with_loss_or_without(poster):
    whole = len(file_of(poster, lmbda=0.1))
    lossy = EncodeSettings(codec="hyperprior-context:lossless=false", size_bytes=whole - 1)
    assert is_lossless(file_of(poster, lmbda=0.1))
    for limit, loss in ((whole, False), (whole - 1, True)):
        encoded = codec.encode_picture(Picture(poster, False), EncodeSettings(size_bytes=limit))
        assert not encoded.missed and is_lossless(encoded.data) != loss and len(encoded.data) <= limit
    assert encoded.data == codec.encode_picture(Picture(poster, False), lossy).data


def test_where_no_size_is_small_enough_the_smallest_is_told(page):
    encoded = codec.encode_picture(Picture(np.tile(page, (2, 2, 1)), False), EncodeSettings(size_bytes=100))
    assert encoded.missed and is_lossless(encoded.data)


def test_it_can_be_left_out(page):
    data = file_of(page, lmbda=1.0, codec="hyperprior-context:lossless=no")
    assert not is_lossless(data) and not np.array_equal(codec.decode(data), page)


def test_verify_notices_another_picture(model, page, monkeypatch):
    def broken(*_):
        raise FormatError("stream")

    for unpacked in (lambda *_: page[::-1], broken):
        monkeypatch.setattr(lossless, "unpack_pixels", unpacked)
        with pytest.raises(DriftError, match="lossless stream just written"):
            backend.encode(model, page, backend.Options(128))
        unchecked = backend.encode(model, page, backend.Options(128, verify=False))
        assert unchecked.parameters == LOSSLESS_PARAMETERS


def test_what_the_header_says_is_held_against_the_stream(page):
    payload = container.unpack(file_of(page, lmbda=1.0))
    assert payload.integers_crc == zlib.crc32(page.tobytes()) and payload.parameters == bytes((0, 1))
    for changed, error, text in (
        ({"integers_crc": payload.integers_crc ^ 1}, DriftError, "integers CRC"),
        ({"depth": 16}, FormatError, "16 bits"),
        ({"width": 161}, FormatError, "stream: 160 x 96"),
        ({"streams": (payload.streams[0][:-9],)}, FormatError, "stream"),
        ({"streams": payload.streams * 2}, FormatError, "2 streams"),
        ({"parameters": bytes((0, 2))}, FormatError, "parameters"),
        ({"width": 1600, "height": 9600}, FormatError, "cannot hold 1600 x 9600"),
    ):
        with pytest.raises(error, match=text):
            codec.decode_picture(container.pack(replace(payload, **changed)))


def test_gray_is_held_against_the_stream(photograph):
    stream = lossless.pack(photograph, 0, True)
    payload = container.Payload(
        5, b"abcd", 128, 160, 96, False, 8, lossless.crc(photograph), (stream,), parameters=LOSSLESS_PARAMETERS
    )
    assert np.array_equal(codec.decode_picture(container.pack(payload)).pixels, photograph)  # whatever the weights are
    with pytest.raises(FormatError, match="gray"):
        codec.decode_picture(container.pack(replace(payload, gray=True)))


def test_large_flat_pictures_are_no_smaller_than_they_may_ask_for():
    image = np.full((1200, 900, 3), 7, np.uint8)
    stream = lossless.pack(image, 0, True)
    assert len(stream) == 264 and stream.endswith(bytes(100))  # 1200 * 900 / 4096
    payload = container.Payload(
        5, b"abcd", 128, 900, 1200, False, 8, lossless.crc(image), (stream,), parameters=LOSSLESS_PARAMETERS
    )
    assert np.array_equal(codec.decode_picture(container.pack(payload)).pixels, image)
    with pytest.raises(FormatError, match="cannot hold"):
        codec.decode_picture(container.pack(replace(payload, streams=(stream.rstrip(b"\0"),))))


def test_where_libwebp_is_missing_or_fails(page, monkeypatch):
    stream = pack_pixels(page, 75)
    with monkeypatch.context() as patched:
        patched.setattr(features, "check", lambda name: name != "webp")
        assert pack_pixels(page, 75) is None
        with pytest.raises(ImageError, match="built without"):
            unpack_pixels(stream, 160, 96)

    def none_left(*_, **__):
        raise ValueError("encoding error 1: Out of memory")

    monkeypatch.setattr(Image.Image, "save", none_left)
    assert pack_pixels(page, 75) is None
    assert not is_lossless(file_of(page, lmbda=1.0))

    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        unpack_pixels(stream, 160, 96)


def test_only_files_without_loss_say_so(page, photograph):
    payload = container.unpack(file_of(page, lmbda=1.0))
    assert codec.info(container.pack(payload))["lossless"] is True
    assert codec.info(container.pack(replace(payload, backend_id=1)))["lossless"] is False
    assert codec.info(container.pack(replace(payload, backend_id=77)))["lossless"] is False
    assert codec.info(file_of(photograph, lmbda=1.0))["lossless"] is False
