"""What a trial call of a reward shows before a run: a mistake in it, or only a row that failed.

A reward may raise on the one completion that it is tried on (`re.search(...).group(1)` on an answer
without tags), and judge those of a policy all the same. That costs rows, not the run. What no
completion changes is a mistake: a name that is not there, a call that does not fit, a wrong kind of
value. A shipped reward, or one at a URL, raises for what it was given, whatever the completion.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.scoring.batch import POLICY_TEXT
from rl_reasoner.scoring.reward import Reward, is_shipped, name_of
from rl_reasoner.scoring.trl_form import call_mistake
from rl_reasoner.types import Fault

_NEVER_RIGHT = {"UserError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError"}
_NEVER_RIGHT |= {"SyntaxError", "IndentationError"}
_ARGUMENTS = re.compile(
    r"missing \d+ required|unexpected keyword argument|positional arguments? but"
    r"|takes no (?:keyword )?arguments|multiple values for (?:keyword )?argument"
)


def check_call(fn: Callable[..., Any], columns: Mapping[str, Any]) -> None:
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


def is_mistake(
    fn: Callable[..., Any], reference: str, faults: Sequence[Fault], *, optional: bool
) -> bool:
    """Whether the `faults` of all trial calls of `fn` show that no run should begin with it.

    `reference` is its name in the recipe; the faults of an `optional` reward cost nothing.
    """
    if optional:
        return False
    if is_shipped(fn) or reference.startswith(("http://", "https://")):
        return True
    return all(fault.kind == "value" or _raised_anywhere(fault, name_of(fn)) for fault in faults)


def _raised_anywhere(fault: Fault, name: str) -> bool:
    """Whether a fault's message (`outcome.faulted`) is of an exception that no row would escape."""
    kind, _, words = fault.message.removeprefix(f"reward {name!r}: ").partition(": ")
    return kind in _NEVER_RIGHT or (kind == "TypeError" and bool(_ARGUMENTS.search(words)))
