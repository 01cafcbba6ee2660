"""The NC-VAE codec's transforms and contexts, from a weights file and to one."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from latcodec.backends.common.rate_tables import RATES
from latcodec.backends.common.sga import Quantise
from latcodec.backends.common.weights_parts import config_from, floats_to_arrays, load_floats
from latcodec.backends.nc_vae import contexts as ctx
from latcodec.backends.nc_vae.contexts import Contexts
from latcodec.backends.nc_vae.network import NCVAE, PREDICTED, Config, groups_of
from latcodec.entropy.tables import Tables
from latcodec.errors import WeightsError
from latcodec.nn.layers import logistic_bits
from latcodec.runtime import bf16_is_fast
from latcodec.weights import Weights, trained_for

CONTEXT_PARTS = ("groups", "scale", "mean", "own_scale", "own_mean", "unit", "inverse_unit", "floor", "slope", "bounds")


class Model:
    """Transforms, contexts and tables, ready to code on a device.

    Args:
        weights: A weights file.
        device: Where the networks run.
        autocast: Whether synthesis runs in bf16.

    Attributes:
        least_bits: The bits that a symbol of channel 0 costs at least, float64 [256], by rate index.

    Raises:
        WeightsError: The weights are not those of this codec.
    """

    lowest_index = 0

    def __init__(self, weights: Weights, device: str = "cpu", autocast: bool = False):
        tensors = weights.tensors
        try:
            self.network = NCVAE(config_from(Config, weights.config))
            load_floats(self.network, tensors, runs_as_floats)
            self.tables = Tables(tensors["tables.weights"], tensors["tables.offsets"], tensors["tables.minimums"])
            self.contexts = Contexts(**{name: tensors[f"contexts.{name}"] for name in CONTEXT_PARTS}, product=_product)
            if self.tables.num_tables != ctx.NUM_TABLES:
                raise WeightsError(f"{self.tables.num_tables} tables, {ctx.NUM_TABLES} are needed")
            if self.contexts.channels != self.network.config.latent:
                raise WeightsError(f"contexts of {self.contexts.channels} channels")
        except (KeyError, TypeError, ValueError, RuntimeError, WeightsError) as error:
            raise WeightsError(f"{weights.path}: not nc-vae weights: {error}") from None
        self.weights_id, self.metric = weights.id, trained_for(weights.config)
        self.device, self.autocast = torch.device(device), autocast
        self.network.to(self.device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.least_bits = self._least_bits()

    def _least_bits(self) -> np.ndarray:
        # A neighbourhood only adds to the floor, so no symbol has a narrower scale than that of the floor.
        least = np.minimum.reduceat(self.tables.bits, self.tables.offsets[:-1])
        index = ctx.table_index_of(np.arange(ctx.NUM_SCALES)[:, None], np.arange(ctx.FRACTIONS)[None])
        from_scale = np.minimum.accumulate(least[index].min(1)[::-1])[::-1]
        return from_scale[np.searchsorted(self.contexts.bounds, self.contexts.floor[:, 0], side="right")]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of two float64 matrices, on torch's threads."""
    return (torch.from_numpy(a) @ torch.from_numpy(b)).numpy()


def runs_as_floats(name: str) -> bool:
    """Return whether a state of that name is stored as floats: all but the rate module and what only training needs."""
    return not name.startswith(("rate.", "log_noise", "log_floor", "log_slope", "y_log_std"))


class NCVAERelaxedRD:
    """The codec at one rate with a relaxed quantiser; see `sga.RelaxedRD`.

    Args:
        model: Networks and contexts; the float weights of its contexts are put into its network.
        rate_index: 0..255.
    """

    def __init__(self, model: Model, rate_index: int):
        model.network.load_state_dict(_floats_of_contexts(model), strict=False)
        rate = model.network.at_rate(torch.tensor([rate_index / 255], device=model.device))
        self._model, self._rate_params = model, rate | _rate_of_contexts(model, rate_index)
        self._autocast = bf16_is_fast(model.device)
        self.gains = (self._rate_params["gain"],)

    def transmit(
        self, latents: tuple[torch.Tensor, ...], quantise: Quantise, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return x_hat and the bits of y, see `sga.RelaxedRD`."""
        x_hat, out = self._model.network.transmit(*latents, self._rate_params, quantise, self._autocast)
        return x_hat, logistic_bits(out["symbols"] - out["mean"], out["sigma"]).sum()


def _floats_of_contexts(model: Model) -> dict[str, torch.Tensor]:
    """Return the parameters of the rate module from the integers of the contexts."""
    contexts, latent = model.contexts, model.network.config.latent
    scale, own_scale = (torch.from_numpy(v * 2.0**-ctx.WEIGHT_BITS) for v in (contexts.scale, contexts.own_scale))
    mean, own_mean = (torch.from_numpy(v * 2.0**-ctx.MEAN_WEIGHT_BITS) for v in (contexts.mean, contexts.own_mean))
    missing = latent - len(mean)
    return {
        "rate.scale_root": scale.sqrt().float(),
        "rate.own_scale_root": own_scale.sqrt().flatten(1).float(),
        "rate.mean": F.pad(mean.flatten(2), (0, 0, 0, 0, 0, missing)).float(),
        "rate.own_mean": F.pad(own_mean.flatten(1), (0, 0, 0, missing)).float(),
    }


def _rate_of_contexts(model: Model, rate_index: int) -> dict[str, torch.Tensor]:
    """Return unit, floor and slope of a rate from the integers of the contexts, float32 [1, C, 1, 1]."""
    unit, slope = (v[rate_index] * 2.0**-ctx.UNIT_BITS for v in (model.contexts.unit, model.contexts.slope))
    floor = model.contexts.floor[rate_index] * 2.0**-ctx.SIZE_BITS
    params = {"unit": unit, "floor": floor / unit, "slope": slope / unit}
    return {k: torch.from_numpy(v).float().view(1, -1, 1, 1).to(model.device) for k, v in params.items()}


def export(network: NCVAE, tables: Tables) -> dict[str, np.ndarray]:
    """Return all tensors of a weights file: float16 transforms, contexts, tables."""
    tensors = floats_to_arrays(network, runs_as_floats)
    with torch.no_grad():
        every = network.cpu().at_rate(torch.arange(RATES) / (RATES - 1))
        rate = {k: v[:, :, 0, 0].double().numpy() for k, v in every.items()}
        weights = {k: v.double().numpy() for k, v in network.rate.weights().items()}
    sigmas = ctx.scale_sigmas()
    integers = {
        "groups": np.array(groups_of(network.config.latent)),
        **{k: np.rint(weights[k] * 2**ctx.WEIGHT_BITS) for k in ("scale", "own_scale")},
        **{k: np.rint(weights[k][:PREDICTED] * 2**ctx.MEAN_WEIGHT_BITS) for k in ("mean", "own_mean")},
        "unit": np.rint(rate["unit"] * 2**ctx.UNIT_BITS).clip(1, 2**22),
        "inverse_unit": np.rint(2.0**ctx.INVERSE_BITS / rate["unit"]).clip(1, 2**30),
        "floor": np.rint(rate["floor"] * rate["unit"] * 2**ctx.SIZE_BITS).clip(0, 2**30),
        "slope": np.rint(rate["slope"] * rate["unit"] * 2**ctx.UNIT_BITS).clip(0, 2**22),
        "bounds": np.rint(np.sqrt(sigmas[1:] * sigmas[:-1]) * 2**ctx.SIZE_BITS),
    }
    tensors |= {f"contexts.{k}": v.astype(np.int32) for k, v in integers.items()}
    tensors |= {f"tables.{k}": getattr(tables, k) for k in ("weights", "offsets", "minimums")}
    return tensors
