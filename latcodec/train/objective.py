"""What is minimised, and what validation measures.

Every model minimises bpp + lc * 255^2 * MSE, lc = 0.02307 / lambda, in its own way (its `loss`). With --metric ms-ssim
the distortion becomes lc * MS_SSIM_WEIGHT * (1 - MS-SSIM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from latcodec import metrics
from latcodec.errors import OptionError
from latcodec.nn.layers import distortion_weights
from latcodec.rates import MS_SSIM_WEIGHT

VALIDATION_RATES = 8
BATCH = 8


@contextmanager
def pictures_of(model: torch.nn.Module) -> Iterator[list[Tensor]]:
    """Collects what the model's synthesis gives meanwhile: first the picture of `loss`, then others it may make."""
    found: list[Tensor] = []
    original, outer = model.synthesis, vars(model).get("synthesis")

    def synthesis(*given, **named):
        found.append(original(*given, **named))
        return found[-1]

    model.synthesis = synthesis
    try:
        yield found
    finally:
        del model.synthesis
        if outer is not None:  # a collector around this one
            model.synthesis = outer


def objective(loss: Callable, metric: str, config: object) -> Callable:
    """The loss of a model for a metric, called as the model's own; with ms-ssim it also returns "ms_ssim" [B].

    Raises OptionError where the model does not minimise bpp + lc * 255^2 * MSE, weighted by lc^-1/2.
    """
    if metric == "mse":
        return loss
    other = {"tempered": True, "likelihood": "gaussian", "gamma": False}
    for name, value in other.items():
        if getattr(config, name, value) != value:
            raise OptionError(f"--metric {metric} does not go with {name}={getattr(config, name)}")

    def of_ms_ssim(model, x, t, autocast=False, noise=True, progress=None):
        with pictures_of(model) as made:
            result = loss(model, x, t, autocast, noise, progress)
        x_hat = made[0] if noise else made[0].clamp(0, 1)
        similarity = metrics.ms_ssim_of_tensors(x_hat, x)
        lc = distortion_weights(t)
        change = lc * (MS_SSIM_WEIGHT * (1 - similarity) - 255**2 * result["mse"])
        return result | {
            "loss": result["loss"] + (change / lc.sqrt()).mean(),
            "lagrangian": result["lagrangian"] + change,
            "ms_ssim": similarity,
        }

    return of_ms_ssim


@torch.no_grad()
def evaluate(
    model, loss: Callable, crops: np.ndarray, autocast: bool, device: torch.device, t_range: tuple[float, float]
) -> list[dict[str, float]]:
    """Mean bpp, PSNR (dB), Lagrangian and, if the loss is of it, MS-SSIM over uint8 crops [n, 3, s, s].

    At evenly spaced rates of a range of t, with real rounding. One dictionary a rate.
    """
    rows = []
    for position in np.linspace(*t_range, VALIDATION_RATES):
        parts = []
        for start in range(0, len(crops), BATCH):
            x, t = _input(crops[start : start + BATCH], float(position), device)
            out = loss(model, x, t, autocast, noise=False)
            parts.append({"bpp": out["bpp"], "psnr_db": -10 * out["mse"].log10(), "lagrangian": out["lagrangian"]})
            parts[-1] |= {"ms_ssim": out["ms_ssim"]} if "ms_ssim" in out else {}
        means = {name: torch.cat([part[name] for part in parts]).mean().item() for name in parts[0]}
        rows.append({"t": float(position), **means})
    return rows


@torch.no_grad()
def reconstructions(
    model, loss: Callable, crops: np.ndarray, autocast: bool, device: torch.device, t_range: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The crops uint8 [n, 3, s, s] as the ends of a range of t show them, uint8 [2, n, 3, s, s]; their bpp [2, n]."""
    shown, bpp = [], []
    for position in t_range:
        x, t = _input(crops, position, device)
        with pictures_of(model) as made:
            out = loss(model, x, t, autocast, noise=False)
        shown.append((made[0].clamp(0, 1) * 255).round().byte().cpu().numpy())
        bpp.append(out["bpp"].cpu().numpy())
    return np.stack(shown), np.stack(bpp)


def _input(crops: np.ndarray, position: float, device: torch.device) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.ascontiguousarray(crops)).to(device).float() / 255
    return x.contiguous(memory_format=torch.channels_last), torch.full((len(x),), position, device=device)
