"""The Makefile on machines that lack something: it says what, ends with 2, and leaves nothing."""

import os
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from support.places import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(folder: Path, python: str, *targets: str) -> subprocess.CompletedProcess[str]:
    """`make` in a folder with the project's Makefile, with a Python that this script acts out."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
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
