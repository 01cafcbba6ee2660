"""What a run writes for people: its page, its rows, TensorBoard."""

import json
import re
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage import data as photographs

from latcodec.cli import main as cli
from latcodec.report import training as report_train
from latcodec.train import meter
from latcodec.train.record import Record, read_lines
from latcodec.train.trainer import Trainer, TrainSettings
from latcodec.train.validation import Reconstructions

pytestmark = pytest.mark.usefixtures("one_thread")

NARROW = {"widths": "8,12,16", "latent": "16", "hyper_width": "12", "hyper_latent": "8", "knots": "3"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures <b>&")
    for n in range(4):
        Image.fromarray(photographs.astronaut()[n * 60 : n * 60 + 140, 150:290]).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    """The folder of a run with several validations and a row for each step."""
    out = tmp_path_factory.mktemp("run")
    settings = TrainSettings(
        "vbq", (str(pictures),), str(out), steps=6, batch_size=2, patch=64, final_patch=128, autocast=False,
        options=tuple(NARROW.items()), validate_minutes=0.0001,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "SECONDS", 0.0)
        Trainer(settings, lambda line: None).run()
    report_train.write(out)
    return out


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]


def test_the_page_stands_alone_and_shows_everything(finished, pictures):
    text = (finished / "report.html").read_text()
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    assert "url(http" not in text and "@import" not in text and page.tags.count("script") == 1
    assert "pictures <b>" not in text and "pictures &lt;b&gt;&amp;" in text
    for heading in ("Curves", "Validation", "Crops over time", "Latent channels", "Settings"):
        assert re.search(rf"<h2 id=\"\w+\">{heading}</h2>", text)
    for title in ("Loss", "Rate", "Distortion", "Learning rate", "Gradient norm"):
        assert f"<b>{title}</b>" in text
    validations = read_lines(finished / "log.jsonl")
    steps = [row["step"] for row in validations]
    assert len(steps) >= 3
    assert sorted(int(path.stem) for path in (finished / "crops").iterdir()) == sorted(set(steps))
    crops = 3
    assert page.tags.count("img") == crops * (1 + 2 * len(set(steps)))
    drawings = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(drawings) >= 5 + 2
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    marks = [value for _, name, value in page.attributes if name == "data-text"]
    row = validations[-1]["validation"][3]
    assert f"step 6: {row['bpp']:.3f} bpp, {row['psnr_db']:.2f} dB" in marks
    channels = json.loads((finished / "channels.json").read_text())["levels"]["y"]
    assert f"{channels['active']} of 16 channels active" in text


def test_rows_of_every_step_and_crops_as_they_are(finished, pictures):
    rows = read_lines(finished / "curves.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "bpp", "psnr_db", "norm", "lr", "pictures_per_s", "data_share", "side_px"} <= rows[0].keys()
    assert [row["side_px"] for row in rows] == [64] * 5 + [128] and all(0 <= row["data_share"] <= 1 for row in rows)
    with np.load(max((finished / "crops").iterdir())) as found:
        original, shown, bpp = found["original"], found["shown"], found["bpp"]
    assert original.shape == (3, 3, 128, 128) and shown.shape == (2, 3, 3, 128, 128) and bpp.shape == (2, 3)
    picture = np.asarray(Image.open(pictures / "0.png"))
    assert np.array_equal(original[0].transpose(1, 2, 0), picture[6:134, 6:134])
    errors = np.square(shown.astype(float) - original).mean((1, 2, 3, 4))
    assert errors[1] < errors[0] < original.var() and (bpp[0] < bpp[1]).all()


def test_a_page_of_little(tmp_path, finished):
    """Before the first validation, and with a row that a crash cut off, there is a page too."""
    about = json.loads((finished / "run.json").read_text())
    Record(tmp_path, 0, about).close()
    assert "Curves</h2>" not in report_train.write(tmp_path).read_text()
    (tmp_path / "curves.jsonl").write_text((finished / "curves.jsonl").read_text()[:-40])
    assert "Curves</h2>" in report_train.write(tmp_path).read_text()


def test_folders_of_the_machine_are_not_told(tmp_path, finished, pictures):
    text, told = (finished / "report.html").read_text(), (finished / "run.json").read_text()
    assert str(finished.parent) not in text + told
    assert json.loads(told)["settings"]["data"] == [pictures.name]
    settings = {"data": ["../mine/", "/home/someone/pictures", "/"], "out": "/home/someone/run", "cache": None,
                "init": "weights/a.safetensors", "codec": "/not/a/path"}  # fmt: skip
    Record(tmp_path, 0, {"settings": settings, "device": "CPU"}).close()
    assert json.loads((tmp_path / "run.json").read_text()) == {
        "settings": settings | {"data": ["../mine/", "pictures", "/"], "out": "run"}, "device": "CPU",
    }  # fmt: skip


def test_settings_and_counts_are_words(tmp_path, finished):
    about = json.loads((finished / "run.json").read_text())
    about |= {"held_out": 0, "pictures": 1}
    about["settings"] |= {"steps": 1, "lambda_range": [0.5, 2.0], "compile": True, "resume": False, "seed": 0}
    Record(tmp_path, 0, about).close()
    text = " ".join(re.sub("<[^>]*>", " ", report_train.write(tmp_path).read_text()).split())
    assert "0 of 1 step trained" in text and "held out none, all instead" in text
    assert "lambda_range 0.5, 2.0 " in text and "compile yes " in text and "seed 0 " in text
    assert "options widths = 8,12,16, latent = 16, " in text and " network widths = [8, 12, 16], " in text
    assert " resume " not in text and " init " not in text


def test_resuming_drops_what_is_beyond_the_checkpoint(tmp_path):
    first = Record(tmp_path, 0, {})
    for step in (1, 2, 3):
        first.curve(step, 0.0, {"loss": 1.0})
        first.validation(step, 0.0, [])
        shown = Reconstructions(np.zeros((2, 1, 3, 8, 8), np.uint8), np.zeros((2, 1), np.float32))
        first.crops(step, np.zeros((1, 3, 8, 8), np.uint8), shown)
    first.close()
    with open(tmp_path / "curves.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    Record(tmp_path, 2, {}).curve(3, 0.0, {"loss": 2.0})
    assert [(r["step"], r["loss"]) for r in read_lines(tmp_path / "curves.jsonl")] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    assert [row["step"] for row in read_lines(tmp_path / "log.jsonl")] == [1, 2]
    assert sorted(path.stem for path in (tmp_path / "crops").iterdir()) == ["00000001", "00000002"]


def command(pictures: Path, out: Path) -> list[str]:
    sizes = ["--steps", "1", "--batch-size", "2", "--patch", "64", "--final-patch", "64", "--device", "cpu"]
    return ["train", str(pictures), "-o", str(out), *sizes, *(f"-O{name}={value}" for name, value in NARROW.items())]


def test_the_command_writes_the_page(pictures, tmp_path):
    done = CliRunner().invoke(cli.cli, command(pictures, tmp_path))
    assert done.exit_code == 0, done.output
    assert "Training hyperprior" in (tmp_path / "report.html").read_text()


def test_training_goes_without_a_page(pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    done = CliRunner().invoke(cli.cli, command(pictures, tmp_path))
    assert done.exit_code == 0, done.output
    assert done.output.count("no report.html: ") == 1 and "jinja2" in done.output
    assert not (tmp_path / "report.html").exists() and (tmp_path / "hyperprior.safetensors").exists()


def test_tensorboard_gets_the_numbers_if_it_is_there(pictures, tmp_path, monkeypatch):
    told: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            self.folder, self.purge_step = folder, purge_step
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            assert isinstance(value, int | float)
            told.append((name, step))

        def flush(self):
            pass

        close = flush

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    settings = TrainSettings(
        "hyperprior", (str(pictures),), str(tmp_path), steps=1, batch_size=2, patch=64, final_patch=64,
        options=tuple(NARROW.items()),
    )  # fmt: skip
    Trainer(settings, lambda line: None).run()
    assert told[0] == (str(tmp_path / "tensorboard"), None)
    assert {("train/loss", 1), ("rate/bpp", 1), ("distortion/psnr_db", 1), ("train/lr", 1)} <= set(told)
    assert ("validation/psnr_db/t=0.00", 1) in told
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Record(tmp_path / "without", 0, {}).close()
    assert not (tmp_path / "without" / "tensorboard").exists()
