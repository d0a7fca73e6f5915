"""`GRPOConfig`: every setting of `GRPOTrainer` that trl's config lacks, with what rules them out.

Knows no trainer; what a field does is said where it is read (packed_forward, reward_pass, ...).
"""

import argparse
import inspect
import math
from collections.abc import Mapping
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import torch
import trl

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.recipe.algorithms import ALGORITHMS, algorithm_settings
from rl_reasoner.rollout.long_prompts import CHOICES
from rl_reasoner.rollout.sampling_weights import check_choice
from rl_reasoner.training.advantages import ESTIMATORS

_GIVEN = "_given"
_GONE = {  # what other versions of trl and transformers had, and tutorials have
    "max_prompt_length": "trl has no max_prompt_length any more: prompts are never cut. Rows that "
    "are too long can be left out (long_prompts='skip')",
    "warmup_ratio": "warmup_ratio is warmup_steps now: below 1 it is a share of all steps",
    "overlap": "overlap is gone: it brought nothing on two cores. Leave it out",
}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


class _Unset:
    """What a parser passes for a setting that nobody wrote: `default`, told from the same value."""

    def __init__(self, default: Any) -> None:
        self.default = default

    def __repr__(self) -> str:  # in `--help`
        return str(self.default)


class _UnsetTrue(_Unset, int):
    """`_Unset(True)` as the default of a field: not `True` itself, and a true number to others."""

    def __new__(cls) -> "_UnsetTrue":
        return int.__new__(cls, True)

    def __init__(self) -> None:
        super().__init__(True)


class _Written(argparse.Action):
    """An argument whose value is `_Unset` until a command line, or a parser's file, has one."""

    def __init__(self, option_strings: Any, dest: str, default: Any = None, **kwargs: Any) -> None:
        unset = default if isinstance(default, _Unset) else _Unset(default)
        super().__init__(option_strings, dest, default=unset, **kwargs)

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Take what was written; `--no_NAME` is False, as of any switch."""
        negated = str(option).replace("-", "_").startswith("__no_")
        setattr(namespace, self.dest, False if negated else values)


class _RemembersGiven:
    """A dataclass that knows what it was given: `beta=0.0` is the default, but no slip if written.

    `__new__` in the dataclass itself would hide its fields from those who ask for its signature.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        config = super().__new__(cls)
        kind: Any = cls
        names = [f.name for f in fields(kind) if f.init]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        taken = inspect.signature(kind.__init__).parameters  # a subclass may have an own one
        if more := next((name for name in given if name not in (*names, *taken)), None):
            if more in _GONE:
                raise UserError(_GONE[more])
            if all(one.kind is not one.VAR_KEYWORD for one in taken.values()):
                raise unknown("field", more, names, owner=cls.__name__)
        written = {name: value for name, value in given.items() if not isinstance(value, _Unset)}
        if len(written) < len(given):  # of a parser: a subclass's own fields do not tell
            written = {n: v for n, v in written.items() if _tells(cls, n) or v != _default(cls, n)}
        elif len(written) == len(names) and not _is_resolved(cls, written):
            # Of a parser that knows no `_Unset`, or of `replace`: each default is passed too.
            written = {n: value for n, value in written.items() if value != _default(cls, n)}
        vars(config)[_GIVEN] = written  # no field: a config is compared and saved without it
        return config

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.default if isinstance(value, _Unset) else value)


@dataclass
class GRPOConfig(trl.GRPOConfig, _RemembersGiven):  # type: ignore[misc]
    """trl's `GRPOConfig`, with algorithms by name, and defaults that also run on a CPU.

    Where trl would turn bf16 on (nothing said about precision) and the machine has no accelerator,
    this stays in fp32, because trl's own default does not start there. The speed-ups, which are on,
    change no gradient, and the rollouts keep their distribution, not their random numbers
    (docs/trainer.md).
    """

    # The speed-ups: each has a field that turns it off.
    share_prompts: bool = _setting(
        True, "Compute a group's prompt once, and no padding, in the training pass."
    )
    skip_zero_advantage: bool = _setting(
        True, "Do not compute rows without advantage where they add exactly nothing."
    )
    regroup_rows: bool = _setting(
        True, "Keep a group's rows together in the micro-batches of an optimizer step."
    )
    balance_processes: bool = _setting(
        True, "Several processes: exchange groups, so that all have as many tokens."
    )
    reuse_log_probs: bool = _setting(
        True, "Take old log-probs from the first training pass where it gives them."
    )
    fast_rollouts: bool = _setting(
        True, "Sample with rl_reasoner.rollout.engine where trl would call `generate`."
    )
    sampling_weights: str = _setting(
        "auto",
        "Sample with the policy's own weights (own), with copies in bf16 or int8 (bfloat16, int8), "
        "or with those in bf16 where the policy is large and the processor has it (auto).",
    )
    overlap_rewards: bool = _setting(
        True, "Score completions while others are being sampled (@reward functions)."
    )

    # The objective.
    algorithm: str | None = _setting(
        None,
        "Sets the fields that make a named algorithm: grpo, dr_grpo, dapo, gspo, "
        "cispo, rloo, reinforce++, reinforce++-baseline, max_rl, w_reinforce, "
        "scalerl.",
    )
    positive_advantage_weight: float = _setting(
        1.0,
        "Multiply positive advantages by this; less than 1 weighs what was wrong more "
        "(arXiv 2506.01347: 0.1, and 0 for NSR).",
    )
    kl_estimator: str = _setting(
        "k3", "Estimator of the KL that beta weighs: k1, k2 or k3 (trl's)."
    )
    kl_in: str = _setting(
        "loss", "Apply beta times the KL in the 'loss' (trl's) or in the 'reward'."
    )
    overlong_share: float = _setting(
        0.0,
        "Soft overlong punishment over this last share of max_completion_length "
        "(DAPO, equation 13: 0.2); 0 is off.",
    )
    correct_sampling: bool | None = _setting(
        None,
        "Weigh tokens by their probability in training over that in sampling, where "
        "the engine samples: trl's vllm_importance_sampling_mode and _clip_* say how. "
        "Default: where sampling_weights are rounded.",
    )

    keep_sampling_mask: bool = _setting(
        False,
        "Under top_p, top_k, min_p: train the policy on the set of tokens that each token was "
        "drawn from (DeepSeek-V3.2), not on all; old and reference log-probs too.",
    )

    # The prompts.
    dynamic_sampling: int = _setting(
        0,
        "In at most this many rounds per batch, groups of equal rewards are replaced "
        "by those of other prompts (DAPO, equation 11); 0 is off.",
    )
    prompt_schedule: bool = _setting(
        False, "Draw the prompts that are neither too easy nor too hard more often."
    )
    level_band: list[float] | None = field(
        default=None,
        metadata={
            "help": "Draw levels (the rows' column `level`) whose success is in this band, "
            "[low, high], or nearest to it."
        },
    )
    long_prompts: str = _setting(
        "stop", "What to do about rows that exceed the model's positions: stop or skip."
    )

    # The rewards.
    isolate_rewards: bool = _setting(
        True, "Run reward functions in killable processes of their own."
    )
    rewards_on: str = _setting(
        "here", "Where @reward functions run: here, or on a cluster of Ray (ray)."
    )
    reward_timeout_s: float = _setting(60.0, "Seconds for a reward's call on one completion.")
    reward_batch_timeout_s: float = _setting(
        600.0, "Seconds for all calls of a reward on one batch."
    )
    reward_memory_mb: int = _setting(8192, "Memory that a reward's process may take, in MiB.")

    # Mixtures of experts. Replay gives other numbers than trl: off here, on in recipes.
    router_replay: bool = _setting(
        False, "Mixtures of experts: train with the experts that sampling chose."
    )
    router_bias_update: float = _setting(
        0.0, "DeepSeek's u: each step moves the routers' correction bias by it."
    )
    router_sequence_loss_coef: float = _setting(
        0.0, "Weight of DeepSeek's sequence-wise balancing loss."
    )
    freeze_router: bool = _setting(False, "Do not train the routers.")

    def __post_init__(self) -> None:
        accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
        if getattr(self, "bf16", None) is None and not accelerated:
            self.bf16 = False
        if self.algorithm is not None:
            scale = {True: "group", False: "none"}
            given = dict(vars(self)[_GIVEN])
            if "scale_rewards" in given:
                given["scale_rewards"] = scale.get(given["scale_rewards"], given["scale_rewards"])
            for name, value in algorithm_settings(self.algorithm, given).items():
                setattr(self, name, value)
        _check_sampling(self)
        _check_objective(self)
        _check_rewards(self)
        _check_curriculum(self)
        check_choice("sampling_weights", self.sampling_weights)
        if self.long_prompts not in CHOICES:
            raise unknown("long_prompts", str(self.long_prompts), CHOICES)
        super().__post_init__()


def _default(kind: Any, name: str) -> Any:
    [setting] = [f for f in fields(kind) if f.name == name]
    value = setting.default_factory() if setting.default_factory is not MISSING else setting.default
    return value.default if isinstance(value, _Unset) else value


def _tells(kind: Any, name: str) -> bool:
    """Does a parser pass `_Unset` for this field? Not for one that a subclass has defined anew."""
    return bool(kind.__dataclass_fields__[name].metadata.get("action") is _Written)


def _is_resolved(kind: Any, values: Mapping[str, Any]) -> bool:
    """Do all `values` of a config come from one that has had what its algorithm sets?

    They have it, and not by chance: some of it is no default.
    """
    algorithm = ALGORITHMS.get(str(values["algorithm"]))
    fixed = {} if algorithm is None else algorithm.fixed
    has_all = all(values[name] == value for name, value in fixed.items())
    return has_all and any(value != _default(kind, name) for name, value in fixed.items())


def _tell_what_is_written(kind: Any) -> None:
    """Have transformers' parsers, trl's too, pass `_Unset` for what an algorithm may set.

    They make arguments of the fields: with the metadata's words, among them the `action`. To a
    switch that is on they add a second argument, `--no_NAME`, without it: so its default is not
    `True` itself, and the other name is an alias.
    """
    names = {name for one in ALGORITHMS.values() for name in (*one.fixed, *one.usual)}
    for name in names:
        setting = copy(kind.__dataclass_fields__[name])  # trl's own class keeps its own
        told = {**setting.metadata, "action": _Written}
        if setting.default is True:
            setting.default = _UnsetTrue()
            told["aliases"] = [f"--no_{name}", f"--no-{name.replace('_', '-')}"]
        setting.metadata = MappingProxyType(told)
        kind.__dataclass_fields__[name] = setting


_tell_what_is_written(GRPOConfig)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _check_sampling(config: GRPOConfig) -> None:
    """Raises `UserError` for a way of sampling that there is not, or that is not corrected for."""
    if config.keep_sampling_mask and config.use_vllm:
        raise UserError(
            "keep_sampling_mask=True (sampling.keep_mask in a recipe): vLLM does not tell which "
            "tokens its cut-off left. Sample with our engine, or leave it out"
        )
    if config.correct_sampling and not config.vllm_importance_sampling_correction:
        raise UserError(
            "correct_sampling=True corrects by trl's code for vLLM, and "
            "vllm_importance_sampling_correction=False turns that off: use only one of them"
        )


def _check_objective(config: GRPOConfig) -> None:
    """Raises `UserError` for settings that exclude each other, whoever set them."""
    if config.kl_estimator not in ESTIMATORS:
        raise unknown("kl_estimator", str(config.kl_estimator), ESTIMATORS)
    if config.kl_in not in ("loss", "reward"):
        raise unknown("kl_in", str(config.kl_in), ("loss", "reward"))
    share, weight = config.overlong_share, config.positive_advantage_weight
    if not (_is_number(share) and 0.0 <= share <= 1.0):
        raise UserError(f"overlong_share is {share!r}; it is a share, from 0 to 1")
    if share and config.max_completion_length is None:
        raise UserError(
            f"overlong_share={share} punishes the last share of max_completion_length, which is "
            "None: give it a number of tokens"
        )
    if not (_is_number(weight) and 0.0 <= weight < math.inf):
        raise UserError(f"positive_advantage_weight is {weight!r}; it has to be a number from 0 up")
    if not isinstance(rounds := config.dynamic_sampling, int) or rounds < 0:
        raise UserError(f"dynamic_sampling is {rounds!r}; it is a whole number of rounds")
    k1_alone = config.kl_estimator == "k1" and not config.use_bias_correction_kl
    if config.beta and config.kl_in == "loss" and k1_alone:
        raise UserError(
            "kl_estimator 'k1' in the loss, without use_bias_correction_kl, has an expected "
            "gradient of zero: set use_bias_correction_kl=True, kl_in='reward' or another estimator"
        )
    apart = config.multi_objective_aggregation != "sum_then_normalize"
    if config.beta and config.kl_in == "reward" and apart:
        raise UserError(
            "kl_in='reward' takes the KL from the sum of the rewards: it cannot be combined with "
            f"multi_objective_aggregation={config.multi_objective_aggregation!r}"
        )


def _check_rewards(config: GRPOConfig) -> None:
    """Raises `UserError` for a place or a limit of rewards that there is not."""
    if config.rewards_on not in ("here", "ray"):
        raise unknown("rewards_on", str(config.rewards_on), ("here", "ray"))
    for name in ("reward_timeout_s", "reward_batch_timeout_s", "reward_memory_mb"):
        if not (_is_number(value := getattr(config, name)) and value > 0):
            raise UserError(f"{name} is {value!r}; it has to be more than 0")


def _check_curriculum(config: GRPOConfig) -> None:
    """Raises `UserError` for a band that is none, and for two ways of drawing prompts."""
    if (band := config.level_band) is None:
        return
    shares = [*band] if isinstance(band, (list, tuple)) and all(map(_is_number, band)) else []
    if len(shares) != 2 or not 0.0 <= shares[0] < shares[1] <= 1.0:
        raise UserError(
            f"level_band is {band}; it is two shares of success, [low, high], 0 <= low < high <= 1"
        )
    if config.prompt_schedule:
        raise UserError(
            "prompt_schedule draws prompts by their own success, level_band by that of their "
            "levels: use only one of them"
        )
