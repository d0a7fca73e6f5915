"""How weights are moved: what holds where a stage says only a part of it."""

from typing import Any

import pytest

from rl_reasoner import Recipe
from rl_reasoner.recipe.flags import apply_flags
from rl_reasoner.recipe.json_schema import recipe_schema

_RATES = {"sft": 1e-5, "grpo": 1e-6, "distill": 1e-6}


def staged(kind: str, **optim: Any) -> Recipe:
    """A recipe with a stage of this kind at its end."""
    fields = {"teacher": "scratch:dense-tiny"} if kind == "distill" else {}
    stage = {"kind": kind, **fields, **({"optim": optim} if optim else {})}
    data = {"task": "modular", "count": 40}
    fixed = {"policy": "scratch:dense-tiny", "data": data, "rewards": {"math_answer": 1}}
    return Recipe.model_validate({**fixed, "stages": [stage]})


@pytest.mark.parametrize("kind", _RATES)
@pytest.mark.parametrize("optim", [{}, {"warmup": 0}, {"warmup": 5}, {"schedule": "linear"}])
def test_a_kinds_learning_rate_holds_where_another_field_is_set(
    kind: str, optim: dict[str, Any]
) -> None:
    recipe = staged(kind, **optim)
    flags = [word for name, value in optim.items() for word in (f"--optim.{name}", str(value))]
    for made in (recipe, apply_flags(staged(kind), flags)):
        assert made.stages[0].optim.lr == _RATES[kind]  # type: ignore[union-attr]
    assert staged(kind, lr=0.5, **optim).stages[0].optim.lr == 0.5  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", _RATES)
def test_editors_show_a_kinds_own_learning_rate(kind: str) -> None:
    parts = recipe_schema()["$defs"]
    optim = parts[f"{kind.title()}Stage"]["properties"]["optim"]
    own = parts[optim["$ref"].rpartition("/")[2]]["properties"]["lr"]["default"]
    assert own == optim["default"]["lr"] == _RATES[kind]
