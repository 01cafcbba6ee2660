"""A small VAE trained at several weights of the mutual information, from one seed: a Markdown table. Run by hand.

    python experiments/mi_sweep.py OUT DATA... [--steps 1000] [--weights 0,.01,.1,1] [--fraction .5] [--plain]
        [--cache DIR]

Ten minutes on one core. What is in OUT from an earlier call with the same arguments is shown again, not trained again.

Columns: bits per pixel and PSNR at four rates, rounded, z included; BD-rate over eight rates against the first weight;
then, at t = 0.5 and under the prior N(0, 1), which the term is about: active channels; bits per place, means over
channels, of KL, of the lower bound of I_q(x; y), in c and in the rest, and of the gap (train/diagnostics.py); and what
the term raises, the bound of the mutual information with the model's own pictures, in c and in the rest.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from latcodec import metrics
from latcodec.backends.vbq.network import Config, GaussianVAE, mutual_information
from latcodec.errors import OptionError
from latcodec.train import data
from latcodec.train.checkpoint import read_checkpoint
from latcodec.train.diagnostics import diagnose
from latcodec.train.trainer import AVERAGE, Trainer, TrainSettings

WIDTHS = {"widths": "16,24,32", "latent": "48", "hyper_width": "32", "hyper_latent": "16"}
SHOWN = (0, 2, 4, 7)  # of the eight validation rates
SIDE_PX = 128
RATE = 0.5


def trained(weight: float, arguments) -> Path:
    """The folder of one run."""
    name = f"mi-{weight:g}-{arguments.fraction:g}-{arguments.steps}-{arguments.seed}" + "-plain" * arguments.plain
    out = Path(arguments.out) / name
    options = WIDTHS | {"mi_weight": str(weight), "mi_fraction": str(arguments.fraction)}
    options |= {"tempered": "0"} if arguments.plain else {}
    if not (out / "done").exists():
        settings = TrainSettings(
            codec="vbq", data=tuple(arguments.data), out=str(out), steps=arguments.steps, batch_size=8,
            patch=SIDE_PX, final_patch=SIDE_PX, lr=1e-3, ema=0.99, seed=arguments.seed, cache=arguments.cache,
            options=tuple(options.items()), checkpoint_minutes=60, validate_minutes=60,
        )  # fmt: skip
        Trainer(settings, lambda line: print(f"[{weight:g}] {line}", flush=True)).run()
        (out / "done").touch()
    return out


@torch.no_grad()
def measured(out: Path, crops: np.ndarray) -> dict:
    """Curve, channels and bound of a run."""
    state = read_checkpoint(out / AVERAGE, "cpu")
    stored = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(state["config"]).items()}
    config = Config(**stored | {"mi_fraction": 1.0})  # to see c and the rest
    model = GaussianVAE(config).eval()
    model.load_state_dict({name: value.float() for name, value in state["ema"].items()})
    rows = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["validation"]
    told = diagnose(model, crops, RATE, prior="normal")
    channels = told["levels"]["y"]["channels"]
    rate = model.at_rate(torch.full((4,), RATE))
    rate |= {} if config.tempered else {"noise": torch.ones(4, 1, 1, 1)}
    torch.manual_seed(0)
    bound = torch.cat([mutual_information(model, (16, 16), rate) for _ in range(4)]).mean((0, 2, 3))
    c = max(1, round(stored["mi_fraction"] * config.latent))
    columns = {name: np.array([row[f"{name}_bits"] for row in channels]) for name in ("kl", "mi", "gap")}
    return {
        "curve": [(row["bpp"], row["psnr_db"]) for row in rows], "active": sum(row["active"] for row in channels),
        "ceiling": told["ceiling_bits"], "c": c, "bound": bound.numpy(), **columns,
    }  # fmt: skip


def parts(values: np.ndarray, c: int) -> str:
    """Means of c and of the rest."""
    return f"{values[:c].mean():.3f} / " + (f"{values[c:].mean():.3f}" if len(values) > c else "-")


def difference(first: dict, other: dict) -> str:
    try:
        return f"{metrics.bd_rate(first['curve'], other['curve'])[0]:+.1f} %"
    except OptionError as error:
        return f"n/a ({error})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("data", nargs="+")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--weights", type=lambda text: [float(w) for w in text.split(",")], default=[0, 0.01, 0.1, 1])
    parser.add_argument("--fraction", type=float, default=0.5)
    parser.add_argument("--plain", action="store_true", help="the paper's ELBO at one lambda, not the tempered model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folders = {weight: trained(weight, arguments) for weight in arguments.weights}
    pictures, held_out = data.load(arguments.data, 256, data.PictureStore(arguments.cache))
    crops = data.validation_crops(held_out or pictures[:8], 256)
    found = {weight: measured(out, crops) for weight, out in folders.items()}
    first = next(iter(found.values()))
    total = len(first["mi"])
    heads = ["mi_weight", *(f"t = {i / 7:.2f}: bpp, dB" for i in SHOWN), "BD-rate", f"active of {total}", "KL",
             "MI", "MI in c / rest", "gap", "bound in c / rest"]  # fmt: skip
    print("| " + " | ".join(heads) + " |\n|" + "---:|" * len(heads))
    for weight, one in found.items():
        cells = [f"{weight:g}", *("{:.3f}, {:.2f}".format(*one["curve"][i]) for i in SHOWN), difference(first, one)]
        cells += [str(one["active"]), f"{one['kl'].mean():.3f}", f"{one['mi'].mean():.3f}", parts(one["mi"], one["c"])]
        cells += [f"{one['gap'].mean():.3f}", parts(one["bound"], one["c"])]
        print("| " + " | ".join(cells) + " |")
    print(f"\n{len(crops)} crops of 256 px; MI has a ceiling of {first['ceiling']:.1f} bits a channel.")


if __name__ == "__main__":
    main()
