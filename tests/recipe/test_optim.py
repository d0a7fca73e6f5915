"""How weights are moved: what holds where a stage says only a part of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rl_reasoner import Recipe
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.flags import apply_flags
from rl_reasoner.recipe.json_schema import recipe_schema
from rl_reasoner.recipe.load import load_recipe

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


@pytest.mark.parametrize("kind", _RATES)
def test_a_constant_rate_has_no_other_end(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"final_lr_share belongs to .*linear and cosine"):
        staged(kind, final_lr_share=0.5)
    for schedule in ("linear", "cosine"):
        assert staged(kind, schedule=schedule, final_lr_share=0.5).stages


def test_distillation_refuses_the_balancing_loss_that_it_does_not_have() -> None:
    recipe = staged("distill")
    with pytest.raises(UserError, match=r"--router_aux 0\.1: .*router_aux belongs to sft and grpo"):
        apply_flags(recipe, ["--router_aux", "0.1"])
    assert apply_flags(recipe, ["--router_aux", "0"]).stages


def test_a_run_of_before_is_still_read(tmp_path: Path) -> None:
    fields = staged("distill").model_dump(mode="json")
    fields["stages"][0] |= {"router_aux": 0.1}
    fields["stages"][0]["optim"]["final_lr_share"] = 0.5
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises(UserError) as caught:
        load_recipe(str(tmp_path / "recipe.yaml"))
    assert "final_lr_share" in str(caught.value)
    (tmp_path / "lock.json").write_text("{}")
    assert load_recipe(str(tmp_path / "recipe.yaml")).stages
