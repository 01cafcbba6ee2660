"""parallel.py: a team agrees, shares, speaks in turn and adds up; encode and bench under torchrun give what one process
gives."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from latcodec import parallel
from latcodec.bench import anchors, contenders, measurement
from latcodec.bench.run import Bench
from latcodec.bench.subjects import inspect
from latcodec.bench.team import SharedBench, assist
from latcodec.cli import main as cli
from latcodec.errors import LatcodecError
from latcodec.parallel import Team, current_team

pytestmark = pytest.mark.usefixtures("one_thread")
WORLD = 3


@pytest.fixture
def together():
    """Runs a function of a team in every process of one, as threads; returns what each returned or raised, by rank."""
    from torch.distributed import HashStore

    def run(function, world=WORLD):
        store = HashStore()
        store.set_timeout(timedelta(seconds=30))
        with ThreadPoolExecutor(world) as pool:
            futures = [pool.submit(function, Team(rank, world, store)) for rank in range(world)]
        return [future.exception() or future.result() for future in futures]

    return run


def test_every_job_once():
    for world in range(1, 6):
        shares = [Team(rank, world).local_share(range(13)) for rank in range(world)]
        assert sorted(job for share in shares for job in share) == list(range(13))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_nothing_is_asked():
    alone = Team()
    assert alone.local_share([1, 2]) == [1, 2] and alone.gather({"a": 1}) == [{"a": 1}] and list(alone.received()) == []
    made = object()
    assert alone.decide(lambda: made, None, None) is made
    with alone.print_lock():
        pass


def test_rank_0_decides_once_for_all(together):
    calls = []

    def work(one):
        def make():
            calls.append(one.rank)
            time.sleep(0.05)
            return {1, 2}

        return one.decide(make, sorted, set), one.decide(lambda: "second", str, str)

    assert together(work) == [({1, 2}, "second")] * WORLD and calls == [0]


def test_a_refusal_is_told_once(together):
    def make():
        raise LatcodecError("exists")

    first, *others = together(lambda one: one.decide(make, list, list))
    assert isinstance(first, LatcodecError)
    assert [(type(other), other.code) for other in others] == [(SystemExit, 0)] * (WORLD - 1)


def test_what_cannot_be_told_is_no_reason_to_wait(together):
    first, *others = together(lambda one: one.decide(object, lambda made: made, list))
    assert isinstance(first, TypeError) and all(isinstance(other, SystemExit) for other in others)


def test_posts_come_once_and_in_order_and_gather_is_the_last(together):
    def work(one):
        got = []
        for number in range(20 if one.rank else 0):
            one.send([one.rank, number, "\udcff ü"])
        for _ in one.wait_for_all() if one.rank == 0 else ():
            got.extend(one.received())
        return one.gather(one.rank), got

    (found, got), *others = together(work)
    assert found == [0, 1, 2] and others == [(None, [])] * 2
    for rank in (1, 2):
        assert [post for post in got if post[0] == rank] == [[rank, n, "\udcff ü"] for n in range(20)]
    assert len(got) == 40


def test_one_speaks_at_a_time(together):
    said = []

    def work(one):
        for _ in range(5):
            with one.print_lock():
                for part in range(4):
                    said.append((one.rank, part))
                    time.sleep(0.001)

    assert together(work) == [None] * WORLD
    lines = [said[i : i + 4] for i in range(0, len(said), 4)]
    assert len(lines) == 15 and all([part for _, part in line] == [0, 1, 2, 3] for line in lines)
    assert all(len({rank for rank, _ in line}) == 1 for line in lines)


def test_who_died_while_speaking_silences_nobody(monkeypatch):
    from torch.distributed import HashStore

    store = HashStore()
    store.set("print-lock", "2")
    monkeypatch.setattr(parallel, "LOCK_TIMEOUT_S", 0.05)
    with Team(0, 2, store).print_lock():
        pass
    assert store.get("print-lock") == b"2"


def test_the_others_being_gone_is_one_line():
    class Closed:
        def __getattr__(self, name):
            def call(*args):
                raise RuntimeError("Broken pipe\nand a stack")

            return call

    for act in (lambda one: one.gather(1), lambda one: one.decide(None, None, None), lambda one: one.send(1)):
        with pytest.raises(LatcodecError, match="^process 1 of 2: the others are gone: Broken pipe$"):
            act(Team(1, 2, Closed()))


@pytest.mark.parametrize("run_id, world, expected", [("x", "2", True), ("x", "1", False), (None, "2", False)])
def test_torchrun_is_known_by_its_run_id_and_its_company(monkeypatch, run_id, world, expected):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if run_id is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run_id)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert parallel.under_torchrun() == expected


def test_without_torchrun_there_is_no_team_and_no_torch(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")  # clusters set these in every shell
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert current_team().world == 1
    code = "import sys; from latcodec import parallel; parallel.current_team(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.fixture
def album(tmp_path, photograph, monkeypatch):
    """A folder with four pictures of album/, one in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    for number, name in enumerate(("a", "b", "sub/c", "d")):
        path = Path("album", f"{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[40 * number : 40 * number + 40, 100 : 160 + number]).save(path)
    return tmp_path


def alone(*arguments):
    return CliRunner().invoke(cli.cli, arguments)


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "latcodec"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


def pair(*arguments, late=1):
    """Two processes as torchrun would start them, without its agent; that of rank `late` a second after the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    started = {}
    for rank in (1 - late, late):
        started[rank] = subprocess.Popen(
            [sys.executable, "-m", "latcodec", *arguments], env=environment | {"RANK": str(rank)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(1 if rank != late else 0)
    # Both at once: neither may wait for a reader.
    with ThreadPoolExecutor(2) as pool:
        spoken = list(pool.map(lambda rank: started[rank].communicate(timeout=300), (0, 1)))
    return [(started[rank].returncode, *spoken[rank]) for rank in (0, 1)]


def coded(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def untimed(lines):
    records = [json.loads(line) for line in lines]
    return sorted(({k: v for k, v in r.items() if k not in ("seconds", "output")} for r in records), key=str)


def test_encode_under_torchrun(album):
    Path("album/bad.png").write_text("no picture")
    arguments = ("encode", "album", "--threads", "1", "--json", "-o")
    one, two = alone(*arguments, "one"), torchrun(*arguments, "two")
    assert one.exit_code == two.returncode == 1
    assert coded("one") == coded("two") and sorted(coded("two")) == ["a.lc", "b.lc", "d.lc", "sub/c.lc"]
    assert len(two.stdout.splitlines()) == 5 and untimed(one.stdout.splitlines()) == untimed(two.stdout.splitlines())
    said = [line for line in two.stderr.splitlines() if line.startswith("latcodec: ")]
    assert len(said) == 2 and said[-1].startswith("latcodec: 4 of 5 files done, 1 failed, "), two.stderr


def test_the_late_one_does_not_take_the_others_outputs_for_old_ones(album):
    (code, _, stderr), (other, *_) = pair("encode", "album", "--threads", "1", "-o", "out", late=1)
    assert code == other == 0 and "latcodec: 4 of 4 files done, 0 failed" in stderr
    assert len(coded("out")) == 4


def test_what_is_left_to_do_is_shared_out_evenly(album):
    Path("out/sub").mkdir(parents=True)
    for name in ("a", "d"):
        Path("out", f"{name}.lc").write_bytes(b"mine")
    told = pair("encode", "album", "--threads", "1", "-o", "out", "--skip-existing", "--json")
    assert [code for code, *_ in told] == [0, 0], told
    records = [[json.loads(line) for line in stdout.splitlines()] for _, stdout, _ in told]
    assert [sorted("skipped" in record for record in part) for part in records] == [[False, True]] * 2
    assert coded("out")["a.lc"] == coded("out")["d.lc"] == b"mine" and len(coded("out")) == 4


def test_who_comes_first_writes_nothing_before_rank_0_has_looked(album):
    Path("out").mkdir()
    Path("out/d.lc").write_bytes(b"mine")
    (code, _, stderr), (other, *silence) = pair("encode", "album", "--threads", "1", "-o", "out", late=0)
    assert code == 2 and stderr.startswith("latcodec: 1 of 4 outputs exists: out/d.lc; nothing was written; ")
    assert (other, silence) == (0, ["", ""])
    assert coded("out") == {"d.lc": b"mine"}


def timeless(results):
    def keep(row):
        return {k: v for k, v in row.items() if not k.endswith("_s") and "memory" not in k}

    return [keep(row) for row in results["rows"]], results["bd"], results["skipped"]


def test_bench_by_two_processes(album):
    Path("album/sub/c.png").unlink()
    Path("album/d.png").unlink()
    arguments = ("bench", "album", "--codecs", "none", "--anchors", "webp,jpeg", "--rates", "2", "--threads", "1")
    one, (two, assistant) = alone(*arguments, "--json"), pair(*arguments, "--json", "-o", "report")
    assert one.exit_code == two[0] == assistant[0] == 0, two[2]
    assert assistant[1] == "" and len(two[1].splitlines()) == 1
    results = json.loads(two[1])
    assert timeless(results) == timeless(json.loads(one.stdout))
    assert results["environment"]["processes"].startswith("2 at once") and results["command"].startswith("torchrun ")
    assert len(Path("report/rows.jsonl").read_text().splitlines()) == len(results["rows"]) == 8


def test_finished_rows_are_not_measured_again(together, album, monkeypatch):
    subjects = [inspect(path, path.name) for path in sorted(Path("album").glob("*.png"))]
    settings = contenders.Settings(rates=2, threads=1)
    jpeg = anchors.by_name("jpeg")
    run = Bench(subjects, [jpeg], settings)
    blank_row = measurement.blank_row
    kept = {(s.file, v): blank_row(jpeg, s, v) for s in subjects for v in settings.values_of(jpeg)}
    missing = kept.popitem()[0]
    measured = []
    monkeypatch.setattr(
        measurement, "measure", lambda c, s, p, v, _: measured.append((s.file, v)) or blank_row(c, s, v)
    )

    class Kept:
        def get(self, contender, subject, value):
            return kept.get((subject.file, value))

    def work(one):
        shared = SharedBench(run, Kept())
        if one.rank:
            instructions = json.loads(json.dumps(shared.instructions()))
            assist(one, instructions, [jpeg], settings, [f"of {one.rank}"])
            return None
        rows = list(shared.rows(one))
        return sorted((row.file, row.value) for row in rows), shared.problems

    (rows, problems), *_ = together(work)
    assert measured == [missing] and problems == ["of 1", "of 2"]
    assert rows == sorted([*kept, missing])


def test_times_of_a_crowd_are_not_for_a_readme(album, monkeypatch):
    from torch.distributed import HashStore

    monkeypatch.setattr(parallel, "REFUSAL_TIMEOUT_S", 0)
    monkeypatch.setattr(parallel, "current_team", lambda: Team(0, 2, HashStore()))
    result = alone("bench", "album", "--codecs", "none", "--readme", "README.md")
    assert result.exit_code == 2 and result.stderr.startswith("latcodec: --readme: several processes")
