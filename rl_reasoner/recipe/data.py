"""The part of the recipe's schema that says where rows come from.

Sources are task generators, files, sets, hub data sets, and data that an earlier stage made; a mix
holds several. `dataset` reads them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic.fields import FieldInfo

TEMPLATES = ("auto", "plain", "chat", "boxed", "r1")
BRACES_FIX = "write single braces, unless two are meant"


def checked_template(template: str) -> str:
    """`template`; raises ValueError if it is no template's name and has no {problem}."""
    if template not in TEMPLATES and "{problem}" not in template:
        raise ValueError(
            f"template {template!r} is not one of {', '.join(TEMPLATES)} and has no "
            f"{{problem}} in it"
        )
    return template


def doubled_braces(template: str) -> str | None:
    """What is doubtful about `template`, or None: a format string would read `{{` as one brace.

    A template is no format string, so the model would read both. Doubtful are `{{problem}}`, `{{}}`
    and a text where all other braces are doubled; LaTeX and code have some that are not.
    """
    others = template.replace("{{problem}}", "{{}}").replace("{problem}", "")
    single = others.replace("{{", "").replace("}}", "")
    at = template.find("{{")
    if at < 0 or ("{{}}" not in others and ("{" in single or "}" in single)):
        return None
    near = template[max(0, at - 6) : at + 14]
    return (
        f"the template has doubled braces, near {near!r}: it is taken as it stands, and "
        "{problem} alone is replaced"
    )


def _judge(value: Any) -> Any:
    if callable(value):
        name = getattr(value, "__name__", "NAME")
        raise ValueError(
            f"a judge is given by name, since other programs use it too: put {name} into a file "
            f"and write 'FILE.py:{name}'"
        )
    return value


def off_for_false(value: Any) -> Any:
    """A field's value, with "off" in place of False: that is what YAML 1.1 makes of `off`."""
    return "off" if value is False else value


JudgeName = Annotated[str | None, BeforeValidator(_judge)]
"""The reward that judges evaluations or samples; functions themselves go into `rewards`."""


class Part(BaseModel):
    """A part of the recipe; NaN and infinity are refused: runs would train on them silently."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any) -> Any:
        """`steps: true` in a file is the mistake that it is as a flag; pydantic would take 1."""
        if not isinstance(given, Mapping):
            return given
        return {
            name: _spelled(value) if _only_numbers(cls.model_fields.get(name)) else value
            for name, value in given.items()
        }


def _only_numbers(field: FieldInfo | None) -> bool:
    """Whether a field takes numbers, or a tuple of them, and neither truth values nor text."""
    kinds, more = set[Any](), [field.annotation] if field else []
    while more:
        kind = more.pop()
        kinds.add(kind)
        more += get_args(kind)
    return bool(kinds & {int, float}) and not kinds & {bool, str}


def _spelled(value: Any) -> Any:
    """A truth value as the text that it is on the command line, also in a list."""
    if isinstance(value, list | tuple):
        return [_spelled(one) for one in value]
    return str(value).lower() if isinstance(value, bool) else value


class RowSource(Part):
    """Where rows come from, and how they are prompted and judged in training."""

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
        default=None, gt=0, description="in a mix: their share of it, relative to the others'"
    )


class TaskData(RowSource):
    """Rows drawn from one of the built-in task generators (`rl_reasoner.dataset.tasks`)."""

    task: str = Field(description="name of a generator, see `rl-reasoner list tasks`")
    split: Literal["train", "validation", "test", "ood"] = "train"
    count: int = Field(default=2000, ge=1, description="number of distinct problems")
    seed: int = Field(default=0, description="seed of the draw")
    levels: tuple[int, int] | None = Field(
        default=None,
        description="smallest and largest level (problem size), both included; up to the hardest "
        "of split ood",
    )
    direct: float = Field(
        default=0.0, ge=0, le=1, description="sft: share of rows without a chain of thought"
    )
    called: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="sft: of the rows with a chain, share whose steps are calls of the calculator "
        "(tools.format tags)",
    )
    noise: float = Field(
        default=0.0, ge=0, le=1, description="sft: share of random steps, or of wrong programs"
    )
    chinese: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="sft: write chains in words, this share of the steps in Chinese and the "
        "rest in English",
    )


class FileData(RowSource):
    """Rows from a JSON, CSV, TSV or Parquet file, a saved folder, a shipped or a hub data set."""

    path: str = Field(description="a file or saved folder, the name of a set, or a hub id")
    config: str | None = Field(default=None, description="hub data sets: configuration name")
    split: str = Field(default="train", description="hub data sets: split")
    columns: Mapping[str, str] = Field(
        default_factory=dict,
        description="our column (problem, answer, completion, context, system …) -> the "
        "file's column",
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first N rows")
    on_bad_row: Literal["skip", "stop"] = Field(
        default="stop", description="what to do about rows that fail the checks"
    )


class MadeData(FileData):
    """The file of rows that a stage of a run has written; no recipe names it.

    Its rows were checked before the stage. What is left of their order and sources does not say
    whether two answers to one problem contradict each other.
    """


class StageData(RowSource):
    """Rows that an earlier stage of kind `sample` or `filter` wrote."""

    stage: str = Field(description="the name of that stage")
    limit: int | None = Field(default=None, ge=1, description="take only the first N rows")


def _data_kind(value: Any) -> str:
    keys = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    return next((kind for kind in ("mix", "task", "stage") if kind in keys), "file")


def _data(value: Any) -> Any:
    """A name stands for its file, a list for the mix of its entries."""
    if isinstance(value, str):
        return {"path": value}
    return {"mix": value} if isinstance(value, (list, tuple)) else value


class MixData(Part):
    """Rows of several sources together, such as maths, code and instructions.

    With shares (of all sources or of none), each source has that part of the rows, whose number
    stays the sum of the sources': some rows are repeated, others left out.
    """

    mix: tuple[
        Annotated[
            Annotated[TaskData, Tag("task")]
            | Annotated[FileData, Tag("file")]
            | Annotated[StageData, Tag("stage")],
            Discriminator(_data_kind),
            BeforeValidator(_data),
        ],
        ...,
    ] = Field(min_length=1, description="the sources, each with its rewards, template and share")

    @model_validator(mode="after")
    def _shared(self) -> Self:
        given = sum(source.share is not None for source in self.mix)
        if given not in (0, len(self.mix)):
            raise ValueError(
                f"{given} of its {len(self.mix)} sources have a share: give it to all or to none"
            )
        return self


Data = Annotated[
    Annotated[TaskData, Tag("task")]
    | Annotated[FileData, Tag("file")]
    | Annotated[StageData, Tag("stage")]
    | Annotated[MixData, Tag("mix")],
    Discriminator(_data_kind),
    BeforeValidator(_data),
]


AnyData = TaskData | FileData | StageData | MixData


def data_sources(data: AnyData | None) -> tuple[RowSource, ...]:
    """The sources of a stage's data: itself, or those that it mixes."""
    if isinstance(data, MixData):
        return data.mix
    return () if data is None else (data,)
