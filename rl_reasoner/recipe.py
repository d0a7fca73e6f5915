"""The `Recipe`: what one run does, as a frozen pydantic schema, and its errors.

YAML files and Python scripts are the same schema; flags override it by dotted path. A recipe
knows nothing of torch: it is read, checked and shown before anything heavy is imported.
`recipe_source.load_recipe` reads it and gives every mistake at once, each with its place.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from rl_reasoner.algorithms import ALGORITHMS, settings
from rl_reasoner.errors import UserError

# Fields of `Loss` that trl's config has by another name.
TRL_NAMES = {
    "type": "loss_type",
    "ratio": "importance_sampling_level",
    "aggregation": "multi_objective_aggregation",
    "iterations": "num_iterations",
    "kl_ratio": "use_bias_correction_kl",
    "mask_truncated": "mask_truncated_completions",
}
_NAMES = ", ".join(ALGORITHMS)
TEMPLATES = ("auto", "plain", "chat", "boxed", "r1")


def checked_template(template: str) -> str:
    """`template`; raises ValueError when it is no template's name and has no {problem} in it."""
    if template not in TEMPLATES and "{problem}" not in template:
        raise ValueError(
            f"template {template!r} is none of {', '.join(TEMPLATES)} and has no {{problem}} in it"
        )
    return template


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which `1e-6` is a number, as in Python; YAML 1.1 asks for a point in it."""


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads back, with the characters that YAML folds escaped."""


def _text(dumper: RecipeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeDumper.add_representer(str, _text)
for _kind in (RecipeLoader, RecipeDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"),
        list("-+0123456789"),
    )


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Lora(_Part):
    """A low-rank adapter (peft) instead of training all weights."""

    rank: int = Field(default=16, ge=1, description="rank r of the update")
    alpha: int = Field(default=32, ge=1, description="the update is scaled by alpha / rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout before the update")
    targets: str | tuple[str, ...] = Field(
        default="all-linear",
        description="layers' names, or 'all-linear': linear layers and experts, not the router",
    )


class PolicySpec(_Part):
    """Which policy is trained."""

    source: str = Field(
        description="scratch:moe-tiny (or deepseek-tiny, dense-tiny), folder, .gguf file, hub id"
    )
    lora: Lora | None = Field(
        default=None, description="train a low-rank adapter, merged at the end of each stage"
    )


class _Source(_Part):
    """Where rows come from, and how they are asked and judged in training."""

    rewards: tuple[str, ...] | None = Field(
        default=None,
        description="grpo: the recipe's rewards that these rows get (default: the rows' own column "
        "`rewards`, else all)",
    )
    template: Annotated[str, AfterValidator(checked_template)] | None = Field(
        default=None, description="prompt template of these rows (default: the recipe's)"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="grpo: longest completion of these rows, if shorter"
    )
    share: float | None = Field(
        default=None, gt=0, description="in a mix: their part of it, held against the others'"
    )


class TaskData(_Source):
    """Rows drawn from one of the built-in task generators (`rl_reasoner.tasks`)."""

    task: str = Field(description="name of a generator, see `rl-reasoner list tasks`")
    split: Literal["train", "validation", "test", "ood"] = "train"
    count: int = Field(default=2000, ge=1, description="how many distinct problems")
    seed: int = Field(default=0, description="seed of the draw")
    levels: tuple[int, int] | None = Field(
        default=None, description="smallest and largest level (problem size), both included"
    )
    direct: float = Field(
        default=0.0, ge=0, le=1, description="sft: share of rows without a chain of thought"
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="sft: share of random steps, or of wrong programs"
    )


class FileData(_Source):
    """Rows from a JSONL, CSV or Parquet file, a shipped set, or a hub data set."""

    path: str = Field(description="a file, the name of a set, or a hub id")
    config: str | None = Field(default=None, description="hub data sets: configuration name")
    split: str = Field(default="train", description="hub data sets: split")
    columns: Mapping[str, str] = Field(
        default_factory=dict,
        description="our column (problem, answer, completion …) -> the column of the file",
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first rows")
    on_bad_row: Literal["skip", "stop"] = Field(
        default="stop", description="what to do about rows that the lint finds bad"
    )


def _data_kind(value: Any) -> str:
    keys = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    return "mix" if "mix" in keys else "task" if "task" in keys else "file"


def _data(value: Any) -> Any:
    """A name stands for its file, a list for the mix of its entries."""
    if isinstance(value, str):
        return {"path": value}
    return {"mix": value} if isinstance(value, (list, tuple)) else value


class MixData(_Part):
    """Rows of several sources together, such as maths, code and instructions.

    With shares (of all sources or of none), each source has that part of the rows, whose number
    stays the sum of the sources': some rows are repeated, others left out.
    """

    mix: tuple[
        Annotated[
            Annotated[TaskData, Tag("task")] | Annotated[FileData, Tag("file")],
            Discriminator(_data_kind),
            BeforeValidator(_data),
        ],
        ...,
    ] = Field(min_length=1, description="the sources, each with its rewards, template and share")

    @model_validator(mode="after")
    def _shared(self) -> Self:
        given = sum(source.share is not None for source in self.mix)
        if given not in (0, len(self.mix)):
            raise ValueError(f"{given} of its {len(self.mix)} sources have a share: all or none")
        return self


Data = Annotated[
    Annotated[TaskData, Tag("task")]
    | Annotated[FileData, Tag("file")]
    | Annotated[MixData, Tag("mix")],
    Discriminator(_data_kind),
    BeforeValidator(_data),
]


class RewardSpec(_Part):
    """One reward of the sum that GRPO maximises."""

    weight: float = Field(default=1.0, description="factor in the total reward")
    options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of the reward function"
    )


class Optim(_Part):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(default=1e-6, gt=0, description="peak learning rate")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    final: float = Field(
        default=0.0, ge=0, lt=1, description="linear schedule: share of lr at the end"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas")
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0, description="gradient norm is clipped to this")


class Group(_Part):
    """Batch of one GRPO step: `prompts` prompts with `size` completions each."""

    size: int = Field(default=8, ge=2, description="completions a prompt (G in the GRPO paper)")
    prompts: int = Field(default=16, ge=1, description="prompts a step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="completions in one forward pass (default: all of the step)"
    )
    schedule: bool = Field(
        default=False, description="draw prompts that are neither too easy nor too hard more often"
    )


class Sampling(_Part):
    """How completions are sampled in training."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 = no limit")
    max_tokens: int = Field(default=256, ge=1, description="longest completion, in tokens")


class Loss(_Part):
    """The GRPO loss, and the algorithm it belongs to; values as in trl.

    A named algorithm sets the fields that are left out, and refuses those that contradict it.
    """

    algorithm: str | None = Field(
        default=None, description=f"sets the fields below as its paper does: {_NAMES}"
    )
    type: Literal["dapo", "grpo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"] = Field(
        default="dapo", description="trl's loss_type: how the loss of the tokens is averaged"
    )
    ratio: Literal["token", "sequence"] = Field(
        default="token", description="one ratio to the sampling policy a token, or a completion"
    )
    epsilon: float = Field(default=0.2, gt=0, description="lower clip range of the ratio")
    epsilon_high: float | None = Field(default=None, gt=0, description="upper clip range")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="whose standard deviation divides the advantages"
    )
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        default="sum_then_normalize", description="several rewards: normalised together, or each"
    )
    iterations: int = Field(default=1, ge=1, description="optimisation passes over one batch")
    beta: float = Field(default=0.0, ge=0, description="KL coefficient; 0 = no reference policy")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="how the KL is estimated at a token"
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss", description="where beta times the KL stands"
    )
    kl_ratio: bool = Field(
        default=True, description="in the loss: times the ratio, for an unbiased gradient of k3"
    )
    mask_truncated: bool = Field(
        default=False, description="overlong filtering: cut-off completions do not train"
    )
    overlong_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="soft overlong punishment over this last share of max_tokens; 0 = off",
    )
    dynamic_sampling: int = Field(
        default=0, ge=0, description="rounds in which groups of equal rewards are replaced; 0 = off"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        name = data.get("algorithm") if isinstance(data, Mapping) else None
        if not isinstance(name, str):
            return data
        own = {field: TRL_NAMES.get(field, field) for field in cls.model_fields}
        said = {own[field]: value for field, value in data.items() if field in own}
        ours = {trl: field for field, trl in own.items()}
        try:
            found = settings(name, said, ours)
        except UserError as error:
            raise ValueError(str(error)) from error
        return {**data, **{ours[trl]: value for trl, value in found.items()}}


class _Stage(_Part):
    name: str = Field(default="", description="its name and folder (default: its kind)")
    steps: int = Field(default=100, ge=1, description="optimiser steps")
    optim: Optim = Optim()
    router_aux: float | None = Field(
        default=None, ge=0, description="MoE load-balancing coefficient (default: the model's own)"
    )
    router_bias: float = Field(
        default=0.0, ge=0, description="MoE: step of DeepSeek's bias update (1e-3 there); 0 = off"
    )
    freeze_router: bool = Field(default=False, description="MoE: do not train the routers")
    save_every: int = Field(default=100, ge=1, description="steps between checkpoints")
    trainer: Mapping[str, Any] = Field(
        default_factory=dict, description="further arguments of trl's config class, by name"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if not self.name:
            object.__setattr__(self, "name", self.kind)  # type: ignore[attr-defined]
        return self

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not name.replace("-", "").replace("_", "").isalnum() and name:
            raise ValueError("use letters, digits, - and _ only: it becomes a folder's name")
        return name


class SftStage(_Stage):
    """Supervised fine-tuning on completions (trl's SFTTrainer)."""

    kind: Literal["sft"] = "sft"
    data: Data | None = Field(default=None, description="rows with completions")
    batch: int = Field(default=64, ge=1, description="rows a step")
    micro_batch: int | None = Field(default=None, ge=1, description="rows in one forward pass")
    optim: Optim = Optim(lr=1e-5)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch")
        return self


class GrpoStage(_Stage):
    """Group-relative policy optimization (DeepSeekMath, arXiv 2402.03300) on the rewards."""

    kind: Literal["grpo"] = "grpo"
    data: Data | None = Field(default=None, description="prompts (default: the recipe's)")
    group: Group = Group()
    sampling: Sampling = Sampling()
    loss: Loss = Loss()
    router_replay: bool = Field(
        default=True, description="MoE: train with the experts that each completion was sampled by"
    )
    router_sequence: float = Field(
        default=0.0, ge=0, description="MoE: coefficient of DeepSeek's sequence-wise balancing loss"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        batch, micro = self.group.size * self.group.prompts, self.group.micro_batch
        if micro and batch % micro:
            raise ValueError(
                f"group.size {self.group.size} x group.prompts {self.group.prompts} = {batch} "
                f"completions a step, which is not a multiple of group.micro_batch {micro}"
            )
        return self


Stage = Annotated[SftStage | GrpoStage, Field(discriminator="kind")]


class Asked(_Part):
    """How one evaluation set is asked, where the recipe's own way does not suit it."""

    template: Annotated[str, AfterValidator(checked_template)] | None = Field(
        default=None, description="its prompt template (default: the recipe's)"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="its longest completion (default: evals.max_tokens)"
    )


class Evals(_Part):
    """Evaluations: before the first GRPO stage, after the last stage, and while training."""

    sets: tuple[str, ...] = Field(default=(), description="sets evaluated before and after")
    samples: int = Field(default=0, ge=0, description="also sample so many completions")
    temperature: float = Field(default=1.0, gt=0, description="temperature of those samples")
    forced: bool = Field(
        default=False, description="also with the chain of thought forced, and with it left out"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many problems a set")
    max_tokens: int = Field(default=256, ge=1, description="longest completion, in tokens")
    asked: Mapping[str, Asked] = Field(
        default_factory=dict, description="set -> its own template and max_tokens"
    )
    reward: str | None = Field(
        default=None, description="the reward that judges (default: what the rows themselves say)"
    )
    reward_options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of that reward"
    )
    validation: str | None = Field(default=None, description="set evaluated while GRPO trains")
    every: int = Field(default=10, ge=1, description="steps between evaluations on `validation`")


class RunSpec(_Part):
    """Where and how the run happens."""

    seed: int = 0
    folder: str | None = Field(
        default=None, description="the run's folder (default: runs/NAME-TIME)"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"


def _rewards(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        name: {"weight": spec} if isinstance(spec, (int, float)) else spec
        for name, spec in value.items()
    }


class Recipe(_Part):
    """One run: a policy, its data and rewards, and the stages it goes through.

    Raises pydantic's `ValidationError` with all mistakes; `load_recipe` turns it into a
    `UserError` whose messages name file and line.
    """

    name: str = Field(default="run", description="name of the run, part of its folder's name")
    policy: Annotated[
        PolicySpec,
        BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v),
    ] = Field(description="the policy that is trained")
    data: Data | None = Field(
        default=None, description="the rows that stages without data of their own use"
    )
    template: Annotated[str, AfterValidator(checked_template)] = Field(
        default="auto",
        description="prompt template: auto, plain, chat, boxed, r1, or a text with {problem}",
    )
    rewards: Annotated[Mapping[str, RewardSpec], BeforeValidator(_rewards)] = Field(
        default_factory=dict, description="reward -> weight, or {weight, options}"
    )
    stages: tuple[Stage, ...] = Field(description="what is done, in order")
    evals: Evals = Evals()
    run: RunSpec = RunSpec()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.stages:
            raise ValueError("stages is empty: a recipe needs at least one stage")
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        for stage in self.stages:
            if stage.data is None and self.data is None:
                raise ValueError(f"stage {stage.name!r} has no data: give data to it or the recipe")
            if stage.kind == "grpo" and not self.rewards:
                raise ValueError(f"stage {stage.name!r} is a grpo stage: the recipe needs rewards")
        return self

    def data_of(self, stage: SftStage | GrpoStage) -> TaskData | FileData | MixData:
        """The rows that `stage` uses: its own, else the recipe's."""
        data = stage.data or self.data
        assert data is not None  # checked by the validator
        return data

    def to_yaml(self) -> str:
        """The resolved recipe as YAML: every field, with its value."""
        data = self.model_dump(mode="json")
        return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
