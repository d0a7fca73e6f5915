"""Distillation, tiny: three ways to train a small dense student, with one teacher.

    rl-reasoner train r1_distill_tiny            # or: python recipes/r1_distill_tiny.py

The teacher is a mixture after R1-Zero. The student learns from the teacher's right samples (R1's
way, arXiv 2501.12948, section 2.4), from its probabilities on what the student itself samples
(reverse KL, arXiv 2306.13649), or by RL alone; each from the same base, the last two on the same
prompts. A teacher of yours: --zero.reuse FOLDER --pretrain.reuse FOLDER
"""

from rl_reasoner.recipes.r1_tiny import FORMED, PROGRAMS, SIZES, STUDENTS
from rl_reasoner.recipes.r1_tiny import recipe as r1

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

PROMPTS = [{**FORMED, "seed": 4, "count": 1500}, {**PROGRAMS, "seed": 4, "count": 600}]
STUDENT, KEPT = {"start": "student_base"}, {"stage": "samples"}


def recipe() -> Recipe:
    """The teacher's stages are those of r1_tiny."""
    whole = r1().model_dump(mode="json")
    few = {"max_tokens": 64}
    stages = [
        *whole["stages"][:2],
        {"kind": "sample", "name": "samples", "data": PROMPTS, **SIZES["sample"], "keep": {}},
        STUDENTS[0],
        {"kind": "sft", "name": "by_samples", **STUDENT, **SIZES["sft"], "data": KEPT},
        {
            "kind": "distill",
            "name": "on_policy",
            **STUDENT,
            "teacher": "zero",
            "data": PROMPTS,
            "steps": 150,
            "batch": 64,
            "sampling": few,
            "optim": {"lr": 1e-3},
        },
        {"kind": "grpo", "name": "by_rl", **STUDENT, "data": PROMPTS, **SIZES["grpo"]},
    ]
    return Recipe.model_validate({**whole, "name": "r1_distill_tiny", "stages": stages})


if __name__ == "__main__":
    main_of(__file__)
