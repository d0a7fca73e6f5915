"""Format reward: is the completion one `<think>` part and then one `<answer>` part, and no more?

The format reward of DeepSeek-R1-Zero (arXiv 2501.12948, section 2.2.2). With the templates that
open the think tag in the prompt, set `opened` so that the completion may begin inside it.
"""

import re

from rl_reasoner.reward import Score, reward

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)


@reward
def format_tags(completion: str, opened: bool = False) -> Score:
    """1.0 for `<think>…</think><answer>…</answer>` with each tag once and in order, else 0.0."""
    text = f"<think>{completion}" if opened else completion
    wrong = [tag for tag in _TAGS if text.count(tag) != 1]
    if wrong:
        return Score(0.0, f"{wrong[0]} occurs {text.count(wrong[0])} times, expected once")
    if not _FORM.fullmatch(text):
        return Score(0.0, "tags out of order, or text outside of them")
    return Score(1.0, "think and answer parts in order")
