"""The tasks that write instructions: followed by their answers, apart, in both languages."""

import random
from collections import Counter
from itertools import combinations

import pytest

from rl_reasoner.dataset.tasks.generate import careless, generate_problems
from rl_reasoner.dataset.tasks.instructions import response
from rl_reasoner.language.instructions import KINDS, parsed, verdicts

TASKS = ("instructions", "instructions_tiny")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "ood"])
def test_every_answer_follows_its_instructions(task: str, split: str) -> None:
    problems = generate_problems(task, split=split, count=200, seed=5)
    for problem in problems:
        wanted = parsed(problem.columns["instructions"])
        assert len(wanted) == problem.level
        assert all(right for right, _ in verdicts(problem.answer, wanted, loose=False))
    languages = Counter(problem.columns["language"] for problem in problems)
    assert min(languages["en"], languages["zh"]) > 40


@pytest.mark.parametrize("task", TASKS)
def test_no_split_holds_anothers_instructions(task: str) -> None:
    keys = [
        {problem.key for problem in generate_problems(task, split=split, count=300)}
        for split in ("train", "validation", "test", "ood")
    ]
    assert all(not one & other for one, other in combinations(keys, 2))


def test_all_kinds_are_asked_for_but_those_that_need_a_given_text() -> None:
    problems = generate_problems("instructions", split="train", count=1200)
    asked = {one["name"] for problem in problems for one in problem.columns["instructions"]}
    rest = set(KINDS) - asked
    assert rest == {
        *("characters", "sections", "highlights", "capital_words", "letter", "repeat_prompt"),
        *("choice", "paragraph_starts"),
    }


def test_careless_responses_forget_one_instruction() -> None:
    problems = generate_problems("instructions_tiny", split="train", count=300)
    rng = random.Random(0)
    kept: Counter[int] = Counter()
    for problem in problems:
        assert careless(problem, 0.0, rng) == {}
        text = careless(problem, 1.0, rng).get("completion", problem.answer)
        found = verdicts(text, parsed(problem.columns["instructions"]), loose=False)
        kept[sum(not right for right, _ in found)] += 1
    assert kept[1] > 200 and set(kept) == {0, 1}


def test_a_response_in_the_other_language() -> None:
    for prompt, asked in (("en", "zh"), ("zh", "en")):
        wanted = [{"name": "language", "language": asked}]
        assert verdicts(response(wanted, prompt), parsed(wanted), loose=False)[0][0]
