"""Environments that were written for others: trl, reasoning-gym, verifiers, with their packages."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.environments.environment import EnvironmentReply, Played
from rl_reasoner.environments.reasoning_gym import ReasoningGym
from rl_reasoner.environments.trl import TrlEnvironment
from rl_reasoner.environments.verifiers import VerifiersTaskset
from rl_reasoner.errors import UserError
from rl_reasoner.tools.formats import FORMATS, call_format
from rl_reasoner.tools.tool import Tool, ToolCall

COUNTER = '''
class Counter:
    """As in trl's documentation of environment_factory."""

    def reset(self, **row) -> str | None:
        self.value = row["start"]
        return f" From {self.value}."

    async def increment(self, step: int) -> int:
        """Add to the counter.

        Args:
            step: How much.
        """
        if step > 9:
            raise ValueError("Too large.")
        self.value += step
        return self.value

    def get_reward(self) -> float:
        return float(self.value >= 10)
'''


def play(factory: Any, options: dict[str, Any], row: dict[str, Any], *turns: str) -> list[Any]:
    """The replies to a reset and the turns."""
    played = Played(factory, options, most=4000)
    replies = [played.reset(row), *map(played.step, turns)]
    played.close()
    return replies


def call(step: int) -> str:
    """A turn that is a call."""
    return f'So: <tool_call>{{"name": "increment", "arguments": {{"step": {step}}}}}</tool_call>\n'


def test_a_class_for_trl_plays_here(tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    options = {"factory": f"{tmp_path}/counter.py:Counter"}
    row = {"problem": "Count to ten.", "start": 3, "seed": 0}
    opening, first, wrong, won, end = play(
        TrlEnvironment, options, row, call(5), call(50), call(4), "done"
    )
    system, asked = opening.messages
    assert '"name": "increment"' in system["content"] and "<tool_call>" in system["content"]
    assert asked == {"role": "user", "content": "Count to ten. From 3."}
    assert first == EnvironmentReply("ok", ({"role": "tool", "content": "8"},), 0.0)
    assert wrong.messages[0]["content"] == "increment failed: ValueError: Too large."
    assert (won.reward, won.done) == (1.0, False)
    assert end == EnvironmentReply("ok", (), 0.0, done=True)
    [_, malformed] = play(TrlEnvironment, options, row, "<tool_call>{</tool_call>")
    assert "malformed call" in malformed.messages[0]["content"] and not malformed.done
    with pytest.raises(UserError, match="names no class"):
        TrlEnvironment("Counter")


@pytest.mark.parametrize(
    ("parameters", "seen"), [("seed, **row", 4), ("**row", 4), ("problem, start", None)]
)
def test_a_class_for_trl_sees_the_rows_seed_where_it_takes_one(
    parameters: str, seen: int | None, tmp_path: Path
) -> None:
    (tmp_path / "counter.py").write_text(
        f"class Counter:\n    def reset(self, {parameters}) -> str:\n"
        "        given = {**locals(), **locals().get('row', {})}\n"
        "        return f\" {given.get('seed')}\"\n"
    )
    options = {"factory": f"{tmp_path}/counter.py:Counter", "tell": False}
    row = {"problem": "Count.", "start": 3, "seed": 4}
    [opening] = play(TrlEnvironment, options, row)
    assert opening.messages == ({"role": "user", "content": f"Count. {seen}"},)


@pytest.mark.parametrize("name", FORMATS)
def test_a_class_for_trl_is_called_in_every_format(name: str, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    options = {"factory": f"{tmp_path}/counter.py:Counter", "call_format": name}
    row = {"problem": "Count to ten.", "start": 3, "seed": 0}
    counting = Tool(increment)
    own = call_format(name, [counting]).write(ToolCall("increment", {"step": 5}))
    opening, first = play(TrlEnvironment, options, row, own)
    assert opening.kind == "ok", opening.why
    assert first.messages == ({"role": "tool", "content": "8"},)


def increment(step: int) -> int:
    """Add to the counter."""
    return step


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_a_task_of_reasoning_gym_plays_here() -> None:
    from reasoning_gym.factory import create_dataset

    entry = create_dataset("leg_counting", seed=3, size=6)[5]
    options = {"task": "leg_counting", "seed": 3}
    row = {"problem": "?", "start": 5}
    answer = f"So.<answer>{entry['answer']}</answer>"
    opening, right = play(ReasoningGym, options, row, answer)
    assert opening.messages == ({"role": "user", "content": entry["question"]},)
    assert (right.reward, right.done) == (1.0, True)
    assert play(ReasoningGym, options, row, "no legs")[1].reward < 1.0
    assert play(ReasoningGym, options, row)[0] == opening
    with pytest.raises(UserError, match="Did you mean 'leg_counting'"):
        ReasoningGym("leg_countin")


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_a_level_of_reasoning_gym_is_that_of_its_curriculum() -> None:
    from reasoning_gym.factory import create_curriculum, create_dataset

    asked = {}
    for level in (0, 3):
        curriculum = create_curriculum("leg_counting")
        curriculum.set_global_level(level)
        config = curriculum.generate_configuration({"seed": 3, "size": 6})
        entry = create_dataset("leg_counting", **vars(config))[5]
        row = {"problem": "?", "start": 5, "level": level}
        answer = f"<answer>{entry['answer']}</answer>"
        opening, right = play(ReasoningGym, {"task": "leg_counting", "seed": 3}, row, answer)
        asked[level] = opening.messages[0]["content"]
        assert asked[level] == entry["question"] and right.reward == 1.0
    assert asked[0] != asked[3]
    [failed] = play(
        ReasoningGym, {"task": "leg_counting"}, {"problem": "?", "start": 5, "level": -1}
    )
    assert "levels begin with 0" in failed.why


TASKSET = """
import verifiers.v1 as vf


class Sum(vf.TaskData):
    answer: str


class SumTask(vf.Task[Sum]):
    @vf.reward(weight=0.5)
    async def right(self, task, trace) -> float:
        return float(self.data.answer in trace.last_reply)


class Sums(vf.Taskset[SumTask]):
    def load(self):
        for number in range(4):
            yield SumTask(Sum(prompt=f"{number}+1=", system_prompt="Add.", answer=f"{number + 1}"))


__all__ = ["Sums"]
"""


@pytest.mark.skipif(find_spec("verifiers") is None, reason="verifiers is not installed")
def test_a_taskset_of_verifiers_plays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sums_taskset.py").write_text(TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    options, row = {"taskset": "sums_taskset"}, {"problem": "?", "start": 2}
    opening, right = play(VerifiersTaskset, options, row, "It is 3.")
    assert [message["content"] for message in opening.messages] == ["Add.", "2+1="]
    assert (right.reward, right.done) == (0.5, True)
    assert play(VerifiersTaskset, options, row, "It is 4.")[1].reward == 0.0
    assert "no task 9" in play(VerifiersTaskset, options, {"start": 9})[0].why
    sys.modules.pop("sums_taskset", None)


@pytest.mark.parametrize(
    ("package", "made"),
    [
        ("reasoning_gym", lambda: ReasoningGym("leg_counting")),
        ("verifiers", lambda: VerifiersTaskset("sums_taskset")),
    ],
)
def test_what_is_not_installed_is_said(
    package: str, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match="is not installed: pip install"):
        made()
