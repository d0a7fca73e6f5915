"""The stages of DeepSeek-R1 (arXiv 2501.12948), which the recipes r1_* share; data differ.

    zero         RL from the base, accuracy and form rewarded: R1-Zero, a line of its own
    cold_start   SFT of the base on readable chains
    reasoning    RL on maths and code, with a reward for keeping to one language
    samples      rejection sampling: right, readable completions in one language
    sft          SFT of the base again, on the samples and on general data
    all          RL for all scenarios: maths, code, instructions

Dense students come behind the samples, on which they are trained.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner import Recipe

Fields = Mapping[str, Any]
_STAGES = {
    "zero": ("grpo", True),
    "cold_start": ("sft", True),
    "reasoning": ("grpo", False),
    "samples": ("sample", False),
    "sft": ("sft", True),
    "all": ("grpo", False),
}
REWARDS: Fields = {
    "math_answer": 1.0,
    "code_tests": {"weight": 1.0, "options": {"extract": "any"}},
    "instructions": 1.0,
    "format_tags": 0.1,
    "language": 0.5,
}
"""Each row's data name the ones it gets."""


def r1(
    name: str,
    policy: str,
    template: str,
    data: Fields,
    sizes: Mapping[str, Fields],
    evals: Fields,
    base: Fields | None = None,
    students: Sequence[Fields] = (),
    target: str = "",
    parallel: str = "auto",
) -> Recipe:
    """The recipe of R1 with `data` for each stage, by its name.

    `sizes` has further fields of the stages by kind ("sft", "grpo", "sample") and, before these, by
    name. `base` is a stage that makes the base; without it that is `policy` itself. `target` is the
    language of the chains, where it is not the prompt's. `parallel` is `run.parallel`.
    """
    language = {"weight": REWARDS["language"], "options": {"target": target}}
    stages: list[dict[str, Any]] = [dict(base)] if base else []
    for stage, (kind, from_base) in _STAGES.items():
        fields = {"kind": kind, "name": stage, "data": data[stage]}
        fields |= {"start": base["name"] if base else "base"} if from_base else {}
        stages.append({**fields, **sizes.get(kind, {}), **sizes.get(stage, {})})
        if stage == "samples":
            stages += [{**sizes.get(str(s["kind"]), {}), **s} for s in students]
    return Recipe.model_validate(
        {
            "name": name,
            "policy": policy,
            "template": template,
            "rewards": {**REWARDS, "language": language},
            "stages": stages,
            "evals": {**evals, "stages": True},
            "run": {"parallel": parallel},
        }
    )
