"""Results that are saved: judged again without a model, compared, and shown on a page."""

import json
import re
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import EvalResult, Policy, compare, evaluate, open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.judging import classes
from rl_reasoner.evaluation.labels import MODES, label_of, split_label
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.evaluation.statistics import holm, planned_difference
from rl_reasoner.report.evaluation import build_evaluation_page
from rl_reasoner.types import Rollout
from support.commands import Cli
from support.report_runs import packs
from support.tiny import reward_file

ROWS = [
    {"id": "a", "problem": "Half of one?", "answer": "1/2", "level": "easy", "subject": "halves"},
    {"id": "b", "problem": "Two and two?", "answer": "4", "level": "easy", "subject": "sums"},
    {"id": "c", "problem": "Three and three?", "answer": "6", "level": "hard", "subject": "sums"},
]
WORDS = "Let me think about this problem for a while, and then see."
SAID = [
    [r"\boxed{0.5}", r"\boxed{\frac{2}{4}}", r"\boxed{2}", WORDS],
    [r"\boxed{5}", "the answer is 5.0", r"\boxed{4}", r"\boxed{10/2}"],
    [WORDS, WORDS, WORDS, r"\boxed{6}"],
]


@pytest.fixture
def policy() -> Policy:
    return open_policy("scratch:dense-tiny", device="cpu")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def said(monkeypatch: pytest.MonkeyPatch, texts: list[list[str]]) -> None:
    """Let the policy say `texts`, one group a problem; the last of each is cut off."""

    def sample(policy: Policy, prompts: list[Any], **settings: Any) -> list[list[Rollout]]:
        return [
            [Rollout(text, 3 + n, n == len(group) - 1) for n, text in enumerate(group)]
            for group in texts
        ]

    monkeypatch.setattr("rl_reasoner.rollout.sampler.sample", sample)


@pytest.fixture
def result(policy: Policy, file: Path, monkeypatch: pytest.MonkeyPatch) -> EvalResult:
    said(monkeypatch, SAID)
    return evaluate(policy, [str(file)], 4)


# ------------------------------------------------------------------------------------ figures


def test_equal_answers_vote_together_whatever_their_spelling(result: EvalResult) -> None:
    [rows] = result.rows.values()
    assert [row["classes"] for row in rows] == [[0, 0, 1, -1], [1, 1, 0, 1], [-1, -1, -1, 0]]
    [figures] = result.sets.values()
    assert figures["maj_at"]["4"] == pytest.approx(2 / 3)  # 1/2 and 6 win, 5 beats 4
    assert figures["maj_at"]["1"] == pytest.approx(figures["accuracy"]) == 4 / 12
    assert figures["pass_at"] == {
        "1": pytest.approx(1 / 3),
        "2": pytest.approx((5 / 6 + 1) / 3),
        "4": 1.0,
    }
    low, high = figures["pass_at_interval"]["2"]
    assert low < figures["pass_at"]["2"] < high


def test_all_that_became_of_the_completions_is_told(result: EvalResult) -> None:
    [figures] = result.sets.values()
    assert figures["no_answer"] == 4 / 12 and figures["abstained"] == figures["faults"] == 0.0
    assert figures["truncated"] == 3 / 12 and figures["mean_length"] == 4.5
    assert figures["length"] == {"median": 4.5, "p95": 6, "longest": 6}
    bins = figures["by_length"]
    assert sum(b["completions"] for b in bins) == 12
    assert sum(b["completions"] * b["accuracy"] for b in bins) == pytest.approx(4)
    assert {k: v["problems"] for k, v in figures["by"]["level"].items()} == {"easy": 2, "hard": 1}
    assert figures["by"]["subject"]["sums"]["accuracy"] == 0.25
    assert "pass@4" in result.table() and "maj@2" in result.table()


def test_classes_need_no_transitive_spelling() -> None:
    assert classes(["1", "2", "1.0", ""], [0.0, 0.0, 0.0, None]) == [1, 2, 1, -1]
    assert classes([], []) == []


# ------------------------------------------------------------------------------------- replay


def test_a_replay_gives_the_same_figures_without_a_model(
    result: EvalResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = EvalResult.load(result.save(tmp_path / "saved.json"))
    monkeypatch.setattr("rl_reasoner.policy.opening.open_policy", pytest.fail)
    again = replay(saved, run_its_code=True)
    assert again.sets == result.sets and again.rows == result.rows
    assert again.manifest.pop("replayed_with_verifier") == result.manifest["verifier"]
    assert again.manifest == result.manifest
    near = replay(saved, reward_file(tmp_path))
    [figures] = near.sets.values()
    assert figures["reward"].endswith("near.py:near")
    assert figures["accuracy"] == pytest.approx(2 / 12), "the answer stands in two completions"


def test_programs_are_replayed_with_their_tests(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"prompt": "def one():\n", "entry_point": "one", "tests": ["assert one() == 1"]}
    file = tmp_path / "code.jsonl"
    file.write_text(json.dumps(row) + "\n")
    said(monkeypatch, [["    return 1", "    return 2"]])
    result = evaluate(policy, [str(file)], 2)
    file.unlink()
    again = replay(EvalResult.load(result.save(tmp_path / "code.json")))
    assert again.sets == result.sets
    assert again.rows[str(file)][0]["scores"] == [1.0, 0.0]


def test_what_cannot_be_replayed(result: EvalResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "saved.json")
    path.with_suffix(".rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"no rows that can be judged: is its \.rows\.jsonl"):
        replay(EvalResult.load(path))


# -------------------------------------------------------------------------- clean parts of sets


def test_the_clean_part_of_a_set(
    policy: Policy, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said(monkeypatch, SAID)
    trained_on = [{"problem": "other"}, {"problem": "two AND two?"}]
    result = evaluate(policy, [str(file)], 4, trained_on=trained_on)
    name = str(file)
    assert result.sets[name]["contamination"]["contaminated"] == 1
    clean = result.sets[f"{name}@clean"]
    assert clean["problems"] == 2 and clean["accuracy"] == pytest.approx(3 / 8)
    assert result.rows[name][1]["overlap"]["train_row"] == 1
    assert [row["overlap"] for row in result.rows[name][::2]] == [None, None]
    saved = EvalResult.load(result.save(tmp_path / "saved.json"))
    assert replay(saved).sets == result.sets


# ------------------------------------------------------------------------------------ compare


def of(*scores: list[float]) -> EvalResult:
    rows = {
        f"s{n}": [
            {
                "problem": str(i),
                "answer": "1",
                "completions": ["text"],
                "scores": [score],
                "reasons": [f"reason {score}"],
                "outcomes": ["score"],
                "tokens": [3],
                "truncated": [False],
            }
            for i, score in enumerate(some)
        ]
        for n, some in enumerate(scores)
    }
    figures = {name: {**compute_figures(some), "temperature": 0.0} for name, some in rows.items()}
    return EvalResult("p", sets=figures, rows=rows)


def test_flips_have_their_reasons_and_several_sets_are_several_tests() -> None:
    a = of([1.0] * 4 + [0.0] * 12, [1.0] * 8 + [0.0] * 8)
    b = of([0.0] + [1.0] * 15, [1.0] * 9 + [0.0] * 7)
    found = compare(a, b)
    one, two = found["s0"], found["s1"]
    assert (one["only_a"], one["only_b"], two["only_b"]) == (1, 12, 1)
    assert [one["p_holm"], two["p_holm"]] == holm([one["p"], two["p"]])
    assert one["p_holm"] == pytest.approx(2 * one["p"]) and two["p_holm"] == 1.0
    assert len(one["flips"]) == 13 and [flip["row"] for flip in two["flips"]] == [8]
    [flip] = two["flips"]
    assert (flip["a"]["reason"], flip["b"]["reason"]) == ("reason 0.0", "reason 1.0")
    assert flip["difference"] == 1.0
    assert two["detectable"] == planned_difference(16, 0.0)  # none came to be wrong


# ------------------------------------------------------------------------------------- the page


def test_the_page_shows_it_all_and_escapes_what_models_say(
    result: EvalResult, policy: Policy, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "<script>alert(1)</script>\u202e"
    said(monkeypatch, [[hostile] * 4, SAID[1], SAID[2]])
    other = evaluate(policy, [str(file)], 4, trained_on=[ROWS[0]])
    page = build_evaluation_page([other])
    assert "alert(1)" not in page and "\u202e" not in page
    for text in ("pass@k", "maj@k", "by level", "overlap with the training rows"):
        assert text in page, text
    texts = packs(page)["set-0-0"]["rows"]
    assert texts[0][0] == "<script>alert(1)</script>\ufffd"
    assert any("no final answer" in said[0][2] for _, said in texts)
    assert other.manifest["policy"]["prompt_example"]["prompt"] in page
    assert page == build_evaluation_page([other])
    both = build_evaluation_page([result, other])
    assert "rows better in b" in both and "Detectable" in both
    for text in re.findall(r'(?:src|href)="([^"]*)"', both):
        assert text.startswith(("data:", "#"))


# ---------------------------------------------------------------------------------- the commands


def test_eval_replays_and_compare_writes_a_page(
    result: EvalResult, cli: Cli, tmp_path: Path
) -> None:
    result.save(tmp_path / "a.json")
    ended = cli("eval", "--replay", "a.json", "--out", "b.json", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["sets"] == json.loads((tmp_path / "a.json").read_text())["sets"]
    assert "Completions" in (tmp_path / "b.html").read_text()
    ended = cli("compare", "a.json", "b.json", "--out", "both.html")
    assert ended.code == 0 and "no difference is shown" in " ".join(ended.out.split())
    assert "Comparison" in (tmp_path / "both.html").read_text()
    assert cli("eval", "x", "--sets", "y", "--replay", "a.json").code == 2
    assert Path(cli("report", "a.json").out.strip()).read_text() == (
        build_evaluation_page([EvalResult.load(tmp_path / "a.json")])
    )
    assert "--sets, or --replay" in cli("eval").err


def test_eval_takes_options_columns_and_training_rows(cli: Cli, tmp_path: Path) -> None:
    rows = [{"question": f"{n}+1=", "final": str(n + 1)} for n in range(3)]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "train.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    given = ["eval", "scratch:dense-tiny", "--sets", "mine.jsonl", "--max-tokens", "2"]
    given += ["--columns", "problem=question,answer=final", "--no-cache", "--json"]
    ended = cli(*given, "--trained-on", "train.jsonl", "--reward", "math_answer")
    assert ended.code == 0, ended.err
    sets = json.loads(ended.out)["sets"]
    assert sets["mine.jsonl"]["contamination"]["exact"] == 1
    assert sets["mine.jsonl@clean"]["problems"] == 2
    told = cli(*given[:4], "--columns", "answr=final")
    assert told.code == 2 and "no column (--columns) 'answr'. Did you mean 'answer'?" in told.err
    options = ["--reward", "math_answer", "--reward-options"]
    ended = cli(*given, *options, '{"timeout_s": 2}')
    assert json.loads(ended.out)["settings"]["reward_options"] == {"timeout_s": 2}
    ended = cli(*given, *options, "timeout_s=2", "--template", "{{problem}}")
    assert ended.code == 0 and "doubled braces, near '{{problem}}'" in ended.err
    assert "Did you mean 'timeout_s'" in cli(*given, *options, "timeout=2").err
    told = cli(*given, "--reward-options", "extract=last").err
    assert "(extract), but not the reward they are for" in told and "--reward math_answer" in told
    assert "NAME=VALUE" in cli(*given, *options, "timeout_s").err
    assert "is not a run folder" in cli(*given, "--decontaminated").err


def test_eval_knows_what_a_run_was_trained_on(cli: Cli, here: Path) -> None:
    given = ["--sets", "modular_test", "--limit", "2", "--max-tokens", "2", "--no-cache", "--json"]
    ended = cli("eval", "run", *given, "--decontaminated", "--reward", "rewards.py:fine")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["sets"]["modular_test"]["contamination"]["rows"] == 2


def test_figures_of_one_row_of_one_sample() -> None:
    row = {
        "problem": "p", "answer": "1", "completions": ["x"], "scores": [None], "reasons": ["why"],
        "outcomes": ["fault"], "tokens": [0], "truncated": [False],
    }  # fmt: skip
    figures = compute_figures([row])
    assert figures["accuracy"] == 0.0 and figures["faults"] == 1.0 and figures["judged"] == 0.0
    assert figures["interval"][1] < 1.0


def test_the_cards_of_sets_are_listed(cli: Cli) -> None:
    value = json.loads(cli("list", "sets", "--json").out)
    assert {"gsm8k", "cmath", "modular_test"} <= set(value["sets"])
    assert value["cards"]["gsm8k"]["licence"] == "MIT"
    assert "word problems of primary school" in cli("list", "sets").out


# ------------------------------------------------------------------- what could mislead is told


def test_names_with_dots_keep_their_own_rows(cli: Cli, tmp_path: Path) -> None:
    """qwen2.5 and qwen2.7 are two results, whatever follows their last dot."""
    for name, scores in (("r2.5", [1.0, 0.0]), ("r2.7", [0.0, 0.0])):
        of(scores).save(tmp_path / name)
    ended = cli("compare", "r2.5", "r2.7", "--json")
    assert json.loads(ended.out)["s0"]["only_a"] == 1
    assert (tmp_path / "r2.5.rows.jsonl").is_file() and (tmp_path / "r2.7.rows.jsonl").is_file()


def test_half_an_interval_is_one_clear_mistake(cli: Cli, tmp_path: Path) -> None:
    file = of([1.0]).save(tmp_path / "a.json")
    result = json.loads(file.read_text())
    result["sets"]["s0"]["interval"] = [0.5]
    file.write_text(json.dumps(result))
    ended = cli("compare", "a.json", "a.json")
    assert ended.code == 2 and "a.json" in ended.err and "Traceback" not in ended.err


def test_no_result_is_written_over(cli: Cli, tmp_path: Path) -> None:
    of([1.0]).save(tmp_path / "a.json")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert "its page and rows go next to it" in (
        cli("eval", "--replay", "a.json", "--out", "page.html").err
    )
    assert "is one of the results" in cli("compare", "a.json", "a.json", "--out", "a.json").err
    rows = cli("compare", "a.json", "a.json", "--out", "a.rows.jsonl")
    assert rows.code == 2 and "a name that ends in .html" in rows.err
    for file in before:
        own = cli("eval", "scratch:dense-tiny", "--sets", file, "--out", "a.json")
        assert own.code == 2 and f"{file} is a set that is evaluated" in own.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"set": "other"}, "line 1: the result has no set 'other'"),
        ({"completions": ["a", "b"]}, "2 completions, 1 tokens"),
        ({"completions": "text"}, "its completions are missing"),
        ({"completions": [7]}, "not all texts"),
        ({"scores": []}, "of one length"),
        ({"truncated": None}, "its truncated are missing"),
        ({"truncated": [None]}, "its truncated are not all true or false"),
        ({"tokens": ["x"]}, "its tokens are not all numbers"),
        ({"problem": None}, "its problem is missing"),
    ],
)
def test_a_row_that_was_edited_is_told_by_its_line(
    edit: dict[str, Any], told: str, cli: Cli, tmp_path: Path
) -> None:
    of([1.0]).save(tmp_path / "a.json")
    rows = tmp_path / "a.rows.jsonl"
    rows.write_text(json.dumps({**json.loads(rows.read_text()), **edit}) + "\n")
    for given in (["eval", "--replay", "a.json"], ["compare", "a.json", "a.json"]):
        ended = cli(*given)
        assert ended.code == 2 and told in ended.err.replace("\n", " "), ended.err


def test_rows_that_are_not_those_of_the_figures_are_refused(cli: Cli, tmp_path: Path) -> None:
    of([1.0, 0.0]).save(tmp_path / "a.json")
    rows = tmp_path / "a.rows.jsonl"
    rows.write_text(rows.read_text().splitlines(keepends=True)[0])
    assert "has 1 rows of s0, the result 2" in cli("compare", "a.json", "a.json").err
    rows.unlink()
    assert "is .rows.jsonl next to it?" in cli("compare", "a.json", "a.json").err


def test_a_set_whose_rows_are_lost_is_told(tmp_path: Path) -> None:
    """Else the others would be compared alone, and p-values adjusted for too few."""
    result = of([1.0])
    result.sets["s1"], result.rows["s1"] = result.sets["s0"], result.rows["s0"]
    file = result.save(tmp_path / "a.json")
    rows = tmp_path / "a.rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:1]))
    with pytest.raises(UserError, match=r"has 0 rows of s1, the result 1"):
        EvalResult.load(file)


def test_a_replay_by_a_plain_reward_and_by_the_same_again(cli: Cli, tmp_path: Path) -> None:
    """A function of trl's kind gets the rows' own columns, and the result says who judged."""
    of([0.0, 0.0]).save(tmp_path / "a.json")
    (tmp_path / "mine.py").write_text(
        "def generous(completions, answer, scores=None, **columns):\n"
        "    assert scores is None and 'tokens' not in columns\n"
        "    return [1.0] * len(completions)\n"
    )
    ended = cli("eval", "--replay", "a.json", "--reward", "mine.py:generous", "--out", "b.json")
    assert ended.code == 0, ended.err
    again = cli("eval", "--replay", "b.json", "--json", "--run-its-code")
    found = json.loads(again.out)
    assert found["sets"]["s0"]["accuracy"] == 1.0
    assert found["settings"]["reward"] == "mine.py:generous"


def test_a_replay_takes_no_flags_of_sampling(cli: Cli, tmp_path: Path) -> None:
    of([1.0]).save(tmp_path / "a.json")
    ended = cli("eval", "--replay", "a.json", "--samples", "4", "--limit", "2")
    assert ended.code == 2 and "it does not take --samples, --limit" in ended.err
    ended = cli("eval", "--replay", "a.json", "--reward-options", "extract=whole")
    assert ended.code == 2 and "not the reward they are for" in ended.err


def test_a_reward_that_always_fails_is_no_result(cli: Cli, tmp_path: Path) -> None:
    of([1.0, 1.0]).save(tmp_path / "a.json")
    (tmp_path / "mine.py").write_text("def broken(completions, **k):\n    raise KeyError('gold')\n")
    ended = cli("eval", "--replay", "a.json", "--reward", "mine.py:broken")
    assert ended.code == 3 and "the reward failed on every completion" in ended.err
    assert "the reward failed on 100.0% of the completions" in ended.out


def test_pairs_are_by_problem_in_any_order_and_with_the_same_golds() -> None:
    a, b = of([1.0, 0.0, 0.0]), of([1.0, 0.0, 1.0])
    b.rows["s0"].reverse()
    found = compare(a, b)["s0"]
    assert (found["only_a"], found["only_b"]) == (0, 1)
    assert [(flip["row"], flip["row_b"]) for flip in found["flips"]] == [(2, 0)]
    b.rows["s0"][1]["answer"] = "2"
    with pytest.raises(UserError, match="'1' has the answer '1' in the one result and '2' in"):
        compare(a, b)


def test_what_else_differs_is_told(cli: Cli, tmp_path: Path) -> None:
    a, b = of([1.0, 0.0]), of([1.0, 1.0])
    a.settings, b.settings = {"max_tokens": 256}, {"max_tokens": 9}
    assert compare(a, a)["s0"]["unlike"] == {}
    assert compare(a, b)["s0"]["unlike"] == {"max_tokens": [256, 9]}
    a.save(tmp_path / "a.json")
    b.save(tmp_path / "b.json")
    told = "max_tokens differs (256 in a, 9 in b)"
    assert told in cli("compare", "a.json", "b.json").err
    assert told in build_evaluation_page([a, b])


def test_a_template_of_a_sets_own_is_told_in_each_of_its_modes() -> None:
    a, b = of([1.0]), of([1.0])
    for result, template in ((a, "boxed"), (b, "r1")):
        result.settings = {"asked": {"s0": {"template": template, "max_tokens": None}}}
        for mode in ("sampled", "chain-forced"):
            result.sets[f"s0@{mode}"] = result.sets["s0"]
            result.rows[f"s0@{mode}"] = result.rows["s0"]
    told = {name: entry["unlike"] for name, entry in compare(a, b).items()}
    differs = {"template": ["boxed", "r1"]}
    assert told == dict.fromkeys(("s0", "s0@sampled", "s0@chain-forced"), differs)


def test_a_set_with_an_at_in_its_name_is_that_set() -> None:
    assert split_label("data@v2/p@1.jsonl") == ("data@v2/p@1.jsonl", "")
    assert split_label("p@1.jsonl@sampled@clean") == ("p@1.jsonl", "sampled@clean")
    assert all(split_label(label_of("p@1", mode))[0] == "p@1" for mode in MODES)


def test_what_completions_were_drawn_from_is_among_it() -> None:
    """Rounded weights and tools; of own weights a result says nothing."""
    a, b = of([1.0, 0.0]), of([1.0, 1.0])
    b.settings = {"weights": "bfloat16", "tools": {"use": ["python"]}}
    wanted = {"weights": ["own", "bfloat16"], "tools": [None, {"use": ["python"]}]}
    assert compare(a, b)["s0"]["unlike"] == wanted
    page = build_evaluation_page([a, b])
    assert "b: weights bfloat16" in page and "weights differs (own in a, bfloat16 in b)" in page


def test_the_clean_parts_are_compared_too() -> None:
    a, b = of([1.0, 0.0, 0.0]), of([1.0, 1.0, 0.0])
    b.rows["s0"][0]["overlap"] = {"contaminated": True}
    found = compare(a, b)
    assert (found["s0"]["problems"], found["s0@clean"]["problems"]) == (3, 2)
    assert found["s0@clean"]["only_b"] == 1 and found["s0@clean"]["unlike"] == {}


def test_problems_that_stand_twice_are_one_problem() -> None:
    rows = of([1.0, 0.0, 1.0]).rows["s0"]
    once, often = compute_figures(rows), compute_figures([row for row in rows for _ in range(20)])
    assert often["problems"] == 60 and often["accuracy"] == once["accuracy"]
    assert often["interval"] == pytest.approx(once["interval"], abs=0.12)
    a, b = of([0.0] * 3), of([1.0] * 3)
    a.rows["s0"] *= 20
    b.rows["s0"] *= 20
    assert compare(a, b)["s0"]["p"] == 2 / 2**3


def test_classes_do_not_depend_on_the_order_of_samples() -> None:
    """5 cm is 5 and 5 is 5 m; so the three vote together, whoever comes first."""
    texts = [r"\boxed{5 cm}", r"\boxed{5 m}", r"\boxed{5}", r"\boxed{6}", r"\boxed{7}"]
    for order in permutations(range(5)):
        scores = [float(i == 4) for i in order]
        found = dict(zip(order, classes([texts[i] for i in order], scores), strict=True))
        assert found[0] == found[1] == found[2] != found[3] > 0 == found[4]


def test_a_column_of_the_users_that_is_called_overlap_is_no_overlap() -> None:
    a, b = of([1.0, 0.0]), of([1.0, 1.0])
    for row in a.rows["s0"]:
        row["overlap"] = "none, as far as we know"
    assert [*compare(a, b)] == ["s0"]
