"""The `Recipe`: what one run does, as a frozen pydantic schema, and its errors.

YAML files and Python scripts are the same schema; flags override it by dotted path. A recipe
knows nothing of torch: it is read, checked and shown before anything heavy is imported.
`load.load_recipe` reads it and reports every mistake at once, each with its place.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)

from rl_reasoner.errors import did_you_mean
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.recipe.data import (
    AnyData,
    Data,
    JudgeName,
    Part,
    StageData,
    checked_template,
    data_sources,
)
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.recipe.hacking_meter import HackingMeterSettings
from rl_reasoner.recipe.old_names import current_fields
from rl_reasoner.recipe.stages import (
    AUTO_MOST,
    DistillStage,
    GrpoStage,
    MaxTokens,
    RowStage,
    Stage,
)
from rl_reasoner.recipe.tools import ToolSettings


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which `1e-6` is a number, as in Python; YAML 1.1 asks for a point in it."""


class RecipeDumper(yaml.SafeDumper):
    """Writes what `RecipeLoader` reads back, with the characters that YAML folds escaped."""


_BLOCK = re.compile(r"[!-~][ -~]*\n(?:(?:[ -~]*[!-~])?\n)*")


def _text(dumper: RecipeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\x85\u2028\u2029") else None
    if _BLOCK.fullmatch(text):
        style = "|"  # the source of a reward, to be read
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeDumper.add_representer(str, _text)
for _kind in (RecipeLoader, RecipeDumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+\Z"),
        list("-+0123456789"),
    )


class PolicySpec(Part):
    """Which policy is trained."""

    source: str = Field(
        description="scratch:moe-tiny (or deepseek-tiny, dense-tiny), folder, .gguf file, hub id"
    )
    lora: Lora | None = Field(
        default=None, description="train a low-rank adapter, merged at the end of each stage"
    )


class RewardSpec(Part):
    """One reward of the sum that GRPO maximises."""

    weight: float = Field(default=1.0, ge=-1e6, le=1e6, description="factor in the total reward")
    options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of the reward function"
    )
    optional: bool | None = Field(
        default=None,
        description="a fault or abstention adds 0 to a row, instead of taking the row out of its "
        "group (default: the reward's own setting, else false)",
    )
    on_abstain: Literal["leave", "ignore"] | None = Field(
        default=None,
        description="where it abstains: the row leaves its group, or keeps its other rewards "
        "(default: the reward's own setting, else leave; ignore for functions in trl's form)",
    )
    source: str | None = Field(
        default=None,
        description="source of a reward that was defined in a script or notebook; filled in "
        "automatically",
    )


class EvalOverrides(Part):
    """Settings of one evaluation set that differ from the recipe's."""

    template: Annotated[str, AfterValidator(checked_template)] | None = Field(
        default=None, description="its prompt template (default: the recipe's)"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, description="its longest completion (default: evals.max_tokens)"
    )


class Evals(Part):
    """Evaluations: before the first GRPO stage, after the last stage, and while training."""

    sets: tuple[str, ...] = Field(default=(), description="sets evaluated before and after")
    samples: int = Field(default=0, ge=0, description="also sample this many completions")
    temperature: float = Field(default=1.0, gt=0, description="temperature of those samples")
    forced: bool = Field(
        default=False,
        description="also evaluate with the chain of thought forced, and with it left out",
    )
    limit: int | None = Field(default=None, ge=1, description="at most this many problems per set")
    max_tokens: MaxTokens = Field(
        default=512,
        description="longest completion, in tokens; auto: that of the first grpo stage",
    )
    overrides: Mapping[str, EvalOverrides] = Field(
        default_factory=dict, description="set -> its own template and max_tokens"
    )
    reward: JudgeName = Field(
        default=None, description="the reward that judges completions (default: as the rows ask)"
    )
    reward_options: Mapping[str, Any] = Field(
        default_factory=dict, description="options of that reward"
    )
    weights: Literal["own", "auto", "bfloat16", "int8"] = Field(
        default="own",
        description="sample with the policy's own weights, or with copies in bf16 or int8: faster "
        "on a CPU, rounded",
    )
    stages: bool = Field(
        default=False,
        description="also evaluate after each stage (evals/NAME.json), and the recipe's own "
        "policy (base)",
    )
    validation: str | None = Field(default=None, description="set evaluated while GRPO trains")
    every: int = Field(default=10, ge=1, description="steps between evaluations on `validation`")

    @property
    def longest(self) -> int:
        """The most tokens that a completion may have; for auto the most that it may come to."""
        return AUTO_MOST if self.max_tokens == "auto" else self.max_tokens

    def facts(self) -> dict[str, Any]:
        """What decides an evaluation's result, as JSON values."""
        facts = self.model_dump(mode="json", exclude={"stages", "validation", "every"})
        if self.weights == "own":
            del facts["weights"]  # results from before there was the field are still of use
        return facts


class RunSpec(Part):
    """Where and how the run happens."""

    seed: int = Field(default=0, ge=0, le=2**32 - 1)  # more than that numpy does not take
    folder: str | None = Field(
        default=None, description="the run's folder (default: runs/NAME-TIME)"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = Field(
        default="auto",
        description="of training; fp16: for cards without bf16, with a scaled loss; fp8: linear "
        "layers and experts in FP8 (emulated on machines without it), the rest in bf16",
    )
    fp8: Literal["tensor", "row", "block"] = Field(
        default="block", description="fp8: granularity of the scales; block is DeepSeek-V3's"
    )
    parallel: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = Field(
        default="auto",
        description="several processes: how weights are distributed; auto: as the launcher is set",
    )
    rewards_on: Literal["here", "ray"] = Field(
        default="here", description="where rewards, programs and verifications run in training"
    )
    report_to: str = Field(
        default="auto",
        description="dashboards: trackio, tensorboard, wandb, separated by commas; or none; auto: "
        "trackio if it is installed",
    )


ControlName = Literal["random_reward", "form_only"]


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} occurs twice: each arm is trained once")
    return names


def _no_stage(stage: str, field: str, name: str, known: list[str]) -> str:
    kind = "sample or filter stage" if field == "data.stage" else "stage with a policy"
    hint = did_you_mean(name, known) or f" There are: {', '.join(known) or 'none'}."
    return f"stage {stage!r}: {field}: no {kind} {name!r} before it.{hint}"


def _rewards(value: Any) -> Any:
    """Names and functions, in a list or with weights, as names with specs."""
    if isinstance(value, (list, tuple)):
        for one in value:
            if not isinstance(one, str) and not callable(one):
                raise ValueError(
                    f"{one!r:.40} is not the name of a reward: expected a list of names, or a "
                    "mapping such as {math_answer: 1, length: 0.2}"
                )
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, Mapping):
        return value
    specs: dict[Any, Any] = {}
    for key, spec in value.items():
        number = isinstance(spec, (int, float)) and not isinstance(spec, bool)
        spec = {"weight": spec} if number else spec
        name, spec = _of_function(key, spec) if callable(key) else (key, spec)
        if name in specs:
            raise ValueError(f"two rewards are called {name}: rename one of them")
        specs[name] = spec
    return specs


def _of_function(fn: Any, spec: Any) -> tuple[str, Any]:
    """Name and spec of a reward that is given as a function: with its text where it needs that."""
    from rl_reasoner.scoring.source import reference_of  # recipes are mostly read without it

    name, source = reference_of(fn)
    if not isinstance(spec, (Mapping, RewardSpec)):
        return name, spec  # what it has to be is told with its place
    spec = spec.model_dump(exclude_unset=True) if isinstance(spec, RewardSpec) else dict(spec)
    options = {**getattr(fn, "options", {}), **spec.get("options", {})}
    return name, {**spec, "options": options, "source": source}


def _own_names(rewards: Mapping[str, RewardSpec]) -> Mapping[str, RewardSpec]:
    """Raise ValueError where a reward that brings its text has the name of one that is elsewhere.

    Who rescores a run of others by that name means the one they know, not the text of the run.
    """
    for name in [name for name, spec in rewards.items() if spec.source is not None]:
        from rl_reasoner.scoring.registry import named_rewards  # recipes are mostly read without it

        if not name.isidentifier() or name in named_rewards():
            raise ValueError(f"there is already a reward {name}: rename yours")
    return rewards


class Recipe(Part):
    """One run: a policy, its data and rewards, and the stages it goes through.

    Raises pydantic's `ValidationError` with all mistakes; `load_recipe` turns it into a
    `UserError` whose messages name file and line.
    """

    name: str = Field(default="run", description="name of the run, part of its folder's name")
    policy: Annotated[
        PolicySpec, BeforeValidator(lambda v: {"source": v} if isinstance(v, str) else v)
    ] = Field(description="the policy that is trained")
    data: Data | None = Field(default=None, description="default data of the stages")
    template: Annotated[str, AfterValidator(checked_template)] = Field(
        default="auto",
        description="prompt template: auto, plain, chat, boxed, r1, or a text with {problem}",
    )
    system: str | None = Field(
        default=None, description="system prompt of chats, for rows without their own"
    )
    rewards: Annotated[
        Mapping[str, RewardSpec], BeforeValidator(_rewards), AfterValidator(_own_names)
    ] = Field(
        default_factory=dict,
        description="reward -> weight, or {weight, options, optional, on_abstain}; a reward is a "
        "name, in Python also a function",
    )
    tools: ToolSettings | None = Field(
        default=None,
        description="what the policy may call in the middle of a completion: a list of names, or "
        "{use, format, calls, timeout_s, memory_mb, output_chars}",
    )
    environment: EnvironmentSettings | None = Field(
        default=None,
        description="what answers the policy, turn by turn: a name, or {use, options, turns, "
        "seconds, timeout_s, memory_mb, output_chars, processes}; the reward `environment` is "
        "what it pays",
    )
    stages: tuple[Stage, ...] = Field(description="the stages, in order")
    controls: Annotated[
        tuple[ControlName, ...],
        BeforeValidator(lambda v: (v,) if isinstance(v, str) else v),
        AfterValidator(_once),
    ] = Field(
        default=(),
        description="control arms: the last grpo stage again, from the same policy, with the same "
        "seed and data, and a reward that is drawn at random (random_reward) or that only checks "
        "the answer's form (form_only); the run is compared with them",
    )
    evals: Evals = Evals()
    hacking_meter: HackingMeterSettings = HackingMeterSettings()
    run: RunSpec = RunSpec()

    @model_validator(mode="wrap")
    @classmethod
    def _take_old_names(
        cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        return handler(current_fields(data, note=not (info.context or {}).get("of_run")))

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if not self.stages:
            raise ValueError("stages is empty: a recipe needs at least one stage")
        if self.system and self.template not in ("auto", "chat", "boxed"):
            raise ValueError(
                f"system: the template {self.template!r} makes plain text, which has no system "
                "prompt: use auto, chat or boxed, or write it into your own template"
            )
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have the same name: {', '.join(names)}")
        for index, stage in enumerate(self.stages):
            if stage.data is None and self.data is None and self._filter_before(stage) is None:
                raise ValueError(
                    f"stage {stage.name!r} has no data: give data to it or to the recipe"
                )
            if stage.kind == "grpo" and not self.rewards:
                raise ValueError(f"stage {stage.name!r} is a grpo stage: the recipe needs rewards")
            if stage.kind == "grpo" and not any(spec.weight for spec in self.rewards.values()):
                raise ValueError(
                    f"rewards: all have weight 0, and stage {stage.name!r} learns from their sum: "
                    "give one a weight"
                )
            self._check_turns(stage)
            self._check_references(index)
        if self.tools and self.environment:
            raise ValueError("environment: tools and an environment in one run are not there yet")
        if "environment" in self.rewards and not self.environment:
            raise ValueError(
                "rewards.environment is what an environment pays: say which, in the field "
                "environment"
            )
        if self.evals.max_tokens == "auto" and all(stage.kind != "grpo" for stage in self.stages):
            raise ValueError(
                "evals.max_tokens auto takes that of the first grpo stage, and there is none: give "
                "a number"
            )
        if isinstance(self.stages[-1], RowStage):
            raise ValueError("the last stage makes no policy: add a stage that trains on its data")
        if self.controls:
            self._check_controls()
        for name in self.hacking_meter.rewards:
            if name not in self.rewards:
                hint = did_you_mean(name, self.rewards) or f" There are: {', '.join(self.rewards)}."
                raise ValueError(f"hacking_meter.rewards: the recipe has no reward {name!r}.{hint}")
        return self

    @property
    def turns_by(self) -> str:
        """What gives completions several turns, in a word or two; empty where nothing does."""
        return "tools" if self.tools else "an environment" if self.environment else ""

    def _check_turns(self, stage: Stage) -> None:
        """Raise ValueError for a stage that cannot have tools, or an environment."""
        by = self.turns_by
        if not by:
            return
        if stage.kind == "distill" or (self.environment and stage.kind in ("sample", "filter")):
            what = by if self.tools else "environments"
            raise ValueError(f"stage {stage.name!r}: {stage.kind} stages run no {what} yet")
        if stage.kind == "grpo" and stage.vllm and stage.vllm.mode == "colocate":
            raise ValueError(
                f"stage {stage.name!r}: {by} {'are' if self.tools else 'is'} for policies that our "
                "engine samples, or a server that gets files: leave vllm out, or take mode server"
            )

    def _check_controls(self) -> None:
        """Raise ValueError where control arms have nothing to train, or nothing to show."""
        if (stage := self.controlled) is None:
            raise ValueError("controls train a grpo stage again: the recipe has none")
        if stage.reuse is not None:
            raise ValueError(
                f"controls: stage {stage.name!r} is taken from {stage.reuse}, so nothing is known "
                "of its training that an arm could repeat: leave out reuse, or controls"
            )
        if not self.evals.sets:
            raise ValueError("controls are compared on evals.sets, which is empty: name a set")

    @property
    def controlled(self) -> GrpoStage | None:
        """The stage that control arms train again: the last one of kind grpo."""
        stages = [stage for stage in self.stages if isinstance(stage, GrpoStage)]
        return stages[-1] if stages else None

    def _check_references(self, index: int) -> None:
        """Raise ValueError where what a stage refers to is not an earlier stage of that kind."""
        stage, earlier = self.stages[index], self.stages[:index]
        policies = [s.name for s in earlier if not isinstance(s, RowStage)]
        samples = [s.name for s in earlier if isinstance(s, RowStage)]
        if stage.start is not None and stage.start not in ("base", *policies):
            raise ValueError(_no_stage(stage.name, "start", stage.start, ["base", *policies]))
        for source in data_sources(stage.data):
            if isinstance(source, StageData) and source.stage not in samples:
                raise ValueError(_no_stage(stage.name, "data.stage", source.stage, samples))
        if isinstance(stage, DistillStage):
            elsewhere = any(mark in stage.teacher for mark in (":", "/", ".gguf"))
            if stage.teacher not in policies and not elsewhere:
                raise ValueError(_no_stage(stage.name, "teacher", stage.teacher, policies))

    def start_of(self, stage: Stage) -> str | None:
        """The stage whose policy `stage` starts from; None: a policy that no stage made."""
        if getattr(stage, "policy", None) or stage.start == "base":
            return None
        if stage.start is not None:
            return stage.start
        before = self._before(stage)
        return next((s.name for s in reversed(before) if not isinstance(s, RowStage)), None)

    def needs(self, stage: Stage) -> list[str]:
        """The stages that `stage` takes something from: policy, data, teacher."""
        if stage.reuse is not None:
            return []
        names = [s.name for s in self.stages]
        needed = [self.start_of(stage), getattr(stage, "teacher", None)]
        needed += [s.stage for s in data_sources(self.data_of(stage)) if isinstance(s, StageData)]
        return [name for name in dict.fromkeys(needed) if name in names]

    def data_of(self, stage: Stage) -> AnyData:
        """The rows that `stage` uses: its own, else those of the last filter, else the recipe's."""
        kept = self._filter_before(stage)
        data = stage.data or (StageData(stage=kept) if kept else self.data)
        assert data is not None  # checked by the validator
        return data

    def _before(self, stage: Stage) -> tuple[Stage, ...]:
        return self.stages[: [s.name for s in self.stages].index(stage.name)]

    def _filter_before(self, stage: Stage) -> str | None:
        """The last filter stage before `stage`."""
        before = reversed(self._before(stage))
        return next((s.name for s in before if s.kind == "filter"), None)

    def in_folder(self, folder: str | None) -> "Recipe":
        """The same recipe in another run folder."""
        return self.model_copy(update={"run": self.run.model_copy(update={"folder": folder})})

    def to_yaml(self) -> str:
        """The resolved recipe as YAML: every field, with its value."""
        data = self.model_dump(mode="json")
        return yaml.dump(data, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
