"""Write tests/golden/ anew: python tests/support/make_golden.py.

Only while nothing is released; afterwards files are added.

Each NAME.lc is what this version and the shipped weights encode, each NAME.png what they decode it to.
"""

from pathlib import Path

import numpy as np
import skimage

from latcodec import api as codec
from latcodec import images
from latcodec.images import Picture

GOLDEN = Path(__file__).parents[1] / "golden"


def pictures() -> dict[str, tuple[Picture, float, str]]:
    """Name -> picture, lambda and codec: every kind of file the format can hold, at low, middle and high rates."""
    cat = skimage.data.chelsea()[60:151, 80:219]  # 91 x 139 px: odd both ways
    gray = np.repeat(cat[:, :, 1:2], 3, 2)
    ramp = np.linspace(0, 255, cat.shape[1]).astype(np.uint8)[None].repeat(cat.shape[0], 0)
    deep = cat.astype(np.uint16) * 257 - (cat.astype(np.uint16) % 7)
    whole = {
        "rgb-low": (Picture(cat, False), 15.0),
        "rgb-middle": (Picture(cat, False, exif=b"MM\0*\0\0\0\x08\0\0\0\0\0\0"), 1.0),
        "rgb-high": (Picture(cat, False), 0.12),
        "gray": (Picture(gray, True), 1.0),
        "rgba": (Picture(cat, False, ramp), 3.0),
        "rgb-16": (Picture(deep, False), 0.3),
        "dot": (Picture(np.ascontiguousarray(cat[:1, :1]), False), 1.0),
    }
    drawn = np.full_like(cat, 255)
    drawn[10:80:7, 20:110], drawn[30:60, 40:43] = (0, 0, 0), (200, 30, 40)
    cup = np.ascontiguousarray(skimage.data.coffee()[100:227, 150:297])
    few = {
        "vbq": (whole["rgb-middle"][0], 2.0, "vbq"),
        "vbq-factorized": (whole["rgb-middle"][0], 2.0, "vbq:prior=factorized"),
        "vbq-uniform": (whole["rgb-middle"][0], 2.0, "vbq:quantizer=uniform,free_lambda=3"),
        "pln": (whole["rgb-middle"][0], 2.0, "pln"),
        "pln-16": (whole["rgb-16"][0], 0.3, "pln:kappa=12,select=sample"),
        "pln-greedy": (whole["rgb-middle"][0], 2.0, "pln:sampler=greedy"),
        "pln-importance": (whole["rgb-middle"][0], 8.0, "pln:sampler=importance,kappa=12"),
        **{
            f"context-{name}": (*whole[name], "hyperprior-context")
            for name in ("rgb-middle", "rgb-high", "gray", "rgb-16", "dot")
        },
        "context-ms-ssim": (*whole["rgb-middle"], "hyperprior-context:metric=ms-ssim"),
        "context-filter": (Picture(cup, False), 0.4, "hyperprior-context"),
        # Below rate index 0; latents of a lower rate beside details; without loss, colour and gray.
        "context-lowest": (Picture(cat, False), 41.0, "hyperprior-context"),
        "context-drawn": (Picture(drawn, False), 1.5, "hyperprior-context:lossless=no"),
        "context-lossless": (Picture(drawn, False, ramp), 1.5, "hyperprior-context"),
        "context-lossless-gray": (Picture(np.repeat(drawn[..., :1], 3, 2), True), 1.5, "hyperprior-context"),
        "nc-vae": (whole["rgb-middle"][0], 2.0, "nc-vae"),
        "nc-vae-high": (whole["rgb-high"][0], 0.12, "nc-vae"),
        "pln-rejection": (whole["rgb-middle"][0], 8.0, "pln:sampler=rejection"),
    }
    return {name: (*kind, "hyperprior") for name, kind in whole.items()} | few


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.iterdir():
        old.unlink()
    for name, (picture, lmbda, name_of_codec) in pictures().items():
        data = codec.encode_picture(picture, codec.EncodeSettings(codec=name_of_codec, lmbda=lmbda)).data
        (GOLDEN / f"{name}.lc").write_bytes(data)
        with open(GOLDEN / f"{name}.png", "wb") as file:
            images.write_picture(codec.decode_picture(data), file, "png")


if __name__ == "__main__":
    main()
