"""benchmarks/real/before_tools.py: its examples are right, and each prompt is asked as said."""

import itertools
import subprocess
import sys

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
