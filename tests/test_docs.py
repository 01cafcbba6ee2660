"""The documentation names only links, files, modules, tests, targets and options that exist, and its examples run."""

import ast
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latcodec.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "weights/*.md", "experiments/*.md", "latcodec/**/*.md")
    for page in ROOT.glob(pattern)
)
CURRENT = [page for page in PAGES if page.name != "CHANGELOG.md"]  # a changelog names what is gone
FOLDERS = "latcodec|tests|experiments|examples|docs|weights"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*[\w/]|(?<![\w./-])\.ci/\w+")
DOTTED = re.compile(r"(?<![\w./-])latcodec(?:\.[A-Za-z_]\w*)+")
NAME_IN_FILE = re.compile(r"`([A-Za-z_]\w*)` in `([\w]+/[\w/]+\.py)`")
TEST = re.compile(r"`(test_\w+)`")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MAKE = re.compile(r"make ([a-z-]+)")
CODE = re.compile(r"`([^`]+)`")
PLACEHOLDER = re.compile(r"[A-Z]{2,}(?!\w*\.md)")  # NAME.safetensors, but not README.md

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
current = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())


def headings(page: Path) -> set[str]:
    """The anchors that a Markdown page offers to links."""
    lines = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def defined(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that statements define, with the statement of each."""
    found = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {name.id: node for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):  # public names of a lazy package
            found |= defined(node.body)
    return found


def exists(dotted: str) -> bool:
    """Whether a module, or a name in a module or class, exists; nothing is imported."""
    place, words = ROOT, dotted.split(".")
    while words and (place / words[0]).is_dir():
        place /= words.pop(0)
    module = place / f"{words[0]}.py" if words else place / "__init__.py"
    if words and module.is_file():
        words.pop(0)
    else:
        module = place / "__init__.py"
    if not module.is_file():
        return False
    body = ast.parse(module.read_text(encoding="utf-8")).body
    for word in words:
        names = defined(body)
        if word not in names and "__getattr__" in names:  # a name that is imported when it is first used
            return f'"{word}"' in ast.unparse(names["__all__"]).replace("'", '"')
        if word not in names:
            return False
        node = names[word]
        body = node.body if isinstance(node, ast.ClassDef) else []
    return True


def lines_of_code(text: str) -> list[str]:
    """The lines of the code blocks of a page, and the code in its sentences."""
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    return lines + [" ".join(code.split()) for code in CODE.findall(FENCE.sub("", text))]


def commands(text: str) -> list[list[str]]:
    """The words of every latcodec command in the code of a page, from the name of the command on."""
    found = []
    for line in lines_of_code(text):
        for part in line.split(" #")[0].split(" | "):
            words = part.split() if "'" in part else shlex.split(part)
            for before, name in zip(words, words[1:], strict=False):
                if before == "latcodec" and name in cli.commands:
                    found.append(words[words.index(name) :])
    return found


@pages
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@current
def test_files_exist(page):
    for path in PATH.findall(page.read_text(encoding="utf-8")):
        assert PLACEHOLDER.search(path) or (ROOT / path).exists(), path


def test_every_package_is_described():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {path for path in (ROOT / "latcodec").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    described = {ROOT / path for path in PATH.findall(text)}
    assert {room for room in rooms if not room.name.startswith("__")} <= described


@current
def test_names_exist(page):
    for name in DOTTED.findall(page.read_text(encoding="utf-8")):
        assert exists(name), name


@current
def test_names_exist_where_they_are_said_to_be(page):
    for name, path in NAME_IN_FILE.findall(page.read_text(encoding="utf-8")):
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{name} in {path}"


@current
def test_tests_exist(page):
    files = (path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    names = {name for text in files for name in re.findall(r"def (test_\w+)", text)}
    assert set(TEST.findall(page.read_text(encoding="utf-8"))) <= names


@current
def test_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {match[1] for line in lines_of_code(page.read_text(encoding="utf-8")) if (match := MAKE.match(line))}
    assert named <= targets


@current
def test_options_exist(page):
    for name, *words in commands(page.read_text(encoding="utf-8")):
        known = {option for parameter in cli.commands[name].params for option in parameter.opts}
        given = {word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)}
        assert given <= known | {"--help"}, name


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_examples_run(name, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save("photo.png")
    text = (ROOT / name).read_text(encoding="utf-8")
    examples = [block for language, block in FENCE.findall(text) if language == "python"]
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), {})


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 150
