"""What the command bench measures, and how: words to codecs, anchors, pictures. Part of the room `cli`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from latcodec import backends, parallel, runtime, text
from latcodec.cli.paths import expand_input
from latcodec.errors import LatcodecError, OptionError
from latcodec.images.formats import PICTURE_SUFFIXES


def settings_of(lambdas, rates, reps, threads, device, weights, team: parallel.Team):
    """How to measure; sets threads and GPU of this process too."""
    from latcodec.bench.contenders import Settings

    settings = Settings(_lambdas(lambdas, rates), rates, reps, threads, runtime.pick_device(device), weights)
    team.select_gpu(device)
    if threads is not None:
        from latcodec.bench.anchors import set_threads

        runtime.set_threads(threads)
        set_threads(threads)
    return settings


def _lambdas(numbers: str | None, rates: int | None) -> tuple[float, ...] | None:
    if numbers is None:
        return None
    if rates is not None:
        raise OptionError("--lambdas and --rates exclude each other; give one")
    try:
        return tuple(float(part) for part in numbers.split(","))
    except ValueError:
        raise OptionError(f"--lambdas {numbers}: not a list of numbers") from None


def contenders_of(codecs: str | None, anchor_names: str, settings, problem: Callable[[str], None]) -> list:
    """Codecs and anchors that can run; a line for each that cannot."""
    from latcodec.bench import anchors
    from latcodec.bench.contenders import learned, split_names
    from latcodec.settings import choose_codec

    if codecs is None:
        codecs = choose_codec(None, settings.weights)
    names = [b.name for b in backends.BACKENDS] if codecs == "all" else split_names(codecs)
    makers = [(name, lambda name: learned(name, settings)) for name in names]
    names = anchors.default_names() if anchor_names == "all" else split_names(anchor_names)
    makers += [(name, anchors.by_name) for name in names]
    found = []
    for name, make in makers:
        try:
            found.append(make(name))
        except LatcodecError as error:
            problem(text.error_line(error))
    return found


def subjects_of(paths, problem: Callable[[str], None]) -> list:
    """Pictures that can be read, under short names that tell them apart; a line for each input that cannot be used."""
    from latcodec.bench import subjects as bench_subjects

    inputs: list[tuple[Path, Path]] = (
        [] if paths else [(path, Path(path.name)) for path in bench_subjects.photographs()]
    )
    for name in paths:
        try:
            if name == "-":
                raise OptionError("-: bench reads files and folders, not standard input")
            inputs += expand_input(name, PICTURE_SUFFIXES)
        except (LatcodecError, OSError) as error:
            problem(text.error_line(error, name))
    inputs = list(dict(inputs).items())
    short = Counter(str(relative) for _, relative in inputs)
    paths = {str(path) for path, _ in inputs}
    found = []
    for path, relative in inputs:
        whole, name = str(path), str(relative)
        try:
            found.append(
                bench_subjects.inspect(path, name if short[name] == 1 and name not in paths - {whole} else whole)
            )
        except (LatcodecError, OSError, MemoryError) as error:
            problem(text.error_line(error, str(path)))
    return found
