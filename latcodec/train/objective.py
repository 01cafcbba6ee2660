"""What training minimises.

Every network minimises bpp + lc * 255^2 * MSE, lc = 0.02307 / lambda, in its own way (its `loss`). With `--metric
ms-ssim` the distortion becomes lc * MS_SSIM_WEIGHT * (1 - MS-SSIM).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latcodec import metrics
from latcodec.errors import OptionError
from latcodec.nn.layers import distortion_weights
from latcodec.rates import MS_SSIM_WEIGHT


@dataclass(frozen=True)
class Objective:
    """The loss of a run, and where and how it is computed.

    Attributes:
        loss: Called as `loss(network, x, t, autocast, noise, progress)`; see `plans.TrainingPlan`.
        t_range: The trained part of the axis t = rate index / 255.
        autocast: Whether convolutions run in bfloat16.
    """

    loss: Callable[..., dict[str, Tensor]]
    t_range: tuple[float, float]
    autocast: bool = False


class SynthesisRecorder:
    """Keeps what the synthesis of a network returns while it is a context.

    The first picture is the reconstruction that `loss` measures; some networks synthesise further ones.
    """

    def __init__(self, network: torch.nn.Module):
        self.network = network
        self.pictures: list[Tensor] = []

    def __enter__(self) -> SynthesisRecorder:
        self._synthesis = self.network.synthesis
        self._outer = vars(self.network).get("synthesis")
        self.network.synthesis = self._record
        return self

    def __exit__(self, *error: object) -> None:
        del self.network.synthesis
        if self._outer is not None:  # a recorder around this one
            self.network.synthesis = self._outer

    def _record(self, *arguments: Any, **options: Any) -> Tensor:
        self.pictures.append(self._synthesis(*arguments, **options))
        return self.pictures[-1]


class MsSsimLoss:
    """A network's loss whose distortion is 1 - MS-SSIM in place of the squared error.

    It also returns "ms_ssim", float32 [B].

    Args:
        loss: A loss that minimises bpp + lc * 255^2 * MSE, weighted by lc^-1/2.
    """

    def __init__(self, loss: Callable[..., dict[str, Tensor]]):
        self.loss = loss

    def __call__(
        self,
        network: torch.nn.Module,
        x: Tensor,
        t: Tensor,
        autocast: bool = False,
        noise: bool = True,
        progress: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the loss of crops; arguments and values are those of the network's own loss."""
        with SynthesisRecorder(network) as recorder:
            result = self.loss(network, x, t, autocast, noise, progress)
        x_hat = recorder.pictures[0]
        similarity = metrics.ms_ssim_of_tensors(x_hat if noise else x_hat.clamp(0, 1), x)
        lc = distortion_weights(t)
        change = lc * (MS_SSIM_WEIGHT * (1 - similarity) - 255**2 * result["mse"])
        return result | {
            "loss": result["loss"] + (change / lc.sqrt()).mean(),
            "lagrangian": result["lagrangian"] + change,
            "ms_ssim": similarity,
        }


# Options of networks and the only values with which their loss is bpp + lc * 255^2 * MSE, weighted by lc^-1/2.
PLAIN_OBJECTIVE = {"tempered": True, "likelihood": "gaussian", "gamma": False}


def loss_for_metric(
    loss: Callable[..., dict[str, Tensor]], metric: str, config: object
) -> Callable[..., dict[str, Tensor]]:
    """Return the loss of a network for a metric, "mse" or "ms-ssim"; it is called as the network's own.

    Raises:
        OptionError: The network's options choose an objective whose distortion is not the squared error.
    """
    if metric == "mse":
        return loss
    for name, value in PLAIN_OBJECTIVE.items():
        if getattr(config, name, value) != value:
            raise OptionError(f"--metric {metric} does not go with {name}={getattr(config, name)}")
    return MsSsimLoss(loss)
