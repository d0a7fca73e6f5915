"""Whether a model may be packed and sampled by our layouts: proved on the model itself.

`packing_obstacle` holds a packed training pass against the rows alone, `sampling_obstacle` the
engine's prompts and tokens, one by one, against the rows as a whole; each compares the hidden
states of some dozens of tokens, in the mode (training or not) that the model is in. Windows of the
attention are narrow meanwhile: what a model does beyond 4096 tokens it then does beyond three, so
that short rows show it. Weights, modes and random states are left as they were. Knows models and
layouts; nothing of trainers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from rl_reasoner.kernels.fused_modules import fused_modules
from rl_reasoner.kernels.own_code import changed_everywhere
from rl_reasoner.kernels.packing import Unsupported, arguments, attention_of, pack
from rl_reasoner.rollout import decode_pass
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.kv_cache import CachedRow, KVCache
from rl_reasoner.rollout.prefill import Prefill, PromptPart
from rl_reasoner.rollout.sampling_params import SamplingParams

# Rotary embeddings that depend on the length of the batch's longest row, not on positions alone.
_ROPE_BY_LENGTH = ("dynamic", "longrope")
_LAYERS = ("full_attention", "sliding_attention")
_WINDOWS = ("window", "window_size")  # what names of settings end with
_NARROW = 3  # tokens of the smallest window while a model is tried
_TOKENS = 5  # of a completion: more than the window
_PROMPTS = (6, 4)  # their lengths, two rows each
_runs: "WeakKeyDictionary[nn.Module, bool]" = WeakKeyDictionary()


def obstacle(causal_lm: nn.Module) -> str | None:
    """Why a model's config or modules rule out our layouts, or None."""
    config: Any = causal_lm.config
    text = config.get_text_config()
    if text is not config:
        return "a multimodal model"
    if not getattr(causal_lm, "_supports_attention_backend", False):
        return "a model without transformers' attention interface"
    kinds = set(getattr(text, "layer_types", None) or ()) - set(_LAYERS)
    if kinds:
        return f"layers of type {min(kinds)}"
    by_length = _rope_types(getattr(text, "rope_parameters", None)) & {*_ROPE_BY_LENGTH}
    if by_length:
        return f"rotary embeddings of the type {min(by_length)}"
    if any(isinstance(m, nn.Dropout) and m.p > 0 and m.training for m in causal_lm.modules()):
        return "dropout"
    return None


def _rope_types(parameters: Any) -> set[str]:
    """The types in a config's rotary parameters: of the whole model, or of each kind of layer."""
    if not isinstance(parameters, dict):
        return set()
    nested = [_rope_types(value) for value in parameters.values()]
    return {str(parameters.get("rope_type"))}.union(*nested)


def packing_obstacle(causal_lm: nn.Module) -> str | None:
    """Why the training pass may not pack rows for a model, or None."""
    return _obstacle(causal_lm, _packs)


def fusing_obstacle(causal_lm: nn.Module) -> str | None:
    """Why kernels.fused_modules may not stand in for modules of a model that packs, or None."""
    return changed_everywhere() or _obstacle(causal_lm, _fuses)


def sampling_obstacle(causal_lm: nn.Module) -> str | None:
    """Why `engine.generate` may not sample from a model, or None.

    Notes besides whether `DecodePass` may run the model's new tokens.
    """
    reason = _obstacle(causal_lm, _decodes)
    able = reason is None and decode_pass.decode_obstacle(causal_lm) is None
    decode_pass.proved(causal_lm, able and _obstacle(causal_lm, _passes) is None)
    return reason


def engine_runs(causal_lm: nn.Module) -> bool:
    """Whether the engine may sample from a model in evaluation mode; each model is tried once."""
    if causal_lm not in _runs:
        with in_mode(causal_lm, training=False):
            _runs[causal_lm] = sampling_obstacle(causal_lm) is None
    return _runs[causal_lm]


def fused_head_agrees(causal_lm: Any, temperature: float) -> bool:
    """Whether trl's fused head scores tokens as the model's own logits do, by `temperature`.

    It takes the output matrix and the scales that it knows; a head may do more.
    """
    rows = _tokens(causal_lm, 2, _TOKENS)
    with torch.no_grad(), in_mode(causal_lm, training=False):
        logits = causal_lm(input_ids=rows, use_cache=False).logits[:, :-1].float() / temperature
        fused = causal_lm(input_ids=rows, labels=rows, fused_lm_head=True).log_probs
    own = logits.log_softmax(-1).gather(2, rows[:, 1:, None]).squeeze(2)
    exact = next(causal_lm.parameters()).dtype == torch.float32
    return bool((fused.float() - own).abs().mean() < (3e-3 if exact else 0.1))


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put all of the model in training or evaluation mode inside; each module's own mode after."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


# ------------------------------------------------------------------------------------ the proofs


def _obstacle(causal_lm: nn.Module, proof: Callable[[Any], bool]) -> str | None:
    reason = obstacle(causal_lm)
    if reason is not None:
        return reason
    device = next(causal_lm.parameters()).device
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(_narrowed(causal_lm))
        before = _random_state(device)
        try:
            proved = proof(causal_lm)
        except Unsupported as error:
            return str(error)
        except Exception as error:  # code of any model's own
            return f"a model that cannot be packed ({type(error).__name__}: {error})"
        if not torch.equal(before, _random_state(device)):
            return "the model's own dropout or noise"
    return None if proved else "a model that computes different values in our layout of its tokens"


def _random_state(device: torch.device) -> Tensor:
    """The state of the random generator that a model on `device` uses."""
    cuda = device.type == "cuda"
    return torch.cuda.get_rng_state(device) if cuda else torch.get_rng_state()


@contextmanager
def _narrowed(causal_lm: nn.Module) -> Iterator[None]:
    """Shrink every attention window of the model, in config and modules, to a few tokens inside."""
    config: Any = causal_lm.config
    holders: list[Any] = [config.get_text_config(), *causal_lm.modules()]
    windows = [
        (vars(holder), name, value)
        for holder in holders
        for name, value in vars(holder).items()
        if name.endswith(_WINDOWS) and type(value) is int and value > 0
    ]
    narrow = {width: _NARROW + i for i, width in enumerate(sorted({v for _, _, v in windows}))}
    try:
        for settings, name, value in windows:
            settings[name] = min(value, narrow[value])
        yield
    finally:
        for settings, name, value in windows:
            settings[name] = value


def _packs(causal_lm: Any) -> bool:
    """Compare a packed pass over two prompts with two rows each with one over the four rows."""
    rows = _tokens(causal_lm, 4, _PROMPTS[0] + _TOKENS)
    rows[1::2, : _PROMPTS[0]] = rows[::2, : _PROMPTS[0]]
    packed = pack(rows, torch.ones_like(rows), _TOKENS)
    assert packed is not None
    with attention_of(causal_lm):
        states = causal_lm.base_model(**arguments(packed)).last_hidden_state[0]
    alone = causal_lm.base_model(input_ids=rows, use_cache=False).last_hidden_state
    return _equal(states, alone[:, _PROMPTS[0] - 1 : -1].flatten(0, 1))


def _fuses(causal_lm: Any) -> bool:
    """Compare a packed pass through fused modules with the rows alone, through the model's own.

    The gradients of what is trained, too, where the weights are whole.
    """
    rows = _tokens(causal_lm, 4, _PROMPTS[0] + _TOKENS)
    rows[1::2, : _PROMPTS[0]] = rows[::2, : _PROMPTS[0]]
    packed = pack(rows, torch.ones_like(rows), _TOKENS)
    assert packed is not None
    trained = [p for p in causal_lm.base_model.parameters() if p.requires_grad]
    if any(type(p) is not nn.Parameter for p in trained):
        trained = []  # shards, which a pass of this process alone does not train

    def gradients(states: Tensor) -> list[Tensor | None]:
        if not trained:
            return []
        weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype, device=states.device)
        loss = (states * weights.view_as(states)).sum()
        return [*torch.autograd.grad(loss, trained, allow_unused=True)]

    with torch.enable_grad(), _without_checkpoints(causal_lm):
        with attention_of(causal_lm), fused_modules(causal_lm):
            states = causal_lm.base_model(**arguments(packed)).last_hidden_state[0]
            ours = gradients(states)
        alone = causal_lm.base_model(input_ids=rows, use_cache=False).last_hidden_state
        expected = alone[:, _PROMPTS[0] - 1 : -1].flatten(0, 1)
        theirs = gradients(expected)
    return _equal(states.detach(), expected.detach()) and all(map(_alike, ours, theirs))


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two gradients are equal up to rounding; one that is not there is none."""
    if one is None or other is None:
        return not any(bool(g.count_nonzero()) for g in (one, other) if g is not None)
    if (found := _numbers(one, other)) is None:
        return False
    one, other = found
    apart, size = (one - other).float().norm(), other.float().norm()
    return bool(apart <= (1e-2 if one.dtype == torch.float32 else 0.3) * size + 1e-6)


@contextmanager
def _without_checkpoints(model: nn.Module) -> Iterator[None]:
    """Inside, no module computes its activations anew in the backward pass."""
    modules = [m for m in model.modules() if vars(m).get("gradient_checkpointing")]
    for module in modules:
        vars(module)["gradient_checkpointing"] = False
    try:
        yield
    finally:
        for module in modules:
            vars(module)["gradient_checkpointing"] = True


def _decodes(causal_lm: Any) -> bool:
    """Compare rows of two unequal prompts, sampled token by token, with one pass over them."""
    first, second = _PROMPTS
    numbers = _tokens(causal_lm, 1, first + second)[0].tolist()
    prompts = [part for part in (numbers[:first], numbers[first:]) for _ in range(2)]
    states: list[Tensor] = []  # of each pass, as the head gets them
    handle = causal_lm.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: states.append(inputs[0])
    )
    try:
        keys = [[row] for row in range(len(prompts))]
        drawn = generate(causal_lm, prompts, keys, SamplingParams(max_tokens=_TOKENS, ends=(-1,)))
        rows = [[*prompt, *c.ids] for prompt, c in zip(prompts, drawn, strict=True)]
        longest = max(map(len, rows))
        padded = [row + row[:1] * (longest - len(row)) for row in rows]  # unseen by the row
        causal_lm(input_ids=torch.tensor(padded, device=states[0].device), use_cache=False)
    finally:
        handle.remove()
    *passes, full = states
    alone = [torch.stack((full[0, first - 1], full[2, second - 1]))]  # in the passes' order
    for step in range(_TOKENS - 1):
        places = [len(prompt) + step for prompt in prompts]
        alone.append(full[range(len(places)), places])
    return _equal(torch.cat([s.flatten(0, -2) for s in passes]), torch.cat(alone))


def _passes(causal_lm: Any) -> bool:
    """Compare `DecodePass` over new tokens of two unequal prompts' rows with a pass over all."""
    first, second = _PROMPTS
    rows = _tokens(causal_lm, 4, first + _TOKENS)
    prompts = [rows[0, :first], rows[2, :second]]
    new = rows[:, first:]
    cache = KVCache(rows.device, _TOKENS)
    decoding = decode_pass.DecodePass(causal_lm)
    decoding.states = []
    cached = cache.add_prompts(_PROMPTS, [2, 2])
    layout = Prefill([PromptPart(prompt, 0, prompt.length) for prompt in cached], cache)
    decoding.prefill(torch.cat(prompts), layout, torch.arange(1, device=rows.device))
    cache.change([], [CachedRow(cached[group]) for group in (0, 0, 1, 1)])
    for step in range(_TOKENS):
        decoding.step(new[:, step], cache)
        cache.advance()
    alone = []
    for row, prompt in enumerate([prompts[0], prompts[0], prompts[1], prompts[1]]):
        ids = torch.cat((prompt, new[row]))[None]
        states = causal_lm.base_model(input_ids=ids, use_cache=False).last_hidden_state
        alone.append(states[0, len(prompt) :])
    return _equal(torch.stack(decoding.states, 1), torch.stack(alone))


def _tokens(causal_lm: Any, rows: int, length: int) -> Tensor:
    """(rows, length) token ids, all different where the vocabulary allows."""
    numbers = torch.arange(1, rows * length + 1, device=next(causal_lm.parameters()).device)
    size = causal_lm.config.get_text_config().vocab_size
    return (numbers * 7).remainder(size).view(rows, length)


def _numbers(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both with 0 where neither has a number; None where one of them alone has one."""
    finite = one.isfinite()
    if not torch.equal(finite, other.isfinite()):
        return None
    return one.where(finite, 0), other.where(finite, 0)


def _equal(states: Tensor, expected: Tensor) -> bool:
    """Whether states (..., hidden) are equal up to rounding.

    In low precision a few may be apart: a mixture of experts takes other experts for them.
    """
    if (found := _numbers(states, expected)) is None:
        return False
    states, expected = found
    apart = (states - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-9)
    if states.dtype == torch.float32:
        return bool((apart < 3e-3).all())
    return bool(apart.median() < 0.1)
