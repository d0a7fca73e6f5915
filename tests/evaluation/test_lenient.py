"""Strict and lenient accuracy: an answer in the form asked for, and one that a person can read."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner import EvalResult, Policy, compare, evaluate, open_policy, verify
from rl_reasoner.dataset.sets import CARDS
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.judging import Judge
from rl_reasoner.evaluation.lenient import has_form, readings
from rl_reasoner.evaluation.statistics import holm, mcnemar
from rl_reasoner.report.evaluation import build_evaluation_page
from rl_reasoner.types import Rollout
from support.commands import Cli, lines
from support.report_runs import packs
from support.tiny import reward_file

PROSE = "She has {} apples then, which is what they had hoped for at the market."
SUMS = [
    {"problem": "Two and two?", "answer": "4"},
    {"problem": "Three and three?", "answer": "6"},
    {"problem": "Four and four?", "answer": "8"},
    {"problem": "Five and five?", "answer": "10"},
]


@pytest.fixture
def policy() -> Policy:
    return open_policy("scratch:dense-tiny", device="cpu")


def file_of(folder: Path, rows: Sequence[dict[str, Any]], name: str = "sums.jsonl") -> str:
    (folder / name).write_text(lines(*rows), encoding="utf-8")
    return str(folder / name)


def script(monkeypatch: pytest.MonkeyPatch, *groups: str | list[str]) -> None:
    """Let the policy say a group of completions for each problem, or one."""

    def sample(policy: Policy, prompts: list[Any], **asked: Any) -> list[list[Rollout]]:
        texts = [[group] if isinstance(group, str) else group for group in groups]
        return [[Rollout(text, 5, False) for text in group] for group in texts]

    monkeypatch.setattr("rl_reasoner.rollout.sampler.sample", sample)


def marks(completion: str, answer: str, **options: Any) -> tuple[float | None, float | None]:
    """Strict score and lenient mark of a maths completion."""
    row = {"problem": "p", "answer": answer}
    judge = Judge([row], "math_answer", options or None)
    [scored] = judge.score([row], [[Rollout(completion, 1, False)]])
    return scored["scores"][0], scored["lenient"][0]


# ---------------------------------------------------------------------------------- maths


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (PROSE.format(7), "7"),
        ("In the end he pays $1,234.50 for it all, she said.", "1234.5"),
        ("we get -5 as the balance for them", "-5"),
        ("<think>5+3=8, and that is the end of it", "8"),
        (r"<think>it is \boxed{8}. But wait, I did not", "8"),
        (r"They come to \boxed{12", "12"),
        ("<answer>12", "12"),
        (r"Hence they are x = \frac{1}{2} each, and nothing is left over by then", "1/2"),
        (
            r"We see that $a = 3$ and so $2x = 2\sqrt{3}$ is how long it has to be made",
            r"2\sqrt{3}",
        ),
        ("By 2 steps it turns into $x+y$ here, which nobody had thought of", "x+y"),
        ("共有5个苹果，大家都很高兴地回家了", "5"),
        ("小红重30千克，大家都很高兴地回家了", "30"),
        ("一共是5千元，大家都很高兴地回家了", "5000"),
        ("The value 10^8 was what they had", "100000000"),
    ],
)
def test_a_right_answer_without_the_form_is_right_leniently_alone(text: str, answer: str) -> None:
    assert marks(text, answer) == (0.0, 1.0)
    assert marks(text, "77") == (0.0, 0.0)


@pytest.mark.parametrize(
    ("value", "answer", "part"),
    [
        ("3 million", "3000000", "3"),
        ("1.5e3", "1500", "1.5"),
        ("3 1/2", "7/2", "1/2"),
        ("3½", "7/2", "3"),
        ("5 × 10^3", "5000", "1000"),
        (r"5 \cdot 10^{3}", "5000", "1000"),
        ("2**10", "1024", "10"),
        ("5²", "25", "5"),
        ("5 / 3", "5/3", "3"),
        ("2√3", r"2\sqrt{3}", "3"),
        ("25 percent", "0.25", "0"),
        ("2 dozen", "24", "2"),
        ("3 thousands", "3000", "3"),
        ("5 lakh", "500000", "5"),
        ("3 fifths", "3/5", "3"),
    ],
)
def test_a_value_is_read_whole(value: str, answer: str, part: str) -> None:
    text = f"Overall they needed {value} for it, as all of them could see by then"
    assert [marks(text, gold)[1] for gold in (answer, part)] == [1.0, 0.0]


def test_a_value_of_chinese_tens_of_thousands_is_read_whole() -> None:
    text = "共需要3万元，他们都觉得太贵了"
    assert [marks(text, gold)[1] for gold in ("30000", "3")] == [1.0, 0.0]


def test_the_last_number_counts_and_none_before_it() -> None:
    assert marks("3 boxes and 4 bags are 7 things, he said to her then", "3") == (0.0, 0.0)
    assert marks("x2 and H2O and 10^8 are what the 5 of them saw there", "2") == (0.0, 0.0)
    assert marks("They saw 5 of it, in the form of CO2 and of x_2 there", "5") == (0.0, 1.0)
    listed = "There are 9 of them.\n2. So we can write\n3) this down:\n\n**Step 4:** we see"
    assert [marks(listed, gold)[1] for gold in "9234"] == [1.0, 0.0, 0.0, 0.0]
    assert marks("I found this many:\n5. \n", "5")[1] == 1.0
    assert marks(r"so it comes to \boxed{\frac{1}{2", "2") == (0.0, 0.0), "the box holds a half"
    assert marks(r"He has 6 * 2 = 12. The answer is \boxed", "12") == (0.0, 1.0)
    assert marks(r"We know $x = 3$ and then $\frac{1}{2}$ of that is left", "2") == (0.0, 0.0)


@given(
    numbers=st.lists(st.integers(1, 999), min_size=2, max_size=6, unique=True),
    joint=st.sampled_from([", ", " ", "; ", "\n", " or ", " and ", " or maybe ", ","]),
    start=st.sampled_from(["", "It is ", "The answer is ", "<think>", "I guess one of: "]),
)
@settings(max_examples=60, deadline=None)
def test_a_list_of_guesses_counts_by_its_last(numbers: list[int], joint: str, start: str) -> None:
    text = start + joint.join(map(str, numbers))
    for guess in numbers[:-1]:
        read = [verify(said, str(guess)).value for _, said in readings("math_answer", {}, text)]
        strict = verify(text, str(guess)).value
        assert 1.0 not in read or strict == 1.0, (text, guess)


pieces = st.sampled_from(
    ["5", "12", "-3", "1/2", " ", "\n", "\\boxed{", "}", "<think>", "</think>", "<answer>",
     "</answer>", "#### ", "answer is ", "$", "\\frac{1}{2}", "so ", "=", ", ", "**", "apples. "]
)  # fmt: skip


@given(
    texts=st.lists(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=40), min_size=1),
    answer=st.sampled_from(["5", "12", "1/2", "-3", "x"]),
    tags=st.sampled_from([(), ("<ans>", "</ans>"), ("<answer>", "</answer>")]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_right_strictly_is_right_leniently(
    texts: list[str], answer: str, tags: tuple[str, ...]
) -> None:
    row = {"problem": "p", "answer": answer}
    judge = Judge([row], "math_answer", {"tags": list(tags)} if tags else None)
    [scored] = judge.score([row], [[Rollout(text, 1, False) for text in texts]])
    for strict, lenient in zip(scored["scores"], scored["lenient"], strict=True):
        assert lenient == 1.0 if strict == 1.0 else lenient in (0.0, 1.0)


@given(st.text(), st.sampled_from(["math_answer", "code_tests"]))
def test_any_text_gives_a_handful_of_readings(text: str, reward: str) -> None:
    for made in (text, text * 50, f"<think>{text}", f"```\n{text}", f"\\boxed{{{text}"):
        assert len(readings(reward, {}, made)) <= 7


def test_a_form_of_ones_own_is_a_form_too() -> None:
    tags = ["<ans>", "</ans>"]
    assert marks("<ans>5</ans>", "5", tags=tags) == (1.0, 1.0)
    assert marks("The answer is 5.", "5", tags=tags) == (0.0, 1.0)
    assert marks("The answer is 4.", "5", tags=tags) == (0.0, 0.0)


def test_a_gold_that_cannot_be_judged_is_not_judged_leniently() -> None:
    assert marks("5", "") == (None, None)


# ---------------------------------------------------------------------------------- the figures


def test_an_evaluation_has_both_beside_each_other(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, r"\boxed{4}", PROSE.format(6), PROSE.format(9), "No idea.")
    name = file_of(tmp_path, SUMS)
    result = evaluate(policy, [name])
    figures, rows = result.sets[name], result.rows[name]
    assert (figures["accuracy"], figures["lenient"]["accuracy"]) == (0.25, 0.5)
    low, high = figures["lenient"]["interval"]
    assert 0 < low < 0.5 < high < 1 and [low, high] != figures["interval"]
    assert [row["lenient"] for row in rows] == [[1.0], [1.0], [0.0], [0.0]]
    assert [row["lenient_reasons"][0][:11] for row in rows] == ["", "last number", "", ""]
    header, named, line, became = result.table().splitlines()
    assert named == name, "a name that is too long for its column has a line of its own"
    assert header.replace("95% interval", "").split() == ["set", "problems", "strict", "lenient"]
    assert "25.0%" in line and line.index("25.0%") < line.index("50.0%")
    assert became == "  50.0% without an answer"


def test_several_samples_are_a_cluster_in_both(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, loose = r"\boxed{4}", PROSE.format(4)
    script(monkeypatch, [right, loose], [loose, loose], [loose, loose], [loose, loose])
    name = file_of(tmp_path, [{**row, "answer": "4"} for row in SUMS])
    figures = evaluate(policy, [name], 2).sets[name]
    assert (figures["accuracy"], figures["lenient"]["accuracy"]) == (1 / 8, 1.0)
    assert figures["lenient"]["standard_error"] == 0.0 < figures["standard_error"]


def test_sets_whose_form_is_what_is_asked_have_no_lenient_figures(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"name": "no_comma"}]
    kinds = ["math_answer", "instructions", "countdown", reward_file(tmp_path)]
    assert [has_form(kind) for kind in kinds] == [True, False, False, False]
    script(monkeypatch, "4", "4", "4", "4")
    name = file_of(tmp_path, SUMS)
    own = evaluate(policy, [name], reward=reward_file(tmp_path))
    assert "lenient" not in own.sets[name] and "lenient" not in own.rows[name][0]
    assert own.table().splitlines()[2].endswith("–")
    mixed = file_of(tmp_path, [*SUMS[:3], {"problem": "Say it.", "instructions": asked}], "m.jsonl")
    figures = evaluate(policy, [mixed]).sets[mixed]
    assert "lenient" not in figures, "of a part of the rows there is no figure of the set"


def test_the_table_is_80_columns_wide_at_most() -> None:
    estimate = {"accuracy": 1.0, "interval": [0.995, 1.0]}
    entry = {"problems": 1319, "samples": 16, **estimate, "lenient": estimate}
    entry |= {"truncated": 0.2, "no_answer": 0.5, "abstained": 0.001}
    entry |= {"pass_at": {"16": 1.0}, "pass_at_interval": {"16": [0.99, 1.0]}}
    sets = [*CARDS, "modular_test", "word_problems"]
    names = [f"{name}@{mode}" for name in sets for mode in ("sampled", "direct-forced")]
    usual = [name for name in names if len(name) <= 26]
    assert len(usual) > len(names) / 2
    table = EvalResult("p", sets=dict.fromkeys(usual, entry)).table()
    assert max(map(len, table.splitlines())) <= 80


# ---------------------------------------------------------------------------------- code

DOUBLE = {"problem": "Write double(n).", "tests": ["assert double(4) == 8"]}
BEGUN = {
    "prompt": "def double(n):\n    ...\n",
    "entry_point": "double",
    "tests": "def check(candidate):\n    assert candidate(4) == 8",
}
PROGRAM = "def double(n):\n    return 2 * n\n"


def test_programs_without_the_form_are_run_leniently(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        f"```python\n{PROGRAM}```": (1.0, 1.0),
        f"Here:\n```python\n{PROGRAM}": (0.0, 1.0),  # it never closes
        f"Here it is:\n\n{PROGRAM}\nThis doubles its argument.": (0.0, 1.0),
        f"```text\n{PROGRAM}```": (0.0, 1.0),
        "double = lambda n: 2 * n": (0.0, 1.0),
        f"```python\n{PROGRAM}```\n```python\ndouble = None\n```": (0.0, 0.0),
        f"```python\n{PROGRAM}```\nUse:\n```python\nprint(double(int(input())))\n```": (0.0, 1.0),
        f"```python\n{PROGRAM}```\n```py\nimport pytest\ndef test_it():\n    pass\n```": (0.0, 1.0),
        f"```python\nk = 2\n```\n```python\n{PROGRAM.replace('2', 'k')}```": (0.0, 1.0),
        f"```python\n{PROGRAM}```\n```python\n{PROGRAM.replace('2', '3')}```": (0.0, 0.0),
        f"```python\n{PROGRAM.rstrip()}```\nDone.": (1.0, 1.0),  # closed on its last line
        "def double(n):\n    return n\n": (0.0, 0.0),
        "I would multiply it by two.": (0.0, 0.0),
    }
    script(monkeypatch, *said)
    name = file_of(tmp_path, [{**DOUBLE, "problem": f"{n}"} for n in range(len(said))])
    result = evaluate(policy, [name])
    found = [(row["scores"][0], row["lenient"][0]) for row in result.rows[name]]
    assert dict(zip(said, found, strict=True)) == said
    assert result.sets[name]["lenient"]["accuracy"] == 9 / 13


def test_a_program_that_goes_on_from_its_prompt_may_be_written_anew(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, ["    return 2 * n", f"Sure!\n{PROGRAM}", "    return n"])
    name = file_of(tmp_path, [BEGUN])
    result = evaluate(policy, [name], 3, template="plain")
    [row] = result.rows[name]
    assert (row["scores"], row["lenient"]) == ([1.0, 0.0, 0.0], [1.0, 1.0, 0.0])


def test_where_the_whole_completion_is_the_program_a_block_is_read_leniently() -> None:
    [(place, text)] = readings("code_tests", {"extract": "whole"}, f"So:\n```\n{PROGRAM}```\n")
    assert (place, text) == ("last block", PROGRAM.rstrip())
    [(_, text)] = readings("code_tests", {}, "~~~\na = '''\n```\n'''\n")
    assert text.startswith("~~~python\n")


# ---------------------------------------------------------------------------------- comparing


def result_of(*pairs: tuple[bool, bool]) -> EvalResult:
    """A result of one completion a problem: right strictly, right leniently."""
    rows = [
        {"problem": str(i), "answer": "1", "scores": [float(s)], "lenient": [float(m)]}
        for i, (s, m) in enumerate(pairs)
    ]
    return EvalResult("p", rows={"s": rows})


both_of = st.sampled_from([(False, False), (False, True), (True, True)])


@given(st.lists(st.tuples(both_of, both_of), min_size=2, max_size=60))
def test_both_are_compared_problem_by_problem(
    pairs: list[tuple[tuple[bool, bool], tuple[bool, bool]]],
) -> None:
    found = compare(result_of(*(a for a, _ in pairs)), result_of(*(b for _, b in pairs)))["s"]
    lenient, form = found["lenient"], found["form"]
    only_a = sum(a and not b for (_, a), (_, b) in pairs)
    only_b = sum(b and not a for (_, a), (_, b) in pairs)
    assert lenient["p"] == lenient["p_holm"] == mcnemar(only_a, only_b)
    assert lenient["difference"] == pytest.approx((only_b - only_a) / len(pairs))
    assert form["difference"] == pytest.approx(found["difference"] - lenient["difference"])
    low, high = form["interval"]
    assert -1 <= low <= form["difference"] <= high <= 1
    if found["p"] < 0.05:
        assert form["share"] == pytest.approx(1 - lenient["difference"] / found["difference"])
    else:
        assert form["share"] is None and "too little is sure" in form["words"]


def test_a_gain_is_told_apart_in_words() -> None:
    n = 1000
    start = [(i < 100, i < 300) for i in range(n)]
    end = [(i < 282, i < 361) for i in range(n)]
    entry = compare(result_of(*start), result_of(*end))["s"]
    assert entry["form"]["words"] == (
        "of +18.2 points strict, 6.1 are also there leniently: two thirds of the gain is form"
    )
    assert entry["form"]["share"] == pytest.approx(1 - 6.1 / 18.2)
    back = compare(result_of(*end), result_of(*start))["s"]["form"]["words"]
    assert back.startswith("of −18.2 points strict, −6.1 ") and "of the loss is form" in back
    skill = compare(result_of(*start), result_of(*((s, s or m) for s, m in end)))["s"]
    assert skill["form"]["share"] == pytest.approx(1 - 6.1 / 18.2)
    for share, words in ((1.0, "none of the gain"), (0.5, "half of the gain"), (0.0, "all of the")):
        gained = [(i < 300, i < 300 + round(200 * share)) for i in range(n)]
        told = compare(result_of(*((i < 100, i < 300) for i in range(n))), result_of(*gained))
        assert words in told["s"]["form"]["words"]
    worse = [(i < 200, i < 200) for i in range(n)]
    told = compare(result_of(*start), result_of(*worse))["s"]["form"]["words"]
    assert told == "of +10.0 points strict, none are there leniently (−10.0): it is all form"


def test_several_sets_are_several_tests_in_each_family() -> None:
    a, b = result_of(*[(False, False)] * 12), result_of(*[(False, True)] * 6, *[(True, True)] * 6)
    for result in (a, b):
        result.rows["t"] = result.rows["s"][:8]
    found = compare(a, b)
    for family in ([*found.values()], [entry["lenient"] for entry in found.values()]):
        assert [e["p_holm"] for e in family] == holm([e["p"] for e in family])


# ---------------------------------------------------------------------------------- files


@pytest.fixture
def saved(policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EvalResult:
    script(monkeypatch, r"\boxed{4}", PROSE.format(6), PROSE.format(9), "No idea.")
    return evaluate(policy, [file_of(tmp_path, SUMS)])


def aged(result: EvalResult, path: Path) -> Path:
    """The files of a result as they were before there were lenient figures."""
    result.save(path)
    data = json.loads(path.read_text())
    for figures in data["sets"].values():
        del figures["lenient"]
    every = path.with_suffix(".rows.jsonl")
    rows = [json.loads(line) for line in every.read_text().splitlines()]
    for row in [*rows, *(row for shown in data["rows"].values() for row in shown)]:
        del row["lenient"], row["lenient_reasons"]
    path.write_text(json.dumps(data))
    every.write_text(lines(*rows))
    return path


def test_results_of_before_load_and_compare_and_a_replay_adds_what_they_lack(
    saved: EvalResult, tmp_path: Path, cli: Cli
) -> None:
    again = EvalResult.load(saved.save(tmp_path / "new.json"))
    assert again == saved
    old = EvalResult.load(aged(saved, tmp_path / "old.json"))
    assert "lenient" not in next(iter(old.sets.values())) and "–" in old.table()
    [entry] = compare(old, saved).values()
    assert entry["difference"] == 0.0 and not {"lenient", "form"} & entry.keys()
    told = cli("compare", "old.json", "new.json")
    assert told.code == 0 and "eval --replay old.json" in told.err and "replay new" not in told.err
    assert "Comparison" in build_evaluation_page([old, saved])
    made = replay(old)
    assert made.sets == saved.sets and made.rows == saved.rows


def test_lenient_marks_that_are_none_are_refused(saved: EvalResult, tmp_path: Path) -> None:
    every = saved.save(tmp_path / "e.json").with_suffix(".rows.jsonl")
    good = every.read_text()
    for wrong in ("[]", '"1"', '["right"]', "[true]", "[1.0, 1.0]"):
        every.write_text(good.replace('"lenient": [1.0]', f'"lenient": {wrong}'))
        with pytest.raises(UserError, match="lenient marks"):
            EvalResult.load(tmp_path / "e.json")


def test_the_page_shows_both_and_why(saved: EvalResult) -> None:
    page = build_evaluation_page([saved])
    assert ">Lenient<" in page
    assert "last number: '6'" in json.dumps(packs(page)["set-0-0"]["rows"])
    both = build_evaluation_page([saved, saved])
    assert ", lenient<" in both and "no difference is shown" in both


# ---------------------------------------------------------------------------------- commands


def test_eval_and_compare_print_both(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"problem": f"{n} and {n}?", "answer": str(2 * n)} for n in range(1, 21)]
    file_of(tmp_path, rows)
    loose = [PROSE.format(row["answer"] if n < 5 else 99) for n, row in enumerate(rows)]
    formed = [f"\\boxed{{{row['answer'] if n < 15 else 99}}}" for n, row in enumerate(rows)]
    options = ("--sets", "sums.jsonl", "--no-cache")
    for out, texts in (("a.json", loose), ("b.json", formed)):
        script(monkeypatch, *texts)
        ended = cli("eval", "scratch:dense-tiny", *options, "--out", out)
        assert ended.code == 0, ended.err
        assert max(map(len, ended.out.splitlines())) <= 80
    assert "0.0%" in (row := ended.out.splitlines()[1]) or "75.0%" in row
    script(monkeypatch, *loose)
    figures = json.loads(cli("eval", "scratch:dense-tiny", *options, "--json").out)["sets"]
    assert (figures["sums.jsonl"]["accuracy"], figures["sums.jsonl"]["lenient"]["accuracy"]) == (
        0.0,
        0.25,
    )
    told = cli("compare", "a.json", "b.json")
    assert "lenient" in told.out and "+75.0" in told.out and "+50.0" in told.out
    words = "of +75.0 points strict, 50.0 are also there leniently: a third of the gain is form"
    assert words in " ".join(told.out.split())
    entry = json.loads(cli("compare", "a.json", "b.json", "--json").out)["sums.jsonl"]
    assert math.isclose(entry["form"]["share"], 1 / 3) and entry["form"]["words"] == words
