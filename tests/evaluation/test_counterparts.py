"""Rows of two results, which anybody may have edited, are paired by problem and answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import EvalResult, compare, evaluate, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.recipe.data import FileData
from rl_reasoner.report.evaluation import build_evaluation_page
from rl_reasoner.report.page import build_page
from rl_reasoner.report.run_data import read_run
from support.commands import Cli


def of(rows: list[tuple[str, str, float]]) -> EvalResult:
    """A result whose rows have this problem, answer and score."""
    whole = [
        {
            "problem": problem,
            "answer": answer,
            "completions": [f"said to {answer}: {score:.0f}"],
            "scores": [score],
            "reasons": [""],
            "outcomes": ["score"],
            "tokens": [3],
            "truncated": [False],
        }
        for problem, answer, score in rows
    ]
    return EvalResult("p", sets={"s": compute_figures(whole)}, rows={"s": whole})


TWICE = [("roots?", "3", 0.0), ("roots?", "4", 1.0), ("else?", "1", 0.0)]


def test_a_text_with_two_answers_is_paired_in_any_order() -> None:
    a, b = of(TWICE), of([("else?", "1", 0.0), ("roots?", "4", 1.0), ("roots?", "3", 1.0)])
    found = compare(a, b)["s"]
    assert (found["better"], found["worse"]) == (1, 0)
    assert [(flip["row"], flip["row_b"], flip["answer"]) for flip in found["flips"]] == [
        (0, 2, "3")
    ]


def test_an_answer_that_is_another_in_the_one_result_is_named() -> None:
    with pytest.raises(UserError, match="'4' in the one result and '5' in the other"):
        compare(of(TWICE), of([("roots?", "5", 1.0), ("roots?", "3", 0.0), ("else?", "1", 0.0)]))


def test_the_first_screen_shows_what_was_said_to_the_same_row(tmp_path: Path) -> None:
    of(TWICE).save(tmp_path / "evals" / "before.json")
    of([("roots?", "4", 1.0), ("roots?", "3", 1.0), ("else?", "1", 0.0)]).save(
        tmp_path / "evals" / "after.json"
    )
    page = build_page(read_run(tmp_path))
    assert "wrong before and right after" in page
    assert '<pre class="example">said to 3: 0</pre>' in page
    assert '<pre class="example">said to 3: 1</pre>' in page


def test_an_interval_that_is_not_drawn_is_not_called_a_bootstrap() -> None:
    a = of([(str(n % 10), "1", 0.0) for n in range(20)])
    b = of([(str(n % 10), "1", float(n % 10 < 8)) for n in range(20)])
    assert compare(a, b)["s"]["test"] == "p by sign flips"
    for result, scores in ((a, [0.0, 0.0]), (b, [0.0, 1.0])):
        for row in result.rows["s"][:15]:
            row |= {"scores": scores, "completions": ["x"] * 2, "reasons": [""] * 2}
    assert compare(a, b)["s"]["test"] == "paired bootstrap, p by sign flips"


@pytest.mark.parametrize("name", ["settings", "manifest"])
def test_a_result_whose_facts_are_a_list_is_none(name: str, tmp_path: Path) -> None:
    path = of(TWICE).save(tmp_path / "a.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), name: ["x"]}))
    with pytest.raises(UserError, match=f"its {name} are not a mapping"):
        EvalResult.load(path)


def test_settings_of_a_set_that_are_a_list_are_none() -> None:
    a, b = of(TWICE), of(TWICE)
    a.settings = {"asked": ["x"]}
    b.settings = {"asked": {"s": "x"}}
    assert compare(a, b)["s"]["unlike"] == {}


def test_a_judge_that_is_no_name_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "stages" / "1-grpo").mkdir(parents=True)
    example = {"verdict": "disagrees", "judge": ["x"], "reason": "a sum", "prompt": "1+1?"}
    line = {"step": 1, "judged": 1, "disagrees": 1, "examples": [example]}
    (tmp_path / "stages" / "1-grpo" / "hacking.jsonl").write_text(json.dumps(line) + "\n")
    assert "a sum" in build_page(read_run(tmp_path))


def test_rows_that_ask_for_something_else_are_told(tmp_path: Path) -> None:
    """The same problems with other tests: the difference need not be the policy's."""
    a, b = of(TWICE), of([*TWICE[1:], TWICE[0]])
    for result, last in ((a, 3), (b, 4)):
        for row in result.rows["s"]:
            row |= {"tests": [f"assert f() == {last}"], "level": 1}
    found = compare(a, b)["s"]["unlike"]
    assert [*found] == ["tests of the rows"] and len({*found["tests of the rows"]}) == 2
    for row in b.rows["s"]:
        row["tests"] = a.rows["s"][0]["tests"]
    assert compare(a, b)["s"]["unlike"] == {}, "in whatever order"
    for result in (a, b):
        for row in result.rows["s"]:
            row["tests"] = [float("nan")]
    assert compare(a, b)["s"]["unlike"] == {}, "a gap is no other value"


def test_what_a_file_says_of_its_own_rows_is_told(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    file.write_text('{"problem": "1+1=", "answer": "2"}\n')
    policy = open_policy("scratch:dense-tiny", device="cpu")
    asked = FileData(path=str(file), max_tokens=2), FileData(path=str(file), template="{problem} ")
    a, b = (evaluate(policy, [data], max_tokens=3, template="plain") for data in asked)
    told = {"max_tokens": [2, 3], "template": ["plain", "{problem} "]}
    assert compare(a, b)[str(file)]["unlike"] == told


def test_an_edited_reward_is_told(tmp_path: Path) -> None:
    """By its code at the time of judging: `eval --replay` judges by that of now."""
    file = tmp_path / "mine.py"
    policy = open_policy("scratch:dense-tiny", device="cpu")
    results = []
    for worth in (0.0, 1.0):
        file.write_text(
            "from rl_reasoner import reward\n\n\n@reward\n"
            f"def mine(completion: str, **columns: object) -> float:\n    return {worth}\n"
        )
        results.append(
            evaluate(policy, ["modular_test"], limit=2, max_tokens=2, reward=f"{file}:mine")
        )
    a, b = results
    found = compare(a, b)["modular_test"]["unlike"]
    assert [*found] == ["code of the reward"] and len({*found["code of the reward"]}) == 2
    hashed = a.manifest["sets"]["modular_test"].pop("reward_sha256")  # of an earlier version
    assert compare(a, b)["modular_test"]["unlike"] == {}, "what it was is not known"
    a.manifest["files"] = {f"{file}:mine": hashed}  # as in a run
    assert compare(a, b)["modular_test"]["unlike"] == found
    again = replay(a, run_its_code=True)
    assert again.rows["modular_test"][0]["scores"] == [1.0]
    assert compare(again, b)["modular_test"]["unlike"] == {}, "both by the code of now"


def test_what_the_template_auto_became_is_told() -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.chat_template = None
    plain = evaluate(policy, ["modular_test"], limit=2, max_tokens=2, template="plain")
    auto = evaluate(policy, ["modular_test"], limit=2, max_tokens=2)
    assert compare(plain, auto)["modular_test"]["unlike"] == {}
    policy.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    chat = evaluate(policy, ["modular_test"], limit=2, max_tokens=2)
    assert compare(auto, chat)["modular_test"]["unlike"] == {"template": ["plain", "chat"]}


def test_a_page_of_two_says_whose_the_figures_by_level_are() -> None:
    a, b = of(TWICE), of(TWICE)
    easy = {"problems": 3, "accuracy": 0.5, "interval": [0.1, 0.9]}
    for result in (a, b):
        result.sets["s"]["by"] = {"level": {"1": easy, "2": easy}}
    a.sets["only"], a.rows["only"] = a.sets["s"], a.rows["s"]
    page = build_evaluation_page([a, b])
    assert "<h3>s (b) by level</h3>" in page and "<h3>only (a) by level</h3>" in page
    assert "<h3>s by level</h3>" in build_evaluation_page([b])


@pytest.mark.parametrize(
    "edit",
    [
        {"interval": None},
        {"accuracy": "high"},
        {"mean_length": "short"},
        {"faults": {}},
        {"lenient": {"accuracy": 0.5, "interval": []}},
        {"by": {"level": {"3": {"problems": 1, "accuracy": 0.5, "interval": [None, None]}}}},
        {"by": {"level": 3}},
        {"by_length": [{"tokens": [1], "accuracy": 0.5, "interval": [0, 1]}]},
        {"pass_at": {"many": 0.5}},
        {"pass_at": {"2": 0.5}, "pass_at_interval": {"2": ["a", "b"]}},
        {"contamination": {"contaminated": 0, "rows": 3, "exact": "few"}},
    ],
)
def test_a_figure_that_was_edited_is_a_mistake_that_is_told(
    edit: dict[str, Any], cli: Cli, tmp_path: Path
) -> None:
    of(TWICE).save(tmp_path / "a.json")
    file = of(TWICE).save(tmp_path / "b.json")
    saved = json.loads(file.read_text())
    saved["sets"]["s"] |= edit
    file.write_text(json.dumps(saved))
    for given in (["report", "b.json"], ["compare", "a.json", "b.json", "--out", "both.html"]):
        ended = cli(*given)
        assert ended.code == 2, ended.err
        assert "b.json is not an evaluation result" in ended.err.replace("\n", " ")
    assert not (tmp_path / "both.html").exists()


def test_a_row_of_no_set_is_told(cli: Cli, tmp_path: Path) -> None:
    of(TWICE).save(tmp_path / "a.json")
    rows = tmp_path / "a.rows.jsonl"
    rows.write_text(rows.read_text().replace('"set": "s"', '"set": ["s"]'))
    ended = cli("report", "a.json")
    assert ended.code == 2 and "line 1: the result has no set ['s']" in ended.err.replace("\n", " ")
