"""One batch of a grpo stage as a plan sees it: rows, tokens, and which GPUs hold what."""

from dataclasses import dataclass

from rl_reasoner.errors import UserError
from rl_reasoner.planning.gpus import ASSUMED, Assumed, Gpu
from rl_reasoner.planning.shapes import Shape
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage


@dataclass(frozen=True)
class StepLoad:
    """One batch of GRPO: how much is sampled and trained on, and who holds what."""

    gpus: int
    """GPUs that train"""
    rows: int
    """completions a batch"""
    longest: int
    """longest completion, in tokens, or longest sequence where the mean counts prompts"""
    mean: float
    """mean tokens of a completion"""
    prompts: float = 0.0
    """tokens of prompts that are computed, a batch: once a group"""
    engine: int = 1
    """GPUs of one sampling engine (tensor parallel)"""
    passes: float = 2.0
    """forward passes over all rows beside training: old and reference log-probs"""
    iterations: int = 1
    """optimizer steps on the batch"""
    trained: float = 1.0
    """share of the rows that is trained on: rows without advantage may be left out"""
    shards: int = 1
    """GPUs that share the weights of training; 1 is DDP"""
    states: int = 1
    """GPUs that share gradients and moments"""
    pipeline: int = 1
    batch: int = 0
    """rows of an optimizer step, where a pipeline's bubbles depend on it; 0: all"""
    model: int = 1
    """GPUs of one copy in training that is not sharded data-parallel (tensor x pipeline)"""
    micro: int = 1
    """completions in one pass of a GPU"""
    sampler: float = 0.0
    """share of a GPU's memory for vLLM beside the training; 0: no vLLM there"""
    sleeps: bool = False
    """whether vLLM frees that memory while the policy trains"""
    servers: int = 0
    """GPUs of a vLLM server, beside those that train"""
    reference: bool = False
    """whether a second model is held for the KL term; an adapter needs none"""

    @property
    def sampling_gpus(self) -> int:
        """GPUs that sample: the server's, else those that train."""
        return self.servers or self.gpus


def load_of_step(
    recipe: Recipe,
    stage: GrpoStage,
    gpus: int,
    shape: Shape,
    gpu: Gpu,
    servers: int = 0,
    a: Assumed = ASSUMED,
) -> StepLoad:
    """A batch of `stage` on so many GPUs; raises `UserError` where groups or engines do not divide.

    `servers` are the GPUs of a vLLM server, where the stage has one: 0 means as many as train.
    """
    group, loss, vllm = stage.group, stage.loss, stage.vllm
    if group.prompts % gpus:
        raise UserError(
            f"stage {stage.name}: group.prompts {group.prompts} is not a multiple of {gpus} GPUs: "
            "a group is never split"
        )
    rows = group.size * group.prompts
    own = rows // gpus
    beside = vllm if vllm and vllm.mode == "colocate" else None
    if beside and gpus % beside.gpus:
        raise UserError(
            f"stage {stage.name}: --gpus {gpus} is not a multiple of vllm.gpus {beside.gpus}: each "
            "engine has as many"
        )
    servers = (servers or gpus) if vllm and not beside else 0
    parallel = recipe.run.parallel
    return StepLoad(
        gpus=gpus,
        rows=rows,
        longest=stage.sampling.longest,
        mean=a.mean_share * stage.sampling.longest,
        prompts=float(group.prompts * a.prompt),
        passes=float(loss.iterations > 1) + float(loss.beta > 0),
        iterations=loss.iterations,
        shards=gpus if parallel in ("fsdp", "zero3") else 1,
        states=gpus if parallel in ("fsdp", "zero2", "zero3") else 1,
        micro=min(group.micro_batch or own, own),
        engine=tensor_parallel(shape, gpu, servers) if servers else vllm.gpus if vllm else 1,
        sampler=beside.memory if beside else 0.0,
        sleeps=beside is not None and beside.sleep,
        servers=servers,
        reference=loss.beta > 0 and not shape.adapter,
    )


def tensor_parallel(shape: Shape, gpu: Gpu, servers: int) -> int:
    """GPUs of one engine of a server: as few as leave half of their memory to keys and values."""
    engine = 1
    while 2 * shape.total / engine > 0.5 * gpu.memory and 2 * engine <= servers:
        engine *= 2
    return engine
