"""`make demo` with the weights of this checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from latcodec import weights
from latcodec.errors import WeightsError

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_demo_writes_its_files_and_table(tmp_path):
    try:
        weights.find("hyperprior", None)
    except WeightsError:
        pytest.skip("this checkout has no weights")
    command = [sys.executable, str(ROOT / "examples" / "demo.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    lines = run.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("setting"))
    table = [line.split() for line in lines[start + 1 : start + 6]]
    assert [row[0] for row in table] == ["latcodec", "latcodec", "latcodec", "jpeg", "webp"]
    sizes, psnrs = [int(row[3]) for row in table], [float(row[5]) for row in table]
    for row, size, name in zip(table, sizes, ("q15.lc", "q45.lc", "q75.lc", "jpeg", "webp"), strict=True):
        path = next((tmp_path / "demo").glob(f"*{name}"))
        assert path.stat().st_size == size, row
    assert sizes[:3] == sorted(sizes[:3]) and psnrs[:3] == sorted(psnrs[:3]) and psnrs[0] > 25
    assert all(abs(size / sizes[1] - 1) < 0.1 for size in sizes[3:])
    with Image.open(tmp_path / "demo" / "side-by-side.png") as sheet:
        assert sheet.width > 4 * 300
