"""The command bench: its options, what it prints, and the report folder. Part of the room `cli`."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from latcodec import backends, files, sharding, wording
from latcodec.errors import LatcodecError, OptionError


@click.command()
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@click.option(
    "--codecs",
    show_default=f"{backends.DEFAULT}, or that of --weights FILE",
    metavar="LIST",
    help="Comma-separated, with options: vbq:quantizer=uniform,pln:kappa=16; all, or none.",
)
@click.option(
    "--anchors",
    default="all",
    show_default=True,
    metavar="LIST",
    help="jpeg, jpeg-progressive, webp, avif, jpeg2000, jpegxl; all that run here, or none.",
)
@click.option("--lambdas", metavar="LIST", help="Of the codecs, 0.1 to 20, comma-separated.")
@click.option(
    "--rates", type=click.IntRange(1, 64), metavar="N", help="Settings of each codec and anchor; 8 otherwise."
)
@click.option("-o", "--output", metavar="REPORT", help="Folder for index.html, charts, results.json and results.tsv.")
@click.option("--reps", type=click.IntRange(1), default=1, show_default=True, help="Repetitions; medians are shown.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="CPU threads of codecs and anchors.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--weights", metavar="PATH", help="A weights file or a folder of them.")
@click.option("-f", "--force", is_flag=True, help="Measure again what REPORT already holds; write into any folder.")
@click.option("--json", "as_json", is_flag=True, help="The results as one JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@click.option("--readme", metavar="FILE", help="Also renew the tables between FILE's markers, and its figure.")
@click.option("--fetch", type=click.Choice(["kodak"]), help="Download these pictures into PATH; measure nothing.")
@click.option("--fetch-from", metavar="URL", help="Another server for --fetch.")
@click.pass_context
def bench(
    context, paths, codecs, anchors, lambdas, rates, output, reps, threads, device, weights, force, as_json, quiet,
    readme, fetch, fetch_from,
):  # fmt: skip
    """Measure codecs on pictures and folders, beside JPEG, WebP, AVIF, JPEG 2000 and JPEG XL: size, quality, time.

    Without PATH on the photographs that come with scikit-image. A run that was stopped goes on when the same command
    is given again: rows that REPORT holds are kept.
    """
    team = sharding.team()
    if fetch or fetch_from:
        team.decide(lambda: _fetch(paths, fetch, fetch_from, force, quiet), lambda _: None, lambda _: None)
        return
    problems: list[str] = []

    def problem(line: str) -> None:
        problems.append(line)
        click.echo(f"latcodec: {line}", err=True)

    from latcodec import bench as room
    from latcodec import bench_results, bench_team

    def plan() -> tuple:
        if readme is not None and team.world > 1:
            raise OptionError("--readme: several processes slow each other; times for a README are measured alone")
        settings = _settings(lambdas, rates, reps, threads, device, weights, team)
        contenders = _contenders(codecs, anchors, settings, problem)
        subjects = _subjects(paths, problem)
        if not contenders or not subjects:
            raise OptionError(f"nothing to measure: no {'picture' if contenders else 'codec or anchor'} is left")
        _check_readme(readme)
        return subjects, contenders, settings, *_open(output, settings, force, problem, team.world)

    def instructions(made: tuple) -> dict:
        return bench_team.instructions(*made[:3], made[4].get if made[4] else bench_team.nothing_finished)

    made = team.decide(plan, instructions, lambda told: told)
    if team.rank:
        settings = _settings(lambdas, rates, reps, threads, device, weights, team)
        contenders = _contenders(codecs, anchors, settings, problems.append)
        bench_team.assist(team, made, contenders, settings, problems)
        return
    subjects, contenders, settings, folder, store = made
    command = _command(context, team.world)
    rows = []
    total = sum(len(settings.values_of(c)) for c in contenders) * len(subjects)
    by_file, by_name = {s.file: s for s in subjects}, {c.name: c for c in contenders}
    of_total = f"of {total} row{'s' if total != 1 else ''}"
    try:
        with _progress(total, quiet) as (begin, advance):

            def take(row) -> None:
                nonlocal store
                begin(row.codec)
                rows.append(row)
                if store is not None:
                    store = _keep(store, by_name[row.codec], by_file[row.file], row, problem)
                advance(f"{row.codec}  {row.file}")

            def take_posted() -> None:
                for row in team.posted():
                    take(room.Row(**row))

            finished = store.get if store else bench_team.nothing_finished
            for row in bench_team.finished_elsewhere(team, subjects, contenders, settings, finished):
                take(row)
            for row in room.run(team.mine(subjects), contenders, settings, finished):
                take(row)
                take_posted()
            for line in dict.fromkeys(line for part in team.gather([], take_posted) for line in part):
                if line not in problems:
                    problem(line)
    except KeyboardInterrupt:
        if store is not None:
            click.echo(f"latcodec: {folder}: {len(rows)} {of_total} kept; the same command goes on", err=True)
        raise
    finally:
        if store is not None:
            store.close()
    for subject in subjects if not quiet else ():
        if subject.notes:
            click.echo(f"{subject.file}: {', '.join(subject.notes)}", err=True)
    if team.world > 1 and len(rows) < total:
        problem(f"{total - len(rows)} {of_total} missing")
    results = bench_results.assemble(rows, subjects, contenders, settings, command, problems)
    if team.world > 1:
        results["environment"]["processes"] = f"{team.world} at once: times are those of shared processors"
    for row in rows:
        if row.bugs:
            problem(f"{row.file}: {row.codec}, {row.setting}: {row.bugs}")
    written = folder is not None and _write(folder, results, room.Pictures(subjects, contenders), quiet, problem)
    if readme is not None:
        _renew(Path(readme), results, problem)
    if as_json:
        click.echo(wording.json_line(results))
    elif not quiet:
        _print(results, folder if written else None)
    if problems:
        context.exit(1)


def _fetch(paths, name: str | None, url: str | None, force: bool, quiet: bool) -> None:
    if name is None or len(paths) != 1:
        raise OptionError("--fetch kodak DIR downloads into one folder; name it, and nothing else")
    from latcodec import kodak

    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    found = kodak.fetch(Path(paths[0]), url=url or kodak.URL, force=force, say=say)
    say(f"{paths[0]}: all {len(found)} Kodak pictures are here, every SHA-256 is right")


def _settings(lambdas, rates, reps, threads, device, weights, team: sharding.Team):
    """How to measure; sets threads and GPU of this process too."""
    from latcodec import codec
    from latcodec.contenders import Settings

    settings = Settings(_lambdas(lambdas, rates), rates or 8, reps, threads, codec.pick_device(device), weights)
    team.own_gpu(device)
    if threads is not None:
        from latcodec.anchors import set_threads

        codec.set_threads(threads)
        set_threads(threads)
    return settings


def _lambdas(text: str | None, rates: int | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    if rates is not None:
        raise OptionError("--lambdas and --rates exclude each other; give one")
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"--lambdas {text}: not a list of numbers") from None


def _contenders(codecs: str | None, anchor_names: str, settings, problem: Callable[[str], None]) -> list:
    """Codecs and anchors that can run; a line for each that cannot."""
    from latcodec import anchors, codec_options
    from latcodec.contenders import learned, split_names

    if codecs is None:
        codecs = codec_options.name_for(None, settings.weights)
    names = [b.name for b in backends.BACKENDS] if codecs == "all" else split_names(codecs)
    makers = [(name, lambda name: learned(name, settings)) for name in names]
    names = anchors.default_names() if anchor_names == "all" else split_names(anchor_names)
    makers += [(name, anchors.by_name) for name in names]
    found = []
    for name, make in makers:
        try:
            found.append(make(name))
        except LatcodecError as error:
            problem(wording.message(error))
    return found


def _subjects(paths, problem: Callable[[str], None]) -> list:
    """Pictures that can be read, under short names that tell them apart; a line for each input that cannot be used."""
    from latcodec import bench as room

    inputs: list[tuple[Path, Path]] = [] if paths else [(path, Path(path.name)) for path in room.photographs()]
    for name in paths:
        try:
            if name == "-":
                raise OptionError("-: bench reads files and folders, not standard input")
            inputs += files.expand(name, files.PICTURE_SUFFIXES)
        except (LatcodecError, OSError) as error:
            problem(wording.message(error, name))
    inputs = list(dict(inputs).items())
    short = Counter(str(relative) for _, relative in inputs)
    paths = {str(path) for path, _ in inputs}
    found = []
    for path, relative in inputs:
        whole, name = str(path), str(relative)
        try:
            found.append(room.inspect(path, name if short[name] == 1 and name not in paths - {whole} else whole))
        except (LatcodecError, OSError, MemoryError) as error:
            problem(wording.message(error, str(path)))
    return found


def _check_readme(path: str | None) -> None:
    """That a README is there and has the markers, known before anything is measured."""
    if path is None:
        return
    from latcodec.bench_text import with_part

    try:
        with_part(Path(path).read_text(encoding="utf-8"), "")
    except (OptionError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: {error}") from None


def _renew(readme: Path, results: dict, problem: Callable[[str], None]) -> None:
    """Make README's part and figure; it is read now, because a person may have written in it during a long run."""
    from latcodec import bench_text, report

    figure = Path("docs") / "rate-distortion.png"
    try:
        report.readme_figure(results, readme.parent / figure)
        text = bench_text.with_part(
            readme.read_text(encoding="utf-8"), bench_text.readme_part(results, figure.as_posix())
        )
        with files.open_output(readme, force=True) as file:
            file.write(text.encode(errors="backslashreplace"))
    except (LatcodecError, OSError, UnicodeDecodeError) as error:
        problem(wording.message(error, str(readme)))


def _keep(store, contender, subject, row, problem: Callable[[str], None]):
    """Put a row into the store and return it; or, on a full disk, None with a line: what was measured goes on."""
    try:
        store.put(contender, subject, row)
        return store
    except OSError as error:
        problem(f"{wording.message(error, 'rows')}; from here on rows are not kept")
        with suppress(OSError):
            store.close()
        return None


def _open(output: str | None, settings, force: bool, problem: Callable[[str], None], processes: int = 1):
    """(folder, store) of the report, known to be writable; (None, None) without, or with a line if it is not."""
    if output is None:
        return None, None
    from latcodec import bench_store

    folder = Path(output)
    try:
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{output}: is not a folder; the report is one")
        if folder.is_dir() and not force and any(folder.iterdir()) and not (folder / bench_store.NAME).exists():
            raise OptionError(f"{output}: holds other things than a report; --force writes into it")
        return folder, bench_store.Store(folder, settings, afresh=force, processes=processes)
    except OSError as error:
        problem(f"{wording.message(error, output)}; measuring without a report")
        return None, None


def _write(folder: Path, results: dict, pictures, quiet: bool, problem: Callable[[str], None]) -> bool:
    """Write the report; False, with a line, if it could not be written."""
    import json

    from latcodec import bench_results, report

    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    try:
        for name, text in (
            ("results.json", json.dumps(results, indent=1, allow_nan=False) + "\n"),
            ("results.tsv", bench_results.tsv(results)),
        ):
            with files.open_output(folder / name, force=True) as file:
                file.write(text.encode(errors="backslashreplace"))  # names of files need not be Unicode
        report.write(results, folder, pictures, say)
    except (LatcodecError, OSError) as error:
        problem(wording.message(error, str(folder)))
        return False
    return True


def _print(results: dict, folder: Path | None) -> None:
    from latcodec import bench_text

    if folder is None:
        click.echo(bench_text.plain(*bench_text.per_rate(results), texts=2) + "\n")
    heads, rows = bench_text.summary(results)
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=bench_text.caption(results))
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", no_wrap=number > 0, overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        click.echo(f"{bench_text.plain(heads, rows)}\n({bench_text.caption(results)})")
    lines = bench_text.differences(results) if folder is None else [str(folder / "index.html")]
    if lines:
        click.echo("\n" + "\n".join(lines))


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """(begin(codec), advance(text)): a bar with the time left on a terminal, a line for each codec elsewhere."""
    if quiet or not sys.stderr.isatty():
        rows = "row" if total == 1 else "rows"
        begun: set[str] = set()
        start = time.perf_counter()
        done = 0

        def begin(name: str) -> None:
            if name not in begun and not quiet:
                click.echo(f"{name}: {done} of {total} {rows} done after {time.perf_counter() - start:.0f} s", err=True)
            begun.add(name)

        def advance(text: str) -> None:
            nonlocal done
            done += 1

        yield begin, advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # An hour: codecs differ in speed, so the mean over the whole run tells more than the last seconds.
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=3600) as progress:
        task = progress.add_task("starting", total=total)
        yield lambda name: None, lambda text: progress.update(task, advance=1, description=text)


def _command(context: click.Context, processes: int) -> str:
    """The command that would do this again: what was given, defaults left out."""
    words = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    words += ["latcodec", "bench"]
    for parameter in context.command.params:
        value = context.params[parameter.name]
        if context.get_parameter_source(parameter.name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            words += value
        elif parameter.is_flag:
            words.append(max(parameter.opts, key=len))
        else:
            words += [max(parameter.opts, key=len), str(value)]
    return shlex.join(words)
