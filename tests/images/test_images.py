"""images: every mode and format, depth, metadata, orientation, limits, and errors that are only ImageError."""

import io
import itertools
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin

from latcodec import images
from latcodec.errors import ImageError, OptionError
from latcodec.images.formats import FORMATS, WRITABLE, format_of_bytes, format_of_suffix

RANDOM = np.random.default_rng(7)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6">\xc3\xa9</a></x:xmpmeta>'
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def every(*choices):
    return list(itertools.product(*choices))


def samples(*shape, dtype=np.uint8):
    return RANDOM.integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(*shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    plane = (rows * 3 + columns * 2) % 256
    return np.stack([plane, plane[::-1], plane[:, ::-1], plane // 2 + 100][: shape[2]], axis=2).astype(np.uint8)


def file_of(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif_bytes(orientation=None, order="<"):
    exif = Image.Exif()
    exif.endian = order
    exif[ExifTags.Base.Make] = "Maker"
    exif[ExifTags.Base.Copyright] = "a person"
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] = "50 mm and a long name"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 12.5)
    return exif.tobytes()[6:]


def png16(array, colour_type, extra=b""):
    """A PNG of 16 bits per sample written here, so that the reader is not tested against its own library."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    extra = chunk(b"tRNS", extra) if extra else b""
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(array, photometric, order="<", extra=(), bits=16, **tags):
    """An uncompressed TIFF written here, uint16 [H, W, S]."""
    height, width, planes = array.shape
    ifd = TiffImagePlugin.ImageFileDirectory_v2(b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08")
    body = array.astype(order + "u2").tobytes()
    ifd[256], ifd[257], ifd[258], ifd[259], ifd[262] = width, height, (bits,) * planes, 1, photometric
    ifd[273], ifd[277], ifd[278], ifd[279] = 0, planes, height, len(body)
    if extra:
        ifd[338] = extra
    for tag, value in tags.items():
        ifd[int(tag[1:])] = value
    return (b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08") + ifd.tobytes(8) + body


def written(picture, format):
    file = io.BytesIO()
    notes = images.write_picture(picture, file, format)
    return file.getvalue(), notes


def picture_of(gray=False, alpha=False, dtype=np.uint8, shape=(5, 7), **extras):
    pixels = np.repeat(samples(*shape, 1, dtype=dtype), 3, axis=2) if gray else samples(*shape, 3, dtype=dtype)
    return images.Picture(pixels, gray, samples(*shape, dtype=dtype) if alpha else None, **extras)


def same(a, b):
    assert a.pixels.dtype == b.pixels.dtype and np.array_equal(a.pixels, b.pixels)
    assert a.pixels.flags.c_contiguous and a.pixels.flags.writeable
    assert a.gray == b.gray and (a.alpha is None) == (b.alpha is None)
    assert a.alpha is None or (a.alpha.dtype == b.alpha.dtype and np.array_equal(a.alpha, b.alpha))


@pytest.mark.parametrize(
    "mode, format",
    [("1", "PNG"), ("1", "TIFF"), ("1", "BMP"), ("1", "PPM"), ("L", "PNG"), ("L", "TIFF"), ("L", "BMP"), ("L", "PPM")]
    + [("LA", "PNG"), ("LA", "TIFF"), ("P", "PNG"), ("P", "TIFF"), ("P", "BMP"), ("P", "GIF"), ("RGB", "PNG")]
    + [("RGB", "TIFF"), ("RGB", "BMP"), ("RGB", "PPM"), ("RGBA", "PNG"), ("RGBA", "TIFF"), ("RGBX", "TIFF")],
)
def test_modes_of_lossless_formats_are_read_exactly(mode, format):
    four = Image.fromarray(smooth(9, 11, 4))
    image = four if mode == "RGBA" else four.convert("RGB").convert(mode)
    if mode == "LA":
        image.putalpha(four.getchannel("A"))
    picture = images.read_picture(file_of(image, format))
    assert picture.gray == (mode in ("1", "L", "LA"))
    assert np.array_equal(picture.pixels, np.array(image.convert("RGB")))
    if mode in ("LA", "RGBA"):
        assert np.array_equal(picture.alpha, np.array(image.getchannel("A")))
    else:
        assert picture.alpha is None
    assert picture.pixels.dtype == np.uint8 and not picture.exif and not picture.icc


@pytest.mark.parametrize("format, mode", every(["JPEG", "WEBP", "AVIF"], ["L", "RGB"]))
def test_lossy_formats_equal_pillow(format, mode):
    data = file_of(Image.fromarray(smooth(33, 41, 3)).convert(mode), format)
    expected = Image.open(io.BytesIO(data))
    picture = images.read_picture(data)
    assert np.array_equal(picture.pixels, np.array(expected.convert("RGB")))
    assert picture.gray == (expected.mode == "L") and picture.alpha is None and picture.notes == ()


@pytest.mark.parametrize("format", ["WEBP", "AVIF"])
def test_alpha_of_webp_and_avif(format):
    data = file_of(Image.fromarray(smooth(20, 30, 4)), format, lossless=True)
    expected = np.array(Image.open(io.BytesIO(data)))
    picture = images.read_picture(data)
    assert np.array_equal(picture.pixels, expected[..., :3]) and np.array_equal(picture.alpha, expected[..., 3])


def test_palette_transparency_and_colour_keys_become_alpha():
    palette = Image.new("P", (4, 2))
    palette.putpalette([0, 0, 0, 10, 20, 30, 40, 50, 60, 255, 255, 255])
    palette.putdata([0, 1, 2, 3] * 2)
    picture = images.read_picture(file_of(palette, "PNG", transparency=bytes([255, 0, 128])))
    assert picture.alpha.tolist() == [[255, 0, 128, 255]] * 2
    assert picture.pixels[0, 1].tolist() == [10, 20, 30] and not picture.gray
    gray = images.read_picture(file_of(Image.fromarray(np.array([[5, 9]], np.uint8)), "PNG", transparency=9))
    assert gray.gray and gray.alpha.tolist() == [[255, 0]]
    colour = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    keyed = images.read_picture(file_of(Image.fromarray(colour), "PNG", transparency=(1, 2, 4)))
    assert keyed.alpha.tolist() == [[255, 0]]
    bilevel = images.read_picture(
        file_of(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG", transparency=255)
    )
    assert bilevel.alpha.tolist() == [[255, 0]] and bilevel.pixels[0, :, 0].tolist() == [0, 255]


def test_colour_key_of_a_4_bit_gray_png_counts_in_its_own_bits():
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)) + chunk(b"tRNS", b"\0\x03")
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0\x3f")) + chunk(b"IEND", b"")
    picture = images.read_picture(data)
    assert picture.pixels[0, :, 0].tolist() == [51, 255] and picture.alpha.tolist() == [[0, 255]]


@pytest.mark.parametrize("colour_type, planes", [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_png_of_16_bits_is_read_exactly(colour_type, planes):
    array = samples(6, 5, planes, dtype=np.uint16)
    picture = images.read_picture(png16(array, colour_type))
    assert picture.pixels.dtype == np.uint16 and picture.gray == (planes < 3) and picture.notes == ()
    assert np.array_equal(picture.pixels, np.repeat(array[..., :1], 3, 2) if planes < 3 else array[..., :3])
    assert picture.alpha is None if planes in (1, 3) else np.array_equal(picture.alpha, array[..., -1])


@pytest.mark.parametrize("colour_type, planes", [(0, 1), (2, 3)])
def test_colour_key_of_16_bits_becomes_alpha(colour_type, planes):
    array = samples(4, 4, planes, dtype=np.uint16)
    key = array[1, 2].copy()
    array[3, 3] = key
    array[0, 0, 0] = key[0] ^ 1  # differs in the low byte only
    picture = images.read_picture(png16(array, colour_type, extra=key.astype(">u2").tobytes()))
    assert np.array_equal(picture.alpha == 0, (array == key).all(axis=2)) and picture.alpha.max() == 65535
    assert np.array_equal(picture.pixels[..., :planes], array)


@pytest.mark.parametrize("order, planes", every("<>", [1, 2, 3, 4]))
def test_tiff_of_16_bits_is_read_exactly(order, planes):
    array = samples(6, 5, planes, dtype=np.uint16)
    data = tiff16(array, 2 if planes >= 3 else 1, order, extra=(2,) if planes in (2, 4) else ())
    picture = images.read_picture(data)
    assert picture.pixels.dtype == np.uint16 and picture.gray == (planes < 3) and picture.notes == ()
    assert np.array_equal(picture.pixels, np.repeat(array[..., :1], 3, 2) if planes < 3 else array[..., :3])
    assert picture.alpha is None if planes in (1, 3) else np.array_equal(picture.alpha, array[..., -1])


def test_tiff_variants_of_16_bits():
    array = samples(3, 4, 1, dtype=np.uint16)
    assert np.array_equal(images.read_picture(tiff16(array, 0)).pixels[..., :1], 65535 - array)
    colours = samples(3, 4, 4, dtype=np.uint16)
    unspecified = images.read_picture(tiff16(colours, 2, extra=(0,)))
    assert unspecified.alpha is None and "1 extra channels dropped" in unspecified.notes
    colours[..., 3] |= 0x8000
    colours[..., :3] = colours[..., :3] % 0x8000
    divided = images.read_picture(tiff16(colours, 2, extra=(1,)))
    expected = np.floor(colours[..., :3].astype(np.float64) * 65535 / colours[..., 3:] + 0.5)
    assert np.array_equal(divided.pixels, expected.astype(np.uint16)) and "premultiplied" in divided.notes[0]
    turned = images.read_picture(tiff16(array, 1, t274=6))
    assert np.array_equal(turned.pixels[..., 0], np.rot90(array[..., 0], -1))


@pytest.mark.parametrize("maxval", [256, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_pgm_and_ppm_of_more_than_8_bits(kind, maxval):
    array = (samples(4, 3, 1 if kind in (2, 5) else 3, dtype=np.uint16).astype(int) % (maxval + 1)).astype(np.uint16)
    header = f"P{kind} # a comment\n#another\n3 4\n{maxval}\n".encode()
    body = array.astype(">u2").tobytes() if kind >= 5 else " ".join(map(str, array.flat)).encode()
    picture = images.read_picture(header + body)
    expected = np.floor(array * (65535 / maxval) + 0.5).astype(np.uint16)
    assert picture.gray == (kind in (2, 5)) and np.array_equal(picture.pixels[..., : array.shape[2]], expected)
    with pytest.raises(ImageError, match="truncated"):
        images.read_picture(header + (body[:-1] if kind >= 5 else body.rsplit(b" ", 1)[0]))


def test_float_signed_and_32_bit_pictures_are_refused_with_advice():
    for image in (Image.fromarray(np.ones((2, 2), np.float32)), Image.fromarray(np.full((2, 2), -1, np.int32))):
        with pytest.raises(ImageError, match="convert"):
            images.read_picture(file_of(image, "TIFF"))


def test_cmyk_lab_and_ycbcr_are_converted_with_a_note():
    cmyk = Image.fromarray(smooth(16, 16, 3)).convert("CMYK")
    picture = images.read_picture(file_of(cmyk, "TIFF"))
    assert np.array_equal(picture.pixels, np.array(cmyk.convert("RGB"))) and "CMYK" in picture.notes[0]
    broken = images.read_picture(file_of(cmyk, "TIFF", icc_profile=b"not a profile"))
    assert broken.icc is None and "unusable" in broken.notes[0] and np.array_equal(broken.pixels, picture.pixels)
    jpeg = images.read_picture(file_of(cmyk, "JPEG", icc_profile=ICC))  # a profile of the wrong kind is unusable too
    assert jpeg.icc is None and "CMYK" in jpeg.notes[0]
    lab = Image.merge("LAB", Image.fromarray(smooth(8, 8, 3)).split())
    assert "LAB converted to sRGB" in images.read_picture(file_of(lab, "TIFF")).notes
    ycbcr = Image.fromarray(smooth(8, 8, 3)).convert("YCbCr")
    assert "YCbCr converted to sRGB" in images.read_picture(file_of(ycbcr, "TIFF")).notes


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


def lossy_free_files():
    rgb, gray = Image.fromarray(smooth(24, 32, 3)), Image.fromarray(smooth(24, 32, 1)[..., 0])
    yield "png", file_of(rgb, "PNG")
    yield "png16", png16(samples(24, 32, 3, dtype=np.uint16), 2)
    yield "jpeg", file_of(rgb, "JPEG", exif=b"Exif\0\0" + exif_bytes(3), icc_profile=ICC)
    yield "webp", file_of(rgb, "WEBP", lossless=True)
    yield "avif", file_of(rgb, "AVIF")
    yield "bmp", file_of(rgb, "BMP")
    yield "ppm", file_of(rgb, "PPM")
    yield "pgm16", b"P5 24 32 65535\n" + samples(24, 32, dtype=np.uint16).tobytes()
    yield "gif", file_of(gray, "GIF")
    yield "tiff", file_of(rgb, "TIFF")
    yield "tiff lzw", file_of(rgb, "TIFF", compression="tiff_lzw")
    yield "tiff16", written(picture_of(dtype=np.uint16, shape=(24, 32), exif=exif_bytes()), "tiff")[0]
    yield "tiff16 raw", tiff16(samples(24, 32, 3, dtype=np.uint16), 2)


FILES = dict(lossy_free_files())


@pytest.mark.parametrize("name", FILES)
def test_truncated_files_are_image_errors(name, tmp_path):
    data = FILES[name]
    path = tmp_path / "cut.bin"
    for length in sorted({0, 1, 3, 8, 20, 40, len(data) // 4, len(data) // 2, len(data) * 3 // 4}):
        path.write_bytes(data[:length])
        if name == "tiff16" and length:  # its directory stands at the end, every cut hits it
            assert length < struct.unpack_from("<I", data, 4)[0]
        with pytest.raises(ImageError) as caught:
            images.read_picture(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_image_errors_or_pictures(name):
    data = FILES[name]
    random = np.random.default_rng(1)
    for trial in range(80):
        damaged = bytearray(data)
        for at in random.integers(0, min(len(data), 200 if trial % 2 else len(data)), 3):
            damaged[at] = random.integers(256)
        try:
            picture = images.read_picture(bytes(damaged), max_pixels=2**20)
        except ImageError as error:
            assert "\n" not in str(error)
        else:
            assert picture.pixels.shape[2] == 3 and picture.pixels.dtype in (np.uint8, np.uint16)


@pytest.mark.parametrize("name", FILES)
def test_max_pixels(name):
    assert images.read_picture(FILES[name], max_pixels=24 * 32).pixels.size == 24 * 32 * 3
    with pytest.raises(ImageError, match="limit of 767"):
        images.read_picture(FILES[name], max_pixels=24 * 32 - 1)
    with pytest.raises(ImageError, match="max-pixels"):
        images.read_picture(FILES[name], max_pixels=100)


def test_limits_hold_before_pixels_are_decoded_and_pillow_globals_stay():
    before = Image.MAX_IMAGE_PIXELS
    huge = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (body := struct.pack(">IIBBBBB", 10**6, 10**6, 8, 2, 0, 0, 0))
    huge += struct.pack(">I", zlib.crc32(b"IHDR" + body)) + struct.pack(">I", 0) + b"IDAT" + bytes(4)
    with pytest.raises(ImageError, match="max-pixels"):
        images.read_picture(huge)
    canvas = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\x7f" * 2
    with pytest.raises(ImageError):
        images.read_picture(canvas)
    assert Image.MAX_IMAGE_PIXELS == before


def test_pillows_own_lower_limit_does_not_matter(monkeypatch):
    for limit in (24 * 32 - 1, 10):  # Pillow would warn, Pillow would raise
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for data in FILES.values():
            assert images.read_picture(data).notes == images.read_picture(data, max_pixels=24 * 32).notes
        assert Image.MAX_IMAGE_PIXELS == limit


def test_sources_and_names(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(FILES["png"])
    expected = images.read_picture(FILES["png"])
    with path.open("rb") as file:
        for source in (path, str(path), io.BytesIO(FILES["png"]), bytearray(FILES["png"]), file):
            same(images.read_picture(source), expected)
    with pytest.raises(ImageError, match="missing.png: cannot read: No such file"):
        images.read_picture(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="Is a directory"):
        images.read_picture(tmp_path)
    with pytest.raises(ImageError, match="picture bytes: not a PNG"):
        images.read_picture(b"%PDF-1.4")
    with pytest.raises(ImageError, match="not a PNG"):
        images.read_picture("/dev/zero")


def test_format_of_suffix_and_unknown_formats():
    assert format_of_suffix("a/B.PNG") == "png" and format_of_suffix("x.JpG") == "jpeg"
    for name in ("a.tif", "a.webp", "a.avif", "a.bmp", "a.ppm", "a.pgm"):
        assert format_of_suffix(name)
    for name, why in (("a.xyz", "'.xyz'"), ("noend", "no suffix")):
        with pytest.raises(OptionError, match=why):
            format_of_suffix(name)
    with pytest.raises(OptionError, match="use one of png"):
        written(picture_of(), "gif")
    with pytest.raises(ImageError, match="WebP allows 16383"):
        written(picture_of(shape=(1, 16384)), "webp")


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


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_rows_of_the_table_of_formats(row):
    """A row finds the files it writes by suffix and by content, and no row takes another's."""
    assert sum(set(row.suffixes) <= set(other.suffixes) for other in FORMATS) == 1
    if row.name in WRITABLE:
        assert all(format_of_suffix(f"a{suffix}") == row.name for suffix in row.suffixes)
        assert format_of_bytes(written(picture_of(gray=row.name == "pgm"), row.name)[0]) is row
    else:
        with pytest.raises(OptionError, match="unknown picture suffix"):
            format_of_suffix(f"a{row.suffixes[0]}")


def test_importing_images_imports_no_picture_library():
    heavy = "{'PIL', 'imagecodecs', 'tifffile', 'torch'}"
    code = f"import sys, latcodec.images.read, latcodec.images.write; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
