"""How much less one weights file needs than another: python experiments/finetune_gain.py OLD NEW PICTURE_OR_FOLDER...

Eight rates, whole files, mean PSNR and bpp over the pictures, BD-rate of NEW against OLD; both of the same codec.
"""

import sys
from pathlib import Path

import numpy as np

from latcodec import api as codec
from latcodec import images
from latcodec.bench.contenders import LAMBDAS
from latcodec.metrics import bd_rate, psnr_db
from latcodec.train import data
from latcodec.weights import load_file


def points(weights: str, pictures: list) -> list[tuple[float, float]]:
    """(bpp, PSNR dB) at each lambda of the benchmark."""
    name = load_file(Path(weights)).backend
    found = []
    for lmbda in LAMBDAS:
        both = []
        for picture in pictures:
            encoded = codec.encode_picture(picture, codec.EncodeSettings(codec=name, lmbda=lmbda, weights=weights))
            decoded = codec.decode_picture(encoded.data, weights=weights)
            both.append((encoded.bpp, psnr_db(picture.pixels, decoded.pixels)))
        found.append(tuple(np.mean(both, 0)))
    return sorted(found)


def main(old: str, new: str, *paths: str) -> None:
    """Print both curves and the difference."""
    pictures = [images.read_picture(path) for path in data.find(list(paths))]
    curves = [points(weights, pictures) for weights in (old, new)]
    for name, curve in zip((old, new), curves, strict=True):
        print(Path(name).name, " ".join(f"{bpp:.3f}/{psnr:.2f}" for bpp, psnr in curve))
    print(f"{len(pictures)} pictures, BD-rate of the second against the first: {bd_rate(*curves)[0]:+.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
