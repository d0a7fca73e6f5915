"""What all prompts begin with is run once: the same completions, from fewer tokens."""

from itertools import takewhile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_continuous_batch import sizes_within
from test_engine import END, model_of

from rl_reasoner.errors import UserError
from rl_reasoner.moe.routing import Routing, SampledRoutes
from rl_reasoner.rollout import admission, engine
from rl_reasoner.rollout.admission import shared_beginning
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams

WORDS = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)


@given(st.sets(WORDS, min_size=1, max_size=5), st.integers(0, 60))
def test_it_is_what_all_have_but_for_the_last_token_of_each(
    ends: set[tuple[int, ...]], length: int
) -> None:
    prompts = [(7,) * length + end for end in ends]
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = len([*takewhile(lambda column: len({*column}) == 1, columns)])
    wanted = shared if len(prompts) > 1 and shared >= 32 else 0
    assert shared_beginning(prompts) == wanted
    assert shared_beginning([*reversed(prompts)]) == wanted


def test_of_no_prompts_it_is_nothing() -> None:
    assert shared_beginning([]) == 0


def worked_examples(count: int, beginning: int) -> list[list[int]]:
    """Prompts that begin with the same tokens; ends of 1 to 9."""
    first = [3 + (7 * j) % 30 for j in range(beginning)]
    return [first + [3 + (i + j * j) % 30 for j in range(1 + i % 9)] for i in range(count)]


@pytest.mark.parametrize("rows", [512, 3, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe"])
def test_completions_and_log_probs_are_those_of_prompts_that_are_run_whole(
    kind: str, temperature: float, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of prompts that enter when others have left, and where it is run in parts.

    With one row a prompt and one at a time, a prompt's slot is empty when the next one comes.
    """
    model = model_of(kind, seed=2)
    prompts = [p for p in worked_examples(9, 40) for _ in range(min(rows, 2))]
    keys = [[9, i] for i in range(len(prompts))]
    sampling = SamplingParams(max_tokens=12, ends=(END, 5), temperature=temperature)
    monkeypatch.setattr(admission, "_BEGINNING", 1000)
    expected = generate(model, prompts, keys, sampling)
    monkeypatch.setattr(admission, "_BEGINNING", 32)
    monkeypatch.setattr(admission, "LIVE_ROWS", rows)
    monkeypatch.setattr(admission, "PREFILL", 64 if rows == 512 else 30)
    run, parts = 0, admission.Admission.parts

    def counted(self: Any) -> Any:
        nonlocal run
        made = parts(self)
        run += sum(part.length for _, part in made)
        return made

    monkeypatch.setattr(admission.Admission, "parts", counted)
    found = generate(model, prompts, keys, sampling)
    assert [c.ids for c in found] == [c.ids for c in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.logps, other.logps, atol=2e-5, rtol=0)
    assert run == 40 + sum(len(prompt) - 40 for prompt in {*map(tuple, prompts)})


@pytest.mark.parametrize("room", [400, 800])
def test_the_room_of_keys_and_values_counts_it(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows of one prompt, then many prompts: neither's buffers are kept for the other."""
    model = model_of("llama")
    first = worked_examples(1, 100)[0]
    prompts = [first] * 9 + [[*first[:100], 4 + i] for i in range(20)]
    keys = [[i] for i in range(len(prompts))]
    sizes = sizes_within(room, model, monkeypatch)
    generate(model, prompts, keys, SamplingParams(20, (-1,)))
    assert room * engine.token_bytes(model) / 4 < max(sizes) <= room * engine.token_bytes(model)


def test_a_prompt_without_tokens_is_refused() -> None:
    model = model_of("llama")
    for prompts in ([[]], [[3, 4], []]):
        with pytest.raises(UserError, match=f"prompt {len(prompts) - 1} .* has no tokens"):
            generate(model, prompts, [[i] for i in range(len(prompts))], SamplingParams(3, (END,)))


def test_experts_that_are_replayed_are_those_of_whole_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("qwen3_moe", seed=1)
    prompts, kept = worked_examples(4, 40), []
    for least in (1000, 32):
        monkeypatch.setattr(admission, "_BEGINNING", least)
        with Routing(model).record() as passes:
            routes = SampledRoutes(passes)
            generate(model, prompts, [[i] for i in range(4)], SamplingParams(5, (END,)), routes)
        kept.append(routes.routes().prompts)
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert min(map(len, kept[0])) >= 40
