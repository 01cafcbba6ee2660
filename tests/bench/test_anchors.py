"""The anchors: whole files of Pillow's codecs that come back as the same picture, at settings that are in sight."""

import io

import numpy as np
import pytest
from PIL import Image

from latcodec import metrics
from latcodec.bench import anchors
from latcodec.errors import OptionError
from latcodec.images import Picture

THERE = anchors.available_names()


@pytest.fixture(scope="module")
def crop():
    from skimage import data

    return Picture(np.ascontiguousarray(data.chelsea()[60:188, 100:260]), False)


@pytest.mark.parametrize("name", THERE)
def test_larger_settings_are_larger_and_better(name, crop):
    anchor = anchors.by_name(name)
    sizes, psnrs = [], []
    for value in (anchor.values[1], anchor.values[4], anchor.values[7]):
        data = anchor.encode(crop, value)
        decoded = anchor.decode(data)
        assert (decoded.shape, decoded.dtype) == (crop.pixels.shape, np.uint8)
        sizes.append(len(data))
        psnrs.append(metrics.psnr_db(crop.pixels, decoded))
    assert sizes == sorted(set(sizes)) and psnrs == sorted(set(psnrs)) and psnrs[2] > 34


@pytest.mark.parametrize("name", THERE)
@pytest.mark.parametrize("shape", [(1, 1), (9, 7), (70, 33)])
def test_any_size_gray_or_colour(name, shape, crop):
    anchor = anchors.by_name(name)
    colour = np.ascontiguousarray(crop.pixels[: shape[0], : shape[1]])
    gray = np.ascontiguousarray(colour[:, :, :1].repeat(3, 2))
    for pixels, is_gray in ((colour, False), (gray, True)):
        decoded = anchor.decode(anchor.encode(Picture(pixels, is_gray), anchor.values[6]))
        assert decoded.shape == pixels.shape
        if is_gray:
            assert np.ptp(decoded.astype(int), axis=2).max() <= 1


def test_plain_jpeg_is_pillows_default_and_progressive_is_smaller(crop):
    buffer = io.BytesIO()
    Image.fromarray(crop.pixels).save(buffer, "JPEG", quality=50)
    plain, progressive = (anchors.ANCHORS[name].encode(crop, 50) for name in ("jpeg", "jpeg-progressive"))
    assert plain == buffer.getvalue() and len(progressive) < len(plain)
    assert np.array_equal(anchors.ANCHORS["jpeg"].decode(plain), anchors.ANCHORS["jpeg"].decode(progressive))


@pytest.mark.parametrize("name", THERE)
def test_the_largest_file_within_a_size(name, crop):
    anchor = anchors.by_name(name)
    limit = len(anchor.encode(crop, anchor.values[4])) + 5
    data = anchor.largest_within(crop, limit)
    assert 0.9 * limit < len(data) <= limit
    assert anchor.decode(data).shape == crop.pixels.shape
    assert anchor.largest_within(crop, 10) is None


def test_names_carry_options():
    webp = anchors.by_name("webp:method=4")
    assert (webp.name, webp.options, webp.title) == ("webp:method=4", {"method": 4}, "WebP, method 4")
    jpeg = anchors.by_name("jpeg:progressive=true,subsampling=4:4:4")
    assert jpeg.options == {"progressive": True, "optimize": False, "subsampling": "4:4:4"}
    assert anchors.by_name("webp") is anchors.ANCHORS["webp"]


@pytest.mark.parametrize(
    "name, what",
    [("heif", "unknown; there are: jpeg,"), ("webp:metod=4", "'metod' is unknown; there are: method"),
     ("webp:method=fast", "not of type int"), ("jpeg:progressive=3", "not of type bool"), ("webp:method", "key=value")],
)  # fmt: skip
def test_bad_names_are_refused(name, what):
    with pytest.raises(OptionError, match=what):
        anchors.by_name(name)


def test_without_its_plug_in_jpeg_xl_is_left_out_or_refused(monkeypatch):
    monkeypatch.setattr(anchors, "_can_import", lambda module: False)
    assert anchors.available_names() == ["jpeg", "jpeg-progressive", "webp", "avif", "jpeg2000"]
    with pytest.raises(OptionError, match="pip install pillow-jxl-plugin"):
        anchors.by_name("jpegxl")


def test_the_report_is_told_every_setting():
    assert "progressive True, optimize True, subsampling 4:2:0" in anchors.ANCHORS["jpeg-progressive"].settings
    assert "irreversible True" in anchors.ANCHORS["jpeg2000"].settings
    assert [anchors.ANCHORS["webp"].setting_label(30), anchors.ANCHORS["jpeg2000"].setting_label(0.25)] == [
        "q30",
        "0.25 bpp",
    ]


def test_threads_reach_the_codecs_that_use_them(monkeypatch):
    from PIL import AvifImagePlugin

    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    monkeypatch.setattr(anchors, "_thread_count", 0)
    anchors.set_threads(1)
    assert (anchors._thread_count, AvifImagePlugin.DEFAULT_MAX_THREADS) == (1, 1)
    if "jpegxl" in THERE:
        from pillow_jxl import JpegXLImagePlugin

        assert JpegXLImagePlugin.DECODE_THREADS == 1
        monkeypatch.setattr(JpegXLImagePlugin, "DECODE_THREADS", -1)
