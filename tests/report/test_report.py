"""The report page: built from a run folder alone, complete, escaped, offline and repeatable."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.errors import UserError
from rl_reasoner.report import write_report
from rl_reasoner.report.charts import ends
from rl_reasoner.report.rollouts import read_rollouts, sample_of, samples_after, with_seconds
from rl_reasoner.report.run_data import read_run
from support.report_runs import Parsed, figures, lines, make_run, packs, rollout

HOSTILE = "</script></pre><img src=x onerror=alert(1)><b>\x00\x1b[31m\ud800 & \"'"


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
        "better",
        "400 problems, Wilson 95% intervals",
        "30.0% → 73.0%",
        "Did it get better?",
        "What was the task?",
        "Compute (17 * 5 + 3) mod 11.",
        "Skill or form?",
        "What did it cost?",
        "The figures after training are of policy/: the last step of the last stage.",
        "40 sft, 60 grpo",
        "Chain forced",
        "pass@k on modular_test@sampled",
        "Stage 1 · sft",
        "Stage 2 · grpo",
        "KL to the reference",
        "Expert load, layer 1",
        "Accuracy on modular_test",
        "band: one standard deviation of all completions of a step",
        "Time per step",
        "Success by level",
        "Levels drawn",
        "math_answer: timed out after 5 s",
        "Training · grpo",
        "Evaluation · modular_test",
        "rl-reasoner train recipes/modular.py --run.seed 7",
        "sha256:9f86d081884c7d65",
    ):
        assert shown in " ".join(parsed.text.split()), shown
    assert 'name="viewport"' in page
    charts = packs(page)["about"]["charts"]
    assert len(charts) >= 20
    assert set(charts) == set(parsed.values("data-chart"))
    assert charts["stage-2/KL to the reference"]["lines"][0]["x"][-1] == 60


def test_a_loss_on_another_set_stands_on_the_first_screen(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for when, accuracy in (("before", 0.6), ("after", 0.3)):
        file = run / "evals" / f"{when}.json"
        sets = json.loads(file.read_text())["sets"]
        edit(file, sets={**sets, "other": figures(accuracy), "same": figures(0.5)})
    _, parsed = report(run)
    first = " ".join(parsed.text.split("What was the task?")[0].split())
    assert "other, greedy: 60.0% → 30.0%, −30.0 worse" in first
    assert "same," not in first


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    _, parsed = report(make_run(tmp_path))
    ids = parsed.values("id")
    assert len(ids) == len(set(ids))
    references = [v[1:] for v in parsed.values("href") if v.startswith("#")]
    assert len(references) > 5
    assert set(references) <= set(ids)


def test_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    page, parsed = report(make_run(tmp_path))
    links = parsed.values("href") + parsed.values("src")
    assert all(v.startswith(("#", "data:")) for v in links)
    assert "@import" not in page
    assert "url(" not in page
    [rule] = [v for v in parsed.values("content") if v.startswith("default-src 'none'")]
    assert "unsafe" not in rule
    assert "connect-src" not in rule
    assert "require-trusted-types-for 'script'" in rule


def test_scripts_make_no_markup_and_run_no_text() -> None:
    folder = Path(write_report.__code__.co_filename).parent
    for path in folder.glob("*.js"):
        source = path.read_text(encoding="utf-8")
        banned = [
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "Function(",
        ]
        assert not [word for word in banned if word in source], path


def test_same_folder_same_bytes(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


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
    assert "img" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert parsed.open == []
    assert parsed.text.count("<img src=x onerror=alert(1)>") > 20
    assert not re.search("[\x00-\x08\x0b-\x1f]", page)
    found = packs(page)
    [[completion, said]] = found["stage-2-rollouts-0"]["rows"]
    assert completion.startswith("</script></pre><img src=x onerror=alert(1)>")
    assert "more characters" in completion
    assert said[0][2].startswith("</script>")


@pytest.mark.parametrize(
    ("missing", "still"),
    [
        (["recipe.yaml"], "74.5%"),
        (["lock.json"], "74.5%"),
        (["evals/after.json"], "13.0%"),
        (["evals"], "Stage 2 · grpo"),
        (["evals", "stages/2-grpo"], "Stage 1 · sft"),
        (["stages/2-grpo/metrics.jsonl"], "Training · grpo"),
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


def test_rollouts_are_counted_whole_and_kept_by_whole_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path)
    monkeypatch.setattr("rl_reasoner.report.rollouts.ROLLOUTS_KEPT", 80)
    kept = read_run(folder).stages[1].rollouts
    assert kept is not None
    assert kept.completions == 120
    assert kept.outcomes["math_answer"]["fault"] == 12
    assert [sample.step for sample in kept.samples] == [1] * 40 + [60] * 40
    page, _ = report(folder)
    found = packs(page)
    [source] = [s for s in found["about"]["sources"] if s["place"] == "stage-2"]
    assert source["note"] == "80 of 120 are in this page: 2 of 3 steps, evenly spread."
    assert found["stage-2-rollouts"]["where"] == [1] * 40 + [60] * 40
    assert set(found["stage-2-rollouts-experts"]) == {"1", "60"}


def test_what_is_packed_is_what_was_sampled(tmp_path: Path) -> None:
    page, _ = report(make_run(tmp_path))
    found = packs(page)
    index, part = found["stage-2-rollouts"], found["stage-2-rollouts-0"]
    assert len(index["group"]) == len(part["rows"]) == 120
    assert index["reward"][:6] == [1.0, 0.0, 1.0, 1.0, 0.0, None]
    assert index["flags"][3:6] == [1, 0, 2]  # cut off, nothing, fault
    prompt, answer = part["prompts"][str(index["group"][0])]
    assert (prompt, answer) == ("Compute (7 * 8 + 0) mod 10. Think first.", "6")
    _, title = index["groups"][0]
    assert title == "0)"  # what the prompts do not share
    completion, said = part["rows"][1]
    assert completion == "The answer is 3."
    assert said[0] == ["math_answer", 0.0, "expected 6, got 3", "score"]


def test_an_evaluations_problems_hold_before_and_after_side_by_side(tmp_path: Path) -> None:
    page, _ = report(make_run(tmp_path))
    found = packs(page)
    [key] = [s["key"] for s in found["about"]["sources"] if s["place"] == "modular_test"]
    assert found[key]["where"] == ["before", "after"]
    assert found[key]["group"] == [0, 0]
    assert found[key]["reward"] == [0.0, 1.0]


def test_a_row_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    path = make_run(tmp_path) / "stages" / "2-grpo" / "rollouts.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    first = read_rollouts(path)
    assert (first.completions, first.broken) == (119, 0)
    path.write_bytes(whole)
    end, samples = samples_after(path, first.end)
    assert (end, len(samples)) == (len(whole), 1)
    path.write_bytes(whole[:500])
    assert samples_after(path, first.end) == (-1, [])


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
    assert len(page) < 900_000
    [norms] = packs(page)["about"]["charts"]["stage-2/Gradient norm"]["lines"]
    assert len(norms["x"]) <= 400
    assert norms["y"][norms["x"].index(1235)] == 9000.0


def test_report_needs_no_torch(tmp_path: Path) -> None:
    make_run(tmp_path, steps=2)
    code = (
        "import sys; from pathlib import Path; from rl_reasoner.report import write_report;"
        f"write_report(Path({str(tmp_path)!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def judged(name: str, strict: int, lenient: int, *, with_lenient: bool = True) -> dict[str, Any]:
    """An evaluation of 100 problems, of which so many are right in either way."""
    marks = {"lenient": figures(lenient / 100, 100)} if with_lenient else {}
    return {"policy": "m", "name": name, "sets": {"gsm8k": figures(strict / 100, 100, **marks)}}


def rows_of(strict: int, lenient: int, *, with_lenient: bool = True) -> list[dict[str, Any]]:
    rows = []
    for i in range(100):
        row = {"set": "gsm8k", "problem": f"p{i}", "answer": "1", "scores": [float(i < strict)]}
        rows.append(row | ({"lenient": [float(i < lenient)]} if with_lenient else {}))
    return rows


@pytest.mark.parametrize("with_lenient", [True, False])
def test_a_policy_that_cannot_be_forced_has_its_gain_explained_by_lenient_judging(
    tmp_path: Path, with_lenient: bool
) -> None:
    folder = make_run(tmp_path, steps=3)
    shutil.rmtree(folder / "evals")
    for name, counts in (("before", (10, 40)), ("after", (40, 50))):
        made = judged(name, *counts, with_lenient=with_lenient)
        lines(folder / "evals" / f"{name}.rows.jsonl", rows_of(*counts, with_lenient=with_lenient))
        (folder / "evals" / f"{name}.json").write_text(json.dumps(made))
    _, parsed = report(folder)
    told = "of +30.0 points strict, 10.0 are also there leniently: two thirds of the gain is form"
    assert (told in parsed.text) == ("What the gain is" in parsed.text) == with_lenient
    assert ("by the paired test)" in parsed.text) == with_lenient, "40 to 50: intervals overlap"
    assert ("Greedy, lenient" in parsed.text) == with_lenient
    assert "Lenient" in parsed.text and "40.0%" in parsed.text
    assert ("40.0% → 50.0%" in parsed.text) == with_lenient


def sampled_run(folder: Path, before: list[int], after: list[int]) -> Parsed:
    """The page of a run whose 4 samples of each problem were right so often, before and after."""
    make_run(folder, steps=3)
    shutil.rmtree(folder / "evals")
    for name, counts in (("before", before), ("after", after)):
        rows = [
            {
                "set": "sums@sampled",
                "problem": f"p{i}",
                "answer": "1",
                "scores": [1.0] * right + [0.0] * (4 - right),
            }
            for i, right in enumerate(counts)
        ]
        lines(folder / "evals" / f"{name}.rows.jsonl", rows)
        share = sum(counts) / len(counts) / 4
        passed = sum(right > 0 for right in counts) / len(counts)
        own = {"problems": len(counts), "samples": 4, "accuracy": share, "interval": [0.0, 1.0]}
        own |= {"pass_at": {"1": share, "4": passed}, "pass_at_interval": {}}
        sets = {"sums": figures(0.5, 40), "sums@sampled": own}
        made = {"policy": "m", "name": name, "sets": sets}
        (folder / "evals" / f"{name}.json").write_text(json.dumps(made))
    return report(folder)[1]


def test_pass_at_k_is_tested_on_the_same_problems_and_told_gain_or_loss(tmp_path: Path) -> None:
    broad, narrow = [1] * 40, [4] * 16 + [0] * 24
    lost = sampled_run(tmp_path / "lost", broad, narrow)
    assert "pass@4 fell from 100.0% to 40.0% (by the paired test: −60.0 points" in lost.text
    assert "no intervals given" not in lost.text
    gained = sampled_run(tmp_path / "gained", narrow, broad)
    assert "pass@4 rose from 40.0% to 100.0% (by the paired test: +60.0 points" in gained.text
    for page, chip in ((lost, "worse"), (gained, "better")):
        assert chip in page.texts
        assert "100.0% → 40.0%" in page.text or "40.0% → 100.0%" in page.text


def test_a_loss_is_shown_by_a_problem_that_was_right_before(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    for name, right in (("before", 2), ("after", 1)):
        rows = [
            {
                "problem": f"{i} + 1 =",
                "answer": str(i + 1),
                "completions": [f"{name} says {i}"],
                "scores": [float(i < right)],
            }
            for i in range(3)
        ]
        file = folder / "evals" / f"{name}.json"
        sets = {"modular_test": figures(right / 3, 3)}
        lines(file.with_suffix(".rows.jsonl"), [{**row, "set": "modular_test"} for row in rows])
        edit(file, sets=sets, rows={})
    _, parsed = report(folder)
    assert "A problem of the test set, right before only" in parsed.text
    assert "1 + 1 =" in parsed.text and "before says 1" in parsed.text
    assert "Of 3 problems 0 came to be answered better and 1 worse" in parsed.text


def test_curves_that_do_not_move_are_folded_and_told(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    rows = [{"step": s, "loss": 1.0 / s, "grad_norm": 0.25, "kl": 0.0} for s in (1, 2, 3)]
    lines(folder / "stages" / "1-sft" / "metrics.jsonl", rows)
    _, parsed = report(folder)
    assert "2 that did not move: KL to the reference 0, Gradient norm 0.25" in parsed.text


def test_how_to_get_it_again_names_machine_and_threads(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    edit(folder / "lock.json", device="cpu", threads=2, machine="Linux, 2 cores", python="3.11.7")
    _, parsed = report(folder)
    assert "Made on Linux, 2 cores, cpu, 2 threads, Python 3.11.7, torch 2.9.0" in parsed.text
    command = "OMP_NUM_THREADS=2 rl-reasoner train recipes/modular.py"
    assert command in " ".join(parsed.text.split())


def test_an_unfinished_stage_tells_its_steps_of_how_many_and_the_time_left(tmp_path: Path) -> None:
    folder = make_run(tmp_path, steps=3)
    (folder / "recipe.yaml").write_text("name: x\nstages: [{kind: sft}, {kind: grpo, steps: 9}]\n")
    rows = [{"step": s, "reward": 0.5, "step_time": 2.0} for s in (1, 2, 3)]
    lines(folder / "stages" / "2-grpo" / "metrics.jsonl", rows)
    _, parsed = report(folder)
    assert "40 sft, 3 of 9 grpo" in parsed.text
    assert "6 steps of grpo, about 12.0 s" in parsed.text


def test_a_call_has_its_own_seconds_beside_one_that_is_not_shown(tmp_path: Path) -> None:
    """Of a long completion the end is not kept, and with it a call: its seconds are no other's."""
    calls = [{"step": 1, "group": 0, "calls": [{"seconds": seconds}]} for seconds in (9.0, 0.25)]
    lines(tmp_path / "ledger.jsonl", calls)
    samples = [
        sample_of(
            {
                "step": 1,
                "group": 0,
                "completion": "x" * length,
                "turns": [{"tool": "python", "kind": "ok", "text": [length - 2, length]}],
            }
        )
        for length in (20_000, 20)
    ]
    long, short = with_seconds(samples, tmp_path)
    assert not long.turns
    assert [turn.seconds for turn in short.turns] == [0.25]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([0.5], (0.5, 0.5)),
        ([0.0, 1.0], (0.0, 1.0)),
        ([0.0, 1.0, 0.5, 0.5, 1.0, 0.5], (0.5, 0.75)),
        ([0.25] * 40 + [0.4] * 9 + [0.9], (0.25, 0.45)),
        ([0.0] * 100 + [1.0] * 900, (0.0, 1.0)),
    ],
)
def test_a_curve_is_told_by_the_means_of_its_ends(
    values: list[float], told: tuple[float, float]
) -> None:
    """A last step that is the best by chance is not the end of a curve."""
    assert ends(values) == pytest.approx(told)
