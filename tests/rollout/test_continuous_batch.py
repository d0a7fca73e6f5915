"""Rows that enter and leave: the same tokens as alone, within the budgets, without a long tail."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_engine import END, model_of, prompts_of
from torch.overrides import TorchFunctionMode

from rl_reasoner.moe.routing import Routing, SampledRoutes
from rl_reasoner.rollout import admission, engine
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.kv_cache import KVCache
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.turns import Answer


@contextmanager
def passes_of(model: Any) -> Iterator[list[tuple[int, int]]]:
    """The passes that are made inside: (rows, tokens of each); prompts are one row."""
    found: list[tuple[int, int]] = []

    def note(module: Any, arguments: Any, options: Any) -> None:
        found.append(tuple(options["input_ids"].shape))

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def sizes_within(room: int, model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Give the batch room for so many tokens; the bytes of its buffers behind each pass to come."""
    sizes: list[int] = []
    advance = KVCache.advance

    def measured(cache: KVCache) -> None:
        advance(cache)
        sizes.append(cache.nbytes)

    monkeypatch.setattr(KVCache, "advance", measured)
    monkeypatch.setattr(engine, "_CACHE_BYTES", room * engine.token_bytes(model))
    return sizes


def alone(model: Any, prompts: list[list[int]], keys: Any, sampling: Any) -> list[list[int]]:
    return [
        generate(model, [prompt], [key], sampling)[0].ids
        for prompt, key in zip(prompts, keys, strict=True)
    ]


@pytest.mark.parametrize(("temperature", "late"), [(0.0, 0), (1.0, 1)])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3_moe"])
def test_rows_that_enter_late_have_the_tokens_that_they_have_alone(
    kind: str, temperature: float, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the host learns of a token one pass late, as on a GPU; prompts come in parts."""
    model = model_of(kind, seed=2)
    prompts = prompts_of(9, 3)
    keys = [[9, i] for i in range(27)]
    sampling = SamplingParams(max_tokens=90, ends=(END, 5), temperature=temperature)
    expected = alone(model, prompts, keys, sampling)
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
    )
    assert [c.ids for c in found] == expected
    assert len({len(ids) for ids in expected}) > 2
    assert done == told == dict(enumerate(expected))


def test_settings_that_look_back_hold_for_rows_that_enter_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    prompts, keys = prompts_of(10, 1), [[i] for i in range(10)]
    sampling = SamplingParams(12, (END,), temperature=0.0, repetition_penalty=1.7)
    expected = alone(model, prompts, keys, sampling)
    monkeypatch.setattr(admission, "LIVE_ROWS", 3)
    assert [c.ids for c in generate(model, prompts, keys, sampling)] == expected


def test_a_long_tail_does_not_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in four is long: batches one after the other would take a long row's passes each."""
    model = model_of("llama")
    prompts, keys = prompts_of(1, 40), [[i] for i in range(40)]
    budgets = [40 if i % 4 == 0 else 4 for i in range(40)]
    monkeypatch.setattr(admission, "LIVE_ROWS", 4)
    with passes_of(model) as passes:
        found = generate(model, prompts, keys, SamplingParams(40, (-1,)), budgets=budgets)
    assert [len(c.ids) for c in found] == budgets
    steps = [rows for rows, width in passes if width == 1]
    assert max(steps) <= 4
    assert len(steps) <= sum(budgets) / 4 + 40  # and not 10 * 40
    assert sum(steps) == sum(budgets) - 40  # the first token comes with the prompt


def test_keys_and_values_stay_within_their_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    prompts, keys = prompts_of(12, 3), [[i] for i in range(36)]
    budgets = [3 + 11 * (i % 13) for i in range(36)]
    room = 800
    sizes = sizes_within(room, model, monkeypatch)
    found = generate(model, prompts, keys, SamplingParams(140, (-1,)), budgets=budgets)
    assert [len(c.ids) for c in found] == budgets
    assert room * engine.token_bytes(model) / 4 < max(sizes) <= room * engine.token_bytes(model)


@pytest.mark.parametrize("rows", [1, 4])
def test_buffers_are_seldom_made_anew(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are copied then. Prompts come by their length, as those of an evaluation do."""
    model = model_of("llama")
    prompts = [
        [3 + (i + j) % 30 for j in range(40 + i // 3)] for i in range(80) for _ in range(rows)
    ]
    keys = [[i] for i in range(80 * rows)]
    budgets = [10 + 7 * i % 30 for i in range(80 * rows)]
    room = 3600  # some 30 rows
    sizes = sizes_within(room, model, monkeypatch)
    made: set[int] = set()
    advance = KVCache.advance

    def noted(cache: KVCache) -> None:
        made.add(cache.version)
        advance(cache)

    monkeypatch.setattr(KVCache, "advance", noted)
    with passes_of(model) as passes:
        found = generate(model, prompts, keys, SamplingParams(40, (-1,)), budgets=budgets)
    assert [len(c.ids) for c in found] == budgets
    assert max(sizes) <= room * engine.token_bytes(model)
    steps = [count for count, width in passes if width == 1]
    assert len(made) <= 8 * rows, "each row or prompt that enters made them anew"
    assert len(steps) <= 1.1 * sum(budgets) / max(steps) + 40


def prompt_of(length: int, first: int) -> list[int]:
    return [3 + (first * 7 + j * (first + 1)) % 30 for j in range(length)]


def test_after_one_long_prompt_rows_come_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them fit, of short prompts, into what was the long one's."""
    model = model_of("llama")
    prompts = [prompt_of(n, i) for i, n in enumerate([40, *[10] * 6]) for _ in range(4)]
    sizes = sizes_within(95, model, monkeypatch)
    with passes_of(model) as passes:
        generate(model, prompts, [[i] for i in range(28)], SamplingParams(40, (-1,)))
    steps = [count for count, width in passes if width == 1]
    assert max(sizes) <= 95 * engine.token_bytes(model)
    assert sum(steps) == 28 * 39
    assert len(steps) <= 39 * (4 + 24 / 2 + 2)


def test_a_prompt_that_just_fits_gets_no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    sizes = sizes_within(297, model, monkeypatch)
    prompts, keys = [prompt_of(257, 1)] * 3, [[i] for i in range(3)]
    generate(model, prompts, keys, SamplingParams(40, (-1,)))
    assert max(sizes) <= 297 * engine.token_bytes(model)


def test_prompts_are_taken_while_all_rows_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have room, once what the others keep is given up."""
    model = model_of("llama")
    passes = sizes_within(580, model, monkeypatch)
    before = 0  # the passes until the engine waits for an answer

    class Slow:
        def __init__(self) -> None:
            self.asked: list[int] = []

        def stops(self, row: int, ids: list[int]) -> bool:
            return row < 4 and len(ids) == 5

        def submit(self, row: int, ids: list[int]) -> None:
            self.asked.append(row)

        def answers(self, wait: bool) -> list[Answer]:
            nonlocal before
            if not wait:
                return []
            before = before or len(passes)
            found = [Answer(row, (7,)) for row in self.asked]
            self.asked.clear()
            return found

    prompts, keys = [prompt_of(100, i) for i in range(8)], [[i] for i in range(8)]
    generate(model, prompts, keys, SamplingParams(20, (-1,)), turns=Slow())
    assert before > 4 + 19, "only the four that ask had been sampled"


def test_new_prompts_take_no_more_than_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the tokens of all passes, while rows are being sampled, but for one part at a time."""
    model = model_of("llama")
    prompts = [[3 + (i + j) % 30 for j in range(100)] for i in range(20)]
    monkeypatch.setattr(admission, "LIVE_ROWS", 4)
    monkeypatch.setattr(admission, "_FEW", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(admission, "_CHUNK", 16)
    budgets = [5 + 7 * (i % 5) for i in range(20)]
    whole = prefilled = sampled = 0
    parts, worked = admission.Admission.parts, admission.Admission.worked

    def noted(self: Any) -> Any:
        nonlocal whole, prefilled
        found = parts(self)
        size = sum(part.length for _, part in found)
        whole += size
        if self.cache.rows:  # somebody waits
            prefilled += size
            assert size <= 16 and prefilled <= sampled
        return found

    def counted(self: Any, rows: int) -> None:
        nonlocal sampled
        sampled += max(rows, 4)
        worked(self, rows)

    monkeypatch.setattr(admission.Admission, "parts", noted)
    monkeypatch.setattr(admission.Admission, "worked", counted)
    keys, sampling = [[i] for i in range(20)], SamplingParams(40, (-1,))
    generate(model, prompts, keys, sampling, budgets=budgets)
    assert whole == 2000 and prefilled > 100


def test_experts_are_kept_of_rows_that_enter_late(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("qwen3_moe", seed=1)
    routing = Routing(model)
    prompts, keys = prompts_of(6, 2), [[i] for i in range(12)]
    sampling = SamplingParams(9, (END, 5, 6))
    kept = []
    for rows, late in ((512, 0), (3, 0), (3, 1)):
        monkeypatch.setattr(admission, "LIVE_ROWS", rows)
        monkeypatch.setattr(engine, "_lateness", lambda device, late=late: late)
        with routing.record() as passes:
            routes = SampledRoutes(passes)
            found = generate(model, prompts, keys, sampling, routes)
        kept.append(routes.routes())
        assert [len(own) for own in kept[-1].completions] == [len(c.ids) for c in found]
    for other in kept[1:]:
        for name in ("prompts", "completions"):
            for one, two in zip(getattr(kept[0], name), getattr(other, name), strict=True):
                assert torch.equal(one.sort(-1).values, two.sort(-1).values)


def test_what_is_no_number_does_not_spread_to_rows_that_enter_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("llama")
    prompts, keys = [[3, 39, 4, 5], [3, 4], [5], [7, 8]], [[i] for i in range(4)]
    sampling = SamplingParams(6, (END,), temperature=0.0)
    expected = [c.ids for c in generate(model, prompts[1:], keys[1:], sampling)]

    def poison(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((arguments[0] == 39)[..., None], torch.nan)

    model.model.embed_tokens.register_forward_hook(poison)
    monkeypatch.setattr(admission, "LIVE_ROWS", 2)
    monkeypatch.setattr(engine, "_lateness", lambda device: 1)
    found = generate(model, prompts, keys, sampling)
    if all(39 not in ids for ids in expected):
        assert [c.ids for c in found][1:] == expected


class Reads(TorchFunctionMode):
    """Notes where the host reads values of tensors, which on a GPU it would wait for."""

    NAMES = ("item", "tolist", "cpu", "nonzero", "__bool__", "__int__", "__float__", "any", "all")

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "numpy" or (name in self.NAMES and args and args[0].numel()):
            self.events.append("numpy" if name == "numpy" else f"wait: {name}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_host_reads_tokens_only_when_the_next_pass_has_begun(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    events: list[str] = []
    model.register_forward_pre_hook(lambda *given: events.append("pass"))
    monkeypatch.setattr(engine, "_lateness", lambda device: 1)
    sampling = SamplingParams(8, (-1,), temperature=temperature)
    read = engine._Batch._read

    def reading(batch: Any, late: int) -> None:
        before = len(batch.drawn)
        read(batch, late)
        events.extend(["read"] * (before - len(batch.drawn)))

    monkeypatch.setattr(engine._Batch, "_read", reading)
    with Reads(events):
        generate(model, prompts_of(2, 3), [[i] for i in range(6)], sampling)
    begun = [number for number, event in enumerate(events) if event == "pass"][1]
    assert not [event for event in events[begun:] if event.startswith("wait")]
    ran = known = 0
    for event in events:
        ran += event == "pass"
        known += event == "read"
        assert event != "read" or known < ran or ran == 8
    assert known == 8
