"""The training loop, visible in one place. Needs neither rich nor constriction."""

import json
import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from latcodec import weights
from latcodec.codec import pick_device
from latcodec.errors import LatcodecError, OptionError, WeightsError
from latcodec.train import data
from latcodec.train.optimizer import MuonAdam
from latcodec.train.start import start_from_klt
from latcodec.train.step import Stepper

MODELS = {  # codec: module under latcodec.models and its network; the module's Config and loss go with it
    "hyperprior": ("hyperprior", "Hyperprior"),
    "hyperprior-context": ("hyperprior_context", "ContextHyperprior"),
    "vbq": ("gaussian_vae", "GaussianVAE"),
    "pln": ("ladder", "Ladder"),
    "nc-vae": ("ncvae", "NCVAE"),
}
CHECKPOINT = "checkpoint.pt"
AVERAGE = "ema.pt"  # what export and --init need, convolutions as float16
VALIDATION_RATES = 8


@dataclass(frozen=True)
class TrainSettings:
    """One run. `steps` or `minutes` is the whole budget; the learning rate falls to zero at its end."""

    codec: str
    data: tuple[str, ...]
    out: str
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 16
    patch: int = 128
    final_patch: int = 256
    final_fraction: float = 0.2
    lr: float = 5e-4
    decay_from: float = 0.1
    ema: float = 0.999
    seed: int = 0
    cache: str | None = None
    init: str | None = None
    device: str = "cpu"
    autocast: bool | None = None
    compile: bool = False
    resume: bool = False
    stop_at_step: int | None = None
    checkpoint_minutes: float = 3.0
    validate_minutes: float = 10.0


def parts_of(codec: str) -> tuple[type, type, Callable]:
    """Network class, Config class and loss of a codec; raises OptionError."""
    if codec not in MODELS:
        raise OptionError(f"--codec {codec}: known are {', '.join(MODELS)}")
    module_name, network = MODELS[codec]
    module = import_module(f"latcodec.models.{module_name}")
    return getattr(module, network), module.Config, module.loss


def bf16_is_fast(device: torch.device) -> bool:
    """bf16 pays on CUDA and on CPUs with bf16 dot products; elsewhere it is emulated and slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "avx512_bf16" in _cpu_flags()


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _learning_rate(progress: float, settings: TrainSettings) -> float:
    if progress <= settings.decay_from:
        return settings.lr
    fraction = min(1.0, (progress - settings.decay_from) / (1 - settings.decay_from))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def evaluate(model, loss, crops: np.ndarray, autocast: bool, device: torch.device) -> list[dict[str, float]]:
    """Mean bpp, PSNR (dB) and Lagrangian over uint8 crops [n, 3, s, s] at evenly spaced rates, with real rounding."""
    rows = []
    for position in np.linspace(0, 1, VALIDATION_RATES):
        parts = []
        for start in range(0, len(crops), 8):
            x = torch.from_numpy(crops[start : start + 8]).to(device).float() / 255
            x = x.contiguous(memory_format=torch.channels_last)
            t = torch.full((len(x),), float(position), device=device)
            out = loss(model, x, t, autocast, noise=False)
            parts.append(torch.stack([out["bpp"], -10 * out["mse"].log10(), out["lagrangian"]], 1))
        bpp, psnr, lagrangian = torch.cat(parts).mean(0).tolist()
        rows.append({"t": float(position), "bpp": bpp, "psnr_db": psnr, "lagrangian": lagrangian})
    return rows


def read_checkpoint(path: Path, device: torch.device | str) -> dict:
    """What `run` saved; raises WeightsError if the file is no checkpoint."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
        if not isinstance(state, dict):
            raise ValueError("no dictionary")
        return state
    # torch's reader raises nearly every built-in error on a file that is none.
    except (OSError, EOFError, KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError,
            pickle.UnpicklingError) as error:  # fmt: skip
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise WeightsError(f"{path}: not a checkpoint: {reason}") from None


def write(state: dict, path: Path) -> None:
    """Replace a file of torch.save whole."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


SHARED = ("g_a.", "g_s.", "h_a.")  # parts that mean the same in every codec


@torch.no_grad()
def initialise(model: torch.nn.Module, codec: str, path: Path, prefixes: tuple[str, ...] = ("",)) -> tuple[int, int]:
    """Overwrite the model's tensors that `path`, weights or a checkpoint, has under the same name and shape.

    Of another codec only the transforms are taken. Returns how many were taken over and how many the model has. Raises
    WeightsError.
    """
    if path.suffix == ".safetensors":
        loaded = weights.load_file(path)
        of, tensors = loaded.backend, loaded.tensors
        found = {name.removeprefix("float."): torch.from_numpy(value) for name, value in tensors.items()}
    else:
        state = read_checkpoint(path, "cpu")
        of, found = state.get("codec"), state.get("ema", {})
    taken, state = 0, model.state_dict()
    for name, value in state.items():
        wanted = name.startswith(prefixes) and (of == codec or name.startswith(SHARED))
        if wanted and name in found and found[name].shape == value.shape:
            value.copy_(found[name])
            taken += 1
    return taken, len(state)


def run(settings: TrainSettings, report=print) -> Path:
    """Train, checkpoint and log into `settings.out`; returns the path of the last checkpoint.

    `report` receives one line of progress at a time. Raises OptionError for contradictory settings and LatcodecError
    when the loss stops being finite; the last good checkpoint then stays.
    """
    if (settings.steps is None) == (settings.minutes is None):
        raise OptionError("give either --steps or --minutes")
    model_class, config_class, loss = parts_of(settings.codec)
    for name in ("patch", "final_patch"):
        side = getattr(settings, name)
        if side < 64 or side % 64:
            raise OptionError(f"{name} is {side} px, not a multiple of 64")
    if settings.patch > settings.final_patch:
        raise OptionError(f"patch {settings.patch} px is over final_patch {settings.final_patch} px")
    out = Path(settings.out)
    checkpoint = out / CHECKPOINT
    if checkpoint.exists() and not settings.resume:
        raise OptionError(f"{checkpoint} exists: go on with --resume, or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(pick_device(settings.device))
    torch.backends.cudnn.benchmark = device.type == "cuda"
    autocast = bf16_is_fast(device) if settings.autocast is None else settings.autocast
    torch.manual_seed(settings.seed)
    model = model_class(config_class()).to(device, memory_format=torch.channels_last)
    optimizer = MuonAdam(model, settings.lr)
    step, elapsed = 0, 0.0

    training, held_out = data.load(list(settings.data), settings.final_patch, settings.cache)
    crops = data.Crops(training, settings.seed)
    validation = data.validation_crops(held_out or training[:8], settings.final_patch)
    megapixels = sum(p.size for p in training) / 3e6
    fallback = "" if held_out else ": the first 8 are validated on"
    report(f"{len(training)} pictures, {megapixels:.0f} megapixels; {len(held_out)} held out{fallback}")

    if settings.resume and checkpoint.exists():
        state = read_checkpoint(checkpoint, device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema = state["ema"]
        step, elapsed = state["step"], state["elapsed_s"]
        report(f"resumed at step {step}, {elapsed / 60:.1f} min")
    else:
        first, _ = crops.batch(2**40, 32, settings.final_patch)
        x = torch.from_numpy(first).to(device).float() / 255 - 0.5
        std = start_from_klt(model.g_a, model.g_s, x)
        if settings.init is not None:
            taken, total = initialise(model, settings.codec, Path(settings.init), ("g_a.", "g_s."))
            with torch.no_grad():
                std = model.g_a(x).std((0, 2, 3))
        model.start_from_latent_std(std)
        if settings.init is not None:
            taken, total = initialise(model, settings.codec, Path(settings.init))
            report(f"{settings.init}: {taken} of {total} tensors taken over")
        ema = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema, "step": step,
                 "elapsed_s": elapsed, "codec": settings.codec, "config": json.dumps(asdict(model.config)),
                 "settings": json.dumps(asdict(settings))}  # fmt: skip
        write(state, checkpoint)
        small = {k: v.half() if v.dim() == 4 else v for k, v in ema.items()}
        write({k: v for k, v in state.items() if k not in ("model", "optimizer")} | {"ema": small}, out / AVERAGE)

    def validate() -> None:
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(ema)
        rows = evaluate(model, loss, validation, autocast, device)
        model.load_state_dict(trained)
        with open(out / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": step, "minutes": elapsed / 60, "validation": rows}) + "\n")
        report("validation " + " ".join(f"{r['bpp']:.3f}/{r['psnr_db']:.2f}" for r in rows))

    stepper = Stepper(model, loss, optimizer, ema, crops, device, autocast, settings.seed, settings.compile)
    last_save = last_validation = elapsed
    last_report = (time.perf_counter(), step)
    window: list[torch.Tensor] = []
    while True:
        progress = step / settings.steps if settings.steps else elapsed / 60 / settings.minutes
        if progress >= 1 or step == settings.stop_at_step:
            break
        start = time.perf_counter()
        late = progress >= 1 - settings.final_fraction
        side = settings.final_patch if late else settings.patch
        count = max(1, settings.batch_size * settings.patch**2 // side**2)
        lr = _learning_rate(progress, settings)
        window.append(stepper.step(step, count, side, lr, min(settings.ema, (1 + step) / (10 + step)), progress))
        if device.type == "cpu" or len(window) == 100:
            _must_be_finite(window[-1], out, step, checkpoint)
        step += 1
        elapsed += time.perf_counter() - start
        if len(window) == 100 or step == 1:
            mean = dict(zip(stepper.logged, torch.stack(window).mean(0).tolist(), strict=True))
            now = time.perf_counter()
            speed = count * (step - last_report[1]) / (now - last_report[0])
            last_report = (now, step)
            left = (1 - progress) / progress * elapsed / 60 if progress else math.inf
            numbers = " ".join(f"{name} {value:.4f}" for name, value in mean.items())
            report(f"step {step} {numbers} lr {lr:.2e} {speed:.1f} pictures/s of {side} px, {left:.1f} min left")
            window.clear()
        if elapsed - last_save >= settings.checkpoint_minutes * 60:
            _must_be_finite(next(iter(ema.values())), out, step, checkpoint)
            save()
            last_save = elapsed
        if elapsed - last_validation >= settings.validate_minutes * 60:
            validate()
            last_validation = elapsed
            last_report = (time.perf_counter(), step)
    save()
    validate()
    return checkpoint


def _must_be_finite(value: torch.Tensor, out: Path, step: int, checkpoint: Path) -> None:
    if not torch.isfinite(value).all():
        kept = f"{checkpoint.name} holds the last good state" if checkpoint.exists() else "there is no checkpoint yet"
        raise LatcodecError(f"{out}: the loss is not finite at step {step}; {kept}")
