"""The rooms of the package: their layers are linted; their sizes and names are counted."""

import ast
import shutil
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from inspect import getsource, isfunction
from itertools import permutations
from pathlib import Path
from statistics import median

import pytest
import trl

from rl_reasoner import GRPOTrainer
from support.places import ROOT

PACKAGE = ROOT / "rl_reasoner"
MODULES = [
    p for p in sorted(PACKAGE.rglob("*.py")) if "rewards" not in p.relative_to(PACKAGE).parts
]
# Public names that stand in more than one module, each with the reason.
SHARED = {
    "logger": "the logger of each module, as everybody calls it",
    "main": "where a process begins: the command line, workers, the sandbox's child and zygote",
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of pyproject.toml, on the package in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, in which every contract is kept."""
    folder = tmp_path_factory.mktemp("walls")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / "rl_reasoner", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    linted = lint(folder)
    assert linted.returncode == 0, linted.stdout
    return folder


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("errors", "from rl_reasoner.language import units", "one way down"),
        ("scoring.rule", "from rl_reasoner.cli import main", "one way down"),
        ("answers.tree", "from rl_reasoner.answers import parsing", "no circles inside a room"),
        ("sandbox.plans", "import torch", "rooms without torch"),
    ],
)
def test_an_import_through_a_wall_is_found(
    module: str, line: str, contract: str, copied: Path
) -> None:
    planted = copied / "rl_reasoner" / f"{module.replace('.', '/')}.py"
    source = planted.read_text(encoding="utf-8")
    planted.write_text(f"{source}\n\ndef _planted() -> None:\n    {line}\n", encoding="utf-8")
    linted = lint(copied)
    planted.write_text(source, encoding="utf-8")
    assert linted.returncode == 1
    assert f"{contract} BROKEN" in linted.stdout
    assert f".{module.rpartition('.')[2]} -> " in linted.stdout


def test_a_room_without_a_place_in_the_layers_is_found(copied: Path) -> None:
    room = copied / "rl_reasoner" / "attic"
    room.mkdir()
    (room / "__init__.py").touch()
    linted = lint(copied)
    shutil.rmtree(room)
    assert linted.returncode == 1
    assert "attic" in linted.stdout


def test_rooms_are_small() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 12
    sizes: dict[Path, int] = defaultdict(int)
    for path in MODULES:
        sizes[path.parent] += 1
    del sizes[PACKAGE]
    assert max(sizes.values()) <= 24
    assert median(sizes.values()) <= 8


def test_files_and_functions_are_short() -> None:
    for folder in ("rl_reasoner", "rewards", "recipes", "data", "tests", "benchmarks", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            assert source.count("\n") <= 500, path
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    assert (node.end_lineno or 0) - node.lineno < 60, (path, node.name)


def test_every_room_says_what_it_is() -> None:
    for path in MODULES:
        if path.name == "__init__.py":
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert text and len(text.split()) > 8, path


def test_every_room_is_in_the_tree_of_contributing() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## The rooms")[2]
    for folder in {path.parent for path in MODULES} - {PACKAGE}:
        assert f" {folder.name}/" in tree, folder


def public(body: list[ast.stmt]) -> Iterator[str]:
    """The public names that statements of a module define."""
    for node in body:
        match node:
            case (
                ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
            ):
                yield name
            case ast.Assign(targets=targets):
                for target in targets:
                    yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=inner, orelse=other) | ast.Try(body=inner, orelse=other):
                yield from public([*inner, *other])


def test_a_public_name_means_one_thing() -> None:
    places = defaultdict(list)
    for path in [*MODULES, *sorted((ROOT / "rewards").glob("*.py"))]:
        for name in {*public(ast.parse(path.read_text(encoding="utf-8")).body)}:
            if not name.startswith("_"):
                places[name].append(path.relative_to(ROOT).as_posix())
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice.keys() == SHARED.keys(), {n: f for n, f in twice.items() if n not in SHARED}
    assert len(SHARED) <= 8


def test_the_trainer_reads_from_top_to_bottom() -> None:
    """At most three classes of ours, each method of trl's in one of them, no state across them.

    Constructors aside: each class has one.
    """
    ours = [kind for kind in GRPOTrainer.__mro__ if kind.__module__.startswith("rl_reasoner.")]
    assert len(ours) <= 3
    overridden = Counter(
        name
        for kind in ours
        for name, value in vars(kind).items()
        if isfunction(value) and hasattr(trl.GRPOTrainer, name) and name != "__init__"
    )
    assert max(overridden.values()) == 1, overridden
    for one, other in permutations(ours, 2):
        assert not private(one, ast.Store) & private(other, ast.Load)


def private(kind: type, context: type[ast.expr_context]) -> set[str]:
    """The private attributes of `self` that a class sets, or reads."""
    return {
        node.attr
        for node in ast.walk(ast.parse(textwrap.dedent(getsource(kind))))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        and isinstance(node.ctx, context)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
    }


def test_the_package_loads_little_by_itself() -> None:
    code = "import sys, rl_reasoner; print(sum(m.startswith('rl_reasoner') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12
