"""Damaged files: one of our errors, whatever the bytes; one line and exit code 1 at the command line."""

import json
import resource
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from skimage import data

from latcodec import api as codec
from latcodec import container
from latcodec.api import EncodeSettings, decode_picture, encode_picture
from latcodec.backends.hyperprior_context.wire import LOSSLESS_PARAMETERS
from latcodec.cli import main as cli
from latcodec.errors import DriftError, FormatError, LatcodecError, VersionError
from latcodec.images import Picture
from latcodec.images.lossless import pack_pixels
from latcodec.runtime import MAX_PIXELS

pytestmark = pytest.mark.usefixtures("one_thread")

HERE = Path(__file__).parent
PEAK_BYTES = 600e6


def file_of(height: int, width: int, lmbda: float, everything: bool = False, depth: int = 8) -> bytes:
    """An .lc file of the astronaut; with everything: alpha, ICC, EXIF, XMP and a section of a later version."""
    pixels = np.ascontiguousarray(data.astronaut()[60 : 60 + height, 180 : 180 + width])
    pixels = pixels if depth == 8 else pixels.astype(np.uint16) * 257
    alpha = np.random.default_rng(0).integers(0, 9, pixels.shape[:2]).astype(pixels.dtype) if everything else None
    extras = (b"profile" * 9, b"II*\0" + bytes(30), b"<x:xmpmeta/>") if everything else ()
    whole = encode_picture(Picture(pixels, False, alpha, *extras), EncodeSettings(lmbda=lmbda, device="cpu")).data
    if everything:
        fields = {**vars(container.unpack(whole)), "extra": ((0xF0, b"later"),)}
        whole = container.pack(container.Payload(**fields))
    return whole


@pytest.fixture(scope="module")
def small() -> bytes:
    whole = file_of(24, 40, 5)
    assert len(whole) < 300
    return whole


@pytest.fixture(scope="module")
def noise() -> bytes:
    """A file that says at which lower rate its latents are coded, beside details."""
    pixels = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)
    whole = encode_picture(Picture(pixels, False), EncodeSettings(lmbda=1.5, device="cpu")).data
    assert container.unpack(whole).parameters is not None
    return whole


@pytest.fixture(scope="module")
def drawn() -> bytes:
    """A file without loss."""
    pixels = np.full((24, 40, 3), 255, np.uint8)
    pixels[3:20:5, 4:36] = (200, 30, 40)
    whole = encode_picture(Picture(pixels, False), EncodeSettings(lmbda=1.5, device="cpu")).data
    assert container.unpack(whole).parameters == LOSSLESS_PARAMETERS
    return whole


def repaired(body: bytes) -> bytes:
    """The body of a file with the checksum that fits it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes of the body: bits, bytes, spans cut, doubled or inserted; then the checksum is repaired."""
    body = bytearray(whole[:-4])
    for _ in range(rng.integers(1, 5)):
        kind, length = rng.integers(0, 7), int(rng.integers(1, 9))
        # Half of the changes fall where the fields are.
        place = int(rng.integers(0, len(body) if rng.random() < 0.5 else min(28, len(body))))
        if kind == 0:
            body[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            body[place] = int(rng.integers(0, 256))
        elif kind == 2:
            body[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == 3:
            del body[place : place + length]
        elif kind == 4:
            body[place:place] = body[place : place + length]
        elif kind == 5:
            body[place:place] = rng.bytes(length)
        else:
            del body[int(rng.integers(len(body) // 2, len(body))) :]
        if len(body) < 8:
            break
    return repaired(bytes(body))


def hammer(files: list[bytes], count: int, seed: int, max_pixels: int) -> dict[str, int]:
    """Decode `count` mutations; how often which outcome came. Anything but our own errors gets out."""
    rng, outcomes = np.random.default_rng(seed), {}
    for number in range(count):
        damaged = mutated(files[number % len(files)], rng)
        try:
            decode_picture(damaged, device="cpu", max_pixels=max_pixels)
            outcome = "decoded"
        except LatcodecError as error:
            outcome = type(error).__name__
            assert str(error) and "\n" not in str(error)
        except BaseException:
            print(f"mutation {number} of seed {seed}: {damaged.hex()}", file=sys.stderr)
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


# As files arrive: the checksum does not fit.


def test_every_truncation(small):
    for length in range(len(small)):
        with pytest.raises(FormatError):
            decode_picture(small[:length])


def test_every_flipped_bit(small):
    for position in range(len(small)):
        for bit in range(8):
            damaged = bytearray(small)
            damaged[position] ^= 1 << bit
            with pytest.raises(FormatError):
                decode_picture(bytes(damaged))


@pytest.mark.parametrize("more", [b"\0", b"\n", b"\0\0\0\0", b"hello"], ids=repr)
def test_appended_bytes(small, more):
    for damaged in (small + more, more + small, small + small):
        with pytest.raises(FormatError):
            decode_picture(damaged)


@pytest.mark.parametrize("content", [b"", b"hello, this is text\n", b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(1000)])
def test_other_files(content):
    with pytest.raises(FormatError, match="not a latcodec file"):
        decode_picture(content)


# With the checksum repaired, so that they reach what is behind it.


@pytest.mark.parametrize("name", ["small", "noise", "drawn"])
def test_every_flipped_bit_behind_the_checksum(name, request):
    """The picture comes out only if the bit says nothing of the latents: flags, depth, size within the same cells."""
    whole = request.getfixturevalue(name)
    expected = decode_picture(whole, device="cpu")
    for position in range(min(len(whole) - 4, 300)):
        for bit in range(8):
            body = bytearray(whole[:-4])
            body[position] ^= 1 << bit
            try:
                picture = decode_picture(repaired(bytes(body)), device="cpu", max_pixels=10**6)
            except LatcodecError:
                continue
            assert position == 6 or 16 <= position < 18 or np.array_equal(picture.pixels, expected.pixels)


def test_every_truncation_behind_the_checksum(small):
    for length in range(len(small) - 4):
        with pytest.raises(LatcodecError):
            decode_picture(repaired(small[:length]), device="cpu")


def test_random_mutations_behind_the_checksum(small, noise, drawn):
    files = [small, noise, drawn, file_of(24, 40, 5, everything=True), file_of(17, 9, 0.5, everything=True, depth=16)]
    outcomes = hammer(files, 1000, 1, 10**6)
    assert {"FormatError", "VersionError", "WeightsError", "DriftError"} <= outcomes.keys()
    assert outcomes.get("decoded", 0) < 200
    assert decode_picture(small, device="cpu").pixels.shape == (24, 40, 3)


def test_random_streams(small):
    rng = np.random.default_rng(0)
    payload = container.unpack(small)
    for length in (0, 3, 4, 8, 64, 1000, 100_000):
        for _ in range(5):
            fields = {**vars(payload), "streams": (rng.bytes(length),)}
            with pytest.raises((DriftError, FormatError)):
                decode_picture(container.pack(container.Payload(**fields)), device="cpu")


def asking_for(small: bytes, width: int, height: int, **more) -> bytes:
    return container.pack(
        container.Payload(**{**vars(container.unpack(small)), "width": width, "height": height, **more})
    )


def test_a_header_that_asks_for_everything(small):
    for width, height in ((2**31, 2**31), (2**31, 1), (1, 2**31), (2**14, 2**14 + 1)):
        with pytest.raises(FormatError, match="--max-pixels"):
            decode_picture(asking_for(small, width, height))


def peak_bytes() -> int:
    """Peak memory of this process. Not ru_maxrss where it can be helped: that counts the parent before exec."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


PEAK = """
import resource, sys
sys.path[:0] = [{root!r}, {here!r}]
resource.setrlimit(resource.RLIMIT_DATA, (4 * 2**30,) * 2)
import torch
from test_damage import peak_bytes
torch.set_num_threads(1)
from latcodec import runtime
from latcodec.api import decode_picture
from latcodec.errors import LatcodecError
runtime.MEMORY_BYTES_PER_PIXEL = 0  # the stream has to refuse by itself, however much memory a machine has
try:
    decode_picture(sys.stdin.buffer.read(), device="cpu")
    print("decoded")
except (LatcodecError, MemoryError) as error:
    print(type(error).__name__)
print(peak_bytes())
"""


def white_of(side: int) -> bytes:
    """A lossless stream of a few bytes that says it is white, side x side px; its own length is right for 64 x 64."""
    stream = bytearray(pack_pixels(np.full((64, 64, 3), 255, np.uint8), 75))
    stream[21:25] = (side - 1 | side - 1 << 14).to_bytes(4, "little")
    return bytes(stream)


@pytest.mark.parametrize(
    "size, more",
    [
        ((2**14, 2**14), {}),
        ((1, 2**28), {}),
        ((2**28, 1), {}),
        ((2**14, 2**14), {"alpha": b"\x80\0", "depth": 16}),
        ((2**14, 2**14), {"streams": (bytes(400_000),)}),
        ((2**14, 2**14), {"rate_index": 255, "parameters": b"\0"}),
        ((2**14, 2**14), {"rate_index": 255, "parameters": b"\0", "streams": (bytes(400_000),)}),
        ((16383, 16383), {"parameters": LOSSLESS_PARAMETERS, "streams": (white_of(16383),)}),
    ],
    ids=["square", "tall", "wide", "constant alpha", "stream of zeros", "base", "base and zeros", "white without loss"],
)
def test_a_small_file_cannot_take_much_memory(small, size, more):
    code = PEAK.format(root=str(HERE.parent), here=str(HERE))
    whole = asking_for(small, *size, **more)
    done = subprocess.run([sys.executable, "-c", code], input=whole, capture_output=True, check=True)
    outcome, peak = done.stdout.decode().split()
    assert outcome in ("FormatError", "DriftError")
    assert int(peak) < PEAK_BYTES


# At the command line.


def damaged_files(small: bytes) -> dict[str, bytes]:
    payload = vars(container.unpack(small))
    return {
        "empty": b"",
        "text": b"hello\n",
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "truncated": small[: len(small) // 2],
        "one byte short": small[:-1],
        "appended": small + b"\0",
        "flipped": small[:60] + bytes([small[60] ^ 1]) + small[61:],
        "huge": asking_for(small, 2**31, 2**31),
        "later version": repaired(small[:4] + b"\2" + small[5:-4]),
        "later codec": container.pack(container.Payload(**{**payload, "backend_id": 250})),
        "other weights": container.pack(container.Payload(**{**payload, "weights_id": b"abcd"})),
        "drifted": container.pack(container.Payload(**{**payload, "integers_crc": payload["integers_crc"] ^ 1})),
        "bad alpha": container.pack(container.Payload(**{**payload, "alpha": b"RIFF"})),
        "bad stream": container.pack(container.Payload(**{**payload, "streams": (bytes(8),)})),
    }


NAMES = (
    "empty text picture truncated one_byte_short appended flipped huge later_version later_codec other_weights".split()
)


@pytest.mark.parametrize("name", [*NAMES, "drifted", "bad_alpha", "bad_stream"])
def test_one_line_and_exit_code_1(small, tmp_path, name):
    source = tmp_path / "x.lc"
    source.write_bytes(damaged_files(small)[name.replace("_", " ")])
    result = CliRunner().invoke(cli.cli, ["decode", str(source), "--device", "cpu"])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith(f"latcodec: {source}: ")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [source]


def test_an_existing_output_survives_a_damaged_input(small, tmp_path):
    source, target = tmp_path / "x.lc", tmp_path / "x.png"
    source.write_bytes(small[:-1])
    target.write_bytes(b"mine")
    assert CliRunner().invoke(cli.cli, ["decode", str(source), "-f"]).exit_code == 1
    assert target.read_bytes() == b"mine"
    assert sorted(tmp_path.iterdir()) == [source, target]


def test_one_damaged_file_does_not_stop_the_others(small, tmp_path):
    (tmp_path / "a.lc").write_bytes(small[:-1])
    (tmp_path / "b.lc").write_bytes(small)
    result = CliRunner().invoke(cli.cli, ["decode", str(tmp_path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert result.exit_code == 1
    assert "1 of 2 files done, 1 failed" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]


def test_info_tells_damage_too(small, tmp_path):
    for name, content in damaged_files(small).items():
        if name in ("later codec", "other weights", "drifted", "bad alpha", "bad stream"):
            continue  # what only a decoder can see
        source = tmp_path / "x.lc"
        source.write_bytes(content)
        result = CliRunner().invoke(cli.cli, ["info", "--check", str(source)])
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), name
        result = CliRunner().invoke(cli.cli, ["info", str(source)])
        if name in ("truncated", "one byte short", "appended", "flipped"):  # its header can still be read
            assert (result.exit_code, result.stderr) == (0, ""), name
            assert "  checksum: does not match; " in result.stdout and "  damage: checksum at offset " in result.stdout
            assert "  width: 40\n  height: 24\n" in result.stdout, name
        else:
            assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), name


def test_info_of_damage_for_programs(small, tmp_path):
    (tmp_path / "x.lc").write_bytes(small[:60])
    record = json.loads(CliRunner().invoke(cli.cli, ["info", "--json", str(tmp_path / "x.lc")]).stdout)
    assert record["ok"] and record["checksum"].startswith("does not match") and record["bytes"] == 60
    assert [section["name"] for section in record["sections"]] == ["header", "unreadable"]
    assert sum(section["bytes"] for section in record["sections"]) == 60
    (tmp_path / "x.lc").write_bytes(small)
    record = json.loads(CliRunner().invoke(cli.cli, ["info", "--json", str(tmp_path / "x.lc")]).stdout)
    assert record["checksum"] == "ok" and "damage" not in record
    with pytest.raises(FormatError, match="checksum"):
        codec.info(small[:60])


# More of the same, for minutes.


def hammer_for_long() -> None:
    """Run in a process of its own, so that its peak memory is that of decoding."""
    torch.set_num_threads(1)
    files = [
        file_of(160, 200, 1),
        file_of(128, 128, 0.1),
        file_of(100, 140, 2, everything=True),
        file_of(64, 64, 1, everything=True, depth=16),
    ]
    outcomes = hammer(files, 20_000, 2, MAX_PIXELS)
    print(outcomes)
    print(peak_bytes())


@pytest.mark.slow
def test_twenty_thousand_mutations_of_larger_files():
    paths = [str(HERE.parent), str(HERE)]
    code = f"import sys; sys.path[:0] = {paths!r}; import test_damage; test_damage.hammer_for_long()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, outcomes, peak = done.stdout.splitlines()
    assert all(name in outcomes for name in ("FormatError", "VersionError", "WeightsError", "DriftError"))
    assert int(peak) < PEAK_BYTES


def test_versions_are_told_from_damage(small):
    with pytest.raises(VersionError, match="update latcodec"):
        decode_picture(damaged_files(small)["later version"])
