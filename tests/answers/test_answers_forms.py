"""Forms that models give their answers: doubled backslashes, `A: 7`, kinds in words, indices."""

import json

import pytest

from rl_reasoner.answers import verify

DOUBLED = (
    (r"So the answer is $3\\sqrt{13}$.", r"3\sqrt{13}"),
    (r"$3\\sqrt{13}$", r"3\sqrt{13}"),
    (r"\boxed{3\\sqrt{13}}", r"3\sqrt{13}"),
    (r"\\boxed{3\\sqrt{13}}", r"3\sqrt{13}"),
    (r"Thus \\(\\boxed{\\frac{1}{2}}\\).", "1/2"),
    (r"\\[ x = 5 \\]", "5"),
    (r"\\frac{1}{2}", "0.5"),
    (r"$\boxed{z \\in \left[1, \\frac{3}{2}\right]}$", r"[1, \frac{3}{2}]"),
    (r"\boxed{\\{1, 2\\}}", r"\{1, 2\}"),
    (r"\boxed{50\\%}", r"50\%"),
    (r"The answer is \\$5.", "5"),
    (r"\boxed{5\\text{ cm}}", "5"),
    (r"\boxed{3\sqrt{13}}", r"3\\sqrt{13}"),
    (r"\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{5} \\begin{pmatrix}", "5"),
)
ROW_BREAKS = (
    (r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}a\\b\end{pmatrix}}", r"\begin{pmatrix}a\\b\end{pmatrix}"),
    (r"\boxed{\begin{pmatrix}1\\\pi\end{pmatrix}}", r"\begin{pmatrix} 1 \\ \pi \end{pmatrix}"),
    (r"\boxed{x=1 \\ y=2}", "x=1, y=2"),
    (r"\boxed{x=1\\y=2}", "x=1, y=2"),
)
LAST_LINES = (
    "A: 7",
    "**A:** 7",
    "**A: 7**",
    "A：7",
    "- A: 7",
    "A: $7$",
    "A: 7 apples",
    r"A: \(7\)",
)
NO_CUES = (
    *("The ratio A: 7", "Options:\nA: 7\nB: 8", "B: 8\nA: 7", "(B) 8\nA: 7", "Person A: 7"),
    *("2 : A: 7", "A: 7 or 8", "A: not 7", "A: 7\nNo, wait."),
)
SPELLINGS = (
    (r"10{:}30", "10:30"),
    (r"10{:}30\text{ a.m.}", "10:30 AM"),
    (r"3{:}4", "6:8"),
    (r"\text{the point } (2,7)", "(2,7)"),
    (r"\text{the ordered pair }(2,7)", "(2,7)"),
    (r"\text{the line } y=2x", "y=2x"),
    (r"\frac{\pi}{2}+k\pi \text{ for integer } k", r"\frac{\pi}{2}+k\pi"),
    (r"x = k\pi, \text{ where } k \text{ is an integer}", r"k\pi"),
    (r"k\pi, k\in\mathbb{Z}", r"k\pi \text{ for any integer } k"),
    ("x_1=-1, x_2=3", "x=-1, x=3"),
    ("x_{1}=-1, x_{2}=3", r"x=-1 \text{ or } x=3"),
    (r"x_{1,2}=\pm 3", r"x=\pm 3"),
)
OTHERS = (
    (r"10{:}30", "10:31"),
    (r"\text{the distance to }(2,7)", "(2,7)"),
    (r"\text{not the point }(2,7)", "(2,7)"),
    (r"k\pi \text{ for even } k", r"k\pi"),
    ("x_1=-1, x_2=3", "x=-1"),
    ("x_1=-1, y_2=3", "x=-1, x=3"),
    ("x_1=-1, x_2=3", "(3,-1)"),
    (r"3\\sqrt{13}", r"3\sqrt{12}"),
)


@pytest.mark.parametrize(("completion", "gold"), (*DOUBLED, *ROW_BREAKS))
def test_doubled_backslashes_are_single_ones_and_row_breaks_stay(
    completion: str, gold: str
) -> None:
    score = verify(completion, gold)
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize(
    "text",
    [
        r"So $x = \frac{1}{2}$, \[ \boxed{\begin{pmatrix} 1 \\ \frac{1}{2} \end{pmatrix}} \]",
        r"\(\boxed{\left\{1, \sqrt{2}\right\}}\)",
    ],
)
def test_a_completion_written_as_json_is_read_as_it_was(text: str) -> None:
    gold = text[text.index("boxed{") + 6 : text.rindex("}")]
    assert verify(json.dumps(text)[1:-1], gold).value == 1.0


@pytest.mark.parametrize("line", LAST_LINES)
def test_a_last_line_that_begins_with_a(line: str) -> None:
    for text in (line, f"3 and 4 are 7.\n{line}", f"Q: How many?\nA: Let us see.\n\n{line}\n"):
        score = verify(text, "7")
        assert score.value == 1.0, score.reason
        assert verify(text, "8").value == 0.0


@pytest.mark.parametrize("text", NO_CUES)
def test_an_a_that_is_an_option_a_name_or_a_hedge(text: str) -> None:
    assert verify(text, "7").value == 0.0


def test_ratios_and_choices_behind_an_a() -> None:
    assert verify("So\nA: 3:4", "3:4").value == 1.0
    assert verify("So\nA: B", "B").value == 1.0
    assert verify("A:B = 3:4", "3:4").value == 1.0


@pytest.mark.parametrize(("said", "gold"), SPELLINGS)
def test_spellings_of_one_answer(said: str, gold: str) -> None:
    for one, other in ((said, gold), (gold, said)):
        score = verify(rf"\boxed{{{one}}}", other)
        assert score.value == 1.0, score.reason


@pytest.mark.parametrize(("said", "gold"), OTHERS)
def test_what_they_do_not_cover(said: str, gold: str) -> None:
    score = verify(rf"\boxed{{{said}}}", gold)
    assert score.value == 0.0, score.reason
