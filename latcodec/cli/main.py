"""The command line: parse, call, print. Codec, torch and rich are imported by the command that needs them, not here."""

from __future__ import annotations

import io
import signal
import sys
import time
from typing import Any

import click

from latcodec import __version__, backends, files, parallel, runtime, text
from latcodec.cli.batch import Done, Manners
from latcodec.cli.bench import bench
from latcodec.cli.jobs import decided, meter, run
from latcodec.cli.options import finite, json_option, manners_options, max_pixels_option, network_options
from latcodec.cli.train import train
from latcodec.container import MAGIC
from latcodec.errors import LatcodecError, OptionError, TargetError
from latcodec.images.formats import DEFAULT_FORMAT, PICTURE_SUFFIXES, WRITABLE, format_of_suffix
from latcodec.rates import METRICS

EPILOG = """\b
Exit codes: 0 all done; 1 at least one input failed, or its file misses the --bpp, --psnr or --size;
2 the command was refused before any work; 130 interrupted. Data and --json go to stdout,
everything for people to stderr. "-" is stdin or stdout."""


class Root(click.Group):
    """Turns our own errors into one line and an exit code; a bug keeps its traceback, click handles a closed pipe."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            message, code = "interrupted", 130
        except OptionError as error:
            message, code = str(error), 2
        except BrokenPipeError:
            raise
        except (LatcodecError, OSError) as error:
            message, code = text.error_line(error), 1
        click.echo(f"latcodec: {message}", err=True)
        ctx.exit(code)


@click.group(
    cls=Root, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="latcodec")
def cli() -> None:
    """A learned image codec: small .lc files that decode to the same picture everywhere."""


@cli.command(epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="OUT", help="File, folder or -; name.lc beside the input otherwise.")
@click.option(
    "--codec", "codec_name", metavar="NAME", show_default=f"{backends.DEFAULT}, or that of --weights FILE",
    help=", ".join(b.name for b in backends.BACKENDS),
)  # fmt: skip
@click.option("-O", "options", multiple=True, metavar="KEY=VALUE", help="An option of the codec; may be repeated.")
@click.option(
    "--effort", type=click.IntRange(0, 9), metavar="0...9", help="More time for smaller files, if the codec can."
)
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), callback=finite,
    help="End the search of an --effort by then; with --bpp, --psnr or --size that of all its trials.",
)  # fmt: skip
@click.option(
    "--lambda",
    "lmbda",
    type=click.FloatRange(0.1, 41.4),
    callback=finite,
    help="Price of a bit, to 20 or 41; default 1.",
)
@click.option("-q", "--quality", type=click.FloatRange(1, 100), callback=finite, help="The same axis for people.")
@click.option(
    "--bpp", type=click.FloatRange(0, min_open=True), callback=finite, help="Search: at most so many bits per pixel."
)
@click.option("--psnr", type=click.FloatRange(0, min_open=True), callback=finite, help="Search: at least so many dB.")
@click.option("--size", "size_bytes", type=click.IntRange(1), metavar="BYTES", help="Search: at most so many bytes.")
@click.option(
    "--metric",
    type=click.Choice(METRICS),
    help="What the codec was trained for: mse, or ms-ssim, which eyes judge by more.",
)
@click.option("--no-verify", is_flag=True, help="Do not decode the integers back before the file is written.")
@click.option("--strip", is_flag=True, help="Leave EXIF, XMP and the ICC profile out.")
@network_options
@manners_options
def encode(
    inputs, output, codec_name, options, effort, max_seconds, lmbda, quality, bpp, psnr, size_bytes, metric, no_verify,
    strip, device, threads, weights, max_pixels, force, skip_existing, as_json, verbose, quiet,
):  # fmt: skip
    """Encode pictures or folders of pictures to .lc files.

    Where --bpp, --psnr or --size cannot be met the nearest file is written and the exit code is 1.
    """
    rates = {"--lambda": lmbda, "--quality": quality, "--bpp": bpp, "--psnr": psnr, "--size": size_bytes}
    given = [name for name, value in rates.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} exclude each other; give one")
    manners, team = Manners(as_json, quiet, verbose), parallel.current_team()
    flags = {"effort": effort, "max_seconds": None if max_seconds is None else f"{max_seconds:g}", "metric": metric}
    flags = {name: f"{name}={value}" for name, value in flags.items() if value is not None}

    def full_name() -> str:
        from latcodec.settings import choose_codec

        name = choose_codec(codec_name, weights)
        parts = [*options, *flags.values()]
        return name + "".join(("," if ":" in name or i else ":") + part for i, part in enumerate(parts))

    def plan() -> list[files.Job]:
        suffixes = PICTURE_SUFFIXES
        jobs = files.plan_outputs(inputs, output, ".lc", suffixes=suffixes, force=force, skip_existing=skip_existing)
        _check_stdout(jobs, manners)
        from latcodec.settings import check_codec

        check_codec(full_name(), flags)
        runtime.pick_device(device)
        return jobs

    jobs = decided(team, plan)
    from latcodec import api as codec
    from latcodec import images

    team.select_gpu(device)
    if threads is not None:
        runtime.set_threads(threads)
    settings = codec.EncodeSettings(
        codec=full_name(), lmbda=lmbda, quality=quality, bpp=bpp, psnr=psnr, size_bytes=size_bytes,
        device=device, weights=weights, verify=not no_verify, strip=strip,
    )  # fmt: skip

    def work(job: files.Job) -> Done:
        start = time.perf_counter()
        if job.source is None:
            data = files.read_bytes(None, _limit_bytes(max_pixels))
            source, bytes_in = io.BytesIO(data), len(data)
            source.name = "stdin"
        else:
            source, bytes_in = job.source, job.source.stat().st_size
        picture = images.read_picture(source, max_pixels=max_pixels)
        with meter(len(jobs), manners, team) as tell:
            encoded = codec.encode_picture(picture, settings, tell)
        with files.open_output(job.target, force=force) as file:
            file.write(encoded.data)
        seconds = {**encoded.seconds, "total": time.perf_counter() - start}
        height, width = picture.pixels.shape[:2]
        notes = (*picture.notes, *(note for note in encoded.notes if note != encoded.missed))
        record = {
            "bytes_in": bytes_in, "bytes_out": len(encoded.data), "width": width, "height": height,
            "rate_index": encoded.rate_index, "lambda": encoded.lmbda, "bpp": encoded.bpp, "psnr_db": encoded.psnr_db,
            "estimated_bits": encoded.estimated_bits, "trials": encoded.trials, "seconds": seconds, "notes": notes,
        } | ({"details": encoded.details} if encoded.details else {})  # fmt: skip
        line = f"{text.size_change(bytes_in, len(encoded.data))}, {encoded.bpp:.2f} bpp, lambda {encoded.lmbda:.3g}"
        whole = encoded.details.get("lossless", False)
        line += ", without loss" if whole else f", {encoded.psnr_db:.2f} dB" if encoded.psnr_db is not None else ""
        line += f", {encoded.trials} trials" if encoded.trials > 1 else ""
        more = f"{width}x{height}, rate index {encoded.rate_index}, estimate {encoded.estimated_bits / 8:.0f} B"
        more = "\n".join([f"{more}, {text.stage_times(encoded.seconds)}", *text.record_lines(encoded.details)])
        error = TargetError(encoded.missed) if encoded.missed else None
        return Done(record, f"{line}, {seconds['total']:.2f} s", more, notes, error)

    run(jobs, work, manners, team)


@cli.command(epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="OUT", help="File, folder or -; name.png beside the input otherwise.")
@click.option(
    "--format", "picture_format", type=click.Choice(list(WRITABLE), case_sensitive=False),
    help="Format to write; the suffix of OUT decides otherwise, or png.",
)  # fmt: skip
@click.option("--ignore-checksum", is_flag=True, help="Show what is left of a damaged file, if its codec can.")
@network_options
@manners_options
def decode(
    inputs, output, picture_format, ignore_checksum,
    device, threads, weights, max_pixels, force, skip_existing, as_json, verbose, quiet,
):  # fmt: skip
    """Decode .lc files or folders of them to pictures."""
    manners, team = Manners(as_json, quiet, verbose), parallel.current_team()
    suffix = WRITABLE[picture_format or DEFAULT_FORMAT].suffixes[0]

    def plan() -> list[files.Job]:
        suffixes = files.CODED_SUFFIXES
        jobs = files.plan_outputs(inputs, output, suffix, suffixes=suffixes, force=force, skip_existing=skip_existing)
        _check_stdout(jobs, manners)
        return jobs

    jobs = decided(team, plan)
    from latcodec import api as codec
    from latcodec import images

    runtime.pick_device(device)
    team.select_gpu(device)
    formats = {}
    for job in jobs:
        by_suffix = picture_format is None and job.target is not None and not files.is_special(job.target)
        formats[job] = format_of_suffix(job.target) if by_suffix else picture_format or DEFAULT_FORMAT
    if threads is not None:
        runtime.set_threads(threads)

    def work(job: files.Job) -> Done:
        start = time.perf_counter()
        data = files.read_bytes(job.source, _limit_bytes(max_pixels), magic=MAGIC)
        picture = codec.decode_picture(
            data, device=device, weights=weights, max_pixels=max_pixels, ignore_checksum=ignore_checksum
        )
        decoded = time.perf_counter()
        with files.open_output(job.target, force=force) as file:
            notes = (*picture.notes, *images.write_picture(picture, file, formats[job]))
            bytes_out = file.seek(0, 2)
        end = time.perf_counter()
        seconds = {"decode": decoded - start, "write": end - decoded, "total": end - start}
        height, width = picture.pixels.shape[:2]
        record = {
            "bytes_in": len(data), "bytes_out": bytes_out, "width": width, "height": height,
            "format": formats[job], "seconds": seconds, "notes": notes,
        }  # fmt: skip
        line = f"{text.size_change(len(data), bytes_out)}, {width}x{height}, {seconds['total']:.2f} s"
        return Done(record, line, text.stage_times(seconds), notes)

    run(jobs, work, manners, team)


@cli.command(epilog=EPILOG)
@click.argument("inputs", nargs=-1, required=True, metavar="FILE...")
@click.option("--check", is_flag=True, help="Only verify checksums and lengths; exit code 1 for damage.")
@json_option
@click.option("--channels", is_flag=True, help="Also the bits of each latent channel; needs the weights.")
@click.option("--weights", metavar="PATH", help="A weights file or a folder of them.")
@max_pixels_option
def info(inputs, check, as_json, channels, weights, max_pixels):
    """Say what the headers of .lc files say, without decoding; of a damaged file as far as it can be read."""
    from latcodec import container

    def work(job: files.Job) -> Done:
        data = files.read_bytes(job.source, _limit_bytes(max_pixels), magic=MAGIC)
        if check:
            container.unpack(data, max_pixels=max_pixels)
            return Done({"check": "ok"}, "ok")
        from latcodec import api as codec

        record = codec.info(data, max_pixels=max_pixels, ignore_checksum=True)
        if channels:
            record["channel_bits"] = codec.channel_bits(data, weights=weights, max_pixels=max_pixels)
        return Done(record, "\n".join(["", *text.record_lines(record)]))

    found = [source for name in inputs for source, _ in files.expand(name, files.CODED_SUFFIXES)]
    jobs = [files.Job(source, None) for source in found]
    run(jobs, work, Manners(as_json, transform=False))


cli.add_command(train)
cli.add_command(bench)


def _check_stdout(jobs: list[files.Job], manners: Manners) -> None:
    if any(job.target is None for job in jobs):
        if manners.json:
            raise OptionError("--json and the output itself cannot share standard output; name a file with -o")
        if sys.stdout.isatty():
            raise OptionError("standard output is a terminal; name a file with -o, or pipe it")


def _limit_bytes(max_pixels: int) -> int:
    """Of an input: 16 bits RGBA twice over, and room for profiles; no sound file of so many pixels is larger."""
    return 16 * max_pixels + (1 << 26)


def _terminate(number: int, frame: Any) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Entry point of the console script. SIGTERM unwinds like Ctrl-C, so that temporary files are removed."""
    signal.signal(signal.SIGTERM, _terminate)
    cli(prog_name="latcodec")
