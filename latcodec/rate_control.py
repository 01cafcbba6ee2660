"""The rate index that meets a target: at most so many bytes, or at least so many dB. Part of the room `codec`.

Both rise with the index, so plain encodes bisect it. A codec that searches better latents for long cannot do that at
every index. It searches shortly at the index that plain encodes ended with, which tells how far better latents move
bytes and dB; the index that follows from it gets the whole effort; where that misses the target, or leaves clear room,
one more search corrects it. A deadline holds for all of this together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latcodec.rates import MAX_INDEX

SHORT_EFFORT = 2  # enough to tell how much a search saves
SHARES = (0.25, 0.75, 1.0)  # of the seconds that are left, for each of up to three searches
SPANS = ((0.0, 0.2), (0.2, 1.0), (1.0, 1.0))  # of the progress that is told
CLEAR_ROOM = 3  # rate indices; a file grows by about a percent with each
_NEAR = 24  # rate indices, within which bytes are taken for exponential and dB for linear


@dataclass(frozen=True)
class Trial:
    """One encode: the file, what the backend said of it, and, for a target in dB, its PSNR."""

    index: int
    data: bytes
    coded: object
    psnr_db: float | None = None


@dataclass(frozen=True)
class Search:
    """The effort of a codec that searches for long, and when to be done, s of time.perf_counter()."""

    effort: int
    deadline_s: float = math.inf


# attempt(rate index, verify) encodes; it also takes effort, max_seconds and span, the part of the progress to tell.
Attempt = Callable[..., Trial]


@dataclass(frozen=True)
class Target:
    """What a file has to meet: at most limit_bytes or at least psnr_db; the other one is None."""

    limit_bytes: float | None = None
    psnr_db: float | None = None

    def met(self, trial: Trial) -> bool:
        """Whether a file is as small or as good as it has to be."""
        return len(trial.data) <= self.limit_bytes if self.psnr_db is None else trial.psnr_db >= self.psnr_db

    def best(self, trials: Sequence[Trial], quality: Callable[[Trial], float] | None = None) -> Trial:
        """Of those that meet the target the best quality, or the smallest file for one in dB; else the nearest miss.

        Of equals the last. quality: of a trial, the larger the better; the rate index tells it if None.
        """
        quality = quality or (lambda trial: trial.index)

        def worth(trial: Trial) -> tuple[bool, float]:
            met = self.met(trial)
            if met == (self.psnr_db is None):
                return met, quality(trial) if met else trial.psnr_db
            return met, -len(trial.data)

        return max(reversed(trials), key=worth)

    def height(self, trial: Trial) -> float:
        """What rises with the index, about evenly: the logarithm of the bytes, or dB."""
        return math.log(len(trial.data)) if self.psnr_db is None else trial.psnr_db

    def aim(self, trial: Trial, slope: float, lowest_index: int) -> int:
        """The best index that should meet the target, after what a trial came to; slope: height an index."""
        wanted = math.log(self.limit_bytes) if self.psnr_db is None else self.psnr_db
        place = min(max(trial.index + (wanted - self.height(trial)) / slope, lowest_index), float(MAX_INDEX))
        return math.floor(place) if self.psnr_db is None else math.ceil(place)


def reach(
    target: Target,
    attempt: Attempt,
    verify: bool,
    search: Search | None = None,
    whole: Trial | None = None,
    lowest_index: int = 0,
    quality: Callable[[Trial], float] | None = None,
) -> tuple[Trial, int, int]:
    """The best file that meets the target, or the nearest miss; how many plain encodes it took, and how many searches.

    search: of a codec that searches for long; without, the bisection encodes with all that the options say, and what
    it ends with is the best of all indices as far as bytes and dB rise with them. whole: the picture without loss, the
    best of all if it is small enough, and for a target in dB what a smaller file has to beat. lowest_index: of
    the weights. quality: of a trial, the larger the better, by which a search is judged that has to meet
    bytes.
    """
    if whole is not None and target.psnr_db is None and target.met(whole):
        return whole, 1, 0
    plain = {} if search is None else {"effort": 0}
    trial, trials, searches = _reach(target, attempt, verify, search, lowest_index, quality)
    if trial.index < 0:  # what says that costs bytes, which may be more than it saves
        trial, trials = target.best([trial, attempt(0, verify, **plain)], quality), trials + 1
    return target.best([trial] if whole is None else [trial, whole]), trials + (whole is not None), searches


def _reach(
    target: Target, attempt: Attempt, verify: bool, search: Search | None, lowest_index: int,
    quality: Callable[[Trial], float] | None,
) -> tuple[Trial, int, int]:  # fmt: skip
    plain = {} if search is None else {"effort": 0}
    index, heights, plainly = _bisect(target, lambda at: attempt(at, False, **plain), lowest_index)
    if search is None:
        return attempt(index, verify), len(heights), 0
    tried = _searched(target, attempt, verify, search, index, _slope(heights, index), lowest_index)
    plainly = plainly or attempt(index, False, **plain)
    # A search is never worse than none, as far as it can be told.
    some = [plainly, *tried] if quality is not None or not any(map(target.met, tried)) else tried
    best = target.best(some, quality)
    return attempt(index, verify, **plain) if best is plainly else best, len(heights), len(tried)


def _bisect(
    target: Target, attempt: Callable[[int], Trial], lowest_index: int
) -> tuple[int, dict[int, float], Trial | None]:
    """The best index that meets the target, or the last resort, in at most 9 trials; the heights of those tried; the
    trial of that index, if it was tried."""
    heights: dict[int, float] = {}
    last = None
    if target.psnr_db is None:
        low, high = lowest_index + 1, MAX_INDEX + 1  # the first index that is too large; the lowest is taken untried
    else:
        low, high = lowest_index, MAX_INDEX  # the first index that is good enough; the last one is taken untried
    while low < high:
        middle = (low + high) // 2
        trial = attempt(middle)
        heights[middle] = target.height(trial)
        last = trial if target.met(trial) else last  # the best that meets it so far
        low, high = (low, middle) if target.met(trial) == (target.psnr_db is not None) else (middle + 1, high)
    index = low - (target.psnr_db is None)
    return index, heights, last if last is not None and last.index == index else None


def _slope(heights: dict[int, float], index: int) -> float:
    """Height an index around an index; that of a middling picture where the trials do not tell."""
    near = sorted(at for at in heights if abs(at - index) <= _NEAR and math.isfinite(heights[at]))
    rise = heights[near[-1]] - heights[near[0]] if near else 0.0
    return rise / (near[-1] - near[0]) if rise > 0 else 0.01


def _searched(
    target: Target, attempt: Attempt, verify: bool, search: Search, index: int, slope: float, lowest_index: int
) -> list[Trial]:
    """Up to three encodes with better latents, from an index on; none if there is no time left."""
    tried: list[Trial] = []
    for number, share in enumerate(SHARES):
        left_s = search.deadline_s - time.perf_counter()
        if left_s <= 0:
            break
        effort = search.effort if number else min(SHORT_EFFORT, search.effort)
        seconds = 0.0 if left_s == math.inf else share * left_s
        trial = attempt(index, verify, effort=effort, max_seconds=seconds, span=SPANS[number])
        tried.append(trial)
        index = target.aim(trial, slope, lowest_index)
        if number == len(SHARES) - 2 and not any(map(target.met, tried)):  # the last search: a byte too many loses all
            index = max(index - 1, lowest_index) if target.psnr_db is None else min(index + 1, MAX_INDEX)
        steps = abs(index - trial.index)
        if effort == search.effort and steps < (CLEAR_ROOM if target.met(trial) else 1):
            break
    return tried
