"""What a reward reads of messages whose content is a list of parts, as of policies that see."""

from typing import Any

from rl_reasoner import Score, reward
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.registry import load_reward


def said(text: str, role: str = "assistant") -> list[dict[str, Any]]:
    parts = [{"type": "image"}, {"type": "text", "text": text}, {"type": "text", "text": "."}]
    return [{"role": role, "content": parts}]


@reward
def seen(completion: str, prompt: str) -> Score:
    return Score(1.0, f"{prompt} {completion}")


def test_the_parts_that_are_text_are_the_text() -> None:
    columns = {"prompts": [said("How many?", "user")]}
    assert score_batch(seen, [said("It is 4")], columns) == [Score(1.0, "How many?. It is 4.")]
    none = [[{"role": "assistant", "content": None}], [{"role": "assistant", "content": []}]]
    assert [s.reason for s in score_batch(seen, none, {"prompts": ["p", "p"]})] == ["p ", "p "]


def test_shipped_rewards_judge_them_in_trls_form() -> None:
    math_answer, length = load_reward("math_answer"), load_reward("length", {"limit": 8})
    texts = [said(r"\boxed{4}"), said(r"\boxed{5}")]
    assert math_answer(prompts=["p", "p"], completions=texts, answer=["4", "4"]) == [1.0, 0.0]
    assert length(completions=[said("12345")]) == [0.0]
