"""What a context hyperprior is made with; see `hyperprior_context.py`."""

import math
from dataclasses import dataclass

from latcodec.rates import LOWEST_INDEX, MAX_INDEX, METRICS, RATE_STEP, STEP_ERROR_BITS, Z_STEP_ERROR_BITS


@dataclass(frozen=True)
class EntropyConfig:
    """What every network with this entropy model is made with: widths of y, of the hyper-networks, of z; of the
    context networks of y and of z; number of rate knots; details of a block (0 or a multiple of 16 up to 192), width of
    the network that tells their spread, the rate index from which they may be sent, and that up to which the latents
    beside them follow: there they stay; bits that a squared error of one step of y, and of z, counts as in rounding by
    rate and distortion, 0 of y for the nearest integers of both, 0 of z for those of z: weights that do not say it were
    trained with 0 and are coded with the defaults; what symbols of size 1 stand for that are rounded so, see
    `reconstruction.py`: lift of latents, nearer of details, by trial; the lowest rate index, a multiple of RATE_STEP,
    at which the functions of the rate of latents have one more knot if it is under 0; the distortion it is trained
    for. Raises ValueError for what makes no sense of these."""

    latent: int = 192
    hyper_width: int = 128
    hyper_latent: int = 96
    context_width: int = 96
    z_context_width: int = 64
    knots: int = 9
    details: int = 0
    detail_width: int = 48
    details_from: int = 60
    latents_until: int = 155
    step_error_bits: float = STEP_ERROR_BITS
    z_step_error_bits: float = Z_STEP_ERROR_BITS
    lift: float = 0.03
    nearer: float = 0.18
    lowest_index: int = 0
    metric: str = "mse"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise ValueError(f"metric {self.metric} is none of {', '.join(METRICS)}")
        if self.metric != METRICS[0] and self.details:
            raise ValueError(f"metric {self.metric} goes with details=0: details mend squared errors")
        if not 0 <= self.details_from <= self.latents_until <= MAX_INDEX:
            raise ValueError(f"details_from {self.details_from} and latents_until {self.latents_until} are no range")
        if self.lowest_index % RATE_STEP or not LOWEST_INDEX <= self.lowest_index <= 0:
            raise ValueError(f"lowest_index {self.lowest_index} is no multiple of {RATE_STEP} in {LOWEST_INDEX} ... 0")
        for name in ("step_error_bits", "z_step_error_bits", "lift", "nearer"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, not 0 or more")


@dataclass(frozen=True)
class Config(EntropyConfig):
    """Widths of the three inner stages and residual blocks after each; whether analysis and residual blocks know the
    rate."""

    widths: tuple[int, int, int] = (48, 80, 128)
    blocks: tuple[int, int, int] = (0, 0, 0)
    analysis_at_rate: bool = False


@dataclass(frozen=True)
class AsymmetricConfig(EntropyConfig):
    """Widths and numbers of blocks of the transforms in `asymmetric.py`.

    The analysis works at 1/8 of the size (analysis_width channels, analysis_blocks_8 blocks), then at 1/16 (`latent`
    channels, analysis_blocks_16 blocks). The synthesis has synthesis_blocks blocks at 1/16 (`latent` channels), then
    renderer_blocks pointwise blocks at 1/4 (renderer_width channels, at least 48).
    """

    latent: int = 288
    lowest_index: int = LOWEST_INDEX
    analysis_width: int = 192
    analysis_blocks_8: int = 4
    analysis_blocks_16: int = 2
    synthesis_blocks: int = 2
    renderer_width: int = 64
    renderer_blocks: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.renderer_width < 48:
            raise ValueError(f"renderer_width is {self.renderer_width}, not 48 or more")


def rate_knots(config: EntropyConfig) -> int:
    """How many knots the functions of the rate of latents have."""
    return config.knots + (config.lowest_index < 0)
