"""The plan of a recipe: for each grpo stage memory, seconds, hours, and what breaks; as a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.planning.gpus import ASSUMED, GPUS, Gpu
from rl_reasoner.planning.load import StepLoad, load_of_step
from rl_reasoner.planning.shapes import Shape, shape_of
from rl_reasoner.planning.step_memory import FIT, breaks, memory, phases
from rl_reasoner.planning.step_time import seconds
from rl_reasoner.recipe.origin import starting_origin
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage

if TYPE_CHECKING:  # with torch, which a plan for a GPU, and a mistake in one, does without
    from rl_reasoner.planning.processors import Processor

CPU = "cpu"


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
    steps: int
    load: StepLoad

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def hours(self) -> float:
        """Hours of all steps, without evaluations and checkpoints."""
        return self.steps * self.step / 3600

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs, a server's with them."""
        return self.hours * (self.gpus + self.load.servers)

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values: bytes, seconds, sampled tokens a second."""
        return {
            "stage": self.stage,
            "gpus": self.gpus,
            "gpu": self.gpu,
            "parameters": self.shape.total,
            "active_parameters": self.shape.active,
            "adapter_parameters": self.shape.adapter,
            "server_gpus": self.load.servers,
            "memory": {**self.memory, **phases(self.memory, self.load)},
            "seconds": {**self.seconds, "step": self.step},
            "tokens_per_second": self.tokens / self.step,
            "steps": self.steps,
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "breaks": self.breaks,
            "assumed": vars(ASSUMED),
        }


def plan(recipe: Recipe, gpus: int, gpu: str, servers: int = 0) -> list[Plan]:
    """A plan for every grpo stage that `recipe` trains, with the shape of the model it trains.

    `servers`: GPUs of its vLLM server (`load_of_step`).
    `gpu` is a name of `GPUS`, or "cpu": one process on this machine, whose constants are measured
    the first time (`processors`). Raises `UserError` for a GPU without a data sheet, a recipe
    without a grpo stage to train, groups that do not divide among the GPUs, what no CPU is planned
    for.
    """
    if gpu not in (*GPUS, CPU):
        raise unknown("GPU", gpu, [*GPUS, CPU])
    stages = [s for s in recipe.stages if isinstance(s, GrpoStage) and s.reuse is None]
    if not stages:
        raise UserError("only grpo stages that are trained are planned, and the recipe has none")
    if gpu == CPU:
        _check_cpu(recipe, stages, gpus)
    if servers and not any(stage.vllm and stage.vllm.mode == "server" for stage in stages):
        raise UserError(f"--server-gpus {servers}: the recipe has no vLLM server (--vllm.mode)")
    sources = [starting_origin(recipe, stage).source for stage in stages]
    shapes = {source: shape_of(source, recipe.policy.lora) for source in dict.fromkeys(sources)}
    sheet = _of_cpu() if gpu == CPU else GPUS[gpu]
    plans = []
    for stage, source in zip(stages, sources, strict=True):
        shape = shapes[source]
        load = load_of_step(recipe, stage, gpus, shape, sheet, servers)
        parts = memory(shape, load, sheet)
        if gpu == CPU:
            parts["kv_cache"] *= 2  # in fp32 there
            times, wrong = (
                _seconds_on_cpu(recipe, stage, shape, load),
                _too_large(parts, load, sheet),
            )
        else:
            times, wrong = seconds(shape, sheet, load), breaks(shape, load, sheet)
        times = {part: time / load.iterations for part, time in times.items()}
        tokens = load.rows * load.mean / load.iterations  # a batch lasts for so many steps
        plans.append(
            Plan(stage.name, gpus, gpu, shape, parts, times, tokens, wrong, stage.steps, load)
        )
    return plans


def _check_cpu(recipe: Recipe, stages: Sequence[GrpoStage], processes: int) -> None:
    """Raises `UserError` for what the model of a CPU leaves out."""
    if processes != 1:
        raise UserError(f"--gpus {processes}: a CPU is planned for one process")
    if any(stage.vllm for stage in stages):
        raise UserError("vllm: what a vLLM server takes on a CPU is not planned")
    if (precision := recipe.run.precision) in ("fp16", "fp8"):
        raise UserError(f"run.precision: {precision} is not planned on a CPU: fp32 and bf16 are")


def _of_cpu() -> Gpu:
    """The data sheet of this machine: its memory."""
    from rl_reasoner.planning.processors import Processor

    return Gpu(0.0, Processor.memory(), 0.0, 0.0)


def _too_large(parts: dict[str, float], load: StepLoad, here: Gpu) -> list[str]:
    """What does not fit into this machine's memory, and what would."""
    needed = phases(parts, load)
    fixes = {"sampling": "fewer completions per step", "training": "a smaller group.micro_batch"}
    return [
        f"{phase} does not fit: use a smaller policy, policy.lora or {fix}"
        for phase, fix in fixes.items()
        if needed[phase] > FIT * here.memory
    ]


def _seconds_on_cpu(
    recipe: Recipe, stage: GrpoStage, shape: Shape, load: StepLoad
) -> dict[str, float]:
    """Seconds of a step here by part."""
    from rl_reasoner.planning.cpu_time import seconds_on_cpu

    return seconds_on_cpu(shape, *processors_of(recipe, stage, shape), load)


def processors_of(recipe: Recipe, stage: GrpoStage, shape: Shape) -> "tuple[Processor, Processor]":
    """This machine's constants in the types that sample and train; see `sampling_weights`."""
    from rl_reasoner.kernels.packed_linear import bf16_pays
    from rl_reasoner.planning.processors import measured_processor
    from rl_reasoner.rollout.sampling_weights import LARGE

    trains = "bfloat16" if recipe.run.precision == "bf16" else "float32"
    samples: str = stage.sampling.weights
    if samples == "auto":
        samples = "bfloat16" if 4 * shape.total >= LARGE and bf16_pays() else "own"
    if trains == "bfloat16" or samples == "own" or (samples == "int8" and shape.experts):
        samples = trains  # experts stay in fp32, and are most of the weights
    return measured_processor(shape, samples), measured_processor(shape, trains)


def table_rows(plans: Sequence[Plan]) -> Iterator[list[str]]:
    """The plans as the rows of a table: memory, seconds, tokens, hours, what breaks."""
    if any(p.load.servers for p in plans):
        yield ["GPUs of the vLLM server", *(str(p.load.servers or "none") for p in plans)]
    for part in dict.fromkeys(part for p in plans for part in p.memory):
        yield [f"memory: {part}", *(size(p.memory.get(part, 0.0)) for p in plans)]
    for phase in ("sampling", "training"):
        at = [phases(p.memory, p.load)[phase] for p in plans]
        yield [f"memory while {phase}", *map(size, at)]
    for part in dict.fromkeys(part for p in plans for part in p.seconds):
        yield [f"seconds: {part}", *(f"{p.seconds.get(part, 0.0):.3g} s" for p in plans)]
    yield ["seconds: step", *(f"{p.step:.3g} s" for p in plans)]
    yield ["sampled tokens/s", *(f"{p.tokens / p.step:,.0f}" for p in plans)]
    yield ["all steps", *map(_all_steps, plans)]
    yield ["breaks", *("; ".join(p.breaks) or "no" for p in plans)]


def _all_steps(p: Plan) -> str:
    on_gpus = "" if p.gpu == CPU else f", {p.gpu_hours:.3g} GPU-h"
    return f"{p.steps:,}: {p.hours:.3g} h{on_gpus}"


def size(amount: float) -> str:
    """Bytes in the unit that has one to three digits before the point."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.1f} {unit}"
    return f"{amount:.0f} B"
