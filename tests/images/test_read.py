"""Reading: every mode and format at full depth, limits, and errors that are only ImageError."""

import io
import struct
import zlib

import numpy as np
import pytest
from picture_files import ICC, every, exif_bytes, file_of, picture_of, png16, same, samples, smooth, tiff16, written
from PIL import Image

from latcodec import images
from latcodec.errors import ImageError


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
