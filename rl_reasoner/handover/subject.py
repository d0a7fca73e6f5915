"""What is handed over: a grpo stage of a recipe, its rows and their prompts.

Rows are those of training, with the columns that rewards need. Prompts are rendered without a
tokenizer: whether the policy has a chat template is read off its files where they are at hand.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rl_reasoner.dataset.rows import load_rows
from rl_reasoner.dataset.templates import prompt_of, with_system
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.foreign import json_object, mapping, number
from rl_reasoner.handover.rewards import RecipeRewards, judges_groups, task_text
from rl_reasoner.moe import EXPERT_COUNTS
from rl_reasoner.paths import policy_folder
from rl_reasoner.recipe.data import StageData, data_sources
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import GrpoStage, Stage
from rl_reasoner.scoring.batch import ROW_SEED, name_rewards
from rl_reasoner.scoring.reward import Reward
from rl_reasoner.types import Fault, Prompt, Row

_CALLED_MIXTURE = re.compile(
    r"moe|mixtral|gpt-oss|scratch:deepseek|deepseek-(?:v[2-9]|r1(?!-distill))|\db-a\d"
    r"|glm-4\.[5-9]|kimi-k\d|llama-4",
    re.IGNORECASE,
)
_OF_TRAINING = ("completion_ids", ROW_SEED)
"""Columns that rewards may ask for and that no data set has."""


@dataclass(frozen=True)
class PromptedRow:
    """A row with its rendered prompt: a text, or a chat."""

    prompt: Prompt
    row: Row

    @property
    def text(self) -> str:
        """Both, as the reward file reads them."""
        return task_text(self.prompt, self.row)

    @property
    def answer(self) -> str:
        """The answer, for whoever reads the other engine's data; empty where tests judge."""
        return str(self.row.get("answer") or "")


@dataclass(frozen=True)
class Subject:
    """A grpo stage with the recipe it belongs to, and its tasks."""

    recipe: Recipe
    stage: GrpoStage
    tasks: Sequence[PromptedRow]
    template_known: bool
    """False where the template `auto` was taken for a chat, since nothing says what it is."""
    bos: str | None
    """The token that the policy's tokenizer puts before a text ("" where it puts none), and that
    engines leave out, since they take prompts for rendered chats; None where nothing says it."""

    @cached_property
    def chats(self) -> bool:
        """Whether prompts are chats; else they are texts (they are never both)."""
        return not isinstance(self.tasks[0].prompt, str)

    @cached_property
    def prompt_bytes(self) -> int:
        """UTF-8 bytes of the longest prompt, and for a chat's marks 64 more, for a text's BOS one.

        No fewer than its tokens.
        """
        texts = (
            t.prompt if isinstance(t.prompt, str) else "".join(m["content"] for m in t.prompt)
            for t in self.tasks
        )
        return max(len(text.encode()) for text in texts) + (64 if self.chats else bool(self.bos))

    @property
    def slug(self) -> str:
        """The recipe's name as that of a Python module: in comments and docstrings harmless."""
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in self.recipe.name.lower())
        return name if name[:1].isalpha() else f"recipe_{name}"


class _Template:
    """Stands for the tokenizer of a policy of which only this is known."""

    def __init__(self, chat: bool) -> None:
        self.chat_template = "there is one" if chat else None


def subject_of(
    recipe: Recipe, stage: str | None, rewards: RecipeRewards, names: Mapping[str, str]
) -> Subject:
    """The stage called `stage` (default: the last grpo stage), with its rows.

    `names` has what `rewards` call each of the recipe's. Raises `UserError` where there is none,
    or it holds what no other engine takes over: tools, an environment, rewards of whole groups,
    rows that a run has yet to make.
    """
    chosen = _stage(recipe, stage)
    if recipe.turns_by:
        raise UserError(
            f"the recipe has {recipe.turns_by}: completions of several turns are played by our "
            "engine alone, and --to hands over those of one turn"
        )
    if together := judges_groups(rewards.functions):
        raise UserError(
            f"reward {together[0]} judges whole groups, but other engines hand over one "
            "completion at a time: leave it out"
        )
    functions = {name: rewards.functions[there] for name, there in names.items()}
    rows = [name_rewards(row, functions) for row in _rows(recipe, chosen)]
    source = start_source(recipe, chosen)
    known = _has_chat_template(source)
    tokenizer = _Template(chat=known is not False)
    tasks = [PromptedRow(prompt_of(row, recipe.template, tokenizer), row) for row in rows]
    if len({isinstance(task.prompt, str) for task in tasks}) == 2:
        raise UserError(
            "some rows' templates make texts and others' chats: other engines render all prompts "
            "alike. Give all rows one template."
        )
    auto = any((row.get("template") or recipe.template) == "auto" for row in rows)
    subject = Subject(recipe, chosen, tasks, not auto or known is not None, _bos(source))
    _try(subject, rewards)
    return subject


def not_given(rewards: RecipeRewards) -> list[str]:
    """Rewards that may use what only our trainer knows of a completion, a line each."""
    return [
        f"rewards.{name}: it is not given {column} there, and does without"
        for name, fn in rewards.functions.items()
        for column in _OF_TRAINING
        if isinstance(fn, Reward) and column in fn.missing
    ]


def _stage(recipe: Recipe, name: str | None) -> GrpoStage:
    stages = {stage.name: stage for stage in recipe.stages if isinstance(stage, GrpoStage)}
    if not stages:
        kinds = ", ".join(stage.kind for stage in recipe.stages)
        raise UserError(f"--to hands over a grpo stage, and the recipe has none (only: {kinds})")
    if name is not None and name not in stages:
        raise unknown("grpo stage", name, stages, owner="the recipe")
    return stages[name] if name is not None else list(stages.values())[-1]


def _rows(recipe: Recipe, stage: GrpoStage) -> list[Row]:
    data = recipe.data_of(stage)
    made = [source.stage for source in data_sources(data) if isinstance(source, StageData)]
    if made:
        raise UserError(
            f"stage {stage.name!r} trains on rows that stage {made[0]!r} makes: run it, and give "
            f"the stage its file: data: {{path: RUN/stages/N-{made[0]}/data.jsonl}}"
        )
    return with_system(load_rows(data), recipe.system)


def start_source(recipe: Recipe, stage: GrpoStage) -> str:
    """The policy that `stage` starts from, where no stage makes it; of a run, the run's policy.

    A stage that starts from another's policy has its tokenizer from the same place. Raises
    `UserError` for a run that has no policy yet.
    """
    before = {one.name: one for one in recipe.stages}
    first: Stage = stage
    while (start := recipe.start_of(first)) is not None:
        first = before[start]
    source = getattr(first, "policy", None) or recipe.policy.source
    folder = policy_folder(Path(source).expanduser())
    return str(folder.resolve()) if folder else source


def _has_chat_template(source: str) -> bool | None:
    """Whether the policy has a chat template; None where its files are not at hand."""
    if source.startswith("scratch:"):
        return False
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return None
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return isinstance(config, dict) and bool(config.get("chat_template"))


def is_mixture(source: str) -> bool:
    """Whether a policy is a mixture of experts: by its config, by its name where none is at hand.

    Names: those of families that are, and Qwen's, which tell how much is active (30B-A3B).
    """
    try:
        config = json_object(Path(source).expanduser() / "config.json")
    except UserError:
        return _CALLED_MIXTURE.search(source) is not None
    parts = (config, mapping(config.get("text_config")))
    return any((number(part.get(name)) or 0) > 1 for part in parts for name in EXPERT_COUNTS)


def _bos(source: str) -> str | None:
    """What the policy's tokenizer puts before a text; None where that cannot be said.

    transformers goes by `tokenizer.json` alone, whatever `add_bos_token` says beside it.
    """
    from tokenizers import Tokenizer

    if source.startswith("scratch:"):
        return ""
    try:
        tokenizer = Tokenizer.from_file(str(Path(source).expanduser() / "tokenizer.json"))
    except Exception:  # it raises no other
        return None
    given = tokenizer.encode("1").ids
    plain = tokenizer.encode("1", add_special_tokens=False).ids
    if given[:1] == plain[:1]:
        return ""
    bos = str(tokenizer.id_to_token(given[0]))
    # some write another token for a text that follows one
    return bos if tokenizer.encode(f"{bos}1", add_special_tokens=False).ids == given else None


def _try(subject: Subject, rewards: RecipeRewards) -> None:
    """Raise `UserError` where a reward fails on the first row, its answer as the completion."""
    task = subject.tasks[0]
    [made] = rewards.score([task.answer], [task.row], [task.prompt])
    for name, outcome in made.outcomes.items():
        if isinstance(outcome, Fault):
            raise UserError(f"reward {name}: a trial call failed: {outcome.message}")
