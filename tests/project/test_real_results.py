"""What is published of real runs is made again from benchmarks/real/results, or says it cannot."""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import EvalResult
from rl_reasoner.evaluation.statistics import mcnemar, tango, wilson
from support.documents import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "real"))

import over_seeds
import run

RESULTS = ROOT / "benchmarks" / "real" / "results"
PAGE = (ROOT / "docs" / "real-models.md").read_text(encoding="utf-8")

# Runs from before `right_per_problem` was kept: of their problems nothing can be made again.
WITHOUT_MARKS = {
    *(f"gsm8k_qwen_coder-{seed}" for seed in ("0", "1", "chat-0")),
    *(f"instructions_smollm2-{seed}" for seed in range(2)),
    *(f"mbpp_qwen_coder-{seed}" for seed in range(2)),
    "tool_qwen_coder-0",
    "word_problems_moe-0",
    *(f"word_problems_smollm2-{seed}" for seed in range(4)),
}
STRICT_ALONE = {"gsm8k_qwen_coder-2", *(f"mbpp_qwen_coder-{seed}" for seed in range(2, 9))}


def of_runs() -> dict[str, dict[str, Any]]:
    told = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    return {name: result for name, result in told.items() if "paired_with_before" in result}


def test_each_run_keeps_what_was_right_of_each_problem() -> None:
    runs = of_runs()
    assert {n for n, result in runs.items() if "right_per_problem" not in result} == WITHOUT_MARKS
    strict = {n for n, result in runs.items() if "lenient_per_problem" not in result}
    assert strict == WITHOUT_MARKS | STRICT_ALONE, "a new run keeps its lenient marks, too"


@pytest.mark.parametrize("name", sorted(of_runs().keys() - WITHOUT_MARKS))
def test_marks_give_the_accuracies_and_differences_of_their_file(name: str) -> None:
    result = of_runs()[name]
    for on, entry in result["paired_with_before"]["after"].items():
        sides = [result["right_per_problem"][side][on].split() for side in ("before", "after")]
        samples = [result["evals"][side][on]["samples"] for side in ("before", "after")]
        shares = [
            [int(right) / n for right in side] for side, n in zip(sides, samples, strict=True)
        ]
        for side, share in zip(("before", "after"), shares, strict=True):
            assert math.isclose(
                result["evals"][side][on]["accuracy"], sum(share) / len(share), abs_tol=1e-9
            )
        moved = [b - a for a, b in zip(*shares, strict=True)]
        assert math.isclose(entry["difference"], sum(moved) / len(moved), abs_tol=1e-9)
        assert (entry["better"], entry["worse"]) == (
            sum(d > 0 for d in moved),
            sum(d < 0 for d in moved),
        )


def test_greedy_figures_without_marks_follow_from_their_counts() -> None:
    """Those of the README's table: an accuracy, its interval, the paired test."""
    for name in (f"word_problems_smollm2-{seed}" for seed in range(4)):
        result = of_runs()[name]
        for on, entry in result["paired_with_before"]["after"].items():
            sides = [result["evals"][side][on] for side in ("before", "after")]
            if "@" in on:
                continue
            for side in sides:
                n, right = side["problems"], side["right"]
                assert math.isclose(side["accuracy"], right / n)
                assert side["interval"] == pytest.approx(wilson(right, n))
            assert math.isclose(
                entry["difference"], (sides[1]["right"] - sides[0]["right"]) / n, abs_tol=1e-9
            )
            better, worse = entry["better"], entry["worse"]
            assert entry["p"] == pytest.approx(mcnemar(worse, better))
            assert entry["interval"] == pytest.approx(tango(better, worse, n), abs=1e-3)


def test_a_files_marks_are_strict_and_lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"problem": "1+1", "answer": "2", "scores": [1.0, 0.0], "lenient": [1.0, 1.0]}]
    bare = [{"problem": "1+1", "answer": "2", "scores": [0.0]}]
    result = EvalResult("p", rows={"a.jsonl@sampled": rows, "b": bare})
    monkeypatch.setattr(EvalResult, "load", lambda path: result)
    assert run.right_per_problem(Path("e.json")) == {"a@sampled": "1", "b": "0"}
    assert run.right_per_problem(Path("e.json"), "lenient") == {"a@sampled": "2"}


# ----------------------------------------------------------------------- the page's means


def mean_of(recipe: str, seeds: str, on: str, before: str | None = None) -> str:
    """ "+10.4 [+4.9, +15.9]*", as the page writes the mean of several seeds."""
    after = [RESULTS / f"{recipe}-{seed}.json" for seed in seeds]
    start = [RESULTS / f"{recipe}-{seed}.json" for seed in before or seeds]
    return shown(over_seeds.over_seeds(start, after)[on])


def shown(found: over_seeds.OverSeeds) -> str:
    low, high = (f"{100 * end:+.1f}" for end in found.interval)
    low, high = ("0.0" if float(end) == 0 else end for end in (low, high))
    text = f"{100 * found.difference:+.1f} [{low}, {high}]{'*' * found.bounded}"
    return text.replace("-", "−")


MEANS = {
    "word_problems_smollm2": ("0123", "word_problems_test"),
    "instructions_smollm2": ("01", "instructions_test"),
    "gsm8k_qwen_coder": ("12", "gsm8k_test"),
    "mbpp_qwen_coder": ("678", "mbpp_test"),
}


@pytest.mark.parametrize("recipe", MEANS)
def test_the_pages_table_has_each_mean_with_its_interval(recipe: str) -> None:
    seeds, on = MEANS[recipe]
    [row] = re.findall(rf"^\| \[`{recipe}`\].*$", PAGE, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3] == str(len(seeds))
    assert cells[4:6] == [mean_of(recipe, seeds, on), mean_of(recipe, seeds, f"{on}@sampled")]


def test_a_run_of_one_seed_has_the_interval_of_its_file() -> None:
    for recipe, on in (
        ("word_problems_moe", "word_problems_test"),
        ("tool_qwen_coder", "gsm8k_test"),
    ):
        paired = of_runs()[f"{recipe}-0"]["paired_with_before"]["after"]
        [row] = re.findall(rf"^\| \[`{recipe}`\].*$", PAGE, re.MULTILINE)
        for entry in (paired[name] for name in (on, f"{on}@sampled") if name in paired):
            low, high = (f"{100 * end:+.1f}" for end in entry["interval"])
            assert f"| {100 * entry['difference']:+.1f} [{low}, {high}] |" in row


def sentence_means() -> Iterator[tuple[str, str]]:
    """(seeds, mean) of MBPP's settings, in the sentences behind their tables."""
    for seeds in ("45", "678", "45678", "0123"):
        for on in ("mbpp_test", "mbpp_test@sampled", "humaneval", "humaneval@sampled"):
            if seeds != "0123" or on.startswith("mbpp"):
                yield seeds, mean_of("mbpp_qwen_coder", seeds, on)
    for seeds in ("45", "678"):
        for on in ("mbpp_test", "mbpp_test@sampled"):
            yield seeds, mean_of("mbpp_qwen_coder", seeds, on, "3" * len(seeds))


def test_the_pages_sentences_have_their_means_and_intervals() -> None:
    """The mean stands before its interval, words between them: both are looked for in one line."""
    for seeds, mean in sentence_means():
        value, interval = mean.split(" ", 1)
        found = [
            line
            for line in PAGE.splitlines()
            if interval in line and re.search(rf"(?<![\d.]){re.escape(value.lstrip('+'))}\b", line)
        ]
        assert found, (seeds, mean)


# ------------------------------------------------------------------ the READMEs' sentences


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def greedy(name: str, side: str, on: str) -> str:
    return percent(of_runs()[name]["evals"][side][on]["accuracy"])


def arm(name: str, kind: str, on: str) -> str:
    """What a control arm ends at, of its set without a folder and an ending."""
    [accuracy] = [
        entry["accuracy"]
        for place, entry in of_runs()[name]["controls"]["arms"][kind]["sets"].items()
        if Path(place.partition("@")[0]).stem + place.partition(".jsonl")[2] == on
    ]
    return percent(accuracy)


def figures_of_the_sentences() -> Iterator[str]:
    words = "word_problems_test"
    for seed in range(4):
        entry = of_runs()[f"word_problems_smollm2-{seed}"]["paired_with_before"]["after"][words]
        assert entry["lenient"]["difference"] >= entry["difference"] - 1e-9, "told as no form"
    yield from re.findall(r"[+-]?\d+\.\d", mean_of("word_problems_smollm2", "0123", words))
    yield from (
        arm("word_problems_smollm2-0", "form_only", on) for on in (words, f"{words}@sampled")
    )
    ends = {
        arm("word_problems_smollm2-3", "random_reward", on) for on in (words, f"{words}@sampled")
    }
    assert ends == {"0.0"}, "told as 0%"
    yield greedy("mbpp_qwen_coder-3", "before", "mbpp_test")  # with a system prompt, 512 tokens
    yield from sorted(greedy(f"mbpp_qwen_coder-{seed}", "after", "mbpp_test") for seed in (6, 7, 8))
    yield from re.findall(r"[+-]?\d+\.\d", mean_of("mbpp_qwen_coder", "678", "mbpp_test", "333"))
    chat = greedy("gsm8k_qwen_coder-chat-0", "before", "gsm8k_test")
    trained = [greedy(f"gsm8k_qwen_coder-{seed}", "after", "gsm8k_test") for seed in (1, 2)]
    assert max(map(float, trained)) < float(chat), "told as no gain"
    yield from (chat, *trained)
    yield from (greedy("tool_qwen_coder-0", side, "gsm8k_test") for side in ("before", "after"))


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_every_figure_of_the_readmes_sentences_is_made_from_the_results(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)[2]
    prose = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    found = re.findall(r"(?<![A-Za-z])[+-]?\d+\.\d(?!\d|B)", prose)
    assert found == [*figures_of_the_sentences()]


@pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
def test_what_the_files_do_not_keep_is_said(document: str) -> None:
    """Sampled intervals of the table come from samples that no file has problem by problem."""
    text = (ROOT / document).read_text(encoding="utf-8")
    assert {"README.md": "cannot be recomputed", "README.zh-CN.md": "无法重算"}[document] in text
    assert "Q4_1" in text and "Q4_K_M" in text, "4-bit weights were measured, not the hub's"


@pytest.mark.parametrize("recipe", [*MEANS, "word_problems_moe", "tool_qwen_coder"])
def test_a_recipe_says_of_which_weights_its_figures_are(recipe: str) -> None:
    text = (ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8")
    source = next(run["policy"]["source"] for name, run in of_runs().items() if recipe in name)
    kind = "Q4_K_M" if "Q4_K_M" in source else "Q4_1"
    words = " ".join(text.split())
    assert "4-bit file" in words and kind in words and "no figure" in words
