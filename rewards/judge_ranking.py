"""Judge ranking: which place does a model give the completion among those of its prompt?

A group reward: one question shows all completions of a prompt, as GRPO compares them anyway, and
needs no scale of points. Its options are those of `judge`. See `docs/judges.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner import Column, ModelJudge, reward
from rl_reasoner.types import Outcome


@reward(group=True)
@ModelJudge.takes_options
def judge_ranking(
    completions: Sequence[str],
    prompt: str,
    answer: str | None = Column(),  # type: ignore[assignment]
    reference: bool = False,
    **options: Any,
) -> Sequence[Outcome]:
    """1 for the best of a prompt's `completions` down to 0 for the worst, in equal steps.

    None for all of them where the rankings of `votes`, each shown another order, differ in more
    than the share `tolerance` of pairs, and on replies that are no ranking. See `judge` for the
    options. Raises `UserError` for those that make no sense.
    """
    row = {"prompt": prompt, "answer": answer}
    [outcomes] = _scores([completions], [row], reference=reference, **options)
    return outcomes


@judge_ranking.batch
def _scores(
    groups: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    *,
    reference: bool,
    **options: Any,
) -> list[list[Outcome]]:
    """The scores of all groups: their questions are asked at once."""
    asked = [
        (row["prompt"], texts, ModelJudge.answer_shown(row, reference))
        for texts, row in zip(groups, rows, strict=True)
    ]
    return ModelJudge.shared(options).rank(asked)


@judge_ranking.checks
def _check_options(reference: bool, **options: Any) -> None:
    ModelJudge.check(options)


judge_ranking.code_options = ("function",)
