"""Judge ranking: which place does a model give the completion among those of its prompt?

A group reward: one question shows all completions of a prompt, as GRPO compares them anyway, and
needs no scale of points. Its options are those of `judge`. See `docs/judges.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner import Column, ModelJudge, reward
from rl_reasoner.types import Outcome


@reward(group=True)
def judge_ranking(
    completions: Sequence[str],
    prompt: str,
    answer: str | None = Column(),  # type: ignore[assignment]
    rubric: Mapping[str, Any] | str | None = None,
    server: str | None = None,
    model: str | None = None,
    policy: str | None = None,
    function: str | None = None,
    votes: int = 1,
    tolerance: float = 0.25,
    reference: bool = False,
    temperature: float = 0.0,
    max_tokens: int = 300,
    max_chars: int = 8000,
    timeout_s: float = 60.0,
    attempts: int = 4,
    concurrency: int = 8,
    structured: bool = True,
    cache: str | None = None,
    max_requests: int | None = None,
    max_cost: float | None = None,
    price_in: float = 0.0,
    price_out: float = 0.0,
) -> Sequence[Outcome]:
    """1 for the best of a prompt's `completions` down to 0 for the worst, in equal steps.

    None for all of them where the rankings of `votes`, each shown another order, differ in more
    than the share `tolerance` of pairs, and on replies that are no ranking. See `judge` for the
    options. Raises `UserError` for those that make no sense.
    """
    options = dict(locals())
    row = {name: options.pop(name) for name in ("prompt", "answer")}
    [outcomes] = _scores([options.pop("completions")], [row], **options)
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


judge_ranking.code_options = ("function",)
