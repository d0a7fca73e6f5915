"""Math-Verify as a second verifier of maths, where it is installed.

It is no dependency: its parsers are of other hands than ours, which is why two that agree say more.
It runs in a process of its own, under the deadline of rewards, for it bounds its time by signals.
"""

from functools import cache
from importlib.util import find_spec

from rl_reasoner.scoring.reward import reward
from rl_reasoner.types import Score


@cache
def is_there() -> bool:
    """Whether Math-Verify is installed."""
    return find_spec("math_verify") is not None


@reward
def math_verify(completion: str, answer: str) -> Score:
    """1.0 where Math-Verify finds the answer of `completion` equal to the gold `answer`."""
    from math_verify import parse, verify

    gold = parse(f"\\boxed{{{answer}}}")
    if not gold:
        return Score(None, "Math-Verify cannot read the gold answer")
    return Score(float(verify(gold, parse(completion))))
