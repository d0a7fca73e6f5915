"""Values that the table of fields computes, and the fields that verl has no setting for."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from rl_reasoner.handover.fields import UNSET, Field, ValueOf
from rl_reasoner.handover.subject import Subject, is_mixture, start_source
from rl_reasoner.recipe.recipe import RecipeDumper

_RENDER_AS_IS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
KL = "the value as it is, with the unbiased gradient of the KL"


def text_template(subject: Subject) -> str:
    """A chat template for prompts that are texts: it adds what the tokenizer adds to one."""
    return (f"{{{{ {json.dumps(subject.bos)} }}}}" if subject.bos else "") + _RENDER_AS_IS


def most_tokens(subject: Subject) -> int:
    """The longest completion, in tokens."""
    return subject.stage.sampling.longest


def epsilon_high(subject: Subject) -> float:
    """The upper clip range; as the lower one where the recipe has none."""
    loss = subject.stage.loss
    return loss.epsilon if loss.epsilon_high is None else loss.epsilon_high


def of_kl(subject: Subject, place: str) -> bool:
    """Whether there is a KL term in `place`: "loss" or "reward"."""
    return subject.stage.loss.beta > 0 and subject.stage.loss.kl_in == place


def of_lora(name: str, default: Any = UNSET) -> ValueOf:
    """The adapter's setting `name`; `default` where the recipe has no adapter."""
    return lambda s: getattr(s.recipe.policy.lora, name) if s.recipe.policy.lora else default


def of_vllm(name: str, default: Any = UNSET) -> ValueOf:
    """vLLM's setting `name`; `default` where the stage does not sample by vLLM."""
    return lambda s: getattr(s.stage.vllm, name) if s.stage.vllm is not None else default


def overlong_tokens(subject: Subject) -> int:
    """The tokens at a completion's end in which a long one pays for its length."""
    return round(subject.stage.loss.overlong_share * most_tokens(subject))


def policy_path(subject: Subject) -> str:
    """The policy that training starts from, or the place of the one that a run has yet to make."""
    recipe, stage = subject.recipe, subject.stage
    start = recipe.start_of(stage)
    if start is not None:
        number = [one.name for one in recipe.stages].index(start) + 1
        return f"RUN/stages/{number}-{start}/policy"
    return start_source(recipe, stage)


def policy_field(setting: str) -> Field:
    """The field of the policy, by the engine's name for it."""
    return Field(
        "policy.source",
        {setting: policy_path},
        "a folder or a hub id",
        lambda s: policy_path(s).startswith("scratch:") or policy_path(s).endswith(".gguf"),
        "not what transformers opens: `rl-reasoner export POLICY FOLDER`, and name that folder",
    )


START = Field(
    "start",
    note="in `policy.source`",
    lost=lambda s: policy_path(s).startswith("RUN/"),
    else_does="it starts from what an earlier stage makes: `rl-reasoner train` those stages, and "
    "name that folder where RUN/… stands now",
)


OURS_ALONE = ("max_rl", "w_reinforce", "scalerl")
"""Algorithms that verl does not have by name."""
OTHERS_NOTE = f"with the fields below; not {', '.join(OURS_ALONE)}"
BY_NONE = (
    Field("system", note="in the prompts"),
    Field("tools", note="refused: `--to` hands over recipes of one turn"),
    Field("environment", note="refused: `--to` hands over recipes of one turn"),
    Field("controls", lost=lambda s: bool(s.recipe.controls)),
    Field("hacking_meter", note="it only watches"),
    Field(
        "run.device",
        note="cuda",
        lost=lambda s: s.recipe.run.device not in ("auto", "cuda"),
        else_does="trains on CUDA",
    ),
    Field("run.fp8"),
    Field("run.rewards_on", note="in its own workers (Ray)"),
    START,
    Field("reuse", note="nothing to do there"),
    Field("router_bias", lost=lambda s: s.stage.router_bias > 0),
    Field("freeze_router", lost=lambda s: s.stage.freeze_router),
    Field("router_sequence", lost=lambda s: s.stage.router_sequence > 0),
    Field("trainer", note="trl's own arguments", lost=lambda s: bool(s.stage.trainer)),
    Field("group.curriculum", lost=lambda s: bool(s.stage.group.curriculum)),
    Field("group.band"),
    Field("sampling.weights", note="by vLLM, in bf16"),
    Field(
        "sampling.keep_mask",
        lost=lambda s: s.stage.sampling.keep_mask,
        else_does="trains the policy on all tokens, also those that a cut-off took away",
    ),
    Field(
        "loss.aggregation",
        note="the reward file gives the weighted sum",
        lost=lambda s: s.stage.loss.aggregation != "sum_then_normalize",
        else_does="normalises the rewards' sum",
    ),
    Field(
        "loss.positive_advantage_weight",
        lost=lambda s: s.stage.loss.positive_advantage_weight != 1.0,
        else_does="weighs positive and negative advantages alike",
    ),
    Field("loss.mask_truncated", lost=lambda s: s.stage.loss.mask_truncated),
    Field("vllm.url", note="it starts its own"),
    Field("vllm.folder", note="it hands its weights over itself"),
    Field("vllm.timeout_s"),
)
"""The fields that verl has no setting for."""


def replays(else_does: str, note: str = "") -> Field:
    """The field of router replay, which matters to mixtures of experts."""
    return Field(
        "router_replay",
        note=note,
        lost=lambda s: s.stage.router_replay and is_mixture(start_source(s.recipe, s.stage)),
        else_does=else_does,
    )


def data_field(settings: Mapping[str, ValueOf]) -> Field:
    """The field of the data, by the engine's names for it."""
    return Field(
        "data",
        settings,
        "written out; rows' own `max_tokens` are left out",
        lambda s: any(task.row.get("max_tokens") for task in s.tasks),
        "rows' own max_tokens are left out: all have sampling.max_tokens",
    )


def template_field(settings: Mapping[str, ValueOf], note: str) -> Field:
    """The field of the template, by the engine's names for it."""
    return Field(
        "template",
        settings,
        note,
        lambda s: not s.template_known or _begins_unknown(s),
        lambda s: _BEGINS if _begins_unknown(s) else _GUESSED,
    )


_GUESSED = "taken for the policy's chat template, which was not at hand to look"
_BEGINS = (
    "texts begin without the token (BOS) that the policy's tokenizer may put before them: nothing "
    "at hand says whether it does"
)


def _begins_unknown(subject: Subject) -> bool:
    return not subject.chats and subject.bos is None


def longest_field(setting: str) -> Field:
    """The field of the longest completion, by the engine's name for it."""
    return Field(
        "sampling.max_tokens",
        {setting: most_tokens},
        "auto: its bound of 1,024",
        lambda s: s.stage.sampling.max_tokens == "auto",
        "the most that auto may come to, 1,024",
    )


def yaml_text(tree: Mapping[str, Any], comment: str) -> str:
    """`tree` as YAML under a line of comment."""
    dumped = yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
    return f"# {comment}\n{dumped}"
