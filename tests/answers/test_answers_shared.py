"""The verifier on public rows and the golds of public data sets, where they lie beside us."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rl_reasoner.answers import verify
from support.places import SHARED

ROWS = SHARED / "verifier" / "upstream.jsonl"
CODE = ("humaneval", "mbpp", "leetcode_200", "code_contests_stdio", "codeforces_stdio")
FILES = [file for file in sorted((SHARED / "data").glob("*.jsonl")) if file.stem not in CODE]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not ROWS.is_file(), reason="no shared/verifier beside the checkout"),
]


def undisputed() -> list[dict[str, object]]:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").split("\n") if line]
    return [row for row in rows if not row["disputed"]]


def test_public_rows_are_judged_right_here_and_in_threads() -> None:
    rows = undisputed()
    given = [verify(row["completion"], row["gold"]).value for row in rows]  # type: ignore[arg-type]
    right = sum(value == float(row["expected"]) for value, row in zip(given, rows, strict=True))  # type: ignore[arg-type]
    false_positives = sum(
        value == 1.0 and not row["expected"] for value, row in zip(given, rows, strict=True)
    )
    assert right / len(rows) >= 0.99
    assert false_positives == 0
    with ThreadPoolExecutor(4) as threads:
        again = threads.map(lambda row: verify(row["completion"], row["gold"]).value, rows)
        assert list(again) == given


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_gold_is_equal_to_itself(file: Path) -> None:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    golds = sorted({row["answer"] for row in rows})
    failed = [gold for gold in golds if verify(rf"So \boxed{{ {gold} }}.", gold).value != 1.0]
    assert len(failed) <= 0.002 * len(golds) + (file.stem == "asdiv"), failed
