"""The rate index that meets a target: at most so many bytes, or at least so many dB.

Both rise with the index, so plain encodes bisect it. A codec that searches better latents for long cannot do that at
every index. It searches shortly at the index that plain encodes ended with, which shows how far better latents move
bytes and dB; the index that follows from it gets the whole effort; where that misses the target, or leaves clear room,
one more search corrects it. One deadline holds for all of this together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from latcodec.rates import MAX_INDEX

if TYPE_CHECKING:
    from latcodec.encoder import Encoded, Encoder, Trial
    from latcodec.settings import EncodeSettings

SHORT_EFFORT = 2  # of the first search: it is enough to show how much a search saves
TIME_SHARES = (0.25, 0.75, 1.0)  # of the seconds that are left, for each of up to three searches
PROGRESS_RANGES = ((0.0, 0.2), (0.2, 1.0), (1.0, 1.0))  # of each search
CLEAR_ROOM = 3  # rate indices; a file grows by about a percent with each
_NEIGHBOURHOOD = 24  # rate indices within which the logarithm of the bytes and dB are taken for linear
_TYPICAL_SLOPE = 0.01  # of the logarithm of the bytes, or dB, with each rate index


class TrialEncoder(Protocol):
    """What rate control needs of an encoder of one picture, see `latcodec.encoder.Encoder`."""

    def encode_at(
        self,
        rate_index: int,
        verify: bool,
        effort: int | None = None,
        max_seconds: float = 0.0,
        progress_range: tuple[float, float] = (0.0, 1.0),
    ) -> Trial:
        """Encode at one rate."""

    def quality(self, trial: Trial) -> float:
        """Return the quality of a trial, the larger the better."""


@dataclass(frozen=True)
class SearchBudget:
    """How thoroughly a codec searches for better latents.

    Attributes:
        effort: 1..9.
        deadline_s: When all searches together have to end, by `time.perf_counter`.
    """

    effort: int
    deadline_s: float = math.inf


@dataclass(frozen=True)
class Target:
    """What a file has to meet; one of the two is None.

    Attributes:
        limit_bytes: The most bytes that the file may have.
        psnr_db: The lowest PSNR that the decoded picture may have, in dB.
    """

    limit_bytes: float | None = None
    psnr_db: float | None = None

    @classmethod
    def of_settings(cls, settings: EncodeSettings, size_px: int) -> Target:
        """Return what bpp, psnr or size_bytes ask of a picture of so many pixels."""
        limit_bytes = settings.size_bytes if settings.bpp is None else settings.bpp * size_px / 8
        return cls(limit_bytes, settings.psnr)

    def is_met(self, trial: Trial) -> bool:
        """Return whether a file is as small or as good as it has to be."""
        return len(trial.data) <= self.limit_bytes if self.psnr_db is None else trial.psnr_db >= self.psnr_db

    def rank(self, trial: Trial, quality: float) -> tuple[bool, float]:
        """Return the key by which the best trial is the largest.

        Of those that meet the target the best has the highest quality, or the smallest file where the target is a
        PSNR; of those that miss it, the best is the nearest miss.
        """
        is_met = self.is_met(trial)
        if is_met and self.psnr_db is None:
            return is_met, quality
        return is_met, trial.psnr_db if not is_met and self.psnr_db is not None else -len(trial.data)

    def measure(self, trial: Trial) -> float:
        """Return what rises about evenly with the index: the logarithm of the bytes, or dB."""
        return math.log(len(trial.data)) if self.psnr_db is None else trial.psnr_db

    def extrapolate(self, trial: Trial, slope: float, lowest_index: int) -> int:
        """Return the best rate index that should meet the target, from a trial and the measure's slope by index."""
        goal = math.log(self.limit_bytes) if self.psnr_db is None else self.psnr_db
        index = min(max(trial.rate_index + (goal - self.measure(trial)) / slope, lowest_index), float(MAX_INDEX))
        return math.floor(index) if self.psnr_db is None else math.ceil(index)

    def step_back(self, index: int, lowest_index: int) -> int:
        """Return the next rate index at which the target is easier to meet."""
        return max(index - 1, lowest_index) if self.psnr_db is None else min(index + 1, MAX_INDEX)


@dataclass(frozen=True)
class Reached:
    """The best file that meets a target, or the nearest miss.

    Attributes:
        trial: The file.
        plain_encodes: How many encodes without a search were made for it.
        searches: How many encodes with a search were made for it.
    """

    trial: Trial
    plain_encodes: int
    searches: int


@dataclass(frozen=True)
class Bisection:
    """What bisecting the rate index shows.

    Attributes:
        rate_index: The best rate index that meets the target, or the last resort.
        measures: `Target.measure` of the trials, by rate index.
        trial: The trial at `rate_index`; None if that index was taken untried.
    """

    rate_index: int
    measures: dict[int, float]
    trial: Trial | None

    def slope(self) -> float:
        """Return how much the measure rises with each index around `rate_index`; a typical value if trials are few."""
        finite = (index for index, measure in self.measures.items() if math.isfinite(measure))
        near = sorted(index for index in finite if abs(index - self.rate_index) <= _NEIGHBOURHOOD)
        rise = self.measures[near[-1]] - self.measures[near[0]] if near else 0.0
        return rise / (near[-1] - near[0]) if rise > 0 else _TYPICAL_SLOPE


class RateControl:
    """A search for the rate index at which one picture meets one target."""

    def __init__(
        self,
        target: Target,
        encoder: TrialEncoder,
        verify: bool = True,
        budget: SearchBudget | None = None,
        lowest_index: int = 0,
    ) -> None:
        """Keep what the search needs.

        Args:
            target: What the file has to meet.
            encoder: Makes the trials.
            verify: Whether the file that is kept is decoded again (law 5).
            budget: Of a codec that searches for long. Without it, the bisection encodes with all that the options
                allow, and its last trial is the best of all indices as far as bytes and dB rise with them.
            lowest_index: The lowest rate index of the weights.
        """
        self.target, self.encoder, self.verify = target, encoder, verify
        self.budget, self.lowest_index = budget, lowest_index

    def reach(self, lossless: Trial | None = None) -> Reached:
        """Return the best file that meets the target, or the nearest miss.

        Args:
            lossless: The picture stored losslessly, if it may be: the best of all if it is small enough, and for a
                target in dB what a smaller file has to beat.
        """
        target = self.target
        if lossless is not None and target.psnr_db is None and target.is_met(lossless):
            return Reached(lossless, 1, 0)
        reached = self._reach_lossy()
        trial, plain_encodes = reached.trial, reached.plain_encodes
        if trial.rate_index < 0:  # to say so costs bytes, which may be more than the lower rate saves
            trial, plain_encodes = self._best([trial, self._encode_plain(0, self.verify)]), plain_encodes + 1
        if lossless is not None:
            # The lossless file has the highest rate index, so that it has the highest quality as well.
            trial, plain_encodes = max((lossless, trial), key=self._rank_by_index), plain_encodes + 1
        return Reached(trial, plain_encodes, reached.searches)

    def _reach_lossy(self) -> Reached:
        bisection = self._bisect()
        if self.budget is None:
            trial = self.encoder.encode_at(bisection.rate_index, self.verify)
            return Reached(trial, len(bisection.measures), 0)
        searched = self._search(bisection)
        plain = bisection.trial or self._encode_plain(bisection.rate_index, False)
        best = self._best([plain, *searched])  # a search is never worse than none
        if best is plain:
            best = self._encode_plain(bisection.rate_index, self.verify)
        return Reached(best, len(bisection.measures), len(searched))

    def _encode_plain(self, rate_index: int, verify: bool) -> Trial:
        """Encode without a search, where the codec can search."""
        return self.encoder.encode_at(rate_index, verify, effort=None if self.budget is None else 0)

    def _best(self, trials: Sequence[Trial]) -> Trial:
        """Return the best trial, of equals the last."""
        return max(reversed(trials), key=self._rank)

    def _rank(self, trial: Trial) -> tuple[bool, float]:
        judges_quality = self.target.psnr_db is None and self.target.is_met(trial)
        return self.target.rank(trial, self.encoder.quality(trial) if judges_quality else 0.0)

    def _rank_by_index(self, trial: Trial) -> tuple[bool, float]:
        return self.target.rank(trial, trial.rate_index)

    def _bisect(self) -> Bisection:
        """Bisect the rate index in at most 9 trials."""
        measures: dict[int, float] = {}
        best = None
        if self.target.psnr_db is None:
            # The first index that is too large; the lowest one is taken untried.
            low, high = self.lowest_index + 1, MAX_INDEX + 1
        else:
            low, high = self.lowest_index, MAX_INDEX  # the first index that is good enough; the last is taken untried
        while low < high:
            middle = (low + high) // 2
            trial = self._encode_plain(middle, False)
            measures[middle] = self.target.measure(trial)
            is_met = self.target.is_met(trial)
            best = trial if is_met else best
            low, high = (low, middle) if is_met == (self.target.psnr_db is not None) else (middle + 1, high)
        index = low - (self.target.psnr_db is None)
        return Bisection(index, measures, best if best is not None and best.rate_index == index else None)

    def _search(self, bisection: Bisection) -> list[Trial]:
        """Return up to three encodes with better latents, from the index of a bisection on; none if time is over."""
        trials: list[Trial] = []
        index, slope, budget = bisection.rate_index, bisection.slope(), self.budget
        for number, share in enumerate(TIME_SHARES):
            left_s = budget.deadline_s - time.perf_counter()
            if left_s <= 0:
                break
            effort = budget.effort if number else min(SHORT_EFFORT, budget.effort)
            max_seconds = 0.0 if left_s == math.inf else share * left_s
            trial = self.encoder.encode_at(index, self.verify, effort, max_seconds, PROGRESS_RANGES[number])
            trials.append(trial)
            index = self.target.extrapolate(trial, slope, self.lowest_index)
            is_last_next = number == len(TIME_SHARES) - 2
            if is_last_next and not any(map(self.target.is_met, trials)):  # then a byte too many would lose all
                index = self.target.step_back(index, self.lowest_index)
            distance = abs(index - trial.rate_index)
            if effort == budget.effort and distance < (CLEAR_ROOM if self.target.is_met(trial) else 1):
                break
        return trials


def encode_to_target(encoder: Encoder) -> Encoded:
    """Encode a picture so that it meets the bpp, psnr or size_bytes of its settings; raises DriftError."""
    settings = encoder.settings
    target = Target.of_settings(settings, encoder.size_px)
    budget = None if encoder.effort is None else SearchBudget(encoder.effort, encoder.deadline_s)
    control = RateControl(target, encoder, settings.verify, budget, encoder.model.lowest_index)
    reached = control.reach(encoder.lossless_trial())
    notes, missed = (), ""
    if budget is not None and not reached.searches:
        notes = ("max_seconds was over before anything was searched: this is the file without effort",)
    if not target.is_met(reached.trial):
        missed = describe_miss(settings, reached.trial, encoder.size_px)
        notes = (*notes, missed)
    return encoder.finish(reached.trial, reached.plain_encodes + reached.searches, notes, missed)


def describe_miss(settings: EncodeSettings, trial: Trial, size_px: int) -> str:
    """Return which target a picture of so many pixels cannot reach, and what its nearest file has instead."""
    size, bpp = f"{len(trial.data)} bytes", f"{8 * len(trial.data) / size_px:.3g} bpp"
    if settings.psnr is not None:
        return f"{settings.psnr:g} dB cannot be reached; this is the best quality: {trial.psnr_db:.2f} dB, {size}"
    if settings.bpp is not None:
        return f"{settings.bpp:g} bpp cannot be reached; this is the smallest file: {bpp}, {size}"
    limit = f"{settings.size_bytes} byte{'s' if settings.size_bytes != 1 else ''}"
    return f"{limit} cannot be reached; this is the smallest file: {size}"
