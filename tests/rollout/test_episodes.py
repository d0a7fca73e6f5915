"""Episodes in the engine: tokens, masks, budgets, and what cut them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from rl_reasoner import open_policy
from rl_reasoner.environments.environment import EnvironmentLimits
from rl_reasoner.errors import UserError
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.episodes.environment_turns import (
    EnvironmentTurn,
    EnvironmentUse,
    EpisodeRecord,
    Episodes,
)
from rl_reasoner.rollout.episodes.opening import open_rows
from rl_reasoner.rollout.episodes.turn_form import TurnForm
from rl_reasoner.rollout.sampler import sample
from rl_reasoner.rollout.sampling_params import SamplingParams
from support.environments import FILE
from support.stock import drawn

CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def policy() -> Policy:
    """A policy of bytes, without a chat template."""
    return open_policy("scratch:dense-tiny", seed=1, device="cpu")


def test_messages_as_tokens(policy: Policy) -> None:
    tokenizer = policy.tokenizer
    said = [{"role": "user", "content": "no<eos>"}]
    plain = TurnForm(tokenizer, "auto").tokens(said)
    assert tokenizer.decode(plain) == "\nno<eos>\n"
    assert tokenizer.eos_token_id not in plain  # a message writes no special token
    asked = TurnForm(tokenizer, "Q: {problem}\nA:").tokens(said[:1])
    assert tokenizer.decode(asked) == "\nQ: no<eos>\nA:\n"
    tokenizer.chat_template = CHAT
    form = TurnForm(tokenizer, "auto")
    ids = form.tokens([*said, {"role": "tool", "content": "7"}])
    text = "\n<|user|>no<eos><eos>\n<|tool|>7<eos>\n<|assistant|>"
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.eos_token_id) == 2
    assert tokenizer.decode(form.tokens([])) == "\n<|assistant|>"
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="shows every message"):
        TurnForm(tokenizer, "auto")


def run(
    policy: Policy, use: EnvironmentUse, turns: Sequence[Sequence[str]], longest: int = 60
) -> list[tuple[list[int], list[int], EpisodeRecord]]:
    """Rows whose policy writes these turns: ids, mask and record of each."""
    tokenizer, end = policy.tokenizer, policy.tokenizer.eos_token_id
    table: list[list[int]] = []
    for row in turns:
        ids: list[int] = []
        for turn in row:
            ids += [*tokenizer(turn, add_special_tokens=False)["input_ids"], end]
            ids += [6] * len(use.form.tokens([{"role": "user", "content": hint(turn)}]))
        table.append([*ids, *[end] * longest][:longest])
    keys = [(0, number) for number in range(len(turns))]
    with (
        drawn(table, size=len(turns)),
        use.episodes([{"problem": "23-38?", "start": 30}] * len(turns), [end]) as taker,
    ):
        prompts = [tokenizer("23-38?")["input_ids"]] * len(turns)
        how = SamplingParams(max_tokens=longest, ends=(end,), temperature=1.0)
        found = generate(policy.model, prompts, keys, how, turns=taker)
        return [(c.ids, c.tool_mask, taker.record(i, c.ids)) for i, c in enumerate(found)]


def hint(turn: str) -> str:
    """What the game says of a guess, the number being 30."""
    return "a number" if not turn.isdigit() else "higher" if int(turn) < 30 else "lower"


def test_episodes_are_played_to_their_end_or_cut(policy: Policy) -> None:
    use = EnvironmentUse(policy.tokenizer, "guess", options={"guesses": 4}, turns=3)
    games = [["38", "23", "30"], ["30"], ["x", "31", "29", "30"], ["2" * 80]]
    won, first, cut, long = run(policy, use, games)
    text = policy.tokenizer.decode(won[0])
    assert text == "38<eos>\nlower\n23<eos>\nhigher\n30<eos>"
    shown = [token for token, own in zip(won[0], won[1], strict=True) if not own]
    assert policy.tokenizer.decode(shown) == "\nlower\n\nhigher\n"
    record = won[2]
    assert (record.ended, record.reward) == ("done", 1.0)
    assert [turn.reward for turn in record.turns] == [12 / 1024, 13 / 1024, 999 / 1024]
    for turn in record.turns[:-1]:
        assert won[1][turn.at : turn.at + turn.given] == [0] * turn.given
    assert sum(record.told()["turn_rewards"]) == 1.0 and not record.told()["reason"]
    assert first[2].ended == "done" and len(first[2].turns) == 1
    assert (cut[2].ended, cut[2].reward, len(cut[2].turns)) == ("turns", 0.5, 3)
    assert cut[2].told()["reason"] == "cut: turns"
    assert (long[2].ended, long[2].turns, long[2].reward) == ("length", (), 0.0)
    for *_, played in (won, first, cut, long):
        assert again(played) == played.told()


def kept(record: EpisodeRecord) -> dict[str, Any]:
    """What a rollout keeps of an episode, through a file."""
    found = {"turns": [turn.told() for turn in record.turns], **record.kept()}
    return dict(json.loads(json.dumps(found)))


def again(record: EpisodeRecord) -> dict[str, Any]:
    """What rewards see of an episode that was kept."""
    found = EpisodeRecord.of(kept(record))
    assert found is not None
    return found.told()


OK = {"kind": "ok", "reward": 1.0, "at": 2, "given": 0}


@pytest.mark.parametrize(
    "rollout",
    [
        {},
        {"turns": [OK], "ended": "end"},
        {"turns": [OK], "ended": "failed", "why": "it did"},
        {"turns": [{**OK, "kind": "failed"}], "ended": "done"},
        {"turns": [{**OK, "kind": "died"}, OK], "ended": "done"},
        {"turns": [{**OK, "kind": "well"}], "ended": "done"},
        {"turns": [{**OK, "reward": "1"}], "ended": "done"},
        {"turns": [{**OK, "at": None}], "ended": "done"},
        {"turns": [7], "ended": "done"},
        {"turns": [], "ended": "length", "why": 7},
    ],
)
def test_what_no_episode_leaves_is_told(rollout: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"turn|episode"):
        EpisodeRecord.of(rollout)


@pytest.mark.parametrize("count", [*range(1, 40), 49, 103])
def test_shares_of_a_whole_reward_add_up_to_it(count: int) -> None:
    paid = [*[1 / count] * count, None]
    record = EpisodeRecord(tuple(EnvironmentTurn("ok", pay, 0, 0, 0.0) for pay in paid), "done")
    assert record.reward == record.told()["reward"] == 1.0


def test_an_environment_that_fails_ends_its_episode_alone(policy: Policy) -> None:
    limits = EnvironmentLimits(timeout_s=2.0, processes=1)
    use = EnvironmentUse(policy.tokenizer, f"{FILE}:Hostile", turns=2, limits=limits)
    with use.episodes([{"start": "raise"}, {"start": 1}, {"start": 2}], [0]) as turns:
        texts = ["raise", "no reward", "exit"]
        for row, text in enumerate(texts):
            turns.submit(row, [*policy.tokenizer(text)["input_ids"], 0])
        found = {}
        while len(found) < 3:
            found |= {answer.row: answer for answer in turns.answers(wait=True)}
        assert [found[row].ended for row in range(3)] == ["failed", "", "failed"]
        records = [turns.record(row, []) for row in range(3)]
    assert "Hostile.reset failed" in records[0].told()["reason"]
    assert [record.reward for record in records] == [None, None, None]
    assert "its process ended (exit code 3)" in records[2].why
    assert [again(record) for record in records] == [record.told() for record in records]
    turns_alone = {**kept(records[0]), "why": None}
    assert EpisodeRecord.of(turns_alone) is None, "an older run has not kept why"
    use.close()


def test_a_played_row_is_learned_from_as_it_was_played(policy: Policy) -> None:
    use = EnvironmentUse(policy.tokenizer, "guess")
    ids, mask = use.written([["38", "lower"], ["30", ""]])
    assert policy.tokenizer.decode(ids) == "38<eos>\nlower\n30<eos>"
    assert mask == [1] * 3 + [0] * len("\nlower\n") + [1] * 3


def test_rows_begin_as_their_environment_says(policy: Policy) -> None:
    settings = EnvironmentSettings(use=f"{FILE}:Echo", processes=1)
    rows = [{"problem": "?", "start": 1}, {"problem": "?", "start": 2}]
    opened = open_rows(settings, rows, seed=3)
    assert opened == open_rows(settings, rows, seed=3)
    assert opened[0]["problem"].startswith("start 1 ") and opened[1]["seed"] != opened[0]["seed"]
    assert open_rows(settings, rows, seed=4)[0]["problem"] != opened[0]["problem"]
    assert open_rows(None, rows, seed=4) == rows
    hostile = EnvironmentSettings(use=f"{FILE}:Hostile", processes=1)
    with pytest.raises(UserError, match=r"reset: Hostile\.reset failed: KeyError"):
        open_rows(hostile, [{"problem": "?", "start": "raise"}], 0)


@pytest.mark.parametrize("seed", ["train-3", "7", [1], float("nan"), 1.5], ids=repr)
@pytest.mark.parametrize("use", ["guess", f"{FILE}:Echo"])
def test_a_seed_of_the_data_that_is_none_is_the_users(use: str, seed: object) -> None:
    rows = [{"problem": "23-38?", "start": "30", "seed": own} for own in (4, seed)]
    with pytest.raises(UserError, match=r"row 2 of the data: its column 'seed' is .* an integer"):
        open_rows(EnvironmentSettings(use=use, processes=1), rows, 0)


@pytest.mark.parametrize("seed", [-1, 2**40, 3.0])
def test_a_seed_of_the_data_stays(seed: float) -> None:
    rows = [{"problem": "23-38?", "start": "30", "seed": seed}]
    assert open_rows(EnvironmentSettings(use="guess"), rows, 0) == rows


def test_sampling_knows_rows_apart(policy: Policy, tmp_path: Any) -> None:
    """Two games with one prompt are two games: in what is drawn, paid and kept."""
    from rl_reasoner.rollout.cache import SampleCache

    rows = [{"problem": "23-38?", "start": number} for number in (25, 37)]
    episodes = Episodes(EnvironmentSettings(use="guess"), "plain", rows)
    cache = SampleCache(tmp_path, "policy")

    def draw() -> Any:
        prompts = [row["problem"] for row in rows]
        options = {"samples": 2, "temperature": 1.0, "max_tokens": 20, "cache": cache}
        return sample(policy, prompts, episodes=episodes, **options)

    first = draw()
    assert len(cache) == 4 and draw() == first
    for group in first:
        for rollout in group:
            assert rollout.episode is not None
            assert rollout.truncated == (rollout.episode["ended"] != "done")


def test_a_turn_ends_as_its_template_writes_it() -> None:
    """Gemma's turns end with a token that is not the tokenizer's end token."""
    tokenizer = open_policy("scratch:dense-tiny", device="cpu").tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>", "<end>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<start>{{ m.role }}\n{{ m.content }}<end>\n{% endfor %}"
        "{% if add_generation_prompt %}<start>model\n{% endif %}"
    )
    form, said = TurnForm(tokenizer, "chat"), [{"role": "user", "content": "no"}]
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert tokenizer.decode(form.tokens(said, end)) == "\n<start>user\nno<end>\n<start>model\n"
    assert tokenizer.decode(form.tokens(said)) == "<end>\n<start>user\nno<end>\n<start>model\n"
    assert tokenizer.decode(form.turn("3")) == "3<end>"
