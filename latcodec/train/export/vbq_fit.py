"""What the VBQ weights are fitted with: latents of training pictures, empirical priors, counted tables."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from latcodec.backends.common.fixed_point import MEAN_BITS, SCALE_ROWS, round_to_int32
from latcodec.backends.common.mean_scale import sigmas
from latcodec.backends.common.weights_parts import stored_config
from latcodec.backends.vbq import codec as backend
from latcodec.backends.vbq import entropy_model as vbq_model
from latcodec.backends.vbq import grids
from latcodec.backends.vbq import quantiser as vbq
from latcodec.backends.vbq.network import GaussianVAE, loss
from latcodec.rates import LIKELIHOOD_VARIANCE, lambda_of_index
from latcodec.train.export.tables import logistic_tables, quantize_pmf
from latcodec.weights import Weights

RATE_STEP = 16  # every so many rate indices, from another start in each picture
GROUPS = 3  # of channels with priors of one shape
REACH = 64.0  # of quantile functions, in standard deviations
PER_LEVEL = 80_000  # samples a codebook is made from
Z_PRIOR_COUNT = 2000.0
CAUTIONS = np.array([0.8, 1.1, 1.5, 2.0, 2.7])  # factors of the precision, tried
CAUTION_PICTURES = 8
SETTLE_STEPS, SETTLE_PICTURES = (0.0, 0.25, 0.5), 8


def settle_hyper_latent(network: GaussianVAE, pictures: list[np.ndarray]) -> float:
    """Coarsen the quantiser of z as far as the Lagrangian of training pictures falls; returns the log factor.

    Gains that a short training has not brought down yet cost a few percent of a small file.
    """
    side = min(min(p.shape[:2]) for p in pictures) // 64 * 64
    if not side:
        return 0.0
    x = (
        torch.from_numpy(np.stack([p[:side, :side] for p in pictures[:SETTLE_PICTURES]])).permute(0, 3, 1, 2).float()
        / 255
    )
    start = {name: getattr(network, name).detach().clone() for name in ("z_log_gain", "z_mean", "z_log_sigma")}

    def shift(by: float) -> None:
        network.z_log_gain.data = start["z_log_gain"] - by
        network.z_log_sigma.data = start["z_log_sigma"] - by
        network.z_mean.data = start["z_mean"] * float(np.exp(-by))

    losses = []
    for by in SETTLE_STEPS:
        shift(by)
        losses.append(
            sum(float(loss(network, x, torch.full((len(x),), t), noise=False)["loss"]) for t in (0.1, 0.5, 0.9))
        )
    best = SETTLE_STEPS[int(np.argmin(losses))]
    shift(best)
    return best


class Fit:
    """Latents of training pictures and a weights file in the making."""

    def __init__(self, network: GaussianVAE, pictures: list[np.ndarray], report: Callable[[str], None] = print):
        self.network, self.report = network, report
        self.config = stored_config(network)
        self.tensors = vbq_model.export(network) | {"prior.exp": grids.exp_table()}
        self.tensors["prior.caution"] = np.ones((len(backend.PRIORS), vbq_model.RATES), np.float32)
        self.pictures = pictures
        z = logistic_tables(sigmas())
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

    def cases(self, prior: str, step: int = RATE_STEP, plain: bool = False):
        """(field, posterior, noise) of every latent picture at some rates; `self.z_seen` gets z's symbols and rows.

        plain: without the encoder's caution, as Algorithm 1 has it.
        """
        model = self.model()
        self.z_seen = []
        for number, latents in enumerate(self.latents):
            for index in range(number % step, vbq_model.RATES, step):
                noise = model.noise(index, vbq_model.NO_LAMBDA)
                if prior == "hyper":
                    mean, rows = model.prior_of_z(index, latents.z.shape[1:])
                    gain = self.network.at_rate(torch.tensor([index / 255]))["z_log_gain"][0].exp()
                    symbols = round_to_int32(latents.z * gain - torch.from_numpy(mean / 2.0**MEAN_BITS))
                    self.z_seen.append((symbols.ravel(), rows))
                    field = model.prior_of_y(symbols, index, latents.y.shape[1:])
                else:
                    field = model.factorized_prior()
                caution = 1.0 if plain else float(model.caution[backend.PRIORS.index(prior), index])
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
            for row, where in grids.runs(rows):
                where = rng.permutation(where)[: PER_LEVEL // 20]
                parts.setdefault(row, []).append(np.stack([u.ravel()[where], weight.ravel()[where]]))
        joined = {row: np.concatenate(part, 1).astype(np.float32) for row, part in parts.items()}
        chosen = {row: rng.permutation(part.shape[1])[:PER_LEVEL] for row, part in joined.items()}
        return {row: (joined[row][0][chosen[row]], joined[row][1][chosen[row]]) for row in joined}

    def fit_hyper_shape(self) -> None:
        """The quantile function of standardised residuals, and the tables of z."""
        samples = self.gather(
            "hyper", lambda field, noise: grids.level_of(field.log_variance + field.log_curvature - noise)
        )
        strong = [u for level, (u, _) in samples.items() if grids.level_ratio(level) > 1.5]
        u = np.concatenate(strong or [u for u, _ in samples.values()])
        self.tensors["prior.quantiles"][0] = vbq.fit_quantiles(u, REACH, symmetric=True)
        counts = [np.zeros(len(p) - 1) for p in self.pmfs[:SCALE_ROWS]]
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

    def add_set(self, quantizer: str, prior: str, pmfs: list[np.ndarray], minimums: list[int], **arrays) -> None:
        """Append rows for a quantizer and prior."""
        rows = np.array([len(self.pmfs), len(pmfs)], np.int32)
        self.pmfs, self.minimums = self.pmfs + pmfs, self.minimums + minimums
        self.tensors |= {f"set.{quantizer}-{prior}.{k}": v for k, v in {"rows": rows, **arrays}.items()}

    def calibrate(self, prior: str) -> None:
        """How far the encoder's precision has to be raised for the smallest D / (2 s2) + lambda R of real pictures."""
        indices = np.linspace(0, vbq_model.RATES - 1, 5).round().astype(int)
        place, best = backend.PRIORS.index(prior), []
        model = self.model()
        for index in indices:
            losses = []
            for factor in CAUTIONS:
                model.caution = np.full_like(self.tensors["prior.caution"], factor)
                price = 0.0
                for latents, picture in list(zip(self.latents, self.pictures, strict=True))[:CAUTION_PICTURES]:
                    coded = backend.code(model, latents, backend.Options(int(index), verify=False, prior=prior))
                    decoded = backend.synthesise(model, coded.latents, picture.shape[:2], False, 8)
                    error = np.square((decoded.astype(np.float64) - picture) / 255).sum()
                    price += coded.estimated_bits + error / (2 * LIKELIHOOD_VARIANCE * lambda_of_index(index))
                losses.append(price)
            # The minimum of a parabola through the least and its neighbours.
            at = int(np.clip(np.argmin(losses), 1, len(CAUTIONS) - 2))
            a, b, _ = np.polyfit(np.log(CAUTIONS[at - 1 : at + 2]), losses[at - 1 : at + 2], 2)
            low, high = np.log(CAUTIONS[[at - 1, at + 1]])
            best.append(np.clip(-b / (2 * a), low, high) if a > 0 else np.log(CAUTIONS[np.argmin(losses)]))
        self.report(f"{prior}: caution {np.exp(best).round(2).tolist()} at rate indices {indices.tolist()}")
        caution = np.exp(np.interp(np.arange(vbq_model.RATES), indices, best))
        self.tensors["prior.caution"][place] = caution.astype(np.float32)

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
            for field, posterior, noise in self.cases(prior, 2 * RATE_STEP, quantizer == "algorithm1"):
                rows = np.broadcast_to(grid.rows(field, noise), posterior.mode.shape)
                symbols = grid.choose(posterior, rows, field, bits)
                values = grid.values(symbols, rows, field, noise) * grids.ONE
                price += float((posterior.precision * (values - posterior.mode) ** 2).sum()) / posterior.lambda_bits
                total += symbols.size
                for row, where in grids.runs(rows.ravel()):
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
