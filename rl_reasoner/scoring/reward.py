"""What a reward is: `@reward`, the class `Reward` it makes, and `Column`.

A reward looks at one completion and says how good it is; a group reward looks at all completions of
a prompt. The decorator turns such a function into a batch reward that stock trl accepts as it is;
any trl reward function is accepted here as it is. `registry` finds rewards, `batch` scores a batch.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, overload

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.paths import room
from rl_reasoner.scoring.option_types import option_parameters, wrong_options
from rl_reasoner.scoring.outcome import as_score
from rl_reasoner.scoring.trl_form import needs_column
from rl_reasoner.types import Completion, Score, own_text_of, text_of

_Many = TypeVar("_Many", bound=Callable[..., Sequence[object]])
_Check = TypeVar("_Check", bound=Callable[..., None])
OnAbstain = Literal["leave", "ignore"]
_OF_ONE = {"completion_ids", "row_seed"}  # columns with a value of each completion's own
FILE_MODULE = "rl_reasoner_reward_"
"""The module of a reward named "path/file.py:function" is called this and the file's stem."""
GROUPS = "completion group numbers"
"""The column with the number of each row's group, where that is known: a prompt may be in a batch
several times. Functions do not see it."""


@dataclass(frozen=True)
class Column:
    """As the default of a reward's parameter: a column that rows may lack; its value there."""

    missing: Any = None


class Reward:
    """A function of one completion, callable on batches in trl's form.

    Made by `@reward`. Parameters of the function without a default are columns of the data set,
    also those whose default is a `Column`; others are options (`with_options`). Called with one
    completion (`f("text", answer="4")`) it returns the `Score`; called in trl's form
    (`f(completions=[...], answer=[...])`) it returns `list[float | None]`. There an option may be
    given as one plain value; a list is a column, as trl hands on those of the data.

    With `group` its first parameter is `completions`: the texts of all completions of a prompt
    (`groups`); it returns one value each, in their order, such as the places of a ranking.

    `optional` and `on_abstain` say what its faults and abstentions do to rows (`rule`).
    """

    optional: bool = False
    on_abstain: OnAbstain | None = None
    policy_text: bool = False
    """Whether it reads only what the policy wrote: not what tools or an environment answered."""
    code_options: tuple[str, ...] = ()
    """Options that name a user's code: where one is set, a shipped reward runs apart as well."""

    def __init__(
        self,
        fn: Callable[..., object],
        options: Mapping[str, Any] | None = None,
        group: bool = False,
    ) -> None:
        catch_all = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = [
            p for p in inspect.signature(fn).parameters.values() if p.kind not in catch_all
        ]
        name = name_of(fn)  # an object that can be called has that of its class
        first = "completions" if group else "completion"
        if not parameters or parameters[0].name != first:
            raise TypeError(f"reward {name!r}: its first parameter must be `{first}`")
        self.fn = fn
        self.group = group
        self.name = self.__name__ = name
        self.__doc__ = fn.__doc__
        self.__module__ = fn.__module__
        given = {p.name: p.default for p in parameters[1:] if p.default is not p.empty}
        self.columns = tuple(p.name for p in parameters[1:] if p.name not in given)
        self.missing = {n: d.missing for n, d in given.items() if isinstance(d, Column)}
        self.defaults = {n: d for n, d in given.items() if n not in self.missing}
        if group and "policy_text" in (*self.columns, *self.missing):
            raise TypeError(
                f"reward {name!r}: with `group`, completions are what the policy wrote "
                "by @reward(group=True, policy_text=True)"
            )
        if group and (own := {*self.columns, *self.missing} & _OF_ONE):
            raise TypeError(
                f"reward {name!r}: {min(own)} differs between the completions of a "
                "group, and with `group` a call has one value of each column"
            )
        self.options = dict(options or {})
        self._many: Callable[..., Sequence[object]] | None = None
        self._check: Callable[..., None] | None = None
        for option in self.options:
            if option not in self.defaults:
                raise unknown("option", option, self.defaults, owner=f"reward {self.name}")

    def with_options(self, **options: Any) -> Self:
        """The same reward with some options set.

        Raises `UserError` for an unknown option, and for a value that its annotation does not fit.
        """
        chosen = type(self)(self.fn, {**self.options, **options}, self.group)
        chosen.name = chosen.__name__ = self.name
        chosen.columns, chosen.missing = self.columns, self.missing  # some are not the signature's
        chosen._many, chosen._check = self._many, self._check
        chosen.optional, chosen.on_abstain = self.optional, self.on_abstain
        chosen.policy_text, chosen.code_options = self.policy_text, self.code_options
        if options and wrong_options(self.name, option_parameters(self.fn), options):
            chosen.check_options()  # it says what is wrong
        return chosen

    def batch(self, many: _Many) -> _Many:
        """Decorator for a function that scores a whole batch as this one would row by row.

        It is called as `many(completions, rows, **options)`, each row a dict of this reward's
        columns, with every option. Where it raises, the rows are scored one by one. That of a group
        reward is given a list of groups, each the list of its texts, and one row for each group.
        It may return a `Fault` for a row on which it failed.
        """
        self._many = many
        return many

    def checks(self, check: _Check) -> _Check:
        """Decorator for a function that is called with every option before any row is scored.

        It raises `UserError` for values that make no sense: then no command begins with them.
        """
        self._check = check
        return check

    def check_options(self) -> None:
        """Raise `UserError` where the values of the options make no sense.

        Those are such that `checks` refuses, and such as the function's annotations do not allow.
        """
        wrong = wrong_options(self.name, option_parameters(self.fn), self.options)
        try:
            if self._check is not None:
                self._check(**{**self.defaults, **self.options})
        except UserError:
            raise  # it says more
        except Exception:
            if not wrong:
                raise
        if wrong:
            raise UserError(*wrong)

    @property
    def many(self) -> Callable[..., Sequence[object]] | None:
        """The function of a whole batch, where `batch` gave one."""
        return self._many

    @property
    def option_check(self) -> Callable[..., None] | None:
        """The function that looks at options first, where `checks` gave one."""
        return self._check

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine: its rows are judged at the same time."""
        return inspect.iscoroutinefunction(self.fn)

    def result(self, completion: Any, **columns: Any) -> Any:
        """What the function itself returns for one completion; a coroutine's is to be awaited.

        A group reward takes a list of completions.
        """
        return self.fn(self._texts(completion), **{**self.missing, **columns}, **self.options)

    def _texts(self, completion: Any) -> Any:
        """The text of a completion, or of each of a group."""
        read = own_text_of if self.policy_text else text_of
        return [read(one) for one in completion] if self.group else read(completion)

    def score(self, completion: Completion, **columns: Any) -> Score:
        """The score of one completion; exceptions of the function pass through."""
        return as_score(_awaited(self.result(completion, **columns)), self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "completions" not in kwargs:
            bound = inspect.signature(self.fn).bind(
                *args, **{**self.missing, **self.options, **kwargs}
            )
            first = next(iter(bound.arguments))
            given = bound.arguments[first]
            bound.arguments[first] = self._texts(given)
            value = _awaited(self.fn(*bound.args, **bound.kwargs))
            if self.group:
                return [as_score(one, self.name) for one in self.each(value, len(given))]
            return as_score(value, self.name)
        plain = {name: one for name, one in kwargs.items() if name in self.defaults and _plain(one)}
        if plain:
            columns = {name: one for name, one in kwargs.items() if name not in plain}
            return self.with_options(**plain)(**columns)
        scores = self.scores(kwargs["completions"], kwargs)
        return [score.value for score in scores]

    def scores(self, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[Score]:
        """The scores of a batch in trl's form; exceptions of the function pass through."""
        if self._many is None:
            found: dict[int, object] = {}
            for unit in self.groups(columns, len(completions)):
                found |= zip(unit, self.values_of(unit, completions, columns), strict=True)
        else:
            found = self.values_of_all(completions, columns)
        return [as_score(found[index], self.name) for index in range(len(completions))]

    def groups(self, columns: Mapping[str, Any], count: int) -> list[list[int]]:
        """The rows of each call, of a batch of `count`: one, or all of a prompt for a group reward.

        Rows are of one group where the column `GROUPS` has the same number; without it, where the
        prompt and the reward's own columns are the same.
        """
        if not self.group:
            return [[index] for index in range(count)]
        found: dict[Any, list[int]] = {}
        for index in range(count):
            if GROUPS in columns:
                found.setdefault(columns[GROUPS][index], []).append(index)
                continue
            prompt = columns["prompts"][index] if "prompts" in columns else None
            own = self.row(columns, index)
            found.setdefault(repr((prompt, own)), []).append(index)
        return [*found.values()]

    def given(
        self, unit: Sequence[int], completions: Sequence[Completion], columns: Mapping[str, Any]
    ) -> Any:
        """What a call on the rows `unit` (of `groups`) returns; a coroutine's is to be awaited."""
        texts = [completions[index] for index in unit]
        return self.result(texts if self.group else texts[0], **self.row(columns, unit[0]))

    def each(self, value: Any, count: int) -> Sequence[object]:
        """The values of `count` rows in what one call has returned.

        Raises ValueError where a group reward has returned another number of them.
        """
        if not self.group:
            return [value]
        return values_of_each(value, count)

    def values_of(
        self, unit: Sequence[int], completions: Sequence[Completion], columns: Mapping[str, Any]
    ) -> Sequence[object]:
        """The value of each row of `unit`, by one call of the function."""
        return self.each(_awaited(self.given(unit, completions, columns)), len(unit))

    def values_of_all(
        self, completions: Sequence[Completion], columns: Mapping[str, Any]
    ) -> dict[int, object]:
        """The value of each row of a batch, by its number, from the function of a whole batch."""
        assert self._many is not None
        units = self.groups(columns, len(completions))
        firsts = [completions[unit[0]] for unit in units]
        wholes = [[completions[index] for index in unit] for unit in units]
        texts = [self._texts(given) for given in (wholes if self.group else firsts)]
        rows = [self.row(columns, unit[0]) for unit in units]
        values = self._many(texts, rows, **{**self.defaults, **self.options})
        found: dict[int, object] = {}
        for unit, value in zip(units, values, strict=True):
            found |= zip(unit, self.each(value, len(unit)), strict=True)
        return found

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


def values_of_each(value: Any, count: int) -> list[object]:
    """The values of `count` completions that a call on all of them has returned.

    Raises ValueError for another number of them, and for what has none in an order of theirs.
    """
    unordered = isinstance(value, (str, bytes, Mapping, Set))
    if unordered or not hasattr(value, "__iter__"):
        raise ValueError(f"it returned {type(value).__name__}, not one value for each")
    values = list(value)
    if len(values) != count:
        raise ValueError(f"it returned {len(values)} values for {count} completions")
    return values


@overload
def reward(fn: Callable[..., object]) -> Reward: ...


@overload
def reward(
    *,
    optional: bool = False,
    on_abstain: OnAbstain | None = None,
    group: bool = False,
    policy_text: bool = False,
) -> Callable[[Callable[..., object]], Reward]: ...


def reward(
    fn: Callable[..., object] | None = None,
    *,
    optional: bool = False,
    on_abstain: OnAbstain | None = None,
    group: bool = False,
    policy_text: bool = False,
) -> Any:
    """Turn a function of one completion into a `Reward` (see there).

    A fault of it takes its row out of its group, and so does an abstention; with `optional` neither
    does, with `on_abstain="ignore"` an abstention does not: the row has the sum of its other
    rewards. With `group` the function is of all completions of a prompt, and returns one value for
    each. With `policy_text` it reads only what the policy wrote of a completion, where tools or an
    environment have answered in the middle. Raises ValueError for another word than "leave" or
    "ignore".
    """
    if on_abstain not in (None, "leave", "ignore"):
        raise ValueError(f"on_abstain is {on_abstain!r}: it is 'leave' or 'ignore'")

    def decorate(fn: Callable[..., object]) -> Reward:
        decorated = Reward(fn, group=group)
        decorated.optional, decorated.on_abstain = optional, on_abstain
        decorated.policy_text = policy_text
        return decorated

    return decorate if fn is None else decorate(fn)


def _plain(value: Any) -> bool:
    """Whether this is one value, not a column with one for each row."""
    return value is None or isinstance(value, str | bytes | int | float | Mapping)


def _awaited(value: Any) -> Any:
    """`value`; of a coroutine its result."""
    if not inspect.iscoroutine(value):
        return value
    with ThreadPoolExecutor(1) as thread:  # there may be a running loop here, as in notebooks
        return thread.submit(asyncio.run, value).result()


def name_of(fn: Callable[..., Any]) -> str:
    """The reward's name in messages, ledger and metrics."""
    return str(getattr(fn, "__name__", type(fn).__name__))


def brings_code(fn: Callable[..., Any]) -> bool:
    """Whether an option of the reward `fn` names a user's code."""
    return isinstance(fn, Reward) and any(fn.options.get(name) for name in fn.code_options)


def is_shipped(fn: Callable[..., Any]) -> bool:
    """Whether `fn` comes with the package: bounded, or with killable processes of its own.

    A file that is named by its path counts as the user's, wherever it lies.
    """
    if not isinstance(fn, Reward) or fn.__module__.startswith(FILE_MODULE):
        return False
    file = getattr(sys.modules.get(fn.__module__), "__file__", None)
    return file is not None and Path(file).resolve().parent == room("rewards").resolve()
