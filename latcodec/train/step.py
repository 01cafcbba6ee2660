"""One optimiser step: crops, loss, gradient, update, average. On CUDA the whole of it is one recorded graph.

What changes from step to step (crops or their places, rates, learning rate, decay) is copied into tensors of fixed
address, so that a replay needs no Python in between. The noise of a step depends on the seed, its number and the
process alone. With several processes there are two graphs, and the sum of the gradients between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from latcodec.train import data
from latcodec.train.distributed import Workers
from latcodec.train.optimizer import MuonAdam

WARM_UP_STEPS = 3
TRIAL_STEPS = 30
NOT_LOGGED = ("mse", "lagrangian")


class Stepper:
    """Runs steps of one model; see `step`. `ema` is the moving average of the model's state, updated in place."""

    def __init__(
        self, model, loss: Callable, optimizer: MuonAdam, ema: dict[str, Tensor], crops: data.Crops,
        device: torch.device, autocast: bool, seed: int, compile: bool = False, workers: Workers = Workers(),  # noqa: B008
        say: Callable[[str], None] = print,
    ):  # fmt: skip
        self.model, self.loss, self.optimizer, self.ema = model, loss, optimizer, ema
        self.device, self.autocast, self.seed, self.compile = device, autocast, seed, compile
        self.workers, self.say = workers, say
        state = model.state_dict()
        names = [name for name, value in state.items() if value.is_floating_point()]
        self._values, self._averages = [state[n] for n in names], [ema[n] for n in names]
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._inputs = {k: torch.zeros((), device=device) for k in ("progress", "decay", "share")}
        self._graphs: dict[tuple[int, int], tuple] = {}
        self.logged: tuple[str, ...] = ()
        self.on_device = None
        if device.type == "cuda" and sum(p.nbytes for p in crops.pictures) <= torch.cuda.mem_get_info()[0] // 2:
            self.on_device = data.DevicePictures(crops.pictures, device)
        self.feeder = data.Feeder(crops, self.on_device is None, (workers.rank, workers.world))
        self.how = "eager"

    def step(self, number: int, count: int, side: int, lr: float, decay: float, progress: float) -> Tensor:
        """Step `number` on `count` crops of `side` px, of all processes together.

        Returns the means named by `logged`, float32 on the device. Raises distributed.Gone, the model untouched.
        """
        self.optimizer.set_lr(lr)
        self._inputs["progress"].fill_(progress)
        self._inputs["decay"].fill_(1 - decay)
        torch.manual_seed(self.seed * 1_000_003 + number + (self.workers.rank << 48))
        crops, t = (torch.from_numpy(part) for part in self.feeder.take(number, count, side))
        self._inputs["share"].fill_(len(t) / count)
        if self.device.type != "cuda":
            return self._update(crops, t, side, self.loss)
        if (count, side) not in self._graphs:
            self._graphs[count, side] = self._record(crops, t, side)
        replay, (place_of_crops, place_of_t) = self._graphs[count, side]
        place_of_crops.copy_(crops, non_blocking=True)
        place_of_t.copy_(t, non_blocking=True)
        return self._update(place_of_crops, place_of_t, side, self.loss) if replay is None else replay().clone()

    def close(self) -> None:
        """End the thread that cuts crops."""
        self.feeder.close()

    def _update(self, crops: Tensor, t: Tensor, side: int, loss: Callable, shared: bool = True) -> Tensor:
        means = self._backward(crops, t, side, loss)
        if shared and not self.workers.alone:
            flat = self._flat(means)
            self.workers.sum(flat)
            means = self._unflat(flat)
        return self._apply(means)

    def _backward(self, crops: Tensor, t: Tensor, side: int, loss: Callable) -> Tensor:
        """Gradients of this process's share; what is logged of it, but for the norm."""
        if crops.dtype == torch.uint8:
            x = crops.float().div_(255).contiguous(memory_format=torch.channels_last)
        else:
            x = self.on_device.crop(crops, side)
        result = loss(self.model, x, t, self.autocast, True, self._inputs["progress"])
        self.optimizer.zero_grad(set_to_none=True)
        result["loss"].backward()
        means = {k: v.detach().float().mean() for k, v in result.items() if k not in NOT_LOGGED}
        means["psnr_db"] = -10 * result["mse"].detach().log10().mean()
        self.logged = (*means, "norm")
        return torch.stack(list(means.values()))

    def _flat(self, means: Tensor) -> Tensor:
        """Gradients and means as one vector, weighted by this process's share of the crops."""
        found = [p.grad.reshape(-1) for p in self._parameters if p.grad is not None]
        return torch.cat([*found, means]) * self._inputs["share"]

    def _unflat(self, flat: Tensor) -> Tensor:
        """Put the sum of all processes' vectors back into the gradients; returns the means of all crops."""
        start = 0
        for p in self._parameters:
            if p.grad is not None:
                p.grad.copy_(flat[start : start + p.numel()].view(p.shape))
                start += p.numel()
        return flat[start:]

    def _apply(self, means: Tensor) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            toward = torch._foreach_sub(self._values, self._averages)
            torch._foreach_mul_(toward, self._inputs["decay"])
            torch._foreach_add_(self._averages, toward)
            return torch.cat([means, norm.detach()[None]])

    def _record(self, crops: Tensor, t: Tensor, side: int) -> tuple:
        """The fastest of what works here, and the inputs it reads: a graph of the compiled loss, of the plain one, or
        no graph. No process waits for another meanwhile."""
        crops, t = crops.to(self.device), t.to(self.device)
        state, best = self._snapshot(), (float("inf"), None)
        candidates = {"graph": self.loss}
        if self.compile:
            candidates["compiled graph"] = torch.compile(self.loss, dynamic=False)
        for how, loss in candidates.items():
            try:
                start = time.perf_counter()
                replay = self._capture(crops, t, side, loss)
                torch.cuda.synchronize()
                ready = time.perf_counter()
                for _ in range(TRIAL_STEPS):
                    replay(shared=False)
                torch.cuda.synchronize()
                seconds = (time.perf_counter() - ready) / TRIAL_STEPS
                self.say(f"{how}: {len(t) / seconds:.0f} crops/s of {side} px, ready in {ready - start:.0f} s")
                if seconds < best[0]:
                    best, self.how = (seconds, replay), how
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever a compiler or driver may not like, the plain loop still runs
                self.say(f"{how} does not run here: {type(error).__name__}: {str(error)[:300]}")
                torch.cuda.synchronize()
        self._restore(state)
        return best[1], (crops, t)

    def _capture(self, crops: Tensor, t: Tensor, side: int, loss: Callable) -> Callable[..., Tensor]:
        """A recorded step on these inputs, as a function; shared=False leaves the other processes out."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self._update(crops, t, side, loss, shared=False)
        torch.cuda.current_stream().wait_stream(stream)
        graph, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        if self.workers.alone:
            with torch.cuda.graph(graph):
                out = self._update(crops, t, side, loss)

            def replay(shared: bool = True) -> Tensor:
                graph.replay()
                return out
        else:
            with torch.cuda.graph(graph):
                means = self._backward(crops, t, side, loss)
                flat = self._flat(means)
            with torch.cuda.graph(second, pool=graph.pool()):
                out = self._apply(self._unflat(flat))

            def replay(shared: bool = True) -> Tensor:
                graph.replay()
                if shared:
                    self.workers.sum(flat)
                second.replay()
                return out

        return replay

    def _snapshot(self) -> tuple:
        copy = [v.clone() for v in (*self._values, *self._averages)]
        return copy, self.optimizer.clone_state()

    @torch.no_grad()
    def _restore(self, snapshot: tuple) -> None:
        for value, old in zip((*self._values, *self._averages), snapshot[0], strict=True):
            value.copy_(old)
        self.optimizer.restore_state(snapshot[1])
