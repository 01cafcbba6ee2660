"""What input noise in training does: equal short trainings of NC-VAE from one start, then the same pictures for all.

python experiments/nc_vae_noise.py START.pt STEPS TRAINING_FOLDER PICTURE...
START is what experiments/nc_vae_start.py writes, or a checkpoint. PSNR is always against the clean picture: of itself,
with noise of 10/255 in the input, and as a JPEG of quality 30. Colour error: distance of the mean colours of picture
and
result, in 1/255, mean over pictures; its largest in brackets. Means over rate indices 0, 64, 128 and 192.
"""

import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from latcodec import images
from latcodec.backends.common.weights_parts import config_from
from latcodec.backends.nc_vae.network import NCVAE, Config, loss
from latcodec.train import data
from latcodec.train.checkpoint import read_checkpoint
from latcodec.train.optimizer import MuonAdam

NOISES = ("0", "0.01", "0.1", "trainable")
INDICES = (0, 64, 128, 192)
LEARNING_RATE = 5e-4
SIDE_PX = 384


def trained(state: dict, noise: str, steps: int, crops: data.Crops) -> NCVAE:
    """The network of `state` after `steps` steps with that input noise; crops, rates and seed are the same for all."""
    torch.manual_seed(0)
    model = NCVAE(replace(config_from(Config, json.loads(state["config"])), input_noise=noise)).to(
        memory_format=torch.channels_last
    )
    model.load_state_dict({k: v.float() for k, v in state["ema"].items()}, strict=False)
    if noise == "trainable":
        nn.init.constant_(model.log_noise, math.log(0.02))
    optimizer = MuonAdam(model, LEARNING_RATE)
    for step in range(steps):
        optimizer.set_lr(LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps)))
        picked, t = crops.batch(step, 16, 128)
        x = torch.from_numpy(picked).float().div(255).contiguous(memory_format=torch.channels_last)
        result = loss(model, x, torch.from_numpy(t), True)
        optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


def as_jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=30)
    return np.asarray(Image.open(file).convert("RGB"))


@torch.inference_mode()
def measure(model: NCVAE, pictures: list[np.ndarray]) -> dict[str, float]:
    rng = np.random.default_rng(0)
    rows: dict[str, list[float]] = {}
    for picture in pictures:
        noisy = np.clip(np.rint(picture + rng.normal(0, 10, picture.shape)), 0, 255).astype(np.uint8)
        clean = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        for name, source in (("clean", picture), ("noisy", noisy), ("jpeg", as_jpeg(picture))):
            x = torch.from_numpy(source.copy()).permute(2, 0, 1)[None].float() / 255
            for index in INDICES:
                out = model(x, torch.tensor([index / 255]), noise=False)
                x_hat = out["x_hat"].clamp(0, 1)
                bpp = out["y_bits"].item() / (x.shape[2] * x.shape[3])
                rows.setdefault(f"{name} bpp", []).append(bpp)
                rows.setdefault(f"{name} dB", []).append(-10 * (x_hat - clean).square().mean().log10().item())
                if name == "clean":
                    off = 255 * (x_hat - clean).mean((0, 2, 3)).norm().item()
                    rows.setdefault("colour", []).append(off)
    return {k: float(np.mean(v)) for k, v in rows.items()} | {"worst colour": max(rows["colour"])}


def main(start: str, steps: int, folder: str, paths: list[str]) -> None:
    torch.set_num_threads(1)
    state = read_checkpoint(Path(start), "cpu")
    crops = data.Crops(data.load([folder], 256)[0], 0)
    pictures = [np.ascontiguousarray(images.read_picture(path).pixels[:SIDE_PX, :SIDE_PX]) for path in paths]
    pictures = [p[: p.shape[0] // 16 * 16, : p.shape[1] // 16 * 16] for p in pictures]
    print("| input noise | at the end | bpp | PSNR | colour error | noisy input | was a JPEG |")
    print("|---|---|---|---|---|---|---|")
    for noise in NOISES:
        model = trained(state, noise, steps, crops)
        m = measure(model, pictures)
        print(
            f"| {noise} | {model.input_noise().item():.4f} | {m['clean bpp']:.4f} | {m['clean dB']:.2f} dB "
            f"| {m['colour']:.2f} ({m['worst colour']:.2f}) | {m['noisy bpp']:.4f} bpp {m['noisy dB']:.2f} dB "
            f"| {m['jpeg bpp']:.4f} bpp {m['jpeg dB']:.2f} dB |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4:])
