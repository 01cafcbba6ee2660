"""What a training run is told: codec, data, budget, and the configuration of the network."""

import math
from dataclasses import dataclass, fields, replace

from torch import nn

from latcodec.errors import OptionError
from latcodec.metrics import MS_SSIM_MIN_SIDE_PX
from latcodec.rates import LAMBDA_MAX, LAMBDA_MIN, MAX_INDEX, METRICS, lambda_of_index

# A resumed run is the uninterrupted one if these are the same.
DEFINES_RUN = (
    "steps", "minutes", "batch_size", "patch", "final_patch", "final_fraction", "lr", "decay_from", "ema", "seed",
    "metric", "only", "lambda_range", "autocast",
)  # fmt: skip


@dataclass(frozen=True)
class TrainSettings:
    """One run. `steps` or `minutes` is the whole budget; the learning rate falls to zero at its end.

    only: what the names of trained parameters begin with, commas between several; None for all. lambda_range: the
    rates that are drawn, None for all. metric: of the distortion, see train/objective.py.
    """

    codec: str
    data: tuple[str, ...]
    out: str
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16  # of all processes together
    patch: int = 128
    final_patch: int = 256
    final_fraction: float = 0.2
    lr: float = 5e-4
    decay_from: float = 0.1
    ema: float = 0.999
    seed: int = 0
    only: str | None = None
    lambda_range: tuple[float, float] | None = None
    metric: str = "mse"
    cache: str | None = None
    init: str | None = None
    options: tuple[tuple[str, str], ...] = ()  # fields of the model's Config and their values as text
    device: str = "cpu"
    autocast: bool | None = None
    compile: bool = False
    resume: bool = False
    stop_at_step: int | None = None
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0

    def crops(self, side_px: int) -> int:
        """Crops of that side in a step: as many pixels as batch_size crops of patch px have."""
        return max(1, self.batch_size * self.patch**2 // side_px**2)

    def t_range(self, lowest_index: int = 0) -> tuple[float, float]:
        """The drawn part of the axis t, rate index / 255; lowest_index: of the network.

        Raises OptionError for rates that it has not.
        """
        if self.lambda_range is None:
            return lowest_index / MAX_INDEX, 1.0
        for value in self.lambda_range:
            if not LAMBDA_MIN <= value <= lambda_of_index(lowest_index):
                raise OptionError(
                    f"--lambda-range: {value:g} is not in {LAMBDA_MIN:g} ... {lambda_of_index(lowest_index):g}"
                )
        span = math.log(LAMBDA_MIN / LAMBDA_MAX)
        low, high = sorted(math.log(value / LAMBDA_MAX) / span for value in self.lambda_range)
        return low, high


def check(settings: TrainSettings, processes: int = 1) -> None:
    """Raise OptionError for settings that contradict each other or cannot be shared by so many processes."""
    if (settings.steps is None) == (settings.minutes is None):
        raise OptionError("give either --steps or --minutes")
    for name in ("patch", "final_patch"):
        side = getattr(settings, name)
        if side < 64 or side % 64:
            raise OptionError(f"{name} is {side} px, not a multiple of 64")
    if settings.patch > settings.final_patch:
        raise OptionError(f"patch {settings.patch} px is over final_patch {settings.final_patch} px")
    if settings.crops(settings.final_patch) < processes:
        least = processes * settings.final_patch**2 / settings.patch**2
        raise OptionError(
            f"--batch-size {settings.batch_size}: {settings.crops(settings.final_patch)} crops of "
            f"{settings.final_patch} px cannot be shared by {processes} processes; give {math.ceil(least)} or more"
        )
    if settings.metric not in METRICS:
        raise OptionError(f"--metric {settings.metric}: one of {', '.join(METRICS)}")
    if settings.metric == "ms-ssim" and settings.patch < MS_SSIM_MIN_SIDE_PX:
        raise OptionError(f"--metric ms-ssim needs crops of {MS_SSIM_MIN_SIDE_PX} px or more: --patch 192")


def choose_trained(network: nn.Module, only: str | None) -> None:
    """Let gradients reach the parameters that `only` names, all if None; raises OptionError if there is none."""
    if only is None:
        return
    prefixes = tuple(prefix.strip() for prefix in only.split(",") if prefix.strip())
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        known = sorted({name.split(".")[0] for name, _ in network.named_parameters()})
        raise OptionError(f"--only {only}: no parameter is named so; there are: {', '.join(known)}")


def config_of(
    codec: str, config_class: type, stored: dict, options: tuple[tuple[str, str], ...], metric: str | None = None
) -> object:
    """A Config with the values of a stored one and then those of the options.

    metric: of the run, which is no option, as a network is trained for it; None for that of the stored one. Raises
    OptionError for an unknown field or a value that cannot be read.
    """
    default = config_class()
    known = {f.name: getattr(default, f.name) for f in fields(default)}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items() if k in known}
    if metric is not None:
        values["metric"] = metric
    for name, text in options:
        if name not in known or name == "metric":
            others = ", ".join(field for field in known if field != "metric")
            raise OptionError(f"{name} is no option of {codec}; there are: {others}")
        values[name] = _read_as(known[name], name, text)
    try:
        return replace(default, **values)
    except (ValueError, TypeError) as error:
        raise OptionError(f"no {codec} can be made with these options: {error}") from None


def _read_as(default: object, name: str, text: str) -> object:
    """The value that a text stands for, of the type that the default has."""
    try:
        if isinstance(default, bool):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        if isinstance(default, tuple):
            return tuple(type(default[0])(part) for part in text.split(","))
        return type(default)(text)
    except (ValueError, KeyError):
        raise OptionError(f"{name}={text}: not like {default!r}") from None
