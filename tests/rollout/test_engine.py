"""The sampling engine: transformers' tokens where greedy, exact probabilities where drawn."""

import math
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import StopStringCriteria

from rl_reasoner import open_policy
from rl_reasoner.rollout.drawing import draw, uniforms
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams, unhandled

KINDS = ("llama", "mistral", "qwen3_moe", "gpt2")
VOCABULARY = 40
END = 1


def model_of(kind: str, seed: int = 0, vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    """A tiny model with grouped queries, a sliding window, experts, or learned positions."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    common: dict[str, Any] = {"vocab_size": vocabulary, "hidden_size": 32, **heads}
    common |= {"num_hidden_layers": 2, **changes}
    common |= {"initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": END, "bos_token_id": 2}
    config = {
        "llama": lambda: transformers.LlamaConfig(**common),
        "mistral": lambda: transformers.MistralConfig(**common, sliding_window=5),
        "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
            **common, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8
        ),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=vocabulary,
            n_layer=2,
            n_embd=32,
            n_head=4,
            initializer_range=0.3,
            eos_token_id=END,
            bos_token_id=2,
        ),
    }[kind]()
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval()


def prompts_of(count: int, rows: int) -> list[list[int]]:
    """`count` prompts of unequal lengths, `rows` times each."""
    random = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        length = int(torch.randint(1, 12, (), generator=random))
        found.append(torch.randint(3, VOCABULARY, (length,), generator=random).tolist())
    return [prompt for prompt in found for _ in range(rows)]


def theirs(model: Any, prompt: list[int], tokens: int, **options: Any) -> list[int]:
    """What transformers generates for one prompt."""
    settings = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=END, pad_token_id=0, **options
    )
    out = model.generate(torch.tensor([prompt]), generation_config=settings)
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_generate(kind: str) -> None:
    """50 prompts of unequal lengths for each of four families, rows ending at different times."""
    model = model_of(kind)
    prompts = prompts_of(50, 1)
    sampling = SamplingParams(max_tokens=16, ends=(END,), temperature=0.0)
    found = generate(model, prompts, [[i] for i in range(50)], sampling)
    lengths = {len(completion.ids) for completion in found}
    assert len(lengths) > 1, "rows end at different times"
    for prompt, completion in zip(prompts, found, strict=True):
        assert completion.ids == theirs(model, prompt, 16), prompt


def test_a_repetition_penalty_counts_prompt_and_completion() -> None:
    model = model_of("llama")
    prompts = prompts_of(12, 1)
    sampling = SamplingParams(max_tokens=12, ends=(END,), temperature=0.0, repetition_penalty=1.7)
    found = generate(model, prompts, [[i] for i in range(12)], sampling)
    plain = [theirs(model, prompt, 12) for prompt in prompts]
    expected = [theirs(model, prompt, 12, repetition_penalty=1.7) for prompt in prompts]
    assert [completion.ids for completion in found] == expected != plain


@pytest.mark.parametrize(
    "options",
    [
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[3], [7, 8]], "suppress_tokens": [5, 9]},
        {"begin_suppress_tokens": list(range(20))},
        {"min_new_tokens": 9, "sequence_bias": [[[4], 3.0]]},
        {"forced_eos_token_id": END, "repetition_penalty": 1.3},
        {"exponential_decay_length_penalty": (4, 2.0), "min_length": 12},
    ],
    ids=str,
)
def test_other_settings_do_what_they_do_in_generate(options: dict[str, Any]) -> None:
    """Rows of unequal prompts side by side, each as `generate` has it alone."""
    model = model_of("llama")
    prompts = prompts_of(12, 1)
    settings = GenerationConfig(max_new_tokens=12, do_sample=False, **options)
    assert unhandled(options, settings) is None
    sampling = SamplingParams(max_tokens=12, ends=(END,), config=settings)
    found = generate(model, prompts, [[i] for i in range(12)], sampling)
    expected = [theirs(model, prompt, 12, **options) for prompt in prompts]
    plain = [theirs(model, prompt, 12) for prompt in prompts]
    assert [completion.ids for completion in found] == expected != plain


def test_stop_strings_end_a_row_as_in_generate() -> None:
    policy = open_policy("scratch:dense-tiny", seed=2, device="cpu")
    prompts = [policy.tokenizer(text)["input_ids"] for text in ("1+1=", "so", "what is it?")]
    keys = [[0], [1], [2]]
    ends = (policy.tokenizer.eos_token_id,)
    free = generate(policy.model, prompts, keys, SamplingParams(24, ends, temperature=0.0))
    strings = [policy.tokenizer.decode(free[0].ids[3:5]), policy.tokenizer.decode(free[1].ids[6:8])]
    settings = GenerationConfig(max_new_tokens=24, do_sample=False, stop_strings=strings)
    stop = StopStringCriteria(policy.tokenizer, strings)
    found = generate(
        policy.model, prompts, keys, SamplingParams(24, ends, config=settings, stop=stop)
    )
    for prompt, completion in zip(prompts, found, strict=True):
        out = policy.model.generate(
            torch.tensor([prompt]), generation_config=settings, tokenizer=policy.tokenizer
        )
        assert completion.ids == out[0, len(prompt) :].tolist()
    assert [len(c.ids) for c in found] != [len(c.ids) for c in free]


def test_what_the_engine_does_not_do_is_named() -> None:
    assert unhandled({"num_beams": 2}, GenerationConfig()) == "generation_kwargs (num_beams)"
    assert unhandled({}, GenerationConfig(guidance_scale=2.0)) == (
        "the setting guidance_scale of generate"
    )
    assert unhandled({"eos_token_id": None, "top_k": 3}, GenerationConfig(num_beams=1)) is None


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 1.4}],
    ids=str,
)
def test_samples_follow_the_exact_probabilities(options: dict[str, Any]) -> None:
    """Chi-square over all completions of two tokens, of 4000 rows with one prompt."""
    vocabulary, rows = 6, 4000
    model = model_of("llama", vocabulary=vocabulary)
    prompt = [3, 4, 5]
    sampling = SamplingParams(max_tokens=2, ends=(END,), **options)
    found = generate(model, [prompt] * rows, [[7, i] for i in range(rows)], sampling)
    exact = exact_probabilities(model, prompt, sampling, vocabulary)
    counts = dict.fromkeys(exact, 0)
    for completion in found:
        key = tuple(completion.ids)
        counts[key] += 1
        assert sum(completion.logps) == pytest.approx(float(exact[key].log()), abs=1e-4)
    expected = {key: float(p) * rows for key, p in exact.items() if p > 0}
    assert all(counts[key] == 0 for key in counts if key not in expected)
    big = {key for key in expected if expected[key] >= 5}
    cells = [(counts[k], expected[k]) for k in big]
    rest = [k for k in expected if k not in big]
    if sum(expected[k] for k in rest) >= 5:
        cells.append((sum(counts[k] for k in rest), sum(expected[k] for k in rest)))
    statistic = sum((n - e) ** 2 / e for n, e in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's normal approximation: beyond 4.5 standard deviations is no chance
    ratio = statistic / freedom
    deviation = (ratio ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert freedom >= 2 and deviation < 4.5


def exact_probabilities(
    model: Any, prompt: list[int], sampling: SamplingParams, vocabulary: int
) -> dict[tuple[int, ...], torch.Tensor]:
    """The probability of every completion of at most two tokens, by transformers' processors."""

    def after(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1].float()
        processed: torch.Tensor = sampling.processors(model, len(prompt))(
            torch.tensor([ids]), logits
        )
        return processed.softmax(-1)[0]

    first = after(prompt)
    found: dict[tuple[int, ...], torch.Tensor] = {(END,): first[END]}
    for token in range(vocabulary):
        if token != END:
            second = after([*prompt, token])
            found |= {(token, other): first[token] * second[other] for other in range(vocabulary)}
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_completion_does_not_depend_on_the_rows_beside_it(kind: str) -> None:
    model = model_of(kind, seed=2)
    prompts = prompts_of(5, 4)
    keys = [[9, i // 4, i % 4] for i in range(20)]
    sampling = SamplingParams(max_tokens=10, ends=(END, 5, 6))
    together = [c.ids for c in generate(model, prompts, keys, sampling)]
    alone = [
        generate(model, [prompt], [key], sampling)[0].ids
        for prompt, key in zip(prompts, keys, strict=True)
    ]
    back = generate(model, prompts[::-1], keys[::-1], sampling)
    assert together == alone == [c.ids for c in back][::-1]
    other = generate(model, prompts, [[8, *key[1:]] for key in keys], sampling)
    assert together != [c.ids for c in other]
    assert len({len(ids) for ids in together}) > 2 and together[0] != together[1]


def test_the_global_generators_are_not_touched() -> None:
    model = model_of("llama")
    before = torch.random.get_rng_state()
    generate(model, prompts_of(2, 2), [[i] for i in range(4)], SamplingParams(4, (END,)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert model.config._attn_implementation == "sdpa"


def test_log_probabilities_are_those_of_a_plain_pass() -> None:
    model = model_of("qwen3_moe", seed=4)
    prompts = prompts_of(4, 3)
    sampling = SamplingParams(max_tokens=8, ends=(END,), temperature=0.8)
    for prompt, completion in zip(
        prompts, generate(model, prompts, [[i] for i in range(12)], sampling), strict=True
    ):
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            logps = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.8).log_softmax(-1)
        alone = logps.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        assert completion.logps == pytest.approx(alone.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 3}, {"top_p": 0.6}, {"repetition_penalty": 1.7}], ids=str
)
def test_the_policys_own_log_probs_are_those_of_a_plain_pass(options: dict[str, Any]) -> None:
    """Whatever sampling cuts off; the temperatures of the two are told apart."""
    model = model_of("llama", seed=4)
    prompts = prompts_of(3, 3)
    sampling = SamplingParams(8, (END,), temperature=0.8, policy_temperature=0.5, **options)
    for prompt, completion in zip(
        prompts, generate(model, prompts, [[i] for i in range(9)], sampling), strict=True
    ):
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            logps = (model(ids).logits[0, len(prompt) - 1 : -1] / 0.5).log_softmax(-1)
        alone = logps.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        assert completion.policy_logps == pytest.approx(alone.tolist(), abs=1e-4)


def test_a_row_without_numbers_ends_and_spares_the_others() -> None:
    model = model_of("llama")
    prompts, keys = [[3, 4], [3, 39], [5]], [[0], [1], [2]]
    sampling = SamplingParams(max_tokens=6, ends=(END,))
    whole = generate(model, prompts, keys, sampling)

    def poison(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        prompts_alone = arguments[0].shape[0] == 1 and arguments[0].shape[1] > 1
        there = (arguments[0] == 39) & prompts_alone
        return output.masked_fill(there[..., None], torch.nan)

    model.model.embed_tokens.register_forward_hook(poison)
    found = generate(model, prompts, keys, sampling)
    assert found[1].ids == [END] and math.isnan(found[1].logps[0])
    for row in (0, 2):
        assert found[row].ids == whole[row].ids
        assert found[row].logps == pytest.approx(whole[row].logps, abs=1e-5)


@given(
    st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0, 1e-30, 3.0]), min_size=1, max_size=9),
    st.floats(0, 1, exclude_max=True, width=32),
)
def test_drawing_inverts_the_cumulated_shares(weights: list[float], uniform: float) -> None:
    total = sum(weights)
    if total == 0:
        return
    probabilities = torch.tensor([weights])
    [index] = draw(probabilities, torch.tensor([uniform])).tolist()
    assert weights[index] > 0
    below, reached = sum(weights[:index]), sum(weights[: index + 1])
    assert below - 1e-5 <= uniform * total <= reached + 1e-5


def test_uniforms_follow_from_their_key_alone() -> None:
    one = uniforms([[1, 2], [1, 3]], 8)
    assert torch.equal(one[1], uniforms([[1, 3]], 8)[0])
    assert torch.equal(one[1, :4], uniforms([[1, 3]], 4)[0])
    assert one.unique().numel() == 16 and bool(((one >= 0) & (one < 1)).all())


class RoughSums(TorchFunctionMode):
    """Sums that are rounded as by a parallel scan: each in its own way, up or down by a little."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.Tensor.cumsum:
            signs = torch.tensor([1.0, -1.0]).repeat(out.shape[-1])[: out.shape[-1]]
            out = out + signs * 1e-4
        return out


def test_no_token_of_probability_zero_is_drawn_where_sums_are_rounded() -> None:
    """Every other token has none, and its sum steps up beyond the one before."""
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.25, 0.0, 0.5, 0.0]]).repeat(2001, 1)
    uniform = torch.linspace(0, 1 - 1e-7, 2001)
    exact = draw(probabilities, uniform)
    with RoughSums():
        rough = draw(probabilities, uniform)
    assert {*rough.tolist()} == {1, 3, 5} == {*exact.tolist()}
    assert (rough != exact).float().mean() < 0.01


class Moves(TorchFunctionMode):
    """Counts how often indices and masks are brought to a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and not args[0].is_floating_point():
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_indices_go_to_the_device_once_a_step_not_once_a_layer(kind: str) -> None:
    counts = []
    for layers in (1, 4):
        model = model_of(kind, num_hidden_layers=layers)
        with Moves() as moves:
            generate(model, prompts_of(3, 2), [[i] for i in range(6)], SamplingParams(6, (-1,)))
        counts.append(moves.count)
    assert counts[0] == counts[1] > 0
