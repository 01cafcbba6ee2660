"""The pictures that a bench measures on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from latcodec import images
from latcodec.bench import kodak
from latcodec.errors import ImageError, OptionError

if TYPE_CHECKING:
    import numpy as np

    from latcodec.bench.contenders import Contender

PHOTOGRAPHS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png")  # of scikit-image


@dataclass(frozen=True)
class Subject:
    """One picture to measure on.

    Attributes:
        file: Name of the picture in the tables.
        path: The file.
        width_px: Width.
        height_px: Height.
        gray: Whether the picture has one channel.
        sha256: SHA-256 of the file, hexadecimal.
        kodak: "kodim01" ... "kodim24" for a Kodak picture, None for any other.
        notes: What reading the picture dropped.
    """

    file: str
    path: Path
    width_px: int
    height_px: int
    gray: bool
    sha256: str
    kodak: str | None
    notes: tuple[str, ...] = ()


def photographs() -> list[Path]:
    """Return the files of the photographs that come with scikit-image; raises OptionError without it."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise OptionError("name pictures or folders; the photographs of scikit-image are not installed")
    return [path for name in PHOTOGRAPHS if (path := Path(spec.origin).parent / "data" / name).exists()]


def inspect(path: Path, file: str) -> Subject:
    """Read a picture once and describe it.

    Args:
        path: The file.
        file: Name for the tables.

    Raises:
        ImageError: The picture cannot be read or has more than 8 bits per sample.
    """
    picture = images.read_picture(path)
    if picture.pixels.dtype.itemsize != 1:
        raise ImageError(f"{path}: 16 bits; codecs are compared at 8 bits")
    notes = picture.notes + (("alpha left out",) if picture.alpha is not None else ())
    height_px, width_px = picture.pixels.shape[:2]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Subject(file, path, width_px, height_px, picture.gray, digest, kodak.name_of(picture.pixels), notes)


def read_colour(path: Path) -> images.Picture:
    """Read a picture without alpha and metadata, which not every anchor can carry."""
    picture = images.read_picture(path)
    return images.Picture(picture.pixels, picture.gray)


class SubjectPictures:
    """The pixels that a report shows: originals, and files of a given size decoded. See `report.crops.Pictures`."""

    def __init__(self, subjects: Sequence[Subject], contenders: Sequence[Contender]):
        """Keep the paths of the subjects and the contenders by their names."""
        self._paths = {subject.file: subject.path for subject in subjects}
        self._contenders = {contender.name: contender for contender in contenders}

    def original(self, file: str) -> np.ndarray:
        """Return the picture with this name in the tables, uint8 [H, W, 3]."""
        return read_colour(self._paths[file]).pixels

    def coded(self, file: str, name: str, bpp: float) -> tuple[np.ndarray, int] | None:
        """Code a picture in at most `bpp` bits per pixel.

        Args:
            file: Name of the picture in the tables.
            name: Name of a codec or anchor.
            bpp: Most bits per pixel of the whole file.

        Returns:
            The decoded pixels, uint8 [H, W, 3], and the bytes of the largest file within the limit; None if there is
            no such file.
        """
        picture, contender = read_colour(self._paths[file]), self._contenders[name]
        try:
            data = contender.largest_within(picture, bpp * picture.pixels.shape[0] * picture.pixels.shape[1] / 8)
            return None if data is None else (contender.decode(data), len(data))
        except Exception:  # Failures are in the rows already; a report leaves the crop out.
            return None
