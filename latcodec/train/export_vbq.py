"""From a checkpoint of the VBQ model to its weights file: empirical priors, codebooks and tables, all fitted."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latcodec.backends import vbq as backend
from latcodec.backends import vbq_model
from latcodec.errors import WeightsError
from latcodec.latents import grids, vbq
from latcodec.latents.codebooks import entropy_constrained, k_means, smoothed, uniform_start
from latcodec.models.gaussian_vae import GaussianVAE
from latcodec.rates import LIKELIHOOD_VARIANCE, lambda_of_index
from latcodec.train import data
from latcodec.train.loop import read_checkpoint
from latcodec.train.tables import logistic_tables, quantize_pmf
from latcodec.weights import Weights, add_to_index, save

SIDE_PX = 384
RATE_STEP = 16  # every so many rate indices, from another start in each picture
GROUPS = 5  # of channels with priors of one shape
REACH = 64.0  # of quantile functions, in standard deviations
PER_LEVEL = 80_000  # samples a codebook is made from
SPARE_LEVELS = 6
MOST_POINTS = 500  # of a row of Algorithm 1's points
STEPS = (0.85, 1.0, 1.2)  # of the best uniform quantiser at high rate, tried
Z_PRIOR_COUNT = 2000.0
CAUTIONS = np.array([0.8, 1.1, 1.5, 2.0, 2.7])  # factors of the precision, tried
CAUTION_PICTURES = 8
ROUNDS = 2  # of counting with the tables of the round before


def load_checkpoint(path: Path) -> GaussianVAE:
    """The EMA network of a checkpoint; raises WeightsError if it is no checkpoint."""
    try:
        state = read_checkpoint(path, "cpu")
        network = GaussianVAE(vbq_model.config_of(json.loads(state["config"])))
        network.load_state_dict({k: v.float() for k, v in state["ema"].items()})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise WeightsError(f"{path}: not a checkpoint: {error}") from None
    return network.eval()


class Fit:
    """Latents of training pictures and a weights file in the making."""

    def __init__(self, network: GaussianVAE, pictures: list[np.ndarray], report: Callable[[str], None] = print):
        self.network, self.report = network, report
        self.config = vbq_model.stored_config(network)
        self.tensors = vbq_model.export(network) | {"prior.exp": grids.exp_table()}
        self.tensors["prior.caution"] = np.ones((len(backend.PRIORS), vbq_model.RATES), np.float32)
        self.pictures = pictures
        z = logistic_tables(np.geomspace(vbq_model.Z_SIGMA_MIN, vbq_model.Z_SIGMA_MAX, vbq_model.Z_ROWS))
        self.pmfs = [z.weights[a:b] / 2**24 for a, b in zip(z.offsets[:-1], z.offsets[1:], strict=True)]
        self.minimums = z.minimums.tolist()
        channels = network.config.latent
        zero = np.zeros(channels, np.int32)
        self.tensors["prior.quantiles"] = np.tile(vbq.fit_quantiles(np.linspace(-1, 1, 99), REACH), (1 + channels, 1))
        self.tensors |= {f"factorized.{k}": zero for k in ("log_variance", "log_curvature", "group")}
        self.latents = [backend.analyse(self.model(), p) for p in pictures]

    def model(self) -> vbq_model.Model:
        """The codec of what has been fitted so far."""
        tables = quantize_pmf(self.pmfs, self.minimums)
        self.tensors |= {f"tables.{n}": getattr(tables, n) for n in ("weights", "offsets", "minimums")}
        return vbq_model.Model(Weights(Path("fit"), "0" * 64, "vbq", self.config, self.tensors))

    def cases(self, prior: str, step: int = RATE_STEP):
        """(field, posterior, noise) of every latent picture at some rates; `self.z_seen` gets z's symbols and rows."""
        model = self.model()
        self.z_seen = []
        for number, latents in enumerate(self.latents):
            for index in range(number % step, vbq_model.RATES, step):
                noise = model.noise(index, vbq_model.NO_LAMBDA)
                if prior == "hyper":
                    mean, rows = model.prior_of_z(index, latents.z.shape[1:])
                    gain = self.network.at_rate(torch.tensor([index / 255]))["z_log_gain"][0].exp()
                    symbols = backend._round(latents.z * gain - torch.from_numpy(mean / 2.0**vbq_model.MEAN_BITS))
                    self.z_seen.append((symbols.ravel(), rows))
                    field = model.prior_of_y(symbols, index, latents.y.shape[1:])
                else:
                    field = model.factorized_prior()
                caution = float(model.caution[backend.PRIORS.index(prior), index])
                yield field, backend.posterior_of(latents, noise, caution), noise

    def gather(self, prior: str, row_of: Callable) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """By row: residuals in standard deviations of the prior, and what their squared error costs in bits."""
        rng = np.random.default_rng(0)
        parts: dict[int, list] = {}
        for field, posterior, noise in self.cases(prior):
            std = np.exp(field.log_variance / 2 ** (grids.LOG_BITS + 1))
            u = (posterior.mode - field.mean * grids.ONE) / std
            weight = posterior.precision * std**2 / posterior.lambda_bits
            rows = np.broadcast_to(row_of(field, noise), u.shape).ravel()
            for row, where in grids._runs(rows):
                where = rng.permutation(where)[: PER_LEVEL // 20]
                parts.setdefault(row, []).append(np.stack([u.ravel()[where], weight.ravel()[where]]))
        joined = {row: np.concatenate(part, 1).astype(np.float32) for row, part in parts.items()}
        chosen = {row: rng.permutation(part.shape[1])[:PER_LEVEL] for row, part in joined.items()}
        return {row: (joined[row][0][chosen[row]], joined[row][1][chosen[row]]) for row in joined}

    # Priors.

    def fit_hyper_shape(self) -> None:
        """The quantile function of standardised residuals, and the tables of z."""
        samples = self.gather(
            "hyper", lambda field, noise: grids.level_of(field.log_variance + field.log_curvature - noise)
        )
        strong = [u for level, (u, _) in samples.items() if grids.level_ratio(level) > 1.5]
        u = np.concatenate(strong or [u for u, _ in samples.values()])
        self.tensors["prior.quantiles"][0] = vbq.fit_quantiles(u, REACH, symmetric=True)
        counts = [np.zeros(len(p) - 1) for p in self.pmfs[: vbq_model.Z_ROWS]]
        for symbols, rows in self.z_seen:
            for row in np.unique(rows):
                entries = symbols[rows == row] - self.minimums[row]
                entries = entries[(entries >= 0) & (entries < len(counts[row]))]
                counts[row] += np.bincount(entries, minlength=len(counts[row]))
        for row, count in enumerate(counts):
            folded = np.append((count + count[::-1]) / 2, 0)
            self.pmfs[row] = folded + Z_PRIOR_COUNT * self.pmfs[row] / self.pmfs[row].sum()

    def fit_factorized(self) -> None:
        """The empirical quantiles of posterior means, per channel, and what its tables depend on."""
        posteriors = [backend.posterior_of(latents, 0) for latents in self.latents]
        means = np.concatenate([p.mode.reshape(len(p.mode), -1) for p in posteriors], 1)
        precision = np.concatenate([p.precision.reshape(len(p.mode), -1) for p in posteriors], 1)
        std = means.std(1) + 1e-6
        for channel, samples in enumerate(means):
            self.tensors["prior.quantiles"][1 + channel] = vbq.fit_quantiles(samples, REACH * max(1, std[channel]))
        peaked = np.abs(means).mean(1) / std  # 0.80 for a Gaussian, 0.71 for a Laplacian
        edges = np.quantile(peaked, np.arange(1, GROUPS) / GROUPS)
        fixed = 2**grids.LOG_BITS
        self.tensors["factorized.log_variance"] = np.rint(2 * np.log(std) * fixed).astype(np.int32)
        self.tensors["factorized.log_curvature"] = np.rint(np.log(precision).mean(1) * fixed).astype(np.int32)
        self.tensors["factorized.group"] = np.searchsorted(edges, peaked).astype(np.int32)

    # Sets of tables.

    def add_set(self, quantizer: str, prior: str, pmfs: list[np.ndarray], minimums: list[int], **arrays) -> None:
        """Append rows for a quantizer and prior."""
        rows = np.array([len(self.pmfs), len(pmfs)], np.int32)
        self.pmfs, self.minimums = self.pmfs + pmfs, self.minimums + minimums
        self.tensors |= {f"set.{quantizer}-{prior}.{k}": v for k, v in {"rows": rows, **arrays}.items()}

    def points(self, prior: str) -> None:
        """Codebooks of code points for every level (and group): the true code length, iterated."""
        self._points(prior)
        self.calibrate(prior)
        self.count("vbq", prior, ROUNDS)

    def calibrate(self, prior: str) -> None:
        """How far the encoder's precision has to be raised for the smallest D / (2 s2) + lambda R of real pictures."""
        indices = np.linspace(0, vbq_model.RATES - 1, 5).round().astype(int)
        place, best, leasts = backend.PRIORS.index(prior), [], []
        model = self.model()
        for index in indices:
            losses = []
            for factor in CAUTIONS:
                model.caution = np.full_like(self.tensors["prior.caution"], factor)
                loss = 0.0
                for latents, picture in list(zip(self.latents, self.pictures, strict=True))[:CAUTION_PICTURES]:
                    coded = backend.code(model, latents, backend.Options(int(index), False, "vbq", prior))
                    decoded = backend.synthesise(model, coded.latents, picture.shape[:2], False, 8)
                    error = np.square((decoded.astype(np.float64) - picture) / 255).sum()
                    loss += coded.estimated_bits + error / (2 * LIKELIHOOD_VARIANCE * lambda_of_index(index))
                losses.append(loss)
            # The minimum of a parabola through the least and its neighbours.
            leasts.append(min(losses) / sum(p[..., 0].size for p in self.pictures[:CAUTION_PICTURES]))
            at = int(np.clip(np.argmin(losses), 1, len(CAUTIONS) - 2))
            a, b, _ = np.polyfit(np.log(CAUTIONS[at - 1 : at + 2]), losses[at - 1 : at + 2], 2)
            low, high = np.log(CAUTIONS[[at - 1, at + 1]])
            best.append(
                float(np.clip(-b / (2 * a), low, high)) if a > 0 else float(np.log(CAUTIONS[np.argmin(losses)]))
            )
        self.report(f"{prior}: least {np.round(leasts, 4).tolist()}")
        self.report(f"{prior}: caution {np.exp(best).round(2).tolist()} at rate indices {indices.tolist()}")
        caution = np.exp(np.interp(np.arange(vbq_model.RATES), indices, best))
        self.tensors["prior.caution"][place] = caution.astype(np.float32)

    def _points(self, prior: str) -> None:
        mirrored = prior == "hyper"
        samples = self.gather(
            prior, lambda f, noise: grids.level_of(f.log_variance + f.log_curvature - noise) + f.group * grids.LEVELS
        )
        entries, pmfs = [], []
        for group in range(1 if mirrored else GROUPS):
            here = {row % grids.LEVELS: pair for row, pair in samples.items() if row // grids.LEVELS == group}
            known = np.array([level for level, (u, _) in here.items() if len(u) >= 3000])
            for level in range(grids.LEVELS):
                near = int(known[np.abs(known - level).argmin()])
                # A row that no rate reaches stays small: it is there for lambdas outside the range.
                wanted = level if mirrored or abs(level - near) <= SPARE_LEVELS else near + SPARE_LEVELS
                u, weight = here[near]
                weight = weight * np.float32(np.exp(grids.level_ratio(wanted) - grids.level_ratio(near)))
                listed, counts = _codebook(u, weight, wanted, mirrored)
                entries.append(listed)
                pmfs.append(np.append(counts, max(1e-6 * counts.sum(), 1e-9)))
        self.add_set("vbq", prior, pmfs, [0] * len(pmfs), entries=np.concatenate(entries))

    def count(self, quantizer: str, prior: str, rounds: int) -> None:
        """Fit the tables of a set to the symbols that training pictures give with it, again and again."""
        mirrored = prior == "hyper" and quantizer in ("vbq", "uniform")
        for number in range(rounds):
            model = self.model()
            first, count, grid = model.sets[quantizer, prior]
            offsets = model.tables.offsets
            bits = [model.tables.bits[offsets[r] : offsets[r + 1]] for r in range(first, first + count)]
            counts = [np.zeros(len(b)) for b in bits]
            price, total = 0.0, 0
            for field, posterior, noise in self.cases(prior, RATE_STEP * 2):
                rows = np.broadcast_to(grid.rows(field, noise), posterior.mode.shape)
                symbols = grid.choose(posterior, rows, field, bits)
                values = grid.values(symbols, rows, field, noise) * grids.ONE
                price += float((posterior.precision * (values - posterior.mode) ** 2).sum()) / posterior.lambda_bits
                total += symbols.size
                for row, where in grids._runs(rows.ravel()):
                    entries = symbols.ravel()[where] - self.minimums[first + row]
                    entries = np.where((entries < 0) | (entries >= len(counts[row])), len(counts[row]) - 1, entries)
                    counts[row] += np.bincount(entries, minlength=len(counts[row]))
            spent = sum(float(c @ b) for c, b in zip(counts, bits, strict=True))
            escapes = sum(c[-1] for c in counts)
            self.report(
                f"{quantizer} {prior} round {number}: {(price + spent) / total:.4f} bits a latent, "
                f"{spent / total:.4f} of them rate, {escapes:.0f} escapes of {total}"
            )
            for row, counted in enumerate(counts):
                seen = counted[:-1].sum()
                if not seen:
                    continue
                old = self.pmfs[first + row][:-1] / self.pmfs[first + row].sum()
                body = (counted[:-1] + counted[-2::-1]) / 2 if mirrored else counted[:-1]
                # Rare entries borrow from the smooth shape fitted before.
                body = body + 40 * np.sqrt(1 + seen / 1e4) * old
                self.pmfs[first + row] = np.append(body, max(counted[-1], 1e-6 * seen, 1e-9))

    def algorithm1(self, prior: str) -> None:
        """Tables of what Algorithm 1 chooses, by level (and group), the common points listed."""
        groups = 1 if prior == "hyper" else GROUPS
        rows_total = groups * grids.LEVELS
        self.add_set(
            "algorithm1", prior, [np.ones(2)] * rows_total, [0] * rows_total, entries=np.ones(rows_total, np.int32)
        )
        model = self.model()
        first, _, grid = model.sets["algorithm1", prior]
        seen: dict[int, list] = {row: [] for row in range(rows_total)}
        for field, posterior, noise in self.cases(prior, RATE_STEP * 2):
            rows = np.broadcast_to(grid.rows(field, noise), posterior.mode.shape)
            symbols = grid.choose(posterior, rows, field, [])
            points = np.where(symbols < 1, 1, symbols - 1).astype(np.int32)
            for row, where in grids._runs(rows.ravel()):
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
        self.pmfs[first : first + rows_total] = pmfs
        self.tensors[f"set.algorithm1-{prior}.entries"] = np.concatenate(listed)
        self.count("algorithm1", prior, 1)

    def uniform(self, prior: str) -> None:
        """Tables of the uniform grid, by level (and group): logistic, then counted."""
        sigma = [np.sqrt(np.exp(grids.level_ratio(level)) / 12) for level in range(grids.LEVELS)]
        base = logistic_tables(np.clip(sigma, 0.02, 300))
        pmfs = [base.weights[a:b] / 2**24 for a, b in zip(base.offsets[:-1], base.offsets[1:], strict=True)]
        groups = 1 if prior == "hyper" else GROUPS
        self.add_set("uniform", prior, pmfs * groups, base.minimums.tolist() * groups)
        self.count("uniform", prior, 1)

    def books(self, quantizer: str, prior: str) -> None:
        """k-means' or Lloyd's centres for some noises, and tables by book and variance."""
        noises = np.linspace(*self.tensors["rates.noise"][[0, -1]], grids.BOOKS).round().astype(np.int32)
        samples = np.concatenate([
            np.random.default_rng(n).permutation((p.mode - f.mean * grids.ONE).ravel())[:20_000]
            for n, (f, p, _) in enumerate(self.cases(prior, 3 * RATE_STEP))
        ]).astype(np.float32)  # fmt: skip
        step_grid = grids.StepGrid(self.tensors["prior.exp"])
        centres = []
        for noise in noises:
            step = step_grid.step(int(noise)) * 2.0**-grids.SCALE_BITS
            count = int(np.clip(np.ptp(np.quantile(samples, [1e-4, 1 - 1e-4])) / step, 2, 250))
            if quantizer == "kmeans":
                book = k_means(samples, count)
            else:
                weight = np.full(
                    len(samples), np.exp((grids.MEAN_CURVATURE - noise) / 2**grids.LOG_BITS) / (2 * np.log(2))
                )
                start = uniform_start(step, min(float(np.abs(samples).max()), 125 * step), False)
                book, counts, _ = entropy_constrained(samples, weight.astype(np.float32), start, False, rounds=50)
                book = book[counts > 0]
            centres.append(np.unique(np.rint(book * 2**vbq.VALUE_BITS).astype(np.int32)))
        starts = np.cumsum([0] + [len(c) for c in centres]).astype(np.int32)
        pmfs = [np.ones(len(c) + 1) for c in centres for _ in range(grids.BOOK_GROUPS)]
        self.add_set(
            quantizer, prior, pmfs, [0] * len(pmfs), centres=np.concatenate(centres), starts=starts, noises=noises
        )
        self.count(quantizer, prior, 3 if quantizer == "lloyd" else 1)


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


@torch.inference_mode()
def fit(network: GaussianVAE, pictures: list[np.ndarray], report: Callable[[str], None] = print,
        rivals: bool = True, priors: tuple[str, ...] = backend.PRIORS) -> dict[str, np.ndarray]:  # fmt: skip
    """All tensors of the weights file; pictures are uint8 [H, W, 3]. rivals: the paper's comparisons too."""
    making = Fit(network, pictures, report)
    making.fit_hyper_shape()
    making.fit_factorized()
    for prior in priors:
        making.points(prior)
        if rivals:
            making.algorithm1(prior)
            making.uniform(prior)
            making.books("kmeans", prior)
            making.books("lloyd", prior)
    making.model()
    return making.tensors


def export(checkpoint: Path, out: Path, command: str, paths: list[str], pictures: int = 48) -> Path:
    """Write `out` (safetensors) from a checkpoint, everything fitted on training pictures of `paths`, and index it."""
    network = load_checkpoint(checkpoint)
    files = [path for path in data.find(paths) if not data.is_validation(path)]
    loaded = (data.load_one(path) for path in files[:: max(1, len(files) // pictures)][:pictures])
    crops = [p[:SIDE_PX, :SIDE_PX] for p in loaded if p is not None]
    tensors = fit(network, crops)
    config = vbq_model.stored_config(network)
    digest = save(out, "vbq", config, command, tensors)
    add_to_index(out, "vbq", config, command, digest)
    return out
