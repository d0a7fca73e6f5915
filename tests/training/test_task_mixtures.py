"""Rows of several tasks in one stage and one evaluation, each judged by its own rewards."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import GRPOConfig, GRPOTrainer, Policy, evaluate, open_policy, reward, train
from rl_reasoner.dataset.code_rows import as_dataset
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.recipe.data import FileData, MixData
from rl_reasoner.recipe.flags import apply_flags
from rl_reasoner.recipe.recipe import EvalOverrides, Recipe
from rl_reasoner.types import Rollout
from support.tiny import QUIET, grpo, recipe, rows, sft
from support.trainers import Log

MIX: Any = [
    {"task": "modular", "count": 12, "rewards": ["math_answer", "format_tags"]},
    {"task": "functions", "count": 12, "rewards": ["code_tests"]},
    {"task": "instructions_tiny", "count": 12, "rewards": ["instructions"], "max_tokens": 3},
]
REWARDS: Any = {
    "math_answer": 1.0,
    "format_tags": 0.5,
    "code_tests": {"weight": 2.0, "options": {"extract": "any"}},
    "instructions": {"weight": 3.0, "options": {"credit": "fraction"}},
}


def fields(rewards: Any, data: Any) -> dict[str, Any]:
    """A recipe with one grpo stage."""
    return {"policy": "scratch:dense-tiny", "rewards": rewards, "stages": [grpo(data=data)]}


# ------------------------------------------------------------------------------------- the rows


def test_a_mix_has_the_rows_of_all_with_what_each_says_of_them() -> None:
    found = load_rows(MixData(mix=MIX))
    assert len(found) == 36 and len({tuple(row) for row in found}) == 1, "the same columns"
    by_task = {task: [r for r in found if r["task"] == task] for task in ("modular", "functions")}
    assert all(row["rewards"] == ["code_tests"] for row in by_task["functions"])
    assert all(row["tests"] is None and row["max_tokens"] is None for row in by_task["modular"])


def test_shares_repeat_and_leave_out_rows(tmp_path: Path) -> None:
    file = tmp_path / "puzzles.jsonl"
    file.write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": "3"}\n')
    mix: Any = [{"task": "modular", "count": 18, "share": 1}, {"path": str(file), "share": 3}]
    found = load_rows(MixData(mix=mix))
    assert [row["task"] for row in found].count("modular") == 5
    puzzles = [row["problem"] for row in found if row["task"] == "puzzles"]
    assert len(puzzles) == 15 and abs(puzzles.count("1+1") - puzzles.count("1+2")) == 1
    assert load_rows(MixData(mix=mix)) == found, "the same each time"


def test_shares_for_all_or_for_none() -> None:
    with pytest.raises(ValueError, match="1 of its 2 sources have a share"):
        MixData.model_validate({"mix": [{"task": "modular", "share": 1}, {"task": "gcd"}]})


def test_flags_reach_into_a_mix() -> None:
    wanted = Recipe.model_validate(fields(REWARDS, MIX))
    flags = ["--data.mix.0.count", "5", "--grpo.data.mix.1.task", "gcd"]
    flags += ["--evals.overrides.modular_test.max_tokens", "7"]
    changed = apply_flags(wanted, flags)
    mix: Any = changed.data_of(changed.stages[0])
    assert (mix.mix[0].count, mix.mix[1].task, mix.mix[1].count) == (5, "gcd", 12)
    assert changed.evals.overrides == {"modular_test": EvalOverrides(max_tokens=7)}
    with pytest.raises(UserError, match=r"--data\.mix\.0\.count x: .*a whole number"):
        apply_flags(wanted, ["--data.mix.0.count", "x"])


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": ["math_anser"]}, "'math_anser'. Did you mean 'math_answer'?"),
        ({"rewards": []}, "its list of rewards is empty"),
        ({"rewards": ["code_tests"]}, "needs the column 'tests'"),
    ],
)
def test_mistakes_in_the_rewards_of_rows_are_told_before_the_run(
    change: dict[str, Any], message: str
) -> None:
    mix = [{**MIX[0], **change}]
    with pytest.raises(UserError) as raised:
        made = Recipe.model_validate(fields(REWARDS, mix))
        prepare(made, choose_placement(made))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"rewards": [0.5, 1]}, "row '1+1=': its rewards are [0.5, 1], not a list of names"),
        ({"rewards": {"gold": 1}}, "row '1+1=': its rewards are {'gold': 1}, not a list of names"),
        ({"max_tokens": "two"}, "row '1+1=': max_tokens is 'two', not a whole number above 0"),
        ({"max_tokens": 0}, "row '1+1=': max_tokens is 0, not a whole number above 0"),
    ],
)
def test_columns_that_say_what_no_run_can_do_are_told_before_it(
    column: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"problem": "1+1=", "answer": "2", **column}))
    with pytest.raises(UserError) as raised:
        made = Recipe.model_validate(fields({"math_answer": 1}, {"path": str(file)}))
        prepare(made, choose_placement(made))
    assert message in str(raised.value)


def test_two_rewards_of_one_name_are_refused(tmp_path: Path) -> None:
    """Scores, ledger and metrics are kept by functions' names: one would be lost."""
    file = tmp_path / "other.py"
    file.write_text(
        "from rl_reasoner import reward\n\n\n@reward\ndef boxed(completion: str) -> float:\n"
        "    return 1.0\n"
    )
    rewards = {"boxed": 1, f"{file}:boxed": 1}
    with pytest.raises(UserError, match="are both functions called boxed"):
        made = Recipe.model_validate(fields(rewards, [{"task": "modular"}]))
        prepare(made, choose_placement(made))


def test_a_wrong_instruction_is_told_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "told.jsonl"
    good = {"problem": "Three words.", "instructions": [{"name": "words", "exactly": 3}]}
    bad = {"problem": "Four words.", "instructions": [{"name": "wrods", "exactly": 4}]}
    file.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(UserError, match=r"row 2: unknown instruction 'wrods'.*'words'"):
        load_rows(FileData(path=str(file)))
    assert len(load_rows(FileData(path=str(file), on_bad_row="skip"))) == 1


# ------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(path)
    return path


CALLED: dict[str, list[str]] = {}


@reward
def of_sums(completion: str, answer: str) -> float:
    """Its length, on rows that have an answer."""
    CALLED.setdefault("of_sums", []).append(answer)
    return float(len(completion) + len(answer))


@reward
def of_words(completion: str, words: str) -> float:
    """Its capitals, on rows that have words."""
    CALLED.setdefault("of_words", []).append(words)
    return float(sum(c.isupper() for c in completion) + len(words))


def mixed(folder: Path, tmp_path: Path, **changes: Any) -> tuple[list[Any], list[Any]]:
    """Rollouts and logs of two steps on two rows with sums and two with words."""
    data = [
        {
            "prompt": f"{kind}{n}",
            "answer": "3" if kind == "s" else None,
            "words": "ab" if kind == "w" else None,
            "task": {"s": "sums", "w": "words"}[kind],
            "rewards": [{"s": "of_sums", "w": "of_words"}[kind]],
            "max_tokens": 2 if kind == "w" else None,
        }
        for kind in "sw"
        for n in range(2)
    ]
    arguments: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "isolate_rewards": False,
        "reward_weights": [2.0, 0.5],
        **QUIET,
        **changes,
    }
    policy = open_policy(str(folder), device="cpu")
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=[of_sums, of_words],
        args=GRPOConfig(output_dir=str(tmp_path), **arguments),
        train_dataset=as_dataset(data),
        processing_class=policy.tokenizer,
    )
    kept: list[dict[str, Any]] = []
    log = Log()
    trainer.use_row_settings = True
    trainer.rollout_sink = kept.extend
    trainer.add_callback(log)
    CALLED.clear()
    trainer.train()
    return kept, log.rows


@pytest.mark.parametrize("overlap", [True, False])
def test_a_reward_is_called_on_its_own_rows_alone(
    folder: Path, tmp_path: Path, overlap: bool
) -> None:
    kept, _ = mixed(folder, tmp_path, overlap_rewards=overlap)
    assert len(kept) == 16
    for name, task in (("of_sums", "s"), ("of_words", "w")):
        mine = [row["scores"][name] for row in kept if row["prompt"][0] == task]
        others = [row["scores"][name] for row in kept if row["prompt"][0] != task]
        assert {score["outcome"] for score in mine} == {"score"}
        assert {score["outcome"] for score in others} <= {"abstain"}
        assert {score["reason"] for score in others} <= {"not a reward of this row"}
        assert len(CALLED.get(name, [])) == len(mine)
    assert None not in CALLED.get("of_sums", []) + CALLED.get("of_words", [])


def test_advantages_are_those_of_each_groups_own_rewards(folder: Path, tmp_path: Path) -> None:
    kept, _ = mixed(folder, tmp_path)
    for group in {(row["step"], row["group"]) for row in kept}:
        mine = [row for row in kept if (row["step"], row["group"]) == group]
        name, weight = ("of_sums", 2.0) if mine[0]["prompt"][0] == "s" else ("of_words", 0.5)
        totals = [weight * row["scores"][name]["value"] for row in mine]
        mean, deviation = statistics.fmean(totals), statistics.stdev(totals)
        for row, total in zip(mine, totals, strict=True):
            assert row["reward"] == pytest.approx(total)
            assert row["advantage"] == pytest.approx((total - mean) / (deviation + 1e-4), abs=1e-5)


def test_metrics_by_reward_and_by_task(folder: Path, tmp_path: Path) -> None:
    kept, logs = mixed(folder, tmp_path)
    assert {row["prompt"][0] for row in kept} == {"s", "w"}
    for log in logs:
        step = [row for row in kept if row["step"] == log["step"]] if "step" in log else kept
        for name, task, letter in (("of_sums", "sums", "s"), ("of_words", "words", "w")):
            mine = [row for row in step if row["prompt"][0] == letter]
            if not mine or "step" not in log:
                continue
            values = [row["scores"][name]["value"] for row in mine]
            assert log[f"rewards/{name}/mean"] == pytest.approx(statistics.fmean(values))
            totals = [row["reward"] for row in mine]
            assert log[f"task/{task}/reward"] == pytest.approx(statistics.fmean(totals))
            assert log[f"task/{task}/rows"] == len(mine)
    assert any("task/sums/mean_length" in log for log in logs)


@pytest.mark.parametrize("fast", [True, False])
def test_rows_with_a_budget_stop_at_it(folder: Path, tmp_path: Path, fast: bool) -> None:
    kept, _ = mixed(folder, tmp_path, fast_rollouts=fast)
    sizes = {kind: [len(r["completion"]) for r in kept if r["prompt"][0] == kind] for kind in "sw"}
    assert max(sizes["w"]) <= 2 < max(sizes["s"])
    assert all(row["truncated"] for row in kept if row["prompt"][0] == "w" and row["completion"])


def test_one_stage_of_three_tasks(tmp_path: Path) -> None:
    stages = (sft(data=MIX, steps=1), grpo(data=MIX, steps=3, group={"size": 2, "prompts": 8}))
    sets = ["modular_test", "functions_test", "instructions_tiny_test"]
    evals = {"sets": sets, "limit": 3, "max_tokens": 6, "reward": None}
    run = train(recipe(tmp_path, *stages, rewards=REWARDS, evals=evals), quiet=True)
    [stage] = (run.folder / "stages").glob("*-grpo")
    kept = rows(stage / "rollouts.jsonl")
    own = {"modular": {"math_answer", "format_tags"}, "functions": {"code_tests"}}
    own["instructions_tiny"] = {"instructions"}
    data = load_rows(MixData(mix=MIX))
    seen = set()
    for row in kept:
        task = data[row["row"]]["task"]
        judged = {n for n, s in row["scores"].items() if s["reason"] != "not a reward of this row"}
        assert judged == own[task]
        seen.add(task)
    metrics = rows(stage / "metrics.jsonl")
    named = {key.split("/")[1] for row in metrics for key in row if key.startswith("task/")}
    assert named == seen and len(seen) == 3
    figures = run.evals["after"].sets
    judges = [figures[name]["reward"] for name in sets]
    assert judges == ["math_answer", "code_tests", "instructions"]


# ----------------------------------------------------------------------------------- evaluation


def test_a_set_of_several_tasks_is_judged_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each completion is the row's own right answer, but for the last row of each task."""
    data = [row for source in MIX for row in load_rows(MixData(mix=[source]))[:3]]
    data = [{k: v for k, v in row.items() if k not in ("rewards", "max_tokens")} for row in data]
    file = tmp_path / "three.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in data), encoding="utf-8")
    said = [row["answer"] if i % 3 < 2 else "?" for i, row in enumerate(data)]
    said = [f"<answer>{text}</answer>" if i < 3 else text for i, text in enumerate(said)]
    asked: list[tuple[int, str]] = []

    def sample(policy: Policy, prompts: list[Any], **settings: Any) -> list[list[Rollout]]:
        asked.append((settings["max_tokens"], prompts[0]))
        return [[Rollout(text, 1, False)] for text in said]

    monkeypatch.setattr("rl_reasoner.rollout.sampler.sample", sample)
    policy = open_policy("scratch:dense-tiny", device="cpu")
    own = {str(file): EvalOverrides(template="Q: {problem}", max_tokens=9)}
    result = evaluate(policy, [str(file)], asked=own)
    figures = result.sets[str(file)]
    assert figures["accuracy"] == pytest.approx(6 / 9)
    assert {task: f["accuracy"] for task, f in figures["by"]["task"].items()} == dict.fromkeys(
        ("modular", "functions", "instructions_tiny"), pytest.approx(2 / 3)
    )
    assert figures["reward"] == "math_answer, code_tests, instructions"
    assert asked[0][0] == 9 and asked[0][1].startswith("Q: ")
    saved = EvalResult.load(result.save(tmp_path / "three.json"))
    assert replay(saved).sets[str(file)]["by"] == figures["by"]
