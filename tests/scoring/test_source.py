"""Rewards that live in a script or a cell: taken by a recipe, kept in the run, the same again."""

import json
import linecache
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rl_reasoner import Recipe, Score, reward
from rl_reasoner.errors import UserError
from rl_reasoner.rewards.boxed import boxed
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.scoring.runner import close_all
from rl_reasoner.scoring.source import source_of
from rl_reasoner.types import Fault
from support.commands import Cli

SCRIPT = """
import math
import re
from dataclasses import dataclass
from typing import Any

from rl_reasoner import Recipe, Score, reward, train

WORDS = {"good": 1.0, "bad": [-1, (math.inf, None)]}
NUMBER = re.compile(r"\\d")


@dataclass
class Judge:
    scale: int = 2

    def __call__(self, text: str) -> float:
        return self.scale * len(NUMBER.findall(text))


def deep(text: str) -> float:
    if text.startswith("fail"):
        raise OSError("told to")
    return Judge()(text) + WORDS["good"] * math.pi


@reward(on_abstain="ignore")
def short(completion: str, answer: str, limit: int = 20) -> Score:
    return Score(float(len(completion) <= limit) + deep(completion), "by its length")


def digits(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(NUMBER.findall(text))) for text in completions]


def recipe() -> Recipe:
    return Recipe(
        policy="scratch:moe-tiny",
        template="plain",
        rewards={short.with_options(limit=9): 0.2, digits: {"weight": 1.0, "optional": True}},
        stages=[
            {
                "kind": "grpo",
                "data": {"task": "modular", "count": 64},
                "steps": 2,
                "save_every": 1,
                "group": {"size": 4, "prompts": 2},
                "sampling": {"max_tokens": 8},
            }
        ],
        run={"folder": "run", "device": "cpu"},
    )


if __name__ == "__main__":
    train(recipe(), quiet=True)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the script, and the run that it made as a program."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "mine.py").write_text(SCRIPT)
    command = [sys.executable, "mine.py"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0 and "on a thread" not in ended.stderr, ended.stderr
    return folder


def test_a_script_trains_on_its_own_functions_which_the_run_keeps(place: Path) -> None:
    text = (place / "run/recipe.yaml").read_text()
    assert "    source: |\n" in text and "      def deep(text: str) -> float:\n" in text
    rows = [json.loads(line) for line in (place / "run/stages/1-grpo/rollouts.jsonl").open()]
    assert len(rows) == 16
    for row in rows:
        number = len(re.findall(r"\d", row["completion"]))
        assert row["scores"]["digits"]["value"] == number
        wanted = (len(row["completion"]) <= 9) + 2 * number + 3.14159265
        assert row["scores"]["short"]["value"] == pytest.approx(wanted)


def test_the_run_goes_on_and_is_looked_back_at_without_the_script(
    place: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "mine.py").rename(place / "gone.txt")
    try:
        monkeypatch.chdir(place)
        before = (place / "run/stages/1-grpo/rollouts.jsonl").read_text()
        shown = cli("why", "run", "--step", "1")
        assert shown.code == 0 and "by its length" in shown.out
        again = cli("score", "digits", "--rescore", "run", "--json", "--run-its-code")
        assert again.code == 0 and json.loads(again.out)["faults"] == 0
        ended = cli("train", "--resume", "run", "--quiet", "--grpo.steps", "3")
        assert ended.code == 0, ended.err
        after = (place / "run/stages/1-grpo/rollouts.jsonl").read_text()
        assert after.count("\n") == 24 and after.startswith(before[:200])
    finally:
        (place / "gone.txt").rename(place / "mine.py")


def test_the_script_as_a_recipe_is_the_same_recipe(place: Path, cli: Cli) -> None:
    from rl_reasoner.recipe.load import load_recipe

    found = load_recipe(str(place / "mine.py"))
    kept = load_recipe(str(place / "run/recipe.yaml"))
    assert found.rewards == kept.rewards
    assert found.rewards["short"].options == {"limit": 9}
    assert (
        load_recipe(str(place / "mine.py"), ["--rewards.short.weight", "2"]).rewards["short"].source
    )


def test_a_fault_has_the_line_of_the_script_and_the_reward_runs_apart(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from rl_reasoner.recipe.load import load_recipe

    spec = load_recipe(str(place / "mine.py")).rewards["short"]
    fn = load_reward("short", spec.options, spec.source)
    assert isinstance(fn, Reward) and fn.on_abstain == "ignore"
    found = score_batch(fn, ["a1", "fail"], {"answer": ["1", "1"]})
    close_all()
    assert isinstance(found[0], Score) and found[0].value == pytest.approx(1 + 2 + 3.14159265)
    line = SCRIPT.splitlines().index('        raise OSError("told to")') + 1
    assert isinstance(found[1], Fault) and found[1].message.endswith(f"told to at mine.py:{line}")
    assert "on a thread" not in caplog.text


# --------------------------------------------------------------------- what is given, and refused


def made(rewards: Any) -> Recipe:
    stage = {"kind": "grpo", "data": {"task": "modular"}}
    return Recipe(policy="scratch:moe-tiny", rewards=rewards, stages=[stage])


@reward
def calm(completion: str) -> float:
    return 1.0


LOCK = threading.Lock()


@reward
def locked(completion: str) -> float:
    with LOCK:
        return 1.0


def test_functions_and_names_in_a_list_or_with_weights() -> None:
    assert [*made([calm, "length"]).rewards] == ["calm", "length"]
    assert made({boxed: 0.5}).rewards["boxed"].source is None
    assert made([reward(calm.fn)]) == made([calm])

    scale = 3

    def inner(completions: list[str], **columns: Any) -> list[int]:
        return [scale * len(text) for text in completions]

    spec = made({inner: 2}).rewards["inner"]
    assert load_reward("inner", None, spec.source)(completions=["ab"]) == [6]


@pytest.mark.parametrize(
    ("rewards", "says"),
    [
        (
            [locked],
            "'locked' uses LOCK, a lock, which cannot be written into the recipe: put the reward",
        ),
        ([lambda completion: 1.0], "a reward is a function with a name"),
        ([calm, reward(calm.fn)], "two rewards are called calm"),
        ([3], "3 is not the name of a reward"),
        ({"length": {"source": "def length(text): ..."}}, "there is already a reward length"),
        ({"me.py:fn": {"source": "def fn(text): ..."}}, "there is already a reward me.py:fn"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words(rewards: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        made(rewards)


def test_a_judge_is_named() -> None:
    stages = [{"kind": "sample", "data": {"task": "modular"}, "reward": calm}, {"kind": "sft"}]
    data, evals = {"task": "modular"}, {"reward": calm}
    with pytest.raises(ValidationError) as caught:
        Recipe(policy="scratch:moe-tiny", data=data, stages=stages, evals=evals)
    assert str(caught.value).count("put calm into a file and write 'FILE.py:calm'") == 2


def test_a_text_that_is_broken_is_the_users() -> None:
    for text, says in (
        ("def f(:", "SyntaxError"),
        ("import no_such", "no_such"),
        ("x = 1", "no fun"),
    ):
        with pytest.raises(UserError, match=f"reward 'f'.*{says}"):
            load_reward("f", None, text)


def test_texts_of_earlier_runs_are_read_and_new_ones_use_public_names() -> None:
    text = "from rl_reasoner.reward import Score as Score, reward as r\n"
    text += "\n@r\ndef f(completion):\n    return Score(2.0)\n"
    assert load_reward("f", None, text)("x") == Score(2.0)
    assert "from rl_reasoner import reward as reward" in source_of(calm)


CELLS = [
    "from rl_reasoner import reward\n\nTABLE = {'a': 1}\n\n\nclass Judge:\n    scale = 3\n",
    "@reward\ndef short(completion: str) -> float:\n    if completion == 'x':\n"
    "        raise ValueError('no')\n    return Judge.scale * TABLE['a'] + len(completion)\n",
]


def test_cells_of_a_notebook_are_found_as_ipython_keeps_them() -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CELLS):
        file = f"<ipython-input-{number}-0123456789ab>"
        linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
        exec(compile(cell, file, "exec"), space)  # noqa: S102 (as a notebook does)
    spec = made({space["short"]: 0.5}).rewards["short"]
    found = score_batch(load_reward("short", None, spec.source), ["ab", "x"], {})
    assert found[0] == Score(5.0)
    assert isinstance(found[1], Fault) and found[1].message.endswith("ValueError: no at cell:4")


HELPERS = """
import functools
import re

LIMIT = 4


class Judge:
    def digits(self, text: str) -> int:
        return len(re.findall("[0-9]", text)) + LIMIT


def twice(fn):
    @functools.wraps(fn)
    def wrapper(*given, **named):
        return TIMES * fn(*given, **named)

    return wrapper


TIMES = 2
"""
SHADOWS = """
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pow
from typing import TYPE_CHECKING

from helpers_of_script import Judge, twice
from rl_reasoner import reward

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMIT = 400
END = "another thing"


def max(values: Sequence[float]) -> float:
    return 70.0


@dataclass
class Parsed:
    text: str

    @classmethod
    def of(cls, text: str) -> Parsed:
        return cls(text + END)


@lru_cache(maxsize=8)
def cached(text: str) -> int:
    return Judge().digits(text)


@twice
def helper(text: str) -> float:
    return max([1.0]) + pow(2, 3)


@reward
@twice
def judged(completion: str) -> float:
    return helper(completion) + len(Parsed.of(completion).text) + LIMIT + cached("12")
"""


def test_a_text_means_what_its_script_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builtins that the script has its own of, names of a helper's module, late annotations."""
    (tmp_path / "helpers_of_script.py").write_text(HELPERS.replace("LIMIT", "LEAST"))
    (tmp_path / "shadows.py").write_text(SHADOWS)
    monkeypatch.syspath_prepend(tmp_path)
    space = runpy.run_path(str(tmp_path / "shadows.py"), run_name="__main__")
    spec = made([space["judged"]]).rewards["judged"]
    del sys.modules["helpers_of_script"]
    (tmp_path / "helpers_of_script.py").unlink()
    found = load_reward("judged", None, spec.source)
    wanted = 2 * (2 * (70 + 8) + len("abanother thing") + 400 + (2 + 4))
    assert space["judged"].score("ab") == found.score("ab") == Score(wanted)


def test_what_a_helpers_module_has_under_a_name_of_the_script_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers_of_script.py").write_text(HELPERS)
    (tmp_path / "shadows.py").write_text(SHADOWS)
    monkeypatch.syspath_prepend(tmp_path)
    space = runpy.run_path(str(tmp_path / "shadows.py"), run_name="__main__")
    with pytest.raises(ValidationError, match="'judged' has two things called LIMIT"):
        made([space["judged"]])
    del sys.modules["helpers_of_script"]


def test_a_cells_open_is_pythons() -> None:
    interactive = pytest.importorskip("IPython.core.interactiveshell")
    cell = "def long(completions, **columns):\n    return [len(open('x').read())]\n"
    file = "<ipython-input-9-0123456789ab>"
    linecache.cache[file] = (len(cell), None, cell.splitlines(keepends=True), file)
    space: dict[str, Any] = {"__name__": "__main__", "open": interactive._modified_open}
    exec(compile(cell, file, "exec"), space)  # noqa: S102 (as a notebook does)
    source = made([space["long"]]).rewards["long"].source
    assert source is not None and source.count("open") == 1


def test_a_module_beside_the_script_is_told_with_what_mends_it() -> None:
    with pytest.raises(UserError, match=r"'f'.*No module named 'beside'.*PYTHONPATH"):
        load_reward("f", None, "import beside\n\ndef f(completions, **columns):\n    return []\n")


def of_digits(completion: str, most: float = 0.5) -> float:
    return most if completion.isdigit() else 0.0


def at_once(completions: list[str], rows: list[Any], most: float) -> list[float]:
    return [most + 1.0 for _ in completions]


def below_one(most: float) -> None:
    if most > 1.0:
        raise UserError("most is too large")


@reward
def decorated(completion: str, most: float = 0.5) -> float:
    return most


@decorated.batch
def _all_of_them(completions: list[str], rows: list[Any], most: float) -> list[float]:
    return [most + 1.0 for _ in completions]


@decorated.checks
def _no_more(most: float) -> None:
    below_one(most)


def called() -> Reward:
    """A reward whose parts are given by calls."""
    made = reward(of_digits)
    made.batch(at_once)
    made.checks(below_one)
    return made


@pytest.mark.parametrize("fn", [decorated, called()])
def test_a_batch_form_and_a_check_of_options_are_kept(fn: Reward) -> None:
    for given, paid in ((fn, 1.5), (fn.with_options(most=0.75), 1.75)):
        [(name, spec)] = Recipe.model_validate(made_of(given)).rewards.items()
        kept = load_reward(name, spec.options, spec.source)
        assert kept(completions=["7"]) == given(completions=["7"]) == [paid]
        with pytest.raises(UserError, match="most is too large"):
            load_reward(name, {"most": 2.0}, spec.source)


def test_a_reward_of_what_the_policy_wrote_stays_one() -> None:
    fn = reward(policy_text=True)(of_digits)
    [(name, spec)] = Recipe.model_validate(made_of(fn)).rewards.items()
    kept = load_reward(name, spec.options, spec.source)
    chat = [{"role": "assistant", "content": "x"}, {"role": "tool", "content": "7"}]
    columns = {"policy_text": ["x"], "prompts": ["p"]}
    for one in (fn, kept):
        assert one([chat[0]]).value == 0.0 and one(chat[1]["content"]).value == 0.5
        [paid] = score_batch(one, ["7"], columns)
        assert isinstance(paid, Score) and paid.value == 0.0, "the policy wrote x, a tool 7"


def made_of(fn: Reward) -> dict[str, Any]:
    """The fields of a recipe with one reward."""
    stage = {"kind": "grpo", "data": {"task": "modular", "count": 8}}
    return {"policy": "scratch:dense-tiny", "rewards": [fn], "stages": [stage]}
