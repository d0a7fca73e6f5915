"""A flag that several stages have: which of them it means; shown values as one types them."""

import shlex
from itertools import permutations
from pathlib import Path

import pytest

from rl_reasoner import Recipe
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.algorithms import ALGORITHMS
from rl_reasoner.recipe.flags import apply_flags, flag_places, flag_table
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.stages import GrpoStage, Loss


@pytest.fixture
def two() -> Recipe:
    """Two grpo stages behind an sft stage."""
    rows = {"data": {"task": "modular"}}
    sft = {"kind": "sft", "steps": 3, "batch": 4, "optim": {"lr": 1e-3}, **rows}
    stages = [{"kind": "grpo", "name": name, **rows} for name in "ab"]
    fields = {"template": "plain", "rewards": {"math_answer": 1.0}}
    return Recipe.model_validate(
        {"name": "two", "policy": "scratch:dense-tiny", "stages": [sft, *stages], **fields}
    )


def test_it_means_all_stages_of_the_last_ones_kind(two: Recipe) -> None:
    flags = ["--vllm.mode", "server", "--vllm.url", "http://other:1", "--optim.lr", "1e-5"]
    sft, *stages = apply_flags(two, flags).stages
    assert sft.optim.lr == 1e-3  # type: ignore[union-attr]
    for stage in stages:
        assert isinstance(stage, GrpoStage) and stage.vllm
        assert stage.vllm.mode == "server" and stage.optim.lr == 1e-5


@pytest.mark.parametrize("flags", permutations(["--router_aux=0", "--a.router_aux=0.2"]))
def test_the_stage_that_is_named_keeps_its_own(two: Recipe, flags: tuple[str, ...]) -> None:
    stages = apply_flags(two, flags).stages[1:]
    assert [stage.router_aux for stage in stages] == [0.2, 0]  # type: ignore[union-attr]
    places = flag_places(two, flags)  # a mistake names the flag that was heard
    assert places["stages", 1, "router_aux"] == "--a.router_aux 0.2"
    assert places["stages", 2, "router_aux"] == "--router_aux 0"


def test_a_part_of_a_whole_is_set_in_one_stage_alone(two: Recipe) -> None:
    flags = ["--b.sampling.max_tokens", "7", "--sampling", "{max_tokens: 9}"]
    stages = apply_flags(two, flags).stages[1:]
    assert [stage.sampling.max_tokens for stage in stages] == [9, 7]  # type: ignore[union-attr]


def test_a_template_is_a_text_wherever_it_stands() -> None:
    own = "Question: {problem}\nAnswer:"
    flags = [f"--{at}.template={own}" for at in ("data", "evals.overrides.mbpp")]
    made = load_recipe("mbpp_qwen_coder", flags)
    assert made.data and made.data.template == own
    assert made.evals.overrides["mbpp"].template == own
    short = load_recipe("mbpp_qwen_coder", ["--evals.max_tokens", "1e2"])
    assert short.evals.max_tokens == 100


def test_every_stage_of_a_shipped_recipe_hears_it() -> None:
    made = load_recipe("r1_qwen_7b", ["--vllm.memory", "0.4"])
    grpo = [stage for stage in made.stages if isinstance(stage, GrpoStage)]
    assert len(grpo) == 3 and all(stage.vllm and stage.vllm.memory == 0.4 for stage in grpo)


def test_shown_rewards_are_typed_with_their_options() -> None:
    recipe = load_recipe("code_tiny")
    shown = {flag: value for flag, value, _ in flag_table(recipe)}["--rewards"]
    assert "timeout_s" in shown
    typed = apply_flags(load_recipe("quickstart"), ["--rewards", *shlex.split(shown)])
    assert typed.rewards == recipe.rewards


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("shipped", ["quickstart", "moe_tiny"])
def test_another_algorithm_than_the_recipes_is_one_flag(name: str, shipped: str) -> None:
    """What the recipe has by default, or by its own algorithm, does not speak against it."""
    changed = apply_flags(load_recipe(shipped), ["--loss.algorithm", name, "--loss.beta", "0"])
    assert isinstance(stage := changed.stages[-1], GrpoStage)
    assert stage.loss == Loss(algorithm=name, beta=0.0)


def test_what_the_recipe_says_itself_is_kept_or_speaks_against_it() -> None:
    recipe = load_recipe("quickstart")
    assert isinstance(stage := apply_flags(recipe, ["--loss.algorithm=rloo"]).stages[-1], GrpoStage)
    assert stage.loss.beta == 0.001 and stage.loss.kl_in == "reward"
    said = "beta is 0.001, but algorithm 'scalerl' has 0.0"
    with pytest.raises(UserError, match=said):
        apply_flags(recipe, ["--loss.algorithm", "scalerl"])
    with pytest.raises(UserError, match="type is 'grpo', but algorithm 'scalerl' has 'cispo'"):
        apply_flags(recipe, ["--loss.algorithm", "scalerl", "--loss.beta=0", "--loss.type=grpo"])


def test_an_epsilon_above_the_algorithms_upper_bound_is_said(two: Recipe) -> None:
    said = r"epsilon is 0.2, above gspo's epsilon_high of 0.0004: set both"
    for flags in (["--loss.algorithm", "gspo", "--loss.epsilon", "0.2"], ["--loss.epsilon=0.2"]):
        named = two if len(flags) > 1 else apply_flags(two, ["--loss.algorithm", "gspo"])
        with pytest.raises(UserError, match=said):
            apply_flags(named, flags)
    for epsilon in (0.2, "2e-1"):
        with pytest.raises(ValueError, match=r"above gspo's epsilon_high of 0.0004: set both"):
            Loss.model_validate({"algorithm": "gspo", "epsilon": epsilon})
    with pytest.raises(ValueError, match="valid number"):
        Loss.model_validate({"algorithm": "gspo", "epsilon": "small"})
    assert Loss.model_validate({"algorithm": "gspo", "epsilon": 1e-4}).epsilon_high == 4e-4


def test_an_algorithm_is_set_twice_for_one_stage_and_where_there_is_no_loss(two: Recipe) -> None:
    flags = ["--loss.algorithm", "gspo", "--loss.algorithm", "dapo", "--a.loss.algorithm", "rloo"]
    stages = apply_flags(two, flags).stages[1:]
    assert [stage.loss.algorithm for stage in stages] == ["rloo", "dapo"]  # type: ignore[union-attr]
    with pytest.raises(UserError, match="loss"):
        apply_flags(two, ["--stages.0.loss.algorithm", "gspo"])


@pytest.mark.parametrize(
    ("loss", "flags", "field", "value"),
    [
        ({"beta": 0.0}, ["--loss.algorithm=rloo"], "beta", 0.0),
        ({"epsilon": 0.2}, ["--loss.algorithm=dapo"], "epsilon", 0.2),
        ({"epsilon": 0.2, "epsilon_high": 0.3}, ["--loss.algorithm=gspo"], "epsilon", 0.2),
        ({}, ["--loss.algorithm=grpo", "--loss.kl_ratio=no"], "kl_ratio", False),
        ({}, ["--loss.algorithm=dapo", "--loss.beta", ".0"], "beta", 0.0),
    ],
    ids=str,
)
def test_what_is_said_holds_also_where_it_is_the_default(
    loss: dict[str, float], flags: list[str], field: str, value: object, two: Recipe
) -> None:
    [*_, stage] = two.stages
    assert isinstance(stage, GrpoStage)
    said = stage.model_copy(update={"loss": Loss.model_validate(loss)})
    changed = apply_flags(two.model_copy(update={"stages": (*two.stages[:-1], said)}), flags)
    assert getattr(changed.stages[-1].loss, field) == value  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*ALGORITHMS])
def test_an_algorithm_means_the_same_for_a_run_as_for_its_recipe(
    two: Recipe, tmp_path: Path, name: str
) -> None:
    """A run's recipe has every field written down: a default there is no wish."""
    (tmp_path / "recipe.yaml").write_text(two.to_yaml(), encoding="utf-8")
    (tmp_path / "lock.json").write_text("{}", encoding="utf-8")
    flags = ["--loss.algorithm", name]
    own = apply_flags(two, flags)
    of_run = load_recipe(str(tmp_path / "recipe.yaml"), flags)
    assert of_run.stages == own.stages


def test_names_with_dots_are_found_before_they_are_in_the_recipe(two: Recipe) -> None:
    flags = ["--evals.overrides.my.jsonl.template", "boxed", "--evals.sets", "my.jsonl,b.jsonl"]
    for given in (flags, [*flags[2:], *flags[:2]]):
        evals = apply_flags(two, given).evals
        assert evals.sets == ("my.jsonl", "b.jsonl")
        assert evals.overrides["my.jsonl"].template == "boxed"
    changed = apply_flags(two, ["--rewards.pkg.mine:short", "2"])
    assert changed.rewards["pkg.mine:short"].weight == 2
