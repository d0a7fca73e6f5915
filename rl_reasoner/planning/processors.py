"""What a step costs on this machine's processor: constants, measured once a machine and kept.

The products of many rows and of few come from what the kernels have measured for themselves
(`kernels.products`, `kernels.packed_linear`). Measured here: the memory's bandwidth, and what a
pass costs beside its products. That is taken from scratch policies, dense and with experts: there
it is most of the time. With one thread processor time is taken, which other
programs lengthen less than the time on the wall. `cpu_time` has the equations.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rl_reasoner.errors import UserError
from rl_reasoner.kernels import products
from rl_reasoner.kernels.packed_linear import sampling_weights_timed
from rl_reasoner.machine import VARIABLE, choices
from rl_reasoner.moe.experts import parameter_counts
from rl_reasoner.planning.shapes import Shape
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams

_FEW_ROWS, _FEW_PARAMETERS = 32, 128 * 2**20 / 4  # of kernels.packed_linear's measurement
_TIMES = 3
_PROMPT = 12


@dataclass(frozen=True)
class Processor:
    """A processor as a step of one process sees it, with so many threads as torch has."""

    flops: float
    """FLOP/s of products of many rows, in the run's precision"""
    few_s: float
    """seconds a parameter, beside its FLOPs, in a pass over few rows: weights are read"""
    bandwidth: float
    """bytes/s read and written over arrays that no cache holds"""
    pass_s: float
    """seconds a layer in a pass over new tokens, beside products"""
    token_s: float
    """seconds a sampled token, beside products"""
    layer_s: float
    """seconds a layer in a training pass, beside products"""
    unit_s: float
    """seconds a token, layer and unit of width in a training pass, beside products"""

    @staticmethod
    def memory() -> float:
        """Bytes of this machine's memory."""
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measured_processor(shape: Shape, dtype: str = "float32") -> Processor:
    """This machine's, for policies of that kind, with weights in float32, bfloat16 or int8."""
    name = f"step_costs/{torch.get_num_threads()}_threads"
    costs: dict[str, Any] = choices.get(name, _measure, _is_measured)
    flops, few_s = _products(dtype)
    kind = costs["experts" if shape.experts else "dense"]
    return Processor(flops, few_s, costs["bandwidth"], **kind)


def _is_measured(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= {"bandwidth", "dense", "experts"}


def _products(dtype: str = "float32") -> tuple[float, float]:
    """(FLOP/s of many rows, seconds a parameter of few rows beside these)."""
    chosen, timed = products.chosen(), sampling_weights_timed()
    ms = timed.get("ms", {})
    if ms and dtype not in ms:
        raise UserError(
            f"this processor has no exact products in {dtype}: sampling.weights own or auto"
        )
    if not chosen.get("rates") or not ms:
        raise UserError(f"{VARIABLE} says how to multiply, not how fast: a plan needs it measured")
    rates = [1e9 * chosen["rates"][kind][chosen[kind]] for kind in products.CLASSES]
    flops = len(rates) / sum(1 / rate for rate in rates)
    if dtype == "bfloat16":  # both were measured together, so that a busy machine slowed them alike
        beside = products.bf16_rates()
        flops *= beside["bf16"] / beside["fp32"]
    if dtype == "int8":  # as much faster with many rows as with few
        flops *= ms["float32"] / ms[dtype]
    return flops, max(0.0, ms[dtype] / 1000 / _FEW_PARAMETERS - 2 * _FEW_ROWS / flops)


# ------------------------------------------------------------------------------ the measurements


def _measure() -> dict[str, Any]:
    """All constants that no kernel has measured: JSON values."""
    array = torch.zeros(1 << 26)  # 256 MiB
    costs: dict[str, Any] = {"bandwidth": 2 * array.nbytes / _fastest(lambda: array.add_(1.0))}
    for kind, name in (("dense", "dense-tiny"), ("experts", "moe-tiny")):
        costs[kind] = _beside_products(name, *_products())
    return costs


def _beside_products(name: str, flops: float, few_s: float) -> dict[str, float]:
    """What a scratch policy's passes cost beside their products: see `Processor`."""
    model = open_policy(f"scratch:{name}", device="cpu").model
    total, active = parameter_counts(model)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    passes = {rows: _pass_seconds(model, rows) for rows in (16, 64)}
    fixed, row = _line(passes)
    trained = {rows * 32: _training_seconds(model, rows) for rows in (8, 32)}
    once, token = _line(trained)
    return {
        "pass_s": max(0.0, fixed - few_s * total) / layers,
        "token_s": max(0.0, row - 2 * active / flops),
        "layer_s": once / layers,
        "unit_s": max(0.0, token - 6 * active / flops) / (layers * width),
    }


def _line(measured: dict[int, float]) -> tuple[float, float]:
    """(what is the same for any size, what each unit of size adds), from two sizes."""
    (small, low), (large, high) = measured.items()
    slope = max(0.0, (high - low) / (large - small))
    return max(0.0, low - slope * small), slope


def _pass_seconds(model: Any, rows: int) -> float:
    """Seconds of one pass of the engine over a new token of each of `rows`."""
    prompts = [[20 + row % 8] * _PROMPT for row in range(rows)]
    keys = [(row,) for row in range(rows)]

    def seconds(tokens: int) -> float:
        return _fastest(lambda: generate(model, prompts, keys, SamplingParams(tokens, (-1,))))

    few, many = 4, 16
    return max(0.0, seconds(many) - seconds(few)) / (many - few)


def _training_seconds(model: Any, rows: int) -> float:
    """Seconds of a step of AdamW on the log-probabilities of `rows` rows of 32 tokens."""
    ids = torch.randint(8, 250, (rows, 32), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def step() -> None:
        logits = model(input_ids=ids, use_cache=False).logits
        logits.log_softmax(-1).gather(-1, ids[..., None]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with torch.enable_grad():
        return _fastest(step)


def _fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    seconds = []
    for _ in range(_TIMES):
        started = clock()
        run()
        seconds.append(clock() - started)
    return min(seconds)
