"""Where weights are found, and that damaged or missing ones are told."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from latcodec import backends, weights
from latcodec.errors import WeightsError

ROOT = Path(__file__).parents[1]
CONFIG = {"width": 3}


def make(
    folder: Path, name: str = "w.safetensors", backend: str = "hyperprior", seed: int = 0, index: bool = True,
    metric: str | None = None,
):  # fmt: skip
    """A tiny weights file; returns its SHA-256."""
    config = CONFIG if metric is None else CONFIG | {"metric": metric}
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"a": np.random.default_rng(seed).normal(size=(3, 4)), "b": np.arange(5, dtype=np.int16)}
    digest = weights.save(folder / name, backend, config, "latcodec train", tensors)
    if index:
        weights.add_to_index(folder / name, backend, config, "latcodec train", digest)
    return digest


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """A package in an empty folder, so that only what a test makes is found; returns that folder."""
    (tmp_path / "site" / "latcodec").mkdir(parents=True)
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "site" / "latcodec" / "weights.py"))
    return tmp_path / "site"


def test_round_trip(tmp_path):
    digest = make(tmp_path)
    loaded = weights.load("hyperprior", selected=str(tmp_path))
    assert loaded.sha256 == digest == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
    assert loaded.id == bytes.fromhex(digest)[:4]
    assert (loaded.backend, loaded.config) == ("hyperprior", CONFIG)
    assert loaded.tensors["a"].shape == (3, 4) and loaded.tensors["b"].dtype == np.int16


def test_old_names_become_modern_ones_when_loading(tmp_path, monkeypatch):
    renames = weights.Renames(config={"width": "channels"}, tensors={"b": "bias", "b.c": "bands", "a": "analysis"})
    monkeypatch.setitem(weights.RENAMES, "renamed", renames)
    tensors = {name: np.arange(n) for n, name in enumerate(["float.b.c.a", "b", "ab.b.b", "new"])}
    config = {"width": 3, "knots": {"width": 9}}
    digest = weights.save(tmp_path / "w.safetensors", "renamed", config, "latcodec train", tensors)
    loaded = weights.load_file(tmp_path / "w.safetensors")
    assert loaded.sha256 == digest
    assert loaded.config == {"channels": 3, "knots": {"width": 9}}
    sizes = {name: tensor.size for name, tensor in loaded.tensors.items()}
    assert sizes == {"float.bands.analysis": 0, "bias": 1, "ab.bias.bias": 2, "new": 3}


def test_names_without_a_table_and_modern_names_stay(monkeypatch):
    assert weights.modern_names("unknown", {"b": 1}, {"width": 3}) == ({"b": 1}, {"width": 3})
    monkeypatch.setitem(weights.RENAMES, "renamed", weights.Renames({"width": "channels"}, {"b": "bias"}))
    once = weights.modern_names("renamed", {"x.b": 1}, {"width": 3})
    assert weights.modern_names("renamed", *once) == once == ({"x.bias": 1}, {"channels": 3})


def test_an_old_and_a_new_name_of_one_thing_are_refused(monkeypatch):
    monkeypatch.setitem(weights.RENAMES, "renamed", weights.Renames({"width": "channels"}, {"b": "bias"}))
    with pytest.raises(WeightsError, match="renamed.*old and a new name"):
        weights.modern_names("renamed", {"b": 1, "bias": 2}, {})
    with pytest.raises(WeightsError, match="renamed.*old and a new name"):
        weights.modern_names("renamed", {}, {"width": 1, "channels": 2})


def test_the_tables_rename_nothing_twice():
    for backend, renames in weights.RENAMES.items():
        for table in (renames.config, renames.tensors):
            assert not set(table) & set(table.values()), backend
            assert len(set(table.values())) == len(table), backend


def test_same_tensors_same_bytes(tmp_path):
    assert len({make(tmp_path / str(n)) for n in range(10)}) == 1


def test_places_are_in_the_order_that_is_written(monkeypatch):
    package = Path(weights.__file__).resolve().parent
    assert weights.places() == [package / "_weights", package.parent / "weights"]
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(package))
    assert weights.places() == [package, package / "_weights", package.parent / "weights"]
    assert weights.places("w") == [Path("w")]
    monkeypatch.setenv("LATCODEC_WEIGHTS", "")
    assert weights.places() == [package / "_weights", package.parent / "weights"]


def test_each_place_comes_before_the_next(nothing_installed, monkeypatch, tmp_path):
    checkout = make(nothing_installed / "weights", seed=1)
    assert weights.load("hyperprior").sha256 == checkout
    package = make(nothing_installed / "latcodec" / "_weights", seed=2)
    assert weights.load("hyperprior").sha256 == package
    variable = make(tmp_path / "variable", seed=3)
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(tmp_path / "variable"))
    assert weights.load("hyperprior").sha256 == variable
    option = make(tmp_path / "option", seed=4)
    assert weights.load("hyperprior", selected=str(tmp_path / "option")).sha256 == option


def test_weights_of_a_file_are_searched_in_all_places(nothing_installed, monkeypatch, tmp_path):
    wanted = make(nothing_installed / "weights", seed=1)
    make(tmp_path / "variable", seed=3)
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(tmp_path / "variable"))
    assert weights.load("hyperprior", bytes.fromhex(wanted)[:4]).sha256 == wanted


def test_an_option_is_the_only_place(nothing_installed, tmp_path):
    wanted = make(nothing_installed / "weights", seed=1)
    make(tmp_path / "option", seed=2)
    with pytest.raises(WeightsError, match=wanted[:8]):
        weights.load("hyperprior", bytes.fromhex(wanted)[:4], str(tmp_path / "option"))


def test_missing_weights_are_named_with_the_places(nothing_installed, monkeypatch, tmp_path):
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(tmp_path / "variable"))
    with pytest.raises(WeightsError, match="LATCODEC_WEIGHTS.*no such"):
        weights.load("hyperprior")
    (tmp_path / "variable").mkdir()
    with pytest.raises(WeightsError) as error:
        weights.load("hyperprior", bytes.fromhex("01020304"))
    said = str(error.value)
    assert "01020304" in said and "--weights" in said and "\n" not in said
    for place in (tmp_path / "variable", nothing_installed / "latcodec" / "_weights", nothing_installed / "weights"):
        assert str(place) in said
    with pytest.raises(WeightsError, match="codec hyperprior not found"):
        weights.load("hyperprior")


def test_weights_of_another_codec_do_not_count(tmp_path):
    digest = make(tmp_path, backend="other")
    for weights_id in (None, bytes.fromhex(digest)[:4]):
        with pytest.raises(WeightsError, match="not found"):
            weights.load("hyperprior", weights_id, str(tmp_path))


def test_the_last_one_made_is_the_default(tmp_path):
    first, second = make(tmp_path, "a.safetensors", seed=1), make(tmp_path, "b.safetensors", seed=2)
    make(tmp_path, "c.safetensors", "other", seed=3)
    assert weights.load("hyperprior", selected=str(tmp_path)).sha256 == second
    assert weights.load("hyperprior", bytes.fromhex(first)[:4], str(tmp_path)).sha256 == first
    entries = json.loads((tmp_path / "index.json").read_text())
    assert [entries[f"{n}.safetensors"]["default"] for n in "abc"] == [False, True, True]
    assert entries["a.safetensors"]["id"] == first[:8]


@pytest.mark.parametrize("index", [True, False])
def test_weights_of_a_metric(tmp_path, index):
    """Each metric has its own default; squared error comes first where none is named."""
    eyes = make(tmp_path, "a.safetensors", seed=1, index=index, metric="ms-ssim")
    with pytest.raises(WeightsError, match="codec hyperprior trained for mse not found"):
        weights.load("hyperprior", selected=str(tmp_path), metric="mse")
    assert weights.load("hyperprior", selected=str(tmp_path)).sha256 == eyes
    plain = make(tmp_path, "b.safetensors", seed=2, index=index)
    more = make(tmp_path, "c.safetensors", seed=3, index=index, metric="ms-ssim")
    found = {metric: weights.load("hyperprior", None, str(tmp_path), metric) for metric in (None, "mse", "ms-ssim")}
    assert [one.sha256 for one in found.values()] == [plain, plain, more if index else eyes]
    assert weights.load("hyperprior", bytes.fromhex(eyes)[:4], str(tmp_path)).sha256 == eyes


def test_a_file_without_an_index(tmp_path):
    digest = make(tmp_path, index=False)
    for place in (tmp_path / "w.safetensors", tmp_path):
        assert weights.load("hyperprior", selected=str(place)).sha256 == digest
        assert weights.load("hyperprior", bytes.fromhex(digest)[:4], str(place)).sha256 == digest


def test_every_flipped_byte_is_noticed(tmp_path):
    make(tmp_path)
    path = tmp_path / "w.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), 37):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        weights._load.cache_clear()
        with pytest.raises(WeightsError, match="w.safetensors: SHA-256"):
            weights.load("hyperprior", selected=str(tmp_path))
    path.write_bytes(whole[:-1])
    with pytest.raises(WeightsError, match="SHA-256"):
        weights.load("hyperprior", selected=str(tmp_path))


def test_a_file_that_changes_is_read_again(tmp_path):
    first = make(tmp_path, index=False)
    assert weights.load("hyperprior", selected=str(tmp_path)).sha256 == first
    second = make(tmp_path, index=False, seed=1)
    assert weights.load("hyperprior", selected=str(tmp_path)).sha256 == second != first


INDEXES = {
    "text": "hello",
    "empty": "",
    "a list": "[1, 2]",
    "a number": "3",
    "entries are no objects": '{"w.safetensors": 3}',
    "not UTF-8": b"\xff\xfe\0",
    "no hexadecimal": '{"w.safetensors": {"backend": "hyperprior", "sha256": "zz"}}',
    "no text": '{"w.safetensors": {"backend": "hyperprior", "sha256": 5}}',
}


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("weights_id", [None, b"abcd"])
def test_a_damaged_index(tmp_path, name, weights_id):
    make(tmp_path, index=False)
    content = INDEXES[name]
    (tmp_path / "index.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WeightsError):
        weights.load("hyperprior", weights_id, str(tmp_path))


def test_a_file_that_the_index_lists_is_gone(tmp_path):
    make(tmp_path)
    (tmp_path / "w.safetensors").unlink()
    with pytest.raises(WeightsError, match="w.safetensors"):
        weights.load("hyperprior", selected=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"\xff" * 8, bytes(8) + b"{}"])
def test_a_file_that_is_no_weights(tmp_path, content):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        weights.load("hyperprior", selected=str(path))


def test_safetensors_of_somebody_else(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "w.safetensors"
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(WeightsError):
        weights.load("hyperprior", selected=str(path))
    for metadata in ({"backend": "hyperprior"}, {"backend": "hyperprior", "config": "{"}):
        save_file({"a": np.zeros(3)}, path, metadata)
        with pytest.raises(WeightsError, match="w.safetensors"):
            weights.load("hyperprior", selected=str(path))


@pytest.mark.parametrize("config", [[], 3, {}, {"latent": 192, "depth": 3}])
def test_another_configuration_is_refused(tmp_path, config):
    path = tmp_path / "w.safetensors"
    weights.save(path, "hyperprior", config, "", {"a": np.zeros(3)})
    codec = backends.by_name("hyperprior").load()
    with pytest.raises(WeightsError, match="w.safetensors"):
        codec.load_model(weights.load("hyperprior", selected=str(path)), "cpu")


@pytest.mark.parametrize("missing", ["float.g_a.0.weight", "hyper.0.weight", "tables.weights", "rates.z_mean"])
def test_a_missing_tensor_is_told(tmp_path, missing):
    shipped = weights.load("hyperprior")
    tensors = {name: value for name, value in shipped.tensors.items() if name != missing}
    assert len(tensors) == len(shipped.tensors) - 1
    path = tmp_path / "w.safetensors"
    weights.save(path, "hyperprior", shipped.config, "", tensors)
    codec = backends.by_name("hyperprior").load()
    with pytest.raises(WeightsError, match="w.safetensors"):
        codec.load_model(weights.load("hyperprior", selected=str(path)), "cpu")


# What is shipped.


@pytest.fixture
def shipped() -> dict:
    return json.loads((ROOT / "weights" / "index.json").read_text())


def test_shipped_weights_are_what_the_index_says(shipped):
    for name, entry in shipped.items():
        digest = hashlib.sha256((ROOT / "weights" / name).read_bytes()).hexdigest()
        assert entry["sha256"] == digest
        assert entry["id"] == digest[:8]
        assert entry["command"].startswith(("latcodec train", "python -m latcodec.train."))
        loaded = weights.load(entry["backend"], bytes.fromhex(digest)[:4])
        assert (loaded.backend, loaded.config) == (entry["backend"], entry["config"])


def test_every_codec_ships_one_default(shipped):
    """For squared error; the context codec one for MS-SSIM besides."""
    defaults = sorted((e["backend"], e["config"].get("metric", "mse")) for e in shipped.values() if e["default"])
    assert defaults == sorted([*((b.name, "mse") for b in backends.BACKENDS), ("hyperprior-context", "ms-ssim")])


def test_shipped_ids_differ(shipped):
    assert len({entry["id"] for entry in shipped.values()}) == len(shipped)


def test_shipped_weights_are_small(shipped):
    for name in shipped:
        assert (ROOT / "weights" / name).stat().st_size < 12e6


def test_no_weights_lie_beside_the_index_unlisted(shipped):
    assert {path.name for path in (ROOT / "weights").glob("*.safetensors")} == set(shipped)
