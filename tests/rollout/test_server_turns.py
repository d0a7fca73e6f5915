"""Completions of several turns from a vLLM server: those of our engine, whatever goes wrong."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from rl_reasoner import open_policy
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.turns import Answer
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from support.scripted_turns import Script, Threads
from support.vllm_stand_in import StandIn, serving

POLICY = "scratch:dense-tiny"
SCRIPT = Script((2, 3, -1), stops=tuple(range(0, 300, 2)))
GREEDY = SamplingParams(24, ends=(7, 58), config=GenerationConfig(do_sample=False))
PROMPTS = [[11, 12, 13 + row] for row in range(12)]
KEYS = [(row,) for row in range(12)]
BUDGETS = [None, 3, 24, *[5 + row for row in range(9)]]


def asked(
    folder: Path, faults: Mapping[int, str], marks: tuple[str, ...] = ()
) -> tuple[list[SampledCompletion], StandIn]:
    """What a server samples for `PROMPTS`, and the server."""
    with serving(POLICY, faults) as server:
        rollouts = VllmRollouts(server.url, folder / "weights", 60.0)
        with rollouts.own():
            rollouts.load(open_policy(POLICY, device="cpu").model, 0)
            given = (PROMPTS, KEYS, GREEDY, BUDGETS, Threads(SCRIPT), marks)
            return rollouts.generate(*given), server


@pytest.fixture(scope="module")
def engines() -> list[SampledCompletion]:
    """The same by our engine."""
    torch.set_num_threads(1)
    model: Any = open_policy(POLICY, device="cpu").model
    found = generate(model, PROMPTS, KEYS, GREEDY, budgets=BUDGETS, turns=Threads(SCRIPT))
    assert {"done", "length"} <= {completion.ended for completion in found}
    assert any(0 in completion.tool_mask for completion in found)
    return found


@pytest.mark.parametrize("fault", ["", "503", "refused", "restart"])
def test_rows_take_their_turns_as_in_the_engine(
    fault: str, engines: list[SampledCompletion], tmp_path: Path
) -> None:
    """Also where the server fails in the middle of a dialogue: no turn is lost, none is twice."""
    found, server = asked(tmp_path, {5: fault, 17: fault} if fault else {})
    for own, other in zip(engines, found, strict=True):
        assert (own.ids, own.tool_mask, own.ended) == (other.ids, other.tool_mask, other.ended)
        assert other.logps == pytest.approx(own.logps, abs=1e-4)
    assert not fault or server.met[fault] == 2


def test_a_server_that_stops_at_marks_samples_less_and_the_same(
    engines: list[SampledCompletion], tmp_path: Path
) -> None:
    """A mark that ends no turn only costs a request more."""
    tokenizer = open_policy(POLICY, device="cpu").tokenizer
    drawn = [ids for completion in engines for ids in completion.ids[2:3]]
    marks = tuple(sorted({tokenizer.decode([token]) for token in drawn}))
    found, server = asked(tmp_path, {}, marks)
    assert [c.ids for c in found] == [c.ids for c in engines]
    assert [c.ended for c in found] == [c.ended for c in engines]
    plain, without = asked(tmp_path, {})
    assert [c.ids for c in plain] == [c.ids for c in found]
    assert len(server.bodies) > len(without.bodies)


def test_a_server_is_not_waited_for_while_it_is_asked_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that takes longer than a server is waited for, and then a server that is busy."""
    late = 0.0

    class Slow(Threads):
        def answers(self, wait: bool) -> list[Answer]:
            nonlocal late
            late += 100.0 * wait
            return super().answers(wait)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late, sleep=lambda _: None)
    monkeypatch.setattr("rl_reasoner.rollout.vllm_server.connection.time", clock)
    with serving(POLICY, {2: "503"}) as server:
        rollouts = VllmRollouts(server.url, tmp_path / "weights", 60.0)
        with rollouts.own():
            rollouts.load(open_policy(POLICY, device="cpu").model, 0)
            rollouts.generate(PROMPTS[:1], KEYS[:1], GREEDY, turns=Slow(SCRIPT))
    assert late and server.met["503"] == 1


def test_each_part_of_a_row_draws_anew(tmp_path: Path) -> None:
    _, server = asked(tmp_path, {})
    seeds = [body["seed"] for body in server.bodies]
    assert len(seeds) == len({*seeds}) > len(PROMPTS)
