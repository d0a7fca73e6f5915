"""What a judge may ask in all: questions and money, counted over all that share its cache.

Pure: `Budget.allowed` is told what the cache holds and what others have under way.
"""

import math
from dataclasses import dataclass

from rl_reasoner.errors import UserError
from rl_reasoner.rollout.cache import Usage

_AT_ONCE = 32  # questions between two looks at what they cost, at most
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class Budget:
    """The most questions and money of all that a judge's cache holds; prices per million tokens.

    Raises `UserError` for a number below 0 or without end, and for `max_cost` without a price.
    """

    max_requests: int | None = None
    max_cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_cost", "price_in", "price_out"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"judge: {name} is {value!r}: expected 0 or more")
        if self.max_cost is not None and not (self.price_in or self.price_out):
            raise UserError(
                "judge: max_cost needs a price: give price_in or price_out (money for a million "
                "tokens), or limit max_requests"
            )

    @property
    def unlimited(self) -> bool:
        """Whether anything may be asked."""
        return self.max_cost is None and self.max_requests is None

    def cost(self, of_prompts: float, own: float) -> float:
        """What so many tokens of prompts and of replies cost."""
        return (self.price_in * of_prompts + self.price_out * own) / 1e6

    def allowed(self, usage: Usage, under_way: int, failed: int) -> tuple[int, str]:
        """How many questions may be asked before the next look, and why none."""
        most = _NO_LIMIT
        if self.max_cost is not None:
            most, why = self._within_cost(self.max_cost, usage, under_way, failed)
            if not most:
                return 0, why
        if self.max_requests is not None:
            most = min(most, self.max_requests - usage.count - under_way - failed)
        return max(0, most), f"max_requests of {self.max_requests or 0:,} are spent"

    def _within_cost(
        self, most: float, usage: Usage, under_way: int, failed: int
    ) -> tuple[int, str]:
        """As many as are paid at the mean cost so far; at first few, for a mean of few is none."""
        if usage.untold:
            return 0, "max_cost cannot be kept: replies come without their tokens; set max_requests"
        spent = self.cost(usage.prompt_tokens, usage.tokens)
        mean = spent / usage.count if usage.count else 0.0
        left = most - spent - mean * under_way
        if left <= 0:
            return 0, f"max_cost of {most:g} is spent ({spent:.4g})"
        paid = left / mean if mean else math.inf
        return int(max(1, min(_AT_ONCE, usage.count + failed, paid))), ""
