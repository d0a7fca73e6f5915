"""Episodes, many at once and apart: answers, seeds, environments that do what they should not."""

import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.environments import load_environment
from rl_reasoner.environments.environment import EnvironmentLimits, EnvironmentReply, Played
from rl_reasoner.environments.games.grid import (
    STEPS,
    Grid,
    cell_of,
    distances,
    grid_step,
    grid_walk,
    way,
)
from rl_reasoner.environments.games.guess import Guess, play
from rl_reasoner.environments.runner import EnvironmentRunner
from rl_reasoner.errors import UserError
from support.environments import FILE, Echo

LIMITS = EnvironmentLimits(timeout_s=2.0, processes=2, output_chars=200)
TYPED = """
from __future__ import annotations
from typing import Literal

class Typed:
    def __init__(self, far: bool = False, most: int = 3, kind: Literal["a", "b"] = "a", own=1):
        pass
    def reset(self, row):
        return None
    def step(self, completion):
        return None, None, True
"""


@pytest.fixture(scope="module")
def hostile() -> Iterator[EnvironmentRunner]:
    """Two processes of an environment that does what a turn says."""
    with EnvironmentRunner(f"{FILE}:Hostile", limits=LIMITS) as runner:
        yield runner


def played(
    runner: EnvironmentRunner, turns: list[str], start: Any = 1, seed: int = 7
) -> list[EnvironmentReply]:
    """The replies to the turns of an episode of its own."""
    episode = runner.episode({"start": start, "seed": seed})
    return [runner.step(episode, turn).result() for turn in turns]


def test_the_same_row_and_turns_have_the_same_answers() -> None:
    with EnvironmentRunner(f"{FILE}:Echo", {"pay": 0.25}, LIMITS) as runner:
        first, again = (played(runner, ["a", "b", "stop"]) for _ in range(2))
        assert first == again and first[-1].done and first[0].reward == 0.25
        assert played(runner, ["a"], seed=8)[0] != first[0]  # its draws follow from the seed
        text = first[0].messages[0]
        assert text["role"] == "user" and text["content"].startswith("1 a ")


@pytest.mark.parametrize(
    ("turn", "kind", "why"),
    [
        ("raise", "failed", "step failed: ValueError: no"),
        ("quit", "failed", "SystemExit"),
        ("exit", "died", "exit code 3"),
        ("hang", "timeout", "no answer within 2 s"),
        ("many", "failed", "a message is str"),
        ("nothing", "failed", "it returned NoneType"),
        ("nan", "failed", "the reward is nan"),
        ("text reward", "failed", "the reward is str"),
        ("no done", "failed", "done is NoneType"),
        ("role", "failed", "the role of a message is 'assistant'"),
        ("bytes", "failed", "messages are bytes"),
        ("huge", "cut", ""),
        ("fork", "ok", ""),
        ("no reward", "ok", ""),
    ],
)
def test_what_an_environment_does_is_a_reply(
    hostile: EnvironmentRunner, turn: str, kind: str, why: str
) -> None:
    [before, reply] = played(hostile, ["well", turn])
    assert before == EnvironmentReply("ok", ({"role": "user", "content": "fine"},), 1.0)
    assert reply.kind == kind and why in reply.why, reply
    assert all(len(message["content"]) < 400 for message in reply.messages)


class Arrays:
    """An environment that counts with numpy, as many games do."""

    def reset(self, row: Any) -> None:
        self.at = np.zeros(2)

    def step(self, completion: str) -> tuple[str, Any, Any]:
        self.at += 1
        return "on", np.float32(0.5), self.at.sum() >= 4


@pytest.mark.parametrize("seed", ["train-3", [1], float("nan")], ids=repr)
def test_a_seed_that_is_none_fails_its_episode(seed: object) -> None:
    with EnvironmentRunner("guess") as runner:
        episode = runner.episode({"problem": "23-38?", "start": "30", "seed": seed})
        reply = runner.begin(episode).result()
    assert reply.kind == "failed" and "its column 'seed'" in reply.why


def test_numbers_of_numpy_are_taken() -> None:
    game = Played(Arrays, {}, 200)
    game.reset({})
    replies = [game.step("a"), game.step("b")]
    assert [(r.kind, r.reward, r.done) for r in replies] == [("ok", 0.5, False), ("ok", 0.5, True)]
    assert type(replies[1].done) is bool  # it is written as JSON


def test_others_go_on_where_one_ends_the_process(hostile: EnvironmentRunner) -> None:
    """Episodes share processes; those of a process that ended are played again in the next."""
    episodes = [hostile.episode({"start": 1}) for _ in range(6)]
    for turn in ("one", "two"):
        assert all(hostile.step(episode, turn).result().usable for episode in episodes)
    ends = [hostile.step(episodes[0], "exit"), hostile.step(episodes[1], "shout")]
    going = [hostile.step(episode, "three") for episode in episodes[2:]]
    assert ends[0].result().kind == "died"
    assert all(step.result().kind == "ok" for step in going)
    assert played(hostile, ["x"], start="raise")[0].why.startswith("Hostile.reset failed: KeyError")


def test_what_answers_otherwise_when_played_again_fails() -> None:
    limits = EnvironmentLimits(timeout_s=2.0, processes=1)
    with EnvironmentRunner(f"{FILE}:Fickle", limits=limits) as runner:
        one, other = runner.episode({}), runner.episode({})
        assert runner.step(one, "a").result().usable
        assert runner.step(other, "exit").result().kind == "died"
        reply = runner.step(one, "b").result()
        assert reply.kind == "failed" and "must follow from the row" in reply.why


def test_what_is_found_and_what_is_not(tmp_path: Path) -> None:
    assert load_environment("guess") is Guess
    assert load_environment(f"{FILE}:Echo").__name__ == "Echo"
    with pytest.raises(UserError, match="Did you mean 'guess'"):
        load_environment("gues")
    with pytest.raises(UserError, match="no class: write"):
        load_environment(str(FILE))
    with pytest.raises(UserError, match="there is no file"):
        load_environment(f"{tmp_path}/none.py:Echo")
    with pytest.raises(UserError, match="Did you mean 'pay'"):
        EnvironmentRunner(f"{FILE}:Echo", {"pays": 1})
    with pytest.raises(UserError, match="timeout_s of an environment"):
        EnvironmentLimits(timeout_s=0)

    class Local(Echo):
        """Nobody else can import it."""

    with pytest.raises(UserError, match="put it into a file"):
        EnvironmentRunner(Local)
    with EnvironmentRunner(Echo, limits=LIMITS) as runner:
        assert played(runner, ["a"])[0].usable


SCRIPT = """
from rl_reasoner.environments.runner import EnvironmentRunner
print("once")
PAY = 0.5

class Spell:
    def reset(self, row): self.word = row["start"]
    def step(self, completion): return self.word, PAY, True

from rl_reasoner.environments.apart import pack_environment, unpack_environment
there = unpack_environment(pack_environment(Spell))  # as its own process has it
with EnvironmentRunner(there) as runner:
    reply = runner.step(runner.episode({"start": "ant"}), "a").result()
    print(reply.kind, reply.messages[0]["content"], reply.reward, reply.why)
"""


@pytest.mark.parametrize("saved", [True, False])
def test_a_class_of_a_script_or_cell_is_copied(saved: bool, tmp_path: Path) -> None:
    """The script has no main guard: to import it in the worker would run it again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, *(["script.py"] if saved else ["-c", SCRIPT])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout == "once\nok ant 0.5 \n" and "once" not in ended.stderr


def test_a_class_of_a_guarded_script_that_cannot_be_copied_is_imported(tmp_path: Path) -> None:
    """Its guard keeps the script from being run again; without one, it is refused."""
    locked = SCRIPT.replace("PAY = 0.5", "import threading\nPAY, LOCK = 0.5, threading.Lock()")
    locked = locked.replace("self.word, PAY,", "self.word, LOCK and PAY,")
    head, used, rest = locked.partition("from rl_reasoner.environments.apart")
    guarded = f"{head}if __name__ == '__main__':\n{textwrap.indent(used + rest, '    ')}"
    for text, out in ((guarded, "ok ant 0.5 \n"), (locked, "")):
        (tmp_path / "script.py").write_text(text)
        ended = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.stdout.endswith(out) and (ended.returncode == 0) == bool(out), ended.stderr
        assert out or "put it into a file" in ended.stderr


def test_a_process_without_memory_takes_no_other_episode_along() -> None:
    limits = EnvironmentLimits(timeout_s=20, memory_mb=400, processes=1)
    with EnvironmentRunner(f"{FILE}:Hoards", limits=limits) as runner:
        one, other = (runner.episode({"start": 1, "seed": seed}) for seed in range(2))
        assert runner.step(other, "wait").result().kind == "ok"
        hoarded = runner.step(one, "hoard").result()
        assert hoarded.kind == "failed" and "MemoryError" in hoarded.why
        assert runner.step(other, "wait").result().kind == "ok"
        assert played(runner, ["wait"])[0].kind == "ok"


BIG = """
import os

class Big:
    def reset(self, row): self.kept = bytearray(row["mb"] << 20)
    def step(self, completion): return ("on", 0.5, False) if completion != "exit" else os._exit(3)
"""


def test_what_has_no_memory_to_be_played_again_is_told_so(tmp_path: Path) -> None:
    """Each episode fits, and is deterministic: two of them are more than their process may have."""
    (tmp_path / "big.py").write_text(BIG)
    limits = EnvironmentLimits(timeout_s=20, memory_mb=400, processes=1)
    with EnvironmentRunner(f"{tmp_path}/big.py:Big", limits=limits) as runner:
        first, ends, other = (runner.episode({"mb": mb}) for mb in (200, 1, 250))
        assert runner.step(first, "a").result().usable
        assert runner.step(ends, "exit").result().kind == "died"
        assert runner.step(other, "a").result().usable
        reply = runner.step(first, "b").result()
    assert reply.kind == "failed" and "could not be played again" in reply.why
    assert "MemoryError" in reply.why and "must follow from the row" not in reply.why
    assert "memory_mb 400 is for all episodes" in reply.why


@pytest.mark.parametrize("value", [date(2020, 1, 1), b"x", [np.int64(3)]], ids=repr)
def test_a_row_that_cannot_be_sent_is_told_by_its_column(
    hostile: EnvironmentRunner, value: object
) -> None:
    episode = hostile.episode({"start": 1, "when": value})
    reply = hostile.begin(episode).result()
    assert reply.kind == "failed" and "its column 'when' cannot be sent" in reply.why


def test_closing_does_not_wait_for_an_environment_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = EnvironmentRunner(f"{FILE.parent}/slow_loading.py:Silent", limits=LIMITS)
    monkeypatch.setenv("SLOW_FOLDER", str(tmp_path))
    beginning = runner.begin(runner.episode({"start": 1}))
    while not (tmp_path / "loading").exists():
        time.sleep(0.02)
    runner.close()
    assert beginning.result().kind == "died" and not (tmp_path / "loaded").exists()


def test_the_game_is_won_by_halving() -> None:
    for number in range(23, 39):
        game = Guess(guesses=5)
        game.reset({"problem": "23-38?", "start": number})
        played = play(23, 38, number, 5, lambda low, high: (low + high) // 2)
        total = 0.0
        for guess, said in played:
            told, reward, done = game.step(guess)
            total += reward
            assert told == said and (total == 1.0) == done
        assert done
    blind = random.Random(0)
    won = sum(
        play(23, 38, number, 5, lambda *_: blind.randint(23, 38))[-1][1] == ""
        for number in range(23, 39)
        for _ in range(50)
    )
    assert 0.2 < won / 800 < 0.35  # five of sixteen, drawn with repeats: 27.6%
    assert Guess().step("seven") == ("a number", 0.0, False)


WALKS = st.permutations([f"{row}{column}" for row in range(1, 5) for column in range(1, 5)])


@given(WALKS)
def test_the_nearest_way_round_a_wall_is_paid_in_full(cells: list[str]) -> None:
    at, goal, wall = map(cell_of, cells[:3])
    left = distances(goal, 4, wall)
    game, paid, here = Grid(), [], at
    game.reset({"problem": f"{cells[0]}>{cells[1]}?", "start": cells[2], "level": 4})
    for turn in range(left[at]):
        ahead = {name: grid_step(here, step, 4, wall) for name, step in STEPS.items()}
        nearest = min(ahead, key=lambda name: left[ahead[name]])
        here = ahead[nearest]
        told, reward, done = game.step(nearest)
        paid.append(reward)
        assert told == way(here, goal) and reward > 0
        assert done == (turn + 1 == left[at]) == (told == "")
    assert sum(paid) == 1.0


@given(WALKS, st.text("nsew", min_size=8, max_size=8))
def test_a_walk_stays_in_the_grid_and_off_the_wall(cells: list[str], steps: str) -> None:
    start, goal, wall = cells[:3]
    game, given = Grid(), iter(steps)
    row = {"problem": f"{start}>{goal}?", "start": wall, "level": 4}
    game.reset(row)
    told = way(cell_of(start), cell_of(goal))
    for step, said in grid_walk(row, 8, lambda _: next(given)):
        assert game.step(step)[0] == said
        before, told = told, said.removeprefix("wall ")
        assert ("wall" in said) == (before == told)
        far = {side: int(steps) for side, steps in zip(told[::2], told[1::2], strict=True)}
        down = far.get("s", 0) - far.get("n", 0)
        right = far.get("e", 0) - far.get("w", 0)
        here = (int(goal[0]) - down, int(goal[1]) - right)
        assert {*here} <= {1, 2, 3, 4} and here != cell_of(wall)
    assert (told == "") == (here == cell_of(goal))


@pytest.mark.parametrize(
    ("problem", "wall", "said"),
    [
        ("to 34", "22", "names no way"),
        ("11>11", "22", "there is no way"),
        ("11>34", "34", "no way"),
    ],
)
def test_a_row_without_a_way_is_told(problem: str, wall: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Grid().reset({"problem": problem, "start": wall, "level": 4})


def test_a_step_that_is_none_costs_a_turn() -> None:
    game = Grid(moves=2)
    game.reset({"problem": "11>44?", "start": "22", "level": 4})
    assert game.step("north") == ("n, s, e or w", 0.0, False)
    assert game.step("n") == ("wall s3e3", 0.0, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"far": "no"}, "option far of environment .*Typed is 'no': expected true or false"),
        ({"most": "7"}, "option most of environment .*Typed is '7': expected a whole number"),
        ({"kind": "c"}, "option kind of environment .*Typed is 'c': expected 'a' or 'b'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_an_episode(
    tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    with pytest.raises(UserError, match=said):
        EnvironmentRunner(f"{file}:Typed", options)
    EnvironmentRunner(f"{file}:Typed", {"far": True, "most": 7, "kind": "b", "own": "any"}).close()
