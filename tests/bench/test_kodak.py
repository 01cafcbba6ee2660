"""The Kodak set: known by its pixels, downloaded whole from a server on this machine."""

import hashlib
import http.server
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from latcodec.bench import kodak
from latcodec.errors import LatcodecError, OptionError

FILES = {f"kodim{i:02d}.png": bytes([i]) * (1000 + i) for i in (1, 2, 3)}


@pytest.fixture(autouse=True)
def record(monkeypatch):
    """A set of three small files, and no proxy between the tests and this machine."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    entries = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in FILES.items()}
    real = kodak._record()
    monkeypatch.setattr(kodak, "_record", lambda: real | {"files": entries})
    return real


@contextmanager
def server(files):
    """Serve a dictionary of files; gives the address and the list of what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.rpartition("/")[2]
            asked.append(name)
            if name not in files:
                self.send_error(404)
                return
            data = files[name]
            cut = data.startswith(b"cut")
            self.send_response(200)
            self.send_header("Content-Length", str(len(data) + 1000 * cut))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=service.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{service.server_port}/kodak/", asked
    finally:
        service.shutdown()
        thread.join()
        service.server_close()


def test_a_download_is_whole_and_not_repeated(tmp_path):
    folder, lines = tmp_path / "new" / "kodak", []
    with server(FILES) as (url, asked):
        assert kodak.fetch(folder, url=url, say=lines.append) == [folder / name for name in FILES]
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
        kodak.fetch(folder, url=url.rstrip("/"), say=lines.append)
    assert asked == list(FILES)
    assert lines == ["kodim01.png: 1001 bytes", "kodim02.png: 1002 bytes", "kodim03.png: 1003 bytes",
                     "3 of 3 files were here already"]  # fmt: skip


def test_a_stopped_download_goes_on(tmp_path):
    broken = {name: data for name, data in FILES.items() if name != "kodim02.png"}
    with server(broken) as (url, _), pytest.raises(LatcodecError, match="kodim02.png: the server answers 404"):
        kodak.fetch(tmp_path, url=url)
    assert [path.name for path in tmp_path.iterdir()] == ["kodim01.png"]
    with server(FILES) as (url, asked):
        kodak.fetch(tmp_path, url=url)
    assert asked == ["kodim02.png", "kodim03.png"]


@pytest.mark.parametrize("data, what", [(b"other", "SHA-256 differs"), (b"cut", "go on")])
def test_nothing_is_kept_of_a_wrong_or_cut_file(data, what, tmp_path):
    with server(FILES | {"kodim01.png": data}) as (url, _), pytest.raises(LatcodecError, match=what):
        kodak.fetch(tmp_path, url=url)
    assert not list(tmp_path.iterdir())


def test_without_a_network_the_error_is_one_clear_line(tmp_path):
    with server(FILES) as (url, _):
        pass
    with pytest.raises(LatcodecError, match="no connection; 0 of 3 files are here, run the command again") as caught:
        kodak.fetch(tmp_path, url=url)
    assert "\n" not in str(caught.value)


def test_another_file_of_that_name_stays_without_force(tmp_path):
    (tmp_path / "kodim03.png").write_bytes(b"mine")
    with server(FILES) as (url, asked):
        with pytest.raises(OptionError, match="kodim03.png: exists and is not the Kodak picture; --force"):
            kodak.fetch(tmp_path, url=url)
        assert (tmp_path / "kodim03.png").read_bytes() == b"mine" and not asked
        kodak.fetch(tmp_path, url=url, force=True)
    assert (tmp_path / "kodim03.png").read_bytes() == FILES["kodim03.png"]


def test_pictures_are_known_by_their_pixels(monkeypatch):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    files = {"kodim07.png": {"pixels_sha256": kodak.pixels_digest(pixels)}}
    monkeypatch.setattr(kodak, "_record", lambda: {"files": files})
    assert kodak.name_of(pixels) == "kodim07"
    assert kodak.name_of(pixels.reshape(2, 8, 3)) is None
    assert kodak.name_of(pixels[::-1]) is None


def test_the_record_is_complete(record):
    assert list(record["files"]) == [f"kodim{i:02d}.png" for i in range(1, 25)]
    digests = [digest for entry in record["files"].values() for digest in entry.values()]
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests) and len(set(digests)) == 48
    curves = kodak.published()
    assert {"JPEG", "WebP", "JPEG2000", "BPG444", "VTM", "bmshj2018-hyperprior"} <= set(curves)
    for curve in curves.values():
        assert len(curve["bpp"]) == len(curve["psnr_db"]) == len(curve["ms_ssim"] or curve["bpp"]) > 4
        assert curve["source"]
