"""The tiny mixture of experts against dense models: of its total size, and of its active one.

A training pass (forward and backward), a sampling pass over one token a row, and whole steps of
GRPOTrainer (sampling, reward, training); CPU seconds of this process, the cases in turn, best of
the repeats. Printed as ratios to the dense model of the same total size.

    OMP_NUM_THREADS=1 python benchmarks/moe_speed.py [--rows 64] [--length 48] [--repeats 5]
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from datasets import Dataset

from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.policy.scratch import SCRATCH

_IMPLEMENTATIONS = ("eager", "grouped_mm")


def dense_like(mixture: Any, active: bool) -> Any:
    """A Qwen3 whose feed-forward part has the parameters of all experts and the router.

    `active`: of those that a token goes to, instead of all.
    """
    settings = {**SCRATCH["dense-tiny"][1], "vocab_size": mixture.config.vocab_size}
    layer = mixture.model.layers[0].mlp
    size = sum(p.numel() for p in layer.parameters())
    if active:
        experts = sum(p.numel() for p in layer.experts.parameters())
        size -= experts - experts * mixture.config.num_experts_per_tok // layer.experts.num_experts
    settings["intermediate_size"] = round(size / (3 * settings["hidden_size"]))
    return transformers.AutoModelForCausalLM.from_config(transformers.Qwen3Config(**settings))


def seconds(call: Callable[[], None]) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    call()
    return time.process_time() - started


def training(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass."""

    def run() -> None:
        model(input_ids=ids, use_cache=False).logits.logsumexp(-1).mean().backward()
        model.zero_grad()

    return run


def sampling(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """Sixteen passes over one token a row."""

    def run() -> None:
        with torch.no_grad():
            for _ in range(16):
                model(input_ids=ids[:, :1], use_cache=False)

    return run


class _Clock(transformers.TrainerCallback):
    """CPU seconds of each step."""

    def __init__(self) -> None:
        self.spent: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.spent.append(time.process_time() - self.began)


def letters(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward that costs nothing and differs."""
    return [float(len(set(text))) for text in completions]


def step(model: Any, rows: int, length: int) -> float:
    """CPU seconds of a step of GRPOTrainer, the best but the first of four.

    The policy is not changed, and ends no completion by itself.
    """
    tokenizer = open_policy("scratch:moe-tiny", device="cpu").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=4,
            per_device_train_batch_size=rows,
            num_generations=8,
            max_completion_length=length,
            learning_rate=0.0,
            router_replay=True,
            generation_kwargs={"suppress_tokens": [tokenizer.eos_token_id]},
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        data = Dataset.from_list([{"prompt": f"({n}+1)*2="} for n in range(64)])
        clock = _Clock()
        trainer = GRPOTrainer(
            copy.deepcopy(model), letters, config, data, processing_class=tokenizer
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return min(clock.spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    quiet_libraries()
    models: dict[str, Any] = {}
    for name in _IMPLEMENTATIONS:
        models[name] = open_policy("scratch:moe-tiny", device="cpu").model
        models[name].set_experts_implementation(name)
    models["dense, total size"] = dense_like(models["eager"], active=False)
    models["dense, active size"] = dense_like(models["eager"], active=True)
    ids = torch.randint(6, 200, (wanted.rows, wanted.length))
    default = open_policy("scratch:moe-tiny", device="cpu").model.config._experts_implementation
    print(f"default implementation: {default}")
    print("| pass | case | parameters | CPU s, best | against dense, total size |")
    print("| --- | --- | --- | --- | --- |")
    for title in ("training", "sampling", "step"):
        best = dict.fromkeys(models, float("inf"))
        for repeat in range(wanted.repeats + 1 if title != "step" else 2):
            for name, model in models.items():
                if title == "step":
                    spent = step(model, wanted.rows, wanted.length)
                else:
                    spent = seconds((training if title == "training" else sampling)(model, ids))
                if repeat or title == "step":  # the first warms up
                    best[name] = min(best[name], spent)
        for name, spent in best.items():
            size = sum(p.numel() for p in models[name].parameters())
            ratio = spent / best["dense, total size"]
            print(f"| {title} | {name} | {size:,} | {spent:.3f} | {ratio:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
