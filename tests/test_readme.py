"""The README's examples are run as they stand, only smaller.

Training commands get flags that make them tiny; everything else is run to the letter, in a folder
of its own, in the order in which a reader meets it.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--chains.steps 1 --habit.steps 1 --grpo.steps 1 --evals.limit 2 --evals.max_tokens 8"
SMALL += " --sampling.max_tokens 8"


def blocks(file: str, language: str) -> list[str]:
    """The fenced blocks of `language` in a document."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(file: str) -> list[str]:
    """Every `rl-reasoner` command in a document's shell blocks, without its comment."""
    lines = "".join(blocks(file, "sh")).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("rl-reasoner ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the README's examples speak of, and the run that they make."""
    folder = tmp_path_factory.mktemp("readme")
    rows = [{"question": f"{n}+1=", "answer": str(n + 1)} for n in range(8)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    saved = [{"completion": "4", "answer": "4"}, {"completion": "5" * 300, "answer": "5"}]
    (folder / "completions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in saved))
    for block in blocks("README.md", "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (folder / name.group(1)).write_text(block)
    return folder


def run(command: list[str], place: Path, typed: str = "") -> str:
    done = subprocess.run(command, cwd=place, input=typed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_python_examples_run(place: Path) -> None:
    examples = [b for b in blocks("README.md", "python") if not b.startswith("# ")]
    printed = [run([sys.executable, "-c", example], place) for example in examples]
    assert "word_problems" in printed[0]
    assert "value=1.0" in printed[1]
    assert (place / "runs/mine/report.html").is_file()


@pytest.mark.parametrize("command", commands("README.md"))
def test_the_commands_run(place: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    if words[0] == "train" and "--resume" not in words:
        words += SMALL.split()
    if words[0] == "eval":
        words += ["--limit", "2", "--max-tokens", "8"]
    run([sys.executable, "-m", "rl_reasoner.cli", *words], place, typed="((3+4)*2-5)%10=\n")


def test_the_make_targets_are_there() -> None:
    made = re.findall(r"^make (\w+)", "".join(blocks("README.md", "sh")), re.MULTILINE)
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert made
    assert set(made) <= set(targets)


def test_the_reward_of_the_rewards_guide_runs(tmp_path: Path) -> None:
    [example] = blocks("rewards/README.md", "python")
    (tmp_path / "shouting.py").write_text(example)
    (tmp_path / "rows.jsonl").write_text('{"completion": "LOUD"}\n{"completion": "soft"}\n')
    run(
        [sys.executable, "-m", "rl_reasoner.cli", "score", "shouting.py:calm", "rows.jsonl"],
        tmp_path,
    )
    scores = (tmp_path / "rows.jsonl.scores.jsonl").read_text().splitlines()
    assert [json.loads(s)["shouting.py:calm"]["value"] for s in scores] == [0.0, 1.0]


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md", "recipes/README.md"])
def test_links_lead_somewhere(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [
        link
        for link in links
        if not link.startswith("http") and not (ROOT / file).parent.joinpath(link).exists()
    ]
    assert not missing
