"""benchmarks/real/before_tools.py: its examples are right, and each prompt is asked as said.

And benchmarks/real/within.py, which compares what came of them.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rl_reasoner.dataset.templates import render
from rl_reasoner.recipe.load import load_recipe
from support.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "real"))

import before_tools


@pytest.mark.parametrize("number", range(8))
def test_a_program_prints_what_its_example_says(number: int) -> None:
    example = before_tools.EXAMPLES[number]
    shown = before_tools.program(example)
    code = shown.removeprefix("```python\n").split("\n```\n")[0]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    last = example.steps[-1]
    assert ran.stdout.strip() == last.value
    answer = rf"The answer is \boxed{{{before_tools.plain(last.value)}}}."
    assert shown.endswith(f"```output\n{last.value}\n```\n{answer}")
    assert before_tools.prose(example).endswith(answer)
    for step in example.steps:
        sums = subprocess.run(
            [sys.executable, "-c", f"print({example.in_numbers(step)})"],
            capture_output=True,
            text=True,
        )
        assert float(sums.stdout) == float(step.value)


@pytest.mark.parametrize("kind", ["programs", "prose"])
def test_a_template_takes_a_problem(kind: str) -> None:
    text = render("How many?", before_tools.template(kind), tokenizer=None)
    assert isinstance(text, str)
    assert text.endswith("<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n")
    assert all(example.problem in text for example in before_tools.EXAMPLES)
    assert r"\boxed{216}." in text


@pytest.mark.parametrize(
    ("kind", "tools"),
    [
        *(("programs", "python"), ("recipe", "python")),
        *(("prose", "none"), ("unrun", "none"), ("own", "none")),
    ],
)
def test_what_is_evaluated(kind: str, tools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    became = list[list[str]]()
    monkeypatch.setattr("os.execv", lambda program, command: became.append(command))
    monkeypatch.setattr("sys.argv", ["before_tools.py", kind, "m.gguf", "--max-tokens", "256"])
    before_tools.main()
    (command,) = became
    told = dict(itertools.pairwise(command))
    assert (told["--tools"], told["--max-tokens"]) == (tools, "256")
    assert command[3:5] == ["eval", "m.gguf"]
    prompts = {name: before_tools.template(name) for name in ("recipe", "unrun", "own")}
    assert prompts["recipe"] == prompts["unrun"] == load_recipe("tool_qwen_coder").template
    assert told["--template"] == (prompts.get(kind) or before_tools.template(kind))


def test_verdicts_within_fewer_tokens(tmp_path: Path) -> None:
    own, run = [(1.0, 300), (1.0, 100), (0.0, 90), (0.0, 80)], [(1.0, 50), (1.0, 60), (0.0, 70)]
    for name, verdicts in (("own", own), ("run", run)):
        rows = [
            json.dumps({"id": f"p{number}", "scores": [score], "tokens": [tokens]})
            for number, (score, tokens) in enumerate(verdicts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    script = [sys.executable, str(ROOT / "benchmarks" / "real" / "within.py")]
    subprocess.run([*script, "keep", "v.json", "own=own.jsonl", "run=run.jsonl"], cwd=tmp_path)
    told = subprocess.run(
        [*script, "show", "v.json", "own", "run", "100", "300"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    short, long = told.stdout.splitlines()
    assert short.startswith("3 problems within 100 tokens: own 33.3 [")
    assert "run 66.7 [" in short and "run - own 33.3 [" in short
    assert "own 66.7 [" in long and "run 66.7 [" in long and "run - own 0.0 [" in long
