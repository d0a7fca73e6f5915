"""The rewards of control arms: one that is drawn at random, one that only checks the answer's form.

What a run gains with a reward that says nothing of right or wrong is not what its own reward has
taught. `form_of` says which form a row's answer is asked for in; nothing that a model wrote is run.
Loaded in workers: knows nothing of torch.
"""

import ast
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rl_reasoner import Column, Score, reward
from rl_reasoner.answers.extraction.boxes import last_boxes
from rl_reasoner.answers.extraction.extract import answer_of, spoken
from rl_reasoner.dataset.code_rows import continue_program
from rl_reasoner.errors import UserError
from rl_reasoner.language.thinking import OPEN_ANSWER, OPEN_THINK
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.rewards.code_tests import program_of
from rl_reasoner.rewards.format_tags import format_tags
from rl_reasoner.rewards.math_answer import tagged
from rl_reasoner.scoring.batch import APPLIES, applies
from rl_reasoner.scoring.reward import Reward, name_of
from rl_reasoner.types import Row

FORM_COLUMN = "form_asked"
"""The column in which the rows of a form_only arm have their form, as `form_of` gives it."""
_CODE = ("code_tests", "no_hardcode")
_LONGEST = 100_000  # characters of a program that is parsed


@reward
def random_reward(
    completion: str,
    row_seed: int = Column(0),  # type: ignore[assignment]
    mean: float = 0.5,
    low: float = 0.0,
    high: float = 1.0,
) -> Score:
    """`high` or `low`, drawn so that the mean is `mean`, whatever the completion says.

    Drawn from `row_seed` alone: the completion's place in the run (seed, step, row). So a resumed
    run draws alike, and equal completions of a group are worth different rewards.
    """
    chance = (mean - low) / (high - low) if high > low else 0.0
    digest = hashlib.blake2b(str(row_seed).encode(), digest_size=8).digest()
    won = int.from_bytes(digest, "big") / 2**64 < chance
    return Score(high if won else low, f"drawn: {'high' if won else 'low'}, chance {chance:.3g}")


@reward(policy_text=True)
def form_only(completion: str, form_asked: Mapping[str, Any]) -> Score:
    """1.0 where an answer stands in the form that the row asks for, right or wrong, else 0.0."""
    kind, options = str(form_asked["kind"]), form_asked["options"] or {}
    if kind == "tags":
        return format_tags.with_options(**options).score(completion)
    there, what = _FORMS[kind](completion, **options)
    return Score(float(there), what if there else f"no {what}")


_REWARDS: Mapping[str, Reward] = {"random_reward": random_reward, "form_only": form_only}


def control_reference(arm: str) -> str:
    """How a recipe names the reward of the arm."""
    return f"{__name__}:{arm}"


def control_reward(arm: str, options: Mapping[str, Any]) -> Reward:
    """The reward of the arm, for all rows, whichever rewards they name."""
    made = _REWARDS[arm].with_options(**options)
    made.__dict__["of_every_row"] = True
    return made


def _boxed(completion: str) -> tuple[bool, str]:
    """What the verifier takes: the last box behind the reasoning, closed and not empty."""
    text = spoken(completion)
    boxed = text is not None and last_boxes(text) is not None
    return boxed and bool(answer_of(completion).texts), "final answer in a box"


def _stated(completion: str) -> tuple[bool, str]:
    return bool(answer_of(completion).texts), "final answer that the verifier finds"


def _between(completion: str, tags: Sequence[str]) -> tuple[bool, str]:
    return bool(tagged(completion, tags)), f"answer between {tags[0]} and {tags[1]}"


def _program(completion: str, extract: str, **row: Any) -> tuple[bool, str]:
    """Whether there is a program, and it is Python: parsed, never run."""
    program = program_of(continue_program(row, completion), extract)
    return program is not None and _parses(program), "Python block that parses"


def _parses(program: str) -> bool:
    if not program.strip() or len(program) > _LONGEST:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes
            ast.parse(program)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True


_FORMS: Mapping[str, Callable[..., tuple[bool, str]]] = {
    "boxed": _boxed,
    "stated": _stated,
    "between": _between,
    "program": _program,
}


# ------------------------------------------------------------------------ which form is asked for


def form_of(row: Row, recipe: Recipe, rewards: Mapping[str, Any]) -> dict[str, Any] | None:
    """The form that the answer to a row is asked for in: kind and options; None where it has none.

    `rewards` are the recipe's, by name. Programs are asked for in a block, other answers as the
    row's template, or the system prompt, says: in a box, between tags; else as `math_answer` takes
    them.
    """
    own = {
        name_of(fn): recipe.rewards[key].options
        for key, fn in rewards.items()
        if applies(name_of(fn), row.get(APPLIES))
    }
    if code := [own[name] for name in _CODE if name in own]:
        begun = {name: row[name] for name in ("problem", "entry_point") if row.get("entry_point")}
        return _form("program", extract=code[0].get("extract", "last"), **begun)
    if "instructions" in own:
        return None
    if tags := own.get("math_answer", {}).get("tags"):
        return _form("between", tags=[*tags])
    template = str(row.get("template") or recipe.template)
    asked = template + str(row.get("system") or recipe.system or "")
    if "format_tags" in own:
        return _form("tags", **own["format_tags"])
    if template == "r1" or OPEN_ANSWER in asked:
        return _form("tags", form="r1" if template == "r1" or OPEN_THINK in asked else "answer")
    if template == "boxed" or "\\boxed" in asked:
        return _form("boxed")
    return _form("stated") if "math_answer" in own else None


def _form(kind: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "options": options}


def with_forms(rows: Iterable[Row], recipe: Recipe, rewards: Mapping[str, Any]) -> list[Row]:
    """`rows`, each with its form in `FORM_COLUMN`. Raises `UserError` where one has none."""
    return [{**row, FORM_COLUMN: _form_or_error(row, recipe, rewards)} for row in rows]


def _form_or_error(row: Row, recipe: Recipe, rewards: Mapping[str, Any]) -> dict[str, Any]:
    if (form := form_of(row, recipe, rewards)) is not None:
        return form
    names = [name for name, fn in rewards.items() if applies(name_of(fn), row.get(APPLIES))]
    raise UserError(
        f"controls: form_only has nothing to check on row {row.get('id', row['problem'])!r:.60}: "
        f"{', '.join(names)} with the template {row.get('template') or recipe.template!r} asks for "
        "no form of an answer (a box, tags, a Python block); use random_reward alone"
    )
