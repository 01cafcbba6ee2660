"""The training loop, visible in one place. Needs neither rich nor constriction.

Exact resume: crops and rates of a step depend on (seed, step), noise on (seed, step, process), learning rate and
average on the step's share of --steps. So a run that was stopped at any step and resumed is the uninterrupted one, bit
for bit on one device. A budget of minutes is a clock's, and repeats no better than the clock.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from latcodec.errors import LatcodecError, OptionError, WeightsError
from latcodec.runtime import bf16_is_fast, keep_freed_memory, no_denormals, pick_device
from latcodec.train import data, diagnostics, distributed
from latcodec.train.checkpoint import AVERAGE, CHECKPOINT, initialise, load_into, read_checkpoint, stored, write_all
from latcodec.train.init.klt import fit_norms
from latcodec.train.meter import Meter
from latcodec.train.objective import BATCH, evaluate, objective, reconstructions
from latcodec.train.optimizer import MuonAdam
from latcodec.train.plans import plan_of
from latcodec.train.record import SHOWN_CROPS, Record
from latcodec.train.settings import EXACT, TrainSettings, check, choose_trained, config_of
from latcodec.train.step import Stepper

__all__ = ["AVERAGE", "CHECKPOINT", "Stopped", "TrainSettings", "read_checkpoint", "run"]

DIAGNOSED_T = 0.5


class Stopped(LatcodecError):
    """A signal ended the run; its checkpoint was written."""


def _learning_rate(progress: float, settings: TrainSettings) -> float:
    if progress <= settings.decay_from:
        return settings.lr
    fraction = min(1.0, (progress - settings.decay_from) / (1 - settings.decay_from))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * fraction))


@no_denormals()
def run(
    settings: TrainSettings,
    report: Callable[[str], None] = print,
    workers: distributed.Workers | None = None,
    show: Callable[[Path], None] = lambda out: None,
) -> Path:
    """Train, checkpoint and log into `settings.out`; returns the path of the last checkpoint.

    report: receives one line of progress at a time. workers: the processes of the run, this one alone if None. show:
    called with the folder after each validation, whose files it may draw. Raises OptionError for contradictory
    settings; LatcodecError when the loss stops being finite, memory or disk is full or another process ends: a good
    checkpoint then stays; Stopped after SIGINT or SIGTERM.
    """
    workers = workers or distributed.Workers()
    report = workers.say(report)
    check(settings, workers.world)
    plan = plan_of(settings.codec)
    out = Path(settings.out)
    checkpoint = out / CHECKPOINT
    resumes = settings.resume and checkpoint.exists()
    if checkpoint.exists() and not settings.resume:
        raise OptionError(f"{checkpoint} exists: go on with --resume, or name another folder")
    device = torch.device(pick_device(settings.device))
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cpu":
        keep_freed_memory(everything=True)
    autocast = bf16_is_fast(device) if settings.autocast is None else settings.autocast
    before = _stored_config(settings, resumes)
    config = config_of(settings.codec, plan.config, before, settings.options, settings.metric)
    loss = objective(plan.loss, settings.metric, config)
    t_range = settings.t_range(getattr(config, "lowest_index", 0))
    torch.manual_seed(settings.seed)
    try:
        model = plan.network(config).to(device, memory_format=torch.channels_last)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"no {settings.codec} can be made with these options: {error}") from None
    choose_trained(model, settings.only)
    optimizer = MuonAdam(model, settings.lr)
    out.mkdir(parents=True, exist_ok=True)

    def decoded() -> tuple[list, list]:
        room = data.free_memory() // (2 * workers.local_world)
        paths, side = list(settings.data), settings.final_patch
        return data.load(paths, side, settings.cache, spill=out / "decoded", room=room, say=report)

    training, held_out = workers.first_alone(decoded) if settings.cache else decoded()
    crops = data.Crops(training, settings.seed, t_range)
    validated = held_out or training[:8]
    validation = data.validation_crops(validated, settings.final_patch)
    pictures = data.digest(training)
    megapixels = sum(p.size for p in training) / 3e6
    count = f"{len(training)} picture{'s' * (len(training) != 1)}, {megapixels:.0f} megapixels"
    fallback = "" if held_out else f", validated on {len(validated)} of those trained on"
    report(f"{count}; {len(held_out)} held out{fallback}")

    step, elapsed = 0, 0.0
    if resumes:
        state = load_into(checkpoint, settings.codec, model, optimizer, device)
        ema, step, elapsed = state["ema"], state["step"], state["elapsed_s"]
        report(f"resumed at step {step}, {elapsed / 60:.1f} min{_differences(state, settings, model.config, pictures)}")
    else:
        first, _ = crops.batch(2**40, 32, settings.final_patch)
        x = torch.from_numpy(first).to(device).float() / 255
        std = plan.start(model, x - 0.5)
        if settings.init is not None:
            initialise(model, settings.codec, Path(settings.init), ("g_a.", "g_s."))
            with torch.no_grad():
                std = model.g_a(x - 0.5).std((0, 2, 3))
        model.start_from_latent_std(std)
        if settings.init is not None:
            taken, total = initialise(model, settings.codec, Path(settings.init))
            report(f"{settings.init}: {taken} of {total} tensors taken over")
        some = x[: min(BATCH, settings.batch_size)]
        with _memory(len(some), settings.final_patch, step):
            fit_norms(model, loss, some, t_range)
        workers.same_start(list(model.state_dict().values()))
        ema = {name: value.detach().clone() for name, value in model.state_dict().items()}

    about = {"settings": asdict(settings), "config": asdict(config), "autocast": autocast, "device": _named(device),
             "processes": workers.world, "pictures": len(training), "megapixels": megapixels,
             "held_out": len(held_out), "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip
    record = Record(out, step, about) if workers.speaks else None

    def save() -> None:
        _must_be_finite(next(iter(ema.values())), out, step, checkpoint)
        if workers.speaks:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema, "step": step,
                     "elapsed_s": elapsed, "codec": settings.codec, "config": json.dumps(asdict(model.config)),
                     "settings": json.dumps(asdict(settings)), "pictures": pictures}  # fmt: skip
            write_all(state, out)

    def validate() -> None:
        if record is not None:
            with _memory(BATCH, settings.final_patch, step):
                _validate()
            show(out)

    def _validate() -> None:
        trained = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(ema)
        try:
            rows = evaluate(model, loss, validation, autocast, device, t_range)
            record.validation(step, elapsed / 60, rows)
            some = validation[:SHOWN_CROPS]
            record.crops(step, some, *reconstructions(model, loss, some, autocast, device, t_range))
            if diagnostics.can(model):
                record.channels(step, diagnostics.diagnose(model, validation, DIAGNOSED_T, autocast=autocast))
        finally:
            model.load_state_dict(trained)
        report("validation " + " ".join(f"{r['bpp']:.3f}/{r['psnr_db']:.2f}" for r in rows))

    stepper = Stepper(
        model, loss, optimizer, ema, crops, device, autocast, settings.seed, settings.compile, workers, report
    )
    meter = Meter(stepper, record, report, device.type == "cpu")

    def progress() -> float:
        return step / settings.steps if settings.steps else elapsed / 60 / settings.minutes

    last_save = last_validation = elapsed
    if settings.init is not None and not resumes:
        validate()  # what there is to improve on
        meter.restart()
    with _signals(workers.alone) as caught:
        try:
            while True:
                elapsed, stopping = workers.agree(elapsed, bool(caught))
                done = progress()
                if done >= 1 or step == settings.stop_at_step or stopping:
                    break
                start = time.perf_counter()
                side = settings.final_patch if done >= 1 - settings.final_fraction else settings.patch
                count, lr = settings.crops(side), _learning_rate(done, settings)
                with _memory(count, side, step):
                    means = stepper.step(step, count, side, lr, min(settings.ema, (1 + step) / (10 + step)), done)
                    if meter.adds(means, count):
                        _must_be_finite(means, out, step, checkpoint)
                step += 1
                elapsed += time.perf_counter() - start
                meter.tells(step, elapsed, progress(), lr, side)
                if elapsed - last_save >= settings.checkpoint_minutes * 60:
                    save()
                    last_save = elapsed
                if elapsed - last_validation >= settings.validate_minutes * 60:
                    validate()
                    last_validation = elapsed
                    meter.restart()
            save()
            if stopping:
                raise Stopped(f"{out}: stopped at step {step}; {checkpoint.name} holds it; go on with --resume")
            validate()
            workers.part()
        except distributed.Gone as error:
            save()
            raise LatcodecError(f"{out}: {error}; {checkpoint.name} holds step {step}; go on with --resume") from None
        finally:
            stepper.close()
            if record is not None:
                record.close()
    return checkpoint


def _stored_config(settings: TrainSettings, resumes: bool) -> dict:
    """Config of the run that goes on, or of weights of the same codec to start from; {} otherwise."""
    if resumes:
        try:
            return json.loads(read_checkpoint(Path(settings.out) / CHECKPOINT, "cpu")["config"])
        except (KeyError, ValueError) as error:
            raise WeightsError(f"{settings.out}/{CHECKPOINT}: not a checkpoint: no config: {error}") from None
    if settings.init is not None:
        of, config, _ = stored(Path(settings.init))
        return config if of == settings.codec else {}
    return {}


def _differences(state: dict, settings: TrainSettings, config, pictures: str) -> str:
    """What keeps a resumed run from being the uninterrupted one, as the end of a sentence; config: a dataclass."""
    before, now = json.loads(state["settings"]), json.loads(json.dumps(asdict(settings)))
    other = [name for name in EXACT if name in before and before[name] != now[name]]
    then, made = json.loads(state["config"]), json.loads(json.dumps(asdict(config)))
    other += [name for name in made if name in then and then[name] != made[name]]
    other += ["pictures"] if state.get("pictures", pictures) != pictures else []
    unsaid = [f"{name} {made[name]}" for name in made if name not in then]
    said = f"; other {', '.join(other)} than before" if other else ""
    return said + (f"; it did not say {', '.join(unsaid)}" if unsaid else "")


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


@contextmanager
def _signals(alone: bool) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM meanwhile; a second one interrupts at once, unless others wait for this process."""
    caught: list[int] = []

    def handler(number, frame) -> None:
        if caught and alone:
            raise KeyboardInterrupt
        caught.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _memory(count: int, side_px: int, step: int) -> Iterator[None]:
    """Say what to lower where memory ends."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        kinds = (MemoryError, torch.OutOfMemoryError)
        if not isinstance(error, kinds) and "can't allocate memory" not in str(error):
            raise
        where = f"out of memory in step {step} with {count} crops of {side_px} px"
        raise LatcodecError(f"{where}: lower --batch-size, --patch or --final-patch") from None


def _must_be_finite(value: torch.Tensor, out: Path, step: int, checkpoint: Path) -> None:
    if not torch.isfinite(value).all():
        kept = f"{checkpoint.name} holds the last good state" if checkpoint.exists() else "there is no checkpoint yet"
        raise LatcodecError(f"{out}: the loss is not finite at step {step}; {kept}")
