"""When two answers are not equal, and when the gold cannot be judged: the policy's false rows.

Each table is one rule; a row is (gold, answer as a model writes it in its box). Public face only.
"""

import pytest

from rl_reasoner.answers import verify

UNEQUAL = {
    "exact values": [
        (r"\frac27", "0.29"),
        (r"\frac27", "0.2857"),
        (r"\frac13", "0.33"),
        (r"\frac13", "0.3333333"),
        ("8000000000", "8000000001"),
        ("8000000000", "8.0000000e9 + 1"),
        ("2.7183", "2.72"),
        (r"\pi", "3.14"),
        (r"\pi", "22/7"),
        (r"\sqrt2", "1.414"),
        ("3^{70}", r"2.5031555 \times 10^{33}"),
        ("3^{70}", r"2.50315550499324160131557198608585 \times 10^{33}"),
        ("2.00000001", "2"),
        ("2", "1.99999999"),
        ("10^{-50}", "10^{-51}"),
        ("0", "10^{-30}"),
        ("262537412640768744", r"e^{\pi\sqrt{163}}"),
        ("x^{10}", "x^{1}0"),
        ("12345678901234567890", "12345678901234567891"),
        ("5", "-5"),
        ("0.5", "0.50001"),
        ("2/3", "3/2"),
        ("3.14159265", "3.14159266"),
    ],
    "thousands": [
        ("1000", "1, 000"),
        ("32349", "32, 349"),
        ("1000", "1.000"),
        ("123", "1,23"),
        ("12345", "1,2345"),
        ("1000000", "1,000,00"),
        ("123", "1,2,3"),
        ("1000", "1,001"),
        ("41/3", "4 1/3"),
    ],
    "notations of numbers": [
        (r"\frac79", "0.7"),
        (r"\frac79", "0.77777"),
        (r"0.\overline{7}", "0.7"),
        (r"0.\overline{12}", r"0.1\overline{2}"),
        ("320000", "3.2e4"),
        (r"4\frac13", "4/3"),
        (r"4\frac13", r"4\cdot\frac13"),
    ],
    "letters": [
        ("x", "y"),
        ("x", "X"),
        ("ab", "AB"),
        ("f(x)", "f(y)"),
        ("2a", "2b"),
        ("x_1", "x_2"),
        ("3+4i", "3-4i"),
        ("3+4i", "5"),
        ("e", "2.718"),
        ("x^2", "x"),
        ("x+2n+1", "x+1"),
    ],
    "algebra": [
        ("(a+5)(b+2)", "(+5)(b+2)"),
        ("x^2+2x+1", "x^2+2x+2"),
        (r"\sqrt{x^2}", "x"),
        ("|x|", "x"),
        (r"\sin x", r"\cos x"),
        ("x+1", "x-1"),
        ("2x", "x^2"),
        ("x^3+2x+1", "x^2+2x+1"),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        ("(a+b)^2", "a^2+b^2"),
        ("11a+c", "7=11a+c"),
    ],
    "percent": [
        (r"20\%", r"0.2\%"),
        (r"0.2\%", r"20\%"),
        ("0.4", "40"),
        ("40", "0.4"),
        (r"40\%", "4"),
        (r"40\%", "0.04"),
        ("40%", "60%"),
    ],
    "units": [
        (r"5\text{ cm}", r"5\text{ m}"),
        (r"5\text{ cm}^2", r"5\text{ cm}^3"),
        (r"5\text{ cm}", "5 inches"),
        (r"\$10", "€10"),
        (r"\$10", "10 cents"),
        ("5 kg", "5 g"),
        (r"60\text{ km/h}", r"60\text{ m/s}"),
        ("6", r"6 \text{ (perhaps 9)}"),
        ("6", "6 (or 9)"),
        ("5 hours", "5 minutes"),
        ("5 cm", "6 cm"),
        (r"90^\circ", r"\frac{\pi}{2}"),
        ("5 apples", "5 oranges"),
        ("3", "3x"),
    ],
    "labels and equations": [
        ("x=5", "y=5"),
        ("x=5", "x=6"),
        ("f(x) = x^2", "g(x) = x^2"),
        ("9", "5x-1=9"),
        ("x=2", "5x-1=9"),
        ("15", r"n = 3\cdot 5 = 16"),
        ("16", r"n = 3\cdot 5 = 16"),
        ("y = 3x-2", "y = 3x+2"),
        ("y = 3x-2", "3x+y=2"),
        (r"\frac{x^2}{4}+\frac{y^2}{3}=1", r"\frac{x^2}{16}+\frac{y^2}{12}=1"),
        ("a^2+b=0", "0"),
        ("2x+z=1", "1"),
        ("x=6, y=1", "x=1, y=6"),
        ("x=6, y=1", "(1,6)"),
        ("x=6, y=1", "x=6"),
        ("(x,y) = (6,1)", "(1,6)"),
    ],
    "inequalities and intervals": [
        ("x > 7", r"x \ge 7"),
        ("x > 7", "x < 7"),
        ("x > 7", "y > 7"),
        ("x > 7", "7"),
        ("x > 7", "[7, ∞)"),
        ("[4,9]", "(4,9)"),
        ("[4,9)", "(4,9]"),
        ("[4,9]", "]4,9["),
        (r"x \ne 0", "x = 0"),
        (r"\mathbb{R}", "x > 0"),
        (r"\mathbb{R}\setminus\{0\}", r"\mathbb{R}"),
        (r"(1,2)\cup(3,4)", "(1,4)"),
        (r"(1,2)\cup(3,4)", "(1,2)"),
        (r"(1,2)\cup(2,4)", "(1,4)"),
        ("x < 2 or x > 3", "2 < x < 3"),
        ("(-793,10)", "(-793,10]"),
        ("f(2) < f(1) < f(4)", "f(1) < f(2) < f(4)"),
        (r"(-\infty,3)", r"(-\infty,3]"),
        ("a < x < b", "b < x < a"),
    ],
    "collections": [
        ("(1,2)", "(2,1)"),
        ("(1,2)", "[1,2]"),
        ("(1,2)", r"\{1,2\}"),
        (r"\{1,2\}", "(1,2)"),
        ("1, 2", "1"),
        ("1", "1, 2"),
        ("1, 2", "1, 2, 3"),
        ("1, 2, 3", "1, 2"),
        ("(1,2,3)", "(1,2)"),
        ("(1,2)", "2, 1"),
        ("7", "6 or 7"),
        ("7", "7, 8"),
        ("12", "11, 12, 13"),
        ("7", "6, 7"),
        (r"\{1,2\}", r"\{1,3\}"),
        ("12", "(1,2)"),
        ("3", r"\pm 3"),
        (r"\pm 3", "3"),
        (r"\pm 3", "-3"),
        (r"\pm 3", r"\pm 4"),
        (r"1\pm\sqrt2", r"1+\sqrt2"),
        ("x = 1 or x = 2", "x = 1"),
        ("(1,2),(3,4)", "(1,2),(4,3)"),
        ("2", "[]"),
        ("2", "[0]"),
        ("0", r"\emptyset"),
    ],
    "matrices": [
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&3\\2&4\end{pmatrix}"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2&3&4\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1&2\\0&0\end{pmatrix}"),
    ],
    "ratios and times": [
        ("5:8", "8:5"),
        ("5:8", "8/5"),
        ("5:8", "5:9"),
        ("1:2:3", "1:2:4"),
        ("1:2:3", "1:2"),
        ("4:45 PM", "4:45 AM"),
        ("4:45 PM", "4:46 PM"),
        ("12:00", "1:00"),
        ("3:05", "6:10"),
    ],
    "bases": [
        ("1101_2", "1101_3"),
        ("1101_2", "1111_2"),
        ("1101_2", "15_8"),
        ("204_5", "204_6"),
        ("1112112_3", "1112122_3"),
    ],
    "choices": [
        ("B", "A"),
        ("B", "(C)"),
        ("B", "A and B"),
        ("B", "A or B"),
        ("B", "B, C"),
        ("B", "A. B is wrong"),
        ("(B) 35", "C"),
        ("(B) 35", "(C) 35"),
        ("B", "BC"),
        ("ACD", "AC"),
        ("d", r"\text{E}"),
    ],
    "words": [
        ("yes", "no"),
        ("true", "false"),
        ("Friday", "Monday"),
        ("odd", "oddd"),
        ("Friday", "not Friday"),
        ("even", "odd or even"),
        (r"\infty", r"-\infty"),
        (r"\infty", "DNE"),
        ("DNE", "0"),
        (r"\emptyset", "0"),
        ("no solution", "solution"),
        ("listen", "silent"),
        ("March 5", "March 6"),
    ],
    "text that cannot be evaluated": [
        ("8^{8^{8^{8}}}", "8^{8^{8^{9}}}"),
        ("1", "2^{2^{2^{49}}}"),
        (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
        ("1", r"\binom{1000000}{500000}"),
        (r"\sum_{k=0}^{n-1} F_k", r"\sum_{k=0}^{n-2} F_k"),
    ],
}

BAD_GOLDS = [
    "", "   ", "\n", ".", "-", "?!", "$$", "$ $", "...", r"\frac{1}{2", "{1,2", r"\sqrt{2",
    r"\boxed{}", r"\boxed{ }", r"\boxed{5", "see figure", "See Figure 3", "(see diagram)",
    "[asy] draw((0,0)--(1,1)); [/asy]", r"\includegraphics{a.png}", "![](image.png)", "<image>",
    "\x00\x01\x02", "\x1b[31m", "ab" * 3000, r"\begin{pmatrix}1&2", r"\text{yes", "如图",
]  # fmt: skip


def rows(table: dict[str, list[tuple[str, str]]]) -> list[object]:
    return [
        pytest.param(gold, answer, id=f"{rule}: {gold} | {answer}")
        for rule, pairs in table.items()
        for gold, answer in pairs
    ]


@pytest.mark.parametrize(("gold", "answer"), rows(UNEQUAL))
def test_unequal(gold: str, answer: str) -> None:
    score = verify(rf"So the result is $\boxed{{{answer}}}$.", gold)
    assert score.value == 0.0, score.reason
    assert score.reason


@pytest.mark.parametrize("gold", BAD_GOLDS)
def test_abstains_on_a_gold_that_cannot_be_judged(gold: str) -> None:
    score = verify(r"\boxed{5}", gold)
    assert score.value is None
    assert "gold" in score.reason
