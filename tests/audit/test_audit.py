"""An audit: a run that is what it says it is, and every way in which one was tampered with."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_reasoner.audit import Audit, versions
from rl_reasoner.audit.likeness import Likeness, Steps, verdict_of
from rl_reasoner.pipeline.lineage import hash_of
from rl_reasoner.pipeline.run_folder import RunFolder
from support.audits import audit_run
from support.commands import Cli, lines, run_outside
from support.tiny import REWARD, rows

RECIPE = """
name: tiny
policy: scratch:moe-tiny
template: plain
data: rows.jsonl
rewards: {"near.py:near": 1}
stages:
- kind: grpo
  steps: 3
  save_every: 2
  group: {size: 4, prompts: 2}
  sampling: {max_tokens: 8}
  optim: {lr: 1.0e-3}
  router_replay: true
evals: {sets: [held.jsonl], max_tokens: 8, reward: "near.py:near"}
run: {folder: run, device: cpu}
"""
STAGE = "run/stages/1-grpo"


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of a mixture with router replay, its rows and its reward."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "near.py").write_text(REWARD, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    data = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(24)]
    (folder / "rows.jsonl").write_text(lines(*data[:16]), encoding="utf-8")
    (folder / "held.jsonl").write_text(lines(*data[16:]), encoding="utf-8")
    done = run_outside(folder, "train", "recipe.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The threads of the run, which the environment set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wrong(audit: Audit) -> set[str]:
    """The parts that an audit names."""
    return {finding.part for finding in audit.of("differs")}


def replaced(file: str, before: str, after: str) -> None:
    """Replace the first `before` in a file by `after`."""
    text = Path(file).read_text(encoding="utf-8")
    assert before in text, file
    Path(file).write_text(text.replace(before, after, 1), encoding="utf-8")


def changed_row(file: str, change: Callable[[dict[str, Any]], None], at: int = 0) -> None:
    """Change a row of a JSONL file."""
    every = rows(Path(file))
    change(every[at])
    Path(file).write_text(lines(*every), encoding="utf-8")


def better(score: dict[str, Any]) -> None:
    score |= {"value": 1.0, "reason": "the answer is in it", "outcome": "score"}


def a_row_of_the_data() -> None:
    changed_row("rows.jsonl", lambda row: row.update(answer="7"))


def a_row_of_the_test() -> None:
    changed_row("held.jsonl", lambda row: row.update(answer="7"))


def the_reward() -> None:
    replaced("near.py", "0.5 * digits", "0.9 * digits")


def a_line_of_the_ledger() -> None:
    changed_row(f"{STAGE}/ledger.jsonl", better)


def a_completion() -> None:
    changed_row(f"{STAGE}/rollouts.jsonl", lambda row: row.update(completion="the answer"))


def a_score_wherever_it_stands() -> None:
    """In completion, reward and ledger alike: only judging it again tells."""

    def change(row: dict[str, Any]) -> None:
        better(row["scores"]["near"])
        row["reward"] = 1.0

    changed_row(f"{STAGE}/rollouts.jsonl", change)
    a_line_of_the_ledger()


def an_advantage() -> None:
    changed_row(f"{STAGE}/rollouts.jsonl", lambda row: row.update(advantage=3.0))


def a_figure_of_a_step() -> None:
    changed_row(f"{STAGE}/metrics.jsonl", lambda row: row.update(reward=row["reward"] + 0.2))


def a_result() -> None:
    value = json.loads(Path("run/evals/after.json").read_text(encoding="utf-8"))
    value["sets"]["held.jsonl"]["accuracy"] += 0.25
    Path("run/evals/after.json").write_text(json.dumps(value), encoding="utf-8")


def a_row_of_a_result() -> None:
    """In the rows, and the figures made of them."""
    from rl_reasoner.evaluation.metrics import compute_figures
    from rl_reasoner.evaluation.result import EvalResult

    result = EvalResult.load("run/evals/after.json")
    own = result.rows["held.jsonl"]
    own[0]["scores"] = [1.0]
    result.sets["held.jsonl"] |= compute_figures(own)
    result.save("run/evals/after.json")


def an_answer_of_a_result() -> None:
    """The row's answer is made what was said, and the row is judged by it, as an audit does."""
    from rl_reasoner.evaluation.evaluate import replay
    from rl_reasoner.evaluation.result import EvalResult

    result = EvalResult.load("run/evals/after.json")
    row = result.rows["held.jsonl"][0]
    row["answer"] = row["completions"][0]
    replay(result, run_its_code=True).save("run/evals/after.json")


def other_problems_of_a_result() -> None:
    """Problems of another set, and the hash that they have."""

    def change(row: dict[str, Any]) -> None:
        row["problem"] = "1+1="

    changed_row("run/evals/after.rows.jsonl", change, at=2)


def the_hash_of_the_problems() -> None:
    value = json.loads(Path("run/evals/before.json").read_text(encoding="utf-8"))
    value["manifest"]["sets"]["held.jsonl"]["rows_sha256"] = "0" * 64
    Path("run/evals/before.json").write_text(json.dumps(value), encoding="utf-8")


def a_set_that_was_left_out() -> None:
    for name in ("before", "after"):
        value = json.loads(Path(f"run/evals/{name}.json").read_text(encoding="utf-8"))
        value["sets"].clear()
        value["rows"].clear()
        Path(f"run/evals/{name}.json").write_text(json.dumps(value), encoding="utf-8")
        Path(f"run/evals/{name}.rows.jsonl").unlink()


def a_set_of_nobody() -> None:
    """With rows, figures and hash that fit each other."""
    from rl_reasoner.evaluation.result import EvalResult

    for name in ("before", "after"):
        result = EvalResult.load(f"run/evals/{name}.json")
        result.sets["aime24"], result.rows["aime24"] = (
            part["held.jsonl"] for part in (result.sets, result.rows)
        )
        result.save(f"run/evals/{name}.json")


def a_figure_that_no_row_gives() -> None:
    value = json.loads(Path("run/evals/after.json").read_text(encoding="utf-8"))
    value["sets"]["held.jsonl"]["pass_at"] = {"8": 0.99}
    Path("run/evals/after.json").write_text(json.dumps(value), encoding="utf-8")


def steps_that_were_not_trained() -> None:
    with Path(f"{STAGE}/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 99, "reward": 1.0}) + "\n")


def half_a_step() -> None:
    with Path(f"{STAGE}/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 1.5, "reward": 1.0}) + "\n")


def a_completion_that_is_none() -> None:
    changed_row(f"{STAGE}/rollouts.jsonl", lambda row: row.pop("truncated"))


def the_prompt_of_a_completion() -> None:
    """With the ledger made anew of it: the score is that of the row."""
    changed_row(f"{STAGE}/rollouts.jsonl", lambda row: row.update(prompt="2+2="))


def a_set_that_was_not_measured() -> None:
    value = json.loads(Path("run/evals/after.json").read_text(encoding="utf-8"))
    value["sets"]["hard"] = {**value["sets"]["held.jsonl"], "accuracy": 0.99}
    Path("run/evals/after.json").write_text(json.dumps(value), encoding="utf-8")


def the_report() -> None:
    replaced("run/report.html", "</title>", ", which learned more</title>")


def scaled(file: str) -> None:
    """Scale a tensor of a file of weights."""
    tensors = load_file(file)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * 1.5}, file, metadata={"format": "pt"})


def the_weights() -> None:
    scaled("run/policy/model.safetensors")


def a_checkpoint() -> None:
    scaled(f"{STAGE}/checkpoints/checkpoint-2/model.safetensors")


def the_recipe() -> None:
    replaced("run/recipe.yaml", "lr: 0.001", "lr: 0.002")


def the_overlaps() -> None:
    value = json.loads(Path("run/contamination.json").read_text(encoding="utf-8"))
    value["held.jsonl"]["rows"] = 80
    Path("run/contamination.json").write_text(json.dumps(value), encoding="utf-8")


TAMPERINGS: list[tuple[Callable[[], None], str]] = [
    (a_row_of_the_data, "data"),
    (a_row_of_the_test, "data"),
    (the_reward, "rewards"),
    (a_line_of_the_ledger, "ledger"),
    (a_completion, "ledger"),
    (a_score_wherever_it_stands, "completions"),
    (an_advantage, "completions"),
    (a_figure_of_a_step, "metrics"),
    (a_result, "results"),
    (a_row_of_a_result, "results"),
    (an_answer_of_a_result, "results"),
    (other_problems_of_a_result, "results"),
    (the_hash_of_the_problems, "results"),
    (a_set_that_was_left_out, "results"),
    (a_set_that_was_not_measured, "results"),
    (a_set_of_nobody, "results"),
    (a_figure_that_no_row_gives, "results"),
    (steps_that_were_not_trained, "metrics"),
    (half_a_step, "metrics"),
    (a_completion_that_is_none, "completions"),
    (the_prompt_of_a_completion, "data"),
    (the_report, "report"),
    (the_weights, "weights"),
    (a_checkpoint, "checkpoints"),
    (the_recipe, "recipe"),
    (the_overlaps, "results"),
]


@pytest.mark.parametrize(
    ("tamper", "part"), TAMPERINGS, ids=[tamper.__name__ for tamper, _ in TAMPERINGS]
)
def test_what_was_tampered_with_is_named(
    tamper: Callable[[], None], part: str, copied: Path
) -> None:
    """Also by a forger who writes the hashes of the run's files anew."""
    tamper()
    RunFolder(copied / "run").seal()
    audit = audit_run(Path("run"), replays=False)
    assert part in wrong(audit), audit.findings
    assert not audit.holds


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("evals/before.rows.jsonl", "results"),
        ("stages/1-grpo/lock.json", "lock"),
        ("stages/1-grpo/policy/config.json", "weights"),
    ],
)
def test_a_file_that_has_changed_in_any_way_is_named(file: str, part: str, copied: Path) -> None:
    with (copied / "run" / file).open("a", encoding="utf-8") as opened:
        opened.write("\n")
    [first, *_] = audit_run(Path("run"), replays=False).of("differs")
    assert first.part == part and file in first.said


def test_weights_that_the_steps_do_not_make_are_named_by_the_replay(copied: Path) -> None:
    """A forger has put other weights in all places, and has written all hashes anew."""
    the_weights()
    shutil.copy("run/policy/model.safetensors", f"{STAGE}/policy/model.safetensors")
    done = json.loads(Path(f"{STAGE}/done.json").read_text(encoding="utf-8"))
    made = hash_of(Path(f"{STAGE}/policy"))
    Path(f"{STAGE}/done.json").write_text(json.dumps({**done, "made": made}), encoding="utf-8")
    RunFolder(copied / "run").seal()
    assert audit_run(Path("run"), replays=False).holds
    *others, found = audit_run(Path("run"), quiet=True).of("differs")
    assert all("sampled again" in other.said for other in others)
    assert found.part == "replay" and "first differs at after step 3: the weights" in found.said


def test_an_honest_run_is_bit_equal_when_it_is_made_again(copied: Path, cli: Cli) -> None:
    before = {p: p.read_bytes() for p in sorted(Path("run").rglob("*")) if p.is_file()}
    ended = cli("audit", "run", "--json", "--quiet", "--run-its-code")
    value = json.loads(ended.out)
    assert (ended.code, value["holds"]) == (0, True), ended.out
    assert {f["status"] for f in value["findings"] if f["part"] != "again"} == {"held"}
    [replay] = [f for f in value["findings"] if f["part"] == "replay"]
    assert "step 3: bit-equal (8 completions" in replay["said"]  # from checkpoint-2
    assert "the weights" in replay["said"]
    found = audit_run(Path("run"), step=1, quiet=True)  # from the stage's start
    assert found.holds and "step 1: bit-equal" in found.findings[-1].said
    assert {p: p.read_bytes() for p in sorted(Path("run").rglob("*")) if p.is_file()} == before


def test_a_whole_run_is_bit_equal_when_it_is_made_again(copied: Path) -> None:
    audit = audit_run(Path("run"), whole=True, quiet=True)
    said = [finding.said for finding in audit.findings if finding.part == "replay"]
    assert audit.holds and "steps 1 to 3: bit-equal (24 completions" in said[0], said
    assert [text.partition(":")[0] for text in said[1:]] == [
        "evals/after.json",
        "evals/before.json",
    ]


def test_another_thread_count_is_told(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    audit = audit_run(Path("run"), quiet=True)
    said = audit.findings[-1].said
    assert audit.holds and "another thread count (1 in the run, 2 here)" in said, said


def test_an_older_run_is_told_what_cannot_be_checked(copied: Path) -> None:
    Path("run/hashes.json").unlink()
    lock = json.loads(Path("run/lock.json").read_text(encoding="utf-8"))
    for name in ("code", "rewards", "processor", "processes"):
        del lock[name]
    Path("run/lock.json").write_text(json.dumps(lock), encoding="utf-8")
    audit = audit_run(Path("run"), quiet=True)
    assert audit.holds and "bit-equal" in audit.findings[-1].said
    unknown = {finding.part for finding in audit.of("unchecked")}
    assert unknown - {"again"} == {"files", "code", "rewards", "report"}  # the page shows the lock


def test_a_run_of_another_version_is_not_held_against_what_has_changed_since(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sets stand for those that come with the package, one row of each has changed since."""
    monkeypatch.setattr(versions, "room", lambda name: copied)
    a_row_of_the_data()
    a_row_of_the_test()
    assert "data" in wrong(audit_run(Path("run"), replays=False)), "by the version of the run"
    replaced("run/lock.json", json.loads(Path("run/lock.json").read_text())["code"], "0" * 64)
    RunFolder(copied / "run").seal()
    audit = audit_run(Path("run"), replays=False)
    away = [finding for finding in audit.of("unchecked") if "other in this version" in finding.said]
    assert {finding.part for finding in away} == {"data", "results"}
    assert audit.holds, audit.findings
    told = next(finding.said for finding in audit.of("unchecked") if finding.part == "code")
    assert "rl-reasoner 0" in told and "can be checked with that" in told


def test_overlaps_with_training_rows_of_another_version_are_not_held_against_a_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "room", lambda name: copied)
    tested = rows(Path("held.jsonl"))[0]
    changed_row("rows.jsonl", lambda row: row.update(tested))
    named = audit_run(Path("run"), replays=False).of("differs")
    assert any("trained and tested on" in finding.said for finding in named)
    replaced("run/lock.json", json.loads(Path("run/lock.json").read_text())["code"], "0" * 64)
    RunFolder(copied / "run").seal()
    audit = audit_run(Path("run"), replays=False)
    assert audit.holds, audit.findings
    assert any("trains on others" in finding.said for finding in audit.of("unchecked"))


def test_a_run_without_its_rows_is_checked_in_all_else(copied: Path) -> None:
    Path("rows.jsonl").unlink()
    audit = audit_run(Path("run"), quiet=True)
    assert audit.holds and {f.part for f in audit.of("unchecked")} == {"data", "again"}, (
        audit.findings
    )
    assert {"weights", "ledger", "results", "report"} <= {f.part for f in audit.of("held")}


@pytest.mark.parametrize(
    ("found", "because", "status", "words"),
    [
        (Likeness(), [], "held", "bit-equal"),
        (Likeness(soft="step 1: loss", apart=1e-6), [], "differs", "first differs at step 1: loss"),
        (Likeness(soft="x", apart=1e-6), ["another torch"], "held", "within 1.0e-06"),
        (Likeness(soft="x", apart=0.1), ["another torch"], "differs", "more than another torch"),
        (Likeness(soft="x", drift=0.5), ["another torch"], "differs", "more than another torch"),
        (Likeness(sampled_apart=(2, "row 1")), ["another torch"], "unchecked", "from row 1"),
        (Likeness(sampled_apart=(2, "row 1")), [], "differs", "first differs at row 1"),
        (Likeness(hard="row 1: another score"), ["another torch"], "differs", "another score"),
    ],
)
def test_a_difference_is_excused_by_rounding_alone(
    found: Likeness, because: list[str], status: str, words: str
) -> None:
    finding = verdict_of(found, Steps(Path(), Path(), 1, 3, 3), because, "grpo")
    assert finding.status == status and words in finding.said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("rum",), ("rum is not a run folder", "'run'")),
        (("run", "--step", "9"), ("--step 9", "steps 1 to 3")),
        (("run", "--stage", "gpro"), ("'gpro'", "'grpo'")),
        (("run", "--all", "--step", "1"), ("--all",)),
        (("run", "--no-replay", "--step", "1"), ("--no-replay",)),
    ],
)
def test_mistakes_are_told(
    argv: tuple[str, ...], words: tuple[str, ...], copied: Path, cli: Cli
) -> None:
    ended = cli("audit", *argv)
    assert ended.code == 2 and "Traceback" not in ended.err
    assert all(word in ended.err for word in words), ended.err


def test_the_exit_code_tells_of_a_difference(copied: Path, cli: Cli) -> None:
    the_report()
    ended = cli("audit", "run", "--no-replay")
    assert ended.code == 1
    assert "run is not what it says it is: report" in ended.out
