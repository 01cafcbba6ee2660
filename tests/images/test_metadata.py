"""Metadata: orientation is applied once, EXIF and XMP are kept, and what is dropped is noted."""

import io
import struct

import numpy as np
import pytest
from picture_files import XMP, every, exif_bytes, file_of, same, smooth, tiff16, written
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from latcodec import images


@pytest.mark.parametrize("orientation, order", every(range(1, 9), "<>"))
def test_orientation_is_applied_once_as_pillow_does(orientation, order):
    exif = exif_bytes(orientation, order)
    xmp = XMP.replace(b'"6"', b'"%d"' % orientation)
    for format in ("PNG", "WEBP", "JPEG", "AVIF"):
        image = Image.fromarray(smooth(9, 14, 4 if format != "JPEG" else 3))
        extra = {"lossless": True} if format == "WEBP" else {}
        data = file_of(image, format, exif=b"Exif\0\0" + exif, xmp=xmp, **extra)
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        picture = images.read_picture(data)
        assert np.array_equal(picture.pixels, expected[..., :3])
        assert picture.alpha is None or np.array_equal(picture.alpha, expected[..., 3])
        found = Image.Exif()
        found.load(picture.exif)
        assert found.get(ExifTags.Base.Orientation, 1) == 1 and found[ExifTags.Base.Make] == "Maker"
        if format in ("JPEG", "WEBP"):  # only the field changed, maker notes keep their offsets
            assert len(picture.exif) == len(exif)
            assert picture.xmp == XMP.replace(b'"6"', b'"1"')
        same(images.read_picture(written(picture, "png")[0]), picture)


@pytest.mark.parametrize("orientation, compression", every(range(1, 9), [None, "tiff_deflate"]))
def test_orientation_of_tiff(orientation, compression):
    pixels = smooth(5, 8, 3)
    upright = np.array(
        ImageOps.exif_transpose(
            Image.open(io.BytesIO(file_of(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0" + exif_bytes(orientation))))
        )
    )
    data = file_of(Image.fromarray(pixels), "TIFF", tiffinfo={274: orientation}, compression=compression)
    assert np.array_equal(images.read_picture(data).pixels, upright)
    deep = images.read_picture(tiff16(pixels.astype(np.uint16) * 257, 2, t274=orientation))
    assert np.array_equal(deep.pixels, upright.astype(np.uint16) * 257)


def test_orientation_in_xmp_alone_is_carried_not_applied():
    pixels = smooth(5, 8, 3)
    for data in (
        file_of(Image.fromarray(pixels), "TIFF", tiffinfo={700: XMP}),
        file_of(Image.fromarray(pixels), "TIFF", tiffinfo={700: XMP}, compression="tiff_deflate"),
        file_of(Image.fromarray(pixels), "WEBP", lossless=True, xmp=XMP),
    ):
        picture = images.read_picture(data)
        assert np.array_equal(picture.pixels, pixels) and picture.xmp == XMP


def test_exif_hex_text_of_imagemagick_is_carried():
    info = PngImagePlugin.PngInfo()
    exif = exif_bytes(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    picture = images.read_picture(file_of(Image.fromarray(smooth(3, 5, 3)), "PNG", pnginfo=info))
    assert len(picture.exif) == len(exif) and picture.pixels.shape == (5, 3, 3) and picture.notes == ()


def test_what_is_not_carried_is_noted():
    rgb = Image.fromarray(smooth(8, 8, 3))
    frames = file_of(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90), rgb.rotate(180)])
    assert "2 further frames dropped" in images.read_picture(frames).notes
    pair = images.read_picture(file_of(rgb, "MPO", save_all=True, append_images=[rgb]))
    assert pair.notes == ("1 further frames dropped",)
    pages = file_of(rgb, "TIFF", save_all=True, append_images=[rgb])
    assert "1 further frames dropped" in images.read_picture(pages).notes
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "a title")
    notes = images.read_picture(file_of(rgb, "PNG", pnginfo=info, dpi=(300, 300))).notes
    assert notes[0] == "text dropped: Title" and notes[1].startswith("resolution dropped: 299.9")
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))
    assert images.read_picture(file_of(rgb, "PNG", pnginfo=info)).notes == ("gamma dropped: 1",)
    info = PngImagePlugin.PngInfo()
    info.add(b"cICP", bytes([9, 16, 0, 1]))
    assert images.read_picture(file_of(rgb, "PNG", pnginfo=info)).notes == ("colour space dropped: PNG cICP chunk",)
    assert images.read_picture(file_of(rgb, "JPEG", comment=b"hello")).notes == ("comment dropped",)
    assert "33723" not in (said := images.read_picture(file_of(rgb, "TIFF", tiffinfo={33723: b"iptc"})).notes)[0]
    assert said == ("TIFF tags dropped: IPTC",)
