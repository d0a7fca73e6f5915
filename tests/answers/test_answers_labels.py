"""What stands before an equality sign and is one name: a derivative, an inverse, an event, a limit.

A row is (gold, answer as a model writes it in its box). Public face only.
"""

import pytest

from rl_reasoner.answers import verify
from support.verdicts import rows

EQUAL = {
    "functions": [
        (r"\frac{5+4x}{5}", r"f^{-1}(x) = 1 + \frac45 x"),
        (r"f^{-1}(x)=\frac{5+4x}{5}", r"\frac{4x+5}{5}"),
        ("3", "f^{-1}(-2) = 3"),
        ("3", "g^{-1}(f(2)) = 3"),
        ("3", r"(f \circ g)(2) = 3"),
        ("2x", r"\frac{dy}{dx} = 2x"),
        ("2x", "dy/dx = 2x"),
        ("1", r"\frac{d^2y}{dx^2} = 1"),
        ("1", r"\frac{\partial f}{\partial x} = 1"),
        (r"\arccos x", r"\cos^{-1}(x)"),
        (r"\frac{x+1}{x}", "x^{-1}(x+1)"),
    ],
    "operators": [
        ("1", r"\lim_{x\to 0} \frac{\sin x}{x} = 1"),
        ("1", r"\lim_{x\to 0^+} f(x) = 1"),
        ("1", r"\int_0^{\pi/2} \cos x\,dx = 1"),
        (r"\frac{\pi^2}{6}", r"\sum_{n=1}^\infty \frac{1}{n^2} = \frac{\pi^2}{6}"),
        (r"\frac{n(n+1)}{2}", r"\sum_{k=1}^n k = \frac{n(n+1)}{2}"),
        ("55", r"\sum_{k=1}^{10} k = 55"),
        ("x^2+C", r"\int 2x\,dx = x^2 + C"),
        ("5", r"5 = \lim_{n\to\infty} a_n"),
        ("2", r"\frac{1}{\pi}\int_0^{\pi} f(x)\,dx = 2"),
        (r"\int_0^1 2x dx = 1", r"\int_0^1 2t dt = 1"),
    ],
    "names": [
        ("5", r"S_{\max} = 5"),
        ("5", r"f_\min = 5"),
        ("5", r"x_{\text{max}} = 5"),
        ("5", r"v_{\parallel} = 5"),
        ("5", r"v_\perp = 5"),
        ("5", "x^* = 5"),
        ("5", r"\Delta x = 5"),
        ("5", r"\vec{a}\cdot\vec{b} = 5"),
        ("5", r"\dim V = 5"),
        ("5", r"\text{rank}(A) = 5"),
        ("5", r"\operatorname{Var}(X) = 5"),
        ("5", r"\text{Area}(ABC) = 5"),
        ("5", r"n(A \cup B) = 5"),
        ("5", "d(A,B) = 5"),
        (r"\{1,2,3\}", r"A \cup B = \{1,2,3\}"),
    ],
    "events": [
        ("1/2", r"P(A \mid B) = \frac12"),
        ("1/2", "P(A|B) = 1/2"),
        ("1/2", r"P(X \ge 2) = \frac12"),
        ("1/2", r"\frac12 = P(x \ge 2)"),
        ("1/2", r"P(\text{at least one}) = \frac12"),
        ("1/2", r"\Pr(X = 2) = \frac12"),
        ("5", r"\mathbb{E}[X] = 5"),
        ("5", "E[X] = 5"),
        ("P+Pr", "P(1+r)"),
        ("n^2-n", "n(n-1)"),
    ],
    "conditions": [
        (r"\sqrt{x}", r"f^{-1}(x) = \sqrt{x}, \; x \ge 0"),
        (r"2\pi n", r"x = 2\pi n, n \in \mathbb{Z}"),
        (r"2\pi n", r"2\pi n \text{ where } n \in \mathbb{Z}"),
        ("n^2", r"a_n = n^2 \ (n \ge 1)"),
    ],
}

UNEQUAL = {
    "functions": [
        (r"f^{-1}(x)=\frac{5+4x}{5}", r"g^{-1}(x)=\frac{5+4x}{5}"),
        (r"f^{-1}(x)=\frac{5+4x}{5}", r"f(x)=\frac{5+4x}{5}"),
        ("3", "f^{-1}(2) = 4"),
        ("2x", r"\frac{dy}{dx} = 3x"),
        (r"\frac{dy}{dx} = 2x", r"\frac{dx}{dy} = 2x"),
    ],
    "operators": [
        ("1", r"\lim_{x\to 0} \frac{\sin x}{x} = 2"),
        ("1", r"\sum_{k=1}^{2} k = 1"),
        (r"\frac{x^2}{2}", r"\int x\,dx = x^2"),
        ("5", r"x + \sum_{i=1}^n i = 5"),
        ("5", r"x \int_0^1 f(t)\,dt = 5"),
        (r"\int_0^1 f(x)dx = 3", r"\int_0^1 g(x)dx = 3"),
        (r"\lim_{x\to 0^+} f(x) = 1", r"\lim_{x\to 0^-} f(x) = 1"),
        ("f(x) = x^2", r"\int_0^x f(t)\,dt = x^2"),
    ],
    "names": [
        (r"S_{\max} = 5", r"S_{\min} = 5"),
        (r"P(A|B) = \frac12", r"P(B|A) = \frac12"),
        (r"A \cup B = \{1,2\}", r"A \cap B = \{1,2\}"),
        (r"\{1,2,3\}", r"A \cup B = \{1,2\}"),
        ("5", "x + y = 5"),
        ("5", "xy = 5"),
        ("5", "5^+"),
        ("5", "5^{*}"),
    ],
    "conditions": [
        (r"\sqrt{x}", r"-\sqrt{x}, x \ge 0"),
        ("5", "5, x > 3"),
        ("x > 3", "x > 3, x < 5"),
        ("k > 1", r"k > 1, k \in \mathbb{Z}"),
        ("12", r"12 \text{ for } x > 0, 13 \text{ for } x < 0"),
        (
            r"x \text{ for } x > 0, -x \text{ for } x < 0",
            r"-x \text{ for } x > 0, x \text{ for } x < 0",
        ),
        ("x for x > 0, -x otherwise", "-x for x > 0, x otherwise"),
        ("2", "y = 1 = 2, y > 0"),
    ],
}


@pytest.mark.parametrize(("gold", "answer"), rows(EQUAL))
def test_one_name_is_a_label(gold: str, answer: str) -> None:
    score = verify(rf"So the result is $\boxed{{{answer}}}$.", gold)
    assert score.value == 1.0, score.reason


@pytest.mark.parametrize(("gold", "answer"), rows(UNEQUAL))
def test_another_name_or_value(gold: str, answer: str) -> None:
    score = verify(rf"So the result is $\boxed{{{answer}}}$.", gold)
    assert score.value == 0.0, score.reason
    assert not score.reason.startswith("fault")
