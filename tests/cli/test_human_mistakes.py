"""Mistakes that people make: one line on standard error, exit code 2, no traceback.

Each names what is wrong and, where there is one, the right name. None of them loads torch, which
alone takes seconds, and none of them asks a hub. `benchmarks/mistakes.py` times such mistakes.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import Cli

TRAIN = ("train", "quickstart")
LENGTHS = ("eval", "scratch:dense-tiny", "--sets", "modular_test", "--reward", "length")
FIELD_HABITS: dict[tuple[str, ...], str] = {
    ("--lr", "1e-5"): "'--optim.lr'",
    ("--learning-rate", "1e-5"): "'--optim.lr'",
    ("--learning_rate=1e-5",): "'--optim.lr'",
    ("--max-steps", "10"): "'--steps'",
    ("--epochs", "3"): "'--steps' (stages count optimiser steps, not epochs)",
    ("--num-train-epochs", "3"): "'--steps'",
    ("--batch-size", "8"): "'--group.prompts' (prompts per step) or '--batch'",
    ("--model", "gpt2"): "'--policy'",
    ("--model-name-or-path", "gpt2"): "'--policy'",
    ("--dataset", "gsm8k"): "'--data.path' (a file, set or hub id)",
    ("--output-dir", "out"): "'--run.folder'",
    ("--beta", "0.1"): "'--loss.beta'",
    ("--num-generations", "8"): "'--group.size'",
    ("--max-new-tokens", "64"): "'--sampling.max_tokens'",
    ("--max-completion-length", "64"): "'--sampling.max_tokens'",
    ("--save-steps", "5"): "'--save_every'",
}
MISTAKES: dict[tuple[str, ...], str] = {
    **{(*TRAIN, *flags): says for flags, says in FIELD_HABITS.items()},
    ("trian", "quickstart"): "Did you mean 'train'?",
    ("--verbose",): "first comes a verb: train, eval",
    ("train", "quickstart", "other"): "'other' is too much: train takes RECIPE",
    ("eval", "x", "--sets", "gsm8k,", "math500"): "without spaces, gsm8k,math500",
    ("eval", "scratch:moe-tiny", "--model", "x"): "rl-reasoner eval POLICY",
    ("eval", "x", "--max-new-tokens", "9"): "Did you mean '--max-tokens'?",
    ("eval", "x", "--dataset", "gsm8k"): "Did you mean '--sets'?",
    ("eval", "x", "--num-generations", "9"): "Did you mean '--samples'?",
    ("eval", "x", "--batch-size", "9"): "--batch-size: batches are as large as",
    ("eval", "x", "--lr", "9"): "It is one of training: rl-reasoner train, --optim.lr",
    (*LENGTHS, "--reward-options", "mode=atmost"): "Did you mean 'most'?",
    ("check", "length", "--reward-options", "mode=atmost"): "Did you mean 'most'?",
    ("check", "judge"): "judge: give one of server, policy and function",
    (*LENGTHS[:-1], "judge"): "judge: give one of server, policy and function",
    (*TRAIN, "--rewards", "{judge: 1}"): "--rewards {judge: 1}: judge: give one of server, policy",
    ("eval", "x", "--sampels", "9"): "Did you mean '--samples'?",
    ("eval", "x", "--samples", "many"): "--samples many: expected a whole number",
    ("eval", "x", "--samples"): "--samples: expected a value after it",
    ("eval", "x", "--weights", "bf16"): "own, auto, bfloat16, int8. Did you mean 'bfloat16'?",
    ("eval", "x", "--json=yes"): "--json takes no value",
    ("eval", "--quiet"): "Give POLICY and --sets",
    ("eval", "runs/nope", "--sets", "modular_test"): "Did you mean 'runs/one'?",
    ("chat", "runs/anything"): "there is no policy 'runs/anything': no such folder. Runs there",
    ("chat", "scratch:moe-tny"): "Did you mean 'scratch:moe-tiny'?",
    ("chat", "model.gguf"): "model.gguf",
    ("chat", "~nobody-here/x"): "~nobody-here/x: ~NAME is a user's home folder, and no user has",
    ("chat", 300 * "x"): "File name too long",
    ("filter", "x", "y", "--output", "z.jsonl"): "Did you mean '--out'?",
    ("chat", "--model", "x"): "rl-reasoner chat POLICY",
    ("chat", "x", "--max-completion-length", "9"): "Did you mean '--max-tokens'?",
    ("report", "runs/anything"): "is not a run folder: there is no such folder. Runs there: runs/",
    ("why", "runs/noe"): "Did you mean 'one'?",
    ("why", "runs/one/recipe.yaml"): "recipe.yaml is not a run folder: this is a file",
    ("train", "--resume", "runs/one/recipe.yaml"): "is not a run folder: this is a file",
    ("report", "runs/one/.lock"): ".lock is not a run folder: this is a file",
    ("report", "runs/one", "--port", "8080"): "--port: only with --live",
    (
        "eval",
        "scratch:moe-tiny",
        "--sets",
        "modular_test",
        "--reward",
        "countdown",
    ): "modular_test: reward 'countdown' needs the column 'numbers'; the rows have id, problem",
    ("compare", "runs/one", "runs/one"): "runs/one is a folder: give a file of runs/one/",
    ("train", "runs"): "runs is a folder: a recipe is a name, a .py or a .yaml file",
    (*TRAIN, "--rewards", "{math_answer: heavy}"): "rewards.math_answer: expected a weight (a "
    "number) or {weight, options, optional} (given: 'heavy')",
    ("score", "boxed", "x.jsonl", "--rescore", "runs/one"): "FILE or --rescore RUN, not both",
    ("why",): "why needs RUN",
    ("score",): "score needs REWARD",
    ("export", "runs/one"): "export needs FOLDER",
    ("compare", "a.json"): "compare needs B",
    ("list", "recipies"): "Did you mean 'recipes'?",
    ("completion", "bsh"): "Did you mean 'bash'?",
    ("copy", "quickstrat"): "'quickstart'",
    ("env", "--gpus", "3"): "--gpus: only with --plan RECIPE",
    (*TRAIN, "--evals.sets", "modular_tst"): "--evals.sets modular_tst: there is no",
    (*TRAIN, "--data.path", "problms.jsonl"): "--data.path problms.jsonl: there is no",
    (*TRAIN, "--data.count", "3"): "3 rows cannot fill a step of 16 prompts",
    (*TRAIN, "--data.task", "modulr"): "--data.task modulr: unknown task",
    (*TRAIN, "--rewards", "{lenght: 1}"): "Did you mean 'length'?",
    (*TRAIN, "--rewards", "{math_answer: 0}"): "rewards: all have weight 0, and stage 'grpo'",
    (*TRAIN, "--policy", "scratch:moe-tny"): "Did you mean 'scratch:moe-tiny'?",
    (*TRAIN, "--policy", "runs/noe"): "Did you mean 'runs/one'?",
    (*TRAIN, "--run.folder", "runs/one"): "the run folder runs/one exists already",
    (*TRAIN, "--grpo.steps", 26 * "9"): "stages.2.steps: expected at most 10000000",
    (*TRAIN, "--run.folder", "/proc/x"): "cannot write to the run folder /proc/x: nothing can be "
    "made in /proc (No such file or directory)",
    (*TRAIN, "--run.report_to", "wandbb"): "Did you mean 'wandb'?",
    (*TRAIN, "--trainer.sed", "3"): "--trainer.sed 3: stage grpo: GRPOConfig has no argument 'sed'",
    (*TRAIN, "--trainer.algorithm", "grpo"): "is what the recipe's loss.algorithm sets",
    (*TRAIN, "--until", "grop"): "Did you mean 'grpo'?",
    ("check", "quickstrat"): "Did you mean 'quickstart'?",
    ("eval", "scratch:moe-tiny", "--sets", "modular_tst"): "Did you mean 'modular_test'?",
    ("eval", "scratch:moe-tiny", "--sets", "gsm8k", "--reward", "boxd"): "Did you mean 'boxed'?",
    ("filter", "scratch:moe-tiny", "problms.jsonl"): "there is no data file or set",
    ("filter", "scratch:moe-tny", "modular_test"): "Did you mean 'scratch:moe-tiny'?",
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which there is one run, begun and not finished."""
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "recipe.yaml").write_text("name: one\n", encoding="utf-8")
    (tmp_path / "runs" / "one" / ".lock").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("argv", list(MISTAKES), ids=" ".join)
def test_a_mistake_is_one_line_that_names_what_was_meant(
    argv: tuple[str, ...], runs: Path, cli: Cli
) -> None:
    ended = cli(*argv)
    assert (ended.code, ended.out) == (2, "")
    [line] = ended.err.splitlines()
    assert line.startswith("error: ") and MISTAKES[argv] in line, line
    assert [path.name for path in runs.iterdir()] == ["runs"], "nothing is written"


def test_a_mistake_is_told_before_anything_heavy_is_loaded(runs: Path) -> None:
    code = f"""if True:
        import sys
        from rl_reasoner.cli import main
        for argv in {list(MISTAKES)}:
            assert main(argv) == 2, argv
            heavy = {{"torch", "transformers", "datasets"}} & set(sys.modules)
            assert not heavy, (argv, heavy)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_alone_it_shows_the_help_with_three_examples(cli: Cli) -> None:
    ended = cli()
    assert (ended.code, ended.err) == (0, "")
    shown = [line.split("  ")[0] for line in map(str.strip, ended.out.splitlines())]
    assert sum(line.startswith("rl-reasoner ") for line in shown) == 3
    assert "rl-reasoner train quickstart" in shown
    assert ended.out == cli("--help").out


def test_a_hub_id_is_still_a_hub_id_where_there_are_runs(runs: Path, cli: Cli) -> None:
    assert "neither a folder nor available on the hub" in cli("chat", "nobody/nothing").err
