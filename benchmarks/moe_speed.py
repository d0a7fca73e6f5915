"""The tiny mixture of experts against a dense model of the same total size; implementations.

A training pass (forward and backward) and a sampling pass over one token a row, CPU seconds of this
process, the cases in turn, best of the repeats. Printed as ratios to the dense model.

    OMP_NUM_THREADS=1 python benchmarks/moe_speed.py [--rows 64] [--length 48] [--repeats 5]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from rl_reasoner import open_policy
from rl_reasoner.policy import SCRATCH

_IMPLEMENTATIONS = ("eager", "grouped_mm")


def dense_like(mixture: Any) -> Any:
    """A Qwen3 whose feed-forward part has the parameters of all experts and the router."""
    settings = {**SCRATCH["dense-tiny"][1], "vocab_size": mixture.config.vocab_size}
    layer = mixture.model.layers[0].mlp
    size = sum(p.numel() for p in layer.parameters())
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    models: dict[str, Any] = {}
    for name in _IMPLEMENTATIONS:
        models[name] = open_policy("scratch:moe-tiny", device="cpu").model
        models[name].set_experts_implementation(name)
    models["dense"] = dense_like(models["eager"])
    ids = torch.randint(6, 200, (wanted.rows, wanted.length))
    default = open_policy("scratch:moe-tiny", device="cpu").model.config._experts_implementation
    print(f"default implementation: {default}")
    print("| pass | case | parameters | CPU s, best | against dense |")
    print("| --- | --- | --- | --- | --- |")
    for title, made in (("training", training), ("sampling", sampling)):
        calls = {name: made(model, ids) for name, model in models.items()}
        best = dict.fromkeys(calls, float("inf"))
        for repeat in range(wanted.repeats + 1):
            for name, call in calls.items():
                spent = seconds(call)
                if repeat:  # the first warms up
                    best[name] = min(best[name], spent)
        for name, spent in best.items():
            size = sum(p.numel() for p in models[name].parameters())
            print(f"| {title} | {name} | {size:,} | {spent:.3f} | {spent / best['dense']:.2f}x |")


if __name__ == "__main__":
    main()
