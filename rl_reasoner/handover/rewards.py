"""A recipe's rewards outside of a run: what one completion is worth, with the recipe's weights.

The reward files that `export --to` writes call this in the workers of another engine. Each reward
runs as in training: under its limits, in a process of its own, kept for the life of this one; what
several rewards come to is `scoring.rule`'s. Knows nothing of the engines.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rl_reasoner.dataset.code_rows import continuing
from rl_reasoner.errors import UserError
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.recipe import Recipe, RewardSpec
from rl_reasoner.scoring.batch import POLICY_TEXT, name_rewards, score_own_rows
from rl_reasoner.scoring.outcome import failed, outcome_json
from rl_reasoner.scoring.registry import check_name, load_reward
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.scoring.rule import rule_of, total
from rl_reasoner.types import Completion, Outcome, Prompt, Row

_FILES = ("rubric", "policy")
"""Options of a judge that name what lies here, beside its `code_options`."""
_SAMPLED = ("completion", POLICY_TEXT)  # what a policy wrote, whatever a row has by these names


@dataclass(frozen=True)
class RowReward:
    """What one completion is worth: `value` is None where the row is out of its group."""

    value: float | None
    outcomes: Mapping[str, Outcome]
    """of each reward, by its name in the recipe"""

    @property
    def outcome(self) -> Literal["score", "abstain", "fault"]:
        """Whether it was scored; if not, whether a reward abstained or failed."""
        if self.value is not None:
            return "score"
        return "fault" if any(map(failed, self.outcomes.values())) else "abstain"

    @property
    def reason(self) -> str:
        """What the rewards said, each with its name."""
        told = {name: outcome_json(one)["reason"] for name, one in self.outcomes.items()}
        return "; ".join(f"{name}: {why}" for name, why in told.items() if why)


class RecipeRewards:
    """All rewards of a recipe, with its weights, options and rules; from any thread."""

    def __init__(self, recipe: Recipe | str | Path) -> None:
        """The rewards of `recipe`: a recipe, or its file, beside which files of rewards may lie.

        Raises `UserError` for a recipe or a reward that is not there.
        """
        beside = Path() if isinstance(recipe, Recipe) else Path(recipe).parent
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
        specs = self.recipe.rewards
        self.functions: dict[str, Callable[..., Any]] = {}
        for name, spec in specs.items():
            found = _found(name, beside)
            options = dict(spec.options)
            if options:
                reward = load_reward(found, source=spec.source)
                options = with_files(reward, options, lambda file, _: _there(file, beside))
            loaded = load_reward(found, options, spec.source)
            check_name(name, loaded, self.functions)
            self.functions[name] = loaded
        self._weights = [spec.weight for spec in specs.values()]
        self._rules = [rule_of(fn, *_rule(specs[name])) for name, fn in self.functions.items()]

    @cached_property
    def _continuing(self) -> Mapping[str, Callable[..., Any]]:
        """The functions for rows whose programs a completion goes on with."""
        begun = [{"entry_point": "begun"}]
        return {name: continuing(fn, begun) for name, fn in self.functions.items()}

    def score(
        self, completions: Sequence[str], rows: Sequence[Row], prompts: Sequence[Prompt]
    ) -> list[RowReward]:
        """What each completion is worth for its row and prompt, in order.

        A reward that fails is a fault of its row, not an exception. Raises `UserError` for a row
        that names a reward which the recipe does not have.
        """
        named = [name_rewards(row, self.functions) for row in rows]
        keys = dict.fromkeys(key for row in named for key in row if key not in _SAMPLED)
        columns: dict[str, Any] = {key: [row.get(key) for row in named] for key in keys}
        columns["prompts"] = list(prompts)
        begun = any(row.get("entry_point") for row in rows)
        functions = self._continuing if begun else self.functions
        by_reward = [
            score_own_rows(fn, _shaped(fn, completions, prompts), columns)
            for fn in functions.values()
        ]
        made = []
        for outcomes in zip(*by_reward, strict=True):
            value = total(outcomes, self._weights, self._rules)
            told = dict(zip(self.functions, outcomes, strict=True))
            made.append(RowReward(None if math.isnan(value) else value, told))
        return made

    def score_task(self, completion: str, task: str) -> RowReward:
        """What a completion is worth for a `task` as `task_text` has written it."""
        read = json.loads(task)
        return self.score([completion], [read["row"]], [read["prompt"]])[0]


def task_text(prompt: Prompt, row: Row) -> str:
    """A prompt and its row as one line of JSON: what goes through an engine to the reward file.

    Raises `UserError` for a row that JSON cannot hold: a reward would be given something else.
    """
    try:
        return json.dumps({"prompt": prompt, "row": row})
    except TypeError as error:
        name = row.get("id", row.get("problem"))
        raise UserError(f"row {name!r:.60} cannot be written as JSON: {error}") from error


def _shaped(
    fn: Callable[..., Any], completions: Sequence[str], prompts: Sequence[Prompt]
) -> list[Completion]:
    """Completions as training gives them: to functions of trl's form, chats where prompts are."""
    if isinstance(fn, Reward):
        return list(completions)
    return [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for text, prompt in zip(completions, prompts, strict=True)
    ]


def _rule(spec: RewardSpec) -> tuple[Any, Any]:
    return spec.optional, spec.on_abstain


def _found(reference: str, beside: Path) -> str:
    """The reference, its file looked up beside the recipe where it is not an absolute path."""
    file, _, function = reference.rpartition(":")
    return f"{_there(file, beside)}:{function}" if file.endswith(".py") else reference


def _there(file: str, beside: Path) -> str:
    return str(beside / file) if (beside / file).is_file() else file


def with_files(
    reward: Callable[..., Any], options: Mapping[str, Any], moved: Callable[[str, str], str]
) -> dict[str, Any]:
    """The options of a judge with other places in them; of any other reward, as they are.

    `moved` is called with each file or folder that they name, and the option's name.
    """
    made = dict(options)
    of_code = getattr(reward, "code_options", ())
    for name in [*of_code, *(_FILES if of_code else ())]:
        value = made.get(name)
        if not isinstance(value, str):
            continue
        file, colon, function = value.rpartition(":") if name in of_code else (value, "", "")
        if name not in of_code or file.endswith(".py"):
            made[name] = f"{moved(file, name)}{colon}{function}"
    return made


def judges_groups(rewards: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The names of those that judge whole groups of completions."""
    return [name_of(fn) for fn in rewards.values() if isinstance(fn, Reward) and fn.group]
