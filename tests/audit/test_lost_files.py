"""An audit of a run whose files of other people are not here, or are others: each is named."""

import json
import shutil
from pathlib import Path

import pytest

from rl_reasoner import open_policy
from rl_reasoner.audit import Audit
from rl_reasoner.audit.findings import FindingStatus
from support.audits import audit_run
from support.commands import Cli, lines, run_outside
from support.environments import FILE
from support.tiny import REWARD

TOOL = '''from rl_reasoner import tool


@tool
def look(text: str) -> str:
    """Look something up.

    Args:
        text: What to look for.
    """
    return text
'''
ROLLOUTS = """
  steps: 1
  group: {size: 2, prompts: 1}
  sampling: {max_tokens: 4}
"""
CALLS = f"""
name: calls
policy: base
template: plain
data: rows.jsonl
tools: {{use: ["tl/notes.py:look", calculator], format: tags}}
rewards: {{math_answer: 1}}
stages:
- kind: filter
  name: picked
  reward: my/score.py:near
  samples: 2
  sampling: {{max_tokens: 4}}
  keep: 0..1
- kind: sample
  name: drawn
  reward: length
  samples: 1
  min_score: -100
  sampling: {{max_tokens: 4}}
  keep: {{readable: false}}
- kind: grpo
  name: rl{ROLLOUTS}
evals: {{sets: []}}
run: {{folder: calls, device: cpu, report_to: none}}
"""
PLAYS = f"""
name: plays
policy: scratch:dense-tiny
template: plain
data: {{task: guess, count: 4}}
environment: {{use: "en/own.py:Slow", turns: 1, processes: 1}}
rewards: {{environment: 1}}
stages:
- kind: grpo
  name: rl{ROLLOUTS}
evals: {{sets: []}}
run: {{folder: plays, device: cpu, report_to: none}}
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs and all that they were made from."""
    folder = tmp_path_factory.mktemp("honest")
    for name, text in (
        ("my/score.py", REWARD),
        ("tl/notes.py", TOOL),
        ("en/own.py", FILE.read_text(encoding="utf-8")),
        ("calls.yaml", CALLS),
        ("plays.yaml", PLAYS),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    data = [{"problem": f"{i}+1=", "answer": str(i + 1)} for i in range(4)]
    (folder / "rows.jsonl").write_text(lines(*data), encoding="utf-8")
    open_policy("scratch:dense-tiny", seed=5, device="cpu").save(folder / "base")
    for recipe in ("calls.yaml", "plays.yaml"):
        done = run_outside(folder, "train", recipe, "--quiet")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copied(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test is."""
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_stages(audit: Audit, status: FindingStatus) -> list[tuple[str, str]]:
    """Part and words of the findings of one kind on what stages were made from."""
    found = [(one.part, one.said) for one in audit.of(status)]
    return [
        (part, said) for part, said in found if said.startswith("stage ") and "made w" not in said
    ]


# What each file is, and which stages of the run were made from it.
FILES = [
    ("calls", "tl/notes.py", "code", "the tool tl/notes.py:look", ["picked", "drawn", "rl"]),
    ("calls", "my/score.py", "rewards", "the reward my/score.py:near", ["picked"]),
    ("calls", "base/config.json", "weights", "the policy base", ["picked", "drawn", "rl"]),
    ("plays", "en/own.py", "code", "the environment en/own.py:Slow", ["rl"]),
]


@pytest.mark.parametrize(("run", "file", "part", "what", "stages"), FILES)
def test_what_is_not_here_is_named_and_is_no_forgery(
    run: str, file: str, part: str, what: str, stages: list[str], copied: Path
) -> None:
    shutil.move(Path(file).parent, "away")
    audit = audit_run(Path(run), replays=False)
    assert audit.holds, audit.of("differs")
    assert [found for found in of_stages(audit, "unchecked") if "not here" in found[1]] == [
        (part, f"stage {stage} was made from {what}, which is not here") for stage in stages
    ]


@pytest.mark.parametrize(("run", "file", "part", "what", "stages"), FILES)
def test_what_has_changed_is_named(
    run: str, file: str, part: str, what: str, stages: list[str], copied: Path
) -> None:
    with Path(file).open("a", encoding="utf-8") as opened:
        opened.write("\n")
    audit = audit_run(Path(run), replays=False)
    assert of_stages(audit, "differs") == [
        (part, f"stage {stage}: {what} has changed since the stage began") for stage in stages
    ]
    assert "recipe" not in {found.part for found in audit.of("differs")}


@pytest.mark.parametrize("run", ["calls", "plays"])
def test_with_all_of_them_here_each_stage_holds(run: str, copied: Path, cli: Cli) -> None:
    """Also one whose reward is a shipped one, which no file of the user's has."""
    value = json.loads(cli("audit", run, "--no-replay", "--json", "--run-its-code").out)
    statuses = {found["status"] for found in value["findings"] if found["part"] != "again"}
    assert statuses == {"held"}, value["findings"]


def test_another_policy_by_name_is_told(copied: Path) -> None:
    """No file of either is here: the names are what was made from, and what is said now."""
    recipe = Path("plays/recipe.yaml")
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("scratch:dense-tiny", "scratch:moe-tiny"), encoding="utf-8")
    said = "stage rl was made from scratch:dense-tiny, seed 0, not from scratch:moe-tiny, seed 0"
    assert ("weights", said) in of_stages(audit_run(Path("plays"), replays=False), "differs")
