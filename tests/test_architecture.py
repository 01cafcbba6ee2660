"""The rooms import downwards only, heavy packages have one door each, and starting up is light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latcodec.bench.environment import CODEC_ROOMS, code_files

PACKAGE = Path(__file__).parents[1] / "latcodec"
ROOMS = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Bottom first. A module imports from lower layers, and from its own module or package. `__init__` reaches api inside
# functions and is therefore last, while `from latcodec import __version__` is open to all.
LAYERS = [
    ["errors"],
    ["rates", "runtime", "text"],
    ["container", "entropy", "metrics", "files", "images", "weights", "parallel"],
    ["nn"],
    ["backends"],
    ["settings"],
    ["encoder"],
    ["rate_control"],
    ["api"],
    ["train", "report", "pillow"],
    ["bench"],
    ["cli"],
    ["__init__", "__main__"],
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}

# The only modules or packages that may import a library at all, even inside a function.
DOORS = {
    "constriction": {"entropy"},
    "PIL": {"images", "pillow", "bench/anchors", "report"},
    "pillow_jxl": {"bench/anchors"},
    "pooch": {"bench/kodak"},
    "requests": {"bench/kodak"},
    "click": {"cli"},
    "rich": {"cli"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "scipy": {"metrics"},
    "tifffile": {"images"},
    "imagecodecs": {"images"},
    "reedsolo": {"backends"},
    "safetensors": {"weights"},
    "pytorch_msssim": {"metrics"},
    "torch": {"parallel", "nn", "backends", "api", "train", "metrics", "entropy/integer_net", "bench/timing",
              "bench/environment", "bench/run", "bench/team", "runtime"},
}  # fmt: skip
STANDARD_LIBRARY_ONLY = {"errors", "rates", "container", "files", "text", "__init__", "__main__", "cli"}
LIGHT_AT_THE_TOP = STANDARD_LIBRARY_ONLY | {
    "api", "settings", "encoder", "rate_control", "runtime", "weights", "images", "metrics", "pillow", "bench",
    "report", "parallel",
}  # fmt: skip


def imports(source: str, room: Path) -> list[tuple[str, bool]]:
    """(dotted name, inside a function) of every import in the text of a room; `if TYPE_CHECKING` counts for nothing."""
    tree = ast.parse(source)

    def within(*kinds: type) -> set[int]:
        blocks = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        if ast.If in kinds:
            blocks = [node for node in blocks if "TYPE_CHECKING" in ast.dump(node.test)]
        return {id(inner) for block in blocks for inner in ast.walk(block)}

    skipped, later = within(ast.If), within(ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["latcodec", *room.parts[:-1]]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            found += [(f"{origin}.{alias.name}", id(node) in later) for alias in node.names]
    return found


def imports_of(room: Path) -> list[tuple[str, bool]]:
    return imports((PACKAGE / room).read_text(encoding="utf-8"), room)


def room_of(part: str) -> str:
    """The module or package of a file or folder."""
    return part.removesuffix(".py")


def test_every_form_of_import_is_seen():
    source = """
import a.b
from ..c import d as e
from . import f
try:
    from latcodec.g import h
except ImportError:
    pass
if TYPE_CHECKING:
    import i
def function():
    import j
"""
    expected = {
        ("a.b", False),
        ("latcodec.c.d", False),
        ("latcodec.train.f", False),
        ("latcodec.g.h", False),
        ("j", True),
    }
    assert set(imports(source, Path("train/data.py"))) == expected


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_rooms_import_downwards(room):
    here = room_of(room.parts[0])
    assert here in LEVEL, (
        f"{room} is a new room: give it a line in LAYERS and in the list of packages in docs/architecture.md"
    )
    for target, _ in imports_of(room):
        parts = target.split(".")
        there = room_of(parts[1]) if len(parts) > 1 else ""
        if parts[0] == "latcodec" and there in LEVEL:
            assert there == here or LEVEL[there] < LEVEL[here], f"{room} imports {target}, which is not below it"


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_packages_have_few_doors(room):
    names = {room_of(room.parts[0]), room.with_suffix("").as_posix()}
    for target, _ in imports_of(room):
        package = target.split(".")[0]
        assert names & DOORS.get(package, names), f"{room} imports {package}, which is for {DOORS[package]}"


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_light_rooms_stay_light(room):
    here = room_of(room.parts[0])
    for target, inside_a_function in imports_of(room):
        package = target.split(".")[0]
        foreign = (
            package not in sys.stdlib_module_names and package != "latcodec" and (here, package) != ("cli", "click")
        )
        if here in STANDARD_LIBRARY_ONLY:
            assert not foreign or (here == "cli" and inside_a_function), f"{room} imports {package}"
        if here in LIGHT_AT_THE_TOP and not inside_a_function:
            assert package != "torch", f"{room} imports torch at its top"


def loaded_by(statement: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_latcodec_imports_no_torch():
    assert not loaded_by("import latcodec") & {"torch", "PIL", "rich", "click", "scipy", "constriction"}


def test_importing_the_command_line_imports_click_alone():
    heavy = {"torch", "numpy", "PIL", "rich", "scipy", "skimage", "constriction", "safetensors"}
    assert not loaded_by("import latcodec.cli.main") & heavy


def test_the_fingerprint_of_the_codecs_covers_whole_rooms():
    covered = {room for room in ROOMS if room_of(room.parts[0]) in CODEC_ROOMS}
    assert {PACKAGE / room for room in covered} == set(code_files())


def test_the_wheel_holds_every_package():
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(latcodec[\w.]*)",$', project, re.MULTILINE))
    there = {".".join(("latcodec", *room.parts[:-1])) for room in ROOMS}
    assert listed == there | {"latcodec._weights"}
