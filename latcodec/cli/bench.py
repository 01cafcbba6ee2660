"""The command bench: measure codecs and anchors on pictures, from inputs to reports."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from latcodec import backends, parallel, runtime, text
from latcodec.cli.bench_inputs import contenders_of, lambdas_of, subjects_of
from latcodec.cli.bench_outputs import (
    Problems,
    RowKeeper,
    open_store,
    progress,
    renew_documents,
    show_results,
    write_report,
)
from latcodec.cli.options import (
    CODEC,
    MESSAGES,
    OUTPUT,
    HeadedCommand,
    device_option,
    examples,
    option,
    quiet_option,
    threads_option,
    weights_option,
)
from latcodec.errors import OptionError

if TYPE_CHECKING:
    from latcodec.bench.contenders import Settings
    from latcodec.bench.documents import Documents
    from latcodec.bench.measurement import Row
    from latcodec.bench.store import Store
    from latcodec.bench.team import SharedBench

MEASUREMENT = "Measurement"
DOWNLOAD = "Download"
NOTES = """\b
torchrun --nproc-per-node N -m latcodec bench ... shares the pictures out over N processes."""
EPILOG = examples(
    "latcodec bench                                     the photographs of scikit-image",
    "latcodec bench pictures/ -o report/ --rates 4",
    "latcodec bench pictures/ --codecs pln:kappa=16,vbq --anchors jpeg,avif",
    "latcodec bench --fetch kodak pictures/",
    notes=NOTES,
)


@click.command(
    cls=HeadedCommand, epilog=EPILOG, short_help="Measure codecs beside JPEG, WebP, AVIF, JPEG 2000 and JPEG XL."
)
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@option(
    CODEC, "--codecs", show_default=f"{backends.DEFAULT}, or that of --weights FILE", metavar="LIST",
    help="Comma-separated, with options: vbq:quantizer=uniform,pln:kappa=16; all, or none.",
)  # fmt: skip
@option(
    CODEC, "--anchors", default="all", show_default=True, metavar="LIST",
    help="jpeg, jpeg-progressive, webp, avif, jpeg2000, jpegxl; all that run here, or none.",
)  # fmt: skip
@weights_option
@option(
    MEASUREMENT, "--lambdas", metavar="LIST",
    help="Lambdas of the codecs, 0.1 to 20 or, with some codecs, 41; comma-separated.",
)  # fmt: skip
@option(
    MEASUREMENT, "--rates", type=click.IntRange(1, 64), metavar="N",
    help="The number of settings of each codec and anchor; 8 otherwise.",
)  # fmt: skip
@option(
    MEASUREMENT, "--reps", type=click.IntRange(1), default=1, show_default=True,
    help="Repetitions of each measurement; medians are shown.",
)  # fmt: skip
@option(OUTPUT, "-o", "--output", metavar="REPORT", help="A folder for index.html, charts, results.json and .tsv.")
@option(
    OUTPUT, "-f", "--force", is_flag=True,
    help="Measure again what REPORT already holds; write into any folder.",
)  # fmt: skip
@option(OUTPUT, "--readme", metavar="FILE", help="Also renew the short table between FILE's markers, and its figure.")
@option(OUTPUT, "--results", "results_page", metavar="FILE", help="Also renew the page of all tables, docs/results.md.")
@option(DOWNLOAD, "--fetch", type=click.Choice(["kodak"]), help="Download these pictures into PATH; measure nothing.")
@option(DOWNLOAD, "--fetch-from", metavar="URL", help="Another server for --fetch.")
@option(MESSAGES, "--json", "as_json", is_flag=True, help="Print the results as one JSON object to stdout.")
@quiet_option
@device_option
@threads_option
@click.pass_context
def bench(context: click.Context, **arguments: Any) -> None:
    """Measure codecs on pictures and folders, beside JPEG, WebP, AVIF, JPEG 2000 and JPEG XL: size, quality, time.

    Without PATH, measure on the photographs that come with scikit-image. A run that was stopped goes on when the same
    command is given again: rows that REPORT holds are kept.
    """
    command, team = BenchCommand(**arguments), parallel.current_team()
    if command.fetch or command.fetch_from:
        team.decide(command.download, lambda _: None, lambda _: None)
    elif not command.run(team, _command_line(context, team.world)):
        context.exit(1)


@dataclass(frozen=True)
class BenchPlan:
    """What is measured, and where rows are kept; store: None without a report."""

    shared: SharedBench
    store: Store | None

    def instructions(self) -> dict[str, Any]:
        """Return what the other processes of a team need to know, as JSON."""
        return self.shared.instructions()


@dataclass(frozen=True)
class BenchCommand:
    """The arguments of `latcodec bench`, under the names of its options."""

    paths: tuple[str, ...]
    codecs: str | None
    anchors: str
    lambdas: str | None
    rates: int | None
    output: str | None
    reps: int
    threads: int | None
    device: str
    weights: str | None
    force: bool
    as_json: bool
    quiet: bool
    readme: str | None
    results_page: str | None
    fetch: str | None
    fetch_from: str | None

    def run(self, team: parallel.Team, command_line: str) -> bool:
        """Measure, and report in the first process; return whether there was no problem."""
        from latcodec.bench.team import assist

        problems = Problems(silent=team.rank > 0)
        plan = team.decide(partial(self.plan, team, problems), BenchPlan.instructions, _as_received)
        if team.rank:
            settings = self.settings(team)
            assist(team, plan, contenders_of(self.codecs, self.anchors, settings, problems), settings, problems.lines)
            return True
        rows = self.measure(plan, team, problems)
        self.publish(plan, self.assemble(plan, rows, team, command_line, problems), problems)
        return not problems.lines

    @cached_property
    def documents(self) -> Documents:
        """The documents to renew."""
        from latcodec.bench.documents import Documents

        readme = None if self.readme is None else Path(self.readme)
        return Documents(readme, None if self.results_page is None else Path(self.results_page))

    def settings(self, team: parallel.Team) -> Settings:
        """Return how to measure; sets the threads and the GPU of this process too."""
        from latcodec.bench.contenders import Settings

        lambdas = lambdas_of(self.lambdas, self.rates)
        device = runtime.pick_device(self.device)
        settings = Settings(lambdas, self.rates, self.reps, self.threads, device, self.weights)
        team.select_gpu(self.device)
        if self.threads is not None:
            from latcodec.bench import anchors

            runtime.set_threads(self.threads)
            anchors.set_threads(self.threads)
        return settings

    def plan(self, team: parallel.Team, problems: Problems) -> BenchPlan:
        """Return what is measured, after every check that needs no measurement."""
        from latcodec.bench.documents import Documents
        from latcodec.bench.run import Bench, NoRows
        from latcodec.bench.team import SharedBench

        if self.documents != Documents() and team.world > 1:
            name = "--readme" if self.readme else "--results"
            raise OptionError(f"{name}: several processes slow each other; times to publish are measured alone")
        settings = self.settings(team)
        contenders = contenders_of(self.codecs, self.anchors, settings, problems)
        subjects = subjects_of(self.paths, problems)
        if not contenders or not subjects:
            raise OptionError(f"nothing to measure: no {'picture' if contenders else 'codec or anchor'} is left")
        self.documents.check()
        store = None
        if self.output is not None:
            store = open_store(Path(self.output), settings, self.force, team.world, problems)
        return BenchPlan(SharedBench(Bench(subjects, contenders, settings), store or NoRows()), store)

    def measure(self, plan: BenchPlan, team: parallel.Team, problems: Problems) -> list[Row]:
        """Return the rows of all processes; each is kept in the report as soon as it is there."""
        bench = plan.shared.bench
        rows: list[Row] = []
        keeper = RowKeeper(plan.store, bench, problems)
        try:
            with progress(bench.row_count, self.quiet) as bar:
                for row in plan.shared.rows(team):
                    bar.begin(row.codec)
                    rows.append(row)
                    keeper.keep(row)
                    bar.advance(f"{row.codec}  {row.file}")
            for line in dict.fromkeys(plan.shared.problems):
                if line not in problems.lines:
                    problems.add(line)
        except KeyboardInterrupt:
            if keeper.is_open:
                kept = f"{len(rows)} {_of_total(bench.row_count)} kept"
                click.echo(f"latcodec: {self.output}: {kept}; the same command goes on", err=True)
            raise
        finally:
            keeper.close()
        return rows

    def assemble(
        self, plan: BenchPlan, rows: list[Row], team: parallel.Team, command_line: str, problems: Problems
    ) -> dict[str, Any]:
        """Return the record of the results; print notes on pictures and problems with rows."""
        from latcodec.bench import results as bench_results

        bench = plan.shared.bench
        for subject in bench.subjects if not self.quiet else ():
            if subject.notes:
                click.echo(f"{subject.file}: {', '.join(subject.notes)}", err=True)
        if team.world > 1 and len(rows) < bench.row_count:
            problems.add(f"{bench.row_count - len(rows)} {_of_total(bench.row_count)} missing")
        results = bench_results.assemble(bench, rows, command_line, problems.lines)
        if team.world > 1:
            results["environment"]["processes"] = f"{team.world} at once: times are those of shared processors"
        for row in rows:
            if row.bugs:
                problems.add(f"{row.file}: {row.codec}, {row.setting}: {row.bugs}")
        return results

    def publish(self, plan: BenchPlan, results: dict[str, Any], problems: Problems) -> None:
        """Write the report and the documents, and print the results."""
        from latcodec.bench.subjects import SubjectPictures

        folder = Path(self.output) if self.output is not None and plan.store is not None else None
        if folder is not None:
            pictures = SubjectPictures(plan.shared.bench.subjects, plan.shared.bench.contenders)
            folder = folder if write_report(folder, results, pictures, self.quiet, problems) else None
        renew_documents(self.documents, results, problems)
        if self.as_json:
            click.echo(text.json_line(results))
        elif not self.quiet:
            show_results(results, folder)

    def download(self) -> None:
        """Download the pictures of --fetch."""
        if self.fetch is None or len(self.paths) != 1:
            raise OptionError("--fetch kodak DIR downloads into one folder; name it, and nothing else")
        from latcodec.bench import kodak

        folder = self.paths[0]
        paths = kodak.fetch(Path(folder), url=self.fetch_from or kodak.URL, force=self.force, say=self._message)
        self._message(f"{folder}: all {len(paths)} Kodak pictures are here, every SHA-256 is right")

    def _message(self, line: str) -> None:
        if not self.quiet:
            click.echo(line, err=True)


def _as_received(instructions: dict[str, Any]) -> Any:
    return instructions


def _of_total(rows: int) -> str:
    return f"of {rows} row{'s' if rows != 1 else ''}"


def _command_line(context: click.Context, processes: int) -> str:
    """Return the command that would measure the same again: the options given, without defaults."""
    words = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    words += ["latcodec", "bench"]
    for parameter in context.command.params:
        value = context.params[parameter.name]
        if context.get_parameter_source(parameter.name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if isinstance(parameter, click.Argument):
            words += value
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            words.append(max(parameter.opts, key=len))
        else:
            words += [max(parameter.opts, key=len), str(value)]
    return shlex.join(words)
