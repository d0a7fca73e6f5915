"""Training on completions in which tools gave tokens: gradients, masks, figures, resuming."""

import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import trl
from transformers import TrainerCallback

from rl_reasoner import Score, reward
from rl_reasoner.errors import UserError
from rl_reasoner.policy.scratch import byte_tokenizer
from rl_reasoner.rollout.tool_turns import ToolUse
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.tools.tool import ToolCall, tool
from rl_reasoner.training.micro_batches import moves
from rl_reasoner.training.objective import trained_tokens
from support.interrupting import Turns, with_turns
from support.places import ROOT
from support.processes import build, children
from support.stock import (
    TOLERANCE,
    Policies,
    drawn,
    gradients,
    half_flat,
    never_flat,
    saved_policies,
    worst,
)

FILE = ROOT / "tests" / "support" / "hostile_tools.py"


def replaying(turns: Turns) -> type[trl.GRPOTrainer]:
    """trl's own trainer on the same completions, by its own way for tokens that were given."""

    class Stock(trl.GRPOTrainer):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.rollout_func = self._same

        def _same(self, prompts: list[Any], _: Any) -> dict[str, Any]:
            ids, masks = turns.pop(0)
            prompt_ids = self._tokenize_prompts(prompts)[0]
            told = {"completion_ids": ids, "logprobs": None, "env_mask": masks}
            return {"prompt_ids": prompt_ids, **told}

    Stock.__name__ = "GRPOTrainer"
    return Stock


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """A saved policy by its kind."""
    return saved_policies(tmp_path_factory.mktemp("policies"))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dapo": ("dense", {}),
    "grpo": ("dense", {"loss_type": "grpo"}),
    "bnpo": ("dense", {"loss_type": "bnpo"}),
    "dr_grpo": ("dense", {"loss_type": "dr_grpo"}),
    "kl": ("dense", {"beta": 0.04}),
    "kl, grpo": ("dense", {"beta": 0.04, "loss_type": "grpo"}),
    "sequence": (
        "dense",
        {"importance_sampling_level": "sequence", "loss_type": "grpo", "num_iterations": 2},
    ),
    "iterations": ("dense", {"num_iterations": 2, "max_steps": 4}),
    "accumulation": ("dense", {"gradient_accumulation_steps": 6, "max_steps": 2}),
    "lora": ("dense", {"lora": 0.0}),
    "lora, kl": ("dense", {"lora": 0.0, "beta": 0.04}),
    "experts": ("moe", {}),
    "experts, kl": ("moe", {"beta": 0.04}),
    "llama": ("llama", {}),
    "entropy": ("dense", {"entropy_coef": 0.01}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_stock_trl(name: str, policies: Policies, tmp_path: Path) -> None:
    kind, changes = CASES[name]
    turns: Turns = []
    ours, logs, trainer = gradients(
        with_turns(turns), policies(kind), tmp_path, never_flat, samples=[], **changes
    )
    assert trainer.engine_sampling.on and trainer.packed_forward.packs
    masks = [mask for _, batch in turns for mask in batch]
    assert any(0 in mask for mask in masks)
    assert all(len(i) == len(m) for batch in turns for i, m in zip(*batch, strict=True))
    stock, theirs, _ = gradients(
        replaying(turns), policies(kind), tmp_path, never_flat, samples=[], **changes
    )
    assert not turns and worst(stock, ours) <= TOLERANCE
    for a, b in zip(theirs, logs, strict=True):
        for figure in {"completions/mean_length", "num_tokens", "reward"} & a.keys():
            assert a[figure] == pytest.approx(b[figure], rel=1e-4), figure


def test_several_rewards_and_groups_that_teach_nothing(policies: Policies, tmp_path: Path) -> None:
    turns: Turns = []
    given = (policies("dense"), tmp_path, [half_flat, never_flat])
    ours, _, _ = gradients(with_turns(turns), *given, samples=[], reward_weights=[1.0, 0.5])
    stock, _, _ = gradients(replaying(turns), *given, samples=[], reward_weights=[1.0, 0.5])
    assert worst(stock, ours) <= TOLERANCE


def test_the_entropy_is_of_the_policys_own_tokens(policies: Policies, tmp_path: Path) -> None:
    """Where rows are not computed, too."""
    means: list[float] = []
    left: list[bool] = []

    class Watched(with_turns([])):  # type: ignore[misc]
        def _log_probs(self, *given: Any, **named: Any) -> Any:
            found = super()._log_probs(*given, **named)
            if torch.is_grad_enabled():
                inputs = self.packed_forward._inputs
                computed = moves(inputs["advantages"])[:, None]
                mask = trained_tokens(inputs) * computed
                left.append(not computed.all() and bool(computed.any()))
                means.append(((found[1] * mask).sum() / mask.sum()).item())
            return found

    Watched.__name__ = "GRPOTrainer"
    batch = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 1}
    given = (policies("dense"), tmp_path, half_flat)
    _, logs, _ = gradients(Watched, *given, samples=[], temperature=0.3, **batch)
    found = [row["entropy"] for row in logs if "entropy" in row]
    assert any(left) and found == pytest.approx(means, rel=1e-5)


def test_given_tokens_move_nothing(policies: Policies, tmp_path: Path) -> None:
    """A row's loss has no gradient in the log-probs of what it was given."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(with_turns([])):  # type: ignore[misc]
        def _get_per_token_logps_and_entropies(self, *given: Any, **named: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*given, **named)
            if torch.is_grad_enabled():
                found[0].retain_grad()
                seen.append((found[0], trained_tokens(self.packed_forward._inputs)))
            return found

    Watched.__name__ = "GRPOTrainer"
    gradients(Watched, policies("dense"), tmp_path, never_flat, samples=[], beta=0.04)
    given = 0
    for logps, trained in seen:
        assert logps.grad is not None
        assert not (logps.grad * (1 - trained)).any()
        given += int((trained == 0).sum())
    assert given


def test_the_correction_leaves_out_what_was_given(tmp_path: Path) -> None:
    class Seen(with_turns([])):  # type: ignore[misc]
        ratios: ClassVar[list[torch.Tensor]] = []

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            loss = super()._compute_loss(model, inputs)
            ratio = inputs["importance_sampling_ratio"]
            self.ratios.append(ratio[(1 - trained_tokens(inputs)).bool()])
            return loss

    Seen.__name__ = "GRPOTrainer"
    trainer = build(
        "scratch:dense-tiny", tmp_path, kind=Seen, correct_sampling=True, top_k=20, max_steps=1,
        vllm_importance_sampling_mode="token_truncate",
        max_completion_length=12, save_strategy="no",
    )  # fmt: skip
    trainer.train()
    ratios = torch.cat(Seen.ratios)
    assert len(ratios) and (ratios == 1).all()


def test_tools_need_the_engine(tmp_path: Path) -> None:
    trainer = build("scratch:dense-tiny", tmp_path, kind=with_turns([]), fast_rollouts=False)
    with pytest.raises(UserError, match="our engine samples: not with fast_rollouts=False"):
        trainer.train()


@tool
def shout(text: str) -> str:
    """Say it loudly.

    Args:
        text: What to say.
    """
    return text.upper()


@tool
def repeat(text: str, times: int) -> str:
    """Say it again and again.

    Args:
        text: What to say.
        times: How often.
    """
    return text * times


def test_calls_are_read_run_and_told(tmp_path: Path) -> None:
    """A policy that writes nothing but calls: real tools, and trl's figures of them."""
    trainer = build(
        "scratch:dense-tiny", tmp_path, max_steps=1, max_completion_length=240,
        per_device_train_batch_size=8, gradient_accumulation_steps=1, save_strategy="no",
    )  # fmt: skip
    encode, end = trainer.processing_class, trainer.eos_token_ids[0]
    call = encode("<shout>no</shout>", add_special_tokens=False)["input_ids"]
    wrong = encode("<repeat>no</repeat>", add_special_tokens=False)["input_ids"]
    plain = encode("no call", add_special_tokens=False)["input_ids"]
    trainer.tool_use = ToolUse(encode, [shout, repeat], call_format="tags", calls=2)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    given = trainer.tool_use.tokens("NO")
    # the engine draws the t-th token of a row, with what was given counted
    hole = [6] * len(given)
    table = [[*call, *hole, *call, *hole, *plain, end], [*plain, end], [*wrong, end] + [end] * 60]
    table = [[*row, *[end] * (240 - len(row))] for row in (table * 3)[:8]]
    with drawn(table, size=4):
        trainer.train()
    texts = [row["completion"] for row in rows]
    assert "<shout>no</shout>\n<output>\nNO\n</output>\n<shout>" in texts[0]
    assert texts[0].endswith("no call") and texts[1] == "no call"
    assert [event["kind"] for event in rows[0]["turns"]] == ["ok", "ok"]
    assert rows[1]["turns"] == [] and rows[2]["turns"][0]["kind"] == "malformed"
    assert "malformed call" in texts[2]
    [log] = [entry for entry in trainer.state.log_history if "tools/call_frequency" in entry]
    assert log["tools/call_frequency"] == pytest.approx((3 * 2 + 2) / 8)
    assert log["tools/failure_frequency"] == pytest.approx(2 / 8)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(
    ("form", "call", "behind"),
    [
        ("tags", "<calculator>6*7</calculator>", "<output>\n42\n</output>\n"),
        ("fences", "```calculator\n6*7\n```", "```output\n42\n```\n"),
    ],
)
def test_one_newline_stands_between_a_call_and_its_result(
    form: str, call: str, behind: str, merged: bool
) -> None:
    """Also where the call's last token has it, as most vocabularies merge a mark and a newline."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([call[-3:] + "\n"])
    ids = tokenizer(call + "\n" * merged, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[-1:]).endswith("\n") == merged
    use = ToolUse(tokenizer, ["calculator"], call_format=form)
    with use.turns(1) as turns:
        assert turns.stops(0, ids)
        turns.submit(0, ids)
        (answer,) = turns.answers(wait=True)
    assert tokenizer.decode([*ids, *answer.ids]) == f"{call}\n{behind}"


def test_processes_of_tools_go_on_from_one_batch_to_the_next() -> None:
    use = ToolUse(byte_tokenizer(), [f"{FILE}:counts"], call_format="tags")
    with use.running():
        for calls in ("1", "2"):
            with use.turns(1):
                assert use._running.session().call(ToolCall("counts", {})).text == calls


class Leaving(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C at the end of a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


def test_a_tools_process_lives_as_long_as_the_training(tmp_path: Path) -> None:
    """What a module loads is loaded once a run; after it, or Ctrl-C, no process is left."""
    before = children()
    trainer = build(
        "scratch:dense-tiny", tmp_path, max_steps=4, max_completion_length=48,
        gradient_accumulation_steps=1, num_generations=2, per_device_train_batch_size=2,
        save_strategy="no",
    )  # fmt: skip
    encode, end = trainer.processing_class, trainer.eos_token_ids[0]
    trainer.tool_use = ToolUse(encode, [f"{FILE}:counts"], call_format="tags")
    trainer.add_callback(Leaving(3))
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    call = encode("<counts>{}</counts>", add_special_tokens=False)["input_ids"]
    table = [[*ids, *[end] * (48 - len(ids))] for ids in (call, [])]
    with drawn(table, size=2), pytest.raises(KeyboardInterrupt):
        trainer.train()
    texts = [row["completion"] for row in rows if row["turns"]]
    assert [text.split("\n")[2] for text in texts] == ["1", "2", "3"]
    assert children() <= before


@tool
def box(text: str) -> str:
    """Put it into a box.

    Args:
        text: What to put there.
    """
    return f"\\boxed{{{text}}}"


@reward
def reads(completion: str, policy_text: str) -> Score:
    """The whole completion, and beside it what the policy wrote."""
    return Score(float(len(completion)), policy_text)


def test_rewards_read_what_the_policy_wrote(tmp_path: Path) -> None:
    """An answer that only a tool printed is none, and no length counts what was given."""
    fixed = (load_reward("length", {"target": 20}), reads)
    trainer = build(
        "scratch:dense-tiny", tmp_path, max_steps=1, max_completion_length=120,
        per_device_train_batch_size=4, num_generations=4, gradient_accumulation_steps=1,
        save_strategy="no", reward=[load_reward("math_answer"), *fixed],
        columns={"answer": ["7"] * 8},
    )  # fmt: skip
    encode, end = trainer.processing_class, trainer.eos_token_ids[0]

    def ids(text: str) -> list[int]:
        return [*encode(text, add_special_tokens=False)["input_ids"]]

    trainer.tool_use = ToolUse(encode, [box], call_format="tags", calls=2)
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    call = ids("<box>7</box>")
    hole = [6] * len(trainer.tool_use.tokens("\\boxed{7}"))
    printed = [*call, *hole, *ids("so"), end]
    said = [*call, *hole, *ids("\\boxed{7}"), end]
    own = [*ids("\\boxed{7}"), end]
    table = [[*row, *[end] * (120 - len(row))] for row in (printed, said, own, [end])]
    with drawn(table, size=4):
        trainer.train()
    texts = [row["completion"] for row in rows]
    wrote = [row.get("policy_text", row["completion"]) for row in rows]
    assert "<output>\n\\boxed{7}\n" in texts[0] and wrote[0] == "<box>7</box>\nso"
    assert "policy_text" not in rows[2], "all of it is the policy's"
    right = [row["scores"]["math_answer"]["value"] for row in rows]
    assert right == [0.0, 1.0, 1.0, 0.0]
    lengths = [row["scores"]["length"]["reason"] for row in rows]
    counts = [len(call) + len(ids("so")) + 1, len(call) + len(own), len(own), 1]
    assert lengths == [f"{count}, target 20" for count in counts]
    assert [row["scores"]["reads"]["reason"] for row in rows] == wrote
    assert [row["scores"]["reads"]["value"] for row in rows] == [len(text) for text in texts]


def test_a_column_of_the_data_is_not_what_the_policy_wrote(tmp_path: Path) -> None:
    data = {"policy_text": ["Clause 4"] * 8}
    with pytest.raises(UserError, match=r"'reads'.*the data have a column of that name: rename"):
        build("scratch:dense-tiny", tmp_path, reward=reads, columns=data)


def test_tokens_are_never_decoded_and_encoded_again(policies: Policies, tmp_path: Path) -> None:
    """1,000 completions of several turns: what is trained on is what was sampled and given."""
    random.seed(0)
    turns: Turns = []
    changes = {"per_device_train_batch_size": 50, "num_generations": 25, "max_steps": 7}
    trained: list[list[int]] = []

    class Watched(with_turns(turns)):  # type: ignore[misc]
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True):
                trained.append(ids[mask.bool()].tolist())
            return super()._compute_loss(model, inputs)

    Watched.__name__ = "GRPOTrainer"
    gradients(Watched, policies("dense"), tmp_path, never_flat, samples=[], **changes)
    sampled = [ids for batch, _ in turns for ids in batch]
    assert len(sampled) >= 1000 and sorted(sampled) == sorted(trained)


def test_lengths_of_tasks_leave_out_what_was_given(tmp_path: Path) -> None:
    columns = {"task": ["a", "b"] * 4}
    trainer = build(
        "scratch:dense-tiny", tmp_path, kind=with_turns([]), columns=columns, max_steps=1,
        max_completion_length=12, save_strategy="no",
    )  # fmt: skip
    trainer.use_row_settings = True
    trainer.train()
    [log] = [entry for entry in trainer.state.log_history if "completions/mean_length" in entry]
    tasks = [name.split("/")[1] for name in log if name.startswith("task/") and "rows" in name]
    tokens = sum(log[f"task/{task}/mean_length"] * log[f"task/{task}/rows"] for task in tasks)
    rows = sum(log[f"task/{task}/rows"] for task in tasks)
    assert tasks and tokens / rows == pytest.approx(log["completions/mean_length"])
