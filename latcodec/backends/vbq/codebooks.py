"""Codebooks made from samples: the objective with the true code length iterated to convergence, and its rivals.

Everything here is one-dimensional and runs when a model is exported or an array compressed, never when decoding.

Source: generalised Lloyd algorithm, Chou, Lookabaugh, Gray 1989, "Entropy-constrained vector quantization"; its centres
are put on code points afterwards.
"""

from __future__ import annotations

import numpy as np

from latcodec.backends.vbq.quantiser import cheapest

ROUNDS = 16
_CENTROID_COUNT = 200  # a cell with so many samples moves its centre to their mean


def smoothed(counts: np.ndarray, half_width: int, mirrored: bool) -> np.ndarray:
    """Counts [m] averaged over 2 half_width + 1 neighbours; mirrored: entry 0 is the centre of a folded histogram."""
    if not half_width:
        return counts.astype(np.float64)
    left = counts[1 : half_width + 1][::-1] if mirrored else np.full(half_width, counts[0])
    left = np.concatenate([np.zeros(half_width - len(left)), left])
    padded = np.concatenate([left, counts, np.zeros(half_width)])
    sums = np.cumsum(np.concatenate([[0.0], padded]))
    return (sums[2 * half_width + 1 :] - sums[: -2 * half_width - 1]) / (2 * half_width + 1)


def entropy_constrained(
    samples: np.ndarray,
    weights: np.ndarray,
    start: np.ndarray,
    mirrored: bool,
    rounds: int = ROUNDS,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Centres, their counts, and the mean price bits + weight * error^2 reached from centres `start`, rising.

    samples, weights: float32 [n]. mirrored: samples are absolute values, a centre above 0 stands for two of either
    sign (start[0] is 0 and stays).
    """
    centres = start.astype(np.float64)
    half_width = int(0.25 / max(np.median(np.diff(centres)), 1e-3)) if len(centres) > 2 else 0
    counts = np.ones(len(centres))
    bits = np.log2(len(centres)) + np.abs(centres)  # a shape to begin with
    price = np.inf
    for _ in range(rounds):
        index, _ = cheapest(samples, weights, centres.astype(np.float32), bits.astype(np.float32))
        counts = np.bincount(index, minlength=len(centres)).astype(np.float64)
        before, price = price, float((bits[index] + weights * (centres[index] - samples) ** 2).mean())
        share = smoothed(counts, half_width, mirrored) + 1e-3 + 1e-5 * len(samples) / len(centres)
        bits = -np.log2(share / share.sum()) + (mirrored & (np.arange(len(centres)) > 0))
        mass = np.bincount(index, weights, len(centres))
        mean = np.bincount(index, weights * samples, len(centres)) / np.maximum(mass, 1e-30)
        known = counts >= _CENTROID_COUNT
        known[0] &= not mirrored
        centres = np.maximum.accumulate(np.where(known, mean, centres))
        if before - price < 3e-4 * abs(price):
            break
    return centres, counts, price


def uniform_start(step: float, reach: float, mirrored: bool, most: int = 800) -> np.ndarray:
    """Multiples of step up to reach, at most `most` on a side and at least two; from 0, or symmetric about it."""
    count = int(np.clip(np.ceil(reach / step), 2, most))
    return np.arange(0 if mirrored else -count, count + 1) * step


def k_means(samples: np.ndarray, count: int, rounds: int = 60) -> np.ndarray:
    """Centres float64 [<= count], rising, of real samples; Lloyd's iteration from evenly spread quantiles and range."""
    ordered = np.sort(samples.astype(np.float64))
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    spread = np.linspace(*np.quantile(ordered, [1e-5, 1 - 1e-5]), count)
    centres = np.unique(np.sort((spread + np.quantile(ordered, (np.arange(count) + 0.5) / count)) / 2))
    for _ in range(rounds):
        edges = np.concatenate([[0], np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2), [len(ordered)]])
        size = np.diff(edges)
        centres = (np.diff(total[edges]) / np.maximum(size, 1))[size > 0]
    return centres
