"""The training loop, visible in one place: `Trainer(settings).run()`. Needs neither rich nor constriction.

Exact resume: crops and rates of a step depend on (seed, step), noise on (seed, step, process), learning rate and
average on the step's share of --steps. So a run that was stopped at any step and resumed is the uninterrupted one, bit
for bit on one device. A budget of minutes is a clock's, and repeats no better than the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latcodec.errors import LatcodecError, OptionError
from latcodec.runtime import bf16_is_fast, keep_freed_memory, no_denormals, pick_device
from latcodec.train import checkpoint, data, diagnostics
from latcodec.train.checkpoint import AVERAGE, CHECKPOINT, RunIdentity
from latcodec.train.distributed import PeerLostError, Workers
from latcodec.train.guards import StopSignals, explained_out_of_memory
from latcodec.train.init.klt import fit_norms
from latcodec.train.init.source import Source, initialise, read_source
from latcodec.train.meter import Meter
from latcodec.train.objective import Objective, loss_for_metric
from latcodec.train.optimizer import MuonAdam
from latcodec.train.plans import TrainingPlan, plan_of
from latcodec.train.record import SHOWN_CROPS, Record
from latcodec.train.settings import TrainSettings, check, choose_trained, config_of
from latcodec.train.step import Stepper, StepPlan, TrainState
from latcodec.train.validation import BATCH, evaluate, reconstruct

__all__ = ["AVERAGE", "CHECKPOINT", "TrainSettings", "Trainer", "TrainingStoppedError"]

START_CROPS, START_STEP = 32, 2**40  # crops that a network starts from, of a step that no run reaches
DIAGNOSED_T = 0.5  # rate position at which channels are diagnosed


class TrainingStoppedError(LatcodecError):
    """A signal ended the run; its checkpoint was written."""


@dataclass(frozen=True)
class _Pictures:
    """What a run trains on and is validated on.

    Attributes:
        crops: Random crops of the training pictures.
        validation: Crops uint8 [n, 3, s, s].
        held_out: How many pictures are for validation only.
    """

    crops: data.Crops
    validation: np.ndarray
    held_out: int

    @property
    def megapixels(self) -> float:
        return sum(picture.size for picture in self.crops.pictures) / 3e6


def learning_rate(progress: float, settings: TrainSettings) -> float:
    """Return the learning rate at a share `progress` of the budget: constant, then half a cosine down to 0."""
    if progress <= settings.decay_from:
        return settings.lr
    fraction = min(1.0, (progress - settings.decay_from) / (1 - settings.decay_from))
    return settings.lr * 0.5 * (1 + math.cos(math.pi * fraction))


class Trainer:
    """One training run: `run` trains, saves and logs into the folder `settings.out`.

    Args:
        settings: What to train, on what, for how long.
        report: Receives one line of progress at a time.
        workers: The processes of the run; this one alone if None.
        on_validation: Called with the folder after each validation, whose files it may draw.
    """

    def __init__(
        self,
        settings: TrainSettings,
        report: Callable[[str], None] = print,
        workers: Workers | None = None,
        on_validation: Callable[[Path], None] | None = None,
    ):
        self.settings = settings
        self.workers = workers or Workers()
        self.report = self.workers.main_only(report)
        self.on_validation = on_validation
        self.out = Path(settings.out)
        self.checkpoint = self.out / CHECKPOINT

    @no_denormals()
    def run(self) -> Path:
        """Train until the budget is used or the run is stopped.

        Returns:
            The path of the last checkpoint.

        Raises:
            OptionError: Settings contradict each other, or the folder holds a run that is not to be resumed.
            WeightsError: A checkpoint or a start is damaged or of another network.
            LatcodecError: The loss is no longer finite, memory or disk is full, or another process has ended; a good
                checkpoint then stays.
            TrainingStoppedError: SIGINT or SIGTERM arrived; the checkpoint was written.
        """
        self._set_up()
        # torchrun sends SIGTERM once a process has died: the signals are caught until the checkpoint is written.
        with StopSignals(can_interrupt=self.workers.is_single) as signals:
            try:
                self._loop(signals)
            except PeerLostError as error:
                self._save()
                reason = f"{error}; {CHECKPOINT} holds step {self.state.step}; go on with --resume"
                raise LatcodecError(f"{self.out}: {reason}") from None
            finally:
                self.stepper.close()
                if self.record is not None:
                    self.record.close()
        return self.checkpoint

    def _loop(self, signals: StopSignals) -> None:
        state, settings = self.state, self.settings
        if self.validates_first:
            self._validate()  # what there is to improve on
        last_save_s = last_validation_s = state.elapsed_s
        while True:
            state.elapsed_s, is_stopped = self.workers.agree(state.elapsed_s, signals.received)
            if is_stopped or self._progress() >= 1 or state.step == settings.stop_at_step:
                break
            self._step()
            if state.elapsed_s - last_save_s >= settings.checkpoint_minutes * 60:
                self._save()
                last_save_s = state.elapsed_s
            if state.elapsed_s - last_validation_s >= settings.validate_minutes * 60:
                self._validate()
                last_validation_s = state.elapsed_s
        self._save()
        if is_stopped:
            stopped = f"stopped at step {state.step}; {CHECKPOINT} holds it; go on with --resume"
            raise TrainingStoppedError(f"{self.out}: {stopped}")
        self._validate()
        self.workers.wait_for_all()

    def _step(self) -> None:
        state, settings, start = self.state, self.settings, time.perf_counter()
        progress = self._progress()
        side_px = settings.final_patch if progress >= 1 - settings.final_fraction else settings.patch
        plan = StepPlan(
            number=state.step,
            count=settings.crops(side_px),
            side_px=side_px,
            lr=learning_rate(progress, settings),
            ema_decay=min(settings.ema, (1 + state.step) / (10 + state.step)),
            progress=progress,
        )
        with explained_out_of_memory(plan.count, side_px, state.step):
            means = self.stepper.step(plan)
            if self.meter.add(means, plan.count):
                self._must_be_finite(means)
        state.step += 1
        state.elapsed_s += time.perf_counter() - start
        self.meter.report_if_due(plan, state, self._progress())

    def _progress(self) -> float:
        """The share of the budget that is used."""
        if self.settings.steps:
            return self.state.step / self.settings.steps
        return self.state.elapsed_s / 60 / self.settings.minutes

    def _save(self) -> None:
        self._must_be_finite(next(iter(self.state.ema.values())))
        if self.workers.is_main:
            checkpoint.save(self.state, self.identity, self.out)

    def _validate(self) -> None:
        """Measure the averaged network and record what it shows."""
        if self.record is not None:
            with explained_out_of_memory(BATCH, self.settings.final_patch, self.state.step):
                self._record_validation(self.record)
            if self.on_validation is not None:
                self.on_validation(self.out)
        self.meter.restart()

    def _record_validation(self, record: Record) -> None:
        state, network, crops = self.state, self.state.network, self.pictures.validation
        trained = {name: value.clone() for name, value in network.state_dict().items()}
        network.load_state_dict(state.ema)
        try:
            rows = evaluate(network, self.objective, crops)
            record.validation(state.step, state.elapsed_s / 60, rows)
            originals = crops[:SHOWN_CROPS]
            record.crops(state.step, originals, reconstruct(network, self.objective, originals))
            if diagnostics.can(network):
                table = diagnostics.diagnose(network, crops, DIAGNOSED_T, autocast=self.objective.autocast)
                record.channels(state.step, table)
        finally:
            network.load_state_dict(trained)
        self.report("validation " + " ".join(f"{row['bpp']:.3f}/{row['psnr_db']:.2f}" for row in rows))

    def _must_be_finite(self, value: Tensor) -> None:
        if not torch.isfinite(value).all():
            exists = self.checkpoint.exists()
            kept = f"{CHECKPOINT} holds the last good state" if exists else "there is no checkpoint yet"
            raise LatcodecError(f"{self.out}: the loss is not finite at step {self.state.step}; {kept}")

    def _set_up(self) -> None:
        """Make the network and its optimiser, read the pictures, and start or go on."""
        settings = self.settings
        check(settings, self.workers.world)
        plan = plan_of(settings.codec)
        stored = self._stored_run()
        source = None if stored is not None or settings.init is None else read_source(Path(settings.init))
        config = self._config(plan, stored, source)
        device = _prepared_device(settings.device)
        self.objective = Objective(
            loss_for_metric(plan.loss, settings.metric, config),
            settings.t_range(getattr(config, "lowest_index", 0)),
            bf16_is_fast(device) if settings.autocast is None else settings.autocast,
        )
        self.state = self._untrained(plan, config, device)
        self.out.mkdir(parents=True, exist_ok=True)
        self.pictures = self._load_pictures()
        self.identity = RunIdentity(settings, config, data.digest(self.pictures.crops.pictures))
        if stored is not None:
            self._resume(stored)
        else:
            self._start(plan, source)
        self.record = Record(self.out, self.state.step, self._description()) if self.workers.is_main else None
        self.stepper = Stepper(
            self.state, self.objective, self.pictures.crops, self.workers, settings.compile, self.report
        )
        self.meter = Meter(self.stepper, self.record, self.report, reads_every_step=device.type == "cpu")
        self.validates_first = source is not None

    def _stored_run(self) -> Path | None:
        """The file of this folder that the run goes on from; None if it begins."""
        stored = [path for path in (self.checkpoint, self.out / AVERAGE) if path.exists()]
        if stored and not self.settings.resume:
            raise OptionError(f"{stored[0]} exists: go on with --resume, or name another folder")
        return stored[0] if stored else None

    def _config(self, plan: TrainingPlan, stored: Path | None, source: Source | None) -> object:
        """Options of the network: those of the run that goes on or of the start, then those of the settings."""
        settings, before = self.settings, {}
        if stored is not None:
            before = checkpoint.stored_config(stored)
        elif source is not None and source.codec == settings.codec:
            before = source.config
        return config_of(settings.codec, plan.config, before, settings.options, settings.metric)

    def _untrained(self, plan: TrainingPlan, config: object, device: torch.device) -> TrainState:
        settings = self.settings
        torch.manual_seed(settings.seed)
        try:
            network = plan.network(config).to(device, memory_format=torch.channels_last)
        except (ValueError, RuntimeError) as error:
            raise OptionError(f"no {settings.codec} can be made with these options: {error}") from None
        choose_trained(network, settings.only)
        return TrainState(network, MuonAdam(network, settings.lr), {})

    def _load_pictures(self) -> _Pictures:
        settings = self.settings
        training, held_out = self.workers.main_first(self._decode) if settings.cache else self._decode()
        validated = held_out or training[:8]
        crops = data.Crops(training, settings.seed, self.objective.t_range)
        pictures = _Pictures(crops, data.validation_crops(validated, settings.final_patch), len(held_out))
        count = f"{len(training)} picture{'s' * (len(training) != 1)}, {pictures.megapixels:.0f} megapixels"
        fallback = "" if held_out else f", validated on {len(validated)} of those trained on"
        self.report(f"{count}; {len(held_out)} held out{fallback}")
        return pictures

    def _decode(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        room_bytes = data.free_memory() // (2 * self.workers.local_world)
        store = data.PictureStore(self.settings.cache, self.out / "decoded", room_bytes, self.report)
        return data.load(list(self.settings.data), self.settings.final_patch, store)

    def _resume(self, stored: Path) -> None:
        state, codec = self.state, self.settings.codec
        if stored == self.checkpoint:
            found, note = checkpoint.restore(state, codec, stored), ""
        else:
            found = checkpoint.restore_average(state, codec, stored)
            note = f" from {AVERAGE}, as {CHECKPOINT} is missing: the optimiser starts anew"
        differences = self.identity.differences(found)
        self.report(f"resumed at step {state.step}, {state.elapsed_s / 60:.1f} min{note}{differences}")

    def _start(self, plan: TrainingPlan, source: Source | None) -> None:
        """Start from a block transform fitted to pictures, and from other weights if there are any."""
        settings, network = self.settings, self.state.network
        crops, _ = self.pictures.crops.batch(START_STEP, START_CROPS, settings.final_patch)
        x = torch.from_numpy(crops).to(self.state.device).float() / 255
        plan.start.fit(network, x - 0.5)
        if source is not None:
            initialise(network, settings.codec, source, ("g_a.", "g_s."))
        network.start_from_latent_std(plan.start.latent_std(network, x - 0.5))
        if source is not None:
            taken, total = initialise(network, settings.codec, source)
            self.report(f"{settings.init}: {taken} of {total} tensors taken over")
        batch = x[: min(BATCH, settings.batch_size)]
        with explained_out_of_memory(len(batch), settings.final_patch, self.state.step):
            fit_norms(network, self.objective.loss, batch, self.objective.t_range)
        self.workers.broadcast(list(network.state_dict().values()))
        self.state.ema = {name: value.detach().clone() for name, value in network.state_dict().items()}

    def _description(self) -> dict:
        """What run.json says."""
        return {
            "settings": asdict(self.settings),
            "config": asdict(self.identity.config),
            "autocast": self.objective.autocast,
            "device": _name_of(self.state.device),
            "processes": self.workers.world,
            "pictures": len(self.pictures.crops.pictures),
            "megapixels": self.pictures.megapixels,
            "held_out": self.pictures.held_out,
            "parameters": sum(p.numel() for p in self.state.network.parameters()),
        }


def _prepared_device(name: str) -> torch.device:
    device = torch.device(pick_device(name))
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cpu":
        keep_freed_memory(everything=True)
    return device


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
