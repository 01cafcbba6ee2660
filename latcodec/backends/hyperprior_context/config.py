"""Configurations of the networks; see `network.py`."""

import math
from dataclasses import dataclass

from latcodec.rates import LOWEST_INDEX, MAX_INDEX, METRICS, RATE_STEP, STEP_ERROR_BITS, Z_STEP_ERROR_BITS


@dataclass(frozen=True)
class EntropyConfig:
    """What every network with this entropy model is made with; raises ValueError for impossible values.

    Attributes:
        latent: Channels of y.
        hyper_width: Inner channels of the hyper-networks.
        hyper_latent: Channels of z.
        context_width: Inner channels of the context networks of y.
        z_context_width: Inner channels of the context networks of z.
        knots: Knots of every rate parameter between t = 0 and 1.
        details: Channels of the residual layer; 0 for none, or a multiple of 16 up to 192.
        detail_width: Inner channels of the network that predicts the spread of the residual layer.
        details_from: The rate index from which files have a residual layer without saying so.
        latents_until: The rate index up to which the base rate follows that of the file; above, it stays.
        step_error_bits: Bits that a squared error of one step of y is worth in RDOQ; 0 for nearest integers of y and z.
            Weights that do not say it were trained with 0 and are coded with the default.
        z_step_error_bits: The same of z; 0 for nearest integers.
        lift: Amount of the reconstruction offset of y, see `reconstruction.py`; found by trial.
        nearer: Amount of the centroid shift of the residual layer; found by trial.
        lowest_index: The lowest rate index, a multiple of RATE_STEP; below 0 the rate parameters of latents have one
            more knot.
        metric: The distortion the network is trained for, one of `rates.METRICS`.
    """

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
        """Check the values."""
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
    """What the default codec's network is made with.

    Attributes:
        widths: Channels of the three inner stages of the transforms.
        blocks: Residual blocks after each.
        analysis_at_rate: Whether analysis and residual blocks are conditioned on the rate.
    """

    widths: tuple[int, int, int] = (48, 80, 128)
    blocks: tuple[int, int, int] = (0, 0, 0)
    analysis_at_rate: bool = False


@dataclass(frozen=True)
class AsymmetricConfig(EntropyConfig):
    """What the network of `asymmetric.py` is made with.

    The analysis works at 1/8 of the size, then at 1/16 (`latent` channels). The synthesis works at 1/16 (`latent`
    channels), then at 1/4.

    Attributes:
        analysis_width: Channels of the analysis at 1/8.
        analysis_blocks_8: Blocks of the analysis at 1/8.
        analysis_blocks_16: Blocks of the analysis at 1/16.
        synthesis_blocks: Blocks of the synthesis at 1/16.
        renderer_width: Channels of the synthesis at 1/4, at least 48.
        renderer_blocks: Pointwise blocks of the synthesis at 1/4.
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
        """Check the values."""
        super().__post_init__()
        if self.renderer_width < 48:
            raise ValueError(f"renderer_width is {self.renderer_width}, not 48 or more")


def rate_knots(config: EntropyConfig) -> int:
    """Return how many knots the rate parameters of latents have."""
    return config.knots + (config.lowest_index < 0)
