"""Tables of golds and answers, by the rule that decides them, as cases of a test."""

import pytest


def rows(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    """A case for each pair, named by its rule."""
    return [
        pytest.param(gold, answer, id=f"{rule}: {gold} | {answer}")
        for rule, pairs in table.items()
        for gold, answer in pairs
    ]
