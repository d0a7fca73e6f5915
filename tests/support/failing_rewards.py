"""Rewards that give no number now and then, in a module that a worker imports quickly."""

import math


def raises_sometimes(completion: str) -> float:
    if len(completion) % 2:
        raise ZeroDivisionError("odd length")
    return float(completion.count("a"))


def nan(completion: str) -> float:
    return math.nan if len(completion) % 2 else 1.0


def infinite(completion: str) -> float:
    if len(completion) % 2 == 0:
        return 1.0
    return math.inf if len(completion) % 4 == 1 else -math.inf


def huge(completion: str) -> float:
    return 1e38 if len(completion) % 2 else 0.0


def text(completion: str) -> object:
    return "1.0" if len(completion) % 2 else 0.0


def nothing(completion: str) -> None:
    return None
