"""The anchors against published curves on the Kodak pictures, where they are: LATCODEC_KODAK names their folder.

Whole sets and minutes, hence slow; `make test-slow`.
"""

import os
import statistics
from pathlib import Path

import numpy as np
import pytest

from latcodec import images, metrics
from latcodec.bench import anchors, kodak

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
PLACES = (os.environ.get("LATCODEC_KODAK"), "kodak", "../shared/data/kodak")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures():
    for place in PLACES:
        paths = sorted((ROOT / place).glob("kodim*.png")) if place else []
        found = [images.read_picture(path) for path in paths]
        if len({kodak.name_of(picture.pixels) for picture in found} - {None}) == kodak.COUNT:
            return found
    pytest.skip("the Kodak pictures are not here; LATCODEC_KODAK=folder names them, bench --fetch kodak gets them")


def mean_point(anchor, value, pictures):
    """(bpp, PSNR), means over the pictures."""
    points = []
    for picture in pictures:
        data = anchor.encode(picture, value)
        pixels = picture.pixels.shape[0] * picture.pixels.shape[1]
        points.append((8 * len(data) / pixels, metrics.psnr_db(picture.pixels, anchor.decode(data))))
    return tuple(statistics.fmean(column) for column in zip(*points, strict=True))


@pytest.mark.parametrize("quality", [5, 20, 50, 70, 90, 95])
def test_webp_is_the_published_one_at_equal_settings(quality, pictures):
    published = kodak.published()["WebP"]
    bpp, psnr = mean_point(anchors.by_name("webp:method=4"), quality, pictures)
    assert psnr == pytest.approx(published["psnr_db"][quality // 5 - 1], abs=0.02)
    assert bpp == pytest.approx(published["bpp"][quality // 5 - 1], rel=0.003)


@pytest.mark.parametrize("place, quality", list(enumerate([5, 10, 15, 25, 50, 75, 90])))
def test_jpeg_is_the_one_of_the_record_at_equal_settings(place, quality, pictures):
    published = kodak.published()["JPEG progressive+optimised (measured here)"]
    bpp, psnr = mean_point(anchors.by_name("jpeg-progressive"), quality, pictures)
    assert psnr == pytest.approx(published["psnr_db"][place], abs=0.02)
    assert bpp == pytest.approx(published["bpp"][place], rel=0.003)


@pytest.mark.parametrize("quality", [5, 50, 90])
def test_plain_jpeg_is_the_published_one_but_for_its_library(quality, pictures):
    """That curve is of Pillow 7.1.2 and the JPEG library it was built with, and lies 0.07 to 0.13 dB lower."""
    published = kodak.published()["JPEG"]
    bpp, psnr = mean_point(anchors.by_name("jpeg"), quality, pictures)
    assert 0.05 < psnr - published["psnr_db"][quality // 5 - 1] < 0.15
    assert bpp == pytest.approx(published["bpp"][quality // 5 - 1], rel=0.003)


def shortfall(name, curve, pictures):
    """dB by which the published curve is above the anchor, at each of its settings within the published range."""
    anchor, published = anchors.by_name(name), kodak.published()[curve]
    found = []
    for value in anchor.values:
        bpp, psnr = mean_point(anchor, value, pictures)
        if published["bpp"][0] <= bpp <= published["bpp"][-1]:
            found.append(float(np.interp(np.log(bpp), np.log(published["bpp"]), published["psnr_db"])) - psnr)
    assert len(found) >= 4
    return found


@pytest.mark.parametrize("curve", ["JPEG2000", "TFC JPEG2000 OpenJPEG"])
def test_jpeg_2000_reaches_the_published_curves(curve, pictures):
    assert max(shortfall("jpeg2000", curve, pictures)) < 0.3


@pytest.mark.parametrize(
    "name, curve",
    [("jpeg-progressive", "JPEG progressive+optimised (measured here)"), ("avif", "AVIF 4:4:4 s6 (measured here)"),
     ("webp", "WebP"), ("jpegxl", "JPEG XL e7 (measured here)")],
)  # fmt: skip
def test_the_other_anchors_are_as_strong_as_the_published_ones(name, curve, pictures):
    if name not in anchors.available_names():
        pytest.skip("its plug-in is not installed")
    assert max(shortfall(name, curve, pictures)) < 0.15


def test_the_pictures_are_told_apart(pictures):
    assert kodak.name_of(pictures[4].pixels) == "kodim05"
