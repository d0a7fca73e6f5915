"""Algorithms by name: what each sets, and from which equation.

One name (`GRPOConfig(algorithm="dapo")`, `loss: {algorithm: dapo}` in a recipe) stands for the
fields of trl's config, and ours, that make the paper's algorithm. Some of them are the algorithm:
a setting that contradicts one is an error. Others are the paper's usual values: one's own value
holds. Data and one function; knows neither torch nor the trainer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rl_reasoner.errors import UserError, unknown


@dataclass(frozen=True)
class Algorithm:
    """A named algorithm: `fixed` fields cannot be changed under its name, `usual` ones can."""

    advantage: str
    source: str
    fixed: Mapping[str, Any]
    usual: Mapping[str, Any] = field(default_factory=dict)


_TOKEN_RATIO = {"importance_sampling_level": "token"}
_GROUP = "(r - mean of the group) / std of the group"
_KL_REWARD = {"kl_in": "reward", "kl_estimator": "k1"}
_PLAIN_REWARD = {  # nothing that would take it out of the range it is made for
    "multi_objective_aggregation": "sum_then_normalize",
    "kl_in": "loss",
    "overlong_share": 0.0,
}

ALGORITHMS: Mapping[str, Algorithm] = {
    "grpo": Algorithm(
        _GROUP,
        "DeepSeekMath, arXiv 2402.03300: objective eq. 3, KL eq. 4, advantage section 4.1.2",
        {
            "loss_type": "grpo",
            "scale_rewards": "group",
            **_TOKEN_RATIO,
            "kl_in": "loss",
            "kl_estimator": "k3",
            "use_bias_correction_kl": False,
        },
        {"beta": 0.04},
    ),
    "dr_grpo": Algorithm(
        "r - mean of the group",
        "Understanding R1-Zero-like training, arXiv 2503.20783: section 3.2 (no 1/|o|, no std)",
        {"loss_type": "dr_grpo", "scale_rewards": "none", **_TOKEN_RATIO},
    ),
    "dapo": Algorithm(
        _GROUP,
        "DAPO, arXiv 2503.14476: objective eq. 8, clip-higher eq. 10, dynamic sampling eq. 11, "
        "token mean eq. 12, soft overlong punishment eq. 13",
        {"loss_type": "dapo", "scale_rewards": "group", **_TOKEN_RATIO, "beta": 0.0},
        {"epsilon": 0.2, "epsilon_high": 0.28, "dynamic_sampling": 10, "overlong_share": 0.2},
    ),
    "gspo": Algorithm(
        _GROUP,
        "GSPO, arXiv 2507.18071: objective eq. 5, advantage eq. 6, sequence ratio eq. 7",
        {"loss_type": "grpo", "scale_rewards": "group", "importance_sampling_level": "sequence"},
        {"epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "cispo": Algorithm(
        _GROUP,
        "MiniMax-M1, arXiv 2506.13585: objective eq. 4, clipped weight eq. 5; the bound on the "
        "ratio itself, here epsilon_high, as in ScaleRL, arXiv 2510.13786",
        {"loss_type": "cispo", "scale_rewards": "group", **_TOKEN_RATIO},
        {"epsilon_high": 5.0},
    ),
    "rloo": Algorithm(
        "R - mean of the other rows of the group, R = r - beta * (sum of the tokens' k1)",
        "Back to basics, arXiv 2402.14740: the leave-one-out estimator, with the KL in the reward",
        {
            "loss_type": "luspo",  # summed over a row's tokens, mean over rows
            "scale_rewards": "none",
            "importance_sampling_level": "sequence",
            "multi_objective_aggregation": "sum_then_normalize",
            **_KL_REWARD,
        },
        {"beta": 0.05},
    ),
    "reinforce++": Algorithm(
        "r - beta * (sum of k1 from the token on), normalised over all tokens of the batch",
        "REINFORCE++, arXiv 2501.03262: token advantage eq. 8, KL eq. 9, normalisation eq. 10",
        {
            "scale_rewards": "batch",
            **_TOKEN_RATIO,
            "multi_objective_aggregation": "sum_then_normalize",
            **_KL_REWARD,
            "dynamic_sampling": 0,  # rows of a flat group teach here: nothing to refill
        },
        {"loss_type": "dapo", "beta": 0.01},
    ),
    "reinforce++-baseline": Algorithm(
        "r - mean of the group, normalised over all tokens of the batch",
        "REINFORCE++, arXiv 2501.03262: the variant with baseline (KL as k2 in the loss)",
        {
            "scale_rewards": "batch",
            **_TOKEN_RATIO,
            "multi_objective_aggregation": "sum_then_normalize",
            "kl_in": "loss",
            "kl_estimator": "k2",
            "use_bias_correction_kl": False,
        },
        {"loss_type": "dapo", "beta": 0.01},
    ),
    "max_rl": Algorithm(
        "(r - mean of the group) / mean of the group; 0 where nothing is right; rewards from 0 up",
        "MaxRL, arXiv 2602.02710: algorithm 1 (towards log p, hard prompts weigh about 1/p)",
        {"scale_rewards": "none", **_TOKEN_RATIO, **_PLAIN_REWARD},
        {"loss_type": "dapo"},
    ),
    "w_reinforce": Algorithm(
        "2r - 1 without a baseline, times positive_advantage_weight where positive; rewards 0 to 1",
        "The surprising effectiveness of negative reinforcement, arXiv 2506.01347: W-REINFORCE, "
        "section 5; with a weight of 0 NSR, section 2",
        {
            "scale_rewards": "none",
            **_TOKEN_RATIO,
            **_PLAIN_REWARD,
            "dynamic_sampling": 0,  # rows of a flat group teach here: nothing to refill
        },
        {"loss_type": "dapo", "positive_advantage_weight": 0.1},
    ),
    "scalerl": Algorithm(
        "(r - mean of the group) / std of these over the batch, of groups that vary; each prompt "
        "weighs the same",
        "ScaleRL, arXiv 2510.13786, section 4: CISPO, prompt average, batch normalisation, "
        "zero-variance filter; docs/trainer.md says what of the recipe is not in the loss",
        {
            "loss_type": "cispo",
            "scale_rewards": "batch",
            **_TOKEN_RATIO,
            "multi_objective_aggregation": "sum_then_normalize",
            "kl_in": "loss",
            "beta": 0.0,
        },
        {"epsilon_high": 5.0},
    ),
}
OWN_ADVANTAGES = (
    *("rloo", "reinforce++", "reinforce++-baseline"),
    *("max_rl", "w_reinforce", "scalerl"),
)
"""Those whose advantages are not trl's `(r - mean) / deviation`."""
REWARD_RANGES: Mapping[str, tuple[float, float]] = {
    "max_rl": (0.0, math.inf),
    "w_reinforce": (0.0, 1.0),
}
"""The total rewards that an algorithm is made for, where not all are."""


def algorithm_settings(
    name: str, given: Mapping[str, Any], shown_as: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All fields that the algorithm `name` sets, where the user has `given` some of them.

    Raises `UserError` for an unknown name, and for given values that contradict the algorithm, all
    of them in one error; and for one's own `epsilon` above the algorithm's `epsilon_high`.
    `shown_as` has the names by which the user knows fields, if not the key.
    """
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    algorithm = ALGORITHMS[name]
    contradictions = [
        f"{(shown_as or {}).get(key, key)} is {given[key]!r}, but algorithm {name!r} has {value!r}"
        for key, value in algorithm.fixed.items()
        if key in given and given[key] != value
    ]
    if contradictions:
        raise UserError(
            f"{'; '.join(contradictions)}. Leave out either the algorithm's name or the setting."
        )
    high = algorithm.usual.get("epsilon_high")
    if high is not None and "epsilon_high" not in given and _number(given.get("epsilon")) > high:
        raise UserError(
            f"epsilon is {given['epsilon']}, above {name}'s epsilon_high of {high}: set both"
        )
    return {
        **algorithm.fixed,
        **{key: given.get(key, value) for key, value in algorithm.usual.items()},
    }


def _number(value: Any) -> float:
    """What a recipe's value, which nobody has checked yet, comes to; NaN for no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def describe_algorithm(name: str) -> str:
    """What the algorithm `name` sets, for people: its source, advantage and fields, one a line."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    algorithm = ALGORITHMS[name]
    lines = [f"{name}: {algorithm.source}", f"  advantage: {algorithm.advantage}"]
    lines += [f"  {key} = {value!r}" for key, value in algorithm.fixed.items()]
    lines += [f"  {key} = {value!r} unless set otherwise" for key, value in algorithm.usual.items()]
    return "\n".join(lines)
