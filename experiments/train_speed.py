"""Pictures a second of the training loop: one process, more threads, more processes. Not a test; on a quiet machine:

    python experiments/train_speed.py PICTURES [--codec hyperprior] [--steps 60] [--batch-size 16] [--patch 128]

On a CPU: one process with one thread and with all cores; as many processes as cores with a thread each. On GPUs: one
process, and one a GPU. The batch is that of all processes together. Prints crops a second without the first step, and
the share of the time spent waiting for them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from latcodec.train.record import read_lines


def measured(given, device: str, processes: int, threads: int, out: Path) -> tuple[float, float]:
    """(crops a second, share of waiting) of a run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    sizes = ["--batch-size", given.batch_size, "--patch", given.patch, "--final-patch", given.patch]
    command = [
        sys.executable, *launcher, "-m", "latcodec", "train", given.pictures, "-o", out, "--codec", given.codec,
        "--steps", given.steps, *sizes, "--device", device, "--threads", threads, "--cache", given.cache,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    rows = read_lines(out / "curves.jsonl")
    if done.returncode or len(rows) < 2:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {(done.stderr or done.stdout)[-2000:]}")
    spent = [
        (b["step"] - a["step"]) * given.batch_size / b["pictures_per_s"] for a, b in zip(rows, rows[1:], strict=False)
    ]
    waited = sum(seconds * row["data_share"] for seconds, row in zip(spent, rows[1:], strict=True))
    return (rows[-1]["step"] - rows[0]["step"]) * given.batch_size / sum(spent), waited / sum(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--codec", default="hyperprior")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--patch", type=int, default=128)
    given = parser.parse_args()
    cores, gpus = os.cpu_count(), torch.cuda.device_count()
    cases = [("cpu", 1, 1), ("cpu", 1, cores), ("cpu", cores, 1)] if not gpus else [("cuda", 1, 1), ("cuda", gpus, 1)]
    print("| device | processes | threads each | crops/s | waiting for data |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        given.cache = Path(folder) / "cache"
        for device, processes, threads in dict.fromkeys(cases):
            out = Path(folder) / f"{processes}-{threads}"
            speed, share = measured(given, device, processes, threads, out)
            print(f"| {device} | {processes} | {threads} | {speed:.1f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
