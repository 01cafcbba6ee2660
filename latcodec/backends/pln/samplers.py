"""The samplers by name, with one way to plan, to choose and to sample."""

from dataclasses import dataclass

import numpy as np

from latcodec.backends.pln import coded_sampling, greedy, importance, rejection
from latcodec.backends.pln.coded_sampling import BIT, ONE, Machine, Plan

SAMPLERS = ("blocks", "greedy", "importance", "rejection")  # ids on the wire, append-only
SELECTS = ("best", "sample")
KAPPAS = (8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20)
MAX_SHARDS, MAX_BEAMS = 8, 256
GREEDY_KAPPA = 12  # unless told; at most CHUNK_BITS
IMPORTANCE_EXTRA_BITS = 2  # t: candidates beyond exp(KL)


@dataclass(frozen=True)
class Layout:
    """What a file says of its indices: sampler, bits of an index, shards of a block."""

    sampler: str
    kappa: int
    shards: int


def exists(sampler: str, kappa: int, shards: int) -> bool:
    """Whether a file may have that layout."""
    few = kappa <= coded_sampling.CHUNK_BITS or sampler not in ("greedy", "rejection")
    return kappa in KAPPAS and few and 1 <= shards <= (MAX_SHARDS if sampler == "greedy" else 1)


@dataclass(frozen=True)
class Classes:
    """What the sampler knows of each class of dimension (a table row), integers: `bits` [rows] in 1/256 bit and, by
    number of shards, `amplitudes` [shards, rows]; for other numbers shards have equal variance."""

    bits: np.ndarray
    amplitudes: dict[int, np.ndarray]

    def shards(self, count: int, rows: np.ndarray) -> np.ndarray:
        """Standard deviations of the shards of dimensions with rows [n], int64 [count, n] or [count, 1]."""
        known = self.amplitudes.get(count)
        return greedy.equal_amplitudes(count) if known is None else known[:, rows]


def plan(layout: Layout, bits: np.ndarray) -> Plan:
    """The blocks of dimensions with bits, integers [n] in 1/256 bit; none for a sampler without blocks."""
    capacity = layout.kappa * BIT
    if layout.sampler == "rejection":
        return coded_sampling.pack(np.zeros(0, np.int64), capacity)
    if layout.sampler == "importance":
        return importance.pack(bits, capacity - IMPORTANCE_EXTRA_BITS * BIT)
    return coded_sampling.pack(bits, capacity * layout.shards)


def choose(
    layout: Layout,
    classes: Classes,
    plan: Plan,
    rows: np.ndarray,
    target: np.ndarray,
    noise: np.ndarray,
    select: str = "best",
    beams: int = 1,
    machine: Machine = ONE,
) -> np.ndarray:
    """Indices, int64, of dimensions with rows uint8 [n], target and noise float64 [n] in units of the prior."""
    if layout.sampler == "rejection":
        return rejection.choose(classes.bits[rows], target, noise)
    if layout.sampler == "greedy":
        return greedy.choose(plan, target, noise, layout.kappa, classes.shards(layout.shards, rows), beams, machine)
    select = "sample" if layout.sampler == "importance" else select
    return coded_sampling.choose(plan, target, noise, layout.kappa, select, machine)


def sample(layout: Layout, classes: Classes, plan: Plan, rows: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """What indices name: int64 [n], `shared_random.SCALE` being one standard deviation of the prior."""
    if layout.sampler == "rejection":
        return rejection.sample(classes.bits[rows], indices)
    if layout.sampler == "greedy":
        return greedy.sample(plan, indices, len(rows), classes.shards(layout.shards, rows))
    return coded_sampling.sample(plan, indices, len(rows))
