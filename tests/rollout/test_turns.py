"""Several turns in a completion: the tokens of plain passes, whoever answers when."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import END, VOCABULARY, model_of, prompts_of
from transformers import GenerationConfig
from transformers.generation import StopStringCriteria

from rl_reasoner import open_policy
from rl_reasoner.kernels import native
from rl_reasoner.kernels.kept_tokens import inflated, packed_bits
from rl_reasoner.moe.routing import Routing, SampledRoutes
from rl_reasoner.rollout import admission, decode_pass, engine
from rl_reasoner.rollout.agreement import sampling_obstacle
from rl_reasoner.rollout.drawing import keyed_generator, tokens_from, uniforms
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.kv_cache import KVCache
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.tool_turns import ToolEvent
from rl_reasoner.rollout.turns import Answer, policy_ids
from support.scripted_turns import STOPS, Script, Threads


@dataclass
class Expected:
    ids: list[int]
    logps: list[float]
    mask: list[int]
    ended: str = ""


def by_plain_passes(
    model: Any,
    prompt: list[int],
    key: Sequence[int],
    sampling: SamplingParams,
    script: Script,
    budget: int | None = None,
) -> Expected:
    """One row alone, a pass of the whole model over all its tokens for each new one."""
    budget = budget or sampling.max_tokens
    numbers = uniforms([key], sampling.max_tokens)
    found = Expected([], [], [])
    processors = sampling.processors(model, len(prompt))
    turn = 0
    while True:
        ids = torch.tensor([[*prompt, *found.ids]])
        with torch.no_grad():
            scores = processors(ids, model(ids).logits[:, -1].float())
        number = numbers[:, len(found.ids)] if sampling.settings.do_sample else None
        tokens, logps = tokens_from(scores, number, END)
        found.ids += tokens.tolist()
        found.logps += logps.tolist()
        found.mask.append(1)
        last = found.ids[-1]
        if len(found.ids) >= budget:
            found.ended = "end" if last in sampling.ends else "length"
            return found
        if last in script.stops and turn < len(script.lengths):
            given, found.ended = script.answer(turn, found.ids)
            turn += 1
            if not found.ended and len(found.ids) + len(given) >= budget:
                found.ended = "length"
            if found.ended:
                return found
            found.ids += given
            found.logps += [0.0] * len(given)
            found.mask += [0] * len(given)
        elif last in sampling.ends:
            found.ended = "end"
            return found


def check(found: Sequence[Any], expected: Sequence[Expected]) -> None:
    for row, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.ids == other.ids, row
        assert one.tool_mask == other.mask
        assert one.ended == other.ended
        assert one.logps == pytest.approx(other.logps, abs=1e-4)


def uneven(row: int, turn: int) -> float:
    """Rows are answered in another order than they ask."""
    return ((row * 7 + turn * 3) % 5) * 1e-3


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe"])
def test_tokens_are_those_of_plain_passes(
    kind: str, temperature: float, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four rows at once, prompts and answers in parts; also where the host is a pass late."""
    model = model_of(kind, seed=2)
    prompts, keys = prompts_of(4, 3), [[9, i] for i in range(12)]
    sampling = SamplingParams(40, (END, 10), temperature=temperature, policy_temperature=1.0)
    script = Script(lengths=(3, 0, 7, 1, -1))
    expected = [
        by_plain_passes(model, p, key, sampling, script)
        for p, key in zip(prompts, keys, strict=True)
    ]
    assert len({one.ended for one in expected}) > 1 or not temperature
    assert sum(0 in one.mask for one in expected) > 2
    monkeypatch.setattr(admission, "LIVE_ROWS", 4)
    monkeypatch.setattr(admission, "_CHUNK", 3)
    monkeypatch.setattr(engine, "_lateness", lambda device: late)
    done: dict[int, list[int]] = {}
    told: dict[int, list[int]] = {}
    found = generate(
        model,
        prompts,
        keys,
        sampling,
        on_finished=done.update,
        on_token=lambda row, token: told.setdefault(row, []).append(token),
        turns=Threads(script, uneven),
    )
    check(found, expected)
    assert done == dict(enumerate(c.ids for c in found))
    for row, one in enumerate(found):
        sampled = [token for token, own in zip(one.ids, one.tool_mask, strict=True) if own]
        assert told[row] == sampled
        given = [p for p, own in zip(one.policy_logps, one.tool_mask, strict=True) if not own]
        assert not any(given) and len(one.policy_logps) == len(one.ids)


@pytest.mark.parametrize("way", ["compiled", "torch", "graphs"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_the_pass_without_modules_has_turns_too(
    kind: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "compiled" and native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setattr(native, "available", lambda: way == "compiled")
    if way == "graphs":
        monkeypatch.setattr(decode_pass, "_GRAPHED", ("cpu",))
    model = model_of(kind, seed=2)
    assert sampling_obstacle(model) is None
    assert decode_pass.decode_pass(model) is not None
    prompts, keys = prompts_of(3, 3), [[9, i] for i in range(9)]
    sampling, script = SamplingParams(30, (END, 10)), Script()
    expected = [
        by_plain_passes(model, p, key, sampling, script)
        for p, key in zip(prompts, keys, strict=True)
    ]
    check(generate(model, prompts, keys, sampling, turns=Threads(script, uneven)), expected)


@pytest.mark.parametrize("late", [0, 1])
def test_experts_are_kept_of_given_tokens_too(late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pass over whole rows chooses them, for replay; where nothing is kept in between, too."""
    model = model_of("qwen3_moe", seed=2)
    routing = Routing(model)
    prompts, keys = prompts_of(3, 3), [[i] for i in range(9)]
    sampling = SamplingParams(30, (END, 10))
    monkeypatch.setattr(engine, "_lateness", lambda device: late)
    for tokens in (4096, 60):
        monkeypatch.setattr(engine, "_CACHE_BYTES", tokens * engine.token_bytes(model))
        with routing.record() as passes:
            kept = SampledRoutes(passes)
            found = generate(model, prompts, keys, sampling, kept, turns=Threads(Script()))
        routes = kept.routes()
        assert sum(0 in one.tool_mask for one in found) > 4
        for row, (prompt, one) in enumerate(zip(prompts, found, strict=True)):
            with routing.record() as passes, torch.no_grad():
                model(torch.tensor([[*prompt, *one.ids[:-1]]]))
            [whole] = passes
            own = torch.cat((routes.prompts[row], routes.completions[row]))
            assert torch.equal(own.sort(-1).values, whole.sort(-1).values)


def test_a_small_cache_forgets_rows_that_wait_and_computes_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """64 rows of 8 prompts, within the budget at every step; the same tokens as with room."""
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(8, 8), [[i] for i in range(64)]
    sampling, script = SamplingParams(40, (END, 10)), Script(lengths=(9, 4, 0, 12))
    sizes: list[int] = []
    prefilled: list[int] = []
    advance, parts = KVCache.advance, admission.Admission.parts

    def measured(cache: KVCache) -> None:
        advance(cache)
        outside = (t.nbytes for row in cache._outside for pair in row.pairs for t in pair)
        sizes.append(cache.nbytes + sum(outside))

    def noted(self: Any) -> Any:
        found = parts(self)
        prefilled.append(sum(part.length for _, part in found))
        return found

    monkeypatch.setattr(KVCache, "advance", measured)
    monkeypatch.setattr(admission.Admission, "parts", noted)
    turns = Threads(script, uneven)
    kept = generate(model, prompts, keys, sampling, turns=turns)
    given = sum(one.tool_mask.count(0) for one in kept)
    ended_by_answer = sum(one.ended == "length" and len(one.ids) < 40 for one in kept)
    back = sum(turns.turns.values()) - ended_by_answer
    least = sum(map(len, prompts[::8])) + given + back
    assert back > 64 and sum(prefilled) == least, "nothing is run twice, but for last tokens"
    prefilled.clear()
    sizes.clear()
    room = 500 * engine.token_bytes(model)
    monkeypatch.setattr(engine, "_CACHE_BYTES", room)
    found = generate(model, prompts, keys, sampling, turns=Threads(script, uneven))
    assert [(c.ids, c.ended) for c in found] == [(c.ids, c.ended) for c in kept]
    for one, other in zip(found, kept, strict=True):
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
    assert max(sizes) <= room and sum(prefilled) > least + 100


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(-1, 9), max_size=5).map(tuple),
    st.integers(0, 99),
    st.sampled_from([1, 3, 64]),
    st.sampled_from([70, 4000]),
)
def test_no_order_of_answers_changes_a_completion(
    lengths: tuple[int, ...], seed: int, rows: int, tokens: int
) -> None:
    """Nor how long they take, how many rows are sampled at once, and how much is kept."""
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(2, 3), [[seed, i] for i in range(6)]
    sampling, script = SamplingParams(24, (END, 10)), Script(lengths)
    expected = [
        by_plain_passes(model, p, key, sampling, script)
        for p, key in zip(prompts, keys, strict=True)
    ]
    random = keyed_generator([seed])
    delays = random.random((6, 5)) * 3e-3 * random.integers(0, 2, (6, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "LIVE_ROWS", rows)
        patch.setattr(engine, "_CACHE_BYTES", tokens * engine.token_bytes(model))
        turns = Threads(script, lambda row, turn: float(delays[row, turn]))
        found = generate(model, prompts, keys, sampling, turns=turns)
    check(found, expected)


def test_other_rows_go_on_while_one_waits() -> None:
    """One row's answer comes only when all others have ended; waiting is asked for then alone."""
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(1, 8), [[i] for i in range(8)]
    sampling = SamplingParams(40, (END,))
    finished: list[int] = []
    others = threading.Event()

    class One(Threads):
        def stops(self, row: int, ids: Sequence[int]) -> bool:
            return row == 3 and len(ids) == 2

        def _work(self, row: int, turn: int, ids: list[int]) -> None:
            assert others.wait(60)
            super()._work(row, turn, ids)

    def note(rows: list[tuple[int, list[int]]]) -> None:
        finished.extend(row for row, _ in rows)
        if len(finished) == 7:
            others.set()

    turns = One(Script())
    found = generate(model, prompts, keys, sampling, on_finished=note, turns=turns)
    assert finished[-1] == 3 and sorted(finished) == [*range(8)]
    assert found[3].tool_mask[:5] == [1, 1, 0, 0, 0] and turns.waits >= 1
    plain = generate(model, prompts, keys, sampling)
    for row in {*range(8)} - {3}:
        assert found[row].ids == plain[row].ids and {*found[row].tool_mask} == {1}
    assert plain[0].tool_mask == [] and plain[0].ended == ""


def test_an_answer_that_leaves_no_room_ends_the_completion_before_it() -> None:
    """As in trl; one that leaves room for a single token is appended."""
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(1, 4), [[i] for i in range(4)]

    class Third(Threads):
        def stops(self, row: int, ids: Sequence[int]) -> bool:
            return len(ids) == 3

    budgets = [3, 9, 10, 11]
    script = Script(lengths=(6,))
    found = generate(
        model, prompts, keys, SamplingParams(30, (-1,)), budgets=budgets, turns=Third(script)
    )
    assert [len(one.ids) for one in found] == [3, 3, 10, 11]
    assert [one.ended for one in found] == ["length"] * 4
    assert found[2].tool_mask == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1]
    assert found[3].tool_mask == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]


def test_many_turns_and_first_tokens_that_stop() -> None:
    """A row that stops at every token, from its first on: it never is in the batch."""
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(2, 2), [[i] for i in range(4)]
    script = Script(lengths=(2, 0, 1, 0) * 8, stops=tuple(range(VOCABULARY)))
    sampling = SamplingParams(60, (-1,))
    expected = [
        by_plain_passes(model, p, key, sampling, script)
        for p, key in zip(prompts, keys, strict=True)
    ]
    check(generate(model, prompts, keys, sampling, turns=Threads(script)), expected)
    assert max(one.mask.count(1) for one in expected) > 32


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"begin_suppress_tokens": list(range(2, 20)), "min_new_tokens": 9},
    ],
    ids=str,
)
def test_settings_that_look_back_see_given_tokens(options: dict[str, Any]) -> None:
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(3, 2), [[i] for i in range(6)]
    config = GenerationConfig(max_new_tokens=30, do_sample=False, **options)
    sampling = SamplingParams(30, (END, 10), config=config)
    script = Script(stops=(*STOPS, 20, 25, 30))
    expected = [
        by_plain_passes(model, p, key, sampling, script)
        for p, key in zip(prompts, keys, strict=True)
    ]
    assert sum(0 in one.mask for one in expected) > 2
    check(generate(model, prompts, keys, sampling, turns=Threads(script, uneven)), expected)


def test_what_may_not_come_first_may_come_behind_an_answer() -> None:
    model = model_of("llama", seed=2)
    prompts, keys = prompts_of(1, 64), [[i] for i in range(64)]
    suppressed = tuple(range(20, VOCABULARY))
    sampling = SamplingParams(6, (-1,), begin_suppress=suppressed)

    class First(Threads):
        def stops(self, row: int, ids: Sequence[int]) -> bool:
            return row % 2 == 0 and len(ids) == 1

    found = generate(model, prompts, keys, sampling, turns=First(Script(lengths=(1,))))
    assert not any(one.ids[0] in suppressed for one in found)
    assert any(one.ids[2] in suppressed for one in found[::2])


def test_stop_strings_end_a_turn_or_the_completion() -> None:
    policy = open_policy("scratch:dense-tiny", seed=2, device="cpu")
    prompt = policy.tokenizer("so")["input_ids"]
    ends = (policy.tokenizer.eos_token_id,)
    [free] = generate(policy.model, [prompt], [[0]], SamplingParams(24, ends, temperature=0.0))
    text = policy.tokenizer.decode(free.ids[6:8])
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, stop_strings=[text])
    stop = StopStringCriteria(policy.tokenizer, [text])
    sampling = SamplingParams(24, ends, config=settings, stop=stop)
    [ended] = generate(policy.model, [prompt], [[0]], sampling)
    assert len(ended.ids) < 20

    class Once(Threads):
        def stops(self, row: int, ids: Sequence[int]) -> bool:
            return not self.turns and len(ids) == len(ended.ids)

    [found] = generate(policy.model, [prompt], [[0]], sampling, turns=Once(Script(lengths=(2,))))
    assert found.ids[: len(ended.ids)] == ended.ids
    assert found.tool_mask[: len(ended.ids) + 3] == [1] * len(ended.ids) + [0, 0, 1]


def test_a_row_without_numbers_ends_whoever_would_answer() -> None:
    model = model_of("llama", seed=2)
    sampling, script = SamplingParams(6, (END,)), Script(stops=tuple(range(VOCABULARY)))

    def poison(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((arguments[0] == 39)[..., None], torch.nan)

    model.model.embed_tokens.register_forward_hook(poison)
    one, other = generate(model, [[3, 39], [3, 4]], [[0], [1]], sampling, turns=Threads(script))
    assert one.ids == [END] and one.ended == "end"
    assert 0 in other.tool_mask


def test_answers_that_nobody_waits_for_are_an_error() -> None:
    class Twice(Threads):
        def answers(self, wait: bool) -> list[Answer]:
            return [answer for answer in super().answers(wait) for _ in range(2)]

    model = model_of("llama", seed=2)
    with pytest.raises(ValueError, match="row 0, which waits for none"):
        turns = Twice(Script(stops=tuple(range(VOCABULARY))))
        generate(model, [[3, 4]], [[0]], SamplingParams(9, (-1,)), turns=turns)


def test_what_a_taker_raises_ends_the_call() -> None:
    class Broken(Threads):
        def submit(self, row: int, ids: list[int]) -> None:
            raise OSError("no more processes")

    model = model_of("llama", seed=2)
    with pytest.raises(OSError, match="no more processes"):
        turns = Broken(Script(stops=tuple(range(VOCABULARY))))
        generate(model, [[3, 4]], [[0]], SamplingParams(9, (-1,)), turns=turns)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("options", [{"top_p": 0.6}, {"top_k": 3, "min_new_tokens": 4}], ids=str)
def test_the_sets_that_tokens_are_drawn_from_are_kept_and_nothing_is_cut_of_given_ones(
    options: dict[str, Any],
) -> None:
    """As transformers' processors leave them behind each prefix, over several turns."""
    model, prompts = model_of("llama", seed=4), prompts_of(3, 3)
    config = GenerationConfig(**{"do_sample": True, "temperature": 0.8, "top_k": 0, **options})
    sampling = SamplingParams(12, (END,), config=config, policy_temperature=0.8, keep_mask=True)
    turns = Threads(Script((3, 2)))
    sizes: dict[int, set[int]] = {0: set(), 1: set()}
    found = generate(model, prompts, [[i] for i in range(9)], sampling, turns=turns)
    for prompt, completion in zip(prompts, found, strict=True):
        assert completion.kept is not None
        kept = inflated(completion.kept, VOCABULARY)
        processors = sampling.processors(model, len(prompt))
        for place, drawn in enumerate(completion.tool_mask):
            ids = torch.tensor([[*prompt, *completion.ids[:place]]])
            with torch.no_grad():
                scores = processors(ids, model(ids).logits[:, -1].float())
            left = scores > -torch.inf if drawn else torch.ones_like(scores).bool()
            every = torch.tensor([[255] * kept.shape[1]], dtype=torch.uint8)
            assert torch.equal(kept[place], (packed_bits(left) if drawn else every)[0])
            sizes[drawn].add(int(left.sum()))
            if drawn:
                logp = scores.log_softmax(-1)[0, completion.ids[place]]
                assert completion.logps[place] == pytest.approx(float(logp), abs=1e-4)
    assert sizes[0] == {VOCABULARY} and max(sizes[1]) < VOCABULARY


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), max_size=6), st.integers(0, 4))
def test_what_the_policy_wrote_is_all_but_what_was_given(
    turns: list[tuple[int, int]], last: int
) -> None:
    ids: list[int] = []
    places, own = [], []
    for wrote, got in turns:
        own.append([*range(len(ids), len(ids) + wrote)])
        ids += own[-1]
        places.append(ToolEvent("t", "ok", 0.0, len(ids), got))
        ids += [-1] * got
    own.append([*range(len(ids), len(ids) + last)])
    ids += own[-1]
    runs = policy_ids(ids, places)
    assert [token for run in runs for token in run] == [token for token in ids if token >= 0]
    assert [] not in runs and policy_ids(ids, places[::-1]) == runs
    cut = ids[: max(0, len(ids) - 3)]  # a result that had no room
    assert [t for run in policy_ids(cut, places) for t in run] == [t for t in cut if t >= 0]
