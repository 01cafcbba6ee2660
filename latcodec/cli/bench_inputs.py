"""Turn the words of the command bench into lambdas, contenders and subjects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from latcodec import backends, text
from latcodec.cli.bench_outputs import Problems
from latcodec.cli.paths import expand_input
from latcodec.errors import LatcodecError, OptionError
from latcodec.images.formats import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from latcodec.bench.contenders import Contender, Settings
    from latcodec.bench.subjects import Subject


def lambdas_of(numbers: str | None, rates: int | None) -> tuple[float, ...] | None:
    """Return the numbers of --lambdas, None without the option.

    Raises:
        OptionError: The option holds something else than numbers, or --rates is given too.
    """
    if numbers is None:
        return None
    if rates is not None:
        raise OptionError("--lambdas and --rates exclude each other; give one")
    try:
        return tuple(float(part) for part in numbers.split(","))
    except ValueError:
        raise OptionError(f"--lambdas {numbers}: not a list of numbers") from None


def contenders_of(codecs: str | None, anchor_names: str, settings: Settings, problems: Problems) -> list[Contender]:
    """Return the codecs and anchors that can run; each that cannot is a problem.

    Args:
        codecs: The list of --codecs; None for the default.
        anchor_names: The list of --anchors.
        settings: How to measure.
        problems: Where a line for each contender that cannot run goes.
    """
    from latcodec.bench import anchors
    from latcodec.bench.contenders import learned, split_names
    from latcodec.settings import choose_codec

    if codecs is None:
        codecs = choose_codec(None, settings.weights)
    codec_names = [b.name for b in backends.BACKENDS] if codecs == "all" else split_names(codecs)
    names = anchors.available_names() if anchor_names == "all" else split_names(anchor_names)
    makers: list[Callable[[], Contender]] = [partial(learned, name, settings) for name in codec_names]
    makers += [partial(anchors.by_name, name) for name in names]
    contenders: list[Contender] = []
    for make in makers:
        try:
            contenders.append(make())
        except LatcodecError as error:
            problems.add(text.error_line(error))
    return contenders


def subjects_of(paths: Sequence[str], problems: Problems) -> list[Subject]:
    """Return the pictures that can be read, under short names that tell them apart; each other input is a problem.

    Args:
        paths: Files and folders; none for the photographs that come with scikit-image.
        problems: Where a line for each input that cannot be used goes.
    """
    from latcodec.bench import subjects as bench_subjects

    inputs: list[tuple[Path, Path]] = []
    if not paths:
        inputs += [(path, Path(path.name)) for path in bench_subjects.photographs()]
    for name in paths:
        try:
            if name == "-":
                raise OptionError("-: bench reads files and folders, not standard input")
            inputs += [(path, short) for path, short in expand_input(name, PICTURE_SUFFIXES) if path is not None]
        except (LatcodecError, OSError) as error:
            problems.add(text.error_line(error, name))
    inputs = list(dict(inputs).items())
    uses = Counter(str(relative) for _, relative in inputs)
    full_paths = {str(path) for path, _ in inputs}
    subjects = []
    for path, relative in inputs:
        full, short = str(path), str(relative)
        is_unique = uses[short] == 1 and short not in full_paths - {full}
        try:
            subjects.append(bench_subjects.inspect(path, short if is_unique else full))
        except (LatcodecError, OSError, MemoryError) as error:
            problems.add(text.error_line(error, full))
    return subjects
