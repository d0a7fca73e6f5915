"""A run on paper: memory of each GPU by part, time of a step by part, and where it breaks.

Everything follows from the shape of the policy, the recipe's numbers, the GPU's data sheet and the
assumptions named in `ASSUMED`, which were fitted to five published runs and held against five
others (tests/pipeline/test_capacity_planner.py names them; all ten within a factor of 1.5). A plan
is an estimate of that quality: it tells an order of steps from another, not one configuration from
its neighbour. Opens no policy: `shape_of` counts the parameters of one that is never allocated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage


@dataclass(frozen=True)
class Gpu:
    """Data sheet of a GPU: dense bf16 FLOP/s, memory bytes and bytes/s, network bytes/s a GPU."""

    flops: float
    memory: float
    bandwidth: float
    network: float


GPUS = {
    "A100": Gpu(312e12, 80e9, 2.04e12, 25e9),
    "B200": Gpu(2250e12, 180e9, 7.7e12, 50e9),
    "H100": Gpu(989e12, 80e9, 3.35e12, 50e9),
    "H20": Gpu(148e12, 96e9, 4.0e12, 50e9),
    "H200": Gpu(989e12, 141e9, 4.8e12, 50e9),
    "H800": Gpu(989e12, 80e9, 3.35e12, 50e9),
    "L40S": Gpu(362e12, 48e9, 0.864e12, 12.5e9),
}
"""NVIDIA's data sheets; the network is that of a usual server: 200 (A100), 100 (L40S), else 400
Gbit/s a GPU."""


@dataclass(frozen=True)
class Assumed:
    """What no data sheet says. The first six were fitted to published runs, see the module."""

    dense_use: float = 0.30
    """share of the FLOP/s that training a dense policy reaches (MFU), pipeline bubbles apart"""
    expert_use: float = 0.06
    """the same for a mixture of experts, of its active FLOPs"""
    bandwidth_use: float = 0.6
    """share of the memory's bandwidth that decoding reaches"""
    layer_s: float = 2e-4
    """seconds a layer takes in a decoding step beside reading: kernels, all-reduce in a server"""
    far_layer_s: float = 1e-4
    """the same, more, where an engine's GPUs are in several servers"""
    refit: float = 20e9
    """bytes/s at which new weights reach the engines, over all"""
    network_use: float = 0.6
    """share of the network's bandwidth that gathering shards reaches"""
    mean_share: float = 0.5
    """mean length of a completion over max_tokens"""
    prompt: int = 256
    """tokens of a prompt"""
    server: int = 8
    """GPUs in a server"""


ASSUMED = Assumed()


@dataclass(frozen=True)
class Shape:
    """What of a policy counts: parameters, layers, width, bytes a token of its KV cache."""

    total: float
    active: float
    layers: int
    hidden: int
    vocabulary: int
    cache: float
    """bytes of keys and values of one token in all layers, in bf16"""

    @property
    def experts(self) -> bool:
        """Whether it is a mixture of experts."""
        return self.active < 0.9 * self.total


@dataclass(frozen=True)
class StepLoad:
    """One step of GRPO: how much is sampled and trained on, and who holds what."""

    gpus: int
    rows: int
    """completions a step"""
    longest: int
    """longest completion, in tokens, or longest sequence where the mean counts prompts"""
    mean: float
    """mean tokens of a completion"""
    prompts: float = 0.0
    """tokens of prompts that are computed, a step: once a group"""
    engine: int = 1
    """GPUs of one sampling engine (tensor parallel)"""
    passes: float = 2.0
    """forward passes over all rows beside training: old and reference log-probs"""
    iterations: int = 1
    shards: int = 1
    """GPUs that share the weights of training; 1 is DDP"""
    pipeline: int = 1
    batch: int = 0
    """rows of an optimizer step, where a pipeline's bubbles depend on it; 0: all"""
    model: int = 1
    """GPUs of one copy in training that is not sharded data-parallel (tensor x pipeline)"""
    micro: int = 1
    """completions in one pass of a GPU"""
    sampler: float = 0.0
    """share of a GPU's memory for vLLM beside the training; 0: sampling in the trainer"""


# ------------------------------------------------------------------------------------- time


def seconds(shape: Shape, gpu: Gpu, load: StepLoad, a: Assumed = ASSUMED) -> dict[str, float]:
    """Seconds of a step by part: sampling, training, log-probs, gathering, weights to the engines.

    Gathering (shards over the network) is counted as far as it is longer than what it hides behind.
    """
    sampling = _decoding(shape, gpu, load, a)
    tokens = load.rows * load.mean + load.prompts
    flops = pass_flops(shape, load.mean) * tokens
    use = a.expert_use if shape.experts else a.dense_use
    pieces = (load.batch or load.rows) * load.model / load.gpus
    idle = (load.pipeline - 1) / (pieces + load.pipeline - 1)
    one = flops / (load.gpus * gpu.flops * use) / (1 - idle)
    training = 3 * one * load.iterations
    parts = {"sampling": sampling, "training": training, "log_probs": load.passes * one}
    if load.shards > 1:
        rows = load.rows / load.gpus
        gathers = 3 * load.iterations * max(1.0, rows / load.micro) + load.passes
        apart = gathers * 2 * shape.total / (gpu.network * a.network_use)
        parts["gathering"] = max(0.0, apart - training - parts["log_probs"])
    parts["weights_to_engines"] = (
        2 * shape.total / a.refit if load.engine > 1 or load.sampler else 0
    )
    return parts


def pass_flops(shape: Shape, length: float) -> float:
    """FLOPs of a forward pass for a token: 2 a parameter, and attention's 4 x width x context.

    Kaplan et al., arXiv 2001.08361, section 2.1; a causal token sees half of `length` on average.
    """
    return 2 * shape.active + 4 * shape.layers * shape.hidden * length / 2


def _decoding(shape: Shape, gpu: Gpu, load: StepLoad, a: Assumed) -> float:
    """Seconds until the longest completion ends; each step reads all weights and the alive rows'
    keys and values (the roofline of Pope et al., arXiv 2211.05102), or computes, if that is longer.

    Rows that are alive: their mean length over the longest, on average over the steps. Nearly all
    experts are read: a batch's tokens choose differently.
    """
    engines = max(1.0, load.gpus / load.engine)
    alive = load.rows / engines * min(1.0, load.mean / load.longest)
    context = load.mean / 2 + load.prompts / max(1, load.rows)
    read = 2 * shape.total / load.engine + alive * context * shape.cache / load.engine
    reading = read / (gpu.bandwidth * a.bandwidth_use)
    computing = 2 * shape.active * alive / load.engine / (gpu.flops * 0.5)
    far = a.far_layer_s if load.engine > a.server else 0.0
    return load.longest * (max(reading, computing) + shape.layers * (a.layer_s + far))


# ----------------------------------------------------------------------------------- memory


def memory(shape: Shape, load: StepLoad, gpu: Gpu) -> dict[str, float]:
    """Bytes of one GPU by part, while it is fullest.

    Weights, gradients and AdamW's two moments in fp32 (4 + 4 + 8 bytes a parameter, as in ZeRO,
    arXiv 1910.02054, with fp32 weights), divided by the shards. Activations with checkpointing: the
    input of every layer, and one layer's own, 34 bytes a token and unit of width (Korthikanti et
    al., arXiv 2205.05198, equation 1, without attention's scores). Logits: one chunk of 1,024
    tokens in fp32, twice. Sampling in the trainer needs the whole weights in bf16 and the cache.
    """
    tokens = load.micro * (load.mean + load.prompts / max(1, load.rows))
    layer = shape.total / shape.layers
    gathered = 2 * 2 * layer + 2 * shape.vocabulary * shape.hidden if load.shards > 1 else 0.0
    parts = {
        "weights": 4 * shape.total / load.shards + gathered,
        "gradients": 4 * shape.total / load.shards,
        "optimizer": 8 * shape.total / load.shards,
        "activations": tokens * shape.hidden * (2 * shape.layers + 34),
        "logits": 2 * 4 * min(tokens, 1024) * shape.vocabulary,
    }
    if load.sampler:
        parts["vllm"] = load.sampler * gpu.memory
        return parts
    rows = load.rows / load.gpus
    alive = rows * min(1.0, 1.25 * load.mean / load.longest)
    parts["sampling_weights"] = 2 * shape.total if load.shards > 1 else 0.0
    parts["kv_cache"] = alive * load.longest * shape.cache
    return parts


def breaks(shape: Shape, load: StepLoad, gpu: Gpu) -> list[str]:
    """Where the plan does not fit, and which knob is next; empty if it does."""
    parts = memory(shape, load, gpu)
    fit = 0.92 * gpu.memory  # the rest is the allocator's and CUDA's
    reasons = []
    training = [n for n in parts if n not in ("sampling_weights", "kv_cache")]
    state = sum(parts[n] for n in ("weights", "gradients", "optimizer"))
    if sum(parts[n] for n in training) > fit:
        if load.shards < load.gpus and state > 0.5 * fit:
            reasons.append("training does not fit: use run.parallel: fsdp")
        elif parts["activations"] + parts["logits"] > 0.3 * fit and load.micro > 1:
            reasons.append("training does not fit: use a smaller group.micro_batch")
        else:
            reasons.append("training does not fit: use more GPUs, or policy.lora")
    sampled = parts["weights"] + parts["optimizer"] + parts.get("kv_cache", 0.0)
    if not load.sampler and sampled + parts["sampling_weights"] > fit:
        reasons.append("sampling in the trainer does not fit: use a vLLM server (vllm.mode)")
    if load.sampler and 2 * shape.total / load.engine > 0.9 * load.sampler * gpu.memory:
        reasons.append(
            "vLLM does not fit its share: raise vllm.gpus (tensor parallel) or vllm.memory"
        )
    return reasons


# ------------------------------------------------------------------------------------- a plan


@dataclass(frozen=True)
class Plan:
    """A recipe's grpo stage on paper."""

    stage: str
    gpus: int
    gpu: str
    shape: Shape
    memory: dict[str, float]
    seconds: dict[str, float]
    tokens: float
    breaks: list[str]
    assumed: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: bytes, seconds, sampled tokens a second."""
        return {
            "stage": self.stage,
            "gpus": self.gpus,
            "gpu": self.gpu,
            "parameters": self.shape.total,
            "active_parameters": self.shape.active,
            "memory": {**self.memory, "all": sum(self.memory.values())},
            "seconds": {**self.seconds, "step": self.step},
            "tokens_per_second": self.tokens / self.step,
            "breaks": self.breaks,
            "assumed": self.assumed,
        }


def plan(recipe: Recipe, gpus: int, gpu: str, shape: Shape | None = None) -> list[Plan]:
    """A plan for every grpo stage of `recipe`; `UserError` for a GPU without a data sheet."""
    if gpu not in GPUS:
        raise unknown("GPU", gpu, GPUS)
    stages = [stage for stage in recipe.stages if isinstance(stage, GrpoStage)]
    if not stages:
        raise UserError("only grpo stages are planned, and the recipe has none")
    shape = shape or shape_of(recipe.policy.source)
    plans = []
    for stage in stages:
        load = load_of_step(recipe, stage, gpus)
        parts = memory(shape, load, GPUS[gpu])
        times = seconds(shape, GPUS[gpu], load)
        tokens = load.rows * load.mean
        wrong = breaks(shape, load, GPUS[gpu])
        plans.append(Plan(stage.name, gpus, gpu, shape, parts, times, tokens, wrong, vars(ASSUMED)))
    return plans


def table_rows(plans: Sequence[Plan]) -> Iterator[list[str]]:
    """The plans as the rows of a table: memory, seconds, tokens, what breaks."""
    memory_parts = dict.fromkeys(part for p in plans for part in p.memory)
    for part in memory_parts:
        yield [f"memory: {part}", *(f"{p.memory.get(part, 0.0) / 1e9:.1f} GB" for p in plans)]
    yield ["memory: all", *(f"{sum(p.memory.values()) / 1e9:.1f} GB" for p in plans)]
    for part in dict.fromkeys(part for p in plans for part in p.seconds):
        yield [f"seconds: {part}", *(f"{p.seconds.get(part, 0.0):.1f} s" for p in plans)]
    yield ["seconds: step", *(f"{p.step:.1f} s" for p in plans)]
    yield ["sampled tokens/s", *(f"{p.tokens / p.step:,.0f}" for p in plans)]
    yield ["breaks", *("; ".join(p.breaks) or "no" for p in plans)]


def load_of_step(recipe: Recipe, stage: GrpoStage, gpus: int, a: Assumed = ASSUMED) -> StepLoad:
    """A step of `stage` on so many GPUs; raises `UserError` where its groups do not divide."""
    group, loss = stage.group, stage.loss
    if group.prompts % gpus:
        raise UserError(
            f"stage {stage.name}: group.prompts {group.prompts} is not a multiple of {gpus} GPUs: "
            "a group is never split"
        )
    rows = group.size * group.prompts
    own = rows // gpus
    mean = a.mean_share * stage.sampling.longest
    sharded = recipe.run.parallel in ("fsdp", "zero3")
    vllm = stage.vllm
    return StepLoad(
        gpus=gpus,
        rows=rows,
        longest=stage.sampling.longest,
        mean=mean,
        prompts=float(group.prompts * a.prompt),
        passes=float(loss.iterations > 1) + float(loss.beta > 0),
        iterations=loss.iterations,
        shards=gpus if sharded else 1,
        micro=min(group.micro_batch or own, own),
        engine=vllm.gpus if vllm else 1,
        sampler=vllm.memory if vllm and vllm.mode == "colocate" else 0.0,
    )


def _config(source: str) -> Any:
    """The configuration of a policy: a scratch name, a folder with config.json, a hub id."""
    from rl_reasoner.policy.names import locate
    from rl_reasoner.policy.opening import UNREADABLE, load_config, open_policy, reason_of

    if source.startswith("scratch:"):
        return open_policy(source, device="cpu").model.config
    try:
        with locate(source) as path:
            return load_config(path)
    except UNREADABLE as error:
        raise UserError(f"{source}: no configuration to plan with ({reason_of(error)})") from error


def shape_of(source: str) -> Shape:
    """The shape of a policy, by its configuration alone: nothing is allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    from rl_reasoner.moe.experts import parameter_counts

    config = _config(source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    total, active = parameter_counts(model)
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    if (rank := getattr(text, "kv_lora_rank", None)) is not None:  # DeepSeek's latent attention
        width = rank + text.qk_rope_head_dim
    else:
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = 2 * heads * head
    cache = 2.0 * layers * width
    return Shape(total, active, layers, text.hidden_size, text.vocab_size, cache)
