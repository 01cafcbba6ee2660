"""The sets of tables of the VBQ weights: one function for each quantiser, each run for each prior."""

import numpy as np

from latcodec.backends.vbq import grids
from latcodec.backends.vbq import quantiser as vbq
from latcodec.backends.vbq.codebooks import entropy_constrained, k_means, smoothed, uniform_start
from latcodec.train.export.tables import logistic_tables
from latcodec.train.export.vbq_fit import GROUPS, RATE_STEP, Fit

ROUNDS = 2  # of counting with the tables of the round before
SPARE_LEVELS = 4  # beyond those that the rates reach, for lambdas outside their range
MOST_POINTS = 500  # of a row of Algorithm 1's points
STEPS = (0.85, 1.0, 1.2)  # of the best uniform quantiser at high rate, tried


def code_points(fit: Fit, prior: str) -> None:
    """Codebooks of code points for every level (and group): the true code length, iterated."""
    mirrored = prior == "hyper"
    samples = fit.gather(
        prior, lambda f, noise: grids.level_of(f.log_variance + f.log_curvature - noise) + f.group * grids.LEVELS
    )
    entries, pmfs = [], []
    for group in range(1 if mirrored else GROUPS):
        here = {row % grids.LEVELS: pair for row, pair in samples.items() if row // grids.LEVELS == group}
        here = here or {row % grids.LEVELS: pair for row, pair in samples.items()}  # a group without a channel
        enough = min(3000, max(len(u) for u, _ in here.values()))
        known = np.array([level for level, (u, _) in here.items() if len(u) >= enough])
        for level in range(grids.LEVELS):
            near = int(known[np.abs(known - level).argmin()])
            # A row that no rate reaches stays small: it is there for lambdas outside the range.
            wanted = level if mirrored or abs(level - near) <= SPARE_LEVELS else near + SPARE_LEVELS
            u, weight = here[near]
            weight = weight * np.float32(np.exp(grids.level_ratio(wanted) - grids.level_ratio(near)))
            listed, counts = _codebook(u, weight, wanted, mirrored)
            entries.append(listed)
            pmfs.append(np.append(counts, max(1e-6 * counts.sum(), 1e-9)))
    fit.add_set("vbq", prior, pmfs, [0] * len(pmfs), entries=np.concatenate(entries))
    fit.calibrate(prior)
    fit.count("vbq", prior, ROUNDS)


def algorithm_1(fit: Fit, prior: str) -> None:
    """Tables of what Algorithm 1 chooses, by level (and group), the common points listed."""
    groups = 1 if prior == "hyper" else GROUPS
    rows_total = groups * grids.LEVELS
    fit.add_set("algorithm1", prior, [np.ones(2)] * rows_total, [0] * rows_total, entries=np.ones(rows_total, np.int32))
    model = fit.model()
    first, _, grid = model.sets["algorithm1", prior]
    seen: dict[int, list] = {row: [] for row in range(rows_total)}
    for field, posterior, noise in fit.cases(prior, 2 * RATE_STEP, plain=True):
        rows = np.broadcast_to(grid.rows(field, noise), posterior.mode.shape)
        symbols = grid.choose(posterior, rows, field, [])
        points = np.where(symbols < 1, 1, symbols - 1).astype(np.int32)
        for row, where in grids.runs(rows.ravel()):
            seen[row].append(np.unique(points.ravel()[where], return_counts=True))
    listed, pmfs = [], []
    for row in range(rows_total):
        points, counts = np.ones(1, np.int64), np.ones(1)
        if seen[row]:
            points, where = np.unique(np.concatenate([p for p, _ in seen[row]]), return_inverse=True)
            counts = np.bincount(where, np.concatenate([c for _, c in seen[row]]))
        common = np.sort(np.argsort(-counts)[:MOST_POINTS])
        rest = counts.sum() - counts[common].sum() + 0.5 * (counts == 1).sum()
        points, counts = points[common], counts[common]
        order = np.argsort(vbq.places_of(points))
        listed.append(points[order].astype(np.int32))
        pmfs.append(np.append(counts[order], max(rest, 1e-5 * counts.sum())))
    fit.pmfs[first : first + rows_total] = pmfs
    fit.tensors[f"set.algorithm1-{prior}.entries"] = np.concatenate(listed)
    fit.count("algorithm1", prior, 1)


def uniform(fit: Fit, prior: str) -> None:
    """Tables of the uniform grid, by level: logistic, then counted."""
    sigma = [np.sqrt(np.exp(grids.level_ratio(level)) / 12) for level in range(grids.LEVELS)]
    base = logistic_tables(np.clip(sigma, 0.02, 300))
    pmfs = [base.weights[a:b] / 2**24 for a, b in zip(base.offsets[:-1], base.offsets[1:], strict=True)]
    fit.add_set("uniform", prior, pmfs, base.minimums.tolist())
    fit.count("uniform", prior, 1)


def books(fit: Fit, quantizer: str, prior: str) -> None:
    """k-means' or Lloyd's centres for some noises, and tables by book and variance."""
    noises = np.linspace(*fit.tensors["rates.noise"][[0, -1]], grids.BOOKS).round().astype(np.int32)
    samples = np.concatenate([
        np.random.default_rng(n).permutation((p.mode - f.mean * grids.ONE).ravel())[:20_000]
        for n, (f, p, _) in enumerate(fit.cases(prior, 3 * RATE_STEP))
    ]).astype(np.float32)  # fmt: skip
    step_grid = grids.StepGrid(fit.tensors["prior.exp"])
    centres = []
    for noise in noises:
        step = step_grid.step(int(noise)) * 2.0**-grids.SCALE_BITS
        count = int(np.clip(np.ptp(np.quantile(samples, [1e-4, 1 - 1e-4])) / step, 2, 250))
        if quantizer == "kmeans":
            book = k_means(samples, count)
        else:
            weight = np.full(len(samples), np.exp((grids.MEAN_CURVATURE - noise) / 2**grids.LOG_BITS) / (2 * np.log(2)))
            start = uniform_start(step, min(float(np.abs(samples).max()), 125 * step), False)
            book, counts, _ = entropy_constrained(samples, weight.astype(np.float32), start, False, rounds=50)
            book = book[counts > 0]
        centres.append(np.unique(np.rint(book * 2**vbq.VALUE_BITS).astype(np.int32)))
    starts = np.cumsum([0] + [len(c) for c in centres]).astype(np.int32)
    pmfs = [np.ones(len(c) + 1) for c in centres for _ in range(grids.BOOK_GROUPS)]
    fit.add_set(quantizer, prior, pmfs, [0] * len(pmfs), centres=np.concatenate(centres), starts=starts, noises=noises)
    fit.count(quantizer, prior, 3 if quantizer == "lloyd" else 1)


def _codebook(u: np.ndarray, weight: np.ndarray, level: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values int32 of one row, rising, and their counts: the cheapest of several starts."""
    target = np.abs(u) if mirrored else u
    reach = float(np.abs(u).max()) + 0.5
    best = None
    for factor in STEPS:
        step = min(factor * np.sqrt(12) * np.exp(-grids.level_ratio(level) / 2), 3.0)
        result = (*entropy_constrained(target, weight, uniform_start(step, reach, mirrored), mirrored), step)
        best = result if best is None or result[2] < best[2] else best
    centres, counts, _, step = best
    if mirrored:
        centres = np.concatenate([-centres[:0:-1], centres])
        counts = np.concatenate([counts[:0:-1] / 2, counts[:1], counts[1:] / 2])
    shares = smoothed(counts, int(0.25 / step), False)
    fixed = np.rint(centres * 2**vbq.VALUE_BITS).astype(np.int32)
    return fixed, shares + 1e-4 + 1e-6 * counts.sum() / len(counts)
