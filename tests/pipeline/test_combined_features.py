"""Two features in one recipe: a run of two steps ends, and the last one has a gradient.

That nothing is refused and nothing breaks; that gradients are right is what each feature's own
tests say. The pairs stand in tests/support/combinations.py.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Recipe, train
from support.combinations import RUN_TOGETHER, together
from support.tiny import rows

LETTERS = '''
from rl_reasoner import reward


@reward
def letters(completion: str) -> float:
    """How many different letters it has."""
    return len(set(completion)) / 8
'''


def steps_of(pair: tuple[str, str], folder: Path) -> list[dict[str, Any]]:
    """The metrics of the grpo stage of a run with both features."""
    (folder / "own.py").write_text(LETTERS, encoding="utf-8")
    fields, _ = together(*pair)
    fields["rewards"] = {**fields["rewards"], f"{folder / 'own.py'}:letters": 1.0}
    fields["run"] |= {"folder": str(folder / "run"), "report_to": "none"}
    train(Recipe.model_validate(fields), quiet=True)
    [metrics] = (folder / "run" / "stages").glob("*-grpo/metrics.jsonl")
    return rows(metrics)


@pytest.mark.matrix
@pytest.mark.parametrize("pair", RUN_TOGETHER, ids=" and ".join)
def test_two_features_train_together(pair: tuple[str, str], tmp_path: Path) -> None:
    steps = steps_of(pair, tmp_path)
    assert len(steps) == 2
    assert all(math.isfinite(step["loss"]) for step in steps)
    last = steps[-1]["grad_norm"]  # fp16 leaves out a first step whose scale was too large
    assert math.isfinite(last) and last > 0
