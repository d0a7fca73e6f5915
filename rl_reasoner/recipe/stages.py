"""The part of the recipe's schema that says what is done: the kinds of stages.

Each kind has a class of its fields; `pipeline.trl_configs` and `pipeline.stage_trainers` give them
to the trainers. Knows nothing of torch.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rl_reasoner.errors import UserError
from rl_reasoner.recipe.algorithms import ALGORITHMS, algorithm_settings
from rl_reasoner.recipe.data import Data, JudgeName, Part, off_for_false
from rl_reasoner.recipe.group import Group
from rl_reasoner.recipe.keep import Keep
from rl_reasoner.recipe.optim import Optim, SftOptim

# What `start` and evaluations are called that are no stage's.
RESERVED = ("base", "before", "after")
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
# What `max_tokens: auto` may come to: multiples of the one, up to the other.
AUTO_STEP = 64
AUTO_MOST = 1024


def _max_tokens(value: Any) -> Any:
    """A whole number, also as text, or "auto"; raises ValueError for anything else."""
    if value == "auto":
        return value
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[-+]?\d+(\.0*)?", text):
        raise ValueError("expected a whole number, or auto")
    if (number := int(float(text))) < 1:
        raise ValueError("expected at least 1, or auto")
    return number


MaxTokens = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(_max_tokens)]
"""The longest completion, in tokens; or "auto": what the rehearsal of the stage finds."""


class FilterSampling(Part):
    """How the completions of a filter stage are sampled."""

    temperature: float = Field(default=1.0, gt=0)
    max_tokens: MaxTokens = Field(
        default=512,
        description="longest completion, in tokens; auto: the smallest multiple of 64 that cuts "
        "off at most 5% of sampled ones, up to 1024",
    )

    @property
    def longest(self) -> int:
        """The most tokens that a completion may have; for auto the most that it may come to."""
        return AUTO_MOST if self.max_tokens == "auto" else self.max_tokens

    @property
    def needed(self) -> int:
        """The tokens that a prompt has to leave room for; auto takes what there is."""
        return AUTO_STEP if self.max_tokens == "auto" else self.max_tokens

    @property
    def shares(self) -> dict[str, Any]:
        """What shapes the distribution that a token is drawn from, as a sampler's arguments."""
        return {"temperature": self.temperature}


class Sampling(FilterSampling):
    """How completions are sampled in training."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0 = no limit")

    @property
    def shares(self) -> dict[str, Any]:
        """See `FilterSampling`."""
        return {**super().shares, "top_p": self.top_p, "top_k": self.top_k}


class GrpoSampling(Sampling):
    """How completions are sampled in a grpo stage, and from which weights."""

    weights: Literal["auto", "own", "bfloat16", "int8"] = Field(
        default="auto",
        description="sample with the policy's own weights, with copies in bf16 or int8 (corrected "
        "by importance), or (auto) with bf16 where it is large and the processor has it",
    )
    keep_mask: bool = Field(
        default=False,
        description="train the policy on the set of tokens that top_p or top_k left to draw from, "
        "not on all: the gradient of what was drawn; our engine samples",
    )


class Vllm(Part):
    """Sampling by vLLM; fields that are left out are trl's defaults.

    A server gets the weights through trl (NCCL; `trl vllm-serve`), or by files (`vllm serve`):
    where `folder` is given, and where there is no GPU or no vLLM in the trainer's environment.
    """

    mode: Literal["colocate", "server"] = Field(
        default="colocate", description="on the training's GPUs, or behind a server"
    )
    url: str | None = Field(default=None, description="server: its address, http://HOST:PORT")
    folder: str | None = Field(
        default=None,
        description="server: a folder that it sees under the same path; weights go through it "
        "(where it gets files and none is given: one in the run's folder)",
    )
    timeout_s: float = Field(
        default=600.0,
        gt=0,
        description="server that gets files: seconds for a reply, and for it to come back if gone",
    )
    memory: float = Field(
        default=0.3, gt=0, lt=1, description="colocate: share of a GPU's memory for vLLM"
    )
    gpus: int = Field(default=1, ge=1, description="colocate: GPUs per engine (tensor parallel)")
    sleep: bool = Field(
        default=True, description="colocate: free that memory while the policy trains"
    )
    correction: Annotated[
        Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "off"],
        BeforeValidator(off_for_false),
    ] = Field(
        default="token_truncate",
        description="importance-sampling correction, since vLLM's log-probs differ from the "
        "trainer's",
    )
    clip_max: float = Field(default=2.0, gt=1, description="largest weight of that correction")

    @model_validator(mode="after")
    def _placed(self) -> Self:
        given = self.model_fields_set & {"memory", "gpus", "sleep"}
        if self.mode == "server" and not self.url:
            raise ValueError("mode server needs url: the address that the server printed")
        if self.mode == "server" and any(
            getattr(self, name) != type(self).model_fields[name].default for name in given
        ):
            raise ValueError(
                "memory, gpus and sleep are settings of the server: give them where it is started"
            )
        if self.mode == "colocate" and (self.url or self.folder):
            raise ValueError(f"{'url' if self.url else 'folder'} belongs to mode server")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r}: expected an address such as http://localhost:8000")
        return self


class Loss(Part):
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
        default="token", description="one ratio to the sampling policy per token, or per completion"
    )
    epsilon: float = Field(default=0.2, gt=0, description="lower clip range of the ratio")
    epsilon_high: float | None = Field(default=None, gt=0, description="upper clip range")
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group",
        description="standard deviation that divides the advantages: of the group, the "
        "batch, or none",
    )
    positive_advantage_weight: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="multiply positive advantages by this; less than 1 weighs what was wrong more",
    )
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = Field(
        default="sum_then_normalize",
        description="several rewards: normalise their sum, or each before summing",
    )
    iterations: int = Field(default=1, ge=1, description="optimisation passes over one batch")
    beta: float = Field(default=0.0, ge=0, description="KL coefficient; 0 = no reference policy")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="estimator of the KL of a token"
    )
    kl_in: Literal["loss", "reward"] = Field(
        default="loss", description="apply beta times the KL in the loss or in the reward"
    )
    kl_ratio: bool = Field(
        default=True,
        description="KL in the loss: multiply by the ratio, so that k3's gradient is unbiased",
    )
    mask_truncated: bool = Field(
        default=False, description="overlong filtering: leave cut-off completions out of the loss"
    )
    overlong_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="soft overlong punishment over this last share of max_tokens; 0 = off",
    )
    dynamic_sampling: int = Field(
        default=0,
        ge=0,
        description="most rounds per batch in which groups of equal rewards are replaced; 0 = off",
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        name = data.get("algorithm") if isinstance(data, Mapping) else None
        if not isinstance(name, str):
            return data
        own = {field: TRL_NAMES.get(field, field) for field in cls.model_fields}
        given = {own[field]: value for field, value in data.items() if field in own}
        ours = {trl: field for field, trl in own.items()}
        try:
            fields = algorithm_settings(name, given, ours)
        except UserError as error:
            raise ValueError(str(error)) from error
        return {**data, **{ours[trl]: value for trl, value in fields.items()}}


class _Stage(Part):
    """What every stage has: a name, and where it starts.

    Stages are a list; each starts from the one before it, unless `start` names another. So they
    are a graph whose edges are `start`, the stages that data come from, and the teacher.
    """

    name: str = Field(default="", description="its name and folder (default: its kind)")
    start: str | None = Field(
        default=None,
        description="the stage whose policy it starts from (default: the one before it), or "
        "'base': the recipe's policy",
    )
    reuse: str | None = Field(
        default=None, description="your own folder, used instead of running this stage"
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
            raise ValueError("use only letters, digits, - and _: it becomes a folder's name")
        if name in RESERVED:
            raise ValueError(f"the names {', '.join(RESERVED)} are reserved")
        return name


class _Trained(_Stage):
    policy: str | None = Field(
        default=None,
        description="start from this policy, such as a student, instead of an earlier stage's",
    )
    steps: int = Field(default=100, ge=1, le=10_000_000, description="optimiser steps")
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

    @field_validator("trainer")
    @classmethod
    def _finite(cls, trainer: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in trainer.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: expected a finite number")
        return trainer

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.policy and self.start:
            raise ValueError("give either `policy` or `start`, not both")
        return self


class SftStage(_Trained):
    """Supervised fine-tuning on completions (trl's SFTTrainer)."""

    kind: Literal["sft"] = "sft"
    data: Data | None = Field(default=None, description="rows with completions")
    batch: int = Field(default=64, ge=1, description="rows per step")
    micro_batch: int | None = Field(default=None, ge=1, description="rows in one forward pass")
    optim: SftOptim = SftOptim()

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch")
        return self


class GrpoStage(_Trained):
    """Group-relative policy optimization (DeepSeekMath, arXiv 2402.03300) on the rewards."""

    kind: Literal["grpo"] = "grpo"
    data: Data | None = Field(default=None, description="prompts (default: the recipe's)")
    group: Group = Group()
    sampling: GrpoSampling = GrpoSampling()
    loss: Loss = Loss()
    long_prompts: Literal["stop", "skip"] = Field(
        default="stop",
        description="rows whose prompt and completion exceed the policy's positions: stop before "
        "the run, or skip them",
    )
    vllm: Vllm | None = Field(default=None, description="sample by vLLM instead of in the trainer")
    router_replay: bool = Field(
        default=True,
        description="MoE: train with the experts that sampling chose for each completion",
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
                f"completions per step, which is not a multiple of group.micro_batch {micro}"
            )
        return self


class SampleStage(_Stage):
    """Rejection sampling: sample completions from the policy so far, and keep the right ones.

    They become a data set, `data.jsonl` in the stage's folder, with its card.
    """

    kind: Literal["sample"] = "sample"
    data: Data | None = Field(default=None, description="prompts (default: the recipe's)")
    samples: int = Field(default=4, ge=1, description="completions per prompt")
    sampling: Sampling = Sampling()
    reward: JudgeName = Field(
        default=None, description="the reward that judges completions (default: as the rows ask)"
    )
    reward_options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of that reward"
    )
    min_score: float = Field(
        default=1.0, description="completions with this score or more are right"
    )
    keep: Keep = Keep()


def rate_range(text: str) -> tuple[float, float]:
    """(lowest, highest) pass rate of a range, both included, such as "0.2..0.8".

    Raises ValueError for what is not a range within 0 to 1.
    """
    low, _, high = text.partition("..")
    try:
        lowest, highest = float(low), float(high)
    except ValueError:
        lowest, highest = 1.0, 0.0
    if 0 <= lowest <= highest <= 1:
        return lowest, highest
    numbers = sorted(float(number) for number in re.findall(r"\d+(?:\.\d+)?", text))
    share = 100 if numbers and 1 < numbers[-1] <= 100 else 1  # it may be in percent
    fits = len(numbers) == 2 and numbers[-1] / share <= 1
    near = "..".join(f"{number / share:g}" for number in numbers) if fits else "0.2..0.8"
    raise ValueError(
        f"{text!r} is not a range of pass rates: expected LOW..HIGH from 0 to 1, such as {near}"
    )


def check_range(text: str, samples: int) -> None:
    """Raise ValueError for a range that no rate of so many samples lies in."""
    low, high = rate_range(text)
    if not any(low <= passed / samples <= high for passed in range(samples + 1)):
        raise ValueError(
            f"no pass rate of {samples} samples is in {text}: take more samples, or a wider range"
        )


def _rate_range(text: str) -> str:
    rate_range(text)
    return text


class FilterStage(_Stage):
    """Filtering by difficulty: sample each row several times, keep rows of medium pass rates.

    The rows that are kept, with their pass rates, are `data.jsonl` in the stage's folder. They are
    the data of the stages after it that name none of their own.
    """

    kind: Literal["filter"] = "filter"
    data: Data | None = Field(default=None, description="rows (default: the recipe's)")
    samples: int = Field(default=8, ge=1, description="completions per row")
    keep: Annotated[str, AfterValidator(_rate_range)] = Field(
        default="0.2..0.8", description="pass rates of the rows that are kept, both ends included"
    )
    sampling: FilterSampling = FilterSampling()
    reward: JudgeName = Field(
        default=None, description="the reward that judges completions (default: as the rows ask)"
    )
    reward_options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of that reward"
    )
    min_score: float = Field(default=1.0, description="completions with this score or more pass")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        check_range(self.keep, self.samples)
        return self


class DistillStage(_Trained):
    """On-policy distillation (arXiv 2306.13649): the student samples, the teacher corrects.

    trl's DistillationTrainer. To distil by the teacher's samples, as R1 did, is an `sft` stage with
    a `policy` of its own on the data of a `sample` stage.
    """

    kind: Literal["distill"] = "distill"
    teacher: str = Field(description="a stage, or a policy: folder, .gguf file, hub id, scratch:…")
    data: Data | None = Field(default=None, description="prompts (default: the recipe's)")
    batch: int = Field(default=16, ge=1, description="prompts per step, one completion each")
    sampling: Sampling = Sampling()
    beta: float = Field(
        default=1.0, ge=0, le=1, description="1 = reverse KL, 0 = forward KL, between: their mix"
    )

    @model_validator(mode="after")
    def _balanced(self, info: ValidationInfo) -> Self:
        if self.router_aux and not (info.context or {}).get("of_run"):
            raise ValueError(
                "router_aux belongs to sft and grpo: the loss of distillation has no such term; "
                "router_bias balances the experts without one"
            )
        return self


Stage = Annotated[
    SftStage | GrpoStage | SampleStage | FilterStage | DistillStage, Field(discriminator="kind")
]
TrainedStage = SftStage | GrpoStage | DistillStage
SampledStage = GrpoStage | SampleStage | FilterStage | DistillStage
"""The stages that sample completions."""
RowStage = SampleStage | FilterStage
"""The stages that make rows, and no policy."""


_Sampled = TypeVar("_Sampled", bound=SampledStage)


def with_max_tokens(stage: _Sampled, longest: int) -> _Sampled:
    """`stage` with completions of up to `longest` tokens."""
    sampling = stage.sampling.model_copy(update={"max_tokens": longest})
    return cast(_Sampled, stage.model_copy(update={"sampling": sampling}))
