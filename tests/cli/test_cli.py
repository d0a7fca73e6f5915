"""The command line: every verb, what it prints and writes, and its exit code."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl_reasoner import __version__
from rl_reasoner.machine import VARIABLE
from support.commands import ROWS, Cli, lines, stock

# --------------------------------------------------------------------------------------- no torch


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--version"], ["train", "--help"], ["train", "quickstart", "--help"], ["list"]],
)
def test_help_and_list_load_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rl_reasoner.cli", *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "rl_reasoner.cli.train" in loaded  # the list of modules is the real one
    roots = {name.partition(".")[0] for name in loaded}
    heavy = {
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "sympy",
        "matplotlib",
    }
    assert not roots & heavy
    if argv == ["--help"]:  # no recipe is read for it
        assert "pydantic" not in roots


def test_help_names_every_verb_and_every_flag_of_the_recipe(cli: Cli) -> None:
    ended = cli("--help")
    assert ended.code == 0
    for verb in ("train", "eval", "compare", "chat", "score", "list", "copy", "report", "env"):
        assert f"\n  {verb} " in ended.out
    ended = cli("train", "quickstart", "--help")
    assert ended.code == 0
    for flag in ("--grpo.group.size", "--habit.optim.max_grad_norm", "--run.folder", "--resume"):
        assert flag in ended.out
    assert "quickstart" in cli("train", "--help").out
    assert "--grpo.steps" in cli("train", "--until", "grpo", "quickstart", "--help").out


@pytest.mark.parametrize("verb", ["eval", "chat", "filter"])
def test_a_seed_below_0_is_refused(verb: str, cli: Cli) -> None:
    given = ["scratch:dense-tiny", *(["modular_test"] if verb == "filter" else [])]
    sets = ["--sets", "modular_test"] if verb == "eval" else []
    ended = cli(verb, *given, *sets, "--seed", "-1")
    assert ended.code == 2 and "--seed -1: expected 0 or more" in ended.err


def test_the_version(cli: Cli) -> None:
    ended = cli("--version")
    assert (ended.code, ended.out, ended.err) == (0, f"rl-reasoner {__version__}\n", "")


# ------------------------------------------------------------------------------- verbs that train


def test_train_prints_one_json_object_and_makes_the_run(trained: Path) -> None:
    value = json.loads((trained / "train.json").read_text(encoding="utf-8"))
    assert value["run"] == "run"
    assert set(value["evals"]) == {"before", "after"}
    for result in value["evals"].values():
        assert result["modular_test"]["problems"] == 2
    for part in ("recipe.yaml", "lock.json", "policy/config.json", "report.html"):
        assert (trained / "run" / part).is_file()


def test_resume_of_a_finished_run_changes_nothing_and_shows_it(here: Path, cli: Cli) -> None:
    before = (here / "run/policy/model.safetensors").read_bytes()
    ended = cli("train", "--resume", "run", "--quiet")
    assert ended.code == 0
    assert "modular_test" in ended.out
    assert str(Path("run/report.html")) in ended.out
    assert (here / "run/policy/model.safetensors").read_bytes() == before
    assert cli("train", "tiny.yaml", "--resume", "run", "--quiet", "--json").code == 0


def test_report_is_written_again(here: Path, cli: Cli) -> None:
    (here / "run/report.html").unlink()
    ended = cli("report", "run", "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {"report": str(Path("run/report.html"))}
    assert (here / "run/report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_export_opens_anywhere(here: Path, cli: Cli) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ended = cli("export", "run", "out/policy", "--dtype", "bf16", "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {"policy": str(Path("out/policy"))}
    model = AutoModelForCausalLM.from_pretrained(here / "out/policy", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(here / "out/policy").decode([2]) == "<think>"


def test_eval_saves_what_compare_reads(here: Path, cli: Cli) -> None:
    options = ["--sets", "modular_test", "--limit", "3", "--max-tokens", "4"]
    options += ["--reward", "rewards.py:fine"]
    ended = cli("eval", "run", *options, "--out", "a.json", "--json")
    assert ended.code == 0
    value = json.loads(ended.out)
    assert value["sets"]["modular_test"]["problems"] == 3
    assert value["settings"]["template"] == "plain"  # the one of the run
    table = cli("eval", "run/policy", *options, "--samples", "2", "--out", "b.json").out
    assert "modular_test" in table
    assert "95% interval" in table
    ended = cli("compare", "a.json", "a.json", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["modular_test"]["difference"] == 0.0
    ended = cli("compare", "a.json", "b.json")
    assert ended.code == 0
    assert "difference" in ended.out


def test_compare_says_of_how_many_rows_it_shows_the_first(tmp_path: Path, cli: Cli) -> None:
    from rl_reasoner.evaluation.metrics import compute_figures
    from rl_reasoner.evaluation.result import EvalResult

    for name in ("a", "b"):
        same = {"answer": "1", "completions": ["1"], "tokens": [1], "truncated": [False]}
        right = {"scores": [float(name == "b")], "reasons": ["as told"], "outcomes": ["score"]}
        rows = [{"problem": f"{i}", **same, **right} for i in range(600)]
        sets = {"s": {**compute_figures(rows), "temperature": 0.0, "reward": "boxed"}}
        EvalResult("p", name, sets=sets, rows={"s": rows}).save(tmp_path / f"{name}.json")
    ended = cli("compare", "a.json", "b.json")
    assert "597 more; --json and --out FILE.html have the first 50 of all" in " ".join(
        ended.err.split()
    )


def test_the_last_part_of_a_flag_is_enough_to_be_told_which_was_meant(cli: Cli) -> None:
    ended = cli("train", "quickstart", "--lr", "1e-3", "--sizes", "4")
    assert ended.code == 2 and "--lr: the recipe has no such field. Did you mean" in ended.err
    assert "Did you mean '--optim.lr'?" in ended.err


def test_eval_takes_sets_from_a_folder(
    here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_DATA", "")  # so that what the verb sets is undone afterwards
    (here / "sets").mkdir()
    (here / "sets/own.jsonl").write_text(lines(*ROWS[:2]), encoding="utf-8")
    ended = cli(
        *("eval", "run", "--sets", "own,saved.jsonl", "--data-dir", "sets", "--max-tokens", "4"),
        *("--reward", "rewards.py:fine", "--json"),
    )
    found = json.loads(ended.out)["sets"]
    assert {name: entry["problems"] for name, entry in found.items()} == {
        "own": 2,
        "saved.jsonl": 3,
    }


def test_chat_answers_every_line_that_is_piped_in(here: Path, cli: Cli) -> None:
    alone = cli("chat", "run", "--max-tokens", "4", stdin="1+1=\n")
    ended = cli("chat", "run", "--max-tokens", "4", stdin="1+1=\n\n  \n1+1=\n")
    assert ended.code == alone.code == 0
    assert alone.out.strip()
    assert ended.out == alone.out * 2  # empty lines are no problems, and greedy answers are equal
    assert cli("chat", "run", stdin="").out == ""


def test_chat_prints_one_object_a_problem(here: Path, cli: Cli) -> None:
    said = cli("chat", "run", "--max-tokens", "4", "--json", stdin="1+1=\n2+2=\n").out
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["problem"] for row in rows] == ["1+1=", "2+2="]
    assert all(set(row) == {"problem", "thinking", "answer", "truncated"} for row in rows)


def test_env_says_what_is_here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = cli("env", "--json")
    assert ended.code == 0
    value = json.loads(ended.out)
    import torch

    from rl_reasoner import sandbox
    from rl_reasoner.rollout import agreement

    assert value["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # as pip has it
    assert value["cores"] == os.cpu_count()
    assert value["device"] in ("cpu", "cuda", "mps")
    assert value["sandbox"] == str(sandbox.strength())
    assert value["faster ways"].startswith("all agree")
    monkeypatch.setattr(agreement, "packing_obstacle", lambda model: "another layout")
    out = json.loads(cli("env", "--json").out)["faster ways"]
    assert out.startswith("without: packed pass (training takes 4 to 7 times as long) (scratch:")
    assert "another layout" in out and "engine" not in out
    if value["device"] == "cpu":
        assert value["products: forward"] == "torch (GFLOP/s: not measured)"
        assert value["products of few rows: float32"] == "onednn (ms: not measured)"
        monkeypatch.setenv(VARIABLE, "{}")
        measured = json.loads(cli("env", "--json").out)
        assert re.match(r"\w+ \(GFLOP/s: torch \d+", measured["products: weight"])
        assert re.match(r"GFLOP/s: \d+, beside \d+ in fp32", measured["products: bf16"])
        few = measured["products of few rows: bfloat16"]
        assert re.match(r"\w+ \(ms: (panels [\d.]+, onednn [\d.]+|not measured)\)", few)
        assert re.match(r"(yes|no)", measured["compiled operations"])
        assert re.match(r"\w+ \(.* float32 [\d.]+", measured["sampling weights from 64 MiB"])


# ------------------------------------------------------------------------- verbs that do not train


def test_list_names_what_there_is(cli: Cli) -> None:
    from rl_reasoner.policy.scratch import SCRATCH

    value = json.loads(cli("list", "--json").out)
    assert {"gsm8k", "noisy_start", "quickstart"} <= set(value["recipes"])
    assert {"boxed", "countdown", "format_tags", "length"} <= set(value["rewards"])
    assert {"modular_test", "modular_ood", "word_problems", "programming"} <= set(value["sets"])
    assert value["policies"] == [f"scratch:{name}" for name in sorted(SCRATCH)]
    sizes = json.loads(cli("list", "policies", "--json").out)["sizes"]
    assert sizes["scratch:moe-tiny"] == {"parameters": 543_360, "active_parameters": 211_584}
    assert "countdown" in value["tasks"]
    only = cli("list", "rewards")
    assert only.code == 0
    assert "boxed" in only.out
    assert "quickstart" not in only.out
    assert all(
        any(line.strip().startswith(name) for line in only.out.splitlines())
        for name in ("boxed", "countdown", "math_answer")
    )


def test_list_says_what_each_is_time_and_measured_gain_of_recipes(
    cli: Cli,
) -> None:
    value = json.loads(cli("list", "--json").out)
    for kind in ("recipes", "rewards", "sets", "policies", "tasks"):
        assert set(value[kind]) == set(value["about"][kind]), kind
        assert all(text[0] for text in value["about"][kind].values()), kind
    shown = cli("list", "recipes").out
    [line] = [line for line in shown.splitlines() if line.strip().startswith("quickstart")]
    assert "learns to think before answering" in line
    assert re.search(r"\d+–\d+ s +[\d.]+→[\d.]+%$", line)
    assert shown.index("recipes for 2 CPU cores: time; sampled accuracy") < shown.index(line)
    assert shown.index(line) < shown.index("recipes for GPUs") < shown.index("r1_moe_30b")
    assert cli("list").out.index("rewards") < cli("list").out.index("math_answer")


def test_copy_gives_recipes_and_rewards_and_never_overwrites(tmp_path: Path, cli: Cli) -> None:
    assert cli("copy", "quickstart").code == 0
    assert cli("copy", "quickstart.yaml", "mine.yaml").code == 0
    assert cli("copy", "rewards/length", "new/folder/short.py").code == 0
    from rl_reasoner.recipe.load import load_recipe

    assert load_recipe(str(tmp_path / "quickstart.py")) == load_recipe(str(tmp_path / "mine.yaml"))
    assert "def length" in (tmp_path / "new/folder/short.py").read_text(encoding="utf-8")
    written = [file for file in tmp_path.rglob("*") if file.suffix in (".py", ".yaml")]
    assert not [
        f for f in written if "file://" in f.read_text() or str(Path.cwd()) in f.read_text()
    ]
    assert json.loads((tmp_path / "recipe.schema.json").read_text())["title"] == "Recipe"
    ended = cli("copy", "quickstart.py", "other.yaml")
    assert ended.code == 2 and "quickstart.py is a .py file" in ended.err
    (tmp_path / "quickstart.py").write_text("mine", encoding="utf-8")
    ended = cli("copy", "quickstart")
    assert ended.code == 2
    assert "exists already" in ended.err
    assert (tmp_path / "quickstart.py").read_text(encoding="utf-8") == "mine"


def test_score_writes_every_score_and_says_the_mean(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli("score", "boxed", "saved.jsonl", "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == {
        "rows": 3,
        "mean": pytest.approx(1 / 3),
        "abstained": 0,
        "faults": 0,
        "written": "saved.jsonl.scores.jsonl",
    }
    text = (tmp_path / "saved.jsonl.scores.jsonl").read_text(encoding="utf-8")
    scores = [json.loads(line) for line in text.splitlines()]
    assert [(s["row"], s["id"], s["boxed"]["value"]) for s in scores] == [
        (1, 7, 1.0),
        (2, 8, 0.0),
        (3, 9, 0.0),
    ]
    table = cli("score", "boxed", "saved.jsonl")
    assert "no \\boxed{}" in table.out
    assert "mean: 0.33" in table.out


def test_score_takes_the_prompt_that_each_row_has(tmp_path: Path, cli: Cli) -> None:
    said = {"problem": "What is one and one?", "completion": "<think>It is two, I say</think> 2"}
    (tmp_path / "both.jsonl").write_text(lines(said, {**said, "prompt": said["problem"]}))
    assert json.loads(cli("score", "language", "both.jsonl", "--json").out)["faults"] == 0


def test_score_gives_a_reward_the_problem_for_its_prompt_and_continues_programs_as_training_does(
    tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import reward\n@reward\ndef f(completion, prompt):\n"
        "    return float(prompt == 'asked')\n",
        encoding="utf-8",
    )
    said = {"problem": "asked", "prompt": "Template: asked", "completion": "c"}
    (tmp_path / "saved.jsonl").write_text(lines(said), encoding="utf-8")
    assert json.loads(cli("score", "r.py:f", "saved.jsonl", "--json").out)["mean"] == 1.0
    begun = {
        "prompt": 'def add(a, b):\n    """Add."""\n',
        "entry_point": "add",
        "tests": "def check(candidate):\n    assert candidate(1, 2) == 3",
        "completion": "    return a + b\n",
    }
    other = {"problem": "Write f.", "tests": ["assert f(1) == 2"], "completion": "no"}
    (tmp_path / "code.jsonl").write_text(lines(begun, other), encoding="utf-8")
    value = json.loads(cli("score", "code_tests", "code.jsonl", "--json").out)
    assert (value["mean"], value["faults"]) == (0.5, 0)
    (tmp_path / "code.jsonl").write_text(lines(begun, {**other, "tests": ["f(1) == 2"]}))
    value = json.loads(cli("score", "code_tests", "code.jsonl", "--json").out)
    assert (value["mean"], value["faults"]) == (1.0, 1), "an odd test is a fault of its row alone"
    written = (tmp_path / "code.jsonl.scores.jsonl").read_text(encoding="utf-8").splitlines()
    assert "test 0 compares in line 1" in json.loads(written[1])["code_tests"]["reason"]


def test_a_long_reason_is_kept_whole_and_shown_in_part(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import Score, reward\n\n\n@reward\ndef long(completion: str) -> Score:\n"
        "    return Score(1.0, 'x' * 100_000)\n"
    )
    (tmp_path / "saved.jsonl").write_text(lines(*ROWS))
    ended = cli("score", "r.py:long", "saved.jsonl")
    assert ended.code == 0 and len(ended.out) < 20_000
    assert "(99,700 more" in ended.out
    kept = [json.loads(line) for line in (tmp_path / "saved.jsonl.scores.jsonl").open()]
    assert {len(row["r.py:long"]["reason"]) for row in kept} == {100_000}


def test_score_disagree_lists_only_the_rows_that_differ(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli(
        *("score", "boxed", "saved.jsonl", "--disagree", "rewards.py:fine"),
        *("--out", "out/differ.jsonl", "--json"),
    )
    assert ended.code == 0
    assert json.loads(ended.out)["disagree"] == 1
    [row] = (tmp_path / "out/differ.jsonl").read_text(encoding="utf-8").splitlines()
    entry = json.loads(row)
    assert entry["id"] == 7
    assert (entry["boxed"]["value"], entry["rewards.py:fine"]["value"]) == (1.0, 0.0)


def test_score_counts_faults_and_abstentions_apart(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import reward\n@reward\ndef f(completion, answer):\n"
        "    return 1 / (int(answer) - 4) if answer != '6' else None\n",
        encoding="utf-8",
    )
    (tmp_path / "saved.jsonl").write_text(lines(*ROWS), encoding="utf-8")
    value = json.loads(cli("score", "r.py:f", "saved.jsonl", "--json").out)
    assert (value["mean"], value["abstained"], value["faults"]) == (-0.5, 1, 1)


def test_score_takes_answers_that_are_numbers(tmp_path: Path, cli: Cli) -> None:
    said = [("\\boxed{4}", 4), ("\\boxed{0.5}", 0.5), ("\\boxed{5}", 4)]
    rows = [{"completion": completion, "answer": answer} for completion, answer in said]
    (tmp_path / "saved.jsonl").write_text(lines(*rows), encoding="utf-8")
    value = json.loads(cli("score", "math_answer", "saved.jsonl", "--json").out)
    assert (value["mean"], value["faults"]) == (pytest.approx(2 / 3), 0)


def test_score_ends_with_three_where_the_reward_fails_on_every_row(
    tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "r.py").write_text(
        "from rl_reasoner import reward\n@reward\ndef f(completion):\n    return 'good'\n"
    )
    (tmp_path / "saved.jsonl").write_text(lines(*ROWS), encoding="utf-8")
    ended = cli("score", "r.py:f", "saved.jsonl", "--json")
    assert ended.code == 3 and json.loads(ended.out)["faults"] == 3
    assert "r.py:f: the reward failed on every row" in ended.err


def test_check_takes_the_fields_of_a_recipe_as_train_does(tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    ended = cli("check", "--json", "tiny.yaml", "--grpo.group.size", "7", "--grpo.micro_batch", "2")
    assert ended.code == 2 and "micro_batch" in ended.err and "no such flag" not in ended.err
    assert "--grpo.group.sise" in cli("check", "tiny.yaml", "--grpo.group.sise", "7").err
    assert "Did you mean '--data'" in cli("check", "boxed", "--dta", "x").err
    (tmp_path / "mine.py").write_text(
        "from rl_reasoner import reward\n@reward\ndef f(completion): ...\n"
    )
    assert "a reward in it is named mine.py:NAME" in cli("check", "mine.py").err


def test_a_command_to_continue_with_is_quoted(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(verb: object) -> None:
        error = KeyboardInterrupt()
        error.folder = Path("runs/mit Räumen 中")  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr("rl_reasoner.cli.list.ListVerb.run", interrupted)
    assert cli("list").err.endswith("train --resume 'runs/mit Räumen 中'\n")
    (tmp_path / "new dir").mkdir()
    ended = cli("copy", "quickstart.yaml", "new dir/x.yaml")
    assert "rl-reasoner train 'new dir/x.yaml'" in ended.out


def test_output_in_a_pipe_is_not_broken_into_lines(tmp_path: Path, cli: Cli) -> None:
    deep = tmp_path / ("a" * 90) / ("b" * 90)
    deep.mkdir(parents=True)
    ended = cli("train", deep / "no.yaml")
    assert ended.code == 2
    assert str(deep / "no.yaml") in ended.err
    ended = cli("export", "scratch:dense-tiny", deep / "policy")
    assert ended.out == f"{deep / 'policy'}\n"


def test_a_reward_that_fails_on_every_completion_ends_with_three(here: Path, cli: Cli) -> None:
    ended = cli(
        *("train", "tiny.yaml", "--quiet", "--run.folder", "new", "--evals.sets", "[]"),
        *("--rewards", "{'rewards.py:picky': 1}"),
    )
    assert ended.code == 3
    assert "no row got a reward in any of" in ended.err
    assert "not the answer" in ended.err


def test_an_interrupt_ends_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(verb: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rl_reasoner.cli.list.ListVerb.run", interrupted)
    ended = cli("list")
    assert ended.code == 130
    assert ended.err == "interrupted\n"


def test_a_fault_of_the_work_is_not_shown_as_the_user_s_mistake(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    stock(tmp_path)
    monkeypatch.setattr("rl_reasoner.files.write_text", broken)
    with pytest.raises(OSError, match="the disk is broken"):
        cli("score", "boxed", "saved.jsonl")


def test_on_a_terminal_a_mistake_is_a_panel(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then writes as to a terminal
    ended = cli("list", "nothing")
    assert ended.code == 2
    assert "╭─ error" in ended.err
    assert "unknown kind 'nothing'" in ended.err


def test_the_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl_reasoner.cli", "list"]
    done = subprocess.run([*command, "nothing"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown kind 'nothing'")
    assert subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True).returncode == 0


def test_a_script_runs_itself_with_flags(tmp_path: Path) -> None:
    stock(tmp_path)
    script = "from rl_reasoner import Recipe\nfrom rl_reasoner.cli import main_of\n"
    script += (
        "def recipe():\n    return Recipe(policy='a', stages=[{'kind': 'sft', 'data': 'b'}])\n"
    )
    script += "if __name__ == '__main__':\n    main_of(__file__)\n"
    (tmp_path / "mine.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "mine.py", "--stepz", "3"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Did you mean '--steps'?" in done.stderr
