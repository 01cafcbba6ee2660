"""The Pillow plug-in. The networks are small and untrained: what is tested is what goes in and out around them."""

import io
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, UnidentifiedImageError

import latcodec.pillow  # noqa: F401  registers the format
from latcodec import api, container, images
from latcodec.errors import LatcodecError

ROOT = Path(__file__).parents[1]
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF tiff:Orientation="6"/></x:xmpmeta>'


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with untrained weights."""
    torch = pytest.importorskip("torch")
    from latcodec.backends import DEFAULT
    from latcodec.backends.hyperprior_context import codec as hyperprior_context
    from latcodec.backends.hyperprior_context.network import Config, ContextHyperprior
    from latcodec.train.export.tables import logistic_tables
    from latcodec.weights import save

    torch.manual_seed(0)
    config = Config(widths=(4, 4, 4), latent=8, hyper_width=8, hyper_latent=4, context_width=4, knots=2)
    network = ContextHyperprior(config).eval()
    folder = tmp_path_factory.mktemp("weights")
    tensors = hyperprior_context.export(network, logistic_tables(hyperprior_context.sigmas()))
    save(folder / "small.safetensors", DEFAULT, hyperprior_context.stored_config(network), "none", tensors)
    return folder


@pytest.fixture(autouse=True)
def use_weights(weights, monkeypatch):
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(weights))


@pytest.fixture
def photo(photograph) -> Image.Image:
    return Image.fromarray(photograph[100:147, 100:161])


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271] = orientation, "a camera"
    return exif


def saved(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "latcodec", **options)
    return file.getvalue()


def reopened(image: Image.Image, **options) -> Image.Image:
    return Image.open(io.BytesIO(saved(image, **options)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_modes_come_back_and_decode_like_the_codec(photo, mode, tmp_path):
    source = photo.convert(mode)
    if mode.endswith("A"):
        source.putalpha(Image.linear_gradient("L").resize(source.size))
    source.save(tmp_path / "x.lc", quality=60)
    data = (tmp_path / "x.lc").read_bytes()
    assert data == api.encode(np.asarray(source), quality=60)
    with Image.open(tmp_path / "x.lc") as image:
        assert (image.format, image.mode, image.size) == ("LATCODEC", mode, (61, 47))
        assert image.get_format_mimetype() == "image/x-latcodec"
        assert "latcodec_notes" not in image.info
        decoded = np.asarray(image)
    assert np.array_equal(decoded, api.decode(data))
    if mode.endswith("A"):
        assert np.array_equal(decoded[..., -1], np.asarray(source)[..., -1])


def test_sixteen_bits_of_gray_stay(photo):
    source = np.asarray(photo.convert("L")).astype(np.uint16) * 257 + 3
    image = reopened(Image.fromarray(source))
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), api.decode(api.encode(source)))
    again = reopened(Image.fromarray(source.astype(np.int32)))
    assert again.mode == "I;16" and np.array_equal(np.asarray(again), np.asarray(image))


@pytest.mark.parametrize(("channels", "mode"), [(2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_sixteen_bits_of_colour_are_reduced_with_a_note(photo, channels, mode):
    colour = np.asarray(photo.convert("RGBA")).astype(np.uint16) * 257 + 100
    data = api.encode(colour[..., :channels])
    image = Image.open(io.BytesIO(data))
    assert image.info["latcodec_notes"] == (f"16 bits reduced to 8: Pillow has no mode {mode} of 16 bits",)
    expected = np.rint(api.decode(data) / 257)
    assert image.mode == mode and np.array_equal(np.asarray(image), expected)


def test_palette_bilevel_and_transparent_colours_are_converted(photo):
    palette = photo.quantize(16)
    assert reopened(palette).mode == "RGB"
    assert saved(palette) == saved(palette.convert("RGB"))
    assert saved(palette, exif=b"") == saved(palette.convert("RGB"))
    palette.info["transparency"] = 3
    opened = reopened(palette)
    assert opened.mode == "RGBA"
    assert np.array_equal(np.asarray(opened)[..., 3] == 0, np.asarray(palette) == 3)
    assert reopened(photo.convert("1")).mode == "L"
    gray = photo.convert("L")
    gray.info["transparency"] = 100
    opened = reopened(gray)
    assert opened.mode == "LA" and np.array_equal(np.asarray(opened)[..., 1] == 0, np.asarray(gray) == 100)
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16))
    deep.info["transparency"] = 100
    opened = reopened(deep)
    assert opened.mode == "LA" and np.array_equal(np.asarray(opened)[..., 1] == 0, np.asarray(gray) == 100)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "HSV", "F"])
def test_modes_that_need_a_person_are_refused(photo, mode, tmp_path):
    source = photo.convert("L").convert(mode) if mode == "F" else photo.convert(mode)
    with pytest.raises(OSError, match=f"mode {mode} cannot be saved as .lc: .*convert it.* first"):
        source.save(tmp_path / "x.lc")
    assert not (tmp_path / "x.lc").exists()


def test_32_bit_values_are_refused():
    with pytest.raises(OSError, match="outside 0..65535"):
        saved(Image.fromarray(np.array([[70000, 1]], np.int32)))


def test_metadata_both_ways(photo):
    exif = exif_with(1).tobytes()
    photo.info |= {"icc_profile": ICC, "exif": exif, "xmp": XMP}
    image = reopened(photo)
    assert image.info == {"icc_profile": ICC, "exif": exif.removeprefix(b"Exif\0\0"), "xmp": XMP}
    assert image.getexif()[271] == "a camera"
    assert reopened(image).info == image.info
    file = io.BytesIO()
    image.save(file, "PNG", exif=image.getexif())
    assert images.read_picture(file.getvalue()).exif is not None
    assert reopened(image, icc_profile=None, exif=b"", xmp=None).info == {}
    assert reopened(image, strip=True, xmp="<text/>").info == {}


def test_arguments_replace_info(photo):
    photo.info |= {"exif": exif_with(1).tobytes(), "xmp": XMP}
    other = exif_with(1)
    other[271] = "another"
    image = reopened(photo, exif=other, xmp="<text/>")
    assert image.getexif()[271] == "another" and image.info["xmp"] == b"<text/>"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_by_the_command(photo, orientation):
    file = io.BytesIO()
    photo.save(file, "PNG", exif=exif_with(orientation))
    expected = api.encode_picture(images.read_picture(file.getvalue())).data
    source = Image.open(file)
    assert saved(source) == expected
    image = reopened(source)
    assert image.getexif().get(274) == 1
    assert image.size == ((61, 47) if orientation < 5 else (47, 61))
    untouched = reopened(source, exif=b"")
    assert untouched.size == (61, 47) and "exif" not in untouched.info


def test_orientation_in_xmp_follows(photo):
    assert b'Orientation="1"' in reopened(photo, exif=exif_with(6), xmp=XMP).info["xmp"]


def test_damaged_exif_is_left_out_with_a_warning(photo):
    with pytest.warns(UserWarning, match="EXIF dropped"):
        assert "exif" not in reopened(photo, exif=b"nonsense").info


def test_rate_options(photo):
    sizes = [len(saved(photo, quality=quality)) for quality in (1, 50.5, 100)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    assert saved(photo, lmbda=20) == saved(photo, quality=1)
    assert saved(photo) == saved(photo, lmbda=1)
    assert len(saved(photo, size_bytes=sizes[1])) <= sizes[1]
    assert 8 * len(saved(photo, bpp=8 * sizes[1] / (61 * 47))) / (61 * 47) <= 8 * sizes[1] / (61 * 47)
    assert saved(photo, codec="hyperprior-context", optimize=True) == saved(photo)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        saved(photo, size_bytes=1)
        saved(photo, psnr=99)
    assert ["cannot be reached" in str(warning.message) for warning in caught] == [True, True]


@pytest.mark.parametrize(
    "options",
    [{"quality": 0}, {"quality": "keep"}, {"quality": True}, {"lmbda": 21}, {"quality": 5, "bpp": 1}, {"codec": "vvc"}],
    ids=str,
)
def test_bad_options_are_value_errors(photo, options, tmp_path):
    with pytest.raises(ValueError):
        photo.save(tmp_path / "x.lc", **options)
    assert not list(tmp_path.iterdir())


def test_truncated_and_damaged_files_say_why(photo, tmp_path):
    data = saved(photo)
    for length in range(4, len(data)):
        with pytest.raises(OSError, match="truncated|damaged"):
            Image.open(io.BytesIO(data[:length]))
    flipped = bytearray(data)
    flipped[40] ^= 1
    (tmp_path / "x.lc").write_bytes(flipped)
    with pytest.raises(OSError, match="damaged"):
        Image.open(tmp_path / "x.lc")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(data[:3]))
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"something else"))
    with pytest.raises(SyntaxError):
        latcodec.pillow.LatcodecImageFile(io.BytesIO(b"something else"))


def test_pillows_own_limit_holds(photo):
    payload = container.unpack(saved(photo))
    huge = container.pack(container.Payload(**{**vars(payload), "width": 2**31, "height": 2**31}))
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(huge))


def test_what_fails_in_load_is_an_os_error(photo, monkeypatch, tmp_path):
    data = saved(photo)
    drifted = container.pack(container.Payload(**{**vars(container.unpack(data)), "integers_crc": 7}))
    image = Image.open(io.BytesIO(drifted))
    with pytest.raises(OSError, match="integers CRC") as caught:
        image.load()
    assert isinstance(caught.value.__cause__, LatcodecError)
    monkeypatch.setenv("LATCODEC_WEIGHTS", str(tmp_path))
    foreign = container.pack(container.Payload(**{**vars(container.unpack(data)), "weights_id": b"none"}))
    with pytest.raises(OSError, match="weights 6e6f6e65 not found"):
        Image.open(io.BytesIO(foreign)).load()


def test_the_manners_of_a_pillow_image(photo, tmp_path):
    path = tmp_path / "x.lc"
    photo.save(path)
    Image.open(path).verify()
    with Image.open(path) as image:
        assert image.tell() == 0
        image.seek(0)
        with pytest.raises(EOFError):
            image.seek(1)
        copy = pickle.loads(pickle.dumps(image))
        assert np.array_equal(np.asarray(copy), np.asarray(image))
        assert np.array_equal(np.asarray(image.copy()), np.asarray(image))
        image.putpixel((0, 0), (1, 2, 3))
        assert image.getpixel((0, 0)) == (1, 2, 3)
        image.save(path, quality=90)  # over itself
    with Image.open(path, formats=["latcodec"]) as image:
        image.load()
        image.load()
    path.unlink()
    image.getpixel((5, 5))
    assert Image.registered_extensions()[".lc"] == "LATCODEC"


def test_opening_imports_no_torch(photo, tmp_path):
    photo.save(tmp_path / "x.lc")
    code = "import sys; import latcodec.pillow; from PIL import Image; im = Image.open(sys.argv[1]); im.verify()"
    code += "; print(im.size, im.mode, *({'torch', 'numpy', 'constriction', 'safetensors'} & set(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.lc")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.split("\n")[0] == "(61, 47) RGB"
