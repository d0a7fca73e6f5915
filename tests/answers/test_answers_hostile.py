"""Hostile answers: whatever the text, a verdict comes back, and quickly by construction."""

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_reasoner.answers import verify
from rl_reasoner.answers.equality.arithmetic import TooLarge
from rl_reasoner.answers.equality.values import constant
from rl_reasoner.answers.parsing.statements import read_answer

PIECES = [
    r"\boxed{", "}", "{", r"\frac", r"\frac{", "^", "^{", "_", "_{", "(", ")", "[", "]", "|", "!",
    "!!!!", "9" * 50, "9" * 5000, "^9^9^9^9", "10^{10^{10}}", r"\pm", r"\binom{999999}{55555}",
    "(" * 200, "{" * 200, "-" * 300, r"\infty", r"\sum_{k=1}^{10^9}", r"\int", "x_{x_{x_{x", "\x00",
    "\ud800", "😀", "½", r"\begin{pmatrix}", r"\end{pmatrix}", "&", "\\\\", "$", "#### ",
    "<answer>", "</answer>", "<think>", "</think>", "the answer is ", "答案是", "e", "i", "0/0",
    "1/0", "1e999999",
    r"\log 0", r"\log_1 5", r"\tan{\pi/2}", r"\Gamma(1000000)", "1000000!", r"0.\overline{",
    ",", ";", " or ", " and ", r"\text{", r"\mod 0", "%", r"^\circ", "_2", "...", r"\lim_{x\to0}",
    r"\arcsin 2", r"\exp(\exp(\exp(\exp 9)))", r"\sin(10^{100})", "x^{x^{x}}", r"\lfloor", r"\{",
    r"\cup", r"\setminus", r"\in", "<", r"\le", "=", "*" * 50, '__import__("os")', " " * 500,
    "\n" * 100, "1," * 100, "1,2;" * 50, "a" * 4000, "1 " * 1000, r"\gcd(0.5,3)", r"\max()",
]  # fmt: skip
GOLDS = [
    "7",
    r"\frac{1}{2}",
    "x^2+1",
    r"(1,\infty)",
    r"\{1,2\}",
    "B",
    "Friday",
    "5:8",
    "",
    r"\pm 3",
]

LARGE = {
    "digits": "9" * 1_000_000,
    "letters": "a" * 1_000_000,
    "spaces": r"\boxed{" + " " * 1_000_000 + "7}",
    "boxes": r"\boxed{" * 100_000,
    "braces": r"\boxed{" + "{" * 100_000,
    "closed braces": r"\boxed{" + "{" * 9_000 + "7" + "}" * 9_001,
    "backslashes": "\\" * 1_000_000,
    "dollars": "$" * 1_000_000,
    "tags": "<answer>" * 100_000,
    "think": "<think>" * 100_000,
    "markers": "<s>" * 300_000,
    "cues": "the answer is not " * 50_000,
    "empty cues": "answer:\n" * 50_000,
    "stars": "*" * 1_000_000,
    "hashes": "#### " * 200_000,
    "minus": r"\boxed{" + "-" * 3_900 + "7}",
    "tower": r"\boxed{" + "9^" * 1_000 + "9}",
    "fractions": r"\boxed{" + r"\frac{" * 500 + "1" + "}{2}" * 500 + "}",
    "quotients": r"\boxed{" + "1/" * 1_900 + "1}",
    "members": r"\boxed{" + "1," * 1_900 + "1}",
    "unions": r"\boxed{" + r"(1,2)\cup" * 400 + "(3,4)}",
    "signs": r"\boxed{" + r"\pm" * 1_000 + "7}",
    "factorials": r"\boxed{7" + "!" * 3_000 + "}",
    "roots": r"\boxed{" + r"\sqrt{" * 600 + "2" + "}" * 601,
    "product": r"\boxed{" + "(x+1)" * 700 + "}",
    "powers": r"\boxed{" + "+".join(f"x^{{{n}}}" for n in range(400)) + "}",
    "huge exponents": r"\boxed{" + "+".join(f"x^{{{n}{n}}}" for n in range(100, 400)) + "}",
    "matrix": r"\boxed{\begin{pmatrix}" + "1&" * 1_500 + r"1\end{pmatrix}}",
    "percent": r"\boxed{7" + "%" * 3_000 + "}",
    "figure spaces": "see figure" + " " * 4_000 + "x",
    "sums of sums": r"\boxed{" + "".join(rf"\sum_{{{v}=1}}^{{1000}}" for v in "ijk") + "(i+j+k)}",
    "products": r"\boxed{" + "".join(rf"\prod_{{{v}=1}}^{{1000}}" for v in "ij") + r"\frac{i}{j}}",
    "endless sums": r"\boxed{" + r"\sum_{k=1}^{\infty}" * 24 + "k}",
    "limits": r"\boxed{" + r"\lim_{x\to 0}" * 30 + "x}",
    "big sum": r"\boxed{\sum_{k=4000}^{5000} \frac{1}{k!}}",
    "big fractions": r"\boxed{"
    + "+".join(rf"\frac{{2^{{60000}}+{n}}}{{3^{{40000}}+{n}}}" for n in range(80))
    + "}",
    "big powers": r"\boxed{" + "+".join(f"x^{{{n}}}" for n in range(15_000, 15_300)) + "}",
    "big roots": r"\boxed{\sqrt[3]{\frac{1}{3^{120000}+1}}}",
    "multiples": r"\boxed{\operatorname{lcm}("
    + ",".join(f"{n}^{{5000}}" for n in range(3, 60))
    + ")}",
    "choices of signs": r"\boxed{(" + ",".join([r"\pm 1"] * 50) + ")}",
    "matrix power": r"\boxed{\begin{pmatrix}"
    + r"\\".join(["&".join(["2x"] * 20)] * 20)
    + r"\end{pmatrix}^{64}}",
    "mixed numbers": r"\boxed{" + r"1\frac{" * 28 + "1" + "}{2}" * 28 + "}",
    "combinations": r"\boxed{" + r"C_{9}^" * 60 + "x}",
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("gold", ["7", r"\frac{x+1}{2}"])
def test_a_large_text_gets_a_verdict(name: str, gold: str) -> None:
    score = verify(LARGE[name], gold)
    assert score.value == 0.0
    assert "fault" not in score.reason


@pytest.mark.parametrize("name", LARGE)
def test_a_large_gold_gets_a_verdict(name: str) -> None:
    score = verify(r"\boxed{7}", LARGE[name])
    assert score.value in (0.0, None)
    assert "fault" not in score.reason


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=10), st.data())
def test_any_text_gets_a_verdict_without_a_fault(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    gold = data.draw(st.one_of(st.sampled_from(GOLDS), st.just(text)))
    completion = data.draw(st.sampled_from([text, rf"\boxed{{{text}}}", f"The answer is {text}"]))
    score = verify(completion, gold)
    assert score.value in (0.0, 1.0, None)
    assert score.reason
    assert not score.reason.startswith("fault: ")


def test_the_same_verdicts_from_eight_threads_at_once() -> None:
    chooser = random.Random(7)
    rows = [
        ("".join(chooser.choices(PIECES, k=chooser.randint(1, 5))), chooser.choice(GOLDS))
        for _ in range(60)
    ]
    wanted = [verify(*row).value for row in rows]
    given: list[list[float | None]] = []
    threads = [
        threading.Thread(target=lambda: given.append([verify(*row).value for row in rows]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert given == [wanted] * 8


@pytest.mark.parametrize(
    "code",
    ['__import__("os").system("touch {}")', 'open("{}", "w")', "eval(\"open('{}', 'w')\")"],
)
def test_nothing_is_executed(code: str, tmp_path: object) -> None:
    marker = f"{tmp_path}/marker"
    for text in (code.format(marker), rf"\boxed{{{code.format(marker)}}}"):
        assert verify(text, "0").value == 0.0
    import pathlib

    assert not pathlib.Path(marker).exists()


def test_what_is_past_the_budget_is_not_equal_and_the_next_comparison_has_its_own() -> None:
    nested = r"\sum_{i=1}^{1000}\sum_{j=1}^{1000}(i+j)"
    assert verify(rf"\boxed{{{nested}}}", "5").value == 0.0
    assert verify(rf"\boxed{{{nested}}}", nested).value == 1.0
    assert verify(r"\boxed{\sum_{i=1}^{20}\sum_{j=1}^{20}(i+j)}", "8400").value == 1.0
    assert verify(r"\boxed{\sum_{k=1}^{1000} k}", "500500").value == 1.0
    with pytest.raises(TooLarge):
        constant(read_answer(nested).trees[0])


def test_choices_of_signs_are_all_compared_or_none() -> None:
    signs = ",".join(rf"\pm {n}" for n in range(1, 6))
    assert verify(rf"\boxed{{({signs})}}", f"({signs.replace('5', '(4+1)')})").value == 1.0
    assert verify(rf"\boxed{{({signs})}}", "(" + signs.removeprefix(r"\pm ") + ")").value == 0.0
