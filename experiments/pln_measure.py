"""The figures of the PLN codec that no bench gives: `python experiments/pln_measure.py samplers|damage PICTURE...`.

samplers: rho, file bits over KL, R-D cost and seconds of each sampler, the thesis' settings included. The R-D cost is
the BD-rate against exact posterior samples at exactly their KL, which nobody can code. damage: PSNR after random bit
flips of the indices, checksum ignored.
"""

import sys
import time
from dataclasses import replace

import numpy as np
import torch

from latcodec import container, images
from latcodec.backends import by_name
from latcodec.backends.loading import load_model
from latcodec.backends.pln import codec as pln
from latcodec.backends.pln import integers as pln_integers
from latcodec.backends.pln.entropy_model import FACTOR_BITS, VALUE_BITS
from latcodec.metrics import bd_rate, psnr_db

RATES = (32, 96, 160, 224)
SETTINGS = {
    "blocks, kappa 12": {"kappa": 12},
    "blocks, kappa 14": {"kappa": 14},
    "blocks, kappa 15 (effort 5, default)": {},
    "blocks, kappa 16 (effort 6)": {"kappa": 16},
    "blocks, kappa 14, select=sample": {"kappa": 14, "select": "sample"},
    "blocks, kappa 18 (effort 8)": {"effort": 8},
    "greedy, 2 shards x 12 bits, 16 beams": {"sampler": "greedy"},
    "greedy, 3 shards x 12 bits, 64 beams": {"sampler": "greedy", "shards": 3, "beams": 64},
    "greedy, 2 shards x 14 bits, 1 beam": {"sampler": "greedy", "kappa": 14, "shards": 2, "beams": 1},
    "greedy, 8 equal shards x 14 bits (thesis)": {"sampler": "greedy", "kappa": 14, "shards": 8, "beams": 1},
    "importance, 14 bits, t = 2 (thesis, level 2)": {"sampler": "importance", "kappa": 14},
    "rejection, 10-bit budget (thesis: 8)": {"sampler": "rejection", "kappa": 14},
}


def exact(model, latents, index: int) -> tuple[float, pln_integers.Integers]:
    """KL in bits, and the integers of exact posterior samples of z1 (z2 is coded: its share is small)."""
    coded = pln.code(model, latents, pln.Options(index, verify=False))
    payload = container.Payload(3, b"none", index, 1, 1, False, 8, 0, coded.streams, parameters=coded.parameters)
    found = pln_integers.decode_integers(model, payload, latents.y.shape[1:])
    sigma = model.network.at_rate(torch.tensor([index / 255]))["z1_log_sigma"][0].double().exp().numpy()
    evidence = latents.y.double().numpy() / sigma * 2.0**VALUE_BITS - found.means
    signal = np.square(model.row_scale[found.rows] * 2.0**-FACTOR_BITS)
    weight = np.where(model.classes.bits[found.rows] > 0, signal / (1 + signal), 0.0)
    drawn = np.random.Generator(np.random.Philox(key=[index, 0])).standard_normal(weight.shape)
    values = weight * evidence + np.sqrt(weight) * 2.0**VALUE_BITS * drawn
    kl = sum(level["kl_bits"] + level["jump_bits"] for level in coded.details["levels"])
    return kl, replace(found, values=np.rint(values).astype(np.int32))


def samplers(model, pictures: list[np.ndarray]) -> None:
    """Print the table."""
    latents = [pln.analyse(model, picture) for picture in pictures]
    pixels = [p.shape[0] * p.shape[1] for p in pictures]
    ideal = []
    for index in RATES:
        both = []
        for picture, found, size in zip(pictures, latents, pixels, strict=True):
            kl, integers = exact(model, found, index)
            decoded = pln.synthesise(model, integers, index, picture.shape[:2], False, 8)
            both.append((kl / size, psnr_db(picture, decoded)))
        ideal.append(tuple(np.mean(both, 0)))
    print(f"{'sampler':50} {'rho':>6} {'file/KL':>8} {'R-D cost':>9} {'encode s':>9} {'decode s':>9}")
    for name, options in SETTINGS.items():
        points, rhos, ratios, seconds = [], [], [], []
        for index in RATES:
            both = []
            for picture, found, size in zip(pictures, latents, pixels, strict=True):
                start = time.perf_counter()
                coded = pln.code(model, found, pln.Options(index, verify=False, **options))
                middle = time.perf_counter()
                payload = container.Payload(3, b"none", index, picture.shape[1], picture.shape[0], False, 8,
                                            coded.integers_crc, coded.streams, parameters=coded.parameters)  # fmt: skip
                decoded = pln.decode(model, payload)
                seconds.append((middle - start, time.perf_counter() - middle))
                bits = 8 * len(container.pack(payload))
                both.append((bits / size, psnr_db(picture, decoded)))
                ratios.append(bits / sum(level["kl_bits"] + level["jump_bits"] for level in coded.details["levels"]))
                rhos.append(coded.details["levels"][1]["rho"])
            points.append(tuple(np.mean(both, 0)))
        try:
            cost = f"{bd_rate(ideal, points)[0]:+.1f} %"
        except Exception:
            cost = "beyond"  # no common range of PSNR
        encode_s, decode_s = np.mean(seconds, 0)
        print(f"{name:50} {np.mean(rhos):6.3f} {np.mean(ratios):8.3f} {cost:>9} {encode_s:9.2f} {decode_s:9.2f}")


def damage(model, pictures: list[np.ndarray], index: int = 142, trials: int = 100) -> None:
    """Print PSNR after random flips: one in each of 100 trials, then 100 at once in each of 20."""
    rng = np.random.Generator(np.random.Philox(key=[0, 0]))
    for picture in pictures:
        coded = pln.encode(model, picture, pln.Options(index))
        payload = container.Payload(3, model.weights_id, index, picture.shape[1], picture.shape[0], False, 8,
                                    coded.integers_crc, coded.streams, parameters=coded.parameters)  # fmt: skip
        clean = psnr_db(picture, pln.decode(model, payload))
        for flips, count in ((1, trials), (100, trials // 5)):
            found = []
            for _ in range(count):
                data = np.unpackbits(np.frombuffer(payload.streams[1], np.uint8))
                data[rng.choice(len(data), flips, replace=False)] ^= 1
                hurt = replace(payload, streams=(payload.streams[0], np.packbits(data).tobytes()))
                found.append(psnr_db(picture, pln.decode(model, hurt, ignore_checksum=True)))
            print(f"{flips} of {len(data)} bits flipped, {count} times: clean {clean:.2f} dB, "
                  f"median {np.median(found):.2f}, worst {min(found):.2f}")  # fmt: skip


if __name__ == "__main__":
    what, *paths = sys.argv[1:]
    {"samplers": samplers, "damage": damage}[what](
        load_model(by_name("pln"), None, None), [images.read_picture(path).pixels for path in paths]
    )
