"""Greedy sampling: a block's sample is a sum of shards, each the best of 2**kappa candidates given those before it.

A standard normal number is the sum of independent shards of variance f[k], sum f = 1. After k shards with sum z_k the
evidence about shard k + 1 is N(target - z_k, noise^2 + what the later shards still add). Beams keep several partial
sums and the best whole one wins.

Source: Flamich 2019, Algorithm 2. Corrected: a shard's standard deviation is sqrt(f), 1 / sqrt(K) if they are equal,
not 1 / K; it has 2**kappa candidates; the score is q / p of what is known so far, not q, which shrinks the sample to
the prior's mean. Shards of equal information and beams: Flamich, Havasi, Hernandez-Lobato 2020, "Compressing images by
encoding their latent representations with relative entropy coding".
"""

import numpy as np

from latcodec.backends.pln.coded_sampling import MAX_COLUMNS, ONE, SHARDS, TILE_ROWS, Machine, Plan, codebook, tiles
from latcodec.backends.pln.coded_sampling import sample as sample_of_stream

AMPLITUDE_BITS = 15
# 2**15 / sqrt(shards), rounded; written out because it decides latents.
EQUAL_AMPLITUDES = (32768, 23170, 18919, 16384, 14654, 13377, 12385, 11585)


def equal_amplitudes(shards: int) -> np.ndarray:
    """Standard deviations of shards of equal variance, int64 [shards, 1], AMPLITUDE_BITS after the point."""
    return np.full((shards, 1), EQUAL_AMPLITUDES[shards - 1], np.int64)


def informative_amplitudes(shards: int, nats: np.ndarray) -> np.ndarray:
    """The same for shards that each carry nats / shards, float64 [n], of n kinds of dimension: int64 [shards, n]."""
    edges = np.exp(-2 * nats * np.arange(shards + 1)[:, None] / shards)
    variance = (edges[:-1] - edges[1:]) / -np.expm1(-2 * np.maximum(nats, 1e-9))
    return np.rint(np.sqrt(variance) * 2**AMPLITUDE_BITS).astype(np.int64)


def choose(
    plan: Plan,
    target: np.ndarray,
    noise: np.ndarray,
    kappa: int,
    amplitudes: np.ndarray,
    beams: int = 1,
    machine: Machine = ONE,
) -> np.ndarray:
    """Indices int64 [blocks * shards], a block's shards together; target, noise float64 [n].

    amplitudes: int64 [shards, n] or [shards, 1].
    """
    shards, columns = len(amplitudes), int(plan.counts.max(initial=1))
    wide = np.broadcast_to(amplitudes, (shards, len(target)))[:, plan.order] * 2.0**-AMPLITUDE_BITS
    left = np.concatenate([np.cumsum(wide[::-1] ** 2, 0)[::-1][1:], np.zeros((1, wide.shape[1]))])
    scale, precision = (np.zeros((shards, len(plan.counts), columns), np.float32) for _ in range(2))
    want = np.zeros((len(plan.counts), columns), np.float32)
    want[plan.block, plan.column] = target[plan.order]
    for k in range(shards):
        scale[k][plan.block, plan.column] = wide[k]
        precision[k][plan.block, plan.column] = 1 / (np.square(noise[plan.order]) + left[k])
    chosen = np.empty((len(plan.counts), shards), np.int64)

    def one(tile: tuple[np.ndarray, int]) -> None:
        some, width = tile
        step = max(1, 32 // beams)
        for part in np.split(some, range(step, len(some), step)):
            shapes = want[part, :width], scale[:, part, :width], precision[:, part, :width]
            chosen[part] = _beam_search(*shapes, kappa, beams, books, machine.product)

    widest = min(MAX_COLUMNS, -(-columns // 32) * 32)
    books = [codebook.__wrapped__(kappa, widest, SHARDS + k) for k in range(shards)]  # the cache would not hold them
    machine.each(one, tiles(plan.counts))
    return chosen.ravel()


def _beam_search(want, scale, precision, kappa, beams, books, product) -> np.ndarray:
    """Indices int64 [b, shards]; want float32 [b, w], scale and precision float32 [shards, b, w]."""
    count, width = want.shape
    residual, history = want[:, None], np.empty((count, 1, 0), np.int64)
    for k in range(len(scale)):
        gain, weight = scale[k][:, None], precision[k][:, None]
        both = books[k][: 2 * width]
        factors = np.empty((*residual.shape[:2], 2 * width), np.float32)
        factors[..., 0::2], factors[..., 1::2] = residual * gain * weight, -0.5 * gain * gain * weight
        fixed = -0.5 * (residual**2 * weight).sum(2, dtype=np.float32)
        keep = min(beams if k + 1 < len(scale) else 1, residual.shape[1] << kappa)
        scores, places = [], []
        for first in range(0, 1 << kappa, TILE_ROWS):
            part = both[:, first : first + TILE_ROWS]
            tile = np.empty((fixed.size, part.shape[1]), np.float32)
            product(factors.reshape(-1, 2 * width), part, out=tile)
            tile = (tile.reshape(*fixed.shape, -1) + fixed[:, :, None]).reshape(count, -1)
            top = np.argpartition(tile, -keep, 1)[:, -keep:] if keep > 1 else tile.argmax(1)[:, None]
            scores.append(np.take_along_axis(tile, top, 1))
            rows = min(TILE_ROWS, 1 << kappa)
            places.append((top // rows << kappa) + first + top % rows)
        score, place = np.concatenate(scores, 1), np.concatenate(places, 1)
        best = np.argsort(-score, 1, kind="stable")[:, :keep]
        place = np.take_along_axis(place, best, 1)
        parent, index = place >> kappa, place & ((1 << kappa) - 1)
        drawn = both[0::2, index.ravel()].T.reshape(count, keep, width)
        residual = np.take_along_axis(residual, parent[:, :, None], 1) - drawn * gain
        history = np.concatenate([np.take_along_axis(history, parent[:, :, None], 1), index[:, :, None]], 2)
    return history[:, 0]


def sample(plan: Plan, indices: np.ndarray, size: int, amplitudes: np.ndarray) -> np.ndarray:
    """The sample that indices name, int64 [size] in units of 1 / SCALE; 0 where nothing is coded."""
    shards = len(amplitudes)
    out = np.zeros(size, np.int64)
    for k, amplitude in enumerate(amplitudes):
        out += sample_of_stream(plan, indices.reshape(-1, shards)[:, k], size, SHARDS + k) * amplitude
    return (out + (1 << (AMPLITUDE_BITS - 1))) >> AMPLITUDE_BITS
