"""A Pillow plug-in: after `import latcodec.pillow`, Pillow opens and saves .lc files.

    Image.open("x.lc")                      # size, mode and metadata from the header; the networks run in load()
    image.save("x.lc", quality=60)          # or lmbda=, bpp=, psnr=, size_bytes=; codec=, device=, weights=, strip=

Modes: L, LA, RGB, RGBA and I;16. Pillow has no mode for 16 bits with colour or alpha; such files open with 8 bits and
`info["latcodec_notes"]`, a tuple of phrases, says so. `latcodec.decode` gives all 16 bits.
save() keeps `info`'s "icc_profile", "exif" and "xmp" unless an argument of that name replaces them. Like `latcodec
encode` it stores the picture upright: an EXIF orientation is applied to the pixels and set to 1. Pass exif=b"" for
pixels that have been turned already. Errors are what Pillow's own plug-ins raise: OSError with the reason for a damaged
file, missing weights or a mode that cannot be saved; ValueError for options. Pillow truncates an existing file before
it saves; the command line does not.
"""

from __future__ import annotations

from dataclasses import fields, replace
from io import BytesIO
from numbers import Real
from typing import IO

from PIL import Image, ImageFile

from latcodec import api, container
from latcodec.errors import LatcodecError, OptionError

FORMAT = "LATCODEC"
_SETTINGS = tuple(field.name for field in fields(api.EncodeSettings))
_NUMERIC_SETTINGS = ("quality", "lmbda", "bpp", "psnr", "size_bytes")


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


class LatcodecImageFile(ImageFile.ImageFile):
    """An .lc file whose header and checksum have been checked, and whose pixels are decoded by load()."""

    format = FORMAT
    format_description = "latcodec, a learned codec"

    def _open(self) -> None:
        self._data = self.fp.read()
        if not _accept(self._data):
            raise SyntaxError("not a latcodec file")
        try:
            payload = container.unpack(self._data, max_pixels=container.MAX_SIDE_PX**2)  # Pillow has its own limit
        except LatcodecError as error:
            raise OSError(str(error)) from error
        self._size = payload.width, payload.height
        self._mode = ("L" if payload.gray else "RGB") + ("" if payload.alpha is None else "A")
        if payload.depth == 16:
            if self._mode == "L":
                self._mode = "I;16"
            else:
                self.info["latcodec_notes"] = (f"16 bits reduced to 8: Pillow has no mode {self._mode} of 16 bits",)
        for key, value in (("icc_profile", payload.icc), ("exif", payload.exif), ("xmp", payload.xmp)):
            if value is not None:
                self.info[key] = value
        self.tile = [ImageFile._Tile("raw", (0, 0, *self._size), 0, self._mode)]

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the pixels; a second call does nothing."""
        if self.tile:
            import numpy as np

            try:
                picture = api.decode_picture(self._data, max_pixels=self.width * self.height)
            except LatcodecError as error:
                raise OSError(str(error)) from error
            samples = api.array_from_picture(picture)
            if samples.itemsize == 2 and self.mode != "I;16":
                samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = BytesIO(samples.astype("<u2" if self.mode == "I;16" else np.uint8).tobytes())
            self._data = b""
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Do nothing: there is one tile, at 0. That this method exists also keeps Pillow from mapping the file."""


def _samples(image: Image.Image):
    """Return an image's samples, uint8 or uint16 [H, W, 1..4]; raises OSError for modes that a person must convert."""
    import numpy as np

    mode, key = image.mode, image.info.get("transparency")
    if mode.startswith("I;16") or mode == "I":
        plane = np.asarray(image)
        if plane.min() < 0 or plane.max() > 65535:
            raise OSError("mode I with values outside 0..65535 cannot be saved: scale them and convert to I;16 first")
        planes = [plane.astype(np.uint16)]
        planes += [np.where(plane == key, 0, 65535).astype(np.uint16)] if isinstance(key, int) else []
        return np.stack(planes, 2)
    if mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"):
        advice = "scale it and convert it to L or I;16" if mode == "F" else 'convert it, as with image.convert("RGB"),'
        raise OSError(f"mode {mode} cannot be saved as .lc: {advice} first")
    gray = mode in ("1", "L", "LA", "La")
    saved_mode = ("L" if gray else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.asarray(image if mode == saved_mode else image.convert(saved_mode))
    return samples[:, :, None] if samples.ndim == 2 else samples


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    import warnings

    from latcodec.images import metadata

    settings = {name: value for name, value in image.encoderinfo.items() if name in _SETTINGS}
    for name in set(_NUMERIC_SETTINGS) & set(settings):
        value = settings[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ValueError(f"{name} must be a number, not {value!r}")
    icc, exif, xmp = (image.encoderinfo.get(key, image.info.get(key)) for key in ("icc_profile", "exif", "xmp"))
    exif, notes = metadata.raw_exif({"exif": exif.tobytes() if isinstance(exif, Image.Exif) else exif})
    orientation, exif = metadata.take_orientation(exif) if exif else (1, None)
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    xmp = metadata.reset_xmp_orientation(xmp) if xmp and orientation != 1 else xmp
    if settings.pop("strip", False):  # nobody needs a warning of what they asked for
        icc = exif = xmp = None
    samples = metadata.upright(_samples(image), orientation)
    try:
        picture = replace(api.picture_from_array(samples), icc=icc or None, exif=exif or None, xmp=xmp or None)
        encoded = api.encode_picture(picture, api.EncodeSettings(**settings))
    except OptionError as error:
        raise ValueError(str(error)) from error
    except LatcodecError as error:
        raise OSError(str(error)) from error
    for note in (*notes, *encoded.notes):
        warnings.warn(f"{FORMAT}: {note}", stacklevel=3)
    fp.write(encoded.data)


Image.register_open(FORMAT, LatcodecImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, ".lc")
Image.register_mime(FORMAT, "image/x-latcodec")
