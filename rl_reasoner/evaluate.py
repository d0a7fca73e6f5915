"""Evaluation: sampling, scoring and statistics of a policy on sets of problems."""

from typing import Any


class EvalResult:
    """Figures of one policy on several sets."""


def evaluate(*args: Any, **kwargs: Any) -> EvalResult:
    """Evaluate a policy."""
    raise NotImplementedError


def compare(a: EvalResult, b: EvalResult) -> Any:
    """Compare two results."""
    raise NotImplementedError
