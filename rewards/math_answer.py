"""Reward: is the final answer of a maths completion equal to the gold answer?

The first reward of most recipes, and the shortest way to write one: a function of a completion and
of the columns it needs (`answer`), with options that have defaults (`timeout_s`). What counts as
equal is described in `docs/verifier.md`.
"""

from collections.abc import Sequence

from rl_reasoner import Score, reward
from rl_reasoner.answers import verify
from rl_reasoner.answers.extraction.extract import turn_of
from rl_reasoner.answers.verdict import left_to_do, shown
from rl_reasoner.errors import UserError
from rl_reasoner.language.thinking import CLOSE_ANSWER, OPEN_ANSWER, behind_chain


@reward(policy_text=True)
def math_answer(
    completion: str,
    answer: str,
    timeout_s: float = 5.0,
    tags: Sequence[str] = (),
    value_only: bool = False,
) -> Score:
    """1.0 for a right final answer, 0.0 for a wrong or missing one, None for an unusable gold.

    `timeout_s` (seconds) bounds a second opinion from sympy, which few answers need; not its start.
    `tags` are those of an answer form of your own, such as `["<ans>", "</ans>"]`: what stands last
    between them, behind the reasoning, is the answer, and nothing else is. `value_only` wants a
    number worked out where the gold is one: `900 - 156` equals 744, but a policy in training that
    is paid for it learns to leave the sum to the verifier.
    """
    judged = tagged(completion, tags) if tags else completion
    score = verify(judged, answer, timeout_s=timeout_s)
    if score.value == 0.0 and tags and not judged:
        return Score(0.0, f"no final answer: nothing between {tags[0]} and {tags[1]}")
    if score.value == 1.0 and value_only and (calculation := left_to_do(judged, str(answer))):
        return Score(0.0, f"a calculation left to do: {shown(calculation)}")
    return score


@math_answer.checks
def _check_options(tags: Sequence[str], timeout_s: object = 5.0, **others: object) -> None:
    if not isinstance(timeout_s, int | float) or not timeout_s > 0:
        raise UserError(
            f"timeout_s of math_answer is {timeout_s!r:.40}: expected seconds, more than 0"
        )
    listed = isinstance(tags, Sequence) and not isinstance(tags, str)
    if listed and (not tags or (len(tags) == 2 and all(isinstance(t, str) and t for t in tags))):
        return
    raise UserError(f'tags is {tags!r:.80}: expected two texts, such as ["<ans>", "</ans>"]')


def tagged(completion: str, tags: Sequence[str]) -> str:
    """A completion that says only what stands last between `tags`; empty where nothing does.

    Read is what stands behind the reasoning, up to a chat marker.
    Raises `UserError` for what are not two tags.
    """
    _check_options(tags)
    text = behind_chain(turn_of(completion)) or ""
    end = text.rfind(tags[1])
    start = text.rfind(tags[0], 0, max(end, 0))
    inside = text[start + len(tags[0]) : end].strip() if start >= 0 else ""
    return OPEN_ANSWER + inside + CLOSE_ANSWER if inside else ""
