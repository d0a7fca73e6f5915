"""A run with an environment looked at again: its rewards are those of the episodes that it kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.audit import Audit
from rl_reasoner.pipeline.rescore import rescore
from rl_reasoner.pipeline.run_folder import RunFolder
from support.audits import audit_run
from support.commands import Cli, lines, run_outside
from support.tiny import rows

OWN = '''
from rl_reasoner import reward


class Pays:
    """Pays for each turn; does not bear some digits; done at the third turn."""

    def reset(self, row):
        self.turns = 0

    def step(self, completion):
        self.turns += 1
        if completion.endswith(("1", "6")):
            raise ValueError("no " + completion[:2])
        return f"{self.turns} of 3", len(set(completion)) / 7, self.turns == 3


@reward
def said(completion: str, episode: dict) -> float:
    """How much was said and paid: reads all of an episode."""
    paid = [pay for pay in episode["turn_rewards"] if pay is not None]
    return len(episode["reason"]) + len(episode["ended"]) / 10 + sum(paid)
'''
RECIPE = """
name: pays
policy: scratch:dense-tiny
template: plain
environment: {use: own.py:Pays, turns: 3, processes: 1}
rewards: {environment: 1.0, "own.py:said": 0.1}
stages:
- kind: sft
  data: {task: guess, count: 32, noise: 1.0}
  steps: 12
  batch: 16
  optim: {lr: 5.0e-3}
- kind: grpo
  data: {task: guess, count: 16}
  steps: 2
  group: {size: 4, prompts: 2}
  sampling: {max_tokens: 48}
evals: {sets: []}
run: {folder: run, device: cpu, seed: 1, report_to: none}
"""
ROLLOUTS = Path("run/stages/2-grpo/rollouts.jsonl")
LEDGER = ROLLOUTS.with_name("ledger.jsonl")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; some of its episodes came to their end, others failed."""
    folder = tmp_path_factory.mktemp("played")
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    done = run_outside(folder, "train", "recipe.yaml", "--quiet")
    assert done.returncode == 0, done.stderr
    found = rows(folder / ROLLOUTS)
    assert {"done", "failed"} <= {row["ended"] for row in found}, found
    assert any(row["scores"]["environment"]["value"] for row in found)
    return folder


@pytest.fixture
def copied(played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    shutil.copytree(played, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def audited() -> Audit:
    """The audit of the run here, its files' hashes written anew as a forger would."""
    RunFolder(Path("run")).seal()
    return audit_run(Path("run"), replays=False)


def changed(ended: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the first rollout that ended so."""
    every = rows(ROLLOUTS)
    change(next(row for row in every if row["ended"] == ended))
    ROLLOUTS.write_text(lines(*every), encoding="utf-8")


def without_why() -> int:
    """Make the rollouts those of an older run; how many of them failed."""
    every = rows(ROLLOUTS)
    failed = sum(row.pop("why", None) is not None for row in every)
    ROLLOUTS.write_text(lines(*every), encoding="utf-8")
    return failed


def a_better_score() -> None:
    """In completion, reward and ledger alike."""
    every, scores = rows(ROLLOUTS), rows(LEDGER)
    at = next(i for i, row in enumerate(every) if row["ended"] == "done")
    every[at]["scores"]["environment"]["value"] += 1.0
    every[at]["reward"] += 1.0
    scores[2 * at]["value"] += 1.0
    ROLLOUTS.write_text(lines(*every), encoding="utf-8")
    LEDGER.write_text(lines(*scores), encoding="utf-8")


def a_better_turn() -> None:
    changed("done", lambda row: row["turns"][-1].update(reward=3.0))


def a_failure_called_an_end() -> None:
    changed("failed", lambda row: row.update(ended="done"))


def an_end_called_a_failure() -> None:
    changed("done", lambda row: row.update(ended="failed"))


def an_episode_that_was_taken_away() -> None:
    changed("done", lambda row: row.pop("turns"))


def another_reason() -> None:
    changed("failed", lambda row: row.update(why="nobody knows, nobody ever will"))


def test_an_honest_run_holds(copied: Path) -> None:
    audit = audit_run(Path("run"), replays=False)
    statuses = {finding.status for finding in audit.findings if finding.part != "again"}
    assert statuses == {"held"}, audit.findings
    count = len(rows(ROLLOUTS))
    told = [finding.said for finding in audit.of("held") if finding.part == "completions"]
    for name in ("environment", "own.py:said"):
        assert f"stage grpo: {name} scores {count} completions as in the run" in told


@pytest.mark.parametrize(
    "tamper",
    [
        a_better_score,
        a_better_turn,
        a_failure_called_an_end,
        an_end_called_a_failure,
        an_episode_that_was_taken_away,
        another_reason,
    ],
    ids=lambda tamper: tamper.__name__,
)
def test_what_was_tampered_with_is_named(tamper: Callable[[], None], copied: Path) -> None:
    tamper()
    found = audited()
    assert "completions" in {finding.part for finding in found.of("differs")}, found.findings


def test_an_older_run_is_told_what_cannot_be_judged(copied: Path) -> None:
    failed = without_why()
    Path("run/report.html").unlink()  # it shows all of them
    audit = audited()
    assert audit.holds, audit.findings
    told = [finding.said for finding in audit.of("unchecked") if finding.part == "completions"]
    assert [f"{failed} completion" in said for said in told] == [True, True], told
    assert all("did not keep why the environment failed" in said for said in told), told
    a_better_turn()  # the others are judged as before
    assert not audited().holds


def test_its_own_rewards_change_nothing(copied: Path, cli: Cli) -> None:
    for name in ("environment", "own.py:said"):
        found = json.loads(cli("score", name, "--rescore", "run", "--json").out)
        assert (found["changed"], found["faults"]) == (0, 0) and "unknown" not in found, found
        judged = [row for row in rows(ROLLOUTS) if row["ended"] != "failed"]
        assert found["rows"] == len(judged if name == "environment" else rows(ROLLOUTS))
        assert found["mean"]["now"] > 0
    a_better_turn()
    assert rescore(Path("run"), "environment").summary()["changed"] == 1
    failed = without_why()
    found = rescore(Path("run"), "own.py:said").summary()
    assert (found["unknown"], found["rows"]) == (failed, len(rows(ROLLOUTS)) - failed)
    assert "unknown" not in rescore(Path("run"), "length").summary(), "it reads no episode"
    an_episode_that_was_taken_away()
    ended = cli("score", "environment", "--rescore", "run")
    assert ended.code == 2 and "a rollout without an episode" in ended.err, ended.err


def test_a_step_under_its_own_reward_is_what_it_was(copied: Path, cli: Cli) -> None:
    ended = cli("why", "run", "--step", "2", "--reward", "own.py:said", "--json", "--run-its-code")
    assert ended.code == 0, ended.err
    kept = [row for row in rows(ROLLOUTS) if row["step"] == 2]
    for told, row in zip(json.loads(ended.out)["rows"], kept, strict=True):
        assert told["reward"]["now"] == pytest.approx(row["scores"]["said"]["value"])
