"""The report page: built from a run folder alone, complete, escaped, offline and repeatable."""

import json
import math
import random
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.errors import UserError
from rl_reasoner.intervals import wilson
from rl_reasoner.report import write_report
from rl_reasoner.report.html import document, h
from rl_reasoner.report.read import read_run
from rl_reasoner.report.text import duration, plain, short

HOSTILE = "</script></pre><img src=x onerror=alert(1)><b>\x00\x1b[31m\ud800 & \"'"


def figures(accuracy: float, n: int = 400, **more: Any) -> dict[str, Any]:
    return {
        "problems": n,
        "samples": 1,
        "accuracy": accuracy,
        "interval": wilson(accuracy * n, n),
        "truncated": 0.01,
        "mean_length": 22.0 + 30 * accuracy,
        "temperature": 0.0,
        **more,
    }


def evaluation(name: str, greedy: float, chain: float, sampled: float) -> dict[str, Any]:
    curve = {str(k): 1 - (1 - sampled) ** (0.6 * k + 0.4) for k in (1, 2, 4, 8)}
    problem = "Compute (17 * 5 + 3) mod 11."
    return {
        "policy": "scratch:moe-tiny",
        "name": name,
        "sets": {
            "modular_test": figures(greedy, thinking=0.06 if name == "before" else 0.98),
            "modular_test@chain-forced": figures(chain),
            "modular_test@direct-forced": figures(0.13 if name == "before" else 0.14),
            "modular_test@sampled": figures(
                sampled, samples=8, temperature=1.0, pass_at=curve, thinking=0.3
            ),
            "sums_hard": figures(greedy * 0.6, 200),
        },
        "rows": {
            "modular_test": [
                {
                    "problem": problem,
                    "answer": "0",
                    "completions": ["<think>17*5=85, 85+3=88, 88 mod 11=0</think> 0"],
                    "scores": [1.0 if name == "after" else 0.0],
                    "reasons": ["equal as integers" if name == "after" else "expected 0, got 4"],
                }
            ]
        },
    }


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def grpo_metrics(steps: int, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        share = 0.12 + 0.62 / (1 + math.exp(-(step - 0.4 * steps) / (0.09 * steps)))
        reward = share + rng.gauss(0, 0.04)
        skew = [
            1 + 0.8 * math.exp(-step / 40) * math.sin(i * 2.1) + rng.random() / 5 for i in range(8)
        ]
        row: dict[str, Any] = {
            "step": step,
            "loss": rng.gauss(0, 0.01),
            "reward": reward,
            "reward_std": 0.35 - 0.2 * abs(share - 0.4),
            "rewards/math_answer/mean": reward - 0.05,
            "rewards/math_answer/std": 0.4,
            "rewards/format_tags/mean": min(1.0, share + 0.2),
            "completions/mean_length": 20 + 40 * share + rng.gauss(0, 1.5),
            "completions/min_length": 8 + 10 * share,
            "completions/max_length": 60 + 36 * share,
            "completions/clipped_ratio": max(0.0, 0.06 - 0.05 * share + rng.gauss(0, 0.004)),
            "kl": 0.002 * step / steps + abs(rng.gauss(0, 2e-4)),
            "entropy": 0.9 - 0.6 * share + rng.gauss(0, 0.02),
            "frac_reward_zero_std": min(1.0, abs(share - 0.4) + 0.1),
            "clip_ratio/region_mean": abs(rng.gauss(0.004, 0.002)),
            "grad_norm": abs(rng.gauss(0.6, 0.2)),
            "learning_rate": 1e-4,
            "step_time": 2.4 + rng.gauss(0, 0.1),
            "timing/generation": 1.3 + rng.gauss(0, 0.08),
            "timing/reward": 0.2 + rng.gauss(0, 0.02),
            "timing/training": 0.9 + rng.gauss(0, 0.05),
            "tokens_per_second": 3100 + rng.gauss(0, 120),
            "experts/load/layer0": [s / sum(skew) for s in skew],
            "experts/load/layer1": [s / sum(skew) for s in reversed(skew)],
            "experts/max_over_mean": max(skew) * 8 / sum(skew),
        }
        if step % max(1, steps // 8) == 0:
            row["eval/modular_test/accuracy"] = share
            row["eval/modular_test/interval"] = wilson(share * 200, 200)
        rows.append(row)
    return rows


def rollout(step: int, group: int, index: int, right: bool) -> dict[str, Any]:
    fault = index == 5
    score: dict[str, Any] = {
        "value": float(right),
        "reason": "equal as integers",
        "outcome": "score",
    }
    if not right:
        score["reason"] = "expected 6, got 3"
    if fault:
        score = {"value": None, "reason": "timed out after 5 s", "outcome": "fault"}
    chain = "<think>\n7 * 8 = 56\n56 mod 10 = 6\n</think>\n"
    return {
        "step": step,
        "group": group,
        "prompt": f"Compute (7 * 8 + {group}) mod 10. Think first.",
        "completion": f"{chain if right else ''}The answer is {6 if right else 3}.",
        "answer": "6",
        "reward": None if fault else float(right),
        "scores": {
            "math_answer": score,
            "format_tags": {"value": float(right), "reason": "", "outcome": "score"},
        },
        "advantage": None if fault else (0.9 if right else -1.1),
        "truncated": index == 3,
    }


def make_run(folder: Path, *, steps: int = 60) -> Path:
    """A whole run as training leaves it: a cold start and GRPO, evaluated before and after."""
    rng = random.Random(0)
    (folder / "evals").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(
        "name: modular-r1-zero\npolicy: {source: 'scratch:moe-tiny'}\n"
        "stages: [{kind: sft}, {kind: grpo}]\nrun: {seed: 7}\n"
    )
    lock = {
        "policy": {"parameters": 3_145_728, "active_parameters": 1_204_224},
        "seed": 7,
        "device": "cpu (2 cores)",
        "git_commit": "0123abcd",
        "versions": {"torch": "2.9.0", "trl": "1.16.0"},
        "data": {"modular_train": "sha256:9f86d081884c7d65"},
        "command": "rl-reasoner train recipes/modular.py --run.seed 7",
    }
    (folder / "lock.json").write_text(json.dumps(lock))
    for result in (
        evaluation("before", 0.13, 0.74, 0.30),
        evaluation("after", 0.745, 0.75, 0.73),
    ):
        (folder / "evals" / f"{result['name']}.json").write_text(json.dumps(result))
    cold = [
        {
            "step": step,
            "loss": 2.4 * math.exp(-step / 15) + 0.3 + rng.gauss(0, 0.03),
            "grad_norm": abs(rng.gauss(1, 0.2)),
            "mean_token_accuracy": 0.9 - 0.6 * math.exp(-step / 15),
            "step_time": 0.5,
        }
        for step in range(1, 41)
    ]
    lines(folder / "stages" / "1-sft" / "metrics.jsonl", cold)
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", grpo_metrics(steps, rng))
    rows = [
        rollout(step, group, index, index % 3 != 1 or (step == steps and group == 0))
        for step in (1, 2, steps)
        for group in range(4)
        for index in range(10)
    ]
    lines(folder / "stages" / "2-grpo" / "rollouts.jsonl", rows)
    return folder


class Parsed(HTMLParser):
    """The page as a browser's parser sees it: tags, attributes, ids, texts."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def report(folder: Path) -> tuple[str, Parsed]:
    page = write_report(folder).read_text(encoding="utf-8")
    return page, Parsed(page)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_whole_run_gives_a_whole_page(tmp_path: Path) -> None:
    page, parsed = report(make_run(tmp_path))
    assert parsed.open == []
    for shown in (
        "modular-r1-zero",
        "scratch:moe-tiny · 3.15M parameters · 1.2M active per token",
        "13.0%",
        "74.5%",
        "intervals apart",
        "400 problems, Wilson 95% intervals",
        "40 sft, 60 grpo",
        "Chain forced",
        "pass@k on modular_test@sampled",
        "Stage 1 · sft",
        "Stage 2 · grpo",
        "KL to the reference",
        "Expert load, layer 1",
        "Accuracy on modular_test",
        "Time of a step",
        "math_answer: timed out after 5 s",
        "expected 6, got 3",
        "The same problem, before and after",
        "rl-reasoner train recipes/modular.py --run.seed 7",
        "sha256:9f86d081884c7d65",
    ):
        assert shown in parsed.text, shown
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) >= 15
    assert not re.search(r"(fill|stroke): ?#", "".join(drawings))  # every colour is the page's


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    page, parsed = report(make_run(tmp_path))
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]+)\)", page)
    references += [v[1:] for v in parsed.values("href") if v.startswith("#")]
    assert references
    assert set(references) <= set(ids)


def test_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page, parsed = report(make_run(tmp_path))
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert "script" not in parsed.tags
    assert all(v.startswith("#") for v in re.findall(r"url\(([^)]*)\)", page))
    assert all(v.startswith(("#", "data:")) for v in parsed.values("href") + parsed.values("src"))
    assert any(v.startswith("default-src 'none'") for v in parsed.values("content"))


def test_same_folder_same_bytes_whatever_the_plot_settings(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    first = write_report(folder).read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.hashsalt": "x"}):
        backend = matplotlib.rcParams["backend"]
        assert write_report(folder).read_bytes() == first
        assert matplotlib.rcParams["font.size"] == 20
        assert matplotlib.rcParams["backend"] == backend


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    row = rollout(3, 0, 0, False) | {
        "prompt": [{"role": "user", "content": HOSTILE}],
        "completion": HOSTILE * 2000,
        "answer": HOSTILE,
        "scores": {HOSTILE: {"value": None, "reason": HOSTILE, "outcome": "fault"}},
    }
    lines(folder / "stages" / "2-grpo" / "rollouts.jsonl", [row])
    metrics: dict[str, Any] = {
        "step": 1,
        "loss": 1.0,
        f"rewards/{HOSTILE}/mean": 0.1,
        "reward": 1.0,
    }
    metrics |= {f"eval/{HOSTILE}/accuracy": 0.5, f"experts/load/{HOSTILE}": [0.5, 0.5]}
    metrics |= {f"timing/{HOSTILE}": 1.0, "rewards/other/mean": 0.1}
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", [metrics, metrics | {"step": 2}])
    sets = {HOSTILE: figures(0.5), f"{HOSTILE}@{HOSTILE}": figures(0.5)}
    rows = [{"problem": HOSTILE, "completions": [HOSTILE], "scores": [0], "reasons": [HOSTILE]}]
    for name in ("before", "after"):
        edit(folder / "evals" / f"{name}.json", sets=sets, rows={HOSTILE: rows})
    edit(folder / "lock.json", device=HOSTILE, command=[HOSTILE], **{HOSTILE: HOSTILE})
    (folder / "recipe.yaml").write_text(json.dumps({"name": HOSTILE, "policy": HOSTILE}))
    page, parsed = report(folder)
    assert not {"img", "script"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.open == []
    assert parsed.text.count("<img src=x onerror=alert(1)>") > 20
    assert not re.search("[\x00-\x08\x0b-\x1f]", page)
    assert "more characters" in parsed.text


@pytest.mark.parametrize(
    ("missing", "still"),
    [
        (["recipe.yaml"], "74.5%"),
        (["lock.json"], "74.5%"),
        (["evals/after.json"], "13.0%"),
        (["evals"], "Stage 2 · grpo"),
        (["evals", "stages/2-grpo"], "Stage 1 · sft"),
        (["stages/2-grpo/metrics.jsonl"], "expected 6, got 3"),
        (["stages/2-grpo/rollouts.jsonl"], "KL to the reference"),
        (["stages", "evals", "lock.json"], "modular-r1-zero"),
        (["stages", "evals", "recipe.yaml"], "sha256:9f86d081884c7d65"),
    ],
)
def test_missing_parts_are_absent(tmp_path: Path, missing: list[str], still: str) -> None:
    folder = make_run(tmp_path, steps=4)
    for part in missing:
        path = folder / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    _, parsed = report(folder)
    assert still in parsed.text
    assert "None" not in parsed.text
    assert "Could not be read" not in parsed.text


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=4)
    metrics = folder / "stages" / "2-grpo" / "metrics.jsonl"
    odd = '{"step": 5, "reward": NaN, "kl": Infinity, "experts/load/layer0": ["x"], "loss": "x"}\n'
    metrics.write_text(metrics.read_text() + odd + '{"step": 6, "rew')
    (folder / "evals" / "after.json").write_text("{")
    (folder / "evals" / "odd.json").write_text('{"sets": {"a": {"accuracy": null}, "b": 3}}')
    (folder / "recipe.yaml").write_text("a: [")
    _, parsed = report(folder)
    assert "stages/2-grpo/metrics.jsonl (1 lines)" in parsed.text
    assert "evals/after.json" in parsed.text
    assert "recipe.yaml" in parsed.text
    assert "13.0%" in parsed.text
    assert "nan" not in parsed.text


def test_rollouts_are_counted_whole_and_kept_in_part(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path))
    kept = run.stages[1].rollouts
    assert kept is not None
    assert kept.completions == 120
    assert kept.outcomes["math_answer"]["fault"] == 12
    assert [step for step, _ in kept.steps] == [1, 60]
    for _, groups in kept.steps:
        assert [(len(g.samples), g.hidden) for g in groups] == [(8, 2)] * 3


def test_a_resumed_step_counts_once_and_rare_logging_counts_whole_time(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    rows = [{"step": s, "reward": r, "step_time": 2.0} for s, r in ((10, 1), (20, 9), (20, 2))]
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", rows)
    stage = read_run(folder).stages[1]
    assert stage.series("reward") == ([10, 20], [1.0, 2.0])
    assert stage.seconds() == 40.0


def test_a_long_run_gives_a_small_page_that_keeps_its_spikes(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3000)
    metrics = folder / "stages" / "2-grpo" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows[1234]["grad_norm"] = 9000.0
    lines(metrics, rows)
    page, _ = report(folder)
    assert len(page) < 600_000
    norms = [figure for figure in page.split("<figure>") if "Gradient norm" in figure]
    assert re.search(r">[3-9],000</text>", norms[1])  # the axis reaches up to the spike


def test_report_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path, steps=2)
    code = (
        "import sys; from pathlib import Path; from rl_reasoner.report import write_report;"
        f"write_report(Path({str(tmp_path)!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- texts and figures


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_comes_back_from_the_page_as_text(text: str, value: str) -> None:
    page = document(h("html", h("p", text, h("i"), text, title=value)))
    page.encode()
    parsed = Parsed(page)
    assert parsed.tags == ["html", "p", "i"]
    assert "".join(parsed.texts).strip("\n") == (plain(text) * 2).strip("\n")
    assert parsed.values("title") == [plain(value)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.01234, "0.0123"),
        (-0.5, "−0.5"),
        (99.96, "100"),
        (3141.6, "3,142"),
        (12_345, "12.3k"),
        (999_999, "1,000k"),
        (3_145_728, "3.15M"),
        (7.2e9, "7.2B"),
        (1e300, "1e+288T"),
    ],
)
def test_short_figures(value: float | None, shown: str) -> None:
    assert short(value) == shown


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 59.96, 60, 187, 7500)] == [
        "0.0 s",
        "1 min 00 s",
        "1 min 00 s",
        "3 min 07 s",
        "2 h 05 min",
    ]
