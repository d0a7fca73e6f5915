"""What is said of rewards that fail or abstain, and when the training ends for it."""

import math
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import GRPOTrainer, open_policy, reward, train
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.pipeline.rehearsal import rehearse
from rl_reasoner.scoring import waiting
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.circuit_breaker import Breaker, RewardsFailed
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Fault
from support.commands import Cli, stock
from support.outcomes import shown
from support.tiny import grpo, recipe
from support.trainers import build, digits, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(path)
    return path


@reward
def away(completion: str) -> float:
    raise OSError("the judge is away")


@reward
def nothing(completion: str) -> float:
    return math.nan


def abstains(completions: list[str], **columns: Any) -> list[float | None]:
    return [None] * len(completions)


# ------------------------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("fn", "reason"),
    [(away, "OSError: the judge is away at test_reward_faults.py:"), (nothing, "not a usable")],
)
def test_the_first_failure_of_a_reward_is_said_and_every_power_of_ten(
    fn: Any, reason: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"max_steps": 14, "isolate_rewards": False, "reward_weights": [1.0, 0.0]}
    trainer = build(GRPOTrainer, folder, [digits, fn], tmp_path, **changes)
    trained(trainer)
    said = [r.getMessage() for r in caplog.records if "has failed on" in r.getMessage()]
    counts = [int(re.findall(r"failed on (\d+) of", text)[0]) for text in said]
    assert counts == [8, 16, 104], "8 rows a step: the first, and when 10 and 100 were reached"
    assert all(f"reward '{fn.__name__}'" in text and reason in text for text in said)


def test_rows_without_any_reward_are_told_without_their_tokens_and_not_each_step(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(build(GRPOTrainer, folder, abstains, tmp_path, max_steps=14, isolate_rewards=False))
    said = [r.getMessage() for r in caplog.records if "returned None" in r.getMessage()]
    assert len(said) == 3
    assert all("completion_ids" not in text and "'prompt'" in text for text in said)


def test_a_hanging_reward_of_trls_form_is_told_while_it_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "FIRST_S", 0.05)

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "waiting for" in r.getMessage()]

    def hangs(completions: list[str], **columns: Any) -> list[float]:
        while len(said()) < 3:
            time.sleep(0.01)
        return [0.0] * len(completions)

    score_batch(hangs, ["a", "b"], {}, Limits(apart=False))
    assert said()[:3] == [
        f"waiting for reward 'hangs' for {waited} s (its calls on one batch may take 600 s)"
        for waited in (0.05, 0.1, 0.2)
    ]


# ---------------------------------------------------------------------- what ends the training


@pytest.mark.parametrize("bad", ["[0.0]", "['x'] * len(completions)", "1 / 0"])
def test_one_bad_step_ends_no_training(bad: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shaky.py").write_text(
        "def shaky(completions, trainer_state, **kwargs):\n"
        f"    if trainer_state.global_step == 1:\n        return {bad}\n"
        "    return [float(len(text)) for text in completions]\n"
    )
    rows: list[dict[str, Any]] = []
    trainer = build(
        GRPOTrainer, folder, load_reward(f"{tmp_path / 'shaky.py'}:shaky"), tmp_path, max_steps=3
    )
    trainer.rollout_sink = rows.extend
    trained(trainer)
    assert trainer.state.global_step == 3
    steps = {row["step"] for row in rows if row["reward"] is None}
    assert steps == {2} and sum(row["reward"] is None for row in rows) == 8


def test_a_reward_that_judges_nothing_ends_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Breaker, "BARREN", 3)
    trainer = build(GRPOTrainer, folder, abstains, tmp_path, max_steps=9, isolate_rewards=False)
    with pytest.raises(RewardsFailed, match="no row got a reward in the last 3 steps"):
        trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize(
    ("value", "told"),
    [("None", "abstained on 32 of 32"), ("math.nan", "32 completions, 32 faults")],
)
def test_a_recipe_whose_rows_get_no_reward_does_not_end_as_if_it_had_learned(
    value: str, told: str, tmp_path: Path
) -> None:
    source = (
        "import math\n\nfrom rl_reasoner import reward\n\n\n"
        f"@reward\ndef near(completion: str):\n    return {value}\n"
    )
    wanted = recipe(tmp_path, grpo(steps=1), source=source, evals={"sets": []})
    policy = open_policy(wanted.policy.source, device="cpu")
    placement = choose_placement(wanted)
    [rehearsed] = rehearse(wanted, placement, prepare(wanted, placement), policy)
    found = [n for n in rehearsed.notices if n.check == "reward"]
    assert [n.status for n in found] == ["failed"] and told in found[0].message
    with pytest.raises(RewardsFailed, match="no row got a reward in any of 1 steps"):
        train(wanted, quiet=True)


# -------------------------------------------------------------------------- the user's own line

SCRIPT = """
import math

from rl_reasoner import reward
from rl_reasoner.scoring.batch import score_batch


def helper(text):
    return math.sqrt(-len(text))


@reward
def deep(completion: str) -> float:
    return helper(completion)


def few(completions, **kwargs):
    return [1.0]


def words(completions, **kwargs):
    return ["x" for _ in completions]


if __name__ == "__main__":
    for fn in (deep, few, words):
        print(score_batch(fn, ["a", "b"], {})[0].message)
"""


def test_a_fault_in_a_script_shows_the_scripts_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    deep, few, words = ended.stdout.splitlines()
    lines = SCRIPT.splitlines()
    assert deep.endswith(f"at mine.py:{lines.index('    return math.sqrt(-len(text))') + 1}")
    assert few.endswith(f"at mine.py:{lines.index('def few(completions, **kwargs):') + 1}")
    assert words.endswith(f"at mine.py:{lines.index('def words(completions, **kwargs):') + 1}")


# --------------------------------------------------------------------- functions of no form


def test_a_plain_function_is_told_what_to_do(folder: Path, tmp_path: Path, cli: Cli) -> None:
    stock(tmp_path)
    with (tmp_path / "rewards.py").open("a") as file:
        file.write("\n\ndef plain(completion, answer):\n    return 1.0\n")
    text = (tmp_path / "tiny.yaml").read_text()
    (tmp_path / "tiny.yaml").write_text(text.replace("rewards.py:fine", "rewards.py:plain", 1))
    says = "'plain' is a plain function of (completion, answer): put @reward on it, or let it take"
    for ended in (cli("train", "tiny.yaml"), cli("check", "rewards.py:plain")):
        assert ended.code == 2 and says in ended.err, ended.err
    with pytest.raises(UserError, match="put @reward on it"):
        build(GRPOTrainer, folder, lambda completion: 1.0, tmp_path)
    for ours in (reward(lambda completion, gold: 1.0), lambda completions, gold, **columns: []):
        with pytest.raises(UserError, match=r"needs the column 'gold'; the data has answer$"):
            build(GRPOTrainer, folder, ours, tmp_path)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (
            "def f(completions, gold, **kwargs): ...",
            "reward 'f' needs the column 'gold'; the data has answer, problem",
        ),
        ("def f(completions): ...", "reward 'f' does not take 'answer': .* give it \\*\\*kwargs"),
    ],
)
def test_what_a_function_of_trls_form_lacks_is_said_once(
    written: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / "f.py").write_text(written)
    columns = {"answer": ["1"], "problem": ["p"], "prompts": ["p"], "completion_ids": [[0]]}
    [found] = score_batch(load_reward(f"{tmp_path / 'f.py'}:f"), ["x"], columns)
    assert isinstance(found, Fault) and re.fullmatch(says, found.message)
    assert found.message.count("problem") <= 1


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Panic(BaseException):
    """What an extension of another language raises."""


def test_a_reward_that_yields_fails_as_one_that_returns() -> None:
    def found(completions: list[str], **columns: object) -> Iterator[float]:
        for text in completions:
            yield float(re.search("<(.)>", text).group(1) == "a")  # type: ignore[union-attr]

    def mapped(completions: list[str], **columns: object) -> Iterator[float]:
        return map(float, completions)

    for limits in (Limits(timeout_s=10), Limits(timeout_s=10, apart=False)):
        for fn, good, said in ((found, "<a>", "AttributeError"), (mapped, "1", "ValueError")):
            [right] = score_batch(fn, [good], {}, limits)
            assert shown([right]) == [1.0]
            [wrong] = score_batch(fn, ["none"], {}, limits)
            assert isinstance(wrong, Fault) and wrong.kind == "exception"
            assert said in wrong.message


@pytest.mark.parametrize("raised", [Odd, Panic, GeneratorExit])
def test_whatever_a_reward_raises_on_a_thread_is_a_fault(raised: type[BaseException]) -> None:
    lock = threading.Lock()  # it is not copied

    @reward
    def fails(completion: str) -> float:
        with lock:
            raise raised

    @reward
    async def awaited(completion: str) -> float:
        with lock:
            raise raised

    class Number:
        def __float__(self) -> float:
            raise raised

    @reward
    def valued(completion: str) -> object:
        with lock:
            return Number()

    for fn in (fails, awaited, valued):
        [fault] = score_batch(fn, ["a"], {}, Limits(timeout_s=10))
        assert isinstance(fault, Fault) and raised.__name__ in fault.message
