"""Options of encode with the real codecs: wrong ones are refused by the names of their flags, before any work."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from latcodec import api as codec
from latcodec import container, images, weights
from latcodec.cli import main as cli
from latcodec.errors import OptionError
from latcodec.settings import check_codec, choose_codec

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = Path(cli.__file__).parents[2] / "weights"


@pytest.fixture
def run(tmp_path, monkeypatch, photograph):
    """Runs encode in a folder with a.png; returns exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photograph[:40, :60]).save("a.png")

    def invoke(arguments):
        result = CliRunner().invoke(cli.cli, ["encode", "a.png", "--device", "cpu", *arguments.split()])
        return result.exit_code, result.stderr

    return invoke


@pytest.fixture
def no_work(monkeypatch):
    monkeypatch.setattr(images, "read_picture", lambda *_, **__: pytest.fail("a picture was read"))


SEARCHING = "hyperprior, nc-vae, hyperprior-context"


@pytest.mark.parametrize(
    "arguments, line",
    [
        ("--codec vbq --effort 3", "--effort: vbq has none; it works with hyperprior, pln, nc-vae, hyperprior-context"),
        ("--codec pln --max-seconds 5", f"--max-seconds: pln has none; it works with {SEARCHING}"),
        ("--codec pln --effort 5 --max-seconds 5", f"--max-seconds: pln has none; it works with {SEARCHING}"),
        ("--codec vbq -O quantizer=uniform --effort 0",
         "--effort: vbq has none; it works with hyperprior, pln, nc-vae, hyperprior-context"),
        ("--max-seconds 5",
         "--max-seconds: effort 0 has no search that it could end; add --effort 2 or more"),
        ("--max-seconds 5 --effort 1",
         "--max-seconds: effort 1 has no search that it could end; add --effort 2 or more"),
        ("--max-seconds 5 --effort 0 --codec nc-vae",
         "--max-seconds: effort 0 has no search that it could end; add --effort 1 or more"),
        ("-O max_seconds=5 -O effort=0",
         "option max_seconds: effort 0 has no search that it could end; add effort=2 or more"),
        ("--codec vbq --metric ms-ssim", "--metric: vbq has none; it works with hyperprior-context"),
        ("-O metric=taste", "metric taste is unknown; there are: mse, ms-ssim"),
        ("-O haste=5", "option 'haste' is unknown; there are: effort, max_seconds, lossless, metric"),
    ],
)  # fmt: skip
def test_an_option_that_does_nothing_is_refused(run, no_work, arguments, line):
    assert run(arguments) == (2, f"latcodec: {line}\n")
    assert not Path("a.lc").exists()


@pytest.mark.parametrize("arguments", ["--max-seconds inf --effort 2", "--max-seconds nan --effort 2"])
def test_no_time_at_all(run, no_work, arguments):
    code, said = run(arguments)
    assert code == 2 and "is not a number" in said


@pytest.mark.parametrize("name", ["hyperprior:effort=2", "hyperprior:max_seconds=0", "pln:effort=0", "vbq", "nc-vae"])
def test_what_does_something_is_not(name):
    check_codec(name)
    check_codec("hyperprior:effort=2,max_seconds=5", ["effort", "max_seconds"])


def test_a_weights_file_names_the_codec(run):
    assert run(f"--weights {WEIGHTS / 'nc-vae.safetensors'}")[0] == 0
    assert codec.info(Path("a.lc").read_bytes())["codec"] == "nc-vae"
    code, said = run(f"--weights {WEIGHTS / 'vbq.safetensors'} -O quantizer=uniform -f")
    assert code == 0, said
    assert codec.info(Path("a.lc").read_bytes())["codec"] == "vbq"


def test_a_metric_chooses_the_weights(run):
    """Which a decoder finds by the file; without one they are those for squared error."""
    used = {}
    for metric in ("", "mse", "ms-ssim"):
        code, said = run(f"-f --metric {metric}" if metric else "-f")
        assert code == 0, said
        data = Path("a.lc").read_bytes()
        used[metric] = codec.info(data)["weights"]
        assert codec.decode(data).shape == (40, 60, 3)
    assert used[""] == used["mse"] != used["ms-ssim"]
    assert used["ms-ssim"] == weights.load("hyperprior-context", metric="ms-ssim").id.hex()
    path = WEIGHTS / "hyperprior-context.safetensors"
    code, said = run(f"-f --metric ms-ssim --weights {path}")
    assert code == 1 and "trained for ms-ssim not found" in said and said.count("\n") == 1


def test_a_folder_of_weights_does_not(run):
    assert choose_codec(None, str(WEIGHTS)) == choose_codec(None, None) == "hyperprior-context"


def test_a_codec_and_weights_of_another(run, no_work):
    path = WEIGHTS / "nc-vae.safetensors"
    line = f"latcodec: {path}: weights of nc-vae, not of pln; name codec nc-vae, or weights of pln\n"
    assert run(f"--codec pln --effort 2 --weights {path}") == (2, line)
    assert choose_codec("nc-vae:effort=2", str(path)) == "nc-vae:effort=2"
    with pytest.raises(OptionError, match="not of hyperprior-context"):
        choose_codec("hyperprior-context", str(path))


def test_what_is_no_weights_file_is_one_line(run, no_work):
    code, said = run("--weights a.png")
    assert code == 1 and said.startswith("latcodec: a.png: not a weights file") and said.count("\n") == 1


def test_a_size_that_cannot_be_had_is_told_and_the_smallest_file_written(run):
    sizes = []
    for lmbda in (20, 41):
        run(f"--lambda {lmbda} -f")
        sizes.append(Path("a.lc").stat().st_size)
    size = min(sizes)
    code, said = run(f"--size {size - 1} -f")
    assert code == 1 and container.unpack(Path("a.lc").read_bytes()).rate_index == 0
    assert size == Path("a.lc").stat().st_size
    assert said.splitlines()[-1] == (
        f"latcodec: a.png: {size - 1} bytes cannot be reached; this is the smallest file: {size} bytes"
    )
    assert run("--size 1 --codec vbq -f")[1].splitlines()[-1].startswith("latcodec: a.png: 1 byte cannot be reached; ")
    code, said = run("--bpp 0.01 -f")
    what = f"{8 * size / 2400:.3g} bpp, {size} bytes"
    assert code == 1 and said.splitlines()[-1] == (
        f"latcodec: a.png: 0.01 bpp cannot be reached; this is the smallest file: {what}"
    )
    code, said = run("--psnr 90 -f")
    assert code == 1 and "latcodec: a.png: 90 dB cannot be reached; this is the best quality: " in said
    code, said = run(f"--size {size + 1} -f")
    assert code == 0 and "cannot" not in said
