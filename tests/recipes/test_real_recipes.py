"""The recipes for real models, two steps each: own settings, a tiny policy, rows of a file."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from rl_reasoner import verify
from rl_reasoner.cli import main
from rl_reasoner.policy.scratch import byte_tokenizer, scratch_policy
from rl_reasoner.recipe.load import load_recipe

SUMS: list[dict[str, Any]] = [
    {"problem": f"Ann has {n} pens and gets {n + 1}.", "answer": str(2 * n + 1)} for n in range(8)
]
TASKS: list[dict[str, Any]] = [
    {
        "problem": f"Write a function add_{n}(x) that adds {n}.",
        "tests": [f"assert add_{n}({at}) == {at + n}" for at in range(3)],
    }
    for n in range(8)
]
PROMPTS: list[dict[str, Any]] = [
    {"problem": f"Say something about {n}. No commas.", "instructions": [{"name": "no_comma"}]}
    for n in range(8)
]
ROWS = {
    "mbpp_qwen_coder": TASKS,
    "gsm8k_qwen_coder": SUMS,
    "tool_qwen_coder": SUMS,
    "instructions_smollm2": PROMPTS,
    "word_problems_smollm2": SUMS,
    "word_problems_moe": SUMS,
}
CHAT = "{% for m in messages %}<think>{{ m['content'] }}</think>{% endfor %}"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A tiny dense policy with a chat template, as instruct models have one."""
    made = scratch_policy("dense-tiny", 0)
    made.tokenizer = byte_tokenizer()
    made.tokenizer.chat_template = CHAT
    made.model.config.max_position_embeddings = 4096  # examples are long where a byte is a token
    made.save(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k_qwen_coder", "tool_qwen_coder"])
def test_examples_in_the_prompt_say_their_answers_as_the_policy_should(name: str) -> None:
    examples = load_recipe(name).template.split("<|endoftext|>")[:-1]
    answers = [re.findall(r"The answer is \\boxed\{(\d+)\}\.$", text) for text in examples]
    assert examples and all(len(found) == 1 for found in answers), answers
    for text, [answer] in zip(examples, answers, strict=True):
        assert verify(text, answer).value == 1.0


@pytest.mark.parametrize("name", ROWS)
def test_two_steps_of_its_own_settings(name: str, policy: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]), encoding="utf-8")
    if name == "word_problems_moe":
        mixture = tmp_path / "mixture"
        assert main(["export", str(policy), str(mixture), "--upcycle", "4", "--chosen", "2"]) == 0
        policy = mixture
    rows = ["--data", str(file)]
    if name.endswith("_qwen_coder"):
        rows = ["--data.path", str(file), "--data.config", "null", "--data.columns", "{}"]
    elif name.startswith("word_problems"):
        form = tmp_path / "form.jsonl"
        form.write_text("".join(json.dumps({**row, "completion": "3"}) + "\n" for row in SUMS))
        rows += ["--form.data.path", str(form), "--form.steps", "1", "--form.batch", "4"]
    flags = [
        *("--policy", str(policy), *rows, "--evals.sets", f"[{file}]"),
        *("--grpo.steps", "2", "--grpo.group.size", "4", "--grpo.group.prompts", "2"),
        *("--grpo.group.micro_batch", "4", "--grpo.sampling.max_tokens", "8"),
        *("--evals.limit", "4", "--evals.max_tokens", "8"),
        *("--run.device", "cpu", "--run.folder", str(folder)),
    ]
    assert main(["train", name, *flags, "--json"]) == 0
    AutoModelForCausalLM.from_pretrained(folder / "policy")
    steps = [json.loads(line) for line in next(folder.glob("stages/*-grpo/metrics.jsonl")).open()]
    assert [step["step"] for step in steps] == [1, 2]
    mixture_seen = all(
        "router_replay/flips" in step and "experts/max_over_mean" in step for step in steps
    )
    assert mixture_seen is (name == "word_problems_moe")
    sets = json.loads((folder / "evals" / "after.json").read_text())["sets"]
    assert sets[str(file)]["problems"] == 4 and sets[str(file)]["judged"] == 1.0
