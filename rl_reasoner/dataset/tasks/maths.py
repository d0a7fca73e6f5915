"""The maths tasks: each a function that writes a problem, its chain of thought and its answer."""

import random
from collections.abc import Sequence

from rl_reasoner.dataset.tasks.base import Pick, Problem, Task
from rl_reasoner.language.thinking import with_tags


def _left_nested(operands: Sequence[int], operators: str) -> str:
    """The expression that takes the operators from left to right, with no needless parentheses."""
    text, last = str(operands[0]), "*"
    for operator, operand in zip(operators, operands[1:], strict=True):
        if operator == "*" and last != "*":
            text = f"({text})"
        text, last = f"{text}{operator}{operand}", operator
    return text


def _key(operands: Sequence[int], operators: str) -> str:
    """Operands and operators in a row, the first two in order where they may change places."""
    first = sorted(operands[:2]) if operators[0] != "-" else operands[:2]
    key = str(first[0])
    for operator, operand in zip(operators, [*first[1:], *operands[2:]], strict=True):
        key += f"{operator}{operand}"
    return key


def _apply(a: int, operator: str, b: int) -> int:
    return a + b if operator == "+" else a - b if operator == "-" else a * b


def _worked(operands: Sequence[int], operators: str, modulus: int = 0) -> tuple[str, str]:
    """The chain that takes one operator after the other, and its answer."""
    total, steps = operands[0], []
    for operator, operand in zip(operators, operands[1:], strict=True):
        result = _apply(total, operator, operand)
        result = result % modulus if modulus else result
        steps.append(f"{total}{operator}{operand}={result}")
        total = result
    return ";".join(steps), str(total)


def _modular(level: int, pick: Pick) -> Problem:
    operands = [pick(10) for _ in range(level)]
    operators = "".join("+-*"[pick(3)] for _ in range(level - 1))
    text = f"({_left_nested(operands, operators)})%10="
    key = _key(operands, operators)
    return Problem("modular", text, *_worked(operands, operators, 10), level, key)


def _chain_sum(level: int, pick: Pick) -> Problem:
    operands = [1 + pick(99) for _ in range(level)]
    operators = "".join("+-"[pick(2)] for _ in range(level - 1))
    text = f"{_left_nested(operands, operators)}="
    key = _key(operands, operators)
    return Problem("chain_sum", text, *_worked(operands, operators), level, key)


def _product(level: int, pick: Pick) -> Problem:
    """Two numbers of `level` digits, no power of ten: no tiny policy does it in its head."""
    least = 10 ** (level - 1)
    a, b = (least + 1 + pick(9 * least - 1) for _ in range(2))
    return _multiplied("product", level, a, b)


def _tens(level: int, pick: Pick) -> Problem:
    """A number of `level` digits times 1, 10, 100 or 1000: it is written down, with zeros."""
    least = 10 ** (level - 1)
    return _multiplied("tens", level, least + pick(9 * least), 10 ** pick(4))


def _multiplied(task: str, level: int, a: int, b: int) -> Problem:
    operands = (a, b)
    text = f"{_left_nested(operands, '*')}="
    return Problem(task, text, *_worked(operands, "*"), level, _key(operands, "*"))


def _nested(level: int, pick: Pick) -> Problem:
    """Sums and products in turn: (a+b)*c-d and so on, `level` operators."""
    operators = "".join("*" if place % 2 else "+-"[pick(2)] for place in range(level))
    operands = [1 + pick(20), *(2 + pick(8) if o == "*" else 1 + pick(20) for o in operators)]
    text = f"{_left_nested(operands, operators)}="
    key = _key(operands, operators)
    return Problem("nested", text, *_worked(operands, operators), level, key)


_LINEAR = {  # level: the ranges of a, of |b| and of |x|
    1: (range(2, 10), range(1, 10), range(1, 10)),
    2: (range(2, 10), range(10, 100), range(1, 10)),
    3: (range(2, 13), range(10, 100), range(10, 21)),
    4: (range(13, 20), range(10, 100), range(10, 21)),
    5: (range(13, 30), range(100, 1000), range(21, 51)),
}


def _linear(level: int, pick: Pick) -> Problem:
    a, b, x = (numbers[pick(len(numbers))] for numbers in _LINEAR[level])
    x = -x if pick(2) else x
    plus, minus = "+-" if pick(2) else "-+"
    c = _apply(a * x, plus, b)
    left = f"{a}x{plus}{b}={c}"
    chain = f"{c}{minus}{b}={a * x};{a * x}/{a}={x}"
    return Problem("linear", f"{left},x=", chain, str(x), level, left)


def _gcd(level: int, pick: Pick) -> Problem | None:
    """Two numbers for which Euclid's algorithm takes `level` divisions."""
    factor = 1 + pick(20)
    p = 2 + pick(49 if level < 5 else 98)
    a, b = factor * p, factor * (1 + pick(p - 1))
    operands, steps = f"{a},{b}", []
    while b:
        steps.append(f"{a}%{b}={a % b}")
        a, b = b, a % b
    if len(steps) != level:
        return None
    return Problem("gcd", f"gcd({operands})=", ";".join(steps), str(a), level, operands)


def _base(level: int, pick: Pick) -> Problem:
    """From decimal to a base or back, `level` digits in that base; one key for both ways."""
    base, back = 2 + pick(8), pick(2)
    digits = [1 + pick(base - 1), *(pick(base) for _ in range(level - 1))]
    written = f"{''.join(map(str, digits))}_{base}"
    number, steps = digits[0], []
    for digit in digits[1:]:
        steps.append(f"{number}*{base}+{digit}={number * base + digit}")
        number = number * base + digit
    if back:
        chain = ";".join(steps)
        return Problem("base", f"{written}=?_10", chain, str(number), level, written)
    text, rest, steps = f"{number}=?_{base}", number, []
    while rest:
        steps.append(f"{rest}/{base}={rest // base}r{rest % base}")
        rest //= base
    return Problem("base", text, ";".join(steps), written, level, written)


def _countdown(level: int, pick: Pick) -> Problem | None:
    """`level` numbers and a target; the answer given is one of many."""
    numbers = [1 + pick(20) for _ in range(level)]
    pool = [(number, str(number), "") for number in numbers]  # value, expression, its operator
    steps = []
    while len(pool) > 1:
        a, left, of_left = pool.pop(pick(len(pool)))
        b, right, of_right = pool.pop(pick(len(pool)))
        operator = "+-*/"[pick(4)]
        if (operator == "/" and a % b) or (operator == "-" and a <= b):
            return None
        result = a // b if operator == "/" else _apply(a, operator, b)
        if operator in "*/" and of_left in ("+", "-"):
            left = f"({left})"
        if of_right and (operator in "-/" or (operator == "*" and of_right in "+-")):
            right = f"({right})"
        steps.append(f"{a}{operator}{b}={result}")
        pool.append((result, f"{left}{operator}{right}", operator))
    target, answer, _ = pool[0]
    if target > 99 or target in numbers:
        return None
    text = f"{','.join(map(str, numbers))}->{target}"
    key = f"{','.join(map(str, sorted(numbers)))}->{target}"
    columns = {"numbers": numbers, "target": target}  # what its reward needs
    return Problem("countdown", text, ";".join(steps), answer, level, key, columns)


def _careless_chain(problem: Problem, share: float, rng: random.Random) -> dict[str, str]:
    """The chain and completion of a `modular` problem as a careless writer gives them.

    Each step's result is, with probability `share`, a random digit (the right one in one case of
    ten); the next step goes on from it, and the answer is the last result.
    """
    steps, result = [], problem.chain[0]
    for step in problem.chain.split(";"):
        operator, operand = step[1], step[2]
        right = str(_apply(int(result), operator, int(operand)) % 10)
        wrong = rng.random() < share
        steps.append(f"{result}{operator}{operand}=")
        result = str(int(rng.random() * 10)) if wrong else right
        steps[-1] += result
    chain = ";".join(steps)
    return {"chain": chain, "completion": with_tags(chain, result)}


MATHS_TASKS = (
    Task("modular", "digit expressions modulo 10, worked from left to right; level: operands",
         range(2, 6), range(6, 8), _modular, _careless_chain),
    Task("chain_sum", "sums and differences of numbers up to 99; level: numbers",
         range(2, 6), range(6, 9), _chain_sum),
    Task("product", "a*b; level: digits of each",
         range(2, 4), range(4, 5), _product),
    Task("tens", "a*1, a*10, a*100 or a*1000; level: digits of a",
         range(2, 4), range(4, 5), _tens),
    Task("nested", "(a+b)*c-d and so on: sums and products in turn; level: operators",
         range(2, 5), range(5, 7), _nested),
    Task("linear", "ax+b=c with a whole solution; level: size of the numbers",
         range(1, 4), range(4, 6), _linear),
    Task("gcd", "greatest common divisor by Euclid's algorithm; level: divisions it takes",
         range(1, 5), range(5, 8), _gcd),
    Task("base", "from decimal to a base from 2 to 9, and back; level: digits in that base",
         range(2, 6), range(6, 8), _base),
    Task("countdown",
         "reach a target with + - * / out of given numbers; each used at most once; level: numbers",
         range(3, 5), range(5, 7), _countdown, judge="countdown"),
)  # fmt: skip
