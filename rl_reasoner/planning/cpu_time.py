"""Seconds of a step of one process on a CPU by part, from constants of this machine's processor.

Sampling is passes over the new token of every row that is alive, as many as the longest completion
has tokens; each reads all weights and multiplies with them. Training is 6 FLOPs a parameter and
token (Kaplan et al., arXiv 2001.08361, section 2.1), what lies between the products, and what the
optimizer moves. `processors` measures the constants, benchmarks/planner.py holds both against runs.
"""

from rl_reasoner.planning.load import StepLoad
from rl_reasoner.planning.processors import Processor
from rl_reasoner.planning.shapes import Shape
from rl_reasoner.planning.step_time import pass_flops

_LOGITS = 32
"""bytes moved for a logit in training: fp32 written and read, in the loss and its gradient"""
_DRAWN = 16
"""bytes moved for a logit in sampling: its log-probability and the draw"""
_OPTIMIZER = 60
"""bytes moved for a parameter a step: AdamW (28), the norm and clipping (12), gradients made and
set to zero (12), copies in bf16 or as much again (8)"""


def seconds_on_cpu(
    shape: Shape, samples: Processor, trains: Processor, load: StepLoad
) -> dict[str, float]:
    """Seconds of a batch by part; `samples` and `trains`: the constants of either's precision."""
    context = load.mean / 2 + load.prompts / max(1, load.rows)
    alive = load.rows * min(1.0, load.mean / load.longest)
    tokens = load.rows * load.mean
    cached = alive * context * shape.cache * 2  # fp32
    decoding = load.longest * (
        shape.total * samples.few_s
        + alive * pass_flops(shape, load.mean) / samples.flops
        + cached / samples.bandwidth
        + shape.layers * samples.pass_s
    )
    drawing = tokens * (samples.token_s + _DRAWN * shape.vocabulary / samples.bandwidth)
    prefill = load.prompts * pass_flops(shape, context) / samples.flops
    one = _pass(shape, trains, load)
    moved = _OPTIMIZER * shape.trained / trains.bandwidth
    return {
        "sampling": decoding + drawing + prefill,
        "training": load.iterations * (load.trained * one + moved),
        "log_probs": load.passes * one / 3,
    }


def _pass(shape: Shape, cpu: Processor, load: StepLoad) -> float:
    """Seconds of a pass forward and backward over all rows, prompts once a group."""
    tokens = load.rows * load.mean + load.prompts
    between = cpu.layer_s * max(1.0, load.rows / load.micro) + cpu.unit_s * tokens * shape.hidden
    logits = load.rows * load.mean * shape.vocabulary * _LOGITS / cpu.bandwidth
    return 3 * pass_flops(shape, load.mean) * tokens / cpu.flops + shape.layers * between + logits
