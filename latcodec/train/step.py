"""One optimiser step: crops, loss, gradient, update, average. On CUDA the whole of it is one recorded graph.

What changes from step to step (places of the crops, rates, learning rate, decay) is copied into tensors of fixed
address, so that a replay needs no Python in between. The noise of a step depends on the seed and its number alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from latcodec.train import data
from latcodec.train.optimizer import MuonAdam

WARM_UP_STEPS = 3
TRIAL_STEPS = 30


class Stepper:
    """Runs steps of one model; see `step`. `ema` is the moving average of the model's state, updated in place."""

    def __init__(self, model, loss: Callable, optimizer: MuonAdam, ema: dict[str, Tensor], crops: data.Crops,
                 device: torch.device, autocast: bool, seed: int, compile: bool = False):  # fmt: skip
        self.model, self.loss, self.optimizer, self.ema = model, loss, optimizer, ema
        self.crops, self.device, self.autocast, self.seed, self.compile = crops, device, autocast, seed, compile
        state = model.state_dict()
        names = [name for name, value in state.items() if value.is_floating_point()]
        self._values, self._averages = [state[n] for n in names], [ema[n] for n in names]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._inputs = {k: torch.zeros((), device=device) for k in ("progress", "decay")}
        self._graphs: dict[tuple[int, int], tuple] = {}
        self.logged: tuple[str, ...] = ()
        self.on_device = data.DevicePictures(crops.pictures, device) if device.type == "cuda" else None
        self.how = "eager"

    def step(self, number: int, count: int, side: int, lr: float, decay: float, progress: float) -> Tensor:
        """Step `number` on `count` crops of `side` px; returns the means named by `logged`, float32 on the device."""
        self.optimizer.set_lr(lr)
        self._inputs["progress"].fill_(progress)
        self._inputs["decay"].fill_(1 - decay)
        torch.manual_seed(self.seed * 1_000_003 + number)
        if self.on_device is None:
            pictures, t = self.crops.batch(number, count, side)
            x = torch.from_numpy(pictures).float().div_(255).contiguous(memory_format=torch.channels_last)
            return self._update(x, torch.from_numpy(t), self.loss)
        if (count, side) not in self._graphs:
            self._graphs[count, side] = self._record(count, side)
        graph, places, t, out = self._graphs[count, side]
        new_places, new_t = self.crops.plan(number, count, side)
        places.copy_(torch.from_numpy(new_places), non_blocking=True)
        t.copy_(torch.from_numpy(new_t), non_blocking=True)
        if graph is None:
            return self._from_places(places, t, side, self.loss)
        graph.replay()
        return out.clone()

    def _from_places(self, places: Tensor, t: Tensor, side: int, loss: Callable) -> Tensor:
        return self._update(self.on_device.crop(places, side), t, loss)

    def _update(self, x: Tensor, t: Tensor, loss: Callable) -> Tensor:
        result = loss(self.model, x, t, self.autocast, True, self._inputs["progress"])
        self.optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            toward = torch._foreach_sub(self._values, self._averages)
            torch._foreach_mul_(toward, self._inputs["decay"])
            torch._foreach_add_(self._averages, toward)
            means = {k: v.detach().float().mean() for k, v in result.items() if k not in ("mse", "lagrangian")}
            means |= {"psnr_db": -10 * result["mse"].detach().log10().mean(), "norm": norm.detach()}
            self.logged = tuple(means)
            return torch.stack(list(means.values()))

    def _record(self, count: int, side: int) -> tuple:
        """The fastest of what works here: a graph of the compiled loss, of the plain one, or no graph."""
        new_places, new_t = self.crops.plan(0, count, side)
        places, t = torch.from_numpy(new_places).to(self.device), torch.from_numpy(new_t).to(self.device)
        state = self._snapshot()
        best: tuple[float, tuple] = (float("inf"), (None, places, t, None))
        candidates = {"graph": self.loss}
        if self.compile:
            candidates["compiled graph"] = torch.compile(self.loss, dynamic=False)
        for how, loss in candidates.items():
            try:
                start = time.perf_counter()
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP_STEPS):
                        self._from_places(places, t, side, loss)
                torch.cuda.current_stream().wait_stream(stream)
                graph = torch.cuda.CUDAGraph()
                self.optimizer.zero_grad(set_to_none=True)
                with torch.cuda.graph(graph):
                    out = self._from_places(places, t, side, loss)
                torch.cuda.synchronize()
                ready = time.perf_counter()
                for _ in range(TRIAL_STEPS):
                    graph.replay()
                torch.cuda.synchronize()
                seconds = (time.perf_counter() - ready) / TRIAL_STEPS
                print(f"latcodec: {how}: {count / seconds:.0f} crops/s of {side} px, ready in {ready - start:.0f} s",
                      flush=True)  # fmt: skip
                if seconds < best[0]:
                    best, self.how = (seconds, (graph, places, t, out)), how
            except Exception as error:  # whatever a compiler or driver may not like, the plain loop still runs
                print(f"latcodec: {how} does not run here: {type(error).__name__}: {str(error)[:300]}", flush=True)
                torch.cuda.synchronize()
        self._restore(state)
        return best[1]

    def _snapshot(self) -> tuple:
        copy = [v.clone() for v in (*self._values, *self._averages)]
        return copy, self.optimizer.clone_state()

    @torch.no_grad()
    def _restore(self, snapshot: tuple) -> None:
        for value, old in zip((*self._values, *self._averages), snapshot[0], strict=True):
            value.copy_(old)
        self.optimizer.restore_state(snapshot[1])
