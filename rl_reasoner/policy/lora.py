"""Low-rank adapters: putting one on a policy, merging it, and which weights it changes.

In a dense policy these are linear layers. In a mixture of experts most weights are neither: the
experts of a layer are one three-dimensional parameter, the router is a bare matrix. peft reaches
them as `target_parameters`, and its own "all-linear" takes the router along in some families and
leaves the experts out in others (GPT-OSS, Qwen2-MoE). Here "all-linear" means the same everywhere:
linear layers and experts, never the router, which has to be named. Knows modules; nothing of
recipes.

In these models peft also takes the names of dense feed-forward layers for those of experts, so the
layers that bear them (shared experts, dense layers) are named to it as parameters, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rl_reasoner.errors import UserError, first_line, unknown
from rl_reasoner.moe.experts import gates_of, routers
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.adapter import Lora

ALL = "all-linear"
_TAKEN = {"gate_proj", "up_proj", "down_proj"}  # that peft renames to the experts'


def add_lora(policy: Policy, lora: Lora, seed: int) -> None:
    """Add a new low-rank adapter to the policy's model; `seed` initialises it.

    On linear layers and experts, on the router only if it is named (see `lora_targets`). A folder
    that the model is from is named whole in the adapter, which so opens wherever one stands.
    """
    base = policy.model.name_or_path
    if base and Path(base).is_dir():
        policy.model.name_or_path = str(Path(base).absolute())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy.model = adapted_model(policy.model, lora)


def adapted_model(model: Any, lora: Lora) -> Any:
    """`model` with a new adapter as a recipe describes it; raises `UserError` where none fits."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        **lora_targets(model, lora.targets, lora.dropout),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:  # a regular expression matches no layer, or one of another kind
        named = (name for name, module in model.named_modules() if _is_linear(module))
        raise UserError(
            f"lora.targets {lora.targets!r}: {first_line(error)} A regular expression is of whole "
            f"names, such as {next(named, 'none here')}"
        ) from error


@contextmanager
def with_lora(policy: Policy, lora: Lora | None, seed: int) -> Iterator[None]:
    """Inside, the policy has the adapter that it will be trained with; afterwards none, again."""
    if lora is None:
        yield
        return
    before = [(parameter, parameter.requires_grad) for parameter in policy.model.parameters()]
    add_lora(policy, lora, seed)
    try:
        yield
    finally:
        policy.model = policy.model.unload()
        for parameter, trained in before:
            parameter.requires_grad_(trained)


def merge_adapter(policy: Policy) -> bool:
    """Merge a policy's adapter into its base model; return whether it had one.

    Raises `UserError` for one that has no merged form (prompts and prefixes that are learned).
    """
    from peft import PeftModel

    if not isinstance(policy.model, PeftModel):
        return False
    if policy.model.active_peft_config.is_prompt_learning:
        kind = policy.model.active_peft_config.peft_type.value
        raise UserError(
            f"policy {policy.source!r} is an adapter of type {kind}, which cannot be merged "
            "into its base: give the base, or an adapter of type LORA"
        )
    _untie(policy.model)
    try:
        policy.model = policy.model.merge_and_unload().requires_grad_(True)
    except RuntimeError as error:  # a bias of its own on a layer without one, for example
        what = f"policy {policy.source!r}: its adapter has no merged form"
        raise UserError(f"{what}: {first_line(error)}") from error
    return True


def _untie(model: Any) -> None:
    """Give head and embedding weights of their own, where one weight has an adapter at one of them.

    Merged into the weight that they share, it would change the other one, too.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    text = base.config.get_text_config()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = [layer for layer in (head, embedding) if isinstance(layer, BaseTunerLayer)]
    if not adapted or not text.tie_word_embeddings:
        return
    for layer in adapted:
        own = layer.get_base_layer()
        own.weight = nn.Parameter(own.weight.detach().clone(), own.weight.requires_grad)
    base.config.tie_word_embeddings = text.tie_word_embeddings = False


def lora_targets(model: Any, targets: str | Sequence[str], dropout: float = 0.0) -> dict[str, Any]:
    """`target_modules` and `target_parameters` for peft's `LoraConfig`.

    `targets`: "all-linear", or last parts of names, of linear layers (`q_proj`), of fused experts
    (`gate_up_proj`) or of the router (`gate`; `router` in GPT-OSS). Any other text is peft's own
    (a regular expression). Raises `UserError` for a name that is not there, and for `dropout` where
    experts are meant, for which peft has none.
    """
    if isinstance(targets, str) and targets != ALL:
        return {"target_modules": targets}
    head = model.get_output_embeddings()
    gates: set[int] = set()
    if targets == ALL:
        gates = {id(gate) for gate in gates_of(model)}
    linear = [
        name
        for name, module in model.named_modules()
        if _is_linear(module) and module is not head and id(module) not in gates
    ]
    matrices = {_last(name): f"{_last(name)}.weight" for name, _ in routers(model)}
    taken = _TAKEN if matrices else set()
    experts = {
        _last(name): ".".join(name.split(".")[-2:])
        for name, parameter in model.named_parameters()
        if parameter.dim() == 3 and ".experts." in name
    }
    wanted = {*map(_last, linear), *experts} if targets == ALL else set(targets)
    modules = {name for name in wanted if any(f".{full}".endswith(f".{name}") for full in linear)}
    fused = sorted(
        [{**experts, **matrices}[name] for name in wanted & {*experts, *matrices}]
        + [f"{name}.weight" for name in modules if _last(name) in taken]
    )
    for name in sorted(wanted - modules - {*experts, *matrices}):
        known = {*map(_last, linear), *experts, *matrices}
        raise unknown("layer", name, known, owner=f"lora.targets: {type(model).__name__}")
    if fused and dropout:
        raise UserError(
            f"lora.dropout is not possible for experts and routers ({', '.join(fused)}): set it to "
            f"0, or name other targets ({', '.join(sorted(modules))})"
        )
    if not modules and not fused:
        raise UserError(f"lora.targets: {type(model).__name__} has no linear layers")
    plain = sorted(name for name in modules if _last(name) not in taken)
    peft_targets: dict[str, Any] = {"target_modules": plain}
    return {**peft_targets, "target_parameters": fused} if fused else peft_targets


def _is_linear(module: Any) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _last(name: str) -> str:
    return name.rsplit(".", 1)[-1]
