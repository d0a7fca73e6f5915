"""Checks of the opened policy and of the machine, before a run costs anything.

`inspect` looks at room on the disk and in memory, end and padding tokens, prompts that do not fit,
and settings far from those that work. `rl-reasoner check RECIPE` adds a rehearsal (`rehearsal`).
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import torch

from rl_reasoner import sandbox
from rl_reasoner.answers import verify
from rl_reasoner.dataset.tasks.generate import TASKS
from rl_reasoner.dataset.templates import prompt_of, render
from rl_reasoner.errors import UserError
from rl_reasoner.hacking.judges import WORDS, IndependentJudge, claims_of
from rl_reasoner.kernels.products import bf16_rates
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.prepare import Prepared
from rl_reasoner.pipeline.trl_configs import vllm_rollouts_of
from rl_reasoner.policy.fp8.layers import describe_fp8, fp8_backend
from rl_reasoner.policy.lora import with_lora
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.data import BRACES_FIX, data_sources, doubled_braces
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import (
    GrpoStage,
    RowStage,
    SampleStage,
    SftStage,
    Stage,
    TrainedStage,
)
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.rewards.math_answer import math_answer
from rl_reasoner.rollout.episodes.environment_turns import EnvironmentUse
from rl_reasoner.rollout.long_prompts import declared_places, named_rows
from rl_reasoner.rollout.sampler import eos_ids, long_rows, prompt_ids, refused_prompt
from rl_reasoner.rollout.sampling_weights import sampled_weights
from rl_reasoner.rollout.server import ServerFailed
from rl_reasoner.rollout.tool_turns import ToolUse
from rl_reasoner.rollout.vllm_server.agreement import ASKED_PROMPTS, check_server
from rl_reasoner.rollout.vllm_server.connection import LORA_FLAGS, START_COMMAND, Unreachable
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.scoring.batch import APPLIES, applies
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Row

_LOOKED_AT = 256  # prompts that are measured
_SMALL = 50_000_000  # parameters; smaller models take larger learning rates
# Learning rates that recipes train with, from a tenth of the smallest to ten times the largest:
# (stage, small model) -> lowest, highest. Measured: recipes/README.md, docs/real-models.md.
_RATES = {
    ("sft", True): (1e-5, 5e-2),
    ("sft", False): (1e-7, 5e-4),
    ("grpo", True): (1e-6, 3e-3),
    ("grpo", False): (1e-8, 2e-5),
}
_LORA_RATE = 10.0  # adapters take rates that much larger
_ADAM_BYTES = 8  # two moments in fp32
_OTHERWISE = ("tests", "instructions", "start")  # what rows are judged by without an answer


@dataclass(frozen=True)
class Notice:
    """One check of a run to come: its status, what was found, and how to fix it.

    What cannot be judged before the run is "skipped"; its message says why.
    """

    check: str
    status: Literal["passed", "warned", "failed", "skipped"]
    message: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.message}" + (f" ({self.fix})" if self.fix else "")


def warn_if(doubtful: bool, check: str, message: str, fix: str) -> Notice:
    """A notice that warns and tells the fix where `doubtful`, and has passed otherwise."""
    return Notice(check, "warned", message, fix) if doubtful else Notice(check, "passed", message)


def inspect(
    recipe: Recipe,
    placement: Placement,
    prepared: Prepared,
    policy: Policy,
    folder: Path,
    left: int | None = None,
) -> list[Notice]:
    """Check the opened policy and the machine for a run in `folder`; passed checks are included.

    `left` is how many of its stages are still to be done; all, unless it is a run that goes on.
    """
    left = len(recipe.stages) if left is None else left
    notices = [
        _disk(recipe, policy, folder, left),
        _memory(recipe, placement, policy),
        _tokens(policy),
    ]
    notices.append(_sandbox(recipe))
    notices += _templates(recipe)
    if (recipe.evals.sets or recipe.evals.validation) and recipe.evals.weights != "own":
        notices.append(_evaluated_weights(recipe.evals.weights, policy))
    if placement.processes == 1 and (parallel := recipe.run.parallel) not in ("auto", "ddp"):
        message = f"run.parallel: {parallel} shares the weights among processes, and this is one"
        notices.append(Notice("parallel", "warned", message, "torchrun --nproc-per-node N …"))
    if placement.precision == "fp8":
        notices.append(_fp8(recipe, policy))
    elif (placement.precision, policy.device.type) == ("bf16", "cpu"):
        notices.append(_bf16())
    if recipe.tools:
        notices.append(_tools(recipe, recipe.tools, policy))
    if recipe.environment:
        notices.append(_environment(recipe, recipe.environment, prepared, policy))
    for stage in recipe.stages:
        rows = prepared.rows[stage.name]
        refused = _refused(recipe, stage, rows, policy)
        notices += refused
        if isinstance(stage, RowStage):
            continue
        notices.append(_learning_rate(recipe, stage, policy))
        if isinstance(stage, GrpoStage):
            notices.append(_group_size(stage))
            if rollouts := vllm_rollouts_of(stage.vllm, folder):
                notices.append(_vllm_server(recipe, stage, rollouts, rows, policy))
            notices.append(_hacking_meter(recipe, stage, rows, prepared))
            notices += _golds(stage, rows, prepared)
            if rows and not refused:
                notices.append(_prompts(recipe, stage, rows, policy))
        elif rows and isinstance(stage, SftStage):
            notices.append(_batch_size(stage, len(rows)))
    notices += _trained_levels(recipe, prepared)
    return notices


def _disk(recipe: Recipe, policy: Policy, folder: Path, left: int) -> Notice:
    """Two checkpoints kept and one being written, a policy a stage and at the end; and of arms.

    Only where stages are left; of a run that is trained, the policy at the end alone.
    """
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    trained = _trained(recipe, policy)
    checkpoint = weights + trained * _ADAM_BYTES
    need = (3 * checkpoint if left else 0) + (left + 1) * weights
    need += len(recipe.controls) * (2 * checkpoint + weights)
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        message = f"cannot write {folder}: {place} is not a writable folder"
        return Notice("disk", "failed", message, "choose a different --run.folder")
    free = shutil.disk_usage(place).free
    message = f"{_size(need)} for checkpoints and policies, {_size(free)} free in {place}"
    fix = "free some space"
    if left == len(recipe.stages):
        fix += ", or choose a different --run.folder"
    if need > free:
        return Notice("disk", "failed", message, fix)
    return warn_if(need > 0.5 * free, "disk", message, fix)


def _memory(recipe: Recipe, placement: Placement, policy: Policy) -> Notice:
    """Weights, gradients, moments, the reference, and the activations of one forward pass.

    Activations are an estimate: about 20 values a token, layer and hidden unit, and fp32 logits.
    """
    config = policy.model.config.get_text_config()
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    trained = _trained(recipe, policy)
    need = weights + trained * (_ADAM_BYTES + 4)
    tokens = 0
    for stage in recipe.stages:
        if isinstance(stage, GrpoStage):
            rows = stage.group.micro_batch or stage.group.size * stage.group.prompts
            tokens = max(tokens, rows * 2 * stage.sampling.longest)
    width = 20 * config.num_hidden_layers * config.hidden_size + 2 * min(config.vocab_size, 50_000)
    need += tokens * width * 4
    if not recipe.policy.lora and any(s.kind == "grpo" and s.loss.beta for s in recipe.stages):
        need += weights
    free = _free_memory(placement.device)
    if free is None:
        return Notice("memory", "passed", f"about {_size(need)}; how much is free is not known")
    message = f"about {_size(need)}, {_size(free)} free"
    fix = "a smaller group.micro_batch or sampling.max_tokens, or policy.lora"
    if weights + trained * (_ADAM_BYTES + 4) > free:
        return Notice("memory", "failed", f"{message}: weights and optimizer alone do not fit", fix)
    return Notice(
        "memory", "warned" if need > 0.9 * free else "passed", message, fix * (need > free)
    )


def _trained(recipe: Recipe, policy: Policy) -> int:
    """How many parameters are trained; an adapter's from its rank, as for square matrices."""
    total = sum(p.numel() for p in policy.model.parameters())
    lora = recipe.policy.lora
    if not lora:
        return int(total)
    hidden = policy.model.config.get_text_config().hidden_size
    return int(total * min(1.0, 2 * lora.rank / hidden))


def _free_memory(device: str) -> int | None:
    """Bytes that are free on the device; None where that is not known."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        named = {line.split(":")[0]: line.split()[1] for line in lines}
        free = int(named["MemAvailable"]) << 10
    except (OSError, ValueError, KeyError):
        return None  # not Linux
    with suppress(OSError, ValueError):
        free = min(free, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return free


def _tokens(policy: Policy) -> Notice:
    """A completion needs a token to end with, a batch one to pad with."""
    tokenizer = policy.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end is None:
        fix = "give the policy's tokenizer an eos_token"
        return Notice("tokens", "failed", "the tokenizer has no end token: nothing would end", fix)
    vocabulary = policy.model.config.get_text_config().vocab_size
    if end >= vocabulary:
        message = f"the end token {end} is outside the model's {vocabulary} tokens"
        return Notice("tokens", "failed", message, "use the tokenizer that belongs to the model")
    if pad is None:
        return Notice("tokens", "warned", "no padding token: the end token is used instead")
    return Notice("tokens", "passed", f"end {end}, padding {pad}")


def _tools(recipe: Recipe, settings: ToolSettings, policy: Policy) -> Notice:
    """Whether each tool answers a call, and in which time; and whether calls have a form."""
    try:
        use = ToolUse.of(settings, policy.tokenizer)
    except UserError as error:
        return Notice("tools", "failed", str(error))
    sampled = [stage.name for stage in recipe.stages if isinstance(stage, SampleStage)]
    if sampled and use.schemas is not None:
        why = f"stage {sampled[0]} keeps completions as text, which has no turns of a chat template"
        return Notice("tools", "failed", why, "set tools.format to fences or tags")
    answers = use.tried()
    told = f"calls as {use.format.name}; " + ", ".join(
        f"{name} {1000 * answer.seconds:.3g} ms" for name, answer in answers.items()
    )
    for name, answer in answers.items():
        if answer.kind in ("died", "timeout"):
            fix = "call it yourself in Python first"
            return Notice("tools", "failed", f"{name} does not answer: {answer.text}", fix)
    if use.schemas is not None and isinstance(render("?", recipe.template, policy.tokenizer), str):
        fix = "set template to chat or boxed, which name the tools, or tools.format to fences"
        return Notice("tools", "warned", f"{told}; the prompt is plain text, and names none", fix)
    slow = any(answer.seconds > settings.timeout_s / 2 for answer in answers.values())
    return warn_if(slow, "tools", told, "a tool takes half of tools.timeout_s: raise it")


def _environment(
    recipe: Recipe, settings: EnvironmentSettings, prepared: Prepared, policy: Policy
) -> Notice:
    """Whether the environment answers a turn, twice the same, and in which time."""
    try:
        use = EnvironmentUse.of(settings, policy.tokenizer, recipe.template)
    except UserError as error:
        return Notice("environment", "failed", str(error))
    rows = [row for some in prepared.rows.values() for row in some[:1]]
    replies, seconds = use.tried(rows[0] if rows else {"problem": "", "answer": ""})
    use.close()
    first = replies[0]
    if not first.usable:
        fix = "play it yourself in Python first: reset(row), then step('')"
        message = f"{settings.use}: a first turn failed: {first.why}"
        return Notice("environment", "failed", message, fix)
    told = f"{settings.use}: a turn takes {1000 * seconds:.3g} ms"
    if replies[0] != replies[1]:
        fix = "draw from row['seed'] alone, so that a run can be resumed exactly"
        return Notice("environment", "warned", f"{told}; it answers one turn in two ways", fix)
    slow = seconds > settings.timeout_s / 2
    return warn_if(slow, "environment", told, "that is half of environment.timeout_s: raise it")


def _fp8(recipe: Recipe, policy: Policy) -> Notice:
    """Which layers multiply in FP8, and whether the machine does it or we emulate it."""
    by = fp8_backend(policy.device.type, recipe.run.fp8)
    status, message = describe_fp8(policy.model, recipe.run.fp8, by)
    return Notice("precision", status, message, "bf16 or fp32" if status != "passed" else "")


def _bf16() -> Notice:
    """Whether this processor multiplies faster in bf16 at all."""
    rates = bf16_rates()
    told = f"GFLOP/s of a product here: {rates['bf16']} in bf16, {rates['fp32']} in fp32"
    slower = rates["bf16"] < rates["fp32"]
    return warn_if(slower, "precision", told, "leave out run.precision: fp32 is faster, and exact")


def _sandbox(recipe: Recipe) -> Notice:
    """Rewards that run programs need a sandbox."""
    runs = {"code_tests", "no_hardcode"} & {*recipe.rewards, recipe.evals.reward}
    try:
        strength = str(sandbox.strength())
    except sandbox.SandboxUnavailable as error:
        if runs:
            return Notice("sandbox", "failed", str(error), "see docs/sandbox.md")
        return Notice("sandbox", "passed", "none here, and no reward needs one")
    return Notice("sandbox", "passed", strength.partition("\n")[0])


def _learning_rate(recipe: Recipe, stage: TrainedStage, policy: Policy) -> Notice:
    """The learning rate, compared with those of the shipped recipes, and whether it is reached."""
    low, high = _RATES[
        "grpo" if stage.kind == "grpo" else "sft", policy.parameter_counts[0] < _SMALL
    ]
    message, who = f"stage {stage.name}: {stage.optim.lr:g}", "policies of this size"
    if recipe.policy.lora:
        low, high = low * _LORA_RATE, high * _LORA_RATE
        message += ", of an adapter, which takes about ten times the rate of full training"
        who = "adapters of policies of this size"
    fix = f"{who} train with {low * 10:g} to {high / 10:g}"
    if stage.optim.warmup >= stage.steps:
        message += f", which is never reached: its warm-up takes {stage.optim.warmup:,} steps"
        return Notice("learning rate", "warned", message, f"a warm-up below {stage.steps:,} steps")
    return warn_if(not low <= stage.optim.lr <= high, "learning rate", message, fix)


def control_cost(recipe: Recipe, stage: GrpoStage, minutes: Mapping[str, float] | None) -> Notice:
    """What the control arms cost beside the stage that they repeat.

    `minutes` are a forecast's of that stage: of all of it, and of an evaluation at its end.
    """
    arms, sets = len(recipe.controls), len(recipe.evals.sets)
    steps, batches = arms * stage.steps, arms * ceil(stage.steps / stage.loss.iterations)
    completions = batches * stage.group.prompts * stage.group.size
    again = "once" if arms == 1 else f"{arms} times"
    message = (
        f"{', '.join(recipe.controls)}: stage {stage.name} {again} more, {steps:,} steps with "
        f"{completions:,} completions, and {again} more the evaluation of {sets} "
        f"set{'s' * (sets != 1)}"
    )
    if minutes is not None:
        message += f"; about {arms * (minutes['stage'] + minutes['end']):.1f} minutes"
    return Notice("controls", "passed", message)


def _group_size(stage: GrpoStage) -> Notice:
    size, prompts = stage.group.size, stage.group.prompts
    message = f"stage {stage.name}: {prompts} prompts x {size} completions"
    fix = "with fewer than 4 of either, a step's gradient is mostly noise"
    return warn_if(size < 4 or prompts < 4, "batch", message, fix)


def _hacking_meter(recipe: Recipe, stage: GrpoStage, rows: list[Row], prepared: Prepared) -> Notice:
    """Who judges the best-paid completions again; where nobody can, the alarm cannot ring."""
    of = f"stage {stage.name}: "
    if not recipe.hacking_meter.every:
        return Notice("hacking meter", "passed", f"{of}off")
    if not rows and recipe.hacking_meter.judge is None:
        return Notice("hacking meter", "skipped", f"{of}an earlier stage makes or chooses its rows")
    judge = IndependentJudge(recipe, rows, claims_of(recipe, prepared.rewards))
    kinds = Counter(judge.kind_of(row) for row in rows[:_LOOKED_AT])
    known = [f"{WORDS[kind]} ({count} rows)" for kind, count in kinds.most_common() if kind]
    if known or judge.own is not None:
        return Notice("hacking meter", "passed", f"{of}{', '.join(known) or WORDS['own']}")
    why = f"{of}no independent judge: nothing can say whether the reward is hacked"
    return Notice("hacking meter", "skipped", why, "name a reward in hacking_meter.judge")


def _vllm_server(
    recipe: Recipe, stage: GrpoStage, rollouts: VllmRollouts, rows: list[Row], policy: Policy
) -> Notice:
    """Whether a vLLM server is there, takes weights, and computes this policy with them."""
    of = f"stage {stage.name}: "
    if stage.policy:
        return Notice("vllm", "skipped", f"{of}it has a policy of its own")
    fix = f"start it with {START_COMMAND}, on a policy of this kind and sizes"
    texts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows[:ASKED_PROMPTS]]
    prompts = [prompt_ids(policy, text) for text in texts or ["1"]]
    longest = stage.sampling.longest if stage.sampling.max_tokens != "auto" else 1
    try:
        rollouts.connection.ask("/v1/models")  # one that is not there is not waited for here
        with rollouts.own(), with_lora(policy, recipe.policy.lora, recipe.run.seed):
            found = check_server(rollouts, policy.model, prompts, eos_ids(policy), longest)
    except Unreachable as error:
        return Notice("vllm", "failed", f"{of}{rollouts.connection}: {error}", fix)
    except (ServerFailed, UserError) as error:
        return Notice("vllm", "failed", f"{of}{error}")
    merged = recipe.policy.lora is not None and not rollouts.by_adapter
    message = f"{of}{rollouts.connection} gets {rollouts.form}; {found}"
    return warn_if(merged, "vllm", message, f"to swap adapters, start it with {LORA_FLAGS}, too")


def _batch_size(stage: SftStage, rows: int) -> Notice:
    """Fewer rows than a batch: trl makes every step of all of them."""
    message = f"stage {stage.name}: {rows} rows, {stage.batch} per step"
    fix = f"every step has all {rows}: use a smaller batch"
    return warn_if(rows < stage.batch, "batch", message, fix)


def _refused(recipe: Recipe, stage: Stage, rows: list[Row], policy: Policy) -> list[Notice]:
    """The first row whose chat the policy's template refuses, if there is one."""
    if getattr(stage, "policy", None):  # it has a template of its own
        return []
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    if (found := refused_prompt(prompts, policy, recipe.tools)) is None:
        return []
    message = f"stage {stage.name}, row {found[0] + 1}: {found[1]}"
    return [Notice("prompts", "failed", message, "merge turns, or change the chat template")]


def _prompts(recipe: Recipe, stage: GrpoStage, rows: list[Row], policy: Policy) -> Notice:
    """Prompt and completion have to fit into the positions that the model knows."""
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    longest = stage.sampling.needed
    too_long = long_rows(prompts, rows, longest, policy, recipe.tools)
    places = declared_places(policy.model)
    if not too_long:
        schemas = ToolUse.told(recipe.tools, policy.tokenizer)
        some = [prompt_ids(policy, prompt, schemas=schemas) for prompt in prompts[:_LOOKED_AT]]
        longest_prompt = max(map(len, some))
        message = f"stage {stage.name}: up to {longest_prompt} tokens, completions up to {longest}"
        return Notice("prompts", "passed", message)
    message = (
        f"stage {stage.name}: {len(too_long)} of {len(rows)} prompts do not fit, with completions "
        f"up to {longest}, into the {places} positions of the policy: "
        f"{named_rows(too_long, 'row', prompts)}"
    )
    if stage.long_prompts == "skip" and len(too_long) < len(rows):
        return Notice("prompts", "warned", message, "they are left out")
    fix = "a smaller sampling.max_tokens, shorter rows, or long_prompts: skip"
    return Notice("prompts", "failed", message, fix)


def _evaluated_weights(wanted: str, policy: Policy) -> Notice:
    """Whether evaluations can sample from the weights that are asked for, here."""
    try:
        taken = sampled_weights(policy.model, wanted, "evals.weights")
    except UserError as error:
        return Notice("evaluations", "failed", "; ".join(error.messages))
    return Notice("evaluations", "passed", f"evals.weights is {wanted}: {taken} here")


def _templates(recipe: Recipe) -> list[Notice]:
    """A warning for each template that looks like a format string."""
    data = [recipe.data, *(stage.data for stage in recipe.stages)]
    own = [source.template for part in data for source in data_sources(part)]
    given = [recipe.template, *own, *(o.template for o in recipe.evals.overrides.values())]
    found = {template: doubled_braces(template) for template in given if template}
    return [Notice("template", "warned", told, BRACES_FIX) for told in found.values() if told]


def _trained_levels(recipe: Recipe, prepared: Prepared) -> list[Notice]:
    """A warning for each set of higher levels (`TASK_ood`) whose levels are trained on."""
    trained = {(row.get("task"), row.get("level")) for s in prepared.rows.values() for row in s}
    notices = []
    for name in (name for name in recipe.evals.sets if name.endswith("_ood")):
        task = TASKS.get(name.removesuffix("_ood"))
        levels = [level for level in task.ood if (task.name, level) in trained] if task else []
        if levels:
            message = f"{name}: its levels {levels[0]} to {levels[-1]} are trained on"
            fix = "it is not out of distribution then: use lower levels in data.levels, or a set"
            notices.append(Notice("levels", "warned", message, f"{fix} of higher ones"))
    return notices


def _golds(stage: GrpoStage, rows: list[Row], prepared: Prepared) -> list[Notice]:
    """A warning where `math_answer` cannot read an answer that it is to judge by.

    The rows stay, for each has its number wherever the data is read again.
    """
    rewards = prepared.rewards.values()
    if not any(isinstance(fn, Reward) and fn.fn is math_answer.fn for fn in rewards):
        return []
    golds = [
        (number, str(row.get("answer") or ""))
        for number, row in enumerate(rows, 1)
        if row.get("answer") is not None or not any(row.get(name) for name in _OTHERWISE)
        if applies(math_answer.name, row.get(APPLIES))
    ]
    verdicts = [(number, gold, verify("", gold)) for number, gold in golds]
    bad = [(n, gold, verdict.reason) for n, gold, verdict in verdicts if verdict.value is None]
    if not bad:
        return []
    number, gold, why = bad[0]
    said = f"stage {stage.name}: math_answer cannot read {len(bad)} of {len(golds)} answers"
    message = f"{said}, the first in row {number}: {gold!r:.40} ({why})"
    return [Notice("answers", "warned", message, "it abstains there: fix or leave out such rows")]


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
