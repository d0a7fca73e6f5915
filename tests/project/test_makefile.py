"""The Makefile on machines that lack something: it says what, ends with 2, and leaves nothing."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from support.places import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, python: str, *targets: str) -> subprocess.CompletedProcess[str]:
    """`make` in a folder with the project's Makefile, with a Python that this script acts out."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "constraints.txt", folder)
    script = folder / "acted"
    script.write_text(f"#!/bin/sh\n{python}\n", encoding="utf-8")
    script.chmod(0o755)
    command = ["make", "PYTHON=./acted", *targets]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["quickstart", "test", "lint"])
def test_a_python_that_is_too_old_is_said(target: str, tmp_path: Path) -> None:
    done = make(tmp_path, '[ "$1" = -c ] && exit 1; mkdir .venv', target)
    assert done.returncode == 2
    assert "needs Python >= 3.11" in done.stdout
    assert "make PYTHON=" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_a_python_without_venv_is_said_with_what_to_install(tmp_path: Path) -> None:
    acted = '[ "$1" = -c ] && exit 0; mkdir -p .venv/bin; touch .venv/bin/python; exit 1'
    done = make(tmp_path, acted, "quickstart")
    assert done.returncode == 2
    assert "sudo apt install python3-venv" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_quickstart_installs_and_then_trains(tmp_path: Path) -> None:
    done = make(tmp_path, "exit 1", "--dry-run", "quickstart")
    assert done.returncode == 0
    install, train = done.stdout.index(".ci/install.py -e ."), done.stdout.index("train quickstart")
    assert install < train


def test_a_real_run_needs_a_recipe_and_passes_its_flags(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for made in (".venv/bin/python", ".venv/dev"):
        (tmp_path / made).touch()
        os.utime(tmp_path / made, (2**32, 2**32))  # newer than what it is made of
    done = make(tmp_path, "exit 1", "real")
    assert done.returncode == 2 and "make real RECIPE=" in done.stdout
    told = make(tmp_path, "exit 1", "--dry-run", "real", "RECIPE=x", "SEED=3", "FLAGS=--steps 2")
    assert "run.py x --seed 3 --data ../shared/data --steps 2" in told.stdout


def test_clean_removes_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".venv").mkdir()
    (tmp_path / "runs").mkdir()
    assert make(tmp_path, "exit 1", "clean").returncode == 0
    assert not (tmp_path / ".venv").exists()
    assert (tmp_path / "runs").exists()  # results are the user's


def test_an_installation_tells_what_it_fetches_and_how_many_there_are() -> None:
    said = """Obtaining file:///here
  Preparing metadata (pyproject.toml): started
Collecting torch<3,>=2.9
  Downloading torch-2.13.0-cp311-cp311-linux_x86_64.whl.metadata (30 kB)
  Downloading https://example.org/whl/torch-2.13.0%2Bcpu-cp311-linux_x86_64.whl (196.7 MB)
  Using cached typing_extensions-4.15.0-py3-none-any.whl (44 kB)
Installing collected packages: typing_extensions, torch
Successfully installed torch-2.13.0 typing_extensions-4.15.0"""
    script = runpy.run_path(str(ROOT / ".ci" / "install.py"))
    assert [*script["told"](said.splitlines())] == [
        "    1 torch (196.7 MB)",
        "    2 typing_extensions (44 kB)",
        "  all fetched; installing 2 packages",
    ]


@pytest.mark.parametrize(
    ("errors", "left"),
    [
        ("    The user requested (constraint) tri-ton_x==2.0", ["a==1"]),
        ("ERROR: No matching distribution found for Tri.ton-X==2.0", ["a==1"]),
        ("  ERROR: Failed building wheel for tri_ton_x", ["a==1"]),
        ("ERROR: no space left", []),
        ("    The user requested (constraint) torch<=2.13.0", []),
    ],
)
def test_a_tested_version_that_cannot_be_had_stops_no_installation(
    errors: str, left: list[str]
) -> None:
    script = runpy.run_path(str(ROOT / ".ci" / "install.py"))
    assert script["without"](["a==1", "tri_ton.x==2.0"], errors) == left


def test_an_installation_goes_by_the_tested_versions_or_by_the_ranges(tmp_path: Path) -> None:
    """With a pip of its own: it refuses one version, then all others for a reason unsaid."""
    (tmp_path / "pip.py").write_text(
        "import sys\n"
        "named = open(sys.argv[sys.argv.index('-c') + 1]).read().split()\n"
        "print('Downloading x-1.whl')\n"
        "if 'sympy==0' in named:\n"
        "    print('    The user requested (constraint) sympy==0')\n"
        "sys.stderr.write('ERROR: it failed\\n' * bool(named))\n"
        "sys.exit(bool(named))\n"
    )
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "install.py", tmp_path / ".ci")
    (tmp_path / "constraints.txt").write_text("# those\nrich==1\nsympy==0\n")
    script = [sys.executable, tmp_path / ".ci" / "install.py", "-e", "."]
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(script, capture_output=True, text=True, env=path, timeout=60)
    assert done.returncode == 0 and "ERROR" not in done.stderr
    assert done.stdout.splitlines() == [
        "    1 x",
        "  cannot be installed here, by its range instead: sympy==0",
        "    1 x",
        "  cannot be installed here, by its range instead: the tested versions",
        "    1 x",
    ]


def test_every_package_of_the_tests_has_a_tested_version() -> None:
    """But torch: which build there is, a machine's index decides."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()[1:]
    names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    named = {re.match(r"[\w.-]+", w)[0].lower().replace("_", "-") for w in wanted}  # type: ignore[index]
    assert named - names == {"torch", "setuptools"}
