"""Greedy rejection sampling, one dimension at a time: the index of the first candidate accepted, an exact sample.

With r = q / p, level L and the probability S of not having accepted before candidate i, a candidate x is accepted with
probability min(1, max(0, (r(x) - L) / S)); then L grows by S and S becomes the mass of q above L p. Each dimension
examines at most 2**BUDGET_BITS candidates and then takes the likeliest of them. Indices are short when information is
small, so they are entropy-coded; the sum of their O(1) costs is what blocks avoid.

Source: Harsha, Jain, McAllester, Radhakrishnan 2007, "The communication complexity of correlation"; Flamich 2019,
Algorithms 1 and 4. Corrected: candidates come from the shared prior; beta's denominator is 1 - p*_(i-1), not p*_i; one
candidate per dimension and step; no value is sent beside the code.
"""

import numpy as np

from latcodec.backends.pln.coded_sampling import REJECTION, SEED
from latcodec.entropy.philox import SCALE, gaussian_table, random_words, uniform

BUDGET_BITS = 10
_UNIFORM = 3  # the stream of the acceptances


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Standard normal distribution function to 1e-7. Source: Abramowitz and Stegun 7.1.26."""
    z = np.abs(x) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    upper = 0.5 * poly * np.exp(-z * z)
    return np.where(x < 0, upper, 1 - upper)


def choose(bits: np.ndarray, target: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Indices int64 [m] of the dimensions with bits > 0, in order; target, noise float64 [n] as in coded_sampling."""
    dimensions = np.flatnonzero(bits > 0)
    precision = 1 + 1 / np.square(noise[dimensions])
    mean, deviation = target[dimensions] * (1 - 1 / precision), precision**-0.5
    chosen = np.zeros(len(dimensions), np.int64)
    best = np.full(len(dimensions), -np.inf)
    alive, level, survival = np.arange(len(dimensions)), np.zeros(len(dimensions)), np.ones(len(dimensions))
    for i in range(1 << BUDGET_BITS):
        if not len(alive):
            break
        x = _candidates(dimensions[alive], np.full(len(alive), i)) / SCALE
        log_ratio = -np.log(deviation) - 0.5 * ((x - mean) / deviation) ** 2 + 0.5 * x * x
        better = log_ratio > best[alive]
        chosen[alive[better]] = i  # what remains if none is ever accepted
        best[alive[better]] = log_ratio[better]
        accept = (np.exp(np.minimum(log_ratio, 700)) - level) / np.maximum(survival, 1e-12)
        taken = uniform(SEED, _UNIFORM, dimensions[alive].astype(np.int64) << BUDGET_BITS | i, 0) < accept
        chosen[alive[taken]] = i
        level = level + survival
        survival = _above(mean, deviation, level)
        stay = ~taken
        alive, mean, deviation, level, survival = (v[stay] for v in (alive, mean, deviation, level, survival))
    return chosen


def _above(mean: np.ndarray, deviation: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Mass of q = N(mean, deviation^2) above level * N(0, 1): the integral of max(0, q - level p)."""
    curvature = 1 / deviation**2 - 1  # of -2 log(q / p), positive: the posterior is narrower than the prior
    centre = mean / deviation**2 / curvature
    peak = -np.log(deviation) + 0.5 * centre * mean / deviation**2 - 0.5 * (mean / deviation) ** 2
    half = np.sqrt(np.maximum(0, 2 * (peak - np.log(level)) / curvature))
    low, high = centre - half, centre + half
    inside_q = normal_cdf((high - mean) / deviation) - normal_cdf((low - mean) / deviation)
    return np.clip(inside_q - level * (normal_cdf(high) - normal_cdf(low)), 0, 1)


def _candidates(dimensions: np.ndarray, indices: np.ndarray) -> np.ndarray:
    drawn = random_words(SEED, REJECTION, indices, dimensions >> 3)
    return gaussian_table()[drawn[np.arange(len(dimensions)), dimensions & 7]].astype(np.int64)


def sample(bits: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The sample that indices name, int64 [n] in units of 1 / SCALE; 0 where bits is 0."""
    dimensions = np.flatnonzero(bits > 0)
    out = np.zeros(len(bits), np.int64)
    out[dimensions] = _candidates(dimensions, indices)
    return out
