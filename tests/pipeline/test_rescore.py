"""Looking back at a run: why a step was as it was, what another reward would say."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rl_reasoner import Recipe
from rl_reasoner.pipeline.rescore import Rescoring, kendall, rescore
from rl_reasoner.scoring.ledger import completion_hash, entries
from support.commands import Cli

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)


@given(pairs)
def test_the_figures_are_those_of_scipy(found: list[tuple[float, float]]) -> None:
    left, right = zip(*found, strict=True)
    correlation = Rescoring([found]).summary()["correlation"]
    if len(set(left)) == 1 or len(set(right)) == 1:
        assert kendall(found) is None and correlation is None
    else:
        assert kendall(found) == pytest.approx(stats.kendalltau(left, right).statistic, abs=1e-9)
        assert correlation == pytest.approx(stats.pearsonr(left, right).statistic, abs=1e-9)


def test_why_shows_a_group_and_the_numbers_of_the_batch(here: Path, cli: Cli) -> None:
    value = json.loads(cli("why", "run", "--step", "1", "--row", "2", "--json").out)
    assert (value["stage"], value["step"], value["row"]) == ("grpo", 1, 2)
    assert [row["number"] for row in value["group"]] == [1, 2]
    for row in value["group"]:
        assert row["prompt"] == value["prompt"] and "rewards.py" not in row["scores"]
        assert row["scores"]["fine"]["reason"] == "by its length"
        assert row["reward"] == len(row["completion"]) % 2
    assert value["batch"]["step"] == 1 and "reward" in value["batch"]
    assert value["seconds"]["fine"] > 0
    shown = cli("why", "run", "--step", "1", "--row", "2").out
    assert value["prompt"] in shown and "by its length" in shown and "reward_std" in shown
    most = json.loads(cli("why", "run", "--step", "1", "--json").out)
    rows = most["group"]
    asked = next(row for row in rows if row["number"] == most["row"])
    assert abs(asked["advantage"]) == max(abs(row["advantage"]) for row in rows)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("why", "run", "--step", "9"), ("there is no step 9", "up to 1")),
        (("why", "run", "--step", "1", "--row", "7"), ("has the rows 1 to 4",)),
        (("why", "run", "--step", "1", "--stage", "grop"), ("'grop'", "'grpo'")),
        (("why", "saved.jsonl", "--step", "1"), ("not a run folder",)),
        (("score", "length"), ("--rescore",)),
        (("score", "length", "saved.jsonl", "--rescore", "run"), ("FILE or --rescore", "not both")),
        (("score", "countdown", "--rescore", "run"), ("'numbers'",)),
        (
            ("score", "length", "--rescore", "run", "--out", "run/stages/2-grpo/rollouts.jsonl"),
            ("rollouts.jsonl", "the run's own files"),
        ),
        (("check", "lenght"), ("'length'",)),
    ],
    ids=" ".join,
)
def test_mistakes(argv: tuple[str, ...], words: tuple[str, ...], here: Path, cli: Cli) -> None:
    ended = cli(*argv)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(word in ended.err for word in words)


def test_the_runs_own_reward_changes_nothing(here: Path, cli: Cli) -> None:
    found = json.loads(cli("score", "rewards.py:fine", "--rescore", "run", "--json").out)
    assert (found["rows"], found["changed"], found["flipped"]) == (4, 0, 0)
    assert found["mean"]["then"] == found["mean"]["now"]


def test_a_reward_among_several_is_held_against_its_own_scores(here: Path, cli: Cli) -> None:
    """Not against the total, in which another reward weighs more and says the opposite."""
    file = here / "run/stages/2-grpo/rollouts.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        other = 1.0 - row["scores"]["fine"]["value"]
        row["scores"]["other"] = {"value": other, "reason": "", "outcome": "score"}
        row["reward"] += 5 * other
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = json.loads(cli("score", "rewards.py:fine", "--rescore", "run", "--json").out)
    assert (found.pop("against", ""), found["changed"], found["flipped"]) == ("fine", 0, 0)
    found = json.loads(cli("score", "length", "--rescore", "run", "--json").out)
    assert found["against"] == "the total"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_column_that_some_rows_lack_is_given_for_the_others(
    order: tuple[int, int], tmp_path: Path
) -> None:
    rows = [{"problem": "hi", "answer": "hi"}, {"problem": "1+1", "answer": "2", "target": "b"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "own.py").write_text(
        "from rl_reasoner import reward\n\n@reward\ndef own(completion: str, target: str | None) "
        "-> float:\n    return float(completion == target)\n"
    )
    stage = {"kind": "grpo", "group": {"size": 2, "prompts": 2}}
    recipe = {"policy": "scratch:dense-tiny", "rewards": {"length": 1}, "stages": [stage]}
    folder = tmp_path / "run" / "stages" / "1-grpo"
    folder.mkdir(parents=True)
    made = Recipe.model_validate({**recipe, "data": str(tmp_path / "data.jsonl")})
    (tmp_path / "run" / "recipe.yaml").write_text(made.to_yaml())
    plain = {"step": 1, "reward": 0.0, "advantage": 0.0, "truncated": False, "scores": {}}
    rollouts = [
        {**plain, "group": group, "row": row, "completion": text, "prompt": rows[row]["problem"]}
        | rows[row]
        for group, row in enumerate(order)
        for text in "ab"
    ]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    found = rescore(tmp_path / "run", f"{tmp_path / 'own.py'}:own").summary()
    assert (found["rows"], found["changed"], found["faults"]) == (4, 1, 0)


def test_a_completion_of_a_row_that_the_data_have_no_more_is_not_judged(
    here: Path, cli: Cli
) -> None:
    """The same answers under other questions: not a figure of these."""
    made = yaml.safe_load((here / "run/recipe.yaml").read_text())
    kept = (here / "run/stages/2-grpo/rollouts.jsonl").read_text().splitlines()
    answers = {row["row"]: row["answer"] for row in map(json.loads, kept)}
    data = here / "others.jsonl"
    rows = [
        {"problem": f"Who? {i}", "answer": answers.get(i, "1")} for i in range(max(answers) + 1)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made["data"] = str(data)
    made["stages"][1].pop("data", None)
    (here / "run/recipe.yaml").write_text(yaml.safe_dump(made))
    ended = cli("score", "length", "--rescore", "run", "--json")
    found = json.loads(ended.out)
    assert (found["rows"], found["unknown"]) == (0, len(kept))


def test_the_opposite_reward_flips_every_row_that_moved(here: Path, cli: Cli) -> None:
    (here / "rewards.py").write_text(
        (here / "rewards.py").read_text()
        + "\n\n@reward\ndef against(completion: str, answer: str) -> float:\n"
        "    return 1.0 - len(completion) % 2\n"
    )
    ended = cli("score", "rewards.py:against", "--rescore", "run", "--json", "--out", "flips.jsonl")
    found = json.loads(ended.out)
    rollouts = [
        json.loads(line)
        for line in (here / "run/stages/2-grpo/rollouts.jsonl").read_text().splitlines()
    ]
    moved = sum(row["advantage"] != 0 for row in rollouts)
    assert found["changed"] == 4 and found["flipped"] == moved
    assert len((here / "flips.jsonl").read_text().splitlines()) == moved
    if moved:
        assert found["correlation"] == pytest.approx(-1.0)


@pytest.mark.parametrize("every", [False, True])
def test_a_reward_that_fails_says_why_and_on_every_row_it_is_an_error(
    here: Path, cli: Cli, every: bool
) -> None:
    rollouts = (here / "run/stages/2-grpo/rollouts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["completion"] for line in rollouts]
    (here / "broken.py").write_text(
        "from rl_reasoner import reward\n\n@reward\ndef broken(completion: str) -> float:\n"
        f"    if completion in {texts if every else texts[:1]!r}:\n"
        "        raise ValueError('no such key')\n    return 1.0\n"
    )
    ended = cli("score", "broken.py:broken", "--rescore", "run", "--json")
    found = json.loads(ended.out)
    assert "no such key" in found["first_fault"]
    assert found["faults"] == (len(texts) if every else texts.count(texts[0]))
    assert ended.code == (3 if every else 0)
    assert ("failed on every row: " in ended.err and "no such key" in ended.err) == every
    shown = cli("score", "broken.py:broken", "--rescore", "run").out
    assert "first_fault: " in shown and "no such key" in shown


def test_the_ledger_of_a_run_has_every_score(here: Path) -> None:
    stage = here / "run" / "stages" / "2-grpo"
    rollouts = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    found = list(entries(stage))
    assert [row["hash"] for row in found] == [
        completion_hash(row["completion"]) for row in rollouts
    ]
    assert [row["row"] for row in found] == [row["row"] for row in rollouts]
    assert all(row["seconds"] > 0 and row["reward"] == "fine" for row in found)
