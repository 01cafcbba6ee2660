"""Probability tables made from probabilities: when a model is exported, never when a file is coded."""

import math
from collections.abc import Sequence

import numpy as np

from latcodec.entropy.tables import TOTAL, Tables
from latcodec.errors import WeightsError

MAX_REACH = 2000  # of logistic supports; a symbol beyond it is an escape


def quantize_pmf(pmfs: Sequence[np.ndarray], minimums: Sequence[int]) -> Tables:
    """Return tables that approximate probability mass functions. For export: the result ships as data.

    pmfs: float64 [entries] per row, finite, >= 0, sum > 0 (scaled to 1); the last entry is the escape.
    minimums: the symbol of each row's first entry.
    Raises WeightsError if a row is none of this, or too long for 24 bits.
    """
    rows = []
    for row, pmf in enumerate(pmfs):
        pmf = np.asarray(pmf, np.float64)
        if pmf.ndim != 1 or not np.all(np.isfinite(pmf)) or np.any(pmf < 0) or not pmf.sum() > 0:
            raise WeightsError(f"tables: row {row} is not a probability mass function")
        weights = np.maximum(1, np.rint(pmf / pmf.sum() * TOTAL)).astype(np.int64)
        weights[weights.argmax()] += TOTAL - weights.sum()
        rows.append(weights)  # a largest entry that fell under 1 is refused by Tables
    offsets = np.cumsum([0] + [len(weights) for weights in rows])
    return Tables(np.concatenate(rows) if rows else np.empty(0, np.int64), offsets, np.asarray(minimums, np.int64))


def logistic_tables(sigmas: np.ndarray, tail_mass: float = 2.0**-13) -> Tables:
    """Return one table per standard deviation of a zero-mean logistic, integrated over bins [k - 1/2, k + 1/2].

    sigmas: float64 [rows], > 0, in units of one symbol. The support is +-min(ceil(6 sigma) + 4, 2000).
    tail_mass: share of a two-sided geometric distribution mixed in, so that outliers cost some 20 bits, not hundreds.
    Raises WeightsError for sigmas or a tail_mass out of range.
    """
    if not 0 <= tail_mass < 1:
        raise WeightsError(f"tables: tail_mass is {tail_mass}, not in 0..1")
    pmfs, minimums = [], []
    for sigma in np.asarray(sigmas, np.float64).tolist():
        if not 0 < sigma < math.inf:
            raise WeightsError(f"tables: sigma is {sigma}, not positive and finite")
        reach = min(math.ceil(6 * min(sigma, MAX_REACH)) + 4, MAX_REACH)
        scaled = np.minimum((np.arange(reach + 1) + 0.5) * (math.pi / math.sqrt(3) / sigma), 700)
        above = 1 / (1 + np.exp(scaled))  # P(X > k + 1/2)
        logistic = np.append(1 - 2 * above[0], above[:-1] - above[1:])
        ratio = math.exp(-3 / reach)
        geometric = (1 - ratio) / (1 + ratio) * ratio ** np.arange(reach + 1)
        half = (1 - tail_mass) * logistic + tail_mass * geometric
        escape = (1 - tail_mass) * 2 * above[-1] + tail_mass * 2 * ratio ** (reach + 1) / (1 + ratio)
        pmfs.append(np.concatenate([half[:0:-1], half, [escape]]))
        minimums.append(-reach)
    return quantize_pmf(pmfs, minimums)
