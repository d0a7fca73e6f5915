"""The command line as others use it: shells, pipes, scripts that want JSON or silence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rl_reasoner.cli.dispatch import Verb
from support.commands import Cli

SCRIPTS = {"bash": "bash", "zsh": "zsh", "fish": "fish"}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_shell_gets_a_completion_that_knows_the_verbs(shell: str, cli: Cli) -> None:
    ended = cli("completion", shell)
    assert ended.code == 0
    for verb in ("train", "report", "chat", "--live", "--max-tokens"):
        assert verb in ended.out
    program = shutil.which(shell)
    if program is not None:
        read = subprocess.run([program, "-n"], input=ended.out, capture_output=True, text=True)
        assert read.returncode == 0, read.stderr


def test_bash_completes_verbs_and_flags(cli: Cli, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (tmp_path / "completion").write_text(cli("completion", "bash").out)

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = f"""
        source {tmp_path}/completion
        COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
        function="$(complete -p rl-reasoner | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
        "$function"; printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, "PATH": path}
        done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert {"report", "reward"} & completed("rl-reasoner", "rep") == {"report"}
    assert "--live" in completed("rl-reasoner", "report", "--li")


def test_completion_loads_nothing_heavy() -> None:
    code = "import sys; from rl_reasoner.cli import main; main(['completion', 'bash'])"
    code += "; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_tells_the_exit_codes(cli: Cli) -> None:
    shown = " ".join(cli("--help").out.split())
    assert "0 done, 1 the work failed, 2 a mistake in what you gave, 3 a reward kept" in shown


def test_every_verb_with_a_result_gives_it_as_json(cli: Cli) -> None:
    for verb in get_args(Verb):
        name = get_args(verb)[1].name
        if name != "completion":  # a script for the shell is its result
            assert "--json" in cli(name, "--help").out, name


def test_a_copy_is_told_as_json(cli: Cli) -> None:
    ended = cli("copy", "rewards/length", "--json")
    assert json.loads(ended.out) == {"copied": "length.py"}
    assert ended.err == ""


def test_quiet_is_silent_but_for_mistakes(here: Path, cli: Cli) -> None:
    ask = ("eval", "run", "--sets", "modular_test", "--limit", "1", "--max-tokens", "2", "--quiet")
    ended = cli(*ask)
    assert (ended.code, ended.err) == (0, "")
    assert "modular_test" in ended.out
    ended = cli("eval", "run", "--sets", "modular_tset", "--quiet")
    assert ended.code == 2
    assert "Did you mean 'modular_test'" in ended.err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_traceback(flags: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "rl_reasoner.cli", "list", "sets", *flags]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")
