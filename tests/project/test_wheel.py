"""The wheel and the source archive: complete, and working where there is no clone."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.places import ROOT

ROOMS = ("rewards", "recipes", "data")
SHIPPED = {".py", ".typed", ".json", ".jsonl", ".md", ".yaml", ".css", ".js", ".sh", ".cpp", ".h"}


def tracked() -> list[Path]:
    """The files of the repository, without what lies behind links to folders."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def expected() -> set[str]:
    """Every tracked file of the package and its rooms, under its name in the wheel."""
    names = set()
    for path in tracked():
        linked = (ROOT / path).is_symlink() and path.name != "constraints.txt"
        if path.suffix in (*SHIPPED, ".txt") and not linked:
            if path.parts[0] == "rl_reasoner":
                names.add(path.as_posix())
            elif path.parts[0] in ROOMS:
                names.add(f"rl_reasoner/{path.as_posix()}")
    return names


@dataclass(frozen=True)
class Built:
    """What was built from the tracked files alone, and the wheel's installation."""

    wheel: Path
    archive: Path
    installed: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The source archive of a copy of the tracked files, and the wheel made of the archive."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_symlink():
            (source / path).symlink_to((ROOT / path).readlink())
        else:
            (source / path).write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [wheel] = (folder / "dist").glob("*.whl")
    [archive] = (folder / "dist").glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*pip, "--target", str(folder / "here"), str(wheel)], check=True)
    return Built(wheel, archive, folder / "here")


def outside(built: Built, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Python without this environment's editable installation: the wheel, and what it depends on.

    `-S` keeps `.pth` files from being read, `-P` the current folder out of the path.
    """
    path = os.pathsep.join([str(built.installed), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-S", "-P", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_the_list_of_packages_is_every_folder_with_code() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = listed["tool"]["setuptools"]["packages"]
    folders = {Path(name).parent.as_posix() for name in expected() if name.endswith("__init__.py")}
    assert {name.replace(".", "/") for name in packages} == folders
    assert len(packages) == len(set(packages))
    with_code = {Path(name).parent.as_posix() for name in expected() if name.endswith(".py")}
    assert with_code == folders  # no folder of code lacks its __init__.py


def test_the_wheel_holds_every_tracked_file_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        [licence] = [name for name in wheel.namelist() if name.endswith("LICENSE")]
        assert b"Apache License" in wheel.read(licence)
    assert names == expected()
    assert "rl_reasoner/py.typed" in names
    assert "rl_reasoner/recipes/quickstart.yaml" in names
    assert "rl_reasoner/data/modular_test.jsonl" in names


def test_the_source_archive_holds_what_the_wheel_is_made_of(built: Built) -> None:
    with tarfile.open(built.archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in expected():
        room = name.removeprefix("rl_reasoner/")
        assert (room if room.partition("/")[0] in ROOMS else name) in names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_outside_the_clone_the_wheel_is_what_is_imported(built: Built, tmp_path: Path) -> None:
    code = "import rl_reasoner, sys; print(rl_reasoner.__file__); "
    code += "import rl_reasoner.rewards.boxed as b; print(b.__file__); "
    code += "print([n for n in ('rewards', 'recipes', 'data') if __import__('importlib.util')"
    code += ".util.find_spec(n)])"
    done = outside(built, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    package, room, top = done.stdout.splitlines()
    assert Path(package) == built.installed / "rl_reasoner/__init__.py"
    assert Path(room) == built.installed / "rl_reasoner/rewards/boxed.py"
    assert top == "[]"  # no such names at the top level


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("recipes", {"gsm8k", "noisy_start", "quickstart"}),
        ("rewards", {"boxed", "countdown", "format_tags", "length"}),
        ("sets", {"modular_test", "word_problems", "programming"}),
    ],
)
def test_the_wheel_lists_what_it_brings(
    kind: str, names: set[str], built: Built, tmp_path: Path
) -> None:
    done = outside(built, tmp_path, "-m", "rl_reasoner.cli", "list", kind, "--json")
    assert done.returncode == 0, done.stderr
    assert names <= set(json.loads(done.stdout)[kind])


def test_the_wheel_shows_and_copies_the_quickstart(built: Built, tmp_path: Path) -> None:
    cli = ("-m", "rl_reasoner.cli")
    done = outside(built, tmp_path, *cli, "train", "quickstart", "--help")
    assert done.returncode == 0, done.stderr
    assert "--grpo.group.size" in done.stdout
    assert outside(built, tmp_path, *cli, "copy", "quickstart.yaml").returncode == 0
    shown = outside(built, tmp_path, *cli, "train", "./quickstart.yaml", "--help")
    assert shown.stdout == done.stdout


def test_the_installed_command_is_there(built: Built) -> None:
    assert (built.installed / "bin" / "rl-reasoner").is_file()


def test_nobody_is_told_to_install_a_name_that_is_on_no_index() -> None:
    """Anybody could take it there: `.[extra]` in a clone, or `version.install_extra`."""
    told = re.compile(r"\b(pip3?|pipx|uv|uvx|poetry)\b[^|\n#]*[\s'\"=]rl[-_.]reasoner\b(?!/)")
    found = []
    for path in tracked():
        if path.suffix in (".py", ".md", ".yml", ".yaml", ".toml", ".ipynb", ".cff", "") and not (
            (ROOT / path).is_symlink() or path.parts[0] == "tests"
        ):
            text = (ROOT / path).read_text(encoding="utf-8")
            found += [f"{path}: {line.strip()}" for line in text.split("\n") if told.search(line)]
    assert not found


def test_an_extra_is_installed_by_what_it_adds() -> None:
    from rl_reasoner.version import install_extra

    assert install_extra("server").startswith("pip install 'openai")
    assert "rl-reasoner" not in install_extra("ray")
