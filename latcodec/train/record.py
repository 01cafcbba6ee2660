"""The files that a run writes beside its checkpoint, for people and for the report.

run.json              settings, Config, data, device of the run as it last started; absolute paths without folders
curves.jsonl          every few seconds: "step", "minutes", means of what the loss returns, "lr", "norm", speeds
log.jsonl             every validation: "step", "minutes", "validation": one dictionary a rate
crops/STEP.npz        the same few validation crops: "original" uint8 [n, 3, s, s], "shown" uint8 [2, n, 3, s, s] at the
                      ends of the rates, lowest first, "bpp" float32 [2, n]
channels.json         information of each latent channel (train/diagnostics.py) at the last validation
tensorboard/          the same numbers, if tensorboard is installed
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latcodec import files

if TYPE_CHECKING:
    from latcodec.train.validation import Reconstructions

LOG, CURVES, RUN, CHANNELS, CROPS = "log.jsonl", "curves.jsonl", "run.json", "channels.json", "crops"
SHOWN_CROPS, SHOWN_PX = 3, 128
PATHS = ("data", "out", "cache", "init")  # settings that hold paths
TENSORBOARD_NAMES = {"bpp": "rate/bpp", "psnr_db": "distortion/psnr_db", "ms_ssim": "distortion/ms_ssim"}


class Record:
    """The files of one run from `step` on; what an earlier attempt wrote beyond that step is dropped.

    Args:
        out: Folder of the run.
        step: Where the run starts or goes on.
        description: What run.json holds.
    """

    def __init__(self, out: Path, step: int, description: dict):
        self.out = out
        for name in (LOG, CURVES):
            _keep_until(out / name, step)
        for path in sorted((out / CROPS).glob("*.npz")):
            if path.stem.isdigit() and int(path.stem) > step:
                path.unlink()
        self._replace(RUN, (json.dumps(_without_folders(description), indent=2) + "\n").encode())
        self._board = _tensorboard(out / "tensorboard", step)

    def curve(self, step: int, minutes: float, numbers: dict[str, float]) -> None:
        """Append means since the last call."""
        self._append(CURVES, {"step": step, "minutes": minutes, **numbers})
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(TENSORBOARD_NAMES.get(name, f"train/{name}"), value, step)

    def validation(self, step: int, minutes: float, rows: list[dict[str, float]]) -> None:
        """Append the points of the validation crops, one a rate."""
        self._append(LOG, {"step": step, "minutes": minutes, "validation": rows})
        if self._board is not None:
            for row in rows:
                for name in row.keys() - {"t"}:
                    self._board.add_scalar(f"validation/{name}/t={row['t']:.2f}", row[name], step)
            self._board.flush()

    def crops(self, step: int, original: np.ndarray, reconstructions: Reconstructions) -> None:
        """Write the middle of a few validation crops, uint8 [n, 3, s, s], and of their reconstructions."""
        top = (original.shape[-1] - min(SHOWN_PX, original.shape[-1])) // 2
        middle = (..., slice(top, top + SHOWN_PX), slice(top, top + SHOWN_PX))
        pictures, bpp = reconstructions.pictures, reconstructions.bpp
        path = self.out / CROPS / f"{step:08d}.npz"
        with files.open_output(path, force=True) as file:
            np.savez_compressed(file, original=original[middle], shown=pictures[middle], bpp=bpp)

    def channels(self, step: int, table: dict) -> None:
        """Replace the table of channels by what `diagnostics.diagnose` returned."""
        self._replace(CHANNELS, json.dumps({"step": step, **table}).encode())

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()

    def _append(self, name: str, row: dict) -> None:
        with open(self.out / name, "a") as file:
            file.write(json.dumps(row) + "\n")

    def _replace(self, name: str, content: bytes) -> None:
        with files.open_output(self.out / name, force=True) as file:
            file.write(content)


def read_lines(path: Path) -> list[dict]:
    """Return the rows of a .jsonl file, [] if there is no file; a line that was cut off is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows


def _name_of(path: str) -> str:
    return (Path(path).name or path) if Path(path).is_absolute() else path


def _without_folders(description: dict) -> dict:
    """A description whose absolute paths have lost the folders of this machine; relative ones stay."""
    settings = dict(description.get("settings", {}))
    for key in settings.keys() & set(PATHS):
        value = settings[key]
        if value is not None:
            settings[key] = _name_of(value) if isinstance(value, str) else [_name_of(path) for path in value]
    return description | ({"settings": settings} if settings else {})


def _keep_until(path: Path, step: int) -> None:
    rows = read_lines(path)
    kept = [row for row in rows if row.get("step", 0) <= step]
    if len(kept) < len(rows):
        with files.open_output(path, force=True) as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


def _tensorboard(folder: Path, step: int):
    """A writer of TensorBoard's, or None where it is not installed."""
    writer: Callable | None
    try:
        from torch.utils.tensorboard import SummaryWriter as writer
    except ImportError:
        return None
    return writer(str(folder), purge_step=step + 1 if step else None)
