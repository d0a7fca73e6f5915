"""Escapes are contained, forgeries earn nothing, honest programs pass: as root and as anybody."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from rl_reasoner import sandbox
from rl_reasoner.sandbox import levels
from support.attacks import escapes, forgeries, honest, stage
from support.places import ROOT

COUNT = len(escapes.ESCAPES) + len(forgeries.FUNCTIONS) + len(forgeries.SCRIPTS)
QUICK = ("escapes/files", "escapes/network", "escapes/processes", "forged/a", "honest/c")


def judged(level: str, groups: tuple[str, ...], command: list[str]) -> dict[str, Any]:
    """What the corpus came to at `level` when started by `command`."""
    found = sandbox.strength()
    if levels.LEVELS.index(found.level) > levels.LEVELS.index(level):
        pytest.skip(str(found))
    environment = {"PATH": os.environ["PATH"], levels.LIMIT_VARIABLE: level}
    done = subprocess.run(
        [*command, str(ROOT / "tests/support/attacks/stage.py"), *groups],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["level"] == level
    return told


def as_ordinary_user() -> list[str]:
    """A command line that starts Python as an ordinary user."""
    if os.geteuid():
        return [sys.executable]
    needed = ",".join({sys.base_prefix, sys.prefix, str(ROOT)})
    return [sys.executable, str(ROOT / "tests/support/attacks/ordinary.py"), needed, sys.executable]


def test_the_corpus_at_the_strongest_level() -> None:
    told = judged("namespaces", (), [sys.executable])
    assert COUNT >= 60 and told["ran"] == COUNT + len(honest.HONEST)
    assert told["wrong"] == {}


def test_the_corpus_as_an_ordinary_user_without_namespaces() -> None:
    told = judged("landlock", (), as_ordinary_user())
    assert told["ran"] == COUNT + len(honest.HONEST)
    assert told["wrong"] == {}


def test_what_is_quick_as_an_ordinary_user_with_namespaces() -> None:
    assert judged("namespaces", QUICK, as_ordinary_user())["wrong"] == {}


def test_what_is_quick_without_namespaces() -> None:
    assert judged("landlock", QUICK, [sys.executable])["wrong"] == {}


def test_no_program_takes_the_last_processes_of_its_user() -> None:
    """Where limits count all that the user runs; its threads are only looked at now and then."""
    code = """
import resource
from rl_reasoner import sandbox
resource.setrlimit(resource.RLIMIT_NPROC, (400, 400))
program = "import resource\\nprint(resource.getrlimit(resource.RLIMIT_NPROC))"
print(sandbox.strength().level, sandbox.run(program, [{"stdout": ""}]).stdout)
"""
    environment = {"PATH": os.environ["PATH"], levels.LIMIT_VARIABLE: "landlock"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [*as_ordinary_user(), "-c", code]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    if not told.stdout.startswith("landlock"):
        pytest.skip(told.stdout)
    assert told.stdout.split("\n")[0] == "landlock (336, 336)"


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
def test_what_shows_of_the_host_is_what_the_level_says(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(levels.LIMIT_VARIABLE, level)
    found = sandbox.strength()
    if found.level != level:
        pytest.skip(str(found))
    with stage.staged() as scene:
        for name, (word, program) in escapes.SEEN.items():
            said = any(word in gap for gap in found.gaps)
            assert bool(scene.attack(program)) is said, name


def test_the_memory_of_the_host_is_read_only_where_the_level_says_so() -> None:
    told = judged("seccomp", ("forged/memory_of_host",), as_ordinary_user())
    assert told["ran"] == 1
    assert not told["wrong"] or any("memory" in gap for gap in told["gaps"])


def test_an_ordinary_user_is_ordinary() -> None:
    code = "import os, sys; sys.exit(os.geteuid() == 0 or os.access('/etc/shadow', os.R_OK))"
    assert subprocess.run([*as_ordinary_user(), "-c", code], check=False).returncode == 0
