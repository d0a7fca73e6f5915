"""The tested set of versions, what newer packages break, and the hook that keeps main green."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import provenance
from support.places import ROOT


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`.ci/versions.py`, with an environment whose packages and tests are made up."""
    spec = importlib.util.spec_from_file_location("versions", ROOT / ".ci" / "versions.py")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "SET", tmp_path / "constraints.txt")
    monkeypatch.setattr(module, "environment", lambda name, beyond: Path(sys.executable))
    now = ["peft==2", "rich==14.1", "Tri_ton.x==3", "sympy==1.15"]
    monkeypatch.setattr(module, "installed", lambda python: now)
    module.SET.write_text("# those\nrich==14.0\npeft==1\nold==1\nsympy==1.15\n")
    return module


def test_the_set_is_written_where_all_tests_pass_and_only_there(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = script.SET.read_text()
    monkeypatch.setattr(script, "failures", lambda *given: {"tests/a.py::b"})
    assert script.tested() == 1 and script.SET.read_text() == before
    monkeypatch.setattr(script, "failures", lambda *given: set())
    assert script.tested() == 0
    assert script.SET.read_text().splitlines()[2:] == script.installed(None)
    told = capsys.readouterr().out
    assert "rich       14.0 -> 14.1" in told and "old        1 -> not there" in told
    assert "sympy" not in told


def test_what_is_newest_is_told_with_the_tests_that_fail_for_it(
    script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failed test again, with one package as it was: of the project's own packages first."""
    again: list[tuple[str, Sequence[str]]] = []

    def failures(python: Path, *given: str, path: Path | None = None) -> set[str]:
        if path is None:
            return {"tests/contract"} if script.CONTRACTS in given else {"tests/a", "tests/b"}
        again.append((path.name, given[2:]))
        return {*given[2:]} - {"peft": {"tests/a"}, "rich": {"tests/b"}}[path.name]

    monkeypatch.setattr(script, "failures", failures)
    monkeypatch.setattr(script.subprocess, "run", lambda *given: subprocess.CompletedProcess("", 0))
    assert script.latest() == 1
    assert again == [
        ("peft", ("tests/a", "tests/b", "tests/contract")),
        ("rich", ("tests/b", "tests/contract")),
    ]
    told = capsys.readouterr().out.splitlines()
    assert told[2:] == [
        "4 packages moved since constraints.txt; 3 tests fail",
        "  peft       1 -> 2",
        "      fails: tests/a",
        "  rich       14.0 -> 14.1",
        "      fails: tests/b",
        "  old        1 -> not there",
        "  tri-ton-x  not there -> 3",
        "  because of no package alone, or not of a package:",
        "      fails: tests/contract",
    ]


def test_which_build_of_torch_there_is_an_index_decides(script: Any) -> None:
    lines = [
        "torch==2.13",
        "nvidia-nccl-cu13==2",
        "triton==3",
        "torchvision==1",
        "-e here",
        "#x==1",
    ]
    assert script.versions(lines) == {"torchvision": "1"}


def test_a_package_that_moved_out_of_the_tested_set_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provenance.untested.cache_clear()
    here = {**provenance.versions(), "transformers": "9.9"}
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "versions", lambda: here)
        told = provenance.untested()
    provenance.untested.cache_clear()
    assert told.startswith("transformers 9.9 (tested with 5.") and "torch" not in told


@pytest.mark.parametrize("inside", ["a program", "a command"])
def test_an_old_trl_is_one_clear_line(inside: str, tmp_path: Path) -> None:
    kept = tmp_path / "trl-0.20.0.dist-info" / "METADATA"
    for file, text in ((kept, "Name: trl\nVersion: 0.20.0\n"), (tmp_path / "trl.py", "")):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    run = {
        "a program": ["-c", "from rl_reasoner import GRPOTrainer"],
        "a command": ["-m", "rl_reasoner.cli", "check", "quickstart"],
    }
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *run[inside]], capture_output=True, text=True, env=path, cwd=tmp_path
    )
    said = done.stderr.splitlines()
    assert done.returncode in (1, 2) and "trl 0.20.0 is here, needed is trl" in said[-1]
    assert any(re.search("No module named|cannot import", line) for line in said), (
        "what went wrong is said, too"
    )
    assert ("Traceback" in done.stderr) == (inside == "a program")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the hook; its lint refuses a file that says `wrong`."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for tool in ("python", "lint-imports"):
        file = tmp_path / ".venv" / "bin" / tool
        file.write_text("#!/bin/sh\n! grep -q wrong file.py || { echo file.py: wrong; exit 1; }\n")
        file.chmod(0o755)
    (tmp_path / "file.py").write_text("right")
    shutil.copytree(ROOT / ".githooks", tmp_path / ".githooks", symlinks=True)
    git(tmp_path, "init", "-q", "-b", "main")
    git(tmp_path, "config", "core.hooksPath", ".githooks")
    git(tmp_path, "add", "file.py")
    return tmp_path


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    name = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    own = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", *name, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=own)


def test_what_lint_refuses_is_not_committed_on_main(clone: Path) -> None:
    """As it is in the index, not as it lies in the folder."""
    (clone / "file.py").write_text("wrong, but not to be committed")
    assert git(clone, "commit", "-m", "one").returncode == 0
    git(clone, "add", "file.py")
    (clone / "file.py").write_text("right again, and not to be committed")
    refused = git(clone, "commit", "-m", "two")
    assert refused.returncode == 1
    assert "mypy:\nfile.py: wrong" in refused.stdout + refused.stderr
    assert "git switch -c NAME" in refused.stdout + refused.stderr
    git(clone, "switch", "-q", "-c", "other")
    assert git(clone, "commit", "-m", "two").returncode == 0


def test_a_merge_is_a_commit(clone: Path) -> None:
    assert git(clone, "commit", "-m", "one").returncode == 0
    git(clone, "switch", "-q", "-c", "other")
    (clone / "file.py").write_text("wrong")
    assert git(clone, "commit", "-am", "two").returncode == 0
    git(clone, "switch", "-q", "main")
    merged = git(clone, "merge", "--no-ff", "--no-edit", "other")
    assert merged.returncode != 0 and "main stays green" in merged.stdout + merged.stderr


def test_nothing_is_committed_on_main_unchecked(clone: Path) -> None:
    shutil.rmtree(clone / ".venv")
    assert git(clone, "commit", "-m", "one").returncode == 1
