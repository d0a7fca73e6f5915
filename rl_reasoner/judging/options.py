"""Which options of a judge make no sense, whoever is to answer."""

from collections.abc import Mapping
from typing import Any

from rl_reasoner.errors import UserError

_WHOLE = ("votes", "max_chars", "max_tokens", "attempts", "concurrency", "max_requests")
_NUMBERS = ("tolerance", "temperature", "timeout_s", "price_in", "price_out", "max_cost")
_POSITIVE = ("max_tokens", "timeout_s", "attempts", "concurrency")


def check_options(given: Mapping[str, Any]) -> None:
    """Raise `UserError` for options of `ModelJudge.of` that make no sense."""
    named = [name for name in ("server", "policy", "function") if given[name]]
    if len(named) != 1:
        has = " and ".join(named) or "none"
        raise UserError(f"judge: give one of server, policy and function (it has {has})")
    if given["server"] and not given["model"]:
        raise UserError("judge: server needs model, the model's name there")
    for name in (*_WHOLE, *_NUMBERS):
        value, kind = given[name], int if name in _WHOLE else (int, float)
        if value is None and name in ("max_requests", "max_cost"):
            continue
        if isinstance(value, bool) or not isinstance(value, kind):
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"judge: {name} is {value!r:.40}: expected {what}")
        if name in _POSITIVE and not value > 0:
            raise UserError(f"judge: {name} is {value!r}: expected more than 0")


def check_bounds(votes: int, tolerance: float, most_chars: int) -> None:
    """Raise `UserError` for numbers that no judge can work with."""
    if not 1 <= votes <= 25:
        raise UserError(f"judge: votes is {votes!r}: expected 1 to 25")
    if not 0 <= tolerance <= 1:
        raise UserError(f"judge: tolerance is {tolerance!r}: expected 0 to 1")
    if most_chars < 100:
        raise UserError(f"judge: max_chars is {most_chars!r}: expected 100 or more")
