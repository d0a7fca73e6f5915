"""Rewards: what a score is, how a reward is written, found by name, and called.

A reward looks at one completion and says how good it is. Three outcomes are kept apart: a score,
an abstention (`Score(None)`: this row cannot be judged, it leaves its group's mean), and a `Fault`
(the reward itself failed; never mixed up with a low score). The decorator `@reward` turns a
function of one completion into a batch reward that stock trl accepts as it is; any trl reward
function is accepted here as it is. Where and under which limits a reward runs is `isolation`'s to
say. Knows nothing of models.
"""

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast, overload

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.paths import room
from rl_reasoner.scoring.fault_places import place
from rl_reasoner.scoring.trl_form import form_mistake, needs_column
from rl_reasoner.types import Completion, Fault, Outcome, Score, text_of

if TYPE_CHECKING:
    from rl_reasoner.scoring.runner import Limits

_Many = TypeVar("_Many", bound=Callable[..., Sequence[object]])
OnAbstain = Literal["leave", "ignore"]
ENTRY_POINTS = "rl_reasoner.rewards"
FILE_MODULE = "rl_reasoner_reward_"
"""The modules of rewards named as "path/file.py:function" are called this and the file's stem."""


def as_score(value: object, name: str) -> Score:
    """`value` as a `Score`; raises TypeError naming the reward when it is no number or Score."""
    if isinstance(value, Score):
        return value
    if value is None:
        return Score(None, "the reward returned None")
    if not isinstance(value, (str, bytes)) and hasattr(value, "__float__"):
        return Score(float(value))  # numpy and torch scalars too
    raise TypeError(
        f"reward {name!r} returned {type(value).__name__} ({value!r:.80}); "
        "expected a float, a Score, or None to abstain"
    )


@dataclass(frozen=True)
class Column:
    """As the default of a reward's parameter: a column that rows may lack; its value there."""

    missing: Any = None


class Reward:
    """A function of one completion, callable on batches in trl's form.

    Made by `@reward`. Parameters of the function without a default are columns of the data set,
    also those whose default is a `Column`; others are options (`with_options`). Called with one
    completion (`f("text", answer="4")`) it returns the `Score`; called in trl's form
    (`f(completions=[...], answer=[...])`) it returns `list[float | None]`.

    `optional` and `on_abstain` say what its faults and abstentions do to rows (`reward_rule`).
    """

    optional: bool = False
    on_abstain: OnAbstain | None = None

    def __init__(self, fn: Callable[..., object], options: Mapping[str, Any] | None = None) -> None:
        catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = [
            p for p in inspect.signature(fn).parameters.values() if p.kind not in catch_all
        ]
        if not parameters or parameters[0].name != "completion":
            raise TypeError(f"reward {fn.__name__!r}: its first parameter must be `completion`")
        self.fn = fn
        self.name = self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__
        given = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        self.columns = tuple(p.name for p in parameters[1:] if p.name not in given)
        self.missing = {n: d.missing for n, d in given.items() if isinstance(d, Column)}
        self.defaults = {n: d for n, d in given.items() if n not in self.missing}
        self.options = dict(options or {})
        self._many: Callable[..., Sequence[object]] | None = None
        for option in self.options:
            if option not in self.defaults:
                raise unknown(f"option of reward {self.name}", option, self.defaults)

    def with_options(self, **options: Any) -> Self:
        """The same reward with some options set; an unknown option is a `UserError`."""
        chosen = type(self)(self.fn, {**self.options, **options})
        chosen._many = self._many
        chosen.optional, chosen.on_abstain = self.optional, self.on_abstain
        return chosen

    def batch(self, many: _Many) -> _Many:
        """Decorator for a function that scores a whole batch as this one would row by row.

        It is called as `many(completions, rows, **options)`, each row a dict of this reward's
        columns, with every option. Where it raises, the rows are scored one by one.
        """
        self._many = many
        return many

    @property
    def many(self) -> Callable[..., Sequence[object]] | None:
        """The function of a whole batch, where `batch` gave one."""
        return self._many

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine: its rows are judged at the same time."""
        return inspect.iscoroutinefunction(self.fn)

    def result(self, completion: Completion, **columns: Any) -> Any:
        """What the function itself returns for one completion; a coroutine's is to be awaited."""
        return self.fn(text_of(completion), **{**self.missing, **columns}, **self.options)

    def score(self, completion: Completion, **columns: Any) -> Score:
        """The score of one completion; exceptions of the function pass through."""
        return as_score(_finished(self.result(completion, **columns)), self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "completions" not in kwargs:
            bound = inspect.signature(self.fn).bind(
                *args, **{**self.missing, **self.options, **kwargs}
            )
            bound.arguments["completion"] = text_of(bound.arguments["completion"])
            return as_score(_finished(self.fn(*bound.args, **bound.kwargs)), self.name)
        scores = self.scores(kwargs["completions"], kwargs)
        return [score.value for score in scores]

    def scores(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Score]:
        """The scores of a batch in trl's form; exceptions of the function pass through."""
        rows = [self.row(columns, index) for index in range(len(completions))]
        if self._many is None:
            return [self.score(text, **row) for text, row in zip(completions, rows, strict=True)]
        texts = [text_of(completion) for completion in completions]
        values = self._many(texts, rows, **{**self.defaults, **self.options})
        return [as_score(value, self.name) for _, value in zip(texts, values, strict=True)]

    def row(self, columns: Mapping[str, Any], index: int) -> dict[str, Any]:
        """This reward's columns of row `index` out of a trl batch (`prompt` is in `prompts`)."""
        values = {}
        for name in self.columns:
            source = "prompts" if name == "prompt" and "prompt" not in columns else name
            if source not in columns:
                raise KeyError(needs_column(self.name, name, columns))
            value = columns[source][index]
            values[name] = text_of(value) if name == "prompt" else value
        for name, missing in self.missing.items():
            value = columns[name][index] if name in columns else None
            values[name] = missing if value is None else value
        return values

    def __repr__(self) -> str:
        return f"<reward {self.name}>"


@overload
def reward(fn: Callable[..., object]) -> Reward: ...


@overload
def reward(
    *, optional: bool = False, on_abstain: OnAbstain | None = None
) -> Callable[[Callable[..., object]], Reward]: ...


def reward(
    fn: Callable[..., object] | None = None,
    *,
    optional: bool = False,
    on_abstain: OnAbstain | None = None,
) -> Any:
    """Turn a function of one completion into a `Reward` (see there).

    A fault of it takes its row out of its group, and so does an abstention; with `optional` neither
    does, with `on_abstain="ignore"` an abstention does not: the row has the sum of its other
    rewards. Raises ValueError for another word than "leave" or "ignore".
    """
    if on_abstain not in (None, "leave", "ignore"):
        raise ValueError(f"on_abstain is {on_abstain!r}: it is 'leave' or 'ignore'")

    def made(fn: Callable[..., object]) -> Reward:
        found = Reward(fn)
        found.optional, found.on_abstain = optional, on_abstain
        return found

    return made if fn is None else made(fn)


def _finished(value: Any) -> Any:
    """`value`, or the result of a coroutine, waited for."""
    if not inspect.iscoroutine(value):
        return value
    with ThreadPoolExecutor(1) as thread:  # there may be a running loop here, as in notebooks
        return thread.submit(asyncio.run, value).result()


def score_batch(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    limits: "Limits | None" = None,
) -> list[Outcome]:
    """Score completions with a `Reward` or any trl reward function, row faults kept apart.

    `columns` holds one value a row, with trl's `prompts` for the prompts. The function runs in a
    killable process under `limits` where it can (`isolation`); a row that faults is tried once
    more, alone where the whole batch failed; a wrong value is a fault at once.
    """
    from rl_reasoner.scoring.runner import (  # it knows rewards, so it comes after them
        Limits,
        runner_of,
    )

    limits = limits or Limits()
    if limits.on == "ray" and isinstance(fn, Reward):
        from rl_reasoner.scoring import ray_cluster

        return ray_cluster.outcomes(fn, completions, columns, limits)
    return runner_of(fn, limits).outcomes(completions, columns)


APPLIES = "rewards"
"""The column with the names of the rewards that a row gets; rows without it get all."""
NOT_ITS_ROW = Score(None, "not a reward of this row")
"""What stands where a row does not get a reward."""


def applies(name: str, row_names: Sequence[str] | str | None) -> bool:
    """Whether the reward `name` is one of `row_names`: a list, a text with commas, None for all."""
    if row_names is None:
        return True
    listed = row_names.split(",") if isinstance(row_names, str) else row_names
    return any(name == one.strip() for one in listed)


def score_own_rows(
    fn: Callable[..., Any],
    completions: Sequence[Completion],
    columns: Mapping[str, Any],
    limits: "Limits | None" = None,
) -> list[Outcome]:
    """As `score_batch`, of the rows that the reward applies to; the others cost nothing.

    A row with a column `rewards` gets the rewards named there, by the functions' names. The others
    abstain on it: they are not called.
    """
    count = len(completions)
    names = (None if getattr(fn, "of_every_row", False) else columns.get(APPLIES)) or [None] * count
    title = str(getattr(fn, "__name__", type(fn).__name__))
    mine = [i for i in range(count) if applies(title, names[i])]
    if len(mine) == count:
        return score_batch(fn, completions, columns, limits)
    found: list[Outcome] = [NOT_ITS_ROW] * count
    if mine:
        part = {key: _of_rows(key, value, mine, count) for key, value in columns.items()}
        scores = score_batch(fn, [completions[i] for i in mine], part, limits)
        for i, score in zip(mine, scores, strict=True):
            found[i] = score
    return found


def own_rows(outcomes: Sequence[Outcome]) -> list[bool]:
    """Of which rows `score_own_rows` called the reward."""
    return [outcome is not NOT_ITS_ROW for outcome in outcomes]


def _of_rows(name: str, value: Any, rows: Sequence[int], count: int) -> Any:
    """A column's values of some rows; trl's `log_extra` from some logs None for the others."""
    if isinstance(value, (list, tuple)):
        return [value[i] for i in rows]
    if name != "log_extra":
        return value

    def spread(column: str, values: Sequence[Any]) -> None:
        given = dict(zip(rows, values, strict=True))
        value(column, [given.get(i) for i in range(count)])

    return spread


def faulted(
    name: str,
    error: BaseException,
    kind: Literal["exception", "value"] = "exception",
    fn: Callable[..., Any] | None = None,
) -> Fault:
    """The fault for an exception of the reward `name`, with its place in the user's code."""
    return Fault(f"reward {name!r}: {type(error).__name__}: {error}{place(error, fn)}", kind)


def usable(outcome: Outcome) -> float:
    """The number that training uses: NaN for faults, abstentions, and what is not finite or huge.

    1e30 is the bound: the variance of larger rewards overflows in float32.
    """
    value = None if isinstance(outcome, Fault) else outcome.value
    return value if value is not None and abs(value) < 1e30 else float("nan")


def failed(outcome: Outcome) -> bool:
    """Whether the reward failed on the row: a fault, or a number that is none."""
    if isinstance(outcome, Fault):
        return True
    return outcome.value is not None and math.isnan(usable(outcome))


def described(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values: value, reason, outcome ("score", "abstain", "fault"), parts."""
    if isinstance(outcome, Fault):
        return {"value": None, "reason": outcome.message, "outcome": "fault"}
    number = usable(outcome)
    value = None if math.isnan(number) else number
    reason = outcome.reason
    if value is None and outcome.value is not None:
        reason = f"not a usable number: {outcome.value}. {reason}".strip()
    row: dict[str, Any] = {
        "value": value,
        "reason": reason,
        "outcome": "abstain" if value is None else "score",
    }
    parts = {name: part if math.isfinite(part) else None for name, part in outcome.parts.items()}
    return {**row, "parts": parts} if parts else row


# ---------------------------------------------------------------------------------- loading


def shipped_rewards() -> list[str]:
    """Names of the rewards that come with the package, in alphabetical order."""
    return sorted(path.stem for path in room("rewards").glob("[a-z]*.py"))


def named_rewards() -> list[str]:
    """Names that need no file or module: of shipped rewards, and of entry points."""
    return [*shipped_rewards(), *(point.name for point in entry_points(group=ENTRY_POINTS))]


def load_reward(
    reference: str, options: Mapping[str, Any] | None = None, source: str | None = None
) -> Callable[..., Any]:
    """The reward that `reference` names, with `options` set; out of the text `source`, if given.

    Forms: the name of a shipped reward or of an entry point of the group `rl_reasoner.rewards`;
    "package.module:function"; "path/file.py:function"; "https://…" (`http_reward`). Raises
    `UserError` where nothing is found, the file has an error, or options are given to a function
    that takes none.
    """
    if reference.startswith(("http://", "https://")):
        return _over_http(reference, options or {})
    found = _found(reference) if source is None else _of_text(reference, source)
    if not callable(found):
        raise UserError(f"reward {reference!r} is {type(found).__name__}, not a function")
    if not isinstance(found, Reward) and (
        mistake := form_mistake(found, reference.rpartition(":")[2])
    ):
        raise UserError(mistake)
    if not options:
        return cast(Callable[..., Any], found)
    if not isinstance(found, Reward):
        raise UserError(f"reward {reference!r} takes no options: only @reward functions do")
    return found.with_options(**options)


def _found(reference: str) -> Any:
    """What stands under `reference`; raises `UserError`."""
    module, _, attribute = reference.rpartition(":")
    if module:
        return _attribute(module_of(module, reference), attribute, reference)
    if reference in shipped_rewards():
        return _attribute(module_of(f"rl_reasoner.rewards.{reference}", reference), reference, "")
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if reference not in points:
        if reference.endswith(".py"):
            raise UserError(f"reward {reference!r} names no function: write {reference}:NAME")
        raise unknown("reward", reference, named_rewards())
    try:
        return points[reference].load()
    except (ImportError, AttributeError) as error:
        target = points[reference].value
        raise UserError(f"reward {reference!r}: cannot load {target}: {error}") from error


def _of_text(name: str, source: str) -> Any:
    from rl_reasoner.scoring.source import read  # it knows rewards, so it comes after them

    return read(name, source)


def _over_http(url: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    from rl_reasoner.scoring.http_reward import http_reward  # it brings httpx along

    known = list(inspect.signature(http_reward).parameters)[1:]
    for option in options:
        if option not in known:
            raise unknown(f"option of reward {url}", option, known)
    return http_reward(url, **options)


def module_of(name: str, reference: str) -> ModuleType:
    """The module `name`, or the one in the file of that name; raises `UserError`."""
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"reward {reference!r}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(f"{FILE_MODULE}{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"reward {reference!r}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f"{error.filename}:{error.lineno}"
        raise UserError(f"reward {reference!r}: syntax error at {line}: {error.msg}") from error
    except UserError:
        raise
    except Exception as error:  # whatever the module's own code raises
        what = f"{type(error).__name__}: {error}{place(error)}"
        file = Path(f"{name.replace('.', '/')}.py")  # its folder may not be one of Python's
        itself = isinstance(error, ModuleNotFoundError) and name.startswith(error.name or name)
        if itself and file.is_file():
            what += f". There is {file} here: write {file}:{reference.rpartition(':')[2]}"
        raise UserError(f"reward {reference!r}: cannot import {name}: {what}") from error
    return module


def _attribute(module: ModuleType, name: str, reference: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    known = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    raise unknown(f"function of {reference.rpartition(':')[0]}", name, known)
