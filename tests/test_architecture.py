"""Imports point down, heavy libraries have one place each, and starting up is light."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from latcodec import backends
from latcodec.bench.environment import CODEC_ROOMS, code_files

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "latcodec"
FILES = sorted(PACKAGE.rglob("*.py"))
CODECS = sorted(path.parent.name for path in PACKAGE.glob("backends/*/codec.py"))

# Bottom first: a module imports from its own layer and from lower ones. Names are modules or packages below `latcodec`,
# and of a package's modules those that have a place of their own go by it.
LAYERS = [
    ["errors", "rates", "runtime", "text"],
    ["entropy", "container", "images", "weights", "metrics", "files", "parallel"],
    ["nn"],
    ["backends.base"],
    ["backends.common"],
    [f"backends.{name}" for name in CODECS],
    ["backends"],  # the registry: the table and the loading of models
    ["settings"],
    ["encoder", "rate_control"],
    ["api"],
    ["train", "bench", "report", "pillow"],
    ["cli"],
    ["__init__", "__main__"],
]
LEVEL = {f"latcodec.{name}": level for level, names in enumerate(LAYERS) for name in names}
MOST_FILES_AT_THE_TOP = 15

# The only modules or packages that may import a library at all, even inside a function.
DOORS = {
    "constriction": ["entropy"],
    "PIL": ["images", "pillow", "bench.anchors", "report"],
    "pillow_jxl": ["bench.anchors"],
    "pooch": ["bench.kodak"],
    "requests": ["bench.kodak"],
    "click": ["cli"],
    "rich": ["cli"],
    "matplotlib": ["report"],
    "jinja2": ["report"],
    "markupsafe": ["report"],
    "scipy": ["metrics"],
    "tifffile": ["images"],
    "imagecodecs": ["images"],
    "reedsolo": ["backends.pln"],
    "safetensors": ["weights"],
    "pytorch_msssim": ["metrics"],
    "torch": ["parallel", "nn", "backends", "train", "metrics", "entropy.integer_net", "bench.timing",
              "bench.environment", "bench.run", "bench.team", "runtime"],
}  # fmt: skip
STANDARD_LIBRARY_ONLY = [
    "errors", "rates", "container", "files", "text", "backends", "backends.base", "backends.loading",
    "backends.hyperprior_context.wire", "__init__", "__main__",
]  # fmt: skip
NO_TORCH_AT_THE_TOP = [
    "api", "settings", "encoder", "rate_control", "runtime", "weights", "images", "metrics", "pillow", "bench",
    "report", "parallel", "cli",
]  # fmt: skip


def module_name(path: Path) -> str:
    """The dotted name of a file of the package, for example latcodec.backends.base."""
    parts = ("latcodec", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if len(parts) > 2 and parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports(source: str, module: str) -> list[tuple[str, bool]]:
    """(dotted name, inside a function) of every import in the text of a module; none of `if TYPE_CHECKING`."""
    tree = ast.parse(source)

    def within(*kinds: type) -> set[int]:
        blocks = [node for node in ast.walk(tree) if isinstance(node, kinds)]
        if ast.If in kinds:
            blocks = [node for node in blocks if "TYPE_CHECKING" in ast.dump(node.test)]
        return {id(inner) for block in blocks for inner in ast.walk(block)}

    for_types, later = within(ast.If), within(ast.FunctionDef, ast.AsyncFunctionDef)
    names = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names += [(alias.name, id(node) in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            names += [(f"{origin}.{alias.name}", id(node) in later) for alias in node.names]
    return names


def imports_of(module: str) -> list[tuple[str, bool]]:
    return imports(MODULES[module].read_text(encoding="utf-8"), module)


def ours(name: str) -> str | None:
    """The module of this package that an imported name is or belongs to; None for another library."""
    while name not in MODULES:
        if "." not in name:
            return "latcodec.__init__" if name == "latcodec" else None
        name = name.rpartition(".")[0]
    return name


def belongs(module: str, places: list[str]) -> bool:
    """Whether a module is one of some modules and packages below `latcodec`."""
    return any(module == f"latcodec.{place}" or module.startswith(f"latcodec.{place}.") for place in places)


def level(module: str) -> int:
    """The layer of a module: that of the longest name in LAYERS that it is or belongs to."""
    fitting = [name for name in LEVEL if module == name or module.startswith(f"{name}.")]
    assert fitting, f"{module} is new: give it a place in LAYERS and in docs/architecture.md"
    return LEVEL[max(fitting, key=len)]


GRAPH = {
    module: {target for name, _ in imports_of(module) if (target := ours(name)) not in (None, module)}
    for module in MODULES
}


def reached_from(module: str) -> set[str]:
    """All modules of this package that importing a module, or calling its functions, can import."""
    reached, new = set(), {module}
    while new:
        reached |= new
        new = {target for one in new for target in GRAPH[one]} - reached
    return reached - {module}


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
    assert set(imports(source, "latcodec.train.data")) == expected


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    here = level(module)
    for target in GRAPH[module] - {"latcodec.__init__"}:  # which holds the version
        assert level(target) <= here, f"{module} imports {target}, which is above it"


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_never_imports_another(codec):
    others = [f"backends.{name}" for name in CODECS if name != codec]
    for module in MODULES:
        if belongs(module, [f"backends.{codec}"]):
            foreign = {target for target in GRAPH[module] if belongs(target, others)}
            assert not foreign, f"{module} imports {foreign}"


def test_what_codecs_share_imports_none_of_them():
    shared = [module for module in MODULES if belongs(module, ["backends.common", "nn"])]
    assert shared
    for module in shared:
        assert not {target for target in GRAPH[module] if belongs(target, [f"backends.{name}" for name in CODECS])}


@pytest.mark.parametrize("codec", CODECS)
def test_a_network_reaches_neither_entropy_coder_nor_container(codec):
    reached = reached_from(f"latcodec.backends.{codec}.network")
    assert not {module for module in reached if belongs(module, ["entropy", "container"])}


def test_every_codec_of_the_table_is_a_folder_and_every_folder_is_in_the_table():
    assert sorted(row.module for row in backends.BACKENDS) == [f"latcodec.backends.{name}.codec" for name in CODECS]
    assert {row.wire_module for row in backends.BACKENDS} - {None} <= set(MODULES)


def test_the_top_of_the_package_stays_readable():
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES_AT_THE_TOP


@pytest.mark.parametrize("module", MODULES)
def test_libraries_have_few_doors(module):
    for target, _ in imports_of(module):
        library = target.split(".")[0]
        if library in DOORS:
            assert belongs(module, DOORS[library]), f"{module} imports {library}, which is for {DOORS[library]}"


@pytest.mark.parametrize("module", MODULES)
def test_light_modules_stay_light(module):
    for target, inside_a_function in imports_of(module):
        library = target.split(".")[0]
        if library == "latcodec" or library in sys.stdlib_module_names:
            continue
        standard = module.removeprefix("latcodec.") in STANDARD_LIBRARY_ONLY or belongs(module, ["container"])
        assert not standard, f"{module} imports {library}"
        if belongs(module, ["cli"]):
            assert library == "click" or inside_a_function, f"{module} imports {library} at its top"
        if belongs(module, NO_TORCH_AT_THE_TOP):
            assert library != "torch" or inside_a_function, f"{module} imports torch at its top"


def loaded_by(statement: str) -> set[str]:
    """Names of the libraries that a fresh interpreter holds after `statement`."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_latcodec_imports_no_torch():
    assert not loaded_by("import latcodec") & {"torch", "PIL", "rich", "click", "scipy", "constriction"}


def test_info_imports_no_torch():
    made = "container.pack(container.Payload(5, b'abcd', 0, 4, 4, False, 8, 0, (b'1',), parameters=bytes((1, 5))))"
    statement = f"import latcodec; from latcodec import container; latcodec.info({made})"
    assert not loaded_by(statement) & {"torch", "numpy", "PIL", "scipy", "constriction", "safetensors"}


def test_importing_the_command_line_imports_click_alone():
    heavy = {"torch", "numpy", "PIL", "rich", "scipy", "skimage", "constriction", "safetensors"}
    assert not loaded_by("import latcodec.cli.main") & heavy


def test_the_fingerprint_of_the_codecs_covers_whole_packages():
    assert {path for module, path in MODULES.items() if belongs(module, list(CODEC_ROOMS))} == set(code_files())


def test_the_wheel_holds_every_package():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^    "(latcodec[\w.]*)",$', project, re.MULTILINE))
    packages = {".".join(("latcodec", *path.relative_to(PACKAGE).parts[:-1])) for path in FILES}
    assert listed == packages | {"latcodec._weights"}
