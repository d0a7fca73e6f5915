"""Load balance of a mixture's experts: figures, DeepSeek's bias update, the sequence-wise loss.

transformers has the auxiliary loss of Switch Transformers for most families, and trl adds it. What
they lack is here: routers with a correction bias (`e_score_correction_bias`: DeepSeek-V3, GLM-4)
never have it updated, and the loss that DeepSeek balances sequences with is not there.
`BiasUpdate` is a callback for any trainer of transformers. Knows modules and tensors; what our
trainer makes of them is rl_reasoner.training.expert_balance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from rl_reasoner.errors import UserError
from rl_reasoner.kernels import packing
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.moe.experts import ExpertLoad, routers

_BIAS = "e_score_correction_bias"


def balance_figures(shares: Sequence[Sequence[float]]) -> dict[str, float]:
    """Metrics of the experts' shares of load, one list (summing to 1) a layer.

    `max_over_mean`: the busiest expert's load over the mean, in the worst layer (1 is even; less
    1, it is the "maximal violation" of arXiv 2408.15664). `entropy`: of the shares, over the
    largest possible, in the mean of the layers. `dead`: experts without a token, of all layers.
    """
    worst = max(max(layer) * len(layer) for layer in shares)
    entropies = [
        -sum(share * math.log(share) for share in layer if share > 0) / math.log(len(layer))
        for layer in shares
    ]
    return {
        "experts/max_over_mean": worst,
        "experts/entropy": sum(entropies) / len(entropies),
        "experts/dead": float(sum(share == 0.0 for layer in shares for share in layer)),
    }


# ------------------------------------------------------------------------------ the bias update


def updated_bias(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """b_i + u sign(mean load - load_i), for (experts,) biases and counts.

    Auxiliary-loss-free balancing: arXiv 2408.15664, algorithm 1; DeepSeek-V3 (arXiv 2412.19437),
    section 2.1.2, with u = 0.001. The bias takes part in the choice alone, not in the gates.
    """
    counts = counts.to(bias.device, torch.float32)
    return bias + rate * torch.sign(counts.mean() - counts).to(bias.dtype)


class BiasUpdate(TrainerCallback):  # type: ignore[misc]
    """Updates the correction bias of every router of `model` once an optimizer step.

    By the load of the step's passes with gradients, of all processes. Raises `UserError` when the
    routers have no such bias, or an adapter is trained: its checkpoints do not hold the bias.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        base = base_of(model)
        self._rate = rate
        self._routers: dict[str, Any] = {
            name: router for name, router in routers(base) if hasattr(router, _BIAS)
        }
        if not self._routers:
            raise UserError(
                "router_bias_update (router_bias in a recipe) is for routers with a correction "
                f"bias, as DeepSeek-V3's; {type(base).__name__} has none: use router_aux_loss_coef "
                "(router_aux) or router_sequence_loss_coef (router_sequence)"
            )
        if base is not getattr(model, "module", model):
            raise UserError(
                "router_bias_update (router_bias in a recipe) changes the policy itself, which an "
                "adapter (lora) leaves unchanged: use only one of them"
            )
        self._model = base
        self._load: ExpertLoad | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._load = ExpertLoad(self._model)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.remove()

    def remove(self) -> None:
        """Take its hooks off the model: a training that breaks off tells no callback."""
        if self._load is not None:
            self._load.remove()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = {} if self._load is None else self._load.take_counts()
        for name, router in self._routers.items():
            bias = getattr(router, _BIAS)
            here = counts.get(name, torch.zeros(len(bias))).to(bias.device, torch.float32)
            if args.world_size > 1:
                torch.distributed.all_reduce(here)
            with torch.no_grad():
                bias.copy_(updated_bias(bias, here, self._rate))


# --------------------------------------------------------------------------- the sequence's loss


@dataclass(frozen=True)
class Segments:
    """Which tokens make up a sequence. `of_token` (N,) gives each token's segment, of `count`.

    Sequence r is made of the segments `prompt[r]` and `own[r]`: prompts may be shared.
    """

    of_token: Tensor
    count: int
    prompt: Tensor
    own: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """(N, E) values of tokens -> (sequences, E) their sums."""
        table = values.new_zeros(self.count, values.shape[1]).index_add(0, self.of_token, values)
        return table[self.prompt] + table[self.own]


def packed_segments(packed: packing.Packed) -> Segments:
    """The sequences of a packed pass."""
    lengths: list[int] = []
    prompts: list[int] = []
    own: list[int] = []
    for group in packed.groups:
        prompt = len(lengths)
        lengths += [group.prompt, *group.rows]
        prompts += [prompt] * len(group.rows)
        own += range(prompt + 1, len(lengths))
    device = packed.input_ids.device
    of_token = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    sequences = (torch.tensor(segments, device=device) for segments in (prompts, own))
    return Segments(of_token.to(device), len(lengths), *sequences)


def padded_segments(mask: Tensor) -> Segments:
    """The sequences of a pass over padded rows with a mask (B, S)."""
    rows = torch.arange(len(mask), device=mask.device)
    padding, none = len(mask), len(mask) + 1
    of_token = torch.where(mask.bool(), rows[:, None], padding).flatten()
    return Segments(of_token, none + 1, torch.full_like(rows, none), rows)


def sequence_loss(affinities: Tensor, chosen: Tensor, segments: Segments) -> Tensor:
    """The mean over sequences of sum_i f_i P_i, for one layer; 1 where all is even.

    DeepSeek-V3 (arXiv 2412.19437), equations 17 to 20: f_i is the share of tokens that chose expert
    i, times experts / k; P_i the mean of the token's `affinities` (N, experts), which sum to 1.
    `chosen` (N, k). Gradients flow through P alone.
    """
    experts, k = affinities.shape[1], chosen.shape[1]
    taken = torch.zeros_like(affinities).scatter(1, chosen, 1.0)
    tokens = segments.sums(torch.ones_like(affinities[:, :1])).clamp(min=1)
    share = segments.sums(taken) / tokens * experts / k
    return (share * segments.sums(affinities) / tokens).sum(1).mean()


def affinities_of(router: nn.Module, logits: Tensor) -> Tensor:
    """(N, experts) the router's scores of all experts, summing to 1.

    Sigmoids for routers with a correction bias, as DeepSeek-V3's; else a softmax.
    """
    if not hasattr(router, _BIAS):
        return logits.softmax(-1, dtype=torch.float32)
    scores = logits.float().sigmoid()
    return scores / scores.sum(-1, keepdim=True)
