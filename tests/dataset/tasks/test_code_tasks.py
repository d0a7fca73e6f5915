"""The task `functions` and rows of code sets: programs and tests that mean what they say."""

import ast
import csv
import json
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner import sandbox
from rl_reasoner.dataset.code_rows import as_dataset, code_row, continue_program, continuing
from rl_reasoner.dataset.rows import lint, load_rows
from rl_reasoner.dataset.sets import set_data
from rl_reasoner.dataset.tasks.base import Problem
from rl_reasoner.dataset.tasks.generate import SPLITS, careless, generate_problems
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.data import FileData, TaskData
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Fault
from support.places import DATA as SHARED

WORDS: list[tuple[str, Callable[[int, int, int], tuple[int, int]]]] = [
    (r"add (\w)", lambda x, y, n: (x + n, y)),
    (r"subtract (\w)", lambda x, y, n: (x - n, y)),
    (r"times (\w)", lambda x, y, n: (x * n, y)),
    (r"at most (\w)", lambda x, y, n: (x if x < n else n, y)),
    (r"at least (\w)", lambda x, y, n: (x if x > n else n, y)),
    (r"remainder by (\w)", lambda x, y, n: (x - n * (x // n), y)),
    (r"square", lambda x, y, n: (x**2, y)),
    (r"absolute", lambda x, y, n: (x if x > 0 else -x, y)),
    (r"negate", lambda x, y, n: (0 - x, y)),
    (r"swap", lambda x, y, n: (y, x)),
]
PROBLEMS = [p for split in SPLITS for p in generate_problems("functions", split=split, count=60)]
HUMANEVAL = {
    "problem": 'import math\n\n\ndef area(r: float) -> float:\n    """The area."""\n',
    "entry_point": "area",
    "tests": ["assert area(0) == 0.0"],
}
code_tests = load_reward("code_tests")


def meant(problem: Problem, arguments: list[int]) -> int:
    """What the specification's words come to."""
    x, y = (*arguments, 0)[:2]
    for words in problem.problem.partition(": ")[2].partition(". ")[0].split(", "):
        [(found, apply)] = [(m, a) for text, a in WORDS if (m := re.fullmatch(text, words))]
        n = (*found.groups(), "0")[0]
        x, y = apply(x, y, y if n == "y" else int(n))
    return x


# -------------------------------------------------------------------------------- the task


def test_tests_and_examples_are_what_the_words_say_and_apart() -> None:
    for problem in PROBLEMS:
        tests = problem.columns["tests"]
        seen = re.findall(r"f\(([-\d,]+)\)=(-?\d+)", problem.problem)
        cases = [([*map(int, inputs.split(","))], int(out)) for inputs, out in seen]
        assert len(cases) == 2 and len(tests) == 3
        cases += [(test["args"], test["expected"]) for test in tests]
        assert len({tuple(arguments) for arguments, _ in cases}) == 5, problem
        for arguments, value in cases:
            assert meant(problem, arguments) == value, problem


def test_reference_programs_pass_in_the_sandbox() -> None:
    some = PROBLEMS[::8]
    results = sandbox.run_many([p.answer for p in some], [p.columns["tests"] for p in some])
    assert [result.verdicts for result in results] == [["passed"] * 3] * len(some)


def test_a_program_without_one_of_its_operations_fails() -> None:
    shorter, tests = [], []
    for problem in PROBLEMS[::20]:
        head, _, body = problem.answer.partition(":")
        steps = body.split(";")[:-1]
        for place in range(len(steps)):
            rest = [*steps[:place], *steps[place + 1 :], "return x"]
            shorter.append(f"{head}:{';'.join(rest)}")
            tests.append(problem.columns["tests"])
    results = sandbox.run_many(shorter, tests, stop_early=True)
    assert not [p for p, result in zip(shorter, results, strict=True) if result.passed]


@pytest.mark.slow
def test_functions_that_do_the_same_share_a_split() -> None:
    split_of: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        for problem in generate_problems("functions", split=split, count=300):
            assert split_of.setdefault(problem.key, split) == split
    inputs = [[x] for x in range(-9, 10)]
    by_values: dict[tuple[int, ...], set[str]] = {}
    for problem in generate_problems("functions", split="train", count=1500, distinct=False):
        if problem.problem.startswith("f(x):"):
            values = tuple(meant(problem, given) for given in inputs)
            by_values.setdefault(values, set()).add(problem.key)
    assert all(len(keys) == 1 for keys in by_values.values())


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(PROBLEMS), st.integers(0, 10**6), st.floats(0, 1))
def test_a_careless_program_has_one_step_changed(problem: Problem, seed: int, share: float) -> None:
    program = careless(problem, share, random.Random(seed)).get("completion", problem.answer)
    ast.parse(program)
    steps, right = program.split(";"), problem.answer.split(";")
    steps[0], right[0] = (each[0].partition(":")[2] for each in (steps, right))
    assert len(steps) == len(right) and program.split(":")[0] == problem.answer.split(":")[0]
    assert sum(a != b for a, b in zip(steps, right, strict=True)) <= 1


def test_noise_is_the_share_of_programs_and_leaves_answer_and_tests_alone() -> None:
    clean = load_rows(TaskData(task="functions", count=400))
    noisy = load_rows(TaskData(task="functions", count=400, noise=0.5))
    wrong = sum(row["completion"] != row["answer"] for row in noisy)
    assert 0.38 < wrong / 400 < 0.55  # a random operation is now and then the right one
    assert all(row["completion"] == row["answer"] for row in clean)
    for name in ("problem", "answer", "tests"):
        assert [row[name] for row in noisy] == [row[name] for row in clean]


def test_there_is_no_chain_to_leave_out() -> None:
    with pytest.raises(UserError, match="'functions' has no chain of thought"):
        load_rows(TaskData(task="functions", count=3, direct=0.5))


# ------------------------------------------------------------------------ scoring in batches


def test_a_batch_is_scored_as_its_rows_are() -> None:
    rows = PROBLEMS[:6]
    texts = [p.answer for p in rows] + ["def f(*a): return 0", "not python", rows[0].answer, ""]
    tests = [p.columns["tests"] for p in rows] + [rows[0].columns["tests"]] * 4
    whole = code_tests.with_options(extract="whole")  # type: ignore[attr-defined]
    scores = score_batch(whole, texts, {"tests": tests})
    assert scores == [whole(text, tests=own) for text, own in zip(texts, tests, strict=True)]
    values = [s.value for s in scores if not isinstance(s, Fault)]
    assert values == [1.0] * 6 + [0.0, 0.0, 1.0, 0.0]
    assert whole(completions=texts, tests=tests) == values


def test_what_is_twice_in_a_batch_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    run_many = sandbox.run_many

    def counted(programs: list[str], *args: Any, **options: Any) -> Any:
        ran.extend(programs)
        return run_many(programs, *args, **options)

    monkeypatch.setattr(sandbox, "run_many", counted)
    whole = code_tests.with_options(extract="whole")  # type: ignore[attr-defined]
    one, other = PROBLEMS[0], PROBLEMS[1]
    tests = [one.columns["tests"]] * 3 + [other.columns["tests"]]
    score_batch(whole, [one.answer, one.answer, "x", one.answer], {"tests": tests})
    assert ran == [one.answer, "x", one.answer]


def test_a_batch_scorer_that_raises_leaves_the_rows_to_be_scored_one_by_one() -> None:
    def half(completion: str, factor: float = 0.5) -> float:
        return len(completion) * factor

    made = Reward(half)
    made.batch(lambda texts, rows, factor: [len(texts[0]) / (len(texts) - 2)] * len(texts))
    assert score_batch(made, ["ab", "c"], {}) == [made("ab"), made("c")]
    assert made(completions=["ab", "c", "d"]) == [2.0, 2.0, 2.0]
    assert made.with_options(factor=1.0)(completions=["ab", "c", "d"]) == [2.0, 2.0, 2.0]


# --------------------------------------------------------------------------- rows of code sets


def test_code_rows_need_no_answer_and_prompt_is_their_problem() -> None:
    good, problems = lint([{"prompt": "Add.", "tests": ["assert add(1, 2) == 3"]}], "x")
    assert problems == []
    assert good[0]["problem"].startswith("Add.\n") and "prompt" not in good[0]
    _, problems = lint([{"prompt": "Add.", "tests": []}, {"tests": ["assert f()"]}], "x")
    assert [p.split(": ")[1].split(".")[0] for p in problems] == [
        "no column 'answer'",  # the prompt is its problem, and no tests judge it
        "no column 'problem'",
    ]
    kept = {"problem": "1+1=", "prompt": "p", "answer": "2"}
    assert lint([kept], "x") == ([kept], [])


@pytest.mark.parametrize(
    ("problem", "tests", "shown"),
    [
        ("Write a function to add.", ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], True),
        ("Write a function to sort.", ["assert sorted(order([2, 1])) == [1, 2]"], True),
        ("Write `add(a, b)`.", ["assert add(1, 2) == 3"], False),
        ("Write a function.", [{"call": "f", "args": [], "expected": 1}], False),
        ("Print it.", [{"stdin": "1", "stdout": "1"}], False),
    ],
)
def test_a_function_that_has_no_name_gets_its_first_test(
    problem: str, tests: list[Any], shown: bool
) -> None:
    made = code_row({"problem": problem, "tests": tests})
    test = f"\nThe solution must satisfy this test:\n{tests[0]}"
    assert made["problem"] == problem + (test if shown else "")
    assert code_row(made) == made


def test_humaneval_check_is_called() -> None:
    check = "def check(candidate):\n    assert candidate(0) == 0\n"
    made = code_row({"prompt": "p", "entry_point": "area", "tests": check})
    assert made["tests"] == [f"{check}\n\ncheck(area)"]
    assert code_row(made)["tests"] == made["tests"]
    listed = code_row(
        {"prompt": "p", "entry_point": "area", "tests": [check, "assert area(0) == 0"]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code_row({"problem": "p", "tests": ["assert area(1if 1 else 2) == '\\d'"]})  # to be read
        continue_program(HUMANEVAL, "    return 1if r else 2\n```\n")
    assert listed["tests"] == [f"{check}\n\ncheck(area)", "assert area(0) == 0"]


@pytest.mark.parametrize(
    ("cell", "tests"),
    [
        (json.dumps(["assert f(1) == 2"]), ["assert f(1) == 2"]),
        (json.dumps([{"stdin": "1", "stdout": "2"}]), [{"stdin": "1", "stdout": "2"}]),
        (json.dumps({"stdin": "1", "stdout": "2"}), [{"stdin": "1", "stdout": "2"}]),
        (json.dumps("assert f(1) == 2"), ["assert f(1) == 2"]),
        (['{"stdin": "1", "stdout": "2"}'], [{"stdin": "1", "stdout": "2"}]),
        ("assert f([1]) == 1", ["assert f([1]) == 1"]),
        ("[f(n) for n in range(3)]", ["[f(n) for n in range(3)]"]),
    ],
)
def test_tests_that_are_json_are_read_and_other_text_is_one_test(
    tmp_path: Path, cell: Any, tests: list[Any]
) -> None:
    made = code_row({"problem": "Write `f`.", "tests": cell})
    assert made["tests"] == tests and code_row(made) == made
    if isinstance(cell, str):
        with (tmp_path / "a.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["problem", "tests"], ["Write `f`.", cell]])
        assert load_rows(FileData(path=str(tmp_path / "a.csv")))[0]["tests"] == tests


def test_tests_beside_an_answer_are_checked_but_for_those_of_another_form() -> None:
    row = {"problem": "Write `f`.", "answer": "4"}
    for tests in ("print(f(1))", ["f(1) == 2"], [{"stdin": "1"}], "5", '["f(1) =="]'):
        assert len(lint([{**row, "tests": tests}], "x")[1]) == 1, tests
    for other in ({"q": 1}, [{"input": "1", "output": "2"}], '[{"q": 1}]', [7]):
        [kept], problems = lint([{**row, "tests": other}], "x")
        assert (kept["tests"], problems) == (other, [])


def test_json_that_is_no_test_is_told() -> None:
    _, [said] = lint([{"problem": "q", "tests": "5"}], "x")
    assert said == "x, row 1: tests are '5': expected code that asserts, or a list of tests"


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ({"input": "1", "output": "2"}, "has the unknown key 'input'. Did you mean 'stdin'?"),
        (
            {"inputs": ["1"], "outputs": ["2"]},
            "has the unknown key 'inputs'. Did you mean 'stdin'?",
        ),
        ({"stdin": ["1"], "stdout": "2"}, "stdin must be a str, not list"),
        ({"call": "f(5)", "expected": 1}, "call must be"),
        ("assert f( == 1", "is not Python"),
        ("f(1) == 1", "compares in line 1 and drops the result"),
    ],
)
def test_a_row_whose_test_cannot_run_is_told(test: Any, told: str) -> None:
    for tests in ([test], ["assert f(2) == 3", test]):
        _, [said] = lint([{"problem": "Write `f`.", "tests": tests}], "x")
        assert said.startswith(f"x, row 1: test {len(tests) - 1}") and told in said


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("    return math.pi * r * r\n", 1.0),
        ("    return math.pi * r * r\n\n\nprint(area(", 1.0),  # it goes on until it is cut off
        ("```python\ndef area(r):\n    return math.pi * r * r\n```", 1.0),
        ("Here:\n```python\n    return math.pi * r * r\n```\nDone.", 1.0),
        ("<think>```python\nno\n```</think>```\ndef area(r): return 0.0\n```", 1.0),
        ("<think>hm</think>    return 0.0", 1.0),
        ("```bash\npip install x\n```\n```python\n    return math.pi * r * r\n```", 1.0),
        ("```text\n3\n```\n```\n    return math.pi * r * r\n```", 1.0),
        ("```python3.11\ndef area(r):\n    return math.pi * r * r\n```", 1.0),
        ("```python\r\n    return math.pi * r * r\r\n```\r\n", 1.0),
        ("~~~python\n    return math.pi * r * r\n~~~", 1.0),
        ("1. It is\n   ```python\n   def area(r):\n       return math.pi * r * r\n   ```", 1.0),
        ("```python\n    return math.pi * r * r\n```\nOutput:\n```\n3.14\n```", 1.0),
        ('    """For\n    ```\n    area(0)\n    ```\n    """\n    return math.pi * r * r\n', 1.0),
        ("```\n    return math.pi * r * r\n```\nFor example: \n```python\narea(", 1.0),
        ("    return math.pi * r * r\n```\nDone.", 1.0),
        ("    return math.pi * r * r```", 1.0),
        ("    return math.pi * r * r\n```\nSo:\n```python\narea(1)\n```", 1.0),
        ("def area(r):\n    return math.pi * r * r\n", 1.0),
        ("from math import pi\n\ndef area(r):\n    return pi * r * r\n```\nDone.", 1.0),
        ("def area(r):\n    return math.pi * r * r\n\nThis is the area. It's right (so", 1.0),
        ("def area(r):\n    return math.pi * r * r\n\nThe area.\n```\nDone.", 1.0),
        (
            "    return 1.0\n\nWrong. Correct:\n```\ndef area(r):\n    return 0.0 * r\n```",
            1.0,
        ),
        ("    return math.pi * r * r\n```\nOutput:\n```\n3.14\n```", 1.0),
        (" Here it is:\n```\ndef area(r):\n    return 0.0\n```", 1.0),
        ("def area(r):\n    return 1.0", 0.0),
        ("    return 1.0", 0.0),
        ("```python\ndef area(r):\n    return 1.0\n```", 0.0),
        ("", 0.0),
    ],
)
def test_completions_of_a_program_go_on_from_it_or_write_it_anew(
    completion: str, value: float
) -> None:
    assert (
        code_tests(continue_program(HUMANEVAL, completion), tests=HUMANEVAL["tests"]).value == value
    )


def test_other_completions_come_back_as_they_are() -> None:
    for row in ({"problem": "Write `area`."}, {**HUMANEVAL, "entry_point": "other"}):
        assert continue_program(row, "    return 1") == "    return 1"


def test_a_reward_of_tests_reads_a_continuation_with_its_beginning() -> None:
    """As in evaluation: in batches, row by row, as a chat."""
    whole = continuing(code_tests, [HUMANEVAL])
    texts = ["    return math.pi * r * r\n", "    return 1.0", "```python\narea = abs\n```"]
    columns = {name: [HUMANEVAL[name]] * 3 for name in HUMANEVAL}
    found = score_batch(whole, texts, columns)
    assert [s.value for s in found if not isinstance(s, Fault)] == [1.0, 0.0, 1.0]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert score_batch(whole, chats, columns) == found
    assert whole(completions=texts, **columns) == [1.0, 0.0, 1.0]
    shares = continuing(code_tests.with_options(credit="fraction"), [HUMANEVAL])  # type: ignore[attr-defined]
    assert score_batch(shares, texts[:1], columns) == found[:1]


def test_rewards_and_rows_without_a_begun_program_are_left_alone() -> None:
    near = load_reward("math_answer")
    assert continuing(near, [HUMANEVAL]) is near
    assert continuing(code_tests, [{"problem": "Write `area`.", "tests": []}]) is code_tests


def test_a_reward_with_a_batch_that_raises_judges_the_rest_row_by_row() -> None:
    columns = {name: [HUMANEVAL[name]] * 2 for name in HUMANEVAL}
    columns["tests"] = [HUMANEVAL["tests"], [3]]
    found = score_batch(continuing(code_tests, [HUMANEVAL]), ["    return 0.0"] * 2, columns)
    assert not isinstance(found[0], Fault) and found[0].value == 1.0
    assert isinstance(found[1], Fault)


def test_tests_of_every_form_are_in_a_data_set_as_they_were() -> None:
    tests: list[Any] = [
        [{"call": "f", "args": [1], "expected": 2}, {"call": "f", "args": [0.5], "expected": 1.0}],
        [{"call": "f", "args": ["x", [2**70]], "expected": {"a": None}, "tolerance": 0.1}],
        [{"stdin": "1", "stdout": "2"}, "assert f(1) == 2"],
        "assert f(1) == 2",
    ]
    rows = [{"problem": str(n), "tests": own} for n, own in enumerate(tests)]
    made = as_dataset(rows)
    assert repr([*made]) == repr(rows) and made["problem"][:2] == ["0", "1"]
    [plain, begun] = as_dataset([rows[0], {**rows[1], "entry_point": "f"}])
    assert plain["entry_point"] is None and begun["entry_point"] == "f"
    assert [*as_dataset([{"problem": "1"}])] == [{"problem": "1"}]
    long = [{"problem": "1", "id": 10**30}, {"problem": "2", "id": 2}]
    assert [*as_dataset(long)] == long


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public sets are not beside the repository")
@pytest.mark.parametrize("name", ["humaneval", "mbpp", "code_contests_stdio", "programming"])
def test_public_code_sets_load_and_their_references_score(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RL_REASONER_DATA", str(SHARED))
    rows = load_rows(set_data(name))
    some = rows[:: max(1, len(rows) // 5)]
    for form in ("```python\n{}\n```", "text\n```python\n{}\n```\nmore"):
        texts = [continue_program(row, form.format(row["reference_solution"])) for row in some]
        scores = score_batch(code_tests, texts, {"tests": [row["tests"] for row in some]})
        assert [s for s in scores if isinstance(s, Fault) or s.value != 1.0] == []
