"""The pass over one new token of each row: transformers' values, or transformers' modules."""

import inspect
import sys
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.integrations import moe

from rl_reasoner.kernels import native, packed_linear
from rl_reasoner.moe.routing import Routing, SampledRoutes
from rl_reasoner.rollout import decode_pass
from rl_reasoner.rollout.agreement import sampling_obstacle
from rl_reasoner.rollout.drawing import tokens_at, tokens_from
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from support.passes import counted_passes

END = 1
SIZES: dict[str, Any] = {"vocab_size": 40, "hidden_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 70}
SIZES |= {"initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": END, "bos_token_id": 2}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "head_dim": 16}
MIXTURE = {"num_local_experts": 5, "num_experts_per_tok": 2}
LONG = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0}
LONG |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama, tied, scaled, biases": lambda: transformers.LlamaConfig(
        **SIZES, tie_word_embeddings=True, attention_bias=True, rope_parameters=LONG
    ),
    "mistral, window": lambda: transformers.MistralConfig(**SIZES, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen2, windows in some layers": lambda: transformers.Qwen2Config(**SIZES, **SLIDING),
    "qwen3, tied": lambda: transformers.Qwen3Config(**SIZES, head_dim=20, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, **EXPERTS, norm_topk_prob=True),
    "qwen3_moe, some layers dense": lambda: transformers.Qwen3MoeConfig(
        **SIZES, **EXPERTS, norm_topk_prob=False, mlp_only_layers=[1]
    ),
    "mixtral, window": lambda: transformers.MixtralConfig(
        **{**SIZES, "intermediate_size": 40}, **MIXTURE, sliding_window=5
    ),
}
PROMPTS = [[7, 9, 3, 8, 12], [4], [30, 31, 5, 6, 20, 11, 2, 3, 17, 18, 19]]
ROWS = [PROMPTS[i] for i in (0, 1, 2, 2, 0, 2, 2, 2, 2, 2, 2, 2, 2, 1)]


@pytest.fixture(params=["compiled", "torch", "graphs"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The ways to do what lies between the products; a graph's buffers, not captured here."""
    compiled = request.param == "compiled"
    if compiled and native.library() is None:
        pytest.skip("no compiled operations on this machine")
    monkeypatch.setattr(native, "available", lambda: compiled)
    monkeypatch.setattr(packed_linear, "_by_panels", lambda dtype: compiled)
    if request.param == "graphs":
        monkeypatch.setattr(decode_pass, "_GRAPHED", ("cpu",))
    return str(request.param)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every pass that calls no modules."""
    return counted_passes(monkeypatch)


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind]()).to(dtype).eval()


def sampled(model: Any, tokens: int = 14, **options: Any) -> list[Any]:
    sampling = SamplingParams(tokens, (END,), policy_temperature=1.0, **options)
    return generate(model, ROWS, [[row] for row in range(len(ROWS))], sampling)


def gap(model: Any, completions: list[Any]) -> float:
    """The largest difference of a log-probability from the model's own, over whole rows."""
    worst = 0.0
    for prompt, completion in zip(ROWS, completions, strict=True):
        ids = torch.tensor([[*prompt, *completion.ids]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        own = logps.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        worst = max(worst, float((own - torch.tensor(completion.policy_logps)).abs().max()))
    return worst


@pytest.mark.parametrize("kind", CONFIGS)
def test_log_probs_are_those_of_transformers(kind: str, way: str, passes: list[int]) -> None:
    """Rows of three prompts that end at different times."""
    model = model_of(kind)
    assert sampling_obstacle(model) is None
    passes.clear()
    completions = sampled(model)
    assert len(set(passes)) > 1, "the pass was taken, and rows left on the way"
    assert gap(model, completions) < 2e-4


@pytest.mark.parametrize("kind", CONFIGS)
def test_greedy_tokens_are_those_of_the_modules(kind: str, way: str, passes: list[int]) -> None:
    model = model_of(kind)
    expected = [c.ids for c in sampled(model, temperature=0.0)]
    assert not passes, "a model is not taken before it was tried"
    assert sampling_obstacle(model) is None
    assert [c.ids for c in sampled(model, temperature=0.0)] == expected


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if "moe" in kind or "mix" in kind])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_experts_have_products_of_their_own(
    kind: str, dtype: torch.dtype, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens are those of experts in one piece, and nearly the log-probs."""
    model = model_of(kind)
    assert sampling_obstacle(model) is None
    found = []
    for wide in (1 << 16, 0):
        monkeypatch.setattr(decode_pass, "_WIDE", wide)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            made = decode_pass.decode_pass(model)
            assert made is not None
            mixtures = [mlp for layer in made.layers if hasattr(mlp := layer.mlp, "experts")]
            assert mixtures and all(bool(mlp.experts) == (wide == 0) for mlp in mixtures)
            found.append(sampled(model, temperature=0.0))
    same = [a.ids == b.ids for a, b in zip(*found, strict=True)]
    assert all(same) if dtype == torch.float32 else sum(same) > len(same) // 2
    for one, other in zip(*found, strict=True):
        if one.ids == other.ids and dtype == torch.float32:
            assert torch.tensor(one.policy_logps).allclose(
                torch.tensor(other.policy_logps), atol=1e-4
            )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3_moe", "mixtral, window"])
def test_bfloat16_stays_near(kind: str, way: str, passes: list[int]) -> None:
    model = model_of(kind, torch.bfloat16)
    assert sampling_obstacle(model) is None
    passes.clear()
    completions = sampled(model, temperature=0.0)
    assert passes
    ids = [torch.tensor([[*p, *c.ids]]) for p, c in zip(ROWS, completions, strict=True)]
    with torch.no_grad():
        own = [model.float()(row).logits[0].log_softmax(-1) for row in ids]
    gaps = [
        abs(float(table[len(p) - 1 + i, token]) - logp)
        for table, p, c in zip(own, ROWS, completions, strict=True)
        for i, (token, logp) in enumerate(zip(c.ids, c.policy_logps, strict=True))
    ]
    assert sorted(gaps)[len(gaps) // 2] < 0.1


def test_autocast_is_kept_to(way: str, passes: list[int]) -> None:
    model = model_of("qwen3, tied")
    assert sampling_obstacle(model) is None
    passes.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        completions = sampled(model)
    assert passes
    assert 1e-4 < gap(model, completions) < 0.6


def test_adapters_are_added_to_the_weights(way: str, passes: list[int]) -> None:
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    wrapped = peft.get_peft_model(model_of("qwen2"), config).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model = wrapped.get_base_model()
    assert sampling_obstacle(model) is None
    passes.clear()
    assert gap(model, sampled(model)) < 2e-4 and passes
    with wrapped.disable_adapter():
        assert gap(model, sampled(model)) < 2e-4


def routes_of(model: Any) -> Any:
    """The experts of completions, recorded while the engine samples."""
    with Routing(model).record() as taken:
        routes = SampledRoutes(taken)
        keys = [[row] for row in range(len(ROWS))]
        generate(model, ROWS, keys, SamplingParams(14, (END,)), routes)
    return routes.routes()


def test_the_experts_of_the_pass_are_told(way: str, passes: list[int]) -> None:
    model = model_of("qwen3_moe")
    by_routers = routes_of(model)
    assert not passes and sampling_obstacle(model) is None
    passes.clear()
    by_pass = routes_of(model)
    assert passes
    for first, second in zip(by_routers.completions, by_pass.completions, strict=True):
        assert torch.equal(first.sort(-1).values, second.sort(-1).values)


def test_weights_are_those_of_the_call(passes: list[int]) -> None:
    model = model_of("llama")
    assert sampling_obstacle(model) is None
    sampled(model)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(-1)
    passes.clear()
    assert gap(model, sampled(model)) < 2e-4 and passes


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: output * 1.5)


def patched(model: Any) -> None:
    layer = model.model.layers[1].mlp.up_proj
    layer.forward = lambda given: torch.nn.functional.linear(given, layer.weight) * 0.5


def subclassed(model: Any) -> None:
    class Own(torch.nn.Linear):
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return super().forward(given) * 0.5

    model.model.layers[0].self_attn.o_proj.__class__ = Own


@pytest.mark.parametrize("change", [hooked, patched, subclassed], ids=lambda f: f.__name__)
def test_what_only_modules_do_is_left_to_them(change: Any, passes: list[int]) -> None:
    """Also where it comes after the model was tried."""
    model = model_of("llama")
    assert sampling_obstacle(model) is None
    change(model)
    passes.clear()
    assert gap(model, sampled(model)) < 2e-4
    assert not passes
    assert sampling_obstacle(model) is None
    assert gap(model, sampled(model)) < 2e-4
    assert not passes


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_router_logits"])
def test_what_transformers_was_once_asked_for_keeps_no_model(asked: str, passes: list[int]) -> None:
    """Its recording hooks stay on the modules, and do nothing; a router's loss asks each step."""
    model = model_of("qwen3_moe")
    model(torch.tensor([PROMPTS[0]]), **{asked: True})
    assert any(module._forward_hooks for module in model.modules())
    assert sampling_obstacle(model) is None
    passes.clear()
    assert gap(model, sampled(model)) < 2e-4
    assert passes


def test_experts_that_a_function_of_its_own_computes_are_left_to_it(passes: list[int]) -> None:
    """As those of FP8, or of a user's."""

    def halved(self: Any, states: Tensor, index: Tensor, gates: Tensor) -> Tensor:
        return moe.grouped_mm_experts_forward(self, states, index, gates / 2)

    moe.ALL_EXPERTS_FUNCTIONS.register("halved", halved)
    model = model_of("qwen3_moe")
    assert sampling_obstacle(model) is None
    passes.clear()
    model.config._experts_implementation = "halved"
    assert gap(model, sampled(model)) < 2e-4
    assert not passes


def test_other_models_are_named() -> None:
    config = transformers.GPT2Config(vocab_size=40, n_layer=1, n_embd=32, n_head=2)
    model = AutoModelForCausalLM.from_config(config)
    assert decode_pass.decode_obstacle(model) == "models of type GPT2LMHeadModel"
    assert decode_pass.decode_obstacle(model_of("llama")) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_drawn_as_documented(dtype: torch.dtype, way: str) -> None:
    """By inversion: over evenly spread numbers, shares and log-probs are those of the softmax."""
    logits = torch.randn(1, 2500, generator=torch.Generator().manual_seed(0)).mul(2).to(dtype)
    logits[0, ::7] = -torch.inf
    count = 20_000
    uniform = (torch.arange(count) + 0.5) / count
    shares = (logits[0].float() / 0.7).softmax(-1)
    tokens, logps = tokens_at(logits.expand(count, -1), 0.7, uniform, END)
    drawn = torch.bincount(tokens, minlength=2500)
    assert bool((tokens.diff() >= 0).all()) and int(drawn[::7].sum()) == 0
    assert ((drawn - shares * count).abs() < 1.5).all()
    torch.testing.assert_close(logps, shares[tokens].log(), rtol=1e-5, atol=1e-5)
    likeliest = tokens_at(logits, 0.7, None, END)
    expected = tokens_from(logits.float() / 0.7, None, END)
    assert torch.equal(likeliest[0], expected[0])
    torch.testing.assert_close(likeliest[1], expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_without_a_distribution_ends(broken: float, way: str) -> None:
    logits = torch.zeros(3, 40)
    logits[1, 39] = broken
    tokens, logps = tokens_at(logits, 1.0, torch.full((3,), 0.5), END)
    assert int(tokens[1]) == END and logps.isnan().tolist() == [False, True, False]


def test_prompts_go_through_the_weights_of_the_pass(way: str, passes: list[int]) -> None:
    """No module is called, so no weight is laid out for one."""
    model = model_of("qwen2")
    assert sampling_obstacle(model) is None
    forward = inspect.unwrap(type(model.model).forward).__code__
    called: list[Any] = []
    sys.setprofile(lambda frame, *_: called.append(1) if frame.f_code is forward else None)
    try:
        generate(model, ROWS, [[row] for row in range(len(ROWS))], SamplingParams(3, (END,)))
    finally:
        sys.setprofile(None)
    assert passes and not called
