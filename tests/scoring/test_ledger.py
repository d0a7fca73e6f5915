"""The ledger: complete, whole after a kill, bounded."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.scoring.ledger import Ledger, completion_hash, entries, files_of, scores_of

steps = st.lists(st.integers(0, 3), min_size=1, max_size=30).map(
    lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]
)


def rows_of(numbers: list[int]) -> list[dict[str, Any]]:
    return [{"step": n, "text": f"é\u2028{i}"} for i, n in enumerate(numbers)]


@given(
    numbers=steps,
    step=st.integers(0, 40),
    torn=st.integers(0, 40),
    size=st.sampled_from([30, 90, 1 << 20]),
)
def test_it_continues_after_a_step_whatever_was_torn(
    numbers: list[int], step: int, torn: int, size: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    ledger = Ledger.open(folder, 0, file_bytes=size, files=1000)
    written = rows_of(numbers)
    for row in written:
        ledger.append([row])
    if torn:
        with (folder / "ledger.jsonl").open("ab") as file:
            file.write(('{"step": 1, "text": "' + "é" * 40).encode()[:torn])
    again = Ledger.open(folder, step, file_bytes=size, files=1000)
    kept = [row for row in written if row["step"] <= step]
    assert list(entries(folder)) == kept
    again.append([{"step": step + 1}])
    assert list(entries(folder)) == [*kept, {"step": step + 1}]


def test_it_is_bounded_and_the_newest_rows_stay(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path, 0, file_bytes=200, files=3)
    for step in range(1, 200):
        ledger.append([{"step": step, "reason": "x" * 20}])
    assert len(files_of(tmp_path)) <= 3
    assert sum(p.stat().st_size for p in files_of(tmp_path)) < 3 * 300
    found = [row["step"] for row in entries(tmp_path)]
    assert found == list(range(found[0], 200))


def test_nothing_is_written_where_a_link_leads(tmp_path: Path) -> None:
    other, folder = tmp_path / "other.txt", tmp_path / "stage"
    other.write_text("not the run's\n")
    folder.mkdir()
    (folder / "ledger.jsonl").symlink_to(other)
    with pytest.raises(OSError, match=r"ledger\.jsonl"):
        Ledger.open(folder, 3)
    with pytest.raises(OSError, match=r"ledger\.jsonl"):
        Ledger(folder).append(rows_of([1]))
    assert other.read_text() == "not the run's\n"


def test_a_line_that_rotted_hides_no_other(tmp_path: Path) -> None:
    Ledger.open(tmp_path, 0).append(rows_of([1, 2, 3]))
    path = tmp_path / "ledger.jsonl"
    body = path.read_bytes().split(b"\n")
    body[1] = body[1].replace(b'"step"', b'"st\xffp')
    path.write_bytes(b"\n".join(body))
    assert [row["step"] for row in entries(tmp_path)] == [1, 3]
    Ledger.open(tmp_path, 2)
    assert [row["step"] for row in entries(tmp_path)] == [1]


def test_a_process_killed_while_it_writes_leaves_whole_rows(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\nfrom rl_reasoner.scoring.ledger import Ledger\n"
        "ledger = Ledger.open(pathlib.Path(sys.argv[1]), 0)\n"
        "for step in range(1, 10**9):\n"
        "    ledger.append([{'step': step, 'reason': 'x' * 5000}] * 20)\n"
        "    if step == 20: print('going', flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    os.truncate(tmp_path / "ledger.jsonl", (tmp_path / "ledger.jsonl").stat().st_size - 7)
    last = max(row["step"] for row in entries(tmp_path))
    Ledger.open(tmp_path, last - 1)
    text = (tmp_path / "ledger.jsonl").read_text()
    assert text.endswith("\n")
    assert [json.loads(line)["step"] for line in text.splitlines()][-1] == last - 1


def test_a_row_for_every_score() -> None:
    score = {"value": 1.0, "reason": "r" * 5000, "outcome": "score"}
    fault = {"value": None, "reason": "gone", "outcome": "fault"}
    rollouts = [
        {
            "step": 2,
            "group": i // 2,
            "prompt": f"p{i // 2}",
            "completion": f"c{i}",
            "row": 12 if i < 2 else None,
            "scores": {"f": {**score, "parts": {str(n): 1.0 for n in range(99)}}, "g": fault},
            "seconds": {"f": 0.5, "g": 0.25},
        }
        for i in range(4)
    ]
    found = list(scores_of(rollouts, 7))
    assert len(found) == 8
    assert found[2] == {
        "step": 2,
        "row": 12,
        "group": 0,
        "index": 1,
        "seed": 7,
        "hash": completion_hash("c1"),
        "reward": "f",
        "value": 1.0,
        "outcome": "score",
        "reason": "r" * 300,
        "parts": {str(n): 1.0 for n in range(32)},
        "seconds": 0.5,
    }
    assert found[-1]["row"] is None and found[-1]["outcome"] == "fault"
    assert completion_hash("\ud800") != completion_hash("c1")
