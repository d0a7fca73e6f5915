"""What is checked before a run costs anything.

`prepared` reads all data and rewards of a recipe; every mistake in them is told at once, each with
its place in the recipe. `inspected` looks at the opened policy and the machine: room on the disk
and in memory, end and padding tokens, prompts that do not fit, settings far from those that work.
`rl-reasoner check RECIPE` does both and a rehearsal (`rehearsal`), `train` these two.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerState

from rl_reasoner import sandbox
from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.templates import prompt_of, target_completion, with_system
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.evaluation.evaluate import check_judge, load_set
from rl_reasoner.pipeline.lineage import brought
from rl_reasoner.pipeline.trl_configs import check_configs, check_filled
from rl_reasoner.policy.device import choose_device
from rl_reasoner.policy.fp8 import describe_fp8, fp8_backend
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.recipe import (
    AnyData,
    DistillStage,
    GrpoStage,
    Recipe,
    SampleStage,
    SftStage,
    Stage,
    StageData,
    TrainedStage,
    data_sources,
)
from rl_reasoner.report.dashboards import dashboards_of
from rl_reasoner.rollout.long_prompts import declared_places, named_rows
from rl_reasoner.rollout.sampler import long_rows, prompt_ids
from rl_reasoner.scoring.batch import APPLIES, applies, score_batch
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.types import Fault, Row

Where = Callable[[tuple[str | int, ...]], str]
_LOOKED_AT = 256  # rows whose prompts are measured
_SMALL = 50_000_000  # parameters; smaller models bear larger learning rates
# Learning rates that recipes train with, from a tenth of the smallest to ten times the largest:
# (stage, small model) -> lowest, highest. recipes/README.md has the measured results.
_RATES = {
    ("sft", True): (1e-5, 5e-2),
    ("sft", False): (1e-7, 5e-4),
    ("grpo", True): (1e-6, 3e-3),
    ("grpo", False): (1e-8, 2e-5),
}
_LORA_RATE = 20.0  # adapters bear rates that much larger
_ADAM_BYTES = 8  # two moments in fp32


@dataclass(frozen=True)
class Notice:
    """One check of a run to come: how it ended, what was found, and what mends it."""

    check: str
    status: Literal["passed", "warned", "failed"]
    message: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.message}" + (f" ({self.mend})" if self.mend else "")


@dataclass(frozen=True)
class Work:
    """What is read before any model is loaded: rows by stage, and the reward functions."""

    rows: list[list[Row]]
    rewards: list[Callable[..., Any]]


# ------------------------------------------------------------------------------ data and rewards


def prepared(recipe: Recipe, where: Where | None = None) -> Work:
    """Read all data and rewards of the recipe; every mistake in them is one `UserError`.

    `where` gives the place of a field, for the messages.
    """
    problems: list[str] = []

    @contextmanager
    def field(*path: str | int) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            place = where(path) if where else ""
            problems.extend(f"{place}{': ' if place else ''}{m}" for m in error.messages)

    rewards: list[Callable[..., Any]] = []
    rows: list[list[Row]] = []
    with field("run", "device"):
        choose_device(recipe.run.device)
    with field("run", "report_to"):
        dashboards_of(recipe.run.report_to)
    if recipe.run.precision == "fp8" and not problems:
        with field("run", "precision"):
            fp8_backend(choose_device(recipe.run.device), recipe.run.fp8)
    if not problems:
        with field("stages"):  # what the trainers' configs refuse
            check_configs(recipe)
    with field("evals", "reward"):
        check_judge(recipe.evals.reward, recipe.evals.reward_options)
    for name, spec in recipe.rewards.items():
        with field("rewards", name):
            rewards.append(load_reward(name, spec.options, spec.source))
    for index, name in enumerate(recipe.evals.sets):
        with field("evals", "sets", index):
            load_set(name, 1)
    if recipe.evals.validation:
        with field("evals", "validation"):
            load_set(recipe.evals.validation, 1)
    named = dict(zip(recipe.rewards, rewards, strict=False))
    for index, stage in enumerate(recipe.stages):
        found: list[Row] = []
        if stage.reuse is not None:
            with field("stages", index, "reuse"):
                brought(stage)
        elif not any(isinstance(s, StageData) for s in data_sources(recipe.data_of(stage))):
            with field(*(("stages", index, "data") if stage.data else ("data",))):
                found = read_stage_rows(recipe, stage, recipe.data_of(stage), named)
                check_filled(recipe, stage, len(found))
        rows.append(found)
    for stage, found in zip(recipe.stages, rows, strict=True):
        if problems or stage.kind != "grpo":
            continue
        for name, function in named.items():
            for row in _of_each_task(found, name_of(function)):
                with field("rewards", name):
                    _try_reward(function, row)
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Work(rows, rewards)


def read_stage_rows(
    recipe: Recipe, stage: Stage, data: AnyData, rewards: Mapping[str, Callable[..., Any]]
) -> list[Row]:
    """The rows of `data`, as the trainer of `stage` wants them, with the recipe's system prompt.

    `rewards` are the recipe's, by name. Raises `UserError` for bad rows.
    """
    rows = with_system(load_rows(data), recipe.system)
    if stage.kind == "sft":
        for row in rows:
            target_completion(row)
    if stage.kind == "grpo":
        rows = [_with_rewards(row, rewards) for row in rows]
    return rows


def _with_rewards(row: Row, rewards: Mapping[str, Callable[..., Any]]) -> Row:
    """The row, its rewards by the functions' names: it may have them as the recipe does."""
    of_row, most = f"row {row.get('id', row['problem'])!r:.60}", row.get("max_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise UserError(f"{of_row}: its max_tokens is {most!r:.40}, no whole number from 1 on")
    if row.get(APPLIES) is None:
        return row
    titles = [name_of(function) for function in rewards.values()]
    listed = row[APPLIES].split(",") if isinstance(row[APPLIES], str) else row[APPLIES]
    if not isinstance(listed, (list, tuple)) or not all(isinstance(key, str) for key in listed):
        raise UserError(f"{of_row}: its rewards are {listed!r:.40}, no list of names")
    names = [name_of(rewards[key]) if key in rewards else key for key in map(str.strip, listed)]
    for name in names:
        if name not in titles:
            raise unknown("reward of these rows, which the recipe has not", name, rewards)
        if titles.count(name) > 1:
            raise UserError(f"two rewards are functions called {name}: rows cannot name one")
    if not names:
        raise UserError(f"{of_row}: its list of rewards is empty")
    return {**row, APPLIES: names}


def _of_each_task(rows: Sequence[Row], reward: str) -> list[Row]:
    """The first row of each task that the reward applies to."""
    mine = [row for row in rows if applies(reward, row.get(APPLIES))]
    return list({row.get("task"): row for row in reversed(mine)}.values())


def _try_reward(function: Callable[..., Any], row: Row) -> None:
    """Call a reward once on a real row, with its answer (if any) as the completion.

    A function of trl's own form may want chats or plain texts, which one is known only when the
    policy is open: it has to take one of them.
    """
    columns = {key: [value] for key, value in row.items() if key != "completion"}
    columns |= {"completion_ids": [[0]], "trainer_state": TrainerState()}
    columns |= dict.fromkeys(("log_extra", "log_metric"), lambda *logged: None)  # type: ignore[arg-type]
    prompt, answer = row["problem"], str(row.get("answer", ""))
    chat = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
    faults = []
    for asked, said in ((prompt, answer), chat):
        [outcome] = score_batch(function, [said], {**columns, "prompts": [asked]})
        if not isinstance(outcome, Fault):
            return
        faults.append(outcome.message)
        if isinstance(function, Reward):
            break
    raise UserError(f"a trial call failed: {faults[0]}")


# ---------------------------------------------------------------------------- policy and machine


def inspected(recipe: Recipe, work: Work, policy: Policy, folder: Path) -> list[Notice]:
    """The checks of the opened policy and of the machine; those that passed are among them."""
    found = [_disk(recipe, policy, folder), _memory(recipe, policy), _tokens(policy)]
    found.append(_sandbox(recipe))
    if recipe.run.precision == "fp8":
        found.append(_fp8(recipe, policy))
    for stage, rows in zip(recipe.stages, work.rows, strict=True):
        if not isinstance(stage, SampleStage):
            found.append(_rate(recipe, stage, policy))
        if isinstance(stage, GrpoStage):
            found.append(_batch(stage))
        elif rows and not isinstance(stage, SampleStage):
            found.append(_few(stage, len(rows)))
        if isinstance(stage, GrpoStage) and rows:
            found.append(_prompts(recipe, stage, rows, policy))
    return found


def _disk(recipe: Recipe, policy: Policy, folder: Path) -> Notice:
    """Two checkpoints kept and one being written, and a policy a stage and at the end."""
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    trained = _trained(recipe, policy)
    checkpoint = weights + trained * _ADAM_BYTES
    need = 3 * checkpoint + (len(recipe.stages) + 1) * weights
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        said = f"cannot write {folder}: {place} is no folder that can be written to"
        return Notice("disk", "failed", said, "choose another --run.folder")
    free = shutil.disk_usage(place).free
    said = f"{_size(need)} for checkpoints and policies, {_size(free)} free in {place}"
    if need > free:
        return Notice("disk", "failed", said, "make room, or choose another --run.folder")
    if need > 0.5 * free:
        return Notice("disk", "warned", said, "make room, or choose another --run.folder")
    return Notice("disk", "passed", said)


def _memory(recipe: Recipe, policy: Policy) -> Notice:
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
            tokens = max(tokens, rows * 2 * stage.sampling.max_tokens)
    width = 20 * config.num_hidden_layers * config.hidden_size + 2 * min(config.vocab_size, 50_000)
    need += tokens * width * 4
    if not recipe.policy.lora and any(s.kind == "grpo" and s.loss.beta for s in recipe.stages):
        need += weights
    there = _memory_of(choose_device(recipe.run.device))
    if there is None:
        return Notice("memory", "passed", f"about {_size(need)}; what is there is not known")
    said = f"about {_size(need)}, {_size(there)} there"
    mend = "a smaller group.micro_batch or sampling.max_tokens, or policy.lora"
    if weights + trained * (_ADAM_BYTES + 4) > there:
        return Notice("memory", "failed", f"{said}: weights and optimizer alone do not fit", mend)
    return Notice(
        "memory", "warned" if need > 0.9 * there else "passed", said, mend * (need > there)
    )


def _trained(recipe: Recipe, policy: Policy) -> int:
    """How many parameters are trained; an adapter's from its rank, as for square matrices."""
    total = sum(p.numel() for p in policy.model.parameters())
    lora = recipe.policy.lora
    if not lora:
        return int(total)
    hidden = policy.model.config.get_text_config().hidden_size
    return int(total * min(1.0, 2 * lora.rank / hidden))


def _memory_of(device: str) -> int | None:
    """Bytes that are free on the device, or None."""
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
        mend = "give the policy's tokenizer an eos_token"
        return Notice("tokens", "failed", "the tokenizer has no end token: nothing ends", mend)
    vocabulary = policy.model.config.get_text_config().vocab_size
    if end >= vocabulary:
        said = f"the end token {end} is outside the model's {vocabulary} tokens"
        return Notice("tokens", "failed", said, "use the tokenizer that belongs to the model")
    if pad is None:
        return Notice("tokens", "warned", "the tokenizer has no padding token: the end token pads")
    return Notice("tokens", "passed", f"end {end}, padding {pad}")


def _fp8(recipe: Recipe, policy: Policy) -> Notice:
    """Which layers multiply in FP8, and whether the machine does it or we emulate it."""
    by = fp8_backend(policy.device.type, recipe.run.fp8)
    status, said = describe_fp8(policy.model, recipe.run.fp8, by)
    return Notice("precision", status, said, "bf16 or fp32" if status != "passed" else "")


def _sandbox(recipe: Recipe) -> Notice:
    """Rewards that run programs need a sandbox."""
    runs = {"code_tests", "no_hardcode"} & {*recipe.rewards, recipe.evals.reward}
    try:
        strength = str(sandbox.strength())
    except sandbox.SandboxUnavailable as error:
        if runs:
            return Notice("sandbox", "failed", str(error), "see docs/sandbox.md")
        return Notice("sandbox", "passed", "none here, and no reward that needs one")
    return Notice("sandbox", "passed", strength.partition("\n")[0])


def _rate(recipe: Recipe, stage: TrainedStage, policy: Policy) -> Notice:
    """The learning rate beside those that the shipped recipes train with."""
    low, high = _RATES[
        "grpo" if stage.kind == "grpo" else "sft", policy.parameter_counts[0] < _SMALL
    ]
    high *= _LORA_RATE if recipe.policy.lora else 1.0
    said = f"stage {stage.name}: {stage.optim.lr:g}"
    if low <= stage.optim.lr <= high:
        return Notice("learning rate", "passed", said)
    mend = f"recipes of this size train with {low * 10:g} to {high / 10:g}"
    return Notice("learning rate", "warned", said, mend)


def _batch(stage: GrpoStage) -> Notice:
    size, prompts = stage.group.size, stage.group.prompts
    said = f"stage {stage.name}: {prompts} prompts x {size} completions"
    if size < 4 or prompts < 4:
        mend = "with fewer than 4 of either, a step's gradient is mostly noise"
        return Notice("batch", "warned", said, mend)
    return Notice("batch", "passed", said)


def _few(stage: SftStage | DistillStage, rows: int) -> Notice:
    """trl makes a step of what there is."""
    said = f"stage {stage.name}: {rows} rows, {stage.batch} a step"
    if rows < stage.batch:
        return Notice("batch", "warned", f"{said}: every step has all {rows}", "a smaller batch")
    return Notice("batch", "passed", said)


def _prompts(recipe: Recipe, stage: GrpoStage, rows: list[Row], policy: Policy) -> Notice:
    """Prompt and completion have to fit into the positions that the model knows."""
    prompts = [prompt_of(row, recipe.template, policy.tokenizer) for row in rows]
    longest = stage.sampling.max_tokens
    found = long_rows(prompts, rows, longest, policy)
    places = declared_places(policy.model)
    if not found:
        most = max(len(prompt_ids(policy, prompt)) for prompt in prompts[:_LOOKED_AT])
        said = f"stage {stage.name}: up to {most} tokens, completions up to {longest}"
        return Notice("prompts", "passed", said)
    said = (
        f"stage {stage.name}: {len(found)} of {len(rows)} prompts do not fit, with completions up "
        f"to {longest}, into the {places} positions of the policy: "
        f"{named_rows(found, 'row', prompts)}"
    )
    if stage.long_prompts == "skip" and len(found) < len(rows):
        return Notice("prompts", "warned", said, "they are left out")
    mend = "a smaller sampling.max_tokens, shorter rows, or long_prompts: skip"
    return Notice("prompts", "failed", said, mend)


def _size(count: float) -> str:
    return f"{count / (1 << 30):.1f} GB" if count >= 1 << 30 else f"{count / (1 << 20):.0f} MB"
