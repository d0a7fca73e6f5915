"""R1, tiny: all stages of DeepSeek-R1 in one run, with a mixture of half a million parameters.

    rl-reasoner train r1_tiny --run.seed 1       # make r1: with the table at its end

`pretrain` makes what DeepSeek-V3-Base is there: a base that can do maths, code and instructions
somehow, with bad habits: it answers at once, errs, and mixes English and Chinese in its chains.
The cold start mixes languages too, on purpose. A dense student is distilled by the samples, and
trained by RL alone for comparison. Simplified: no reward models; general data are instructions.
"""

from rl_reasoner.recipes._r1 import r1

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

MATHS, CODE, WORDS = {"task": "modular"}, {"task": "functions"}, {"task": "instructions_tiny"}
FORMED = {**MATHS, "count": 3000, "seed": 2, "rewards": ["math_answer", "format_tags"]}
ENGLISH = {**FORMED, "rewards": ["math_answer", "format_tags", "language"]}
PROGRAMS = {**CODE, "count": 1000, "seed": 2, "rewards": ["code_tests"]}
TOLD = {**WORDS, "count": 1500, "seed": 2, "rewards": ["instructions"]}
KEPT = [{"stage": "samples"}, {**WORDS, "count": 2000, "seed": 4}]
DATA = {
    "zero": [FORMED, PROGRAMS],
    "cold_start": [
        {**MATHS, "count": 4000, "seed": 3, "noise": 0.15, "chinese": 0.3},
        {**CODE, "count": 1000, "seed": 3, "noise": 0.3},
    ],
    "reasoning": [ENGLISH, PROGRAMS],
    "samples": [{**MATHS, "count": 1500, "seed": 4}, {**CODE, "count": 600, "seed": 4}],
    "sft": KEPT,
    "all": [ENGLISH, PROGRAMS, TOLD],
}
SIZES = {
    "sft": {
        "batch": 32,
        "steps": 250,
        "optim": {"lr": 3e-3, "schedule": "linear", "final_lr_share": 0.1},
    },
    "grpo": {
        "steps": 100,
        "group": {"size": 8, "prompts": 16},
        "sampling": {"max_tokens": 64},
        "optim": {"lr": 2e-4, "betas": (0.9, 0.99)},
        "router_aux": 0.0,
    },
    "cold_start": {"steps": 120},
    "sample": {"samples": 4, "sampling": {"max_tokens": 64}, "keep": {"language": "en"}},
}
BASE = {
    "kind": "sft",
    "name": "pretrain",
    "data": [
        {**MATHS, "count": 34000, "noise": 0.1, "chinese": 0.4, "direct": 0.25},
        {**CODE, "count": 5000, "noise": 0.4},
        {**WORDS, "count": 9000, "noise": 0.4},
    ],
    "steps": 1500,
    "batch": 32,
    "optim": {"lr": 5e-3, "schedule": "linear", "warmup": 50, "final_lr_share": 0.1},
}
STUDENTS = [
    {**BASE, "name": "student_base", "policy": "scratch:dense-tiny"},
    {"kind": "grpo", "name": "student_rl", "data": DATA["all"]},
    {"kind": "sft", "name": "student", "start": "student_base", "data": KEPT},
]
EVALS = {
    "sets": ["modular_test", "functions_test", "instructions_tiny_test"],
    "limit": 250,
    "samples": 4,
    "max_tokens": 64,
}


def recipe() -> Recipe:
    """The recipe; its settings were chosen on the validation splits."""
    prompt = "Q: {problem} A: "
    return r1("r1_tiny", "scratch:moe-tiny", prompt, DATA, SIZES, EVALS, BASE, STUDENTS, "en")


if __name__ == "__main__":
    main_of(__file__)
