"""Output appears whole or not at all, and input is read in bounded memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latcodec import files
from latcodec.errors import FormatError, OptionError
from latcodec.files import atomic_writer

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, so that the tests can speak in relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def test_read_bytes_is_bounded(here):
    Path("f").write_bytes(b"abc" * 1000)
    assert files.read_bytes(Path("f"), 3000) == b"abc" * 1000
    with pytest.raises(FormatError, match="2999 bytes"):
        files.read_bytes(Path("f"), 2999)


def test_read_bytes_reads_little_of_another_format(here):
    Path("movie").write_bytes(b"RIFF" + bytes(5 << 20))
    assert len(files.read_bytes(Path("movie"), 1 << 30, magic=b"\xcaLC\n")) == 1 << 20


def test_written_whole(here):
    with atomic_writer("a.lc") as file:
        file.write(b"new")
        assert not Path("a.lc").exists()
    assert Path("a.lc").read_bytes() == b"new"
    assert os.listdir() == ["a.lc"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_an_exception_leaves_what_was_there(here, error, force):
    if force:
        Path("a.lc").write_bytes(b"old")
    with pytest.raises(error), atomic_writer("a.lc", force=force) as file:
        file.write(b"half")
        raise error
    assert os.listdir() == (["a.lc"] if force else [])
    assert not force or Path("a.lc").read_bytes() == b"old"


def test_no_overwriting_without_force(here):
    Path("a.lc").write_bytes(b"old")
    with pytest.raises(OptionError, match="a.lc: exists"), atomic_writer("a.lc"):
        raise AssertionError("the block must not run")
    with atomic_writer("a.lc", force=True) as file:
        file.write(b"new")
    assert Path("a.lc").read_bytes() == b"new"


def test_an_error_names_the_file_that_was_asked_for(here):
    with pytest.raises(FileNotFoundError) as error, atomic_writer("no/such/folder/a.lc"):
        raise AssertionError("the block must not run")
    assert error.value.filename == "no/such/folder/a.lc"


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(here, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links on this file system")))
    with pytest.raises(OptionError, match="exists"), atomic_writer("a.lc") as file:
        file.write(b"mine")
        Path("a.lc").write_bytes(b"theirs")
    assert os.listdir() == ["a.lc"]
    assert Path("a.lc").read_bytes() == b"theirs"
    with atomic_writer("b.lc") as file:
        file.write(b"mine")
    assert Path("b.lc").read_bytes() == b"mine"


@posix
def test_permissions(here):
    old = os.umask(0o027)
    try:
        with atomic_writer("a.lc"):
            pass
    finally:
        os.umask(old)
    assert Path("a.lc").stat().st_mode & 0o777 == 0o640
    os.chmod("a.lc", 0o604)
    with atomic_writer("a.lc", force=True):
        pass
    assert Path("a.lc").stat().st_mode & 0o777 == 0o604


@posix
def test_a_symbolic_link_is_written_through(here):
    touch("there/real.lc")
    os.symlink("there/real.lc", "a.lc")
    with atomic_writer("a.lc", force=True) as file:
        file.write(b"new")
    assert Path("a.lc").is_symlink() and Path("there/real.lc").read_bytes() == b"new"


@posix
def test_devices_and_pipes_are_written_directly(here):
    with atomic_writer("/dev/null") as file:
        file.write(b"gone")
    assert Path("/dev/null").is_char_device()
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic_writer("pipe") as file:
        file.write(b"through")
    assert os.read(reader, 100) == b"through" and Path("pipe").is_fifo()
    os.close(reader)


HALF = """
import sys, time
from latcodec import files
from latcodec.cli import main as cli

@cli.cli.command("half")
def half():
    with files.atomic_writer("a.lc", force=True) as file:
        file.write(b"half" * 100_000)
        file.flush()
        print("written", flush=True)
        time.sleep(60)

sys.argv[1:] = ["half"]
cli.main()
"""


@posix
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_killed_in_the_middle_of_a_write(here, number, code):
    Path("a.lc").write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    # Whoever runs the tests in the background may have them ignore SIGINT, which a child inherits.
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(
        [sys.executable, "-c", HALF], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        preexec_fn=listens,
    )  # fmt: skip
    assert process.stdout.readline() == b"written\n"
    assert sum(path.stat().st_size for path in here.iterdir()) > 400_000
    start = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert time.monotonic() - start < 20
    assert Path("a.lc").read_bytes() == b"old"
    if number != signal.SIGKILL:
        assert os.listdir() == ["a.lc"]
        assert errors == (b"latcodec: interrupted\n" if number == signal.SIGINT else b"")
