"""Completions for prompts, outside the training step: for evaluation, chat and checks.

Generation is transformers' `generate`, in batches of equal-length-sorted prompts under a token
budget. Randomness is the caller's seed alone: the global generators are as they were afterwards, so
that evaluating in the middle of training changes no training number. Knows nothing of rewards.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rl_reasoner.errors import UserError
from rl_reasoner.policy import Policy
from rl_reasoner.prompts import Prompt

Force = Literal["chain", "direct"]
_BATCH_TOKENS = 32_768  # prompt and completion tokens of one batch, padding included


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion: its text, its length in tokens, and whether it was cut off at the limit."""

    text: str
    tokens: int
    truncated: bool


def prompt_ids(policy: Policy, prompt: Prompt, prefix: str = "") -> list[int]:
    """The token ids of a prompt, with the start of the completion (`prefix`) behind it.

    Raises `UserError` for a chat that the policy's tokenizer has no template for.
    """
    tokenizer = policy.tokenizer
    if isinstance(prompt, str):
        return list(tokenizer(prompt + prefix)["input_ids"])
    if not tokenizer.chat_template:
        raise UserError(
            f"the tokenizer of {policy.source} has no chat template: "
            "choose the prompt template plain, r1 or a text with {problem} in it"
        )
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text + prefix, add_special_tokens=False)["input_ids"])


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    max_tokens: int = 256,
    seed: int = 0,
    force: Force | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Rollout]]:
    """`samples` completions for each prompt; greedy at temperature 0.

    `force` "chain" begins each completion with an open `<think>` that may not close at once;
    "direct" begins it with an empty one. What was forced is part of the returned text. `progress`
    is called with the number of completions done since the last call.
    """
    prefix = {"chain": "<think>", "direct": "<think></think>", None: ""}[force]
    ids = [prompt_ids(policy, prompt, prefix) for prompt in prompts]
    found: list[list[Rollout]] = [[] for _ in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    jobs = [index for index in order for _ in range(samples)]
    model = policy.model
    was_training = model.training
    model.eval()
    devices = [policy.device] if policy.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            for batch in _batches(jobs, ids, max_tokens):
                outs = _generate(policy, [ids[i] for i in batch], temperature, max_tokens, force)
                for index, out in zip(batch, outs, strict=True):
                    found[index].append(_rollout(policy, out, prefix, max_tokens))
                if progress:
                    progress(len(batch))
    finally:
        model.train(was_training)
    return found


def _batches(jobs: Sequence[int], ids: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for index in jobs:  # sorted by length: the newest is the longest of its batch
        width = len(ids[index]) + max_tokens
        if not batches or (len(batches[-1]) + 1) * width > _BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def eos_ids(policy: Policy) -> list[int]:
    """Every token id that ends a completion: the tokenizer's, and the model's own ones."""
    declared = policy.model.generation_config.eos_token_id
    others = [] if declared is None else [declared] if isinstance(declared, int) else declared
    return list(dict.fromkeys([policy.tokenizer.eos_token_id, *others]))


def _generate(
    policy: Policy, ids: list[list[int]], temperature: float, max_tokens: int, force: Force | None
) -> list[list[int]]:
    tokenizer = policy.tokenizer
    width = max(map(len, ids))
    pad = tokenizer.pad_token_id
    rows = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=policy.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids])
    options: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    )
    if force == "chain":
        closing = tokenizer("</think>", add_special_tokens=False)["input_ids"][:1]
        options["begin_suppress_tokens"] = closing
    out = policy.model.generate(
        input_ids=rows,
        attention_mask=mask.to(policy.device),
        max_new_tokens=max_tokens,
        eos_token_id=eos_ids(policy),
        pad_token_id=pad,
        **options,
    )
    return out[:, width:].tolist()  # type: ignore[no-any-return]


def _rollout(policy: Policy, ids: list[int], prefix: str, max_tokens: int) -> Rollout:
    ends = set(eos_ids(policy))
    length = next((n + 1 for n, token in enumerate(ids) if token in ends), len(ids))
    text = policy.tokenizer.decode(ids[:length], skip_special_tokens=True)
    truncated = length == max_tokens and ids[length - 1] not in ends
    return Rollout(prefix + text, length, truncated)
