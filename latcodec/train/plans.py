"""Which network each codec trains, what it minimises, how its transforms start, and what exports it: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from latcodec.errors import OptionError
from latcodec.train.init.klt import PatchTransforms, StridedTransforms, TransformStart

EXPORT = "latcodec.train.export"


@dataclass(frozen=True)
class TrainingPlan:
    """A row of the table: everything that training asks of one codec.

    Attributes:
        network: Class of the network; its only argument is a `config`.
        config: Frozen dataclass of the network's options.
        loss: `loss(network, x, t, autocast, noise, progress)` returns a dictionary with at least "loss", "bpp", "mse"
            and "lagrangian"; x is float32 [B, 3, H, W] in 0..1, t the rate positions, float32 [B].
        start: How the transforms of an untrained network start.
        exporter: Module whose `export` writes a weights file from a checkpoint; None while no codec writes files with
            the network yet. It is imported by name because it needs the entropy coder, which training does not.
    """

    network: type[nn.Module]
    config: type
    loss: Callable[..., dict[str, Tensor]]
    start: TransformStart
    exporter: str | None

    def load_exporter(self) -> Callable[[Path, Path, str, list[str]], Path]:
        """Import `export(checkpoint, out, command, data)`, which writes the weights file `out` and returns its path.

        Raises:
            ImportError: The entropy coder is not installed.
            OptionError: No codec writes files with the network yet.
        """
        if self.exporter is None:
            raise OptionError(f"no codec writes files with {self.network.__name__} yet")
        return import_module(self.exporter).export


def _hyperprior() -> TrainingPlan:
    from latcodec.backends.hyperprior.network import Config, Hyperprior, loss

    return TrainingPlan(Hyperprior, Config, loss, StridedTransforms(), f"{EXPORT}.hyperprior")


def _hyperprior_context() -> TrainingPlan:
    from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior, loss

    return TrainingPlan(
        ContextHyperprior, Config, loss, StridedTransforms(), "latcodec.train.export.hyperprior_context"
    )


def _hyperprior_asymmetric() -> TrainingPlan:
    from latcodec.backends.hyperprior_context.asymmetric import AsymmetricHyperprior, Config, loss

    return TrainingPlan(AsymmetricHyperprior, Config, loss, PatchTransforms(), None)


def _vbq() -> TrainingPlan:
    from latcodec.backends.vbq.network import Config, GaussianVAE, loss

    return TrainingPlan(GaussianVAE, Config, loss, StridedTransforms(), f"{EXPORT}.vbq")


def _pln() -> TrainingPlan:
    from latcodec.backends.pln.network import Config, Ladder, loss

    return TrainingPlan(Ladder, Config, loss, StridedTransforms(), f"{EXPORT}.pln")


def _nc_vae() -> TrainingPlan:
    from latcodec.backends.nc_vae.network import NCVAE, Config, loss

    return TrainingPlan(NCVAE, Config, loss, StridedTransforms(), f"{EXPORT}.nc_vae")


# A row is a function, so that only the network that is trained is imported.
PLANS: dict[str, Callable[[], TrainingPlan]] = {
    "hyperprior": _hyperprior,
    "hyperprior-context": _hyperprior_context,
    "hyperprior-asymmetric": _hyperprior_asymmetric,
    "vbq": _vbq,
    "pln": _pln,
    "nc-vae": _nc_vae,
}


def plan_of(codec: str) -> TrainingPlan:
    """Return the row of a codec.

    Raises:
        OptionError: No network is trained under this name.
    """
    if codec not in PLANS:
        raise OptionError(f"--codec {codec}: known are {', '.join(PLANS)}")
    return PLANS[codec]()
