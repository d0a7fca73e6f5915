"""The one rule for faults and abstentions with several rewards, wherever rewards are added up."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import GRPOTrainer, Score, open_policy, reward, train
from rl_reasoner.scoring.outcome import NOT_ITS_ROW
from rl_reasoner.scoring.rule import Rule, rule_of, total
from rl_reasoner.types import Fault, Outcome
from support.tiny import grpo, recipe
from support.tiny import rows as lines
from support.trainers import build, digits, trained

NAN = math.nan
FAULT = Fault("it raised")
SAID = Score(2.0)
NONE = Score(None, "cannot say")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:moe-tiny", seed=5, device="cpu").save(path)
    return path


def odd(completion: str) -> bool:
    return len(completion) % 2 == 1


@reward
def judge(completion: str) -> float:
    """Away for every second completion."""
    if odd(completion):
        raise OSError("the judge is away")
    return 1.0


@reward
async def async_judge(completion: str) -> float:
    return judge.fn(completion)  # type: ignore[return-value]


def trl_judge(completions: list[str], **columns: Any) -> list[Any]:
    return ["no number" if odd(c) else 1.0 for c in completions]


@reward
def shaky(completion: str) -> float:
    return NAN if odd(completion) else 1.0


@reward
def shy(completion: str) -> float | None:
    return None if odd(completion) else 1.0


def trl_shy(completions: list[str], **columns: Any) -> list[float | None]:
    return [shy.fn(c) for c in completions]  # type: ignore[misc]


@reward(optional=True)
def optional_judge(completion: str) -> float:
    return judge.fn(completion)  # type: ignore[return-value]


@reward(on_abstain="ignore")
def optional_shy(completion: str) -> float | None:
    return shy.fn(completion)  # type: ignore[return-value]


@reward
def batched(completion: str) -> float:
    return judge.fn(completion)  # type: ignore[return-value]


@batched.batch
def _all(completions: Any, rows: Any) -> list[float]:
    return [batched.fn(c) for c in completions]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("outcomes", "weights", "rules", "wanted"),
    [
        ((SAID, FAULT), (1, 1), (Rule(), Rule()), NAN),
        ((SAID, FAULT), (1, 1), (Rule(), Rule(optional=True)), 2),
        ((SAID, FAULT), (1, 0), (Rule(), Rule()), 2),
        ((SAID, Score(NAN)), (1, 1), (Rule(), Rule(on_abstain="ignore")), NAN),
        ((SAID, Score(math.inf)), (1, 1), (Rule(), Rule(optional=True)), 2),
        ((SAID, NONE), (1, 1), (Rule(), Rule()), NAN),
        ((SAID, NONE), (3, 1), (Rule(), Rule(on_abstain="ignore")), 6),
        ((SAID, NOT_ITS_ROW), (1, 1), (Rule(), Rule()), 2),
        ((SAID, NONE), (0, 1), (Rule(), Rule(on_abstain="ignore")), NAN),
        ((NONE, NONE), (1, 1), (Rule(on_abstain="ignore"),) * 2, NAN),
    ],
)
def test_the_rule(
    outcomes: tuple[Outcome, ...], weights: Any, rules: tuple[Rule, ...], wanted: float
) -> None:
    assert total(outcomes, weights, rules) == pytest.approx(wanted, nan_ok=True)


def test_a_reward_says_its_rule_and_trls_none_means_not_for_this_row() -> None:
    assert rule_of(judge) == Rule() and rule_of(trl_judge) == Rule(on_abstain="ignore")
    assert rule_of(optional_judge) == Rule(optional=True, on_abstain="ignore")
    assert rule_of(optional_shy) == Rule(on_abstain="ignore")
    assert rule_of(trl_judge, on_abstain="leave") == Rule()
    assert rule_of(optional_judge.with_options()).optional
    with pytest.raises(ValueError, match="on_abstain is 'skip'"):
        reward(on_abstain="skip")  # type: ignore[call-overload]


OUT = [judge, async_judge, trl_judge, shaky, shy, batched]
KEPT = [optional_judge, optional_shy, trl_shy]


@pytest.mark.parametrize("fn", [*OUT, *KEPT], ids=lambda fn: fn.__name__)
def test_what_a_reward_fails_on_leaves_its_group_and_moves_no_mean(
    fn: Any,
    folder: Path,
    tmp_path: Path,
) -> None:
    changes = {"max_steps": 2, "isolate_rewards": False}
    trainer = build(GRPOTrainer, folder, [digits, fn], tmp_path, **changes)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    _, [first, second, *_] = trained(trainer)
    without = [row for row in rows if row["scores"][fn.__name__]["outcome"] != "score"]
    assert 0 < len(without) < len(rows)
    for row in without:
        own = row["scores"]["digits"]["value"]
        assert row["reward"] == (None if fn in OUT else own)
        assert row.get("left_out_by") == ([fn.__name__] if fn in OUT else None)
    for start in range(0, len(rows), 4):
        group = rows[start : start + 4]
        known = [row["reward"] for row in group if row["reward"] is not None]
        for row in group:
            wanted = 0.0
            if row["reward"] is not None and len(known) > 1:
                spread = statistics.stdev(known) + 1e-4
                wanted = (row["reward"] - statistics.mean(known)) / spread
            assert row["advantage"] == pytest.approx(wanted, abs=1e-4)
    left = [r for r in rows if r["reward"] is None]
    assert first["rows/left_out"] + second["rows/left_out"] == len(left)
    mean = statistics.mean(row["scores"]["digits"]["value"] for row in rows[:8])
    assert first["rewards/digits/mean"] == pytest.approx(mean, abs=1e-6), "of all rows"


def test_dynamic_sampling_goes_by_the_same_rule(folder: Path, tmp_path: Path) -> None:
    """A group whose only difference is a fault teaches nothing, and is replaced."""

    @reward
    def flat(completion: str) -> float:
        return 1.0

    trainer = build(
        *(GRPOTrainer, folder, [flat, judge], tmp_path),
        max_steps=1,
        dynamic_sampling=2,
        isolate_rewards=False,
    )
    _, [logged, *_] = trained(trainer)
    assert logged["dynamic_sampling/kept"] == 0.0 and logged["dynamic_sampling/refills"] > 0


JUDGE = """
from rl_reasoner import reward


@reward
def judge(completion: str) -> float:
    if len(completion) > 1 and sum(map(ord, completion)) % 2:
        raise OSError("the judge is away")
    return 1.0
"""


@pytest.mark.parametrize("spec", [{"weight": 1.0}, {"weight": 1.0, "optional": True}])
def test_a_recipe_sets_the_rule_and_why_shows_who_took_a_row_out(
    spec: dict[str, Any], tmp_path: Path, cli: Any
) -> None:
    (tmp_path / "judge.py").write_text(JUDGE)
    wanted = recipe(tmp_path, grpo(steps=1), evals={"sets": []})
    rewards = {**wanted.rewards, f"{tmp_path / 'judge.py'}:judge": spec}
    wanted = type(wanted).model_validate({**wanted.model_dump(), "rewards": rewards})
    run = train(wanted, quiet=True)
    rows = lines(run.folder / "stages/1-grpo/rollouts.jsonl")
    faulted = [i for i, row in enumerate(rows) if row["scores"]["judge"]["outcome"] == "fault"]
    assert faulted
    assert all((rows[i]["reward"] is None) != ("optional" in spec) for i in faulted)
    shown = cli("why", run.folder, "--step", "1", "--row", str(faulted[0] + 1)).out
    assert ("out: judge" in " ".join(shown.split())) != ("optional" in spec)
