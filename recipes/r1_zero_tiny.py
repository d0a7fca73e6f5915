"""R1-Zero, tiny: RL from a base that was never shown how to answer well.

    rl-reasoner train r1_zero_tiny               # or: python recipes/r1_zero_tiny.py

The base has seen chains of thought with errors, in two languages, and answers without any. GRPO
rewards right answers and the form of R1's template (think, then answer), nothing else (DeepSeek-R1,
arXiv 2501.12948, section 2.2). Accuracy rises; the mixing of languages stays: no reward is against
it. The whole of R1 is in r1_tiny, whose first two stages these are.
"""

from rl_reasoner.recipes.r1_tiny import recipe as r1

from rl_reasoner import Recipe
from rl_reasoner.cli import main_of


def recipe() -> Recipe:
    """The first two stages of r1_tiny."""
    whole = r1()
    update = {"name": "r1_zero_tiny", "stages": whole.stages[:2]}
    return whole.model_copy(update=update)


if __name__ == "__main__":
    main_of(__file__)
