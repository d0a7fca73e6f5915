"""The pipeline's section: figures by stage, and sentences that they support and no more."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner.audit.replaying import last_step
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.pipeline.why import sampled_stages
from rl_reasoner.report import write_report
from rl_reasoner.report.pipeline import habits_of, reached, text_table
from rl_reasoner.report.run_data import RunData, read_run

STAGES: list[dict[str, Any]] = [
    {"kind": "sft", "name": "pre"},
    {"kind": "grpo", "name": "zero"},
    {"kind": "sample", "name": "samples"},
    {"kind": "sft", "name": "cold", "start": "pre"},
    {"kind": "sft", "name": "student", "policy": "scratch:dense-tiny"},
]
CHAIN = "<think>1 plus 1=2</think><answer>2</answer>"
MIXED = "<think>1加1=2 plus 0=2</think><answer>2</answer>"
DIRECT = "<think></think><answer>2</answer>"


def row(*completions: tuple[str, bool], problem: str = "1+1=") -> dict[str, Any]:
    texts = [text for text, _ in completions]
    return {
        "problem": problem,
        "answer": "2",
        "completions": texts,
        "scores": [float(right) for _, right in completions],
        "reasons": [""] * len(texts),
        "outcomes": ["score"] * len(texts),
        "tokens": [len(text) for text in texts],
        "truncated": [False] * len(texts),
    }


def evaluated(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write the evaluation `name`: greedy, and sampled twice."""
    result = EvalResult("tiny", name)
    for label, temperature, chosen in (("sums", 0.0, 1), ("sums@sampled", 1.0, 2)):
        part = [
            row(*list(zip(r["completions"], r["scores"], strict=True))[:chosen], problem=f"{i}=")
            for i, r in enumerate(rows)
        ]
        result.sets[label] = {**compute_figures(part), "temperature": temperature}
        result.rows[label] = part
    result.save(folder / "evals" / f"{name}.json")


def run(folder: Path, **evals: list[dict[str, Any]]) -> RunData:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "stages": STAGES}))
    for name, rows in evals.items():
        evaluated(folder, name, rows)
    return read_run(folder)


def half(first: str, second: str, rights: tuple[bool, bool] = (True, False)) -> Any:
    """100 problems with two completions each: the first and the second of a kind."""
    return [row((first, rights[0]), (second, rights[1]))] * 100


def varied(text: str, right: int) -> Any:
    """100 problems with two completions of one form, those of the first `right` problems right."""
    return [row((text, i < right), (text, i < right)) for i in range(100)]


def test_stages_in_order_with_where_they_start(tmp_path: Path) -> None:
    same = half(CHAIN, DIRECT)
    found = reached(run(tmp_path, pre=same, zero=same, cold=same, student=same))
    assert [(each.name, each.start) for each in found] == [
        ("pre", None),
        ("zero", "pre"),
        ("cold", "pre"),
        ("student", None),
    ]


def test_a_selected_behaviour_is_no_skill(tmp_path: Path) -> None:
    before = [row((CHAIN if i % 4 == 0 else DIRECT, i % 4 == 0)) for i in range(200)]
    before = [row((r["completions"][0], bool(r["scores"][0])), (DIRECT, False)) for r in before]
    text = text_table(run(tmp_path, pre=before, zero=half(CHAIN, CHAIN, (True, True))))
    assert "a behaviour was selected (thinks first 12.5% to 100.0%), no skill added" in text


def test_better_chains_are_told_from_more_of_them(tmp_path: Path) -> None:
    text = text_table(run(tmp_path, pre=varied(CHAIN, 30), zero=varied(CHAIN, 90)))
    assert "its chains are right more often (with a chain 30.0% to 90.0%)" in text
    assert "pass@2 was 30.0% before" in text


def test_a_stray_chain_does_not_explain_a_task_that_is_answered_without(tmp_path: Path) -> None:
    before, after = varied(DIRECT, 30), varied(DIRECT, 90)
    stray = row((CHAIN, False), (DIRECT, False))
    text = text_table(run(tmp_path, pre=[*before, stray], zero=[*after, stray]))
    assert "rose, with intervals apart; pass@2 was 29.7% before" in text
    assert "behaviour" not in text


def test_a_loss_is_told_as_a_gain_is(tmp_path: Path) -> None:
    worse = text_table(run(tmp_path, pre=varied(CHAIN, 90), zero=varied(CHAIN, 30)))
    assert "its chains are right less often (with a chain 90.0% to 30.0%); fell" in worse
    before = half(CHAIN, CHAIN, (True, True))
    after = [row((CHAIN, True), (DIRECT, False)), row((DIRECT, False), (DIRECT, False))] * 50
    less = text_table(run(tmp_path, pre=before, zero=after))
    assert "a behaviour is used less (thinks first 100.0% to 25.0%), no skill lost" in less


@pytest.mark.parametrize("now, said", [(35, "intervals overlap"), (5, "fell, with intervals")])
def test_no_gain_is_claimed_without_intervals_apart(now: int, said: str, tmp_path: Path) -> None:
    text = text_table(run(tmp_path, pre=varied(CHAIN, 30), zero=varied(CHAIN, now)))
    assert said in text and "rose" not in text and "skill" not in text


def test_languages_mixed_and_reflection_words_are_shares_of_the_chains() -> None:
    wait = "<think>1 plus 1=3 wait, check again =2</think>2"
    habits = habits_of([row((MIXED, True), (CHAIN, True)), row((wait, True), (DIRECT, False))])
    assert habits.thinking == 0.75
    assert habits.mixed == pytest.approx(1 / 3) and habits.reflection == pytest.approx(1 / 3)
    assert habits.with_chain is not None and habits.with_chain.accuracy == 1.0
    assert habits_of([row((DIRECT, True))]).mixed is None


def test_the_section_is_on_the_page_of_a_pipeline_alone(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    same = half(CHAIN, MIXED)
    run(tmp_path / "many", pre=same, zero=same)
    page = write_report(tmp_path / "many").read_text(encoding="utf-8")
    assert 'id="pipeline"' in page and "Languages mixed" in page
    (tmp_path / "one").mkdir()
    run(tmp_path / "one", before=same, after=same)
    assert 'id="pipeline"' not in write_report(tmp_path / "one").read_text(encoding="utf-8")


def test_a_set_that_only_a_later_stage_was_evaluated_on_has_no_gain(tmp_path: Path) -> None:
    rows = [row((MIXED, True), (DIRECT, True)) for _ in range(4)]
    made = run(tmp_path, pre=rows, zero=rows)
    file = tmp_path / "evals/zero.json"
    result = EvalResult.load(file)
    result.sets["more"], result.rows["more"] = (part["sums"] for part in (result.sets, result.rows))
    result.save(file)
    assert "more" in write_report(made.folder).read_text(encoding="utf-8")


def test_folders_and_steps_that_no_run_makes_are_left_out(tmp_path: Path) -> None:
    run(tmp_path)
    stage = tmp_path / "stages/2-zero"
    (tmp_path / "stages/backup").mkdir(parents=True)
    (tmp_path / "stages/backup/rollouts.jsonl").touch()
    stage.mkdir()
    (stage / "rollouts.jsonl").touch()
    with (stage / "metrics.jsonl").open("w") as file:
        for step in (1, 1.5, -1e308, 2, None):
            file.write(json.dumps({"step": step, "reward": 0.5}) + "\n")
    [record] = read_run(tmp_path).stages
    assert [each["step"] for each in record.metrics] == [1, 2]
    assert sampled_stages(tmp_path) == {"zero": stage}
    assert last_step(stage) == 2
