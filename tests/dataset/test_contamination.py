"""Training rows in evaluation sets: known overlaps are found, and nothing where there is none."""

import json
import random
from typing import Any

import pytest

from rl_reasoner.dataset.contamination import NEAR, find_overlap
from rl_reasoner.dataset.tasks.generate import TASKS, generate_problems
from support.places import DATA as SHARED

LONG = (
    "A farmer has twelve hens and each of them lays three eggs on every day of the week but Sunday "
    "so how many eggs does the farmer collect in four weeks if two of the hens fall ill"
)


def rows(*problems: str) -> list[dict[str, Any]]:
    return [{"problem": problem} for problem in problems]


def public(name: str) -> list[dict[str, Any]]:
    with (SHARED / f"{name}.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_each_kind_of_overlap() -> None:
    words = LONG.split()
    problems = {
        "exact": LONG.upper().replace(" ", "  \n"),
        "half": " ".join(words[:30]) + " in a year of plenty and how many in a bad one or a good",
        "stock phrase": " ".join(["Another tale"] * 12 + words[:13] + ["of a goose"] * 12),
        "near": LONG.replace("farmer has", "grower has").replace("twelve hens", "12 hens"),
        "none": "Two trains leave a station at noon and drive apart at forty miles an hour each",
        "short": "1+1=",
    }
    found = find_overlap(rows("nothing", LONG), rows(*problems.values()))
    hits = dict(zip(problems, found.hits, strict=True))
    assert hits["none"] is None and hits["short"] is None
    bad = {kind for kind, hit in hits.items() if hit and hit["contaminated"]}
    assert bad == {"exact", "half", "near"}
    exact, phrase = hits["exact"], hits["stock phrase"]
    assert exact and exact["exact"] and exact["train_row"] == 1
    assert phrase and 0 < phrase["runs"] < 0.5 and not phrase["exact"]
    near = hits["near"]
    assert near and near["near"] >= 0.7
    assert found.counts() == {
        "rows": 6,
        "exact": 1,
        "shared_run": 4,
        "half": 3,
        "near": 2,
        "contaminated": 3,
    }


def test_chinese_problems_are_read_by_their_characters() -> None:
    problem = "芳芳买了一本书有99页，看了90页，她还剩多少页没有看？"
    other = problem.replace("99", "98")
    [hit] = find_overlap(rows(problem), rows(other)).hits
    assert hit and not hit["exact"] and hit["near"] and hit["contaminated"]
    assert find_overlap(rows("小明有三个苹果，吃了一个。"), rows(problem)).hits == [None]


@pytest.mark.slow
@pytest.mark.parametrize("task", sorted(TASKS))
def test_splits_that_are_apart_share_nothing(task: str) -> None:
    """Writing tasks are put together from the same sentences: of them, no whole one."""
    kind = "exact" if task.startswith("instructions") else "contaminated"
    train = [p.row() for p in generate_problems(task, split="train", count=600, seed=1)]
    for split in ("validation", "test", "ood"):
        held_out = [p.row() for p in generate_problems(task, split=split, count=64)]
        assert find_overlap(train, held_out).counts()[kind] == 0, split
        assert find_overlap(train, train[:50]).counts()["exact"] == 50


@pytest.mark.skipif(not SHARED.is_dir(), reason="the public sets are not beside the repository")
@pytest.mark.parametrize(
    ("train", "held_out", "exact", "shared", "half"),
    [
        ("gsm8k_train", "gsm8k_test", 0, 3, 1),
        ("math_train", "math_test", 1, 589, 170),
        ("math_train", "math500", 0, 58, 17),
        ("math_train", "amc23", 0, 11, 0),
        ("math_train", "olympiadbench", 0, 9, 1),
        ("mawps", "multiarith", 600, 600, None),
    ],
)
def test_the_known_overlaps_of_public_sets(
    train: str, held_out: str, exact: int, shared: int, half: int | None
) -> None:
    """The figures of an independent count, in SOURCES.md beside the data."""
    held = public(held_out)
    found = find_overlap(public(train), held, near=False)
    counts = found.counts()
    assert (counts["exact"], counts["shared_run"]) == (exact, shared)
    assert half is None or counts["half"] == half
    if held_out == "math_test":
        known = [
            row["id"] for row, hit in zip(held, found.hits, strict=True) if hit and hit["exact"]
        ]
        assert known == ["math-test-4656"]


def test_near_copies_are_found_down_to_the_threshold() -> None:
    """MinHash alone would miss about half of those whose similarity is just above it."""
    rng = random.Random(0)
    words = [f"w{n}" for n in range(4000)]
    texts, copies = [], []
    for _ in range(300):
        own = rng.sample(words, 60)
        texts.append({"problem": " ".join(own)})
        for place in rng.sample(range(60), rng.randint(3, 4)):
            own[place] = "other"
        copies.append({"problem": " ".join(own)})
    alike = []
    for pair in zip(texts, copies, strict=True):
        split = [text["problem"].split() for text in pair]
        a, b = ({tuple(own[i : i + 3]) for i in range(len(own) - 2)} for own in split)
        alike.append(len(a & b) / len(a | b) >= NEAR)
    found = find_overlap(copies, texts)
    assert 100 < sum(alike) < 300
    assert sum(hit is not None and hit["near"] is not None for hit in found.hits) >= (
        0.98 * sum(alike)
    )
