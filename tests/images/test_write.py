"""Writing: what formats carry, notes on what they cannot, rounding, pipes and full disks."""

import io

import numpy as np
import pytest
from picture_files import ICC, XMP, every, exif_bytes, picture_of, same, smooth, written
from PIL import ExifTags, Image

from latcodec import images
from latcodec.errors import ImageError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gray, alpha", every([False, True], [False, True]))
@pytest.mark.parametrize("format", ["png", "tiff"])
@pytest.mark.parametrize("order", "<>")
def test_png_and_tiff_carry_everything(format, gray, alpha, dtype, order):
    picture = picture_of(gray, alpha, dtype, (37, 53), icc=ICC, exif=exif_bytes(order=order), xmp=XMP)
    data, notes = written(picture, format)
    back = images.read_picture(data)
    same(back, picture)
    assert notes == () and back.notes == () and back.icc == ICC and back.xmp == XMP
    if format == "png":
        assert back.exif == picture.exif
    ours, theirs = Image.Exif(), Image.Exif()
    ours.load(back.exif)
    theirs.load(picture.exif)
    assert dict(ours) | {34665: 0, 34853: 0} == dict(theirs) | {34665: 0, 34853: 0}
    for ifd in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        assert dict(ours.get_ifd(ifd)) == dict(theirs.get_ifd(ifd)) != {}
    if dtype == np.uint16 and gray and alpha and format == "tiff":
        return  # Pillow cannot open it
    with Image.open(io.BytesIO(data)) as pillow:
        pillow.load()
        assert pillow.size == (53, 37)
        if dtype == np.uint8:
            assert np.array_equal(np.array(pillow.convert("RGB")), picture.pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (700, 1024)])
def test_tiff_of_one_and_of_many_strips(shape):
    picture = picture_of(shape=shape)
    data, _ = written(picture, "tiff")
    same(images.read_picture(data), picture)


@pytest.mark.parametrize("format", ["webp", "jpeg", "avif"])
def test_webp_jpeg_and_avif_carry_metadata(format):
    rgb = smooth(40, 48, 3)
    picture = images.Picture(rgb, False, None, ICC, exif_bytes(orientation=1), XMP)
    data, notes = written(picture, format)
    back = images.read_picture(data)
    assert notes == () and back.icc == ICC and back.xmp == XMP
    exif = Image.Exif()
    exif.load(back.exif)
    assert exif[ExifTags.Base.Copyright] == "a person"
    assert np.array_equal(back.pixels, rgb) or format != "webp"
    assert np.abs(back.pixels.astype(int) - rgb).mean() < 3


def test_webp_is_lossless_under_transparent_pixels():
    picture = picture_of(alpha=True, shape=(20, 20))
    picture.alpha[:10] = 0
    data, notes = written(picture, "webp")
    same(images.read_picture(data), picture)
    assert notes == ()


def test_notes_of_what_a_format_cannot_carry():
    deep = picture_of(True, True, np.uint16, icc=ICC, exif=exif_bytes(), xmp=XMP)
    _, notes = written(deep, "bmp")
    for word in ("alpha dropped", "16 bits reduced to 8", "ICC dropped", "EXIF dropped", "XMP dropped"):
        assert any(note.startswith(word) for note in notes), (word, notes)
    assert len(notes) == 5
    assert written(deep, "jpeg")[1] == ("alpha dropped: JPEG has none", "16 bits reduced to 8: JPEG has no more")
    assert any(note.startswith("gray stored as three") for note in written(deep, "webp")[1])
    assert any(note.startswith("gray stored as three") for note in written(deep, "avif")[1])
    assert written(deep, "ppm")[1][0] == "alpha dropped: PPM has none"
    long = picture_of(exif=b"II*\0\x08\0\0\0\0\0\0\0\0\0" + bytes(70000), xmp=bytes(70000))
    assert [note[:12] for note in written(long, "jpeg")[1]] == ["EXIF dropped", "XMP dropped:"]
    for format in ("png", "tiff", "avif"):
        assert written(picture_of(exif=b"junk"), format)[1] == ("EXIF dropped: damaged: no TIFF header",)


def test_16_bits_are_rounded_to_nearest_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    picture = images.Picture(np.repeat(values, 3, 2), True)
    back = images.read_picture(written(picture, "bmp")[0])
    assert np.array_equal(back.pixels[..., :1], np.floor(values / 257 + 0.5).astype(np.uint8)) and back.gray


@pytest.mark.parametrize("gray, dtype", every([False, True], [np.uint8, np.uint16]))
def test_ppm_and_bmp_round_trip(gray, dtype):
    picture = picture_of(gray, dtype=dtype)
    same(images.read_picture(written(picture, "PPM")[0]), picture)
    if dtype == np.uint8:
        same(images.read_picture(written(picture, "bmp")[0]), picture)
    if gray:
        same(images.read_picture(written(picture, "pgm")[0]), picture)
    else:
        with pytest.raises(ImageError, match="write PPM"):
            written(picture, "pgm")


def test_write_needs_no_seek_and_passes_disk_errors_on():
    class Pipe:
        def __init__(self):
            self.data = b""

        def write(self, data):
            self.data += data

    class Full:
        def write(self, data):
            raise OSError(28, "No space left on device")

    for format in ("png", "jpeg", "webp", "tiff", "bmp", "ppm", "avif"):
        pipe = Pipe()
        images.write_picture(picture_of(shape=(8, 8)), pipe, format)
        assert images.read_picture(pipe.data).pixels.shape == (8, 8, 3)
        with pytest.raises(OSError, match="No space"):
            images.write_picture(picture_of(shape=(8, 8)), Full(), format)
