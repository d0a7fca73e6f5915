"""Shared by the test files: the command line in an empty folder or beside a finished tiny run."""

import gc
import io
import json
import os
import random
import shutil
import signal
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import settings

from support.commands import Cli, Ended, run_outside, stock
from support.slow import is_slow

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in every job of a script with `&`,
    signal.signal(signal.SIGINT, signal.default_int_handler)  # where Ctrl-C cannot be tested
# what is not measured in tests (rl_reasoner.machine), by name
CHOICES: dict[str, Any] = {
    "native": False,
    "products": {"forward": "torch", "input": "torch", "weight": "torch", "rates": {}},
}
if os.environ.get("RL_REASONER_DOCS") != "full":  # documents at full size: as a user sees them
    os.environ.setdefault("RL_REASONER_CHOICES", json.dumps(CHOICES))
os.environ.setdefault("RL_REASONER_REPORT_TO", "none")  # no dashboard, also where there is one
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read once, when huggingface_hub is imported
# Untimed: a busy machine is no failure. The gate draws the same examples at each run of a commit;
# `make properties` draws fresh ones.
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("fresh", deadline=None, max_examples=1000)
settings.load_profile("gate")


ThreadingHTTPServer.request_queue_size = 128  # of the sixth that waits, a connection is reset


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it, and is the same at each run."""
    random.seed(0)
    numpy.random.seed(0)
    if torch := sys.modules.get("torch"):  # else it begins with a seed of its own, always the same
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Let the collector of garbage leave alone what is loaded: half a million objects, which each
    trainer's end would have it look through."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, so that `make test FAST=1` leaves it out."""
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """`rl-reasoner ARGUMENTS` in this process, in a folder of its own (`tmp_path`).

    An exception that the command line lets through fails the test, as its traceback would be shown.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RL_REASONER_DATA", raising=False)
    monkeypatch.setenv("RL_REASONER_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))

    def run(*argv: str | Path, stdin: str = "") -> Ended:
        from rl_reasoner.cli import main

        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        shown = capsys.readouterr()
        return Ended(code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `rl-reasoner train tiny.yaml --json` has been run; the run is in `run`."""
    folder = tmp_path_factory.mktemp("trained")
    stock(folder)
    done = run_outside(folder, "train", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    (folder / "train.json").write_text(done.stdout, encoding="utf-8")
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path) -> Path:
    """The folder that `cli` runs in, with the files above and a copy of the finished run."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def any_processor_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 copies are sampled from on any processor; without instructions for it, slowly."""
    from rl_reasoner.rollout import sampling_weights

    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: True)
