"""Rewards of a whole group: one call sees a prompt's completions and gives one score each."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, Score, open_policy, reward
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.limits import Limits
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import GROUPS, Column, Reward
from rl_reasoner.scoring.source import reward_from_source, source_of
from rl_reasoner.training.reward_pass import split_groups
from rl_reasoner.types import Fault, Outcome

HERE = Limits(apart=False)
FILE = '''
import os
import time
from rl_reasoner import Score, reward

@reward(group=True)
def places(completions, answer, most=1.0):
    """The place of each by its length, the longest first; faults as the first one says."""
    if completions[0].startswith("raise"):
        raise LookupError("no ranking")
    if completions[0].startswith("short"):
        return [1.0]
    if completions[0].startswith("die"):
        os._exit(3)
    if completions[0].startswith("hang"):
        time.sleep(600)
    order = sorted(completions, key=len)
    return [Score(most * order.index(c) / max(1, len(order) - 1), f"pid {os.getpid()}")
            for c in completions]

@reward(group=True)
def at_once(completions, answer):
    """The same, with a batch form."""
    return places.fn(completions, answer)

@at_once.batch
def all_of_them(groups, rows):
    return [places.fn(texts, row["answer"]) for texts, row in zip(groups, rows)]
'''


@reward(group=True)
def ranked(completions: list[str], answer: str, scale: float = 1.0) -> list[Score]:
    """Counts the others that are shorter."""
    sizes = [len(text) for text in completions]
    return [Score(scale * sum(o < s for o in sizes), f"of {len(sizes)}") for s in sizes]


def values(outcomes: list[Outcome]) -> list[Any]:
    return [o.kind if isinstance(o, Fault) else o.value for o in outcomes]


@pytest.fixture
def places(tmp_path: Path) -> Reward:
    """The reward of `FILE`, which runs in a worker process."""
    file = tmp_path / "ranking.py"
    file.write_text(FILE)
    fn = load_reward(f"{file}:places", {"most": 2.0})
    assert isinstance(fn, Reward)
    return fn


def test_called_with_the_completions_of_one_prompt() -> None:
    assert [s.value for s in ranked(["a", "bbb", "cc"], answer="4")] == [0.0, 2.0, 1.0]
    chats = [[{"role": "assistant", "content": text}] for text in ("a", "bb")]
    assert [s.value for s in ranked(chats, "4", scale=3.0)] == [0.0, 3.0]


def test_called_as_trl_calls_it_groups_are_rows_of_one_prompt() -> None:
    found = ranked.with_options(scale=2.0)(
        prompts=["p", "q", "p", "q", "p"],
        completions=["a", "bb", "ccc", "d", "ee"],
        answer=["1"] * 5,
    )
    assert found == [0.0, 2.0, 4.0, 0.0, 2.0]


def test_where_groups_are_known_one_prompt_may_have_several(places: Reward) -> None:
    known = {"prompts": ["p"] * 4, "answer": ["1"] * 4, GROUPS: [0, 0, 1, 1]}
    outcomes = score_batch(ranked, ["a", "bb", "ccc", "d"], known, HERE)
    assert values(outcomes) == [0.0, 1.0, 1.0, 0.0]
    assert {o.reason for o in outcomes if isinstance(o, Score)} == {"of 2"}
    apart = score_batch(places, ["a", "bb", "die", "x"], known)
    assert values(apart) == [0.0, 2.0, "crash", "crash"]


def test_rows_whose_columns_differ_are_of_different_groups() -> None:
    outcomes = score_batch(ranked, ["a", "bb"], {"prompts": ["p", "p"], "answer": ["1", "2"]}, HERE)
    assert [o.reason for o in outcomes if isinstance(o, Score)] == ["of 1", "of 1"]


def test_in_a_worker_a_groups_fault_is_that_of_its_rows_alone(places: Reward) -> None:
    texts = ["aa", "raise", "b", "x", "short", "y"]
    prompts = ["p", "q", "p", "q", "r", "r"]
    outcomes = score_batch(places, texts, {"prompts": prompts, "answer": ["1"] * 6})
    assert values(outcomes) == [2.0, "exception", 0.0, "exception", "value", "value"]
    assert f"pid {os.getpid()}" not in {o.reason for o in outcomes if isinstance(o, Score)}


def test_a_group_that_kills_its_worker(places: Reward) -> None:
    columns = {"prompts": ["p", "p", "q", "q"], "answer": ["1"] * 4}
    outcomes = score_batch(places, ["a", "bb", "die", "x"], columns)
    assert values(outcomes) == [0.0, 2.0, "crash", "crash"], "the others are tried again, whole"


@pytest.mark.parametrize(("name", "batch_s"), [("places", 60.0), ("at_once", 10.0)])
def test_a_group_that_hangs_is_late_alone(
    name: str, batch_s: float, places: Reward, tmp_path: Path
) -> None:
    """The others have their scores, in whichever order the rows of groups come."""
    fn = load_reward(f"{tmp_path}/ranking.py:{name}", {})
    columns = {"prompts": ["p", "q", "r", "p", "q", "r"], "answer": ["1"] * 6}
    limits = Limits(timeout_s=2.0, batch_timeout_s=batch_s)
    outcomes = score_batch(fn, ["hang", "a", "bb", "x", "bb", "a"], columns, limits)
    assert values(outcomes) == ["timeout", 0.0, 1.0, "timeout", 1.0, 0.0]
    late = outcomes[0]
    assert isinstance(late, Fault) and "within 4 s" in late.message, "of two rows"


def test_groups_of_an_asynchronous_reward_are_judged_together() -> None:
    met = asyncio.Barrier(3)

    @reward(group=True)
    async def waits(completions: list[str]) -> list[float]:
        await met.wait()  # until all three groups are here
        return [float(len(completions))] * len(completions)

    outcomes = score_batch(waits, ["x"] * 5, {"prompts": ["p", "p", "q", "q", "alone"]}, HERE)
    assert values(outcomes) == [2.0] * 4 + [1.0]


def test_the_batch_form_is_given_groups_and_may_say_which_failed() -> None:
    @reward(group=True)
    def by_batch(completions: list[str], answer: str) -> list[float]:
        raise AssertionError("not called")

    @by_batch.batch
    def all_groups(groups: list[list[str]], rows: list[dict[str, Any]]) -> list[list[Any]]:
        fault = Fault("the server is gone")
        return [
            [fault if text == "gone" else float(text == row["answer"]) for text in texts]
            for texts, row in zip(groups, rows, strict=True)
        ]

    columns = {"prompts": ["p", "q", "p"], "answer": ["1", "2", "1"]}
    assert values(score_batch(by_batch, ["1", "2", "gone"], columns, HERE)) == [
        1.0,
        1.0,
        "exception",
    ]
    with pytest.raises(RuntimeError, match="the server is gone"):
        by_batch(completions=["1", "2", "gone"], **columns)


def test_the_first_parameter_says_which_form_it_is() -> None:
    with pytest.raises(TypeError, match="first parameter must be `completions`"):

        @reward(group=True)
        def one(completion: str) -> list[float]:
            return []


def test_what_the_policies_of_a_group_wrote_comes_as_completions() -> None:
    with pytest.raises(TypeError, match=r"@reward\(group=True, policy_text=True\)"):

        @reward(group=True)
        def one(completions: list[str], policy_text: str) -> list[float]:
            return []


def test_a_recipe_keeps_that_it_is_of_groups() -> None:
    def plain(completions: list[str]) -> list[int]:
        return [len(completions)] * len(completions)

    again = reward_from_source("plain", source_of(reward(group=True)(plain)))
    assert isinstance(again, Reward)
    assert again.group
    assert again(completions=["a", "b"], prompts=["p", "p"]) == [2.0, 2.0]


@pytest.mark.parametrize("prompts", [4, 1])
def test_training_gives_it_whole_groups(tmp_path: Path, prompts: int) -> None:
    """Also where all groups of a batch are of one prompt."""
    seen: list[int] = []

    @reward(group=True)
    def counted(completions: list[str]) -> list[float]:
        seen.append(len(completions))
        return [float(place) for place in range(len(completions))]

    policy = open_policy("scratch:dense-tiny", seed=0)
    sizes: dict[str, Any] = {"per_device_train_batch_size": 4, "num_generations": 4}
    config = GRPOConfig(
        output_dir=str(tmp_path),
        **sizes,
        steps_per_generation=2,
        gradient_accumulation_steps=2,
        max_completion_length=6,
        max_steps=1,
        isolate_rewards=False,
        report_to=[],
        logging_steps=1,
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[counted],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": f"{i % prompts} + 1 ="} for i in range(4)]),
    )
    trainer.train()
    assert seen == [4, 4]
    [logged] = [row for row in trainer.state.log_history if "rewards/counted/mean" in row]
    assert logged["rewards/counted/mean"] == 1.5


def test_groups_that_processes_would_share_are_refused() -> None:
    assert "'ranked' judges whole groups: each process has 6 rows" in split_groups(ranked, 6, 4)
    assert split_groups(ranked, 8, 4) == ""


def test_a_group_has_no_column_of_one_completion() -> None:
    def by_tokens(completions: list[str], completion_ids: object = Column()) -> list[float]:
        return [1.0] * len(completions)

    def drawn(completions: list[str], row_seed: object = Column(0)) -> list[float]:
        return [1.0] * len(completions)

    for fn, column in ((by_tokens, "completion_ids"), (drawn, "row_seed")):
        with pytest.raises(TypeError, match=f"{column} differs between the completions"):
            Reward(fn, group=True)


@pytest.mark.parametrize("make", [dict.fromkeys, set, frozenset], ids=["dict", "set", "frozenset"])
def test_what_has_no_order_of_the_completions_is_a_fault(make: Callable[[Any], Any]) -> None:
    """The keys of a dict were the values, and a set's in any order."""

    @reward(group=True)
    def of_group(completions: list[str]) -> Any:
        return make(range(len(completions)))

    def of_batch(completions: list[str], **columns: Any) -> Any:
        return make(range(len(completions)))

    for fn in (of_group, of_batch):
        outcomes = score_batch(fn, ["a", "b"], {"prompts": ["p", "p"]}, HERE)
        assert all(isinstance(one, Fault) for one in outcomes)
        assert f"it returned {make(()).__class__.__name__}, not one value" in str(outcomes[0])
