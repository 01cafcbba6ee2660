"""What each part of a codec brings and costs.

python experiments/ablation.py PICTURES [WEIGHTS | CODEC:OPTIONS | BOTH@]...

Each argument is a weights file, a codec with options, or `CODEC:OPTIONS@WEIGHTS`. The first is what the others are
compared with. Prints BD-rate over the pictures, medians of encode and decode seconds of a picture, parameters, and
multiplications of the decoder a pixel. `--crop 256x192` takes the middle of each picture, `--lambdas 12.8,3.2,0.8,0.1`
other rates; `--step-error-bits 0` rounds to the nearest without regard to the rate. Run it on a quiet machine.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from latcodec import api as codec
from latcodec import images, metrics, weights
from latcodec.backends.common import search
from latcodec.backends.hyperprior_context import model as hyperprior_context_model
from latcodec.images import Picture

LAMBDAS = "20,12.8,6.4,3.2,1.6,0.8,0.4,0.1"


def settings(argument: str, lmbda: float) -> tuple[codec.EncodeSettings, str | None]:
    """How to encode for an argument, and the weights to decode with."""
    name, _, path = argument.partition("@")
    if name.endswith(".safetensors"):
        name, path = weights.load_file(Path(name)).backend, name
    path = path or None
    return codec.EncodeSettings(codec=name, lmbda=lmbda, weights=path), path


def measured(argument: str, pictures: list[Picture], lambdas: list[float]) -> dict[str, object]:
    """Means over the pictures at each rate; medians of seconds."""
    bpp, psnr, encode_s, decode_s = [], [], [], []
    for lmbda in lambdas:
        how, path = settings(argument, lmbda)
        bits, quality = [], []
        for picture in pictures:
            start = time.perf_counter()
            data = codec.encode_picture(picture, how).data
            between = time.perf_counter()
            decoded = codec.decode_picture(data, weights=path)
            encode_s.append(between - start)
            decode_s.append(time.perf_counter() - between)
            bits.append(8 * len(data) / picture.pixels[..., 0].size)
            quality.append(metrics.psnr_db(picture.pixels, decoded.pixels))
        bpp.append(float(np.mean(bits)))
        psnr.append(float(np.mean(quality)))
    with FlopCounterMode(display=False) as counter:
        codec.decode_picture(data, weights=path)
    kmac = counter.get_total_flops() / 2 / pictures[-1].pixels[..., 0].size / 1000
    found = weights.load_file(Path(path)) if path else weights.load(how.codec.partition(":")[0])
    counted = [v.size for k, v in found.tensors.items() if not k.startswith(("tables.", "rates.", "details.rates."))]
    return {"bpp": bpp, "psnr": psnr, "encode": statistics.median(encode_s), "decode": statistics.median(decode_s),
            "kmac": kmac, "parameters": sum(counted)}  # fmt: skip


def middle(picture: Picture, size: tuple[int, int] | None) -> Picture:
    """The middle of a picture, (width, height) of it; None: all."""
    if size is None:
        return picture
    height, width = picture.pixels.shape[:2]
    top, left = (max(0, have - want) // 2 for have, want in zip((height, width), size[::-1], strict=True))
    pixels = picture.pixels[top : top + size[1], left : left + size[0]]
    return replace(picture, pixels=np.ascontiguousarray(pixels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--lambdas", default=LAMBDAS)
    parser.add_argument("--crop", type=lambda text: tuple(map(int, text.split("x"))))
    parser.add_argument("--step-error-bits", type=float)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.step_error_bits is not None:
        search.STEP_ERROR_BITS = given.step_error_bits
        hyperprior_context_model.Model.step_error_bits = lambda model: given.step_error_bits
    lambdas = [float(text) for text in given.lambdas.split(",")]
    pictures = [middle(images.read_picture(path), given.crop) for path in sorted(given.pictures.iterdir())]
    codec.decode_picture(codec.encode_picture(pictures[0], settings(given.arguments[0], 1.0)[0]).data,
                         weights=settings(given.arguments[0], 1.0)[1])  # fmt: skip
    print("| what | BD-rate | encode s | decode s | parameters | decoder kMAC/px | bpp | PSNR dB |")
    print("|---|---:|---:|---:|---:|---:|---|---|")
    first = None
    for argument in given.arguments:
        row = measured(argument, pictures, lambdas)
        first = first or row
        curves = [list(zip(one["bpp"], one["psnr"], strict=True)) for one in (first, row)]
        change, _ = metrics.bd_rate(*curves)
        points = (" ".join(f"{value:.{digits}f}" for value in row[key]) for key, digits in (("bpp", 3), ("psnr", 2)))
        print(f"| {argument} | {change:+.1f} % | {row['encode']:.3f} | {row['decode']:.3f} | "
              f"{row['parameters'] / 1e6:.2f} M | {row['kmac']:.1f} | {' | '.join(points)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
