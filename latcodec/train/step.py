"""One optimiser step: crops, loss, gradient, update, average. On CUDA the whole of it is one recorded graph.

What changes from step to step (crops or their places, rates, learning rate, decay) is copied into tensors of fixed
address, so that a replay needs no Python in between. The noise of a step depends on the seed, its number and the
process alone. With several processes there are two graphs, and the sum of the gradients is between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from latcodec.train import data
from latcodec.train.distributed import Workers
from latcodec.train.objective import Objective
from latcodec.train.optimizer import MuonAdam

WARM_UP_STEPS = 3
TRIAL_STEPS = 30
NOT_LOGGED = ("mse", "lagrangian")


@dataclass
class TrainState:
    """What steps change and a checkpoint keeps.

    Attributes:
        network: The network as the optimiser left it.
        optimizer: Its momenta and moments.
        ema: Exponential moving average of the network's state, by the names of `network.state_dict()`.
        step: Steps that are done.
        elapsed_s: Seconds that those steps took, without validation and saving.
    """

    network: nn.Module
    optimizer: MuonAdam
    ema: dict[str, Tensor]
    step: int = 0
    elapsed_s: float = 0.0

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device


@dataclass(frozen=True)
class StepPlan:
    """What one step is to do.

    Attributes:
        number: Steps before this one.
        count: Crops of all processes together.
        side_px: Side of a crop.
        lr: Learning rate.
        ema_decay: Share of the moving average that stays.
        progress: Share of the run's budget that is used, 0 ... 1.
    """

    number: int
    count: int
    side_px: int
    lr: float
    ema_decay: float
    progress: float


@dataclass(frozen=True)
class _Inputs:
    """Crops uint8 [n, 3, s, s] (or, cut on the device, their places int64 [n, 5]); rate positions t float32 [n]."""

    crops: Tensor
    t: Tensor
    side_px: int

    def to(self, device: torch.device) -> _Inputs:
        return replace(self, crops=self.crops.to(device), t=self.t.to(device))

    def copy_(self, other: _Inputs) -> None:
        self.crops.copy_(other.crops, non_blocking=True)
        self.t.copy_(other.t, non_blocking=True)


class Stepper:
    """Runs the steps of one run; changes `state.network`, `state.optimizer` and `state.ema` in place.

    Args:
        state: The state that is trained.
        objective: What a step minimises.
        crops: Training crops; their seed is that of the noise too.
        workers: The processes that share a step.
        compile_loss: Whether torch.compile is tried on CUDA.
        report: Receives lines about what runs on CUDA.

    Attributes:
        logged: Names of what `step` returns, known after the first step.
        feeder: Cuts the crops of the next step.
    """

    def __init__(
        self,
        state: TrainState,
        objective: Objective,
        crops: data.Crops,
        workers: Workers | None = None,
        compile_loss: bool = False,
        report: Callable[[str], None] = print,
    ):
        self.state, self.objective, self.compile_loss, self.report = state, objective, compile_loss, report
        self.workers = workers or Workers()
        self.seed, self.device = crops.seed, state.device
        values = state.network.state_dict()
        names = [name for name, value in values.items() if value.is_floating_point()]
        self._values, self._averages = [values[n] for n in names], [state.ema[n] for n in names]
        self._parameters = [p for p in state.network.parameters() if p.requires_grad]
        self._scalars = {k: torch.zeros((), device=self.device) for k in ("progress", "decay", "share")}
        self._recorded: dict[tuple[int, int], tuple[_RecordedStep | None, _Inputs]] = {}
        self.logged: tuple[str, ...] = ()
        self._pictures = None
        if self.device.type == "cuda":
            needed_bytes, free_bytes = sum(p.nbytes for p in crops.pictures), torch.cuda.mem_get_info()[0]
            if needed_bytes <= free_bytes // 2:
                self._pictures = data.DevicePictures(crops.pictures, self.device)
        share = (self.workers.rank, self.workers.world)
        self.feeder = data.Feeder(crops, cut=self._pictures is None, share=share)

    def step(self, plan: StepPlan) -> Tensor:
        """Run one step.

        Returns:
            The means named by `logged` over the crops of all processes, float32, on the device.

        Raises:
            PeerLostError: Another process has ended; the state is as before the step.
        """
        self.state.optimizer.set_lr(plan.lr)
        self._scalars["progress"].fill_(plan.progress)
        self._scalars["decay"].fill_(1 - plan.ema_decay)
        torch.manual_seed(self.seed * 1_000_003 + plan.number + (self.workers.rank << 48))
        crops, t = (torch.from_numpy(part) for part in self.feeder.take(plan.number, plan.count, plan.side_px))
        self._scalars["share"].fill_(len(t) / plan.count)
        inputs = _Inputs(crops, t, plan.side_px)
        if self.device.type != "cuda":
            return self.update(inputs, self.objective.loss)
        key = (plan.count, plan.side_px)
        if key not in self._recorded:
            self._recorded[key] = self._record(inputs)
        recorded, fixed_inputs = self._recorded[key]
        fixed_inputs.copy_(inputs)
        return self.update(fixed_inputs, self.objective.loss) if recorded is None else recorded.replay().clone()

    def close(self) -> None:
        """End the thread that cuts crops."""
        self.feeder.close()

    def update(self, inputs: _Inputs, loss: Callable, shared: bool = True) -> Tensor:
        """Run a step without a graph; `shared` is whether the gradients of other processes count."""
        means = self.backward(inputs, loss)
        if shared and not self.workers.is_single:
            flat = self.flatten(means)
            self.workers.sum(flat)
            means = self.unflatten(flat)
        return self.apply(means)

    def backward(self, inputs: _Inputs, loss: Callable) -> Tensor:
        """Compute the gradients of this process's share; returns what is logged of it, but for the norm."""
        if inputs.crops.dtype == torch.uint8:
            x = inputs.crops.float().div_(255).contiguous(memory_format=torch.channels_last)
        else:
            x = self._pictures.crop(inputs.crops, inputs.side_px)
        result = loss(self.state.network, x, inputs.t, self.objective.autocast, True, self._scalars["progress"])
        self.state.optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        means = {k: v.detach().float().mean() for k, v in result.items() if k not in NOT_LOGGED}
        means["psnr_db"] = -10 * result["mse"].detach().log10().mean()
        self.logged = (*means, "norm")
        return torch.stack(list(means.values()))

    def flatten(self, means: Tensor) -> Tensor:
        """Return gradients and means as one vector, weighted by this process's share of the crops."""
        gradients = [p.grad.reshape(-1) for p in self._parameters if p.grad is not None]
        return torch.cat([*gradients, means]) * self._scalars["share"]

    def unflatten(self, flat: Tensor) -> Tensor:
        """Put the sum of all processes' vectors back into the gradients; returns the means of all crops."""
        start = 0
        for p in self._parameters:
            if p.grad is not None:
                p.grad.copy_(flat[start : start + p.numel()].view(p.shape))
                start += p.numel()
        return flat[start:]

    def apply(self, means: Tensor) -> Tensor:
        """Clip the gradients, let the optimiser step and move the average; returns the means and the norm."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self.state.optimizer.step()
        with torch.no_grad():
            toward = torch._foreach_sub(self._values, self._averages)
            torch._foreach_mul_(toward, self._scalars["decay"])
            torch._foreach_add_(self._averages, toward)
            return torch.cat([means, norm.detach()[None]])

    def _record(self, inputs: _Inputs) -> tuple[_RecordedStep | None, _Inputs]:
        """Record a step for crops of this count and size, with the inputs it reads.

        The fastest of what works on this machine is returned: a graph of the compiled loss, of the plain one, or None
        for no graph. No process waits for another meanwhile.
        """
        inputs = inputs.to(self.device)
        snapshot, fastest, fastest_s = self._snapshot(), None, float("inf")
        candidates = {"graph": self.objective.loss}
        if self.compile_loss:
            candidates["compiled graph"] = torch.compile(self.objective.loss, dynamic=False)
        for name, loss in candidates.items():
            try:
                recorded, seconds = self._time(name, inputs, loss)
                if seconds < fastest_s:
                    fastest, fastest_s = recorded, seconds
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler or driver does not support, the plain loop still runs
                self.report(f"{name} does not run here: {type(error).__name__}: {str(error)[:300]}")
                torch.cuda.synchronize()
        self._restore(snapshot)
        return fastest, inputs

    def _time(self, name: str, inputs: _Inputs, loss: Callable) -> tuple[_RecordedStep, float]:
        """Record a step and measure its seconds."""
        start = time.perf_counter()
        recorded = self._capture(inputs, loss)
        torch.cuda.synchronize()
        ready = time.perf_counter()
        for _ in range(TRIAL_STEPS):
            recorded.replay(shared=False)
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - ready) / TRIAL_STEPS
        speed = len(inputs.t) / seconds
        self.report(f"{name}: {speed:.0f} crops/s of {inputs.side_px} px, ready in {ready - start:.0f} s")
        return recorded, seconds

    def _capture(self, inputs: _Inputs, loss: Callable) -> _RecordedStep:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.update(inputs, loss, shared=False)
        torch.cuda.current_stream().wait_stream(stream)
        self.state.optimizer.zero_grad(set_to_none=True)
        return _RecordedStep(self, inputs, loss)

    def _snapshot(self) -> tuple:
        copy = [v.clone() for v in (*self._values, *self._averages)]
        return copy, self.state.optimizer.clone_state()

    @torch.no_grad()
    def _restore(self, snapshot: tuple) -> None:
        for value, old in zip((*self._values, *self._averages), snapshot[0], strict=True):
            value.copy_(old)
        self.state.optimizer.restore_state(snapshot[1])


class _RecordedStep:
    """A step as CUDA graphs: one, or two with the sum over all processes between them."""

    def __init__(self, stepper: Stepper, inputs: _Inputs, loss: Callable):
        self.workers = stepper.workers
        self._graphs = [torch.cuda.CUDAGraph()]
        self._flat: Tensor | None = None
        if self.workers.is_single:
            with torch.cuda.graph(self._graphs[0]):
                self._means = stepper.update(inputs, loss)
            return
        self._graphs.append(torch.cuda.CUDAGraph())
        with torch.cuda.graph(self._graphs[0]):
            self._flat = stepper.flatten(stepper.backward(inputs, loss))
        with torch.cuda.graph(self._graphs[1], pool=self._graphs[0].pool()):
            self._means = stepper.apply(stepper.unflatten(self._flat))

    def replay(self, shared: bool = True) -> Tensor:
        """Run the step; `shared` is whether the gradients of other processes count. Returns what it logs."""
        self._graphs[0].replay()
        if self._flat is not None:
            if shared:
                self.workers.sum(self._flat)
            self._graphs[1].replay()
        return self._means
