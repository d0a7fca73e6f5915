"""Runs from recipe to policy: what lies in the folder, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_reasoner import Recipe, Run, evaluate, open_policy, train
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import UserError
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.recipe.recipe import Evals
from rl_reasoner.rollout import sampling_weights
from rl_reasoner.scoring.circuit_breaker import RewardsFailed
from support.tiny import (
    REWARD,
    TRAPPED,
    grpo,
    recipe,
    rows,
    same,
    sft,
    two_stages,
    untimed,
    weights,
)

SETTINGS: dict[str, Any] = {"template": "plain", "limit": 32, "max_tokens": 24}

# --------------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The uninterrupted run that the others are held against."""
    return train(two_stages(tmp_path_factory.mktemp("whole")), quiet=True)


def test_the_folder_of_a_run(whole: Run) -> None:
    folder = whole.folder
    for name in (
        "recipe.yaml",
        "lock.json",
        "report.html",
        "evals/before.json",
        "evals/after.json",
        "stages/1-sft/metrics.jsonl",
        "stages/1-sft/checkpoints",
        "stages/2-grpo/metrics.jsonl",
        "stages/2-grpo/rollouts.jsonl",
        "stages/2-grpo/checkpoints/checkpoint-7",
        "policy/model.safetensors",
    ):
        assert (folder / name).exists(), name
    assert whole.report == folder / "report.html"
    assert "tiny" in whole.report.read_text(encoding="utf-8")
    lock = json.loads((folder / "lock.json").read_text())
    assert lock["policy"] == {
        "source": "scratch:moe-tiny",
        "parameters": 543_360,
        "active_parameters": 211_584,
    }
    assert (lock["device"], lock["precision"], lock["seed"]) == ("cpu", "fp32", 0)
    names = {p.name for p in (folder / "stages" / "2-grpo" / "checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-6", "checkpoint-7"}, "the two newest are kept"


def test_the_policy_opens_without_us_and_is_the_trained_one(whole: Run) -> None:
    model = AutoModelForCausalLM.from_pretrained(whole.folder / "policy")
    tokenizer = AutoTokenizer.from_pretrained(whole.folder / "policy")
    ids = tokenizer("(1+2)%10=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, whole.policy.model(input_ids=ids).logits)
    assert same(whole.folder / "policy", whole.folder / "stages" / "2-grpo" / "policy")
    assert not same(whole.folder / "policy", whole.folder / "stages" / "1-sft" / "policy")
    out = model.generate(input_ids=ids, max_new_tokens=3)
    assert out.shape[1] > ids.shape[1]
    assert (
        open_policy(str(whole.folder), device="cpu").parameter_counts
        == whole.policy.parameter_counts
    )


def test_evaluations_before_and_after(whole: Run) -> None:
    sets = [f"modular_test{mode}" for mode in ("", "@sampled", "@chain-forced", "@direct-forced")]
    for name in ("before", "after"):
        data = json.loads((whole.folder / "evals" / f"{name}.json").read_text(encoding="utf-8"))
        assert data["name"] == name and data["policy"] == str(whole.folder)
        assert list(data["sets"]) == sets
        for figures in data["sets"].values():
            assert figures["problems"] == 4
            low, high = figures["interval"]
            assert 0 <= low <= figures["accuracy"] <= high <= 1 and 0 <= figures["truncated"] <= 1
        assert whole.evals[name].sets == data["sets"]


def test_metrics_carry_trls_names(whole: Run) -> None:
    first = rows(whole.folder / "stages" / "1-sft" / "metrics.jsonl")
    assert [row["step"] for row in first] == [1, 2, 3]
    assert {"loss", "grad_norm", "learning_rate", "mean_token_accuracy"} <= first[0].keys()
    second = rows(whole.folder / "stages" / "2-grpo" / "metrics.jsonl")
    assert [row["step"] for row in second] == list(range(1, 8))
    [reward] = two_stages_rewards(whole)
    for row in second:
        assert {
            "reward",
            "reward_std",
            "frac_reward_zero_std",
            f"rewards/{reward}/mean",
            f"rewards/{reward}/faults",
            "completions/mean_length",
            "completions/clipped_ratio",
            "entropy",
            "timing/generation",
            "timing/reward",
            "timing/training",
            "tokens_per_second",
            "experts/max_over_mean",
            "experts/load/layer0",
            "experts/load/layer1",
        } <= row.keys()
        assert sum(row["experts/load/layer0"]) == pytest.approx(1.0)
    evaluated = [row["step"] for row in second if "eval/modular_validation/accuracy" in row]
    assert evaluated == [2, 4, 6]


def two_stages_rewards(run: Run) -> list[str]:
    sampled = rows(run.folder / "stages" / "2-grpo" / "rollouts.jsonl")
    assert [row["step"] for row in sampled] == [step for step in range(1, 8) for _ in range(8)]
    return list(sampled[0]["scores"])


def test_settings_reach_the_trainer(tmp_path: Path) -> None:
    optim = {"lr": 1e-2, "schedule": "linear", "warmup": 2, "final_lr_share": 0.1}
    run = train(
        recipe(
            tmp_path,
            sft(steps=6, optim=optim),
            grpo(steps=4, optim={"lr": 1e-3, "schedule": "cosine", "final_lr_share": 0.5}),
        ),
        quiet=True,
    )
    rates = [r["learning_rate"] for r in rows(run.folder / "stages" / "1-sft" / "metrics.jsonl")]
    # the rate of step s+1: up to 0.01 in 2 steps, then down a line that would reach 0.001 at step 6
    assert rates == pytest.approx([0.0, 0.005, 0.01, 0.00775, 0.0055, 0.00325])
    rates = [r["learning_rate"] for r in rows(run.folder / "stages" / "2-grpo" / "metrics.jsonl")]
    cosine = [1.0, 0.5 + 0.5 * (0.5 + 2**-1.5), 0.75, 0.5 + 0.5 * (0.5 - 2**-1.5)]
    assert rates == pytest.approx([1e-3 * c for c in cosine])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_may_take_all_steps(schedule: str, tmp_path: Path) -> None:
    optim = {"lr": 1e-2, "schedule": schedule, "warmup": 3}
    run = train(recipe(tmp_path, sft(steps=3, optim=optim)), quiet=True)
    rates = [r["learning_rate"] for r in rows(run.folder / "stages" / "1-sft" / "metrics.jsonl")]
    assert rates == pytest.approx([0.0, 0.01 / 3, 0.02 / 3])


def test_the_run_follows_its_seed(whole: Run, tmp_path: Path) -> None:
    again = train(two_stages(tmp_path), quiet=True)
    assert same(again.folder / "policy", whole.folder / "policy")
    (tmp_path / "other").mkdir()
    other = two_stages(
        tmp_path / "other",
        run={"folder": str(tmp_path / "other" / "run"), "device": "cpu", "seed": 1},
    )
    assert not same(train(other, quiet=True).folder / "policy", whole.folder / "policy")


def test_evaluating_while_training_changes_no_training_number(whole: Run, tmp_path: Path) -> None:
    evals = {"samples": 2, "validation": "modular_validation", "every": 1}
    often = train(two_stages(tmp_path, evals=evals), quiet=True)
    (tmp_path / "never").mkdir()
    never = train(two_stages(tmp_path / "never", evals={"sets": ()}), quiet=True)
    for run in (often, never):
        assert same(run.folder / "policy", whole.folder / "policy")
    grpo_metrics = Path("stages") / "2-grpo" / "metrics.jsonl"
    found = [
        [{k: v for k, v in row.items() if "eval/" not in k} for row in untimed(r.folder / m)]
        for r, m in ((often, grpo_metrics), (never, grpo_metrics), (whole, grpo_metrics))
    ]
    for other in found[1:]:
        assert [row["loss"] for row in other] == [row["loss"] for row in found[0]]
    assert never.evals == {} and not (never.folder / "evals").exists()


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_evaluations_may_sample_from_copies_of_fewer_bits(
    lora: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: True)
    policy = {"source": "scratch:dense-tiny", "lora": lora}
    evals = {"weights": "bfloat16", "limit": 32, "max_tokens": 24}
    run = train(recipe(tmp_path, grpo(steps=1), policy=policy, evals=evals), quiet=True)
    alone = evaluate(run.policy, ["modular_test"], weights="bfloat16", **SETTINGS)
    exact = evaluate(run.policy, ["modular_test"], **SETTINGS)
    texts = [
        [row["completions"] for row in result.rows["modular_test"]]
        for result in (run.evals["after"], alone, exact)
    ]
    assert texts[0] == texts[1] != texts[2], "from those weights, and no others"
    assert run.evals["after"].settings["weights"] == "bfloat16"
    assert "weights" not in exact.settings


def test_a_result_says_what_auto_came_to(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    asked = {**SETTINGS, "limit": 1, "max_tokens": 4, "weights": "auto"}
    assert "weights" not in evaluate(policy, ["modular_test"], **asked).settings
    monkeypatch.setattr(sampling_weights, "LARGE", 0)
    monkeypatch.setattr(sampling_weights, "bf16_pays", lambda: True)
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: True)
    found = evaluate(policy, ["modular_test"], **asked).settings
    assert found["weights"] == "bfloat16"


def test_what_auto_comes_to_is_decided_in_the_threads_that_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Products in bf16 are timed for a number of threads: another one is another answer."""
    asked_with: list[int] = []

    def pays() -> bool:
        asked_with.append(torch.get_num_threads())
        return torch.get_num_threads() > 1

    monkeypatch.setattr(Threads, "suit", lambda self, model: torch.set_num_threads(1))
    monkeypatch.setattr(sampling_weights, "LARGE", 0)
    monkeypatch.setattr(sampling_weights, "bf16_pays", pays)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        asked = {**SETTINGS, "limit": 1, "max_tokens": 4, "weights": "auto"}
        found = evaluate("scratch:dense-tiny", ["modular_test"], **asked)
    finally:
        torch.set_num_threads(before)
    assert "weights" not in found.settings and {*asked_with} == {1}


def test_copies_are_refused_where_transformers_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for rotary embeddings that depend on the longest row: nothing is rounded there."""
    monkeypatch.setattr(sampling_weights, "_computes_bf16", lambda: True)
    monkeypatch.setattr(sampling_weights, "LARGE", 0)
    monkeypatch.setattr(sampling_weights, "bf16_pays", lambda: True)
    policy = open_policy("scratch:dense-tiny", device="cpu")
    config = policy.model.config
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    policy.model = AutoModelForCausalLM.from_config(config).eval()
    asked = {**SETTINGS, "limit": 1, "max_tokens": 4}
    with pytest.raises(UserError, match="weights is bfloat16, but transformers' generate samples"):
        evaluate(policy, ["modular_test"], weights="bfloat16", **asked)
    result = evaluate(policy, ["modular_test"], weights="auto", **asked)
    assert "weights" not in result.settings


def test_the_weights_of_evaluations_are_a_fact_of_theirs_unless_they_are_the_policys_own() -> None:
    """Results of runs from before there was the field keep their keys."""
    assert "weights" not in Evals().facts()
    assert Evals(weights="int8").facts()["weights"] == "int8"


# ------------------------------------------------------------------------- adapters, references


def test_an_adapter_is_trained_and_merged(tmp_path: Path) -> None:
    policy = {"source": "scratch:moe-tiny", "lora": {"rank": 4, "targets": ["q_proj", "o_proj"]}}
    kept = grpo(loss={"beta": 0.04})  # whose reference is an adapter, too
    run = train(recipe(tmp_path, sft(), kept, policy=policy), quiet=True)
    open_policy("scratch:moe-tiny", device="cpu").save(tmp_path / "start")
    start = weights(tmp_path / "start")
    found = weights(run.folder / "policy")
    changed = {name for name in found if not torch.equal(found[name], start[name])}
    assert changed == {n for n in found if "q_proj" in n or "o_proj" in n}
    for stage in ("1-sft", "2-grpo"):
        assert (run.folder / "stages" / stage / "adapter" / "adapter_config.json").is_file()
    assert not (run.folder / "policy" / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(run.folder / "policy")
    before = weights(run.folder / "stages" / "1-sft" / "policy")
    assert any(not torch.equal(found[name], before[name]) for name in changed)

    adapter = run.folder / "stages" / "2-grpo" / "adapter"
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert told["target_modules"] == sorted(told["target_modules"])
    assert not (adapter / "ref").exists()
    opened = open_policy(str(adapter), device="cpu")
    assert merge_adapter(opened), "it names the policy that the stage began with as its base"
    opened.save(tmp_path / "opened")
    assert same(tmp_path / "opened", run.folder / "policy")
    shutil.rmtree(run.folder / "stages" / "1-sft" / "policy")
    with pytest.raises(UserError, match="1-sft/policy"):
        open_policy(str(adapter), device="cpu")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_reference_is_the_policy_that_enters_the_stage(lora: bool, tmp_path: Path) -> None:
    """The KL term starts at 0: measured from the supervised policy, not from what was opened."""
    source = {"source": "scratch:moe-tiny", "lora": {"rank": 4} if lora else None}
    loss = {"beta": 0.04}
    run = train(recipe(tmp_path, sft(), grpo(loss=loss), policy=source), quiet=True)
    kl = [row["kl"] for row in rows(run.folder / "stages" / "2-grpo" / "metrics.jsonl")]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert all(k > 1e-5 for k in kl[1:])


def test_rewards_failed_reaches_the_caller(tmp_path: Path) -> None:
    broken = TRAPPED.replace("    if answer", "    if CALLS > 1:\n        1 / 0\n    if answer")
    with pytest.raises(RewardsFailed, match="ZeroDivisionError"):
        train(recipe(tmp_path, grpo(), source=broken), quiet=True)


# ------------------------------------------------------------------ what is said before anything


def refused(wanted: Recipe, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        train(wanted, quiet=True)
    assert not (folder / "run").exists(), "said before the run's folder is made"


def test_mistakes_are_said_before_anything_is_trained(tmp_path: Path) -> None:
    extra = grpo(trainer={"max_grad_nrm": 1.0})
    refused(
        recipe(tmp_path, sft(), extra), r"'max_grad_nrm'.*Did you mean 'max_grad_norm'", tmp_path
    )
    for theirs, ours in {"max_steps": "steps", "num_generations": "group.size"}.items():
        twice = recipe(tmp_path, sft(), grpo(trainer={theirs: 3}))
        refused(twice, f"trainer.{theirs} is what the recipe's {ours} sets", tmp_path)
    refused(recipe(tmp_path, sft(trainer={"num_train_epochs": 2})), "recipe's steps", tmp_path)
    impossible = grpo(trainer={"generation_batch_size": 3})
    refused(recipe(tmp_path, sft(), impossible), "stage grpo: ", tmp_path)
    rarely = grpo(trainer={"logging_steps": 3})
    refused(recipe(tmp_path, sft(), rarely), "logging_steps is not to be set", tmp_path)
    refused(recipe(tmp_path, sft(), policy="scratch:moe"), "scratch:moe-tiny", tmp_path)
    refused(recipe(tmp_path, sft(), policy=str(tmp_path)), "without a model in it", tmp_path)
    refused(recipe(tmp_path, grpo(), rewards={"lenght": 1.0}), "Did you mean 'length'", tmp_path)
    refused(recipe(tmp_path, grpo(), evals={"sets": ["modlar_test"]}), "modular_test", tmp_path)
    wrong = REWARD.replace("answer: str", "solution: str").replace("answer in", "solution in")
    refused(recipe(tmp_path, grpo(), source=wrong), r"needs the column 'solution'", tmp_path)
    refused(recipe(tmp_path, grpo(), template="chat"), "no chat template", tmp_path)
    (tmp_path / "plain.jsonl").write_text('{"problem": "1+1=", "answer": "2"}\n')
    plain = sft(data=str(tmp_path / "plain.jsonl"))
    refused(recipe(tmp_path, plain), "has no completion, chain or solution", tmp_path)


TRL_FORMS = '''
async def slow(completions, **kwargs):
    return [float(len(c) % 3) for c in completions]


def chats(prompts, completions, completion_ids, trainer_state, log_metric, **kwargs):
    """A reward of trl's own form, for chats alone."""
    log_metric("seen", float(trainer_state.global_step))
    assert all(p[-1]["role"] == "user" for p in prompts)
    assert all(len(ids) for ids in completion_ids)
    return [float(len(c[0]["content"]) % 3) for c in completions]
'''


def test_rewards_of_trls_own_form_train_as_they_are(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}:{% endif %}"
    )
    policy.save(tmp_path / "chatty")
    (tmp_path / "forms.py").write_text(TRL_FORMS)
    for name, template in (("chats", "auto"), ("chats", "chat"), ("slow", "plain")):
        folder = tmp_path / f"{name}-{template}"
        folder.mkdir()
        wanted = recipe(
            folder,
            grpo(steps=2),
            policy=str(tmp_path / "chatty"),
            template=template,
            rewards={f"{tmp_path}/forms.py:{name}": 1.0},
            evals={"sets": ()},
        )
        run = train(wanted, quiet=True)
        metrics = rows(run.folder / "stages" / "1-grpo" / "metrics.jsonl")
        assert len(metrics) == 2 and f"rewards/{name}/mean" in metrics[0]
