"""What adapting brings: bits of NC-VAE's symbols under four ways to pay for them.

python experiments/nc_vae_bits.py WEIGHTS.safetensors CHECKPOINT PICTURE...
adaptive is the file's stream. frozen has the same contexts but neither counts nor drift. Gaussian is the mass of a
normal distribution with the rate module's mean and standard deviation on each symbol's cell, Eq. 7 the density of it as
the paper writes it, which for small deviations is no code length at all. All for the same symbols.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch

from latcodec import images
from latcodec.backends.nc_vae import codec as backend
from latcodec.backends.nc_vae.network import NCVAE, SIGMA_MIN
from latcodec.entropy.range_coder import RangeEncoder
from latcodec.train.checkpoint import averaged_network
from latcodec.weights import load_file

INDICES = range(0, 256, 36)


@torch.inference_mode()
def gaussian_bits(network: NCVAE, symbols: np.ndarray, index: int) -> tuple[float, float]:
    """Bits of symbols int32 [C, h, w]: as mass of the cell, and as Eq. 7 has it."""
    rate = network.at_rate(torch.tensor([index / 255]))
    q = torch.from_numpy(symbols)[None].float()
    mean, spread = network.rate(q / rate["unit"])
    sigma = ((rate["floor"] + rate["slope"] * spread) * rate["unit"]).clamp_min(SIGMA_MIN).double()
    z = (q - mean * rate["unit"]).double().abs()
    low, high = (0.5 - z) / sigma, (-0.5 - z) / sigma  # both tails on one side, where differences keep their digits
    log_low, log_high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    mass = log_low + torch.log1p(-torch.exp(log_high - log_low))
    density = 0.5 * torch.log(2 * math.pi * sigma**2) + z**2 / (2 * sigma**2)
    return float(-mass.sum() / math.log(2)), float(density.sum() / math.log(2))


def main(weights: str, checkpoint: str, paths: list[str]) -> None:
    model, network = backend.Model(load_file(Path(weights))), averaged_network(Path(checkpoint), "nc-vae")
    totals = np.zeros((len(INDICES), 4))
    pixels = 0
    for path in paths:
        image = images.read_picture(path).pixels
        pixels += image.shape[0] * image.shape[1]
        latents = backend.analyse(model, image)
        for number, index in enumerate(INDICES):
            coded = backend.code(model, latents, backend.Options(index, verify=False))
            frozen = RangeEncoder(model.tables)
            backend.quantise_and_encode(model, latents, index, frozen, adaptive=False)
            totals[number] += (8 * len(coded.streams[0]), frozen.bits, *gaussian_bits(network, coded.symbols, index))
    print("| rate index | adaptive bpp | frozen | Gaussian | Eq. 7 |\n|---|---|---|---|---|")
    for index, row in [*zip(INDICES, totals, strict=True), ("all", totals.sum(0))]:
        more = " | ".join(f"{100 * (value / row[0] - 1):+.2f} %" for value in row[1:])
        print(f"| {index} | {row[0] / pixels / (len(INDICES) if index == 'all' else 1):.4f} | {more} |")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
