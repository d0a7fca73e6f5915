"""Which completions a reward is asked about again, where some episodes are not known."""

from collections.abc import Callable
from typing import Any

import pytest

from rl_reasoner import Recipe, reward
from rl_reasoner.rollout.episodes.kept import episodes_column, known_rows


@reward
def paid(completion: str, episode: dict[str, Any]) -> float:
    return float(episode["reward"])


@reward
def plain(completion: str) -> float:
    return float(len(completion))


@reward(group=True)
def of_groups(completions: list[str], episode: dict[str, Any]) -> list[float]:
    return [float(episode["reward"])] * len(completions)


def in_trls_form(completions: list[str], **columns: Any) -> list[float]:
    return [float(episode["reward"]) for episode in columns["episode"]]


def of_no_columns(completions: list[str], prompts: list[str]) -> list[float]:
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("fn", "known"),
    [
        (paid, [0, 2, 3]),
        (plain, [0, 1, 2, 3]),
        (of_groups, [2, 3]),
        (in_trls_form, [2, 3]),
        (of_no_columns, [0, 1, 2, 3]),
    ],
)
def test_what_is_not_known_is_not_judged(fn: Callable[..., Any], known: list[int]) -> None:
    episode = {"reward": 1.0}
    columns = {"episode": [episode, None, episode, episode]}
    assert known_rows(fn, columns, [0, 0, 1, 1]) == known
    assert known_rows(fn, {}, [0, 0, 1, 1]) == [0, 1, 2, 3]


def test_without_an_environment_there_is_no_episode() -> None:
    """A reward with a default for it has that, as in training."""
    stage = {"kind": "grpo", "data": {"task": "modular", "count": 8}}
    made = {"policy": "scratch:dense-tiny", "rewards": {"length": 1}, "stages": [stage]}
    assert episodes_column(Recipe.model_validate(made), [{"completion": "a"}]) == {}
