"""Whether a vLLM server computes the policy at hand: asked of a few prompts, before a run.

The server gets the weights, answers some prompts greedily, and the policy is passed over what it
answered: log-probabilities agree but for rounding, and so do the likeliest tokens but for ties.
A new adapter computes nothing, and a server that ignored it would pass. So it is asked with the
adapter stirred, and has to be nearer to the policy with it than without. Knows models and the
server; nothing of trainers.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rl_reasoner.rollout.agreement import in_mode
from rl_reasoner.rollout.completions import SampledCompletion
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.vllm_server.adapters import stirred
from rl_reasoner.rollout.vllm_server.connection import START_COMMAND
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts

_TOKENS = 16  # of an answer
_BEARABLE = 0.1  # nats in the mean; rounding to bf16 makes some hundredths
ASKED_PROMPTS = 4
"""How many prompts a server is asked."""


@dataclass(frozen=True)
class ServerAgreement:
    """Over `tokens` greedy tokens of the server: which share is the policy's own likeliest, and how
    far log-probabilities are apart (mean and largest, nats)."""

    tokens: int
    equal: float
    mean: float
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.equal:.1%} of {self.tokens} greedy tokens are the policy's own, "
            f"log-probabilities {self.mean:.2g} nats apart (at most {self.largest:.2g})"
        )


def check_server(
    rollouts: VllmRollouts,
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    longest: int,
) -> ServerAgreement:
    """Give the server the weights of `model`, and compare its answers to a few `prompts`.

    `longest`: the completions to come. Raises `ServerFailed` for a server that cannot be used.
    """
    named = rollouts.model()
    room, needed = named.get("max_model_len"), max(map(len, prompts)) + longest
    if isinstance(room, int) and room < needed:
        raise ServerFailed(
            f"{rollouts.connection} serves {named.get('id')} with --max-model-len {room}; prompts "
            f"and completions come to {needed} tokens"
        )
    rollouts.choose(model)
    with stirred(model) if rollouts.by_adapter else nullcontext():
        rollouts.load(model, None)
        return _compared(rollouts, model, prompts[:ASKED_PROMPTS], ends, longest)


def _compared(
    rollouts: VllmRollouts,
    model: Any,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    longest: int,
) -> ServerAgreement:
    """The answers to all `prompts` by what the server was given, which is `model`."""
    keys = [(row,) for row in range(len(prompts))]
    only = SamplingParams(max_tokens=1, ends=tuple(ends), temperature=2.0, top_k=1)
    if any(abs(done.logps[0]) > 1e-3 for done in rollouts.generate(prompts, keys, only)):
        raise ServerFailed(
            f"{rollouts.connection} gives log-probabilities of the raw logits, not those that "
            f"tokens are drawn with: start it with {START_COMMAND}"
        )
    greedy = SamplingParams(max_tokens=min(_TOKENS, longest), ends=tuple(ends), temperature=0.0)
    answers = rollouts.generate(prompts, keys, greedy)
    found = server_agreement(model, prompts, answers)
    if rollouts.by_adapter:
        with model.disable_adapter():
            without = server_agreement(model, prompts, answers)
        if not found.mean < without.mean:
            raise ServerFailed(
                f"{rollouts.connection} takes the policy's adapter, and answers as without it "
                f"({found}). For a server that is started without --enable-lora it is merged"
            )
    if not found.mean <= _BEARABLE:
        served = rollouts.model().get("id")
        raise ServerFailed(
            f"{rollouts.connection} serves {served}, which is not this policy, or not "
            f"computed as it is: {found}"
        )
    return found


def server_agreement(
    model: nn.Module, prompts: Sequence[Sequence[int]], answers: Sequence[SampledCompletion]
) -> ServerAgreement:
    """The greedy `answers` of a server against a pass of the model over each."""
    gaps: list[torch.Tensor] = []
    equal: list[torch.Tensor] = []
    device = next(model.parameters()).device
    with torch.no_grad(), in_mode(model, training=False):
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([[*prompt, *answer.ids]], device=device)
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().cpu()
            own = torch.tensor(answer.ids)
            logps = logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
            gaps.append((logps - torch.tensor(answer.logps)).abs())
            equal.append(logits.argmax(-1) == own)
    gap, same = torch.cat(gaps), torch.cat(equal)
    share = same.float().mean().item()
    return ServerAgreement(len(gap), share, gap.mean().item(), gap.max().item())
