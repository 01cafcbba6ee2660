"""Where NC-VAE's training starts when the hyperprior is trained already: its analysis, and a smaller synthesis fitted.

python experiments/nc_vae_start.py OUT.pt STEPS PICTURE_OR_FOLDER...
g_a and the gains are those of the hyperprior's weights. The 3x3 layers of g_s follow its 5x5 layers, one after another
by least squares; then all but g_a trains for STEPS steps. OUT goes to `latcodec train --codec nc-vae --init OUT`.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latcodec.backends import by_name
from latcodec.backends.loading import load_model
from latcodec.backends.nc_vae.network import NCVAE, Config, loss
from latcodec.train import data
from latcodec.train.optimizer import MuonAdam

LEARNING_RATE = 2e-3


@torch.no_grad()
def fit(layer: nn.ConvTranspose2d, x: Tensor, target: Tensor, bias: Tensor, ridge: float = 1e-4) -> None:
    """Set a 3x3 layer of stride 2 so that layer(x) is next to target; each of the four output phases is its own fit."""
    ahead = F.pad(x, (0, 1, 0, 1))
    # By output phase: (tap, offset of its input); an even output is reached by one tap, an odd one by two.
    taps = {0: [(1, 0)], 1: [(2, 0), (0, 1)]}
    height, width = x.shape[2:]
    for row in (0, 1):
        for column in (0, 1):
            pairs = [(a, b) for a in taps[row] for b in taps[column]]
            parts = [ahead[:, :, i : i + height, j : j + width] for (_, i), (_, j) in pairs]
            inputs = torch.cat(parts, 1).permute(0, 2, 3, 1).flatten(0, 2).double()
            wanted = (target[:, :, row::2, column::2] - bias[:, None, None]).permute(0, 2, 3, 1).flatten(0, 2).double()
            gram = inputs.T @ inputs
            gram += torch.eye(len(gram)) * gram.diagonal().mean() * ridge
            solved = torch.linalg.solve(gram, inputs.T @ wanted).float().split(x.shape[1])
            for ((tap_y, _), (tap_x, _)), weight in zip(pairs, solved, strict=True):
                layer.weight[:, :, tap_y, tap_x] = weight
    layer.bias.copy_(bias)


@torch.no_grad()
def start(model: NCVAE, x: Tensor) -> None:
    """Take over what the hyperprior has and fit g_s on pictures x float32 [B, 3, H, W] at rates spread over B."""
    teacher = load_model(by_name("hyperprior"), None, None, "cpu").network
    own = model.state_dict()
    for name, value in teacher.state_dict().items():
        if name.startswith(("g_a.", "g_s.", "y_log_")) and own[name].shape == value.shape:
            own[name].copy_(value)
    y = model.analysis(x)
    model.start_from_latent_std(y.std((0, 2, 3)))
    rate = model.at_rate(torch.linspace(0.2, 1, len(x)))
    h = target = (y * rate["gain"]).round() * rate["inverse_gain"]
    for layer, taught in zip(model.g_s, teacher.g_s, strict=True):
        target = taught(target)
        if isinstance(layer, nn.ConvTranspose2d):
            fit(layer, h, target, taught.bias)
        h = layer(h)


def main(out: str, steps: int, paths: list[str]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures, _ = data.load(paths, 256)
    crops = data.Crops(pictures, 0)
    model = NCVAE(Config()).to(memory_format=torch.channels_last)
    start(model, torch.from_numpy(crops.batch(2**40, 32, 256)[0]).float() / 255)
    model.g_a.requires_grad_(False)
    model.encoder_blocks.requires_grad_(False)
    optimizer = MuonAdam(model, LEARNING_RATE)
    for step in range(steps):
        optimizer.set_lr(LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps)))
        picked, t = crops.batch(step, 16, 128)
        x = torch.from_numpy(picked).float().div(255).contiguous(memory_format=torch.channels_last)
        result = loss(model, x, torch.from_numpy(t), True)
        optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], 1.0)
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            means = {k: v.mean().item() for k, v in result.items()}
            print(f"step {step} loss {means['loss']:.3f} bpp {means['bpp']:.3f} mse {means['mse']:.6f}", flush=True)
    state = {"ema": model.state_dict(), "config": json.dumps(asdict(model.config)), "codec": "nc-vae"}
    torch.save(state | {"settings": "{}", "step": steps, "elapsed_s": 0.0}, Path(out))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
