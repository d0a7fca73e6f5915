"""Judge: how many points does a model give the completion, by a rubric?

For tasks without a checker. The model stands behind any OpenAI-compatible server, is a policy of
this machine, or answers through a function of yours. Measure a judge before you train on it:
`rl-reasoner check judge --labelled FILE`. See `docs/judges.md`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rl_reasoner import Column, ModelJudge, reward
from rl_reasoner.types import Outcome


@reward
@ModelJudge.takes_options
def judge(
    completion: str,
    prompt: str,
    answer: str | None = Column(),  # type: ignore[assignment]
    reference: bool = False,
    **options: Any,
) -> Outcome:
    """0 to 1 by the points of `rubric`, a YAML file or its content; None where the judge abstains.

    It abstains where its `votes` are more than `tolerance` apart, and on refusals and replies that
    are no verdict. With `reference` it is shown the row's `answer`. One of `server` with `model`,
    `policy`, and `function` ("FILE.py:NAME") answers. `price_in` and `price_out` (money a million
    tokens) are for `max_cost`. Raises `UserError` for options that make no sense.
    """
    row = {"prompt": prompt, "answer": answer}
    [outcome] = _scores([completion], [row], reference=reference, **options)
    return outcome


@judge.batch
def _scores(
    completions: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    reference: bool,
    **options: Any,
) -> list[Outcome]:
    """The scores of a batch: its questions are asked at once."""
    cases = [
        (row["prompt"], text, ModelJudge.answer_shown(row, reference))
        for text, row in zip(completions, rows, strict=True)
    ]
    return ModelJudge.shared(options).points(cases)


@judge.checks
def _check_options(reference: bool, **options: Any) -> None:
    ModelJudge.check(options)


judge.code_options = ("function",)
