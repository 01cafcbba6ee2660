"""The command bench: its options, and one run from inputs to outputs. Part of the room `cli`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from latcodec import backends, parallel, text
from latcodec.cli.bench_inputs import contenders_of, settings_of, subjects_of
from latcodec.cli.bench_outputs import (
    keep_row,
    open_report,
    progress,
    renew_documents,
    show_results,
    write_report,
)
from latcodec.errors import OptionError


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
@click.option("--lambdas", metavar="LIST", help="Of the codecs, 0.1 to 20, for some 41, comma-separated.")
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
@click.option("--readme", metavar="FILE", help="Also renew the short table between FILE's markers, and its figure.")
@click.option("--results", "results_page", metavar="FILE", help="Also renew the page of all tables, docs/results.md.")
@click.option("--fetch", type=click.Choice(["kodak"]), help="Download these pictures into PATH; measure nothing.")
@click.option("--fetch-from", metavar="URL", help="Another server for --fetch.")
@click.pass_context
def bench(
    context, paths, codecs, anchors, lambdas, rates, output, reps, threads, device, weights, force, as_json, quiet,
    readme, results_page, fetch, fetch_from,
):  # fmt: skip
    """Measure codecs on pictures and folders, beside JPEG, WebP, AVIF, JPEG 2000 and JPEG XL: size, quality, time.

    Without PATH on the photographs that come with scikit-image. A run that was stopped goes on when the same command
    is given again: rows that REPORT holds are kept.
    """
    team = parallel.current_team()
    if fetch or fetch_from:
        team.decide(lambda: _fetch(paths, fetch, fetch_from, force, quiet), lambda _: None, lambda _: None)
        return
    problems: list[str] = []

    def problem(line: str) -> None:
        problems.append(line)
        click.echo(f"latcodec: {line}", err=True)

    from latcodec.bench import results as bench_results
    from latcodec.bench.documents import Documents
    from latcodec.bench.run import Bench, NoRows
    from latcodec.bench.subjects import SubjectPictures
    from latcodec.bench.team import SharedBench, assist

    documents = Documents(*(path and Path(path) for path in (readme, results_page)))

    def plan() -> tuple:
        if documents != Documents() and team.world > 1:
            option = "--readme" if readme else "--results"
            raise OptionError(f"{option}: several processes slow each other; times to publish are measured alone")
        settings = settings_of(lambdas, rates, reps, threads, device, weights, team)
        contenders = contenders_of(codecs, anchors, settings, problem)
        subjects = subjects_of(paths, problem)
        if not contenders or not subjects:
            raise OptionError(f"nothing to measure: no {'picture' if contenders else 'codec or anchor'} is left")
        documents.check()
        folder, store = open_report(output, settings, force, problem, team.world)
        return SharedBench(Bench(subjects, contenders, settings), store or NoRows()), folder, store

    planned = team.decide(plan, lambda planned: planned[0].instructions(), lambda instructions: instructions)
    if team.rank:
        settings = settings_of(lambdas, rates, reps, threads, device, weights, team)
        contenders = contenders_of(codecs, anchors, settings, problems.append)
        assist(team, planned, contenders, settings, problems)
        return
    shared, folder, store = planned
    subjects, contenders, total = shared.bench.subjects, shared.bench.contenders, shared.bench.row_count
    rows = []
    by_file, by_name = {s.file: s for s in subjects}, {c.name: c for c in contenders}
    of_total = f"of {total} row{'s' if total != 1 else ''}"
    try:
        with progress(total, quiet) as (begin, advance):
            for row in shared.rows(team):
                begin(row.codec)
                rows.append(row)
                if store is not None:
                    store = keep_row(store, by_name[row.codec], by_file[row.file], row, problem)
                advance(f"{row.codec}  {row.file}")
        for line in dict.fromkeys(shared.problems):
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
    results = bench_results.assemble(shared.bench, rows, _command(context, team.world), problems)
    if team.world > 1:
        results["environment"]["processes"] = f"{team.world} at once: times are those of shared processors"
    for row in rows:
        if row.bugs:
            problem(f"{row.file}: {row.codec}, {row.setting}: {row.bugs}")
    written = folder is not None and write_report(
        folder, results, SubjectPictures(subjects, contenders), quiet, problem
    )
    renew_documents(documents, results, problem)
    if as_json:
        click.echo(text.json_line(results))
    elif not quiet:
        show_results(results, folder if written else None)
    if problems:
        context.exit(1)


def _fetch(paths, name: str | None, url: str | None, force: bool, quiet: bool) -> None:
    if name is None or len(paths) != 1:
        raise OptionError("--fetch kodak DIR downloads into one folder; name it, and nothing else")
    from latcodec.bench import kodak

    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    found = kodak.fetch(Path(paths[0]), url=url or kodak.URL, force=force, say=say)
    say(f"{paths[0]}: all {len(found)} Kodak pictures are here, every SHA-256 is right")


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
