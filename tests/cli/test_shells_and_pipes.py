"""The command line as others use it: shells, pipes, scripts that want JSON or silence."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from rl_reasoner.cli.dispatch import Verb
from support.commands import Cli, stock

SCRIPTS = {"bash": "bash", "zsh": "zsh", "fish": "fish"}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_shell_gets_a_completion_script_that_it_can_read(shell: str, cli: Cli) -> None:
    ended = cli("completion", shell)
    assert ended.code == 0
    assert "rl-reasoner completion words" in ended.out
    program = shutil.which(shell)
    if program is not None:
        read = subprocess.run([program, "-n"], input=ended.out, capture_output=True, text=True)
        assert read.returncode == 0, read.stderr


TYPED: dict[str, set[str]] = {
    "rep": {"report"},
    "report --li": {"--live"},
    "train qui": {"quickstart"},
    "train quickstart --loss.ty": {"--loss.type"},
    "train quickstart --sampling.weights ": {"auto", "own", "bfloat16", "int8"},
    "train quickstart --chains.optim.l": {"--chains.optim.lr"},
    "check quickstart --loss.ty": {"--loss.type"},
    "check quickstart --run.precision fp1": {"fp16"},
    "check math_answer --loss.ty": set(),
    "env --plan qui": {"quickstart"},
    "env --plan quickstart --gpus 4 --loss.ty": {"--loss.type"},
    "env --loss.ty": set(),
    "env --gpu H1": {"H100"},
    "export runs/one out --dtype ": {"fp32", "bf16"},
    "eval runs/one --sets modular_te": {"modular_test"},
    "eval runs/one --sets sums_test,modular_t": {
        "sums_test,modular_test",
        "sums_test,modular_train",
    },
    "chat scratch:moe": {"moe-tiny"},  # readline replaces what stands behind the colon
    "check math_a": {"math_answer"},
    "why ": {"runs/one", "runs"},
    "why runs/": {"runs/one", "runs/two"},
    "score math_answer ro": {"rows.jsonl"},
    "copy rewards/le": {"rewards/length"},
    "train --resume=runs/o": {"runs/one"},
    "completion z": {"zsh"},
    "nonsense ": set(),
}


def test_bash_completes_names_fields_runs_and_files(cli: Cli, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (tmp_path / "script").write_text(cli("completion", "bash").out)
    (tmp_path / "here" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "here" / "runs" / "two").mkdir()
    (tmp_path / "here" / "runs" / "one" / "recipe.yaml").write_text("name: one\n")
    (tmp_path / "here" / "runs" / "one" / ".lock").touch()
    (tmp_path / "here" / "rows.jsonl").write_text("")
    ask = """
    source ../script
    while IFS= read -r line; do
      COMP_LINE="rl-reasoner $line"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
      _rl_reasoner; printf '%s\\t' "${COMPREPLY[@]}"; echo
    done
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [bash, "-c", ask],
        input="".join(f"{line}\n" for line in TYPED),
        capture_output=True,
        text=True,
        cwd=tmp_path / "here",
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    found = [{word for word in line.split("\t") if word} for line in done.stdout.splitlines()]
    assert dict(zip(TYPED, found, strict=True)) == TYPED


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
        shown = cli(name, "--help").out
        assert not re.search(r"\b(None|STR|INT|FLOAT)\b", shown), "a type that people do not read"
        if name != "completion":  # a script for the shell is its result
            assert "--json" in shown, name


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


def test_ctrl_c_while_the_command_line_is_read_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "tyro.py").write_text("raise KeyboardInterrupt")
    there = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    for start in (["-m", "rl_reasoner.cli"], ["-c", "from rl_reasoner.cli import main; main()"]):
        ended = subprocess.run(
            [sys.executable, *start, "list"],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": there},
        )
        assert (ended.returncode, ended.stderr) == (130, "interrupted\n")


def test_a_home_folder_behind_an_equals_sign_is_meant(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell expands `--out ~/x`, and leaves `--out=~/x` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    stock(tmp_path)
    assert cli("score", "boxed", "saved.jsonl", "--out=~/scores.jsonl").code == 0
    assert (tmp_path / "home/scores.jsonl").is_file()
