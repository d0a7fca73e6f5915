"""What looks like a choice, a label, a date or a second member of the answer, and is none.

A row is (gold, answer as a model writes it in its box). Public face only.
"""

import pytest

from rl_reasoner.answers import verify
from support.verdicts import rows

UNEQUAL = {
    "a gold that begins with a letter is no choice": [
        ("A circle", "A square"),
        ("A circle.", "A triangle"),
        ("A solution exists and is unique.", "A"),
        ("A is antisymmetric, B is symmetric", "A"),
        ("B is symmetric", "B is antisymmetric"),
        ("C is larger", "C is smaller"),
        ("A is taller than B", "A is shorter than B"),
        ("E, K", "E"),
        ("E, K", "E, L"),
    ],
    "Roman numbers": [
        ("I, II", "I"),
        ("I,II,III,IV", "I,II,III"),
        ("I", "I, II"),
        ("I", "I and III"),
        ("I and III", "I and II"),
        ("I", "(I) II"),
        ("I", "I am not sure"),
        ("B", "(B) I"),
        ("B", "(B) A and C"),
        ("B", "(B) I and C"),
    ],
    "a letter taken back, or two": [
        ("B", "B is wrong"),
        ("B", "B is not the answer"),
        ("B", "B isn't"),
        ("B", "B cannot be right"),
        ("B", "(B) is wrong"),
        ("B", "(B) isn't it"),
        ("B", "B but could be C"),
        ("D. A triangle", "A"),
        ("B", "B vs C"),
        ("B", "B then C"),
        ("B", "B with C"),
        ("B", "B, but not sure, maybe C"),
        ("B", "B (or C)"),
    ],
    "dates": [
        ("Mary: 5, John: 3", "Mary: 3, John: 5"),
        ("Mary: 5, John: 3", "Mark: 5, John: 3"),
        ("Mark 5", "Mars 5"),
        ("decreases on (0,2)", "decreases on (2,0)"),
        ("increase by 5, decrease by 3", "increase by 3, decrease by 5"),
        ("May 10 and June 11", "May 11 and June 10"),
        ("from March 3 to March 5", "from March 5 to March 3"),
        ("March 5", "May 5"),
    ],
    "labels": [
        ("f(2) = 3", "f(1) = 3"),
        ("Q(50) = 47.5", "Q(10) = 47.5"),
        ("a_{n+1} = 2a_n", "a_{n+1} = 3a_n"),
        ("y = 0; y = x; y = -x", "y = 0; y = x; n = -x"),
        (r"\angle BEA_1 = 90, \angle AEB_1 = 90", r"\angle CEA_1 = 90, \angle AEB_1 = 90"),
    ],
    "where it is defined": [
        (r"\frac{x-4}{x+3}", r"\frac{x-4}{x-3}, x \ne 3"),
        (r"\frac{x-4}{x+3}", r"\frac{x-4}{x+3}, x = -3"),
        ("x + y = 4", "x + y = 4, x > 0"),
        ("x < 5", r"x < 5, x \ne 0"),
        (r"\frac{x-4}{x+3}", r"x \ne -3"),
        ("5", r"5, x \ne 3"),
        ("k < 2", r"k < 2, k \ne 0"),
        (r"y = 3x, x \ne 0", "y = 3x"),
    ],
    "units": [(r"5 \text{ circles}", r"5 \text{ square}"), ("5 cm", r"5\text{ cm sq}")],
}

EQUAL = {
    "words": [
        ("A circle", "circle"),
        ("A circle.", "a circle"),
        ("E, K", "K, E"),
        ("I, II, III", "I,II,III"),
        ("I, III", "III and I"),
        ("I", "(I)"),
    ],
    "choices": [
        ("B", "B is correct"),
        ("B", "B, since it is prime"),
        ("B", "B Paris"),
        ("B", "B (12)"),
        ("B", r"B \text{ (the second)}"),
        ("B", "B. Not possible"),
        ("B", "(B) False"),
        ("B", "B; it is prime"),
        ("B: 35", "B"),
        ("B", "(B) I and II only"),
        ("C", "C. II only"),
        ("E", r"\text{(E)} I, II, and III"),
        ("(C) I and III only", "C"),
        ("A", "A. X is larger"),
        ("I", "I only"),
        ("D. A triangle", "A triangle"),
        ("(E) I only", "I only"),
        ("B", r"\text{(}\mathbf{B}\text{)}"),
        ("B", "(B) A triangle"),
        ("B", "B. A right angle"),
        ("B", "B, since B is prime"),
        ("D", "D) cannot be determined"),
        ("D", r"\text{(D) cannot be determined}"),
        ("D", "D. is not possible"),
    ],
    "dates": [
        ("Sept 3", "September 3rd"),
        ("March 5, 2020", "the 5th of Mar. 2020"),
        ("11:55 p.m. on 24 December 2014.", "December 24, 2014 at 11:55 pm"),
        ("Monday, May 4", "May 4, Monday"),
        ("May 10 and June 11", "May 10th and June 11th"),
    ],
    "labels": [
        ("f(1)+f(2) = 3", "2f(1) + 2f(2) = 6"),
        ("a_{n+1} = 2a_n", "2a_n - a_{n+1} = 0"),
        ("y = 0; y = x; y = -x", "y = x, y = -x, y = 0"),
        ("y = 0; y = x; y = -x", r"0, x, -x"),
        ("x = 1 or x = 2", "1, x = 2"),
        (r"\angle BEA_1 = 90, \angle AEB_1 = 90", r"\angle AEB_1 = 90, \angle A_1EB = 90"),
    ],
    "where it is defined": [
        (r"\frac{x-4}{x+3}", r"\frac{x - 4}{x + 3}, x \ne -3"),
        (r"\frac{x-4}{x+3}", r"\frac{x-4}{x+3}, \text{ where } x \neq -3"),
        (r"\frac{x-4}{x+3}", r"\frac{x-4}{x+3} \quad (x ≠ -3)"),
        (r"\frac{x-4}{x+3}", r"f(x) = \frac{x-4}{x+3}, x \neq -3, x \neq 2"),
        ("y = 3x", r"y = 3x \text{ for } x \ne 0"),
        (r"k < 2, k \ne 0", r"k < 2 \text{ with } k \neq 0"),
        (r"k < 2, k \ne 0", r"k < 2\,(k \neq 0)"),
    ],
    "units": [("5 cm^2", r"5\text{ cm sq}"), ("36 square units", "36 square")],
}


@pytest.mark.parametrize(("gold", "answer"), rows(UNEQUAL))
def test_not_the_same(gold: str, answer: str) -> None:
    score = verify(rf"So the result is $\boxed{{{answer}}}$.", gold)
    assert score.value == 0.0, score.reason


@pytest.mark.parametrize(("gold", "answer"), rows(EQUAL))
def test_the_same(gold: str, answer: str) -> None:
    score = verify(rf"So the result is $\boxed{{{answer}}}$.", gold)
    assert score.value == 1.0, score.reason
