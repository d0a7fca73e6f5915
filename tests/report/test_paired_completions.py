"""The page of completions: which of two evaluations stand beside each other."""

from rl_reasoner.report.browse import evaluated


def groups(rows: list[dict[str, str]]) -> dict[str, str]:
    """The group of each completion; every row has one, of its own."""
    given = [{**row, "completions": [row["said"]], "scores": [1.0]} for row in rows]
    return {entry.completion: entry.group for entry in evaluated("before", given)}


def test_a_text_with_two_answers_or_rows_that_were_opened_are_paired_in_any_order() -> None:
    alike = [
        {"problem": "How many?", "answer": "3", "said": "three"},
        {"problem": "How many?", "answer": "4", "said": "four"},
        {"problem": "Guess.", "answer": "", "opened_from": "a" * 64, "said": "one"},
        {"problem": "Guess.", "answer": "", "opened_from": "b" * 64, "said": "other"},
        {"problem": "Twice.", "answer": "1", "said": "first"},
        {"problem": "Twice.", "answer": "1", "said": "second"},
    ]
    found = groups(alike)
    assert len({*found.values()}) == 6
    mixed = [alike[place] for place in (3, 4, 1, 2, 5, 0)]
    assert groups(mixed) == found
