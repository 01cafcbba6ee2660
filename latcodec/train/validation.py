"""What a run measures on pictures that it does not train on: points of the rate-distortion curve, reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latcodec.train.objective import Objective, SynthesisRecorder

VALIDATION_RATES = 8
BATCH = 8


@dataclass(frozen=True)
class Reconstructions:
    """Crops as both ends of the trained rates show them.

    Attributes:
        pictures: uint8 [2, n, 3, s, s], the lowest rate first.
        bpp: Bits per pixel, float32 [2, n].
    """

    pictures: np.ndarray
    bpp: np.ndarray


@torch.no_grad()
def evaluate(network: torch.nn.Module, objective: Objective, crops: np.ndarray) -> list[dict[str, float]]:
    """Measure a network on crops at evenly spaced rates, with real rounding.

    Args:
        network: On the device that computes.
        objective: Its loss and the range of rates.
        crops: uint8 [n, 3, s, s].

    Returns:
        One dictionary a rate, lowest first: "t" and the means of "bpp", "psnr_db", "lagrangian" and, where the loss
        measures it, "ms_ssim".
    """
    rows = []
    for t in np.linspace(*objective.t_range, VALIDATION_RATES):
        parts = [_measure(network, objective, crops[i : i + BATCH], float(t)) for i in range(0, len(crops), BATCH)]
        means = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
        rows.append({"t": float(t), **means})
    return rows


def _measure(network: torch.nn.Module, objective: Objective, crops: np.ndarray, t: float) -> dict[str, Tensor]:
    """Measures of each crop, float32 [n], at one rate."""
    result = objective.loss(network, *_as_input(network, crops, t), objective.autocast, noise=False)
    measures = {
        "bpp": result["bpp"],
        "psnr_db": -10 * result["mse"].log10(),
        "lagrangian": result["lagrangian"],
    }
    return measures | ({"ms_ssim": result["ms_ssim"]} if "ms_ssim" in result else {})


@torch.no_grad()
def reconstruct(network: torch.nn.Module, objective: Objective, crops: np.ndarray) -> Reconstructions:
    """Return crops, uint8 [n, 3, s, s], as a network shows them at the lowest and the highest trained rate."""
    pictures, bpp = [], []
    for t in objective.t_range:
        with SynthesisRecorder(network) as recorder:
            result = objective.loss(network, *_as_input(network, crops, t), objective.autocast, noise=False)
        pictures.append((recorder.pictures[0].clamp(0, 1) * 255).round().byte().cpu().numpy())
        bpp.append(result["bpp"].cpu().numpy())
    return Reconstructions(np.stack(pictures), np.stack(bpp))


def _as_input(network: torch.nn.Module, crops: np.ndarray, t: float) -> tuple[Tensor, Tensor]:
    device = next(network.parameters()).device
    x = torch.from_numpy(np.ascontiguousarray(crops)).to(device).float() / 255
    return x.contiguous(memory_format=torch.channels_last), torch.full((len(x),), t, device=device)
