"""Is the output always the old file or the new one, whenever a command is stopped? A command, not a test:

    python experiments/interrupt.py [PICTURE] [-n 30] [--seed 0]

Runs `latcodec encode -f` and `latcodec decode -f` over existing outputs and sends SIGINT or SIGKILL, half of the time
at a moment drawn from the whole run, half of the time just after the temporary file appeared, where the danger is. The
output must be the complete old bytes or a complete new file; after SIGINT no temporary file may be left. Exit code 1 if
any of this does not hold. PICTURE: any picture; the larger, the longer the writes. A noise picture otherwise.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from latcodec import container
from latcodec.errors import LatcodecError


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "latcodec", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(*arguments: str) -> float:
    """Run a command to its end; seconds."""
    began = time.perf_counter()
    process = start(*arguments)
    _, said = process.communicate()
    if process.returncode:
        sys.exit(f"latcodec {' '.join(arguments)} failed: {said.decode()}")
    return time.perf_counter() - began


def complete(path: Path) -> bool:
    """Whether a new output is whole: an .lc file with its checksum, a picture down to its last row."""
    try:
        if path.suffix == ".lc":
            container.unpack(path.read_bytes())
        else:
            with Image.open(path) as image:
                image.load()
    except (LatcodecError, OSError, SyntaxError):
        return False
    return True


def stop(process: subprocess.Popen, folder: Path, number: int, aimed: bool, seconds: float, draw: random.Random) -> str:
    """Send the signal at its moment; returns what the process had come to."""
    moment = time.perf_counter() + draw.uniform(0, 1.05 * seconds)
    if aimed:
        while process.poll() is None and not any(folder.glob(".latcodec-*")):
            pass
        moment = time.perf_counter() + 0.01 * draw.random() ** 3  # a small file is written within 1 ms
    while process.poll() is None and time.perf_counter() < moment:
        time.sleep(0.0002)
    ended = process.poll() is not None
    process.send_signal(number)
    traceback = b"Traceback" in process.stderr.read()
    process.wait()
    if traceback:
        return "gave a traceback"
    return "had ended" if ended else "was stopped" if process.returncode else "finished all the same"


def main() -> int:
    parser = argparse.ArgumentParser(description="Stop latcodec at random moments; look at what it leaves.")
    parser.add_argument("picture", nargs="?", type=Path, help="a picture; noise of 1200 x 800 px otherwise")
    parser.add_argument("-n", "--trials", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's SIG_IGN would be inherited
    draw, tally, violations = random.Random(options.seed), Counter(), []
    with tempfile.TemporaryDirectory(prefix="latcodec-interrupt-") as name:
        base = Path(name)
        picture = options.picture or base / "noise.png"
        if options.picture is None:
            noise = np.random.default_rng(options.seed).integers(0, 256, (800, 1200, 3), np.uint8)
            Image.fromarray(noise).save(picture)
        old = {"out.lc": base / "old.lc", "out.png": base / "old.png"}
        source = base / "source.lc"
        finish("encode", str(picture), "-o", str(old["out.lc"]), "-q", "20")
        finish("decode", str(old["out.lc"]), "-o", str(old["out.png"]))
        # The new outputs differ from the old ones in their quality.
        seconds = {"encode": finish("encode", str(picture), "-o", str(source), "-q", "60")}
        seconds["decode"] = finish("decode", str(source), "-o", str(base / "once.png"))
        cases = [
            (c, s, a) for a in (False, True) for s in (signal.SIGINT, signal.SIGKILL) for c in ("encode", "decode")
        ]
        for trial in range(options.trials):
            command, number, aimed = cases[trial % len(cases)]
            folder = base / f"trial-{trial}"
            folder.mkdir()
            output = folder / ("out.lc" if command == "encode" else "out.png")
            before = old[output.name].read_bytes()
            output.write_bytes(before)
            given = [str(picture), "-q", "60"] if command == "encode" else [str(source)]
            process = start(command, *given, "-f", "-o", str(output))
            state = stop(process, folder, number, aimed, seconds[command], draw)
            what = f"trial {trial}: {command}, {number.name}{', aimed' if aimed else ''}, process {state}"
            old_there = output.exists() and output.read_bytes() == before
            if not old_there and not complete(output):
                violations.append(f"{what}: {output.name} is neither the old file nor a complete new one")
            left = [path.name for path in folder.iterdir() if path != output]
            if left and number == signal.SIGINT:
                violations.append(f"{what}: left behind: {', '.join(left)}")
            tally[command, number.name, "aimed" if aimed else "any time", state, old_there, len(left)] += 1
            shutil.rmtree(folder)
    print("count  command  signal   moment    process                output  other files left")
    for (command, number, moment, state, old_there, left), count in sorted(tally.items()):
        print(f"{count:5}  {command:7}  {number:7}  {moment:8}  {state:21}  {'old' if old_there else 'new':6}  {left}")
    print(f"{options.trials} trials, {len(violations)} violations")
    print(*violations, sep="\n", end="\n" * bool(violations))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
