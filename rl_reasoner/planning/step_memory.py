"""Bytes of one GPU by part, while it samples and while it trains; what to change to fit them."""

from rl_reasoner.planning.gpus import Gpu
from rl_reasoner.planning.load import StepLoad
from rl_reasoner.planning.shapes import Shape

_HELD = ("weights", "optimizer", "reference")  # in both phases
_SAMPLING = ("sampling_weights", "kv_cache")
FIT = 0.92
"""share of a GPU's memory that can be filled: the rest is the allocator's and CUDA's"""


def memory(shape: Shape, load: StepLoad, gpu: Gpu) -> dict[str, float]:
    """Bytes of one training GPU by part.

    Weights, gradients and AdamW's two moments in fp32 (4 + 4 + 8 bytes a parameter, as in ZeRO,
    arXiv 1910.02054, with fp32 weights), divided by the shards; of an adapter's policy gradients
    and moments are the adapter's. Activations with checkpointing: the input of every layer, and one
    layer's own, 34 bytes a token and unit of width (Korthikanti et al., arXiv 2205.05198, equation
    1, without attention's scores). Logits: one chunk of 1,024 tokens in fp32, twice. Sampling in
    the trainer needs the whole weights in bf16 and the cache.
    """
    tokens = load.micro * (load.mean + load.prompts / max(1, load.rows))
    layer = shape.total / shape.layers
    gathered = 2 * 2 * layer + 2 * shape.vocabulary * shape.hidden if load.shards > 1 else 0.0
    parts = {
        "weights": 4 * shape.total / load.shards + gathered,
        "gradients": 4 * shape.trained / max(load.states, load.shards),
        "optimizer": 8 * shape.trained / max(load.states, load.shards),
        "activations": tokens * shape.hidden * (2 * shape.layers + 34),
        "logits": 2 * 4 * min(tokens, 1024) * shape.vocabulary,
    }
    if load.reference:
        parts["reference"] = 4 * shape.total / load.shards
    if load.sampler:
        parts["vllm"] = load.sampler * gpu.memory
    elif not load.servers:
        alive = load.rows / load.gpus * min(1.0, 1.25 * load.mean / load.longest)
        parts["sampling_weights"] = 2 * shape.total if load.shards > 1 else 0.0
        parts["kv_cache"] = alive * load.longest * shape.cache
    return parts


def phases(parts: dict[str, float], load: StepLoad) -> dict[str, float]:
    """Bytes while sampling and while training."""
    asleep = ("vllm",) if load.sleeps else ()
    training = sum(n for part, n in parts.items() if part not in (*_SAMPLING, *asleep))
    sampling = sum(parts.get(part, 0.0) for part in (*_HELD, *_SAMPLING, "vllm"))
    return {"sampling": sampling, "training": training}


def breaks(shape: Shape, load: StepLoad, gpu: Gpu) -> list[str]:
    """Where the plan does not fit, and which knob is next; empty if it does."""
    parts = memory(shape, load, gpu)
    at, fit = phases(parts, load), FIT * gpu.memory
    reasons = []
    if at["training"] > fit:
        reasons.append(f"training does not fit: {_smaller(shape, load, parts, fit)}")
    if at["sampling"] > fit and not load.sampler:
        reasons.append("sampling in the trainer does not fit: use a vLLM server (vllm.mode)")
    elif at["sampling"] > fit and not reasons:
        reasons.append("vLLM does not fit beside the policy: use a smaller vllm.memory or a server")
    if load.sampler and 2 * shape.total / load.engine > 0.9 * load.sampler * gpu.memory:
        reasons.append(
            "vLLM does not fit its share: raise vllm.gpus (tensor parallel) or vllm.memory"
        )
    if load.servers and 2 * shape.total / load.engine > 0.8 * gpu.memory:
        reasons.append("the vLLM server does not fit: give it more GPUs")
    return reasons


def _smaller(shape: Shape, load: StepLoad, parts: dict[str, float], fit: float) -> str:
    """The next knob for training that does not fit."""
    state = sum(parts.get(n, 0.0) for n in (*_HELD, "gradients"))
    if load.shards < load.gpus and state > 0.5 * fit:
        return "use run.parallel: fsdp"
    if parts["activations"] + parts["logits"] > 0.3 * fit and load.micro > 1:
        return "use a smaller group.micro_batch"
    if "vllm" in parts and not load.sleeps:
        return "let vLLM sleep while training (vllm.sleep)"
    return "use more GPUs" if shape.adapter else "use more GPUs, or policy.lora"
