"""The task generators: right answers and chains, splits that never mix, the same everywhere."""

import json
import random
import re
import string
from collections import Counter
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.dataset.tasks.base import Problem
from rl_reasoner.dataset.tasks.generate import SPLITS, TASKS, careless, generate_problems
from rl_reasoner.errors import UserError
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward
from support.arithmetic import value

# The others have tests of their own: test_code_tasks.py, test_instruction_tasks.py.
GAMES = {"grid", "guess"}
UNCHAINED = {"functions", "instructions", "instructions_tiny", *GAMES}
MATHS = sorted({*TASKS} - UNCHAINED)
tasks = st.sampled_from(sorted(TASKS))
maths = st.sampled_from(MATHS)
splits = st.sampled_from(SPLITS)
seeds = st.integers(0, 10**6)


# ---------------------------------------------------------------------------------- answers


def is_right(problem: Problem) -> bool:
    """Whether the answer is right, by a way that shares nothing with the generators."""
    text, answer = problem.problem, problem.answer
    if problem.task in ("modular", "chain_sum", "nested", "product", "tens"):
        return value(text.removesuffix("=")) == int(answer)
    if problem.task == "linear":
        found = re.fullmatch(r"(\d+)x([+-]\d+)=(-?\d+),x=", text)
        assert found
        a, b, c = (int(number) for number in found.groups())
        return [x for x in range(-60, 61) if a * x + b == c] == [int(answer)]
    if problem.task == "gcd":
        a, b = (int(number) for number in re.findall(r"\d+", text))
        return max(d for d in range(1, b + 1) if a % d == b % d == 0) == int(answer)
    if problem.task == "base":
        left, right = text.split("=?_")
        if right == "10":
            digits, base = left.split("_")
            return int(digits, int(base)) == int(answer)
        digits, base = answer.split("_")
        return base == right and digits[0] != "0" and int(digits, int(base)) == int(left)
    numbers, target = text.split("->")
    used = Counter(re.findall(r"\d+", answer))
    return used <= Counter(numbers.split(",")) and value(answer) == int(target)


def steps_hold(problem: Problem) -> bool:
    """Whether each step of the chain is true arithmetic."""
    for step in problem.chain.split(";"):
        left, result = step.split("=")
        if problem.task == "base" and "r" in result:
            quotient, rest = result.split("r")
            number, base = left.split("/")
            if divmod(int(number), int(base)) != (int(quotient), int(rest)):
                return False
        elif value(f"({left})%10" if problem.task == "modular" else left) != int(result):
            return False
    return True


@settings(deadline=None, max_examples=60)
@given(maths, splits, seeds)
def test_answers_and_steps_are_right(task: str, split: str, seed: int) -> None:
    for problem in generate_problems(task, split=split, count=10, seed=seed):
        assert is_right(problem), problem
        assert steps_hold(problem), problem


@pytest.mark.parametrize("task", MATHS)
def test_the_chain_ends_in_the_answer(task: str) -> None:
    for split in SPLITS:
        for problem in generate_problems(task, split=split, count=50):
            end = problem.chain.rpartition("=")[2]
            if task == "gcd":
                assert end == "0"
                assert problem.chain.rpartition("%")[2].split("=")[0] == problem.answer
            elif task == "countdown":
                assert end == problem.problem.split("->")[1]
            elif "r" in problem.chain:
                read = "".join(reversed(re.findall(r"r(\d)", problem.chain)))
                assert read == problem.answer.split("_")[0]
            else:
                assert end == problem.answer


def test_levels_mean_what_they_say() -> None:
    for split in SPLITS:
        for task in MATHS:
            for problem in generate_problems(task, split=split, count=40):
                steps = problem.chain.count(";") + 1
                numbers = len(re.findall(r"\d+", problem.problem))
                measured = {
                    "modular": numbers - 1,  # without the modulus
                    "chain_sum": numbers,
                    "nested": steps,
                    "linear": problem.level,
                    "gcd": steps,
                    "base": len(re.split("_", problem.key)[0]),
                    "countdown": numbers - 1,
                    "product": len(re.findall(r"\d+", problem.problem)[1]),
                    "tens": len(re.findall(r"\d+", problem.problem)[0]),
                }
                assert measured[task] == problem.level, problem


def test_modular_is_written_as_promised() -> None:
    texts = [problem.problem for problem in generate_problems("modular", split="train", count=2000)]
    # Inner parentheses all open at the left and close only between a sum and the product of it.
    shape = re.compile(r"\(+\d([-+*]\d|(?<=[-+]\d)\)(?=\*))+\)%10=")
    assert all(shape.fullmatch(text) for text in texts)
    shapes = {re.sub(r"\d", "d", text.split("%")[0]) for text in texts}
    assert {"(d+d)", "((d+d)*d-d)", "(d*d*d)", "((d-d+d)*d)"} <= shapes


@pytest.mark.parametrize("task", MATHS)
def test_few_plain_characters(task: str) -> None:
    used: set[str] = set()
    for split in SPLITS:
        for problem in generate_problems(task, split=split, count=200):
            used |= set(problem.problem + problem.chain + problem.answer)
    assert used <= set(string.digits + "+-*/%()=;,_?>" + "x" + "gcd" + "r")
    assert len(used) <= 21


# ---------------------------------------------------------------------------------- splits


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(maths, seeds, seeds)
def test_no_seed_mixes_the_splits(task: str, one: int, other: int) -> None:
    for a, b in combinations(SPLITS, 2):
        first = generate_problems(task, split=a, count=60, seed=one)
        second = generate_problems(task, split=b, count=60, seed=other)
        assert not {p.key for p in first} & {p.key for p in second}
        assert not {p.problem for p in first} & {p.problem for p in second}


def everything(task: str, split: str, levels: range) -> list[Problem]:
    """All problems there are, found by asking for too many."""
    with pytest.raises(UserError, match=r"there are \d+ distinct problems, fewer than") as raised:
        generate_problems(task, split=split, count=10**6, levels=levels)
    found = re.search(r"there are (\d+)", str(raised.value))
    assert found
    return generate_problems(task, split=split, count=int(found[1]), levels=levels)


@pytest.mark.slow
@pytest.mark.slow
def test_the_splits_share_out_all_problems() -> None:
    parts = {s: everything("modular", s, range(2, 4)) for s in ("train", "validation", "test")}
    # a+b and b+a are one problem: 55 sums, 55 products, 100 differences; times 30 for the third.
    total = 210 + 210 * 30
    assert sum(len(part) for part in parts.values()) == total
    assert len({p.key for part in parts.values() for p in part}) == total
    for split, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert len(parts[split]) / total == pytest.approx(share, abs=0.03)


def test_ranges_of_a_game_are_held_out() -> None:
    parts = [generate_problems("guess", split=split, count=60) for split in SPLITS[:3]]
    ranges = [{problem.problem for problem in part} for part in parts]
    assert all(one.isdisjoint(other) for one, other in combinations(ranges, 2))
    for problem in parts[0]:
        low, high = map(int, problem.problem.rstrip("?").split("-"))
        assert high - low == 15 and low <= problem.columns["start"] <= high


def test_a_careless_player_guesses_at_random() -> None:
    """And one that is not halves what is left: five guesses are enough."""
    games = generate_problems("guess", split="train", count=200)
    good, wild = (
        [careless(game, share, random.Random(i))["played"] for i, game in enumerate(games)]
        for share in (0.0, 1.0)
    )
    assert all(played[-1][1] == "" for played in good)
    assert 0.15 < sum(played[-1][1] == "" for played in wild) / 200 < 0.4


def test_ways_of_a_grid_are_held_out_whatever_wall_stands_there() -> None:
    parts = [generate_problems("grid", split=split, count=300) for split in SPLITS[:3]]
    ways = [{problem.problem for problem in part} for part in parts]
    assert all(one.isdisjoint(other) for one, other in combinations(ways, 2))
    walls = {problem.columns["start"] for problem in parts[0] if problem.problem == "33>32?"}
    assert len(walls) > 3 and walls.isdisjoint({"33", "32"})


def test_a_careless_walker_steps_at_random() -> None:
    """And one that is not goes straight, which a wall in the way stops."""
    starts = generate_problems("grid", split="train", count=300)
    straight, wild = (
        sum(
            careless(start, share, random.Random(i))["played"][-1][1] == ""
            for i, start in enumerate(starts)
        )
        / len(starts)
        for share in (0.0, 1.0)
    )
    assert 0.9 < straight < 1 and 0.15 < wild < 0.4


def test_a_small_split_is_given_whole_and_no_further() -> None:
    whole = everything("linear", "validation", range(1, 2))
    assert len({p.key for p in whole}) == len(whole)
    with pytest.raises(UserError, match=f"there are {len(whole)} distinct"):
        generate_problems("linear", split="validation", count=len(whole) + 1, levels=range(1, 2))


def test_problems_that_only_swap_operands_share_a_split() -> None:
    split_of: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        repeated = generate_problems(
            "modular", split=split, count=2000, levels=range(2, 3), distinct=False
        )
        split_of |= {p.problem: split for p in repeated}
    for a in range(10):
        for b in range(10):
            for sign in "+*":
                assert split_of[f"({a}{sign}{b})%10="] == split_of[f"({b}{sign}{a})%10="]


@pytest.mark.parametrize("task", MATHS)
def test_ood_is_harder(task: str) -> None:
    test = generate_problems(task, split="test", count=200)
    ood = generate_problems(task, split="ood", count=200)
    assert min(p.level for p in ood) > max(p.level for p in test)
    assert sum(len(p.chain) for p in ood) > 1.2 * sum(len(p.chain) for p in test)


def test_levels_that_are_asked_for_reach_up_to_the_hardest_and_splits_stay_apart() -> None:
    train, test = (
        generate_problems("modular", split=split, count=300, levels=range(4, 8))
        for split in ("train", "test")
    )
    assert {p.level for p in train} == {p.level for p in test} == {4, 5, 6, 7}
    assert not {p.key for p in train} & {p.key for p in test}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_level_is_in_every_split(task: str) -> None:
    for split in SPLITS:
        levels = TASKS[task].ood if split == "ood" else TASKS[task].levels
        assert {p.level for p in generate_problems(task, split=split, count=60)} == set(levels)


# ------------------------------------------------------------------------------ determinism

FIRST = {  # the first training problem of seed 0; a change here changes every run ever made
    "modular": ("(2+0+5)%10=", "2+0=2;2+5=7", "7"),
    "chain_sum": ("38-29-61-67=", "38-29=9;9-61=-52;-52-67=-119", "-119"),
    "nested": ("(17+2)*9-14=", "17+2=19;19*9=171;171-14=157", "157"),
    "linear": ("2x+34=38,x=", "38-34=4;4/2=2", "2"),
    "gcd": ("gcd(266,140)=", "266%140=126;140%126=14;126%14=0", "14"),
    "base": ("6=?_2", "6/2=3r0;3/2=1r1;1/2=0r1", "110_2"),
    "countdown": ("11,4,3->45", "11+4=15;3*15=45", "3*(11+4)"),
    "product": ("43*22=", "43*22=946", "946"),
    "tens": ("27*1000=", "27*1000=27000", "27000"),
    "guess": ("56-71?", "", ""),
    "grid": ("33>32?", "", ""),
    "functions": ("f(x): negate, add 9. f(-8)=17 f(-5)=14\n", "", "def f(x):x=-x;x+=9;return x"),
    "instructions": (
        "谈谈森林。最后另起一行，写一个以“附言：”开头的附言。",
        "",
        "这里人们。这里人们。这里人们。\n\n附言：再见。",
    ),
    "instructions_tiny": ("upper, with sun, end x\n", "", "SUN HAT NET BOX"),
}


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_first_problem_is_the_same_everywhere(task: str) -> None:
    (problem,) = generate_problems(task, split="train", count=1)
    assert (problem.problem, problem.chain, problem.answer) == FIRST[task]


@settings(deadline=None, max_examples=30)
@given(tasks, splits, seeds)
def test_more_problems_begin_with_the_fewer_and_seeds_differ(
    task: str, split: str, seed: int
) -> None:
    many = generate_problems(task, split=split, count=30, seed=seed)
    assert generate_problems(task, split=split, count=12, seed=seed) == many[:12]
    assert len({p.key for p in many}) == 30
    assert generate_problems(task, split=split, count=30, seed=seed + 1) != many


def test_repetition_where_it_is_wanted() -> None:
    drawn = generate_problems(
        "modular", split="validation", count=300, levels=range(2, 3), distinct=False
    )
    assert len(drawn) == 300 > len({p.key for p in drawn})


def test_rows_are_plain_json() -> None:
    for task in TASKS:
        row = generate_problems(task, split="test", count=1)[0].row()
        assert json.loads(json.dumps(row)) == row
        extra = {
            "countdown": ["numbers", "target"],
            "functions": ["completion", "tests"],
            "grid": ["start"],
            "guess": ["start"],
            "instructions": ["instructions", "language"],
            "instructions_tiny": ["completion", "instructions", "language"],
        }
        chain = [] if task in UNCHAINED else ["chain"]
        answer = [] if task in GAMES else ["answer"]
        assert list(row) == [
            *("id", "problem", *answer, *chain, "task", "level"),
            *extra.get(task, []),
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "modulr", "split": "train"}, "unknown task 'modulr'. Did you mean 'modular'?"),
        ({"task": "gcd", "split": "tests"}, "Did you mean 'test'?"),
        ({"task": "gcd", "split": "train", "levels": range(3, 9)}, "levels 1 to 7"),
        ({"task": "gcd", "split": "ood", "levels": range(1, 2)}, "levels 5 to 7"),
        ({"task": "gcd", "split": "train", "levels": range(0)}, "levels 1 to 7"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        generate_problems(count=3, **arguments)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- noisy chains


@settings(deadline=None)
@given(st.sampled_from(["train", "ood"]), seeds, st.floats(0, 1))
def test_a_noisy_chain_goes_on_from_what_it_wrote(split: str, seed: int, share: float) -> None:
    (problem,) = generate_problems("modular", split=split, count=1, seed=seed)
    changed = careless(problem, share, random.Random(seed))
    chain = changed["chain"]
    steps, clean = chain.split(";"), problem.chain.split(";")
    assert [step[1:4] for step in steps] == [step[1:4] for step in clean]  # operator, operand, =
    assert all(before[-1] == after[0] for before, after in pairwise(steps))
    assert changed == {
        "chain": chain,
        "completion": f"<think>{chain}</think><answer>{steps[-1][-1]}</answer>",
    }


def test_noise_has_the_share_it_is_given() -> None:
    rng = random.Random(7)
    wrong = steps = 0
    for problem in generate_problems("modular", split="train", count=3000):
        assert careless(problem, 0.0, rng)["chain"] == problem.chain
        for step in careless(problem, 0.2, rng)["chain"].split(";"):
            left, result = step.split("=")
            steps += 1
            wrong += value(left) % 10 != int(result)
    assert wrong / steps == pytest.approx(0.2 * 0.9, abs=0.015)  # one random digit of ten is right


def test_noise_is_for_the_tasks_that_have_it() -> None:
    (problem,) = generate_problems("gcd", split="train", count=1)
    with pytest.raises(UserError, match=r"'gcd' has no noise; .* modular, functions"):
        careless(problem, 0.5, random.Random(0))


# ------------------------------------------------------------------------- countdown reward


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("<answer>4*(4+17)</answer>", True),
        ("<think>4+17=21</think><answer> (17 + 4) * 4 </answer> done", True),
        (r"So it is \boxed{(4+17)*4}.", True),
        ("First try 4+4.\n\n(4+17)*4\n", True),
        ("<answer>4</answer> no, <answer>4*(4+17)</answer>", True),
        ("<answer>4*(4+17)</answer> no, <answer>4</answer>", False),
        (r"<answer>4*(4+17)</answer> \boxed{4}", False),
        ("<answer>84</answer>", False),  # not one of the numbers
        ("<answer>4*4*4+17+3</answer>", False),
        ("<answer>17*4+4*4</answer>", False),  # right value, one 4 too many
        ("<answer>17*4+4</answer>", False),
        ("<answer>4*(4+17)=85</answer>", False),
        ("<answer>4(4+17)</answer>", False),
        ("<answer>4*(4+17</answer>", False),
        ("<answer>4/(4-4)</answer>", False),
        ("<answer>4**4</answer>", False),
        ("<answer>-4*-21</answer>", False),
        ("<answer>４*(4+17)</answer>", False),  # a full-width digit
        ("<answer></answer>", False),
        ("", False),
        ("<answer>__import__('os').abort()</answer>", False),
        ("<answer>" + "(" * 90 + "4" + ")" * 90 + "</answer>", False),
        ("<answer>4*(4+17)" + "*(4/4)" * 100 + "</answer>", False),
        ("<answer>" * 100_000, False),
        ("(" * 100_000, False),
    ],
)
def test_countdown_judges(countdown: Reward, completion: str, right: bool) -> None:
    score = countdown(completion, numbers=[4, 17, 4], target=84)
    assert score.value == float(right), score
    assert score.reason


def test_countdown_says_why(countdown: Reward) -> None:
    reasons = [
        countdown(text, numbers=[5, 7, 3], target=32).reason
        for text in ("5*7-3", "5*7+3", "5*7-3-0", "5*5+7", "5*7-x", "(5*7", "7/(5-5)", "5+7)")
    ]
    assert reasons == [
        "5*7-3 is the target 32",
        "5*7+3 is 38, the target is 32",
        "5*7-3-0 uses 0 1x, it is given 0x",
        "5*5+7 uses 5 2x, it is given 1x",
        "'5*7-x' is not an expression: where a number should be there is 'x'",
        "'(5*7' is not an expression: a parenthesis is not closed",
        "'7/(5-5)' is not an expression: it divides by zero",
        "'5+7)' is not an expression: unexpected ')'",
    ]
    deep = "(" * 40 + "5*7-3" + ")" * 40
    assert "more than 30 parentheses are open" in countdown(deep, [5, 7, 3], 32).reason


def test_countdown_reads_columns_that_are_text(countdown: Reward) -> None:
    assert countdown("5*7-3", numbers="[5, 7, 3]", target="32").value == 1.0
    assert countdown("5*7-3", numbers=["5", 7.0, 3], target=32.0).value == 1.0
    for numbers, target, says in (
        ([5, 7], "about 30", "the target is 'about 30': expected a number"),
        ("57", 35, "numbers are 57: expected a list of them"),
        (["5", "x"], 35, "the number in numbers is 'x': expected a number"),
    ):
        with pytest.raises(ValueError, match=says):
            countdown("5*7", numbers=numbers, target=target)


@settings(deadline=None, max_examples=50)
@given(splits, seeds)
def test_countdown_takes_what_the_task_gives(split: str, seed: int) -> None:
    countdown = load_reward("countdown")
    for problem in generate_problems("countdown", split=split, count=5, seed=seed):
        row = problem.row()
        completion = f"<answer>{problem.answer}</answer>"
        given_ = {"numbers": row["numbers"], "target": row["target"]}
        assert countdown(completion, **given_).value == 1.0
        assert countdown(completion, **given_ | {"target": row["target"] + 1}).value == 0.0
        assert countdown(completion, **given_ | {"numbers": row["numbers"][1:]}).value == 0.0


expressions = st.recursive(
    st.integers(0, 99).map(str),
    lambda part: st.tuples(part, st.sampled_from("+-*/"), part).map("({0[0]}{0[1]}{0[2]})".format),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(expressions)
def test_countdown_reckons_as_python_does(text: str) -> None:
    countdown = load_reward("countdown")
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    try:
        target = value(text)
    except ZeroDivisionError:
        assert "divides by zero" in countdown(text, numbers=numbers, target=1).reason
    else:
        assert countdown(text, numbers=numbers, target=target).value == 1.0
        assert countdown(text, numbers=numbers, target=target + 1).value == 0.0


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=string.printable + "²٣４−×{}\\<>", max_size=60))
def test_countdown_never_fails_on_text(text: str) -> None:
    (score,) = score_batch(
        load_reward("countdown"), [text], {"numbers": [[1, 2]], "target": [3], "prompts": [""]}
    )
    assert getattr(score, "value", None) in (0.0, 1.0)


def test_countdown_is_a_trl_reward(countdown: Reward) -> None:
    completions = ["<answer>1+2</answer>", [{"role": "assistant", "content": "2*5\n"}]]
    assert countdown(completions=completions, numbers=[[1, 2], [5, 2]], target=[3, 9]) == [1.0, 0.0]
