"""A trial call of a reward before a run: is there a mistake in it, or did it fail on one text only?

A reward may raise on the bare answer that it is tried on (`re.search(...).group(1)` without tags),
and judge completions of a policy all the same. That costs rows, not the run. So it is tried on a
second completion, as a policy may write it. Where it fails on both in the same words it is a
mistake: a misspelled name, a column or a file that is not there. A search that finds nothing is
none, since the form that is looked for may be another. A shipped reward, or one at a URL, raises
for what it was given, whatever the completion.
"""

import dis
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.batch import POLICY_TEXT, score_batch
from rl_reasoner.scoring.registry import is_url
from rl_reasoner.scoring.reward import Reward, is_shipped, name_of
from rl_reasoner.scoring.trl_form import call_mistake
from rl_reasoner.types import Fault

_WRITTEN = (
    "<think>\nFirst I read the problem, then I solve it.\n</think>\n<answer>{answer}</answer>\n"
    "So the answer is \\boxed{{{answer}}}.\n#### {answer}"
)
_READS = ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE")
_NOTHING_FOUND = re.compile(
    r": (?:\w+: 'NoneType' object |IndexError: |JSONDecodeError: "
    r"|ValueError: (?:substring not found|not enough values to unpack))"
)


def try_reward(
    fn: Callable[..., Any],
    reference: str,
    prompt: str,
    answer: str,
    columns: Mapping[str, Any],
    *,
    optional: bool,
) -> str:
    """Call the reward `fn`, in the recipe `reference`, on one row: its prompt, answer and columns.

    Raises `UserError` where it cannot be trained with. Where it failed on the bare answer, and may
    not on other completions, or is `optional`, the words of a warning are returned.
    """
    _check_call(fn, {**columns, "prompts": [prompt]})
    faults = _faults(fn, prompt, answer, columns)
    if not faults:
        return ""
    said = "; given a chat: ".join(dict.fromkeys(fault.message for fault in faults))
    if not optional:
        sure = is_shipped(fn) or is_url(reference)
        if sure or _fails_again(fn, prompt, answer, columns, faults):
            raise UserError(f"a trial call failed: {said}")
    return (
        f"{said}. It was given the row's answer alone, {answer!r:.60}; completions of a policy on "
        "which it fails leave their groups"
    )


def column_not_given(fn: Callable[..., Any], columns: Iterable[str]) -> str:
    """That the reward `fn` may wait for a column that it is not given; else empty.

    `def f(completion, answer="")` has no column `answer`, and `def f(completion, **kwargs)` none.
    """
    if not isinstance(fn, Reward) or is_shipped(fn):
        return ""
    if name := _catch_all_that_is_read(fn.fn):
        return (
            f"reward {fn.name!r} is given no columns in **{name}: a function of one completion "
            "names each column as a parameter"
        )
    given = ("prompt", POLICY_TEXT, *columns)
    like = [name for name in given if name in fn.defaults and name not in fn.options]
    if not like:
        return ""
    name, default = like[0], fn.defaults[like[0]]
    return (
        f"reward {fn.name!r} is not given the column {name!r}: its parameter has a default, so it "
        f"is an option, and stays {default!r:.40}. Leave the default out; or write "
        f"{name}=Column({default!r:.40}) where rows may lack it"
    )


def _catch_all_that_is_read(fn: Callable[..., Any]) -> str:
    """The name of the `**kwargs` that `fn` reads; empty where it has none, or leaves it alone."""
    bare = inspect.unwrap(fn.func if isinstance(fn, partial) else fn)
    code = getattr(bare, "__code__", None) or getattr(type(bare).__call__, "__code__", None)
    if code is None or not code.co_flags & inspect.CO_VARKEYWORDS:
        return ""
    before = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & inspect.CO_VARARGS)
    name = str(code.co_varnames[before])
    read = (i.argval for i in dis.get_instructions(code) if i.opname.startswith(_READS))
    return name if any(name == one or (type(one) is tuple and name in one) for one in read) else ""


def _check_call(fn: Callable[..., Any], columns: Mapping[str, Any]) -> None:
    """Raise `UserError` where the reward `fn` cannot be called on rows with these columns."""
    if not isinstance(fn, Reward):
        mistake = call_mistake(fn, name_of(fn), columns)
    else:
        try:
            fn.row({**columns, POLICY_TEXT: [""]}, 0)
            return
        except KeyError as error:
            mistake = str(error.args[0])
    if mistake:
        raise UserError(f"a trial call failed: {mistake}")


def _faults(
    fn: Callable[..., Any], prompt: str, text: str, columns: Mapping[str, Any]
) -> list[Fault]:
    """The faults of `fn` on the completion `text`; none where it judges it.

    A function of trl's own form may want chats or plain texts; which one is known only when the
    policy is open, so it has to take one of them.
    """
    chat = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": text}]
    faults: list[Fault] = []
    for asked, completion in ((prompt, text), chat):
        [outcome] = score_batch(fn, [completion], {**columns, "prompts": [asked]})
        if not isinstance(outcome, Fault):
            return []
        faults.append(outcome)
        if isinstance(fn, Reward):
            break
    return faults


def _fails_again(
    fn: Callable[..., Any],
    prompt: str,
    answer: str,
    columns: Mapping[str, Any],
    faults: Sequence[Fault],
) -> bool:
    """Whether `fn` has the same `faults` on a completion as a policy may write it."""
    if any(one.kind == "timeout" or _NOTHING_FOUND.search(one.message) for one in faults):
        return False
    again = _faults(fn, prompt, _WRITTEN.format(answer=answer), columns)
    return bool(again) and all(
        one.message == other.message or one.kind == other.kind == "value"
        for one, other in zip(faults, again, strict=True)
    )
