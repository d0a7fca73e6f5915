"""Form reward: does the completion end in one closed, filled `\\boxed{…}`?

A small weight on it keeps a signal alive where right answers are rare.
"""

from rl_reasoner import Score, reward


@reward(policy_text=True)
def boxed(completion: str) -> Score:
    """1.0 when there is exactly one box, closed and not empty, else 0.0."""
    _, box, after = completion.partition("\\boxed{")
    if not box:
        return Score(0.0, "no \\boxed{}")
    if "\\boxed{" in after:
        return Score(0.0, "several boxes")
    depth = 1
    for index, character in enumerate(after):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            filled = bool(after[:index].strip())
            return Score(float(filled), "one box" if filled else "the box is empty")
    return Score(0.0, "the box never closes")
