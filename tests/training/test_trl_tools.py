"""trl's own `tools=` on our trainer: the engine samples, the same gradients, the calls are kept."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from trl import chat_template_utils

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy, tool
from rl_reasoner.rollout.tool_turns import TrlTools
from support.stock import QUIET, TOLERANCE, Gradient, drawn, worst

PROMPT = [{"role": "user", "content": "2*3="}]
WIDTH = 640


def multiply(a: int, b: int) -> int:
    """Multiply.

    Args:
        a: One number.
        b: The other.
    """
    return a * b


@tool
def where(text: str) -> str:
    """Say in which process it runs.

    Args:
        text: What to say with it.
    """
    return f"{text} {os.getpid()}"


def trainer_of(kind: type[trl.GRPOTrainer], folder: Path, tools: list[Any]) -> Any:
    """A tiny policy with a tokenizer and a template by which trl reads calls."""
    opened = open_policy("scratch:dense-tiny", seed=5, device="cpu")
    own = opened.tokenizer
    text = own.backend_tokenizer.to_str().replace(own.eos_token, "<|im_end|>")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text), eos_token="<|im_end|>", pad_token=own.pad_token
    )
    file = Path(chat_template_utils.__file__).parent / "chat_templates" / "qwen3.jinja"
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    ours = issubclass(kind, GRPOTrainer)
    config = (GRPOConfig if ours else trl.GRPOConfig)(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=WIDTH,
        max_tool_calling_iterations=1,
        learning_rate=0.05,
        optim="sgd",
        max_grad_norm=0.0,
        **QUIET,
        **({"isolate_rewards": False} if ours else {}),
    )
    return kind(
        opened.model,
        reward_funcs=length,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": PROMPT}] * 4),
        processing_class=tokenizer,
        tools=tools,
    )


def length(completions: list[Any], **columns: Any) -> list[float]:
    """By the messages of a completion: their number, and the letters of the last."""
    return [len(messages) + len(messages[-1]["content"]) / 100 for messages in completions]


def table_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    end = tokenizer.eos_token_id
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [[*ids, *[end] * (WIDTH - len(ids))] for ids in rows]


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_gradients_figures_and_events(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    samples: list[list[list[int]]] = []

    class Ours(GRPOTrainer):
        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            found = super()._generate_single_turn(*given, **named)
            samples.append([[*ids] for ids in found[0]])  # trl's loop puts more behind its own
            return found

    class Stock(trl.GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, *given: Any, **named: Any) -> Any:
            return samples.pop(0), None

    ours, stock = trainer_of(Ours, tmp_path, [multiply]), trainer_of(Stock, tmp_path, [multiply])
    assert ours.engine_sampling.on and "multiply run in this process" in caplog.text
    good, wrong = call("multiply", '{"a": 2, "b": 3}'), call("multiply", '{"a": 2, "c": 3}')
    texts = [good, f"{good}\n{wrong}", "no call", call("divide", "{}")]
    rows: list[dict[str, Any]] = []
    ours.rollout_sink = rows.extend
    steps = []
    for trainer in (ours, stock):
        kept = Gradient()
        trainer.add_callback(kept)
        torch.manual_seed(11)
        with drawn(table_of(ours.processing_class, texts), size=4):
            trainer.train()
        steps.append(kept)
    assert not samples and worst(steps[1].steps, steps[0].steps) <= TOLERANCE
    for name in ("tools/call_frequency", "tools/failure_frequency", "reward", "num_tokens"):
        assert steps[0].logs[0][name] == pytest.approx(steps[1].logs[0][name]), name
    kinds = [[turn["kind"] for turn in row["turns"]] for row in rows]
    assert kinds == [["ok"], ["ok", "failed"], [], ["malformed"]]
    # the second row's results would be behind the policy's last position
    given = [row["turns"][0]["given"] > 0 for row in rows if row["turns"]]
    assert given == [True, False, True]


def test_a_tool_of_ours_is_isolated(tmp_path: Path) -> None:
    trainer = trainer_of(GRPOTrainer, tmp_path, [where])
    rows: list[dict[str, Any]] = []
    trainer.rollout_sink = rows.extend
    texts = [call("where", '{"text": "here"}')] * 4
    with drawn(table_of(trainer.processing_class, texts), size=4):
        trainer.train()
    assert all(row["turns"][0]["kind"] == "ok" for row in rows)
    assert all("here " in row["completion"] for row in rows)
    assert not any(f"here {os.getpid()}" in row["completion"] for row in rows)


def test_events_stand_where_results_do() -> None:
    """Two turns, the first with two results; a call that reached no tool; one without room."""
    with TrlTools([]).recorded(1) as calls:
        multiply_here = calls.through(0, multiply)
        assert multiply_here(a=2, b=3) == 6
        for wrong in ({"a": 1}, {"b": 1}):
            with pytest.raises(TypeError):
                multiply_here(**wrong)
        said = {"role": "assistant", "content": ""}
        told = {"role": "tool", "name": "multiply", "content": "6"}
        messages = [said, told, told, said, {**told, "name": "divide"}, said]
        [events] = calls.events([messages], [[1, 1, 0, 0, 0, 1, 0, 0, 1]])
    assert [(e.tool, e.kind, e.at, e.given) for e in events] == [
        ("multiply", "ok", 2, 3),
        ("multiply", "failed", 5, 0),
        ("divide", "malformed", 6, 2),
        ("multiply", "failed", 9, 0),
    ]
