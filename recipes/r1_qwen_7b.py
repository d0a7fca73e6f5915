"""R1 on a dense model of 7 billion parameters, English and Chinese.

    rl-reasoner train r1_qwen_7b --launch 8      # eight GPUs of 80 GB, weights in shards
    rl-reasoner train r1_qwen_7b --cold_start.data chains.jsonl --zero.reuse DONE --until reasoning

R1's stages (recipes/_r1.py) with sizes from the paper where it gives them (arXiv 2501.12948): 16
completions per prompt, 32 prompts per step, KL 0.001. Data from the hub: word problems and contest
maths in English, word problems in Chinese, programs with tests, generated instructions in both.
Not run: each stage has been taken at a reduced size with scratch policies, no more. By the planner
(`rl-reasoner env --plan r1_qwen_7b`) a GPU holds 51 GB at most, and each of the three grpo stages
takes 50 hours on eight H100, 400 GPU-hours.
"""

from collections.abc import Mapping
from typing import Any

from rl_reasoner.recipes._r1 import r1

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of

MATHS = [
    {"path": "openai/gsm8k", "config": "main", "columns": {"problem": "question"}},
    {"path": "DigitalLearningGmbH/MATH-lighteval", "columns": {"answer": "solution"}},
    {
        "path": "MU-NLPC/Calc-ape210k",
        "columns": {"problem": "question_chinese", "answer": "result"},
        "limit": 20_000,
    },
]
PROGRAMS = {"path": "google-research-datasets/mbpp", "config": "full"}
PROGRAMS |= {"columns": {"problem": "text", "tests": "test_list"}}
CHAINS = {"problem": "question", "chain": "deepseek_thinking_trajectory", "answer": "solution"}
GENERAL = {"problem": "instruction", "completion": "response", "answer": "response"}


def judged(*rewards: str) -> list[dict[str, Any]]:
    """The prompts of maths and code, with the rewards of the former."""
    maths = [{**source, "rewards": rewards, "on_bad_row": "skip"} for source in MATHS]
    return [*maths, {**PROGRAMS, "rewards": ["code_tests"], "on_bad_row": "skip"}]


DATA = {
    "zero": judged("math_answer", "format_tags"),
    "cold_start": {"path": "simplescaling/s1K-1.1", "columns": CHAINS, "on_bad_row": "skip"},
    "reasoning": judged("math_answer", "format_tags", "language"),
    "samples": judged("math_answer"),
    "sft": [
        {"stage": "samples"},
        {"path": "databricks/databricks-dolly-15k", "columns": GENERAL, "on_bad_row": "skip"},
    ],
    "all": [
        *judged("math_answer", "format_tags", "language"),
        {"task": "instructions", "count": 10_000, "rewards": ["instructions"]},
    ],
}
SIZES = {
    "sft": {"steps": 1500, "batch": 128, "micro_batch": 4, "optim": {"lr": 1e-5, "warmup": 50}},
    "grpo": {
        "steps": 1000,
        "group": {"size": 16, "prompts": 32, "micro_batch": 8},
        "sampling": {"max_tokens": 8192},
        "optim": {"lr": 1e-6, "warmup": 10, "betas": (0.9, 0.99)},
        "loss": {"beta": 0.001},
    },
    "sample": {"sampling": {"max_tokens": 8192, "temperature": 1.0}},
}


EVALS = {
    "sets": ["gsm8k", "math500", "mgsm_zh", "humaneval"],
    "samples": 4,
    "temperature": 0.6,
    "max_tokens": 8192,
}


def recipe(
    policy: str = "Qwen/Qwen2.5-7B",
    student: str = "Qwen/Qwen2.5-1.5B",
    data: Mapping[str, Any] = DATA,
    sizes: Mapping[str, Any] = SIZES,
    evals: Mapping[str, Any] = EVALS,
) -> Recipe:
    """The recipe for GPUs."""
    students = [{"kind": "sft", "name": "student", "policy": student, "data": data["sft"]}]
    fields = {"students": students, "parallel": "fsdp"}
    return r1("r1_qwen_7b", policy, "r1", data, sizes, evals, **fields)


if __name__ == "__main__":
    main_of(__file__)
