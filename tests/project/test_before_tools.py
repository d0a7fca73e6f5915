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
import within


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


def test_verdicts_within_fewer_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a tokenizer of bytes: what is cut off is judged by what there was of it, without results.

    The third answer is one that only a tool printed; the last stands before the cut.
    """
    fill = "." * 400
    texts = [
        "so 7",
        f"{fill} \\boxed{{7}}",
        f"{fill[:240]}\n```output\n\\boxed{{7}}\n",
        "\\boxed{7} ",
    ]
    own = [(text, float(n == 1), len(text)) for n, text in enumerate(texts[:3])]
    own.append((texts[3] + fill, 0.0, 410))
    for name, verdicts in (("own", own), ("run", [("\\boxed{7}", 1.0, 9)] * 3)):
        rows = [
            {
                "id": n,
                "answer": "7",
                "completions": [text],
                "scores": [score],
                "tokens": [tokens],
                "truncated": [False],
            }
            for n, (text, score, tokens) in enumerate(verdicts)
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(within, "BUDGETS", (250, 411))
    files = [f"{name}={tmp_path / name}.jsonl" for name in ("own", "run")]
    within.keep(tmp_path / "v.json", "scratch:dense-tiny", files)
    kept = json.loads((tmp_path / "v.json").read_text())
    assert kept["own"] == {"0": [0, 0], "1": [0, 1], "2": [0, 0], "3": [1, 0]}
    within.show(tmp_path / "v.json", "own", "run")
    short, long = capsys.readouterr().out.splitlines()
    assert short.startswith("3 problems within 250 tokens: own 0.0 [")
    assert "run 100.0 [" in short and "run - own 100.0 [" in short
    assert "own 33.3 [" in long and "run - own 66.7 [" in long
    cut = {"id": 0, "answer": "7", "completions": ["so"], "scores": [0.0], "tokens": [300]}
    (tmp_path / "own.jsonl").write_text(json.dumps({**cut, "truncated": [True]}))
    within.keep(tmp_path / "v.json", "scratch:dense-tiny", files)
    within.show(tmp_path / "v.json", "own", "run")
    assert "411 tokens: not measured" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no evaluation ran; there are: own, run"):
        within.show(tmp_path / "v.json", "own", "ran")
