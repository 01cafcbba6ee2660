"""What exports and starts share: the averages of a checkpoint, pictures to fit to, tables, parameters of weights."""

import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from latcodec import weights
from latcodec.backends import BACKENDS
from latcodec.backends.hyperprior import codec as hyperprior
from latcodec.entropy.range_coder import ideal_bits
from latcodec.errors import OptionError, WeightsError
from latcodec.train import checkpoint, data, plans
from latcodec.train.export import hyperprior as export
from latcodec.train.export.files import calibration_crops, corrected_tables
from latcodec.train.export.tables import logistic_tables
from latcodec.train.init import command
from latcodec.train.init import context as start_context
from latcodec.train.init import pln as start_pln
from latcodec.train.init.source import initialise, read_source

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"widths": (8, 12, 16), "latent": 16, "knots": 3}
WEIGHTS = Path(__file__).parents[2] / "weights" / "hyperprior.safetensors"


def network(codec: str) -> torch.nn.Module:
    plan = plans.plan_of(codec)
    torch.manual_seed(0)
    known = {field.name for field in fields(plan.config)}
    return plan.network(plan.config(**{name: value for name, value in SMALL.items() if name in known}))


def kept(path: Path, model: torch.nn.Module, **other) -> Path:
    """A checkpoint with averages as `ema.pt` has them."""
    ema = {k: v.half() if v.dim() == 4 else v for k, v in model.state_dict().items()}
    state = {"config": json.dumps(asdict(model.config)), "ema": ema}
    torch.save({k: v for k, v in (state | other).items() if v is not None}, path)
    return path


@pytest.mark.parametrize("codec", list(plans.PLANS))
def test_averages_become_a_network(codec, tmp_path):
    model = network(codec)
    found = checkpoint.averaged_network(kept(tmp_path / "ema.pt", model, codec=codec), codec)
    assert type(found) is type(model) and found.config == model.config and not found.training
    for name, value in model.state_dict().items():
        read = found.state_dict()[name]
        assert read.dtype == torch.float32
        assert torch.equal(read, value.half().float() if value.dim() == 4 else value), name


@pytest.mark.parametrize("codec", list(plans.PLANS))
def test_every_codec_that_writes_files_exports_its_weights(codec):
    plan = plans.plan_of(codec)
    if codec in {backend.name for backend in BACKENDS}:
        assert callable(plan.load_exporter())
    else:
        with pytest.raises(OptionError, match=f"no codec writes files with {plan.network.__name__}"):
            plan.load_exporter()


@pytest.mark.parametrize(
    "other, message",
    [({"codec": "pln"}, "a checkpoint of pln, not of hyperprior"), ({"ema": None}, "it has no 'ema'"),
     ({"config": None}, "it has no 'config'"), ({"config": "[]"}, "not a checkpoint of hyperprior"),
     ({"config": '{"width": 3}'}, "hyperprior has no option width"), ({"config": '{"latent": 17}'}, "size mismatch"),
     ({"ema": {"g_a.0.weight": 1}}, "not a checkpoint of hyperprior")],
    ids=str,
)  # fmt: skip
def test_checkpoints_that_are_none_of_the_codec(other, message, tmp_path):
    path = kept(tmp_path / "x.pt", network("hyperprior"), **other)
    with pytest.raises(WeightsError, match=message) as error:
        checkpoint.averaged_network(path, "hyperprior")
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.fixture
def pictures(tmp_path) -> tuple[Path, list[np.ndarray]]:
    """A folder of twelve pictures that are trained on, one that is not and one that is none; and the twelve."""
    made = []
    for n in range(12):
        made.append(photographs.astronaut()[n * 9 : n * 9 + 40 + n, 100 : 180 - 2 * n])
        Image.fromarray(made[-1]).save(tmp_path / f"{n:02}.png")
    held_out = next(f"v{i}.png" for i in range(10**4) if data.is_validation(Path(f"v{i}.png")))
    Image.fromarray(made[0]).save(tmp_path / held_out)
    assert not any(data.is_validation(Path(f"{n:02}.png")) for n in range(12))
    return tmp_path, made


def test_calibration_crops_are_spread_over_the_training_pictures(pictures, capsys):
    folder, made = pictures

    def numbers(*given, **more) -> list[int]:
        crops = calibration_crops([str(folder)], *given, **more)
        return [next(n for n, p in enumerate(made) if np.array_equal(p[: c.shape[0], : c.shape[1]], c)) for c in crops]

    assert numbers(99, 512) == list(range(12))
    assert numbers(4, 512) == [0, 3, 6, 9]
    assert numbers(5, 512) == [0, 2, 4, 6, 8, 10] and numbers(5, 512, most=5) == [0, 2, 4, 6, 8]
    corners = calibration_crops([str(folder)], 4, 45)
    assert [c.shape for c in corners] == [(40, 45, 3), (43, 45, 3), (45, 45, 3), (45, 45, 3)]
    whole = calibration_crops([str(folder)], 12, 512, whole_px=48)
    assert [c.shape for c in whole] == [(48, 48, 3)] * 4  # those of 48 ... 51 rows
    (folder / "03.png").write_bytes(b"none")
    assert numbers(4, 512) == [0, 6, 9] and "03.png" in capsys.readouterr().err


def test_corrected_tables_are_the_logistic_until_something_is_counted():
    base = logistic_tables(np.array([0.5, 8.0]))
    nothing = [np.zeros(base.size(row)) for row in range(base.num_tables)]
    assert np.array_equal(corrected_tables(base, nothing, [0.5, 8.0]).weights, base.weights)


def test_corrected_tables_fold_symmetric_rows_and_smooth_wide_ones():
    base = logistic_tables(np.array([0.5, 0.5, 16.0]))
    counts = [np.zeros(base.size(row)) for row in range(base.num_tables)]
    for row, count in enumerate(counts):
        count[3 - base.minimums[row]] = 1e6
    fitted = corrected_tables(base, counts, [0.5, None, 16.0])

    def bits(row: int, symbol: int) -> float:
        return ideal_bits(np.array([symbol], np.int32), np.array([row], np.uint16), fitted)

    assert bits(0, 3) == pytest.approx(1, abs=0.02) and bits(0, -3) == pytest.approx(1, abs=0.02)
    assert bits(1, 3) == pytest.approx(0, abs=0.02) and bits(1, -3) > 10
    # A count of the third row is spread over 4 on each side of 3 and of -3, where both overlap: 9 + 9 places.
    assert bits(2, 7) == pytest.approx(np.log2(18), abs=0.05) and bits(2, 1) == pytest.approx(np.log2(9), abs=0.05)
    assert bits(2, 8) > 10


def test_a_second_pass_fits_tables_to_what_the_first_made_of_the_symbols(monkeypatch):
    met = []

    def fitted(model, pictures, backend):
        met.append(model.tables.weights)
        return logistic_tables(backend.sigmas(), tail_mass=2.0 ** -(3 + len(met)))

    monkeypatch.setattr(export, "fitted_tables", fitted)
    made = export.fit(network("hyperprior"), [], passes=2)
    tables = [logistic_tables(hyperprior.sigmas(), tail).weights for tail in (2.0**-13, 2.0**-4, 2.0**-5)]
    assert all(map(np.array_equal, [*met, made["tables.weights"]], tables)) and len(met) == 2


@pytest.mark.parametrize("start", [start_context, start_pln], ids=lambda start: start.CODEC)
def test_a_start_from_the_hyperprior_is_a_checkpoint_of_the_codec(start, tmp_path, monkeypatch):
    """It holds all of the network, whose pictures at the best rate are as good as the hyperprior's."""
    out = tmp_path / "start.pt"
    monkeypatch.setattr(sys, "argv", ["start", str(WEIGHTS), str(out)])
    torch.manual_seed(0)
    command.run_command(start.CODEC, start.start, start.__doc__)
    made = checkpoint.averaged_network(out, start.CODEC)
    if start is start_context:
        made.config = replace(made.config, step_error_bits=0.0)  # to the nearest, as the hyperprior's loss rounds
    x = torch.from_numpy(photographs.astronaut()[None, :64, 200:264].copy()).permute(0, 3, 1, 2).float() / 255
    plan = plans.plan_of("hyperprior")
    before = plan.network(plan.config())
    taken, total = initialise(before, "hyperprior", read_source(WEIGHTS))
    assert taken == total
    errors = []
    for codec, model in ((start.CODEC, made), ("hyperprior", before)):
        loss = plans.plan_of(codec).loss
        with torch.no_grad():
            found = loss(model.eval(), x, torch.tensor([1.0]), False, noise=False)
            errors.append((found["mse"].item(), found["bpp"].item()))
    assert errors[0][0] == pytest.approx(errors[1][0], rel=0.02)
    if start is start_context:  # whose corrections are 0, so that it costs the same too
        assert errors[0][1] == pytest.approx(errors[1][1], rel=1e-3)


def test_a_start_from_other_weights_is_told():
    found = weights.load_file(WEIGHTS.with_name("vbq.safetensors"))
    for start in (start_context, start_pln):
        with pytest.raises(WeightsError, match="not hyperprior weights"):
            start.from_hyperprior(found)
