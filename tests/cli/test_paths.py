"""Outputs are planned without losing a file."""

import os
from pathlib import Path

import pytest

from latcodec.cli.paths import Job, plan_outputs
from latcodec.errors import OptionError
from latcodec.images.formats import PICTURE_SUFFIXES

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def plan(inputs, output=None, **how):
    return plan_outputs(inputs, output, ".lc", suffixes=PICTURE_SUFFIXES, **how)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, so that the tests can speak in relative paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def test_beside_the_input(here):
    touch("a.png", "deep/b.JPEG", "scan.2024")
    assert plan(["a.png", "deep/b.JPEG", "scan.2024"]) == [
        Job(Path("a.png"), Path("a.lc")),
        Job(Path("deep/b.JPEG"), Path("deep/b.lc")),
        Job(Path("scan.2024"), Path("scan.2024.lc")),
    ]


def test_one_file_to_one_file_or_into_a_folder(here):
    touch("a.png", "there/x")
    assert plan(["a.png"], "b.xyz") == [Job(Path("a.png"), Path("b.xyz"))]
    assert plan(["a.png"], "there") == [Job(Path("a.png"), Path("there/a.lc"))]
    assert plan(["a.png"], "new/") == [Job(Path("a.png"), Path("new/a.lc"))]


def test_a_folder_is_mirrored(here):
    touch("in/b.png", "in/a.webp", "in/deep/er/c.jpg", "in/notes.txt", "in/.hidden.png", "in/.trash/d.png")
    expected = ["out/a.lc", "out/b.lc", "out/deep/er/c.lc"]
    assert [str(job.target) for job in plan(["in"], "out")] == expected
    assert [str(job.target) for job in plan(["in"])] == ["in/a.lc", "in/b.lc", "in/deep/er/c.lc"]


def test_streams(here):
    touch("a.png")
    assert plan(["-"]) == [Job(None, None)]
    assert plan(["-"], "b.lc") == [Job(None, Path("b.lc"))]
    assert plan(["a.png"], "-") == [Job(Path("a.png"), None)]


def test_a_missing_input_is_left_to_fail_alone(here):
    touch("a.png")
    assert len(plan(["a.png", "gone.png"], "out")) == 2


@pytest.mark.parametrize(
    "inputs, output, what",
    [
        (["a.png", "a.jpg"], None, "a.lc: both a.png and a.jpg"),
        (["a.png", "in/a.png"], "out", "both a.png and in/a.png"),
        (["a.png", "./a.png"], None, "both a.png and a.png"),
        (["in", "in2"], "out", "both in/a.png and in2/a.png"),
        (["a.png"], "a.png", "is an input"),
        (["a.png"], "in/../a.png", "is an input"),
        (["a.png"], "link.lc", "is an input"),
        (["old.png"], None, "old.lc: exists; --force"),
        (["a.png"], "file", "file: exists; --force"),
        (["in"], "file", "is not a folder"),
        (["a.png", "old.png"], "file", "is not a folder"),
        (["folder.png"], None, "folder.lc: is a folder"),
        (["empty"], "out", "holds no file that ends in"),
        (["a.png", "-"], None, "cannot share standard output"),
        (["-", "-"], None, "cannot share standard output"),
        (["a.png", "-"], "out", "stdin has no name"),
        (["in", "a.png"], "-", "cannot share standard output"),
    ],
)
def test_refusals(here, inputs, output, what):
    touch(
        "a.png", "a.jpg", "in/a.png", "in/b.png", "in2/a.png", "old.png", "old.lc", "file", "folder.png", "folder.lc/x"
    )
    Path("empty").mkdir()
    os.symlink("a.png", "link.lc")
    with pytest.raises(OptionError) as error:
        plan(inputs, output)
    assert what in str(error.value)


def test_a_folder_of_which_some_is_done_is_refused_as_a_whole(here):
    touch(*(f"in/{name}.png" for name in "abcdef"), "out/b.lc", "out/c.lc")
    with pytest.raises(
        OptionError, match=r"^2 of 6 outputs exist: out/b.lc, out/c.lc; nothing .*\(-f\) overwrites them"
    ):
        plan(["in"], "out")
    touch("out/d.lc", "out/e.lc", "out/f.lc")
    with pytest.raises(OptionError, match=r"^5 of 6 outputs exist: out/b.lc, out/c.lc, out/d.lc and 2 more; "):
        plan(["in"], "out")


def test_what_is_done_can_be_skipped(here):
    touch("in/a.png", "in/b.png", "out/b.lc")
    jobs = plan(["in"], "out", skip_existing=True)
    assert [(str(job.target), job.skip) for job in jobs] == [("out/a.lc", False), ("out/b.lc", True)]
    Path("out/a.lc").mkdir()
    with pytest.raises(OptionError, match="out/a.lc: is a folder"):
        plan(["in"], "out", skip_existing=True)
    with pytest.raises(OptionError, match="is an input"):
        plan(["in/a.png"], "in/a.png", skip_existing=True)


def test_force_overwrites_outputs_but_never_inputs(here):
    touch("old.png", "old.lc")
    assert plan(["old.png"], force=True) == [Job(Path("old.png"), Path("old.lc"))]
    with pytest.raises(OptionError, match="is an input"):
        plan(["old.lc"], "old.lc", force=True)
    with pytest.raises(OptionError, match="both"):
        plan(["old.png", "old.jpg"], force=True)


@posix
def test_devices_are_no_obstacle(here):
    touch("a.png")
    assert plan(["a.png"], "/dev/null") == [Job(Path("a.png"), Path("/dev/null"))]
