"""The 24 Kodak pictures: telling them by their pixels, what others published on them, downloading them.

`kodak.json` holds the SHA-256 of each file of the usual download, that of its pixels (so that a picture saved again
without loss is still known), and the published curves with their sources.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from latcodec.errors import LatcodecError, OptionError

if TYPE_CHECKING:
    import numpy as np

COUNT = 24
URL = "https://r0k.us/graphics/kodak/kodak/"
_TIMEOUT_S = 30


@lru_cache(maxsize=1)
def _record() -> dict:
    return json.loads(Path(__file__).with_name("kodak.json").read_text(encoding="utf-8"))


def pixels_digest(pixels: np.ndarray) -> str:
    """SHA-256 of the shape and the samples of a uint8 array."""
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def name_of(pixels: np.ndarray) -> str | None:
    """kodim01 ... kodim24 for a picture of the set, uint8 [H, W, 3]; None for any other."""
    digest = pixels_digest(pixels)
    return next((n.removesuffix(".png") for n, e in _record()["files"].items() if e["pixels_sha256"] == digest), None)


def published() -> dict[str, dict]:
    """Published curves, means over the 24 pictures: name -> bpp, psnr_db, ms_ssim (or None), source, note."""
    return {name: {"ms_ssim": None} | curve for name, curve in _record()["published"].items()}


def fetch(
    folder: Path, *, url: str = URL, force: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Download what `folder` lacks of the 24 files, each checked by its SHA-256, and return their paths.

    A file is there whole or not at all, so a stopped download goes on with the files that are missing. Raises
    OptionError for another file of the same name unless force is True; LatcodecError, with the reason, without a
    network or for a server that gives something else; OSError for a folder that cannot be written.
    """
    try:
        import pooch
        import requests
    except ImportError:
        raise OptionError("--fetch needs pooch: pip install pooch") from None
    pooch.get_logger().setLevel("ERROR")
    hashes = {name: entry["sha256"] for name, entry in _record()["files"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in hashes.items():
        path = folder / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() != digest and not force:
            raise OptionError(f"{path}: exists and is not the Kodak picture; --force overwrites it")
    there = 0
    for name, digest in hashes.items():
        path = folder / name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            there += 1
            continue
        place = f"{url.rstrip('/')}/{name}"
        try:
            # One try and no more: whoever is without a network wants to know it now.
            loader = pooch.HTTPDownloader(timeout=_TIMEOUT_S, progressbar=False)
            pooch.retrieve(place, f"sha256:{digest}", fname=name, path=folder, downloader=loader)
        except requests.exceptions.HTTPError as error:
            raise LatcodecError(f"{place}: the server answers {error.response.status_code}") from None
        except requests.exceptions.Timeout:
            raise LatcodecError(f"{place}: no answer in {_TIMEOUT_S} s; run the command again to go on") from None
        except requests.exceptions.RequestException as error:
            reason = "no connection" if isinstance(error, requests.exceptions.ConnectionError) else type(error).__name__
            here = f"{sum((folder / n).exists() for n in hashes)} of {len(hashes)} files are here"
            raise LatcodecError(f"{place}: {reason}; {here}, run the command again with a network to go on") from None
        except ValueError:  # pooch's word for another hash
            raise LatcodecError(f"{place}: what came is not the Kodak picture (SHA-256 differs)") from None
        say(f"{name}: {path.stat().st_size} bytes")
    if there:
        say(f"{there} of {len(hashes)} files were here already")
    return [folder / name for name in hashes]
