"""What exact integers cost: bits with the float hyper-synthesis against bits with the integer network.

python experiments/quantisation_cost.py CHECKPOINT PICTURE...
Both sides use the same latents, tables and rounding of means and scale rows; only the network between z and them
differs: float32 weights and activations on one side, 16-bit weights and fixed-point activations on the other.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from latcodec import images
from latcodec.backends.hyperprior import codec as backend
from latcodec.entropy.integer_net import FRACTION_BITS
from latcodec.train.checkpoint import averaged_network
from latcodec.train.export.tables import logistic_tables
from latcodec.weights import Weights


@torch.inference_mode()
def main(checkpoint: str, paths: list[str]) -> int:
    network = averaged_network(Path(checkpoint), "hyperprior")
    tensors = backend.export(network, logistic_tables(backend.sigmas()))
    model = backend.Model(Weights(Path(checkpoint), "0" * 64, "hyperprior", backend.stored_config(network), tensors))

    def floats(fixed: np.ndarray) -> np.ndarray:
        out = network.h_s(torch.from_numpy(fixed * 2.0**-FRACTION_BITS).float()[None])[0]
        return np.rint(out.double().numpy() * 2**FRACTION_BITS).astype(np.int64)

    integers, totals = model.hyper, [0.0, 0.0]
    for path in paths:
        latents = backend.analyse(model, images.read_picture(path).pixels)
        for index in range(0, 256, 36):
            bits = []
            for model.hyper in (floats, integers):
                bits.append(backend.code(model, latents, backend.Options(index, verify=False)).estimated_bits)
            totals = [a + b for a, b in zip(totals, bits, strict=True)]
            print(
                f"{Path(path).name} index {index:3d}: float {bits[0]:.0f} bits, {100 * (bits[1] / bits[0] - 1):+.4f} %"
            )
    print(f"all: {100 * (totals[1] / totals[0] - 1):+.4f} %")
    return 0 if totals[1] < 1.003 * totals[0] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
