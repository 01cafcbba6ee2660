"""Coded sampling: a sample of a Gaussian posterior named by the number of a candidate that both sides can draw.

Everything here is in units in which the prior of a dimension is N(0, 1). The posterior is that prior times evidence
N(target, noise^2) about the dimension. The decoder knows the expected information of each dimension, `bits`, as an
integer, and from it alone how dimensions share indices (`pack`): blocks of equal information, kappa bits each.
A block's candidates are the rows of one codebook of shared Gaussian numbers, the same for all blocks: row n, column j
is a function of (n, j). The chosen row is one fixed-length index, and one row is all that the decoder draws again.

For a candidate e, log q / p = sum_j A1[j] e[j] + A2[j] e[j]^2 + constant, A1 = target / noise^2, A2 = -1 / (2 noise^2):
one matrix product scores all candidates of all blocks. Taking the largest is nearest-codeword search; adding Gumbel
noise draws a posterior sample (importance sampling). The encoder may score in any precision: that changes quality,
never what can be decoded.

Source: Flamich 2019, "Compression without quantization", section 3.4 and appendix A, with its errors corrected; Havasi,
Peharz, Hernandez-Lobato 2018, "Minimal random code learning", for blocks with one index.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from latcodec.entropy.philox import SCALE, gaussian_rows, gaussian_table, random_words, uniform

SEED = 0x6C61_7463_6F64_6563
CANDIDATES, GUMBEL, REJECTION, SHARDS = 0, 1, 2, 16  # streams of shared_random
BIT = 256  # `bits` count 1/256 bit
MAX_COLUMNS = 128
TILE_ROWS, TILE_BLOCKS = 4096, 128
CHUNK_BITS = 16  # of the candidates in memory at once


@dataclass(frozen=True)
class Plan:
    """Which block and which column of the codebook each dimension has that is coded at all.

    order int64 [m]: dimensions; block and column int64 [m]: theirs. counts int64 [blocks]: dimensions of a block.
    """

    order: np.ndarray
    block: np.ndarray
    column: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Machine:
    """How an encoder searches: product(a, b, out=c) is c = a @ b of float32 matrices, where all the time goes, and
    `workers` is the number of threads that call it, each for blocks of its own, so that none waits for another."""

    product: Callable = np.matmul
    workers: int = 1

    def each(self, call: Callable, items: Iterable) -> None:
        """Call `call` with every item."""
        if self.workers < 2:
            for item in items:
                call(item)
        else:
            with ThreadPoolExecutor(self.workers) as pool:
                list(pool.map(call, items))


ONE = Machine()


def pack(bits: np.ndarray, capacity: int) -> Plan:
    """Deal dimensions to blocks of at most about `capacity`, equally full, in integers only.

    bits: integers [n] below 2**20, 1/BIT bit, 0 for dimensions without a code; capacity: 1/BIT bit. Dimensions go from
    large to small; each turn deals one to every block, the emptiest first.
    """
    coded = np.flatnonzero(bits > 0)
    order = coded[np.argsort(-bits[coded].astype(np.int32), kind="stable")]
    size = bits[order].astype(np.int64)
    blocks = max(-(-int(size.sum()) // capacity), -(-len(order) // MAX_COLUMNS))
    load, block = np.zeros(blocks, np.int64), np.empty(len(order), np.int64)
    for start in range(0, len(order), max(1, blocks)):
        some = slice(start, min(len(order), start + blocks))
        block[some] = np.argsort(load, kind="stable")[: some.stop - start]
        load[block[some]] += size[some]
    column = np.arange(len(order)) // max(1, blocks)
    return Plan(order, block, column, np.bincount(block, minlength=blocks))


@lru_cache(maxsize=4)
def codebook(kappa: int, columns: int, stream: int = CANDIDATES, chunk: int = 0) -> np.ndarray:
    """Candidates of a chunk of at most 2**CHUNK_BITS, float32 [2 * columns, candidates]: row 2 j is column j of every
    candidate, row 2 j + 1 its square."""
    count = 1 << min(kappa, CHUNK_BITS)
    rows = np.arange(chunk * count, (chunk + 1) * count)
    drawn = gaussian_rows(SEED, stream, rows, columns).T.astype(np.float32) / SCALE
    both = np.empty((2 * columns, count), np.float32)
    both[0::2], both[1::2] = drawn, drawn * drawn
    return both


def coefficients(plan: Plan, target: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A1 and A2 of each block, float32 [blocks, 2 * columns], from target and noise, float64 [n] of all dimensions."""
    precision = 1 / np.square(noise[plan.order])
    out = np.zeros((len(plan.counts), 2 * int(plan.counts.max(initial=1))), np.float32)
    out[plan.block, 2 * plan.column] = target[plan.order] * precision
    out[plan.block, 2 * plan.column + 1] = -0.5 * precision
    return out


def tiles(counts: np.ndarray):
    """Blocks in groups of similar width: yields (blocks int64 [b], widest number of columns)."""
    order = np.argsort(counts, kind="stable")
    for start in range(0, len(order), TILE_BLOCKS):
        some = order[start : start + TILE_BLOCKS]
        yield some, int(counts[some[-1]])


def search(
    factors: np.ndarray, counts: np.ndarray, kappa: int, select: str = "best", machine: Machine = ONE
) -> np.ndarray:
    """The candidate of each block, int64 [blocks]: the likeliest ("best"), or drawn in proportion to q / p ("sample").

    factors: float32 [blocks, 2 * columns], columns beyond a block's count being 0; counts: int64 [blocks].
    """
    # Few distinct widths, so that the codebook is made once.
    columns = min(MAX_COLUMNS, -(-max(1, factors.shape[1] // 2) // 32) * 32)
    chosen, best = np.zeros(len(counts), np.int64), np.full(len(counts), -np.inf, np.float32)
    count, local = 1 << min(kappa, CHUNK_BITS), threading.local()

    def one(tile: tuple[np.ndarray, int]) -> None:
        some, width = tile
        if not hasattr(local, "scores"):
            local.scores = np.empty((TILE_BLOCKS, TILE_ROWS), np.float32)
        part = np.ascontiguousarray(factors[some, : 2 * width])
        for first in range(0, count, TILE_ROWS):
            scores = local.scores[: len(some), : min(TILE_ROWS, count)]
            machine.product(part, both[: 2 * width, first : first + scores.shape[1]], out=scores)
            if select == "sample":
                scores += _gumbel(some, chunk * count + first, scores.shape[1], kappa)
            place = scores.argmax(1)
            value = scores[np.arange(len(some)), place]
            better = value > best[some]
            chosen[some[better]], best[some[better]] = chunk * count + first + place[better], value[better]

    for chunk in range((1 << kappa) // count):
        both = codebook(kappa, columns, CANDIDATES, chunk)
        machine.each(one, tiles(counts))
    return chosen


@lru_cache(maxsize=2)
def _gumbel_numbers(kappa: int) -> np.ndarray:
    return -np.log(-np.log(uniform(SEED, GUMBEL, np.arange(1 << kappa), 0))).astype(np.float32)


def _gumbel(blocks: np.ndarray, first: int, count: int, kappa: int) -> np.ndarray:
    """Gumbel noise of candidates of some blocks: one row of numbers, begun at another place for each block."""
    starts = random_words(SEED, GUMBEL, blocks, np.ones(len(blocks), np.int64))[:, 0].astype(np.int64)
    return _gumbel_numbers(kappa)[(starts[:, None] + first + np.arange(count)) & ((1 << kappa) - 1)]


def choose(
    plan: Plan,
    target: np.ndarray,
    noise: np.ndarray,
    kappa: int,
    select: str = "best",
    machine: Machine = ONE,
) -> np.ndarray:
    """Indices int64 [blocks] of the blocks' samples; target and noise float64 [n]."""
    return search(coefficients(plan, target, noise), plan.counts, kappa, select, machine)


def sample(plan: Plan, indices: np.ndarray, size: int, stream: int = CANDIDATES) -> np.ndarray:
    """The sample that indices name, int64 [size] in units of 1 / SCALE; 0 (the prior's mean) where nothing is coded."""
    groups = -(-plan.counts // 8)
    starts = np.cumsum(groups) - groups
    number = np.arange(int(groups.sum())) - np.repeat(starts, groups)
    drawn = random_words(SEED, stream, np.repeat(indices, groups), number)
    out = np.zeros(size, np.int64)
    out[plan.order] = gaussian_table()[drawn[starts[plan.block] + (plan.column >> 3), plan.column & 7]]
    return out
