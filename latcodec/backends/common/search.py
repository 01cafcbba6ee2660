"""The encoder's search: of several ways to code a picture at one rate, the one of least rate-distortion cost.

Without effort a codec codes its latents once. With an effort, stochastic Gumbel annealing (`sga.py`) first searches
better latents; what they cost as a file is compared with the file without a search, so a search never makes it dearer.
A codec describes its part as a `SearchProblem`.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from latcodec.backends.base import Codec, EncodeRequest
from latcodec.backends.common import distortion
from latcodec.backends.common.pixels import peak_of
from latcodec.backends.common.sga import TUNING, Quantise, RelaxedRD, StochasticGumbelAnnealing
from latcodec.errors import DriftError, OptionError
from latcodec.rates import STEP_ERROR_BITS

CodedT = TypeVar("CodedT")
SEARCH_STEPS = (0, 15, 40, 80, 160, 240, 350, 500, 800, 1200)  # steps of the optimiser, by effort
# Distortion multipliers of the RDOQ of searched latents, tried one after another: the search has weighed most of it.
SEARCHED_MULTIPLIERS = (0.0, 30.0, 60.0, 100.0, 150.0)
START_RADIUS = TUNING.freeze_radius  # how far a latent may be from its RDOQ choice where a search starts, in steps


@dataclass(frozen=True, kw_only=True)
class UserOptions:
    """What a person may set of a codec that can search for better latents; raises OptionError for wrong values.

    Attributes:
        effort: 0..9; 0 rounds by rate and distortion, others search better latents first, each for longer.
        max_seconds: The time that the search may take, in seconds; 0 for no limit.
    """

    effort: int = 0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.effort < len(SEARCH_STEPS):
            raise OptionError(f"effort {self.effort} is outside 0 ... {len(SEARCH_STEPS) - 1}")
        if not 0 <= self.max_seconds < math.inf:
            raise OptionError(f"max_seconds {self.max_seconds} is not a time")

    @property
    def steps(self) -> int:
        """Steps of the search; 0 for none."""
        return SEARCH_STEPS[self.effort]

    @property
    def searched_multipliers(self) -> tuple[float, ...]:
        """Distortion multipliers with which searched latents are quantised, one after another."""
        return SEARCHED_MULTIPLIERS


@dataclass(frozen=True)
class Options(UserOptions, EncodeRequest):
    """A person's options and the encoder's request, together."""


class SearchingCodec(Codec):
    """A codec whose options are `UserOptions`."""

    options_class: type = UserOptions

    def searches(self, options: UserOptions) -> bool:
        """Return whether the effort is one that searches."""
        return options.steps > 0


class SearchProblem(Protocol[CodedT]):
    """One picture at one rate, as a codec presents it to the search.

    Attributes:
        latents: What the analysis made of the picture: a frozen dataclass with `y`, perhaps `z`, and `image`, uint8 or
            uint16 [H, W, 3], or None where the picture is not known, which cannot be searched.
        metric: The distortion that the weights were trained for, one of `rates.METRICS`.
        device: Where the networks run.
    """

    latents: Any
    metric: str
    device: torch.device

    def encode(self, latents: Any, distortion_multiplier: float) -> CodedT:
        """Quantise and entropy-code latents.

        Args:
            latents: Those of the problem, or others of the same kind.
            distortion_multiplier: That of `rdoq`; 0 for the nearest integers.
        """
        ...

    def verify(self, coded: CodedT) -> bool:
        """Return whether the stream decodes to the integers that the encoder coded (law 5)."""
        ...

    def reconstruct(self, coded: CodedT) -> np.ndarray:
        """Return the picture that a decoder shows, of the type and shape of the image."""
        ...

    def relaxed_rd(self, coded: CodedT) -> RelaxedRD:
        """Return the codec with a relaxed quantiser.

        Args:
            coded: The result without a search; what it says of filters or of a residual layer stays as it is.
        """
        ...

    def dequantised_start(self, coded: CodedT) -> tuple[Tensor, ...]:
        """Return y, and z where RDOQ quantises it too, as a result has coded them: float32 [C, h, w], in steps."""
        ...


class _GrayRD:
    """A `RelaxedRD` of a gray picture, whose three channels the decoder averages."""

    def __init__(self, rd: RelaxedRD):
        self.gains, self._rd = rd.gains, rd

    def transmit(self, latents: tuple[Tensor, ...], quantise: Quantise, x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, bits = self._rd.transmit(latents, quantise, x)
        return x_hat.mean(1, keepdim=True), bits


def encode_with_search(
    problem: SearchProblem[CodedT],
    options: Options,
    distortion_multiplier: float | None = None,
    first: CodedT | None = None,
    alternative: CodedT | None = None,
) -> CodedT:
    """Encode latents at one rate: once, or with an effort the cheapest way that a search finds.

    Args:
        problem: The picture and the codec.
        options: The person's options and the encoder's request.
        distortion_multiplier: That of `rdoq` without a search; None for the default, 0 for the nearest integers.
        first: The result of `problem.encode` without a search, if it is known already.
        alternative: A result of another kind, which a search must not be dearer than.

    Raises:
        DriftError: What was written does not decode to the same integers (law 5).
    """
    start = time.perf_counter()
    multiplier = STEP_ERROR_BITS if distortion_multiplier is None else distortion_multiplier
    coded = first or problem.encode(problem.latents, multiplier)
    if options.effort and problem.latents.image is not None:
        deadline = start + options.max_seconds if options.max_seconds else math.inf
        coded = _cheapest(problem, options, deadline, [coded, *([alternative] if alternative else [])])
        coded = replace(coded, seconds={"search": time.perf_counter() - start} | coded.seconds)
    if options.verify:
        start = time.perf_counter()
        if not problem.verify(coded):
            raise DriftError("the stream just written does not decode to the same integers on this machine")
        coded = replace(coded, seconds=coded.seconds | {"verify": time.perf_counter() - start})
    return coded


def _cheapest(problem: SearchProblem[CodedT], options: Options, deadline: float, plain: list[CodedT]) -> CodedT:
    """Return the cheapest of the results without a search and those that a search finds from the first of them."""
    if not options.steps and len(plain) == 1:
        return plain[0]
    costs = [_rd_cost(problem, coded, options) for coded in plain]
    least = min(costs)
    best = plain[costs.index(least)]
    if not options.steps:
        return best
    searched = search_latents(problem, options, deadline, plain[0])
    for multiplier in options.searched_multipliers:
        coded = problem.encode(searched, multiplier)
        if (cost := _rd_cost(problem, coded, options)) < least:
            best, least = coded, cost
    return best


def _rd_cost(problem: SearchProblem[CodedT], coded: CodedT, options: Options) -> float:
    image = problem.latents.image
    return distortion.rd_cost(coded, problem.reconstruct(coded), image, options.rate_index, problem.metric)


def search_latents(problem: SearchProblem[CodedT], options: Options, deadline: float, coded: CodedT) -> Any:
    """Return latents that cost less once they are rounded.

    Args:
        problem: The picture and the codec.
        options: The person's options and the encoder's request.
        deadline: Time of `time.perf_counter` by which the search ends, s.
        coded: The result without a search, near which it starts.

    Returns:
        Of the class of `problem.latents`.
    """
    latents, rd = problem.latents, problem.relaxed_rd(coded)
    names = [name for name in ("y", "z") if hasattr(latents, name)]
    variables = [getattr(latents, name) for name in names]
    for number, chosen in enumerate(problem.dequantised_start(coded)):
        variables[number] = clamp_near(variables[number], chosen.to(problem.device), rd.gains[number][0])
    x = torch.from_numpy(latents.image.astype(np.float32)) / peak_of(latents.image)
    x = x.permute(2, 0, 1).to(problem.device)
    sga = StochasticGumbelAnnealing(
        _GrayRD(rd) if options.gray else rd, x, options.rate_index, problem.metric, options.steps
    )
    optimised = sga.optimise(tuple(variables), deadline, options.progress)
    return replace(latents, **dict(zip(names, optimised, strict=True)))


def clamp_near(latents: Tensor, chosen: Tensor, gain: Tensor) -> Tensor:
    """Move latents so near to the values that RDOQ chose that the nearest integers are the same choice.

    Args:
        latents: float32 [C, h, w].
        chosen: The dequantised latents, float32 [C, h, w], in steps of the quantiser.
        gain: Steps in a unit, float32 [C, 1, 1].
    """
    return (chosen + (latents * gain - chosen).clamp(-START_RADIUS, START_RADIUS)) / gain
