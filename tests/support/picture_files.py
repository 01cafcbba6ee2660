"""Picture files for tests, made by Pillow or byte by byte, and comparisons of pictures."""

import io
import itertools
import struct
import zlib

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from latcodec import images

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
