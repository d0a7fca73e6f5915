"""`rl-reasoner why RUN` without a step: the most telling one, with a legend."""

import json
from pathlib import Path

from support.commands import Cli, lines


def rollout(step: int, number: int, advantage: float) -> dict[str, object]:
    score = {"outcome": "score", "value": advantage, "reason": "by hand"}
    return {
        "step": step,
        "group": 0,
        "prompt": "1+1=",
        "answer": "2",
        "completion": f"step {step}, row {number}",
        "reward": advantage,
        "advantage": advantage,
        "truncated": False,
        "scores": {"fine": score},
    }


def run_with(folder: Path, advantages: dict[int, tuple[float, float]]) -> Path:
    stage = folder / "run" / "stages" / "1-grpo"
    stage.mkdir(parents=True)
    (folder / "run" / "recipe.yaml").write_text("name: run\n", encoding="utf-8")
    rows = [
        rollout(step, number, advantage)
        for step, pair in advantages.items()
        for number, advantage in enumerate(pair, 1)
    ]
    (stage / "rollouts.jsonl").write_text(lines(*rows), encoding="utf-8")
    return folder / "run"


def test_without_a_step_it_takes_the_one_with_the_largest_advantages(
    tmp_path: Path, cli: Cli
) -> None:
    run = run_with(tmp_path, {1: (0.1, -0.1), 2: (1.0, -1.0), 3: (1.0, -1.0), 4: (0.0, 0.0)})
    assert json.loads(cli("why", run, "--json").out)["step"] == 2, "the first of several alike"
    shown = " ".join(cli("why", run).out.split())
    assert "step 2, the most telling one" in shown
    assert "advantage: above 0, training made this completion likelier" in shown
    assert "the most telling one" not in cli("why", run, "--step", "3").out


def test_a_step_that_is_not_there_is_still_told(tmp_path: Path, cli: Cli) -> None:
    ended = cli("why", run_with(tmp_path, {1: (0.1, -0.1)}), "--step", "0")
    assert ended.code == 2
    assert "there is no step 0" in ended.err


def test_what_tools_gave_is_shown_as_turns(tmp_path: Path, cli: Cli) -> None:
    run = run_with(tmp_path, {1: (1.0, -1.0)})
    file = run / "stages" / "1-grpo" / "rollouts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["completion"] = "<calculator>6*7</calculator>\n<output>\n42\n</output>\n42"
    turn = {"tool": "calculator", "kind": "ok", "at": 9, "given": 6, "text": [28, 50]}
    rows[0]["turns"] = [turn]
    file.write_text(lines(*rows), encoding="utf-8")
    call = {"tool": "calculator", "kind": "ok", "seconds": 0.25}
    score = {"step": 1, "group": 0, "index": 0, "reward": "fine", "seconds": 0.1, "calls": [call]}
    (file.parent / "ledger.jsonl").write_text(lines(score), encoding="utf-8")
    told = json.loads(cli("why", run, "--json").out)
    assert told["group"][0]["turns"] == [{**turn, "seconds": 0.25}]
    shown = cli("why", run).out
    assert "┌ calculator · ok · 250 ms" in shown and "│ 42" in shown
