"""Algorithms by name: what they set, what contradicts them, and that they train as written."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import HfArgumentParser, TrainerCallback

from rl_reasoner import GRPOConfig, GRPOTrainer, Score, open_policy, reward
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.trl_configs import config
from rl_reasoner.recipe.algorithms import ALGORITHMS, describe_algorithm
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import Loss
from rl_reasoner.training.advantages import (
    group_relative,
    kl_estimate,
    leave_one_out,
    over_group_mean,
    positive_weighed,
    prompt_averaged,
    token_weights,
    total_rewards,
    without_baseline,
)
from support.tiny import QUIET

PROMPTS = [f"{a}+{b}=" for a in range(4) for b in range(4)]
Rows = list[dict[str, Any]]


@reward
def letters(completion: str) -> Score:
    """The share of different characters, so that hardly any two completions score the same."""
    return Score(len(set(completion)) / 12 + completion.count("1") / 16)


def lengths(completions: list[str], **columns: Any) -> list[float | None]:
    """Nothing to say about completions with an odd number of characters."""
    return [None if len(c) % 2 else float(len(c)) for c in completions]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved policy: the reference of the KL term is loaded from there."""
    path = tmp_path_factory.mktemp("policy")
    open_policy("scratch:dense-tiny", seed=5, device="cpu").save(path)
    return str(path)


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two steps of 2 prompts x 4 completions."""
    return {
        "output_dir": str(folder),
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        **QUIET,
        **changes,
    }


def build(policy: str, folder: Path, rewards: Any = letters, **changes: Any) -> GRPOTrainer:
    opened = open_policy(policy, device="cpu")
    return GRPOTrainer(
        opened.model,
        reward_funcs=rewards,
        args=GRPOConfig(**arguments(folder, isolate_rewards=False, **changes)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=opened.tokenizer,
    )


def batch_of(trainer: GRPOTrainer, prompts: int = 2) -> dict[str, Any]:
    """What the trainer makes of the first prompts: completions, masks, advantages."""
    rows = [{"prompt": p} for p in PROMPTS[:prompts] for _ in range(trainer.num_generations)]
    trainer.model.train()
    found: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return found


# ----------------------------------------------------------------------------------- the names


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_named_algorithm_sets_its_fields_and_prints_them(name: str, tmp_path: Path) -> None:
    found = GRPOConfig(**arguments(tmp_path, algorithm=name))
    shown = describe_algorithm(name)
    for key, value in {**ALGORITHMS[name].fixed, **ALGORITHMS[name].usual}.items():
        assert getattr(found, key) == value and f"{key} = {value!r}" in shown
    assert "arXiv" in shown


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_steps_of_each_algorithm(name: str, policy: str, tmp_path: Path) -> None:
    trainer = build(policy, tmp_path, algorithm=name)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert all(p.isfinite().all() for p in after.values())
    assert any(not torch.equal(before[n], after[n]) for n in before), "nothing was learned"
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    assert all(("kl" in row) == bool(trainer.args.beta) for row in logged)


def test_a_setting_that_contradicts_the_algorithm_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        GRPOConfig(**arguments(tmp_path, algorithm="dapo", loss_type="grpo", beta=0.04))
    assert str(error.value) == (
        "loss_type is 'grpo', but algorithm 'dapo' has 'dapo'; beta is 0.04, but algorithm 'dapo' "
        "has 0.0. Leave out either the algorithm's name or the setting."
    )
    with pytest.raises(UserError, match=r"unknown algorithm 'dapoo'. Did you mean 'dapo'"):
        GRPOConfig(**arguments(tmp_path, algorithm="dapoo"))


def test_ones_own_value_holds_even_where_it_is_the_default(tmp_path: Path) -> None:
    assert GRPOConfig(**arguments(tmp_path, algorithm="grpo")).beta == 0.04
    assert GRPOConfig(**arguments(tmp_path, algorithm="grpo", beta=0.0)).beta == 0.0
    assert GRPOConfig(**arguments(tmp_path, algorithm="dapo", dynamic_sampling=0)).epsilon == 0.2
    assert GRPOConfig(**arguments(tmp_path, algorithm="dr_grpo", scale_rewards=False))
    with pytest.raises(UserError, match="loss_type is 'dapo', but algorithm 'grpo' has 'grpo'"):
        GRPOConfig(**arguments(tmp_path, algorithm="grpo", loss_type="dapo"))


def test_a_parser_that_passes_every_default_contradicts_nothing(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--algorithm", "grpo", "--epsilon", "0.1"]
    [found] = HfArgumentParser(GRPOConfig).parse_args_into_dataclasses(words)
    assert (found.loss_type, found.beta, found.epsilon) == ("grpo", 0.04, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kl_estimator": "k4"}, "unknown kl_estimator 'k4'. There are: k1, k2, k3"),
        ({"kl_in": "rewards"}, "unknown kl_in 'rewards'. Did you mean 'reward'"),
        ({"overlong_share": 20.0}, "overlong_share is 20.0; it is a share"),
        ({"dynamic_sampling": -1}, "dynamic_sampling is -1"),
        ({"positive_advantage_weight": -0.1}, "positive_advantage_weight is -0.1; .* from 0 up"),
        (
            {"algorithm": "max_rl", "overlong_share": 0.2},
            "overlong_share is 0.2, but algorithm 'max_rl' has 0.0",
        ),
        (
            {"beta": 0.1, "kl_estimator": "k1", "use_bias_correction_kl": False},
            "expected gradient of zero",
        ),
        (
            {"beta": 0.1, "kl_in": "reward", "multi_objective_aggregation": "normalize_then_sum"},
            "cannot be combined with multi_objective_aggregation",
        ),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(**arguments(tmp_path, **changes))


# ----------------------------------------------------------------------------------- recipes


def recipe(**loss: Any) -> Recipe:
    stage = {"kind": "grpo", "loss": loss, "data": {"task": "modular", "count": 8}}
    return Recipe.model_validate(
        {"policy": "scratch:dense-tiny", "rewards": {"math_answer": 1}, "stages": [stage]}
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_recipe_names_the_algorithm_and_stays_what_it_is(name: str, tmp_path: Path) -> None:
    made = recipe(algorithm=name)
    again = Recipe.model_validate(made.model_dump(mode="json"))
    assert again == made
    [stage] = again.stages
    found = config(again, stage, tmp_path, choose_placement(again))
    for key, value in {**ALGORITHMS[name].fixed, **ALGORITHMS[name].usual}.items():
        assert getattr(found, key) == value, key
    assert found.algorithm == name


def test_a_recipe_without_a_name_has_trls_own_defaults(tmp_path: Path) -> None:
    made = recipe()
    found = config(made, made.stages[0], tmp_path, choose_placement(made))
    plain = GRPOConfig(str(tmp_path))
    for field in ("loss_type", "importance_sampling_level", "use_bias_correction_kl", "kl_in"):
        assert getattr(found, field) == getattr(plain, field)


def test_a_recipe_says_contradictions_in_its_own_words() -> None:
    with pytest.raises(ValueError, match="type is 'bnpo', but algorithm 'gspo' has 'grpo'"):
        recipe(algorithm="gspo", type="bnpo")
    assert Loss.model_validate({"algorithm": "gspo", "epsilon": 1e-4}).epsilon == 1e-4


# ---------------------------------------------------------------------- equal to trl's, or papers


def replayed(kind: type[Any]) -> type[Any]:
    """The trainer with completions from a table instead of sampled ones."""

    class Replay(kind):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: Any, *others: Any) -> Any:
            random = torch.Generator().manual_seed(self._step)
            found = []
            for _ in prompt_ids:
                count = int(torch.randint(1, 6, (), generator=random))
                ids = torch.randint(6, 90, (count,), generator=random).tolist()
                found.append([*ids, self.eos_token_ids[0]])
            return found if kind is trl.RLOOTrainer else (found, None)

    Replay.__name__ = kind.__name__
    return Replay


class Gradient(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradients of each step, before they are clipped."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters()})


def scattered(completions: list[str], **columns: Any) -> list[float | None]:
    """A number for all but a fifth of the completions."""
    numbers = [sum(map(ord, c)) for c in completions]
    return [None if n % 5 == 0 else n % 7 / 7 for n in numbers]


def test_rloo_has_the_gradients_of_trls_rloo_trainer(policy: str, tmp_path: Path) -> None:
    """Leave-one-out, KL in the reward, one ratio a row: for rewards with abstentions too."""
    found = []
    for kind, configured in ((trl.RLOOTrainer, trl.RLOOConfig), (GRPOTrainer, GRPOConfig)):
        changes = arguments(tmp_path, beta=0.05, learning_rate=3e-2, optim="sgd")
        if kind is GRPOTrainer:
            changes["algorithm"] = "rloo"
        opened = open_policy(policy, device="cpu")
        trainer = replayed(kind)(
            opened.model,
            reward_funcs=scattered,
            args=configured(**changes),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
            processing_class=opened.tokenizer,
        )
        kept = Gradient()
        trainer.add_callback(kept)
        trainer.train()
        found.append(kept.steps)
    for theirs, ours in zip(*found, strict=True):
        scale = math.sqrt(sum(float(g.square().sum()) for g in theirs.values()))
        assert scale > 1e-3
        for name in theirs:
            assert (theirs[name] - ours[name]).norm() <= 1e-5 * scale, name


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_our_kl_term_weighs_tokens_as_trl_weighs_its_own(
    level: str, policy: str, tmp_path: Path
) -> None:
    """k3 in our path against trl's: loss and gradients, for every way of averaging."""
    trainer = build(policy, tmp_path, beta=0.3, importance_sampling_level=level)
    inputs = batch_of(trainer)
    inputs["ref_per_token_logps"] = inputs["ref_per_token_logps"] - 0.5  # a KL to speak of
    inputs["completion_mask"][0, 2:] = 0
    trainer.current_gradient_accumulation_steps = 2

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        trainer.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"):
        trainer.loss_type = loss_type
        for ratio in (True, False):
            trainer.args.use_bias_correction_kl = ratio
            trainer.objective.estimator = "k3"
            theirs = trainer._compute_loss(trainer.model, inputs)
            wanted = gradient(theirs)
            trainer.objective.estimator = "k3, ours"  # type: ignore[assignment]
            ours = trainer._compute_loss(trainer.model, inputs)
            assert torch.isclose(theirs, ours, rtol=1e-4), (loss_type, ratio)
            assert (gradient(ours) - wanted).norm() <= 1e-4 * wanted.norm(), (loss_type, ratio)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("name", [None, "rloo"])
def test_kl_in_the_reward(name: str | None, estimator: str, policy: str, tmp_path: Path) -> None:
    """r - beta * (sum of the tokens' KL), then the advantages; rows without advantage are skipped.

    The policy has moved from its reference, so that there is a KL.
    """
    if name and estimator != "k1":
        return
    trainer = build(
        policy,
        tmp_path,
        [letters, lengths],
        **({"algorithm": name} if name else {"kl_in": "reward", "kl_estimator": estimator}),
        beta=2.0,
    )
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += 0.02 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    output = batch_of(trainer)
    assert trainer.packed_forward.skips
    mask = output["completion_mask"]
    old, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
        torch.cat([output["prompt_mask"], mask], 1),
        mask.shape[1],
    )
    kl = kl_estimate((old - output["ref_per_token_logps"]).detach(), estimator)  # type: ignore[arg-type]
    assert (kl * mask).abs().sum() > 0.01
    rewards = total_rewards(trainer.rollout_batch.rewards, torch.ones(2)) - 2.0 * (kl * mask).sum(1)
    wanted = leave_one_out(rewards, 4) if name else group_relative(rewards, 4, "group")
    assert torch.allclose(output["advantages"], wanted, atol=1e-3)
    shown = list(trainer._logs["advantages"])
    assert shown == pytest.approx(wanted.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"algorithm": "max_rl"}, lambda r, t: over_group_mean(r, 4)),
        ({"algorithm": "scalerl"}, lambda r, t: prompt_averaged(r, t, 4)),
        ({"algorithm": "w_reinforce"}, lambda r, t: positive_weighed(without_baseline(r), 0.1)),
        (
            {"algorithm": "w_reinforce", "positive_advantage_weight": 0.0},
            lambda r, t: positive_weighed(without_baseline(r), 0.0),
        ),
        (
            {"positive_advantage_weight": 0.3},
            lambda r, t: positive_weighed(group_relative(r, 4, "group"), 0.3),
        ),
    ],
    ids=["max_rl", "scalerl", "w_reinforce", "nsr", "grpo"],
)
def test_the_gradient_is_that_of_the_written_equation(
    changes: dict[str, Any], wanted: Any, policy: str, tmp_path: Path
) -> None:
    """- sum of A log pi, by a plain pass of the model over each row; advantages by the formula."""
    trainer = build(policy, tmp_path, scattered, **changes)
    output = batch_of(trainer)
    mask = output["completion_mask"].float()
    rewards = total_rewards(trainer.rollout_batch.rewards, torch.ones(1))
    advantages = wanted(rewards, mask.sum(1))
    assert torch.allclose(output["advantages"], advantages, atol=1e-3) and advantages.any()
    assert list(trainer._logs["advantages"]) == pytest.approx(advantages.tolist(), abs=1e-3)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        trainer.model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters()])

    trainer.current_gradient_accumulation_steps = 1
    found = gradient(trainer._compute_loss(trainer.model, output))
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    attended = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    logits = trainer.model(ids, attention_mask=attended).logits[:, -mask.shape[1] - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, output["completion_ids"][:, :, None]).squeeze(2)
    weights = token_weights("dapo", mask, float(mask.sum()))
    written = gradient(-(advantages[:, None] * logps * weights).sum())
    assert (found - written).norm() <= 1e-3 * written.norm()


def test_a_reward_outside_of_what_an_algorithm_takes_is_one_error(
    policy: str, tmp_path: Path
) -> None:
    def below(completions: list[str], **columns: Any) -> list[float]:
        return [-0.5, *(1.0 for _ in completions[1:])]

    with pytest.raises(UserError, match=r"'max_rl' takes rewards of at least 0, and .* has -0.5"):
        batch_of(build(policy, tmp_path, below, algorithm="max_rl"))
    trainer = build(policy, tmp_path, scattered, algorithm="w_reinforce", reward_weights=[3.0])
    with pytest.raises(UserError, match=r"at least 0 and at most 1, .* change the rewards or"):
        batch_of(trainer)


def test_weights_that_come_to_one_are_not_beyond_it_by_rounding(
    policy: str, tmp_path: Path
) -> None:
    def right(completions: list[str], **columns: Any) -> list[float]:
        return [1.0 for _ in completions]

    weights = [0.55, 0.15, 0.1, 0.2]
    assert torch.tensor(weights).sum() > 1.0
    trainer = build(policy, tmp_path, [right] * 4, algorithm="w_reinforce", reward_weights=weights)
    advantages = batch_of(trainer)["advantages"]
    assert torch.allclose(advantages, torch.full_like(advantages, 0.1))


def test_reinforce_plus_plus_gives_each_token_its_own_advantage(
    policy: str, tmp_path: Path
) -> None:
    trainer = build(policy, tmp_path, algorithm="reinforce++")
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    output = batch_of(trainer)
    mask = output["completion_mask"].bool()
    advantages = output["advantages"]
    assert advantages.shape == mask.shape and not advantages[~mask].any()
    assert advantages[mask].mean().item() == pytest.approx(0, abs=1e-4)
    assert advantages[mask].std(correction=0).item() == pytest.approx(1, abs=1e-2)
    means = [(a[m]).mean().item() for a, m in zip(advantages, mask, strict=True)]
    assert [row["advantage"] for row in rows] == pytest.approx(means, abs=1e-5)


# --------------------------------------------------- rewards normalised each, and overlong rows


def gdpo(table: list[list[float]], size: int, weights: list[float]) -> list[float]:
    """GDPO, arXiv 2601.05242: each reward normalised in its group, summed, then over the batch."""

    def normal(values: list[float]) -> list[float]:
        known = [v for v in values if v == v]
        if len(known) < 2:
            return [math.nan] * len(values)
        centre = sum(known) / len(known)
        wide = math.sqrt(sum((v - centre) ** 2 for v in known) / (len(known) - 1))
        return [(v - centre) / (wide + 1e-4) for v in values]

    sums: list[float] = []
    for start in range(0, len(table), size):
        columns = [normal(list(c)) for c in zip(*table[start : start + size], strict=True)]
        for row, parts in zip(table[start : start + size], zip(*columns, strict=True), strict=True):
            known = [w * p for w, p in zip(weights, parts, strict=True) if p == p]
            sums.append(sum(known) if any(v == v for v in row) else math.nan)
    return [0.0 if v != v else v for v in normal(sums)]


def test_rewards_normalised_each_with_abstentions_are_the_papers(
    policy: str, tmp_path: Path
) -> None:
    def sometimes(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if i in (0, 4, 5, 6) else float(len(c)) for i, c in enumerate(completions)]

    def mostly(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if i == 0 else 0.1 * c.count("1") for i, c in enumerate(completions)]

    trainer = build(
        policy,
        tmp_path,
        [letters, sometimes, mostly],
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=[1.0, 0.5, 2.0],
    )
    found = batch_of(trainer)["advantages"].tolist()
    wanted = gdpo(trainer.rollout_batch.rewards.tolist(), 4, [1.0, 0.5, 2.0])
    assert found == pytest.approx(wanted, abs=1e-3)


def test_what_an_abstention_does_to_its_group(policy: str, tmp_path: Path) -> None:
    """A row that no reward can score is in no mean and no deviation; alone, a row has no group."""
    values: list[float | None] = [1.0, None, 0.0, 0.0, None, None, 1.0, None]

    def given(completions: list[str], **columns: Any) -> list[float | None]:
        return values

    found = batch_of(build(policy, tmp_path, given))["advantages"].tolist()
    mean, wide = 1 / 3, math.sqrt((4 + 1 + 1) / 9 / 2) + 1e-4
    first = [(1 - mean) / wide, 0.0, -mean / wide, -mean / wide]
    assert found == pytest.approx([*first, 0.0, 0.0, 0.0, 0.0], abs=1e-4)


def test_the_overlong_punishment_is_one_reward_more_and_scores_no_row_alone(
    policy: str, tmp_path: Path
) -> None:
    trainer = build(policy, tmp_path, lengths, overlong_share=0.5, reward_weights=[0.5])
    rows: Rows = []
    trainer.rollout_sink = rows.extend
    output = batch_of(trainer)
    tokens = output["completion_mask"].sum(1).tolist()
    assert trainer.reward_weights.tolist() == [0.5, 1.0]
    for row, (given, punished), count in zip(
        rows, trainer.rollout_batch.rewards.tolist(), tokens, strict=True
    ):
        if given != given:
            assert punished != punished and row["reward"] is None and row["advantage"] == 0
        else:
            wanted = min(0.0, (3 - count) / 3)  # nothing up to 3 of 6 tokens, -1 at 6
            assert punished == pytest.approx(wanted)
            assert row["reward"] == pytest.approx(0.5 * given + wanted)
    assert {row["reward"] is None for row in rows} == {True, False}
