"""What answers a policy turn by turn: environments, and finding them by name.

`environment` says what an environment is and what a turn of it gives, `runner` plays many episodes
at once, `apart` is the process that a user's environment runs in, `games` has small ones. The
bridges run what was written for others: trl's `environment_factory`, `verifiers`, `reasoning_gym`.
May import the tools (whose processes it shares), the scoring of rewards and the ground; torch-free.
Knows nothing of tokens, trainers and engines.
"""

import importlib

from rl_reasoner.environments.environment import Factory
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring.registry import function_of, import_module_of

__all__ = ["ENVIRONMENTS", "load_environment"]

ENVIRONMENTS = {
    "grid": "games.grid:Grid",
    "guess": "games.guess:Guess",
    "reasoning_gym": "reasoning_gym:ReasoningGym",
    "trl": "trl:TrlEnvironment",
    "verifiers": "verifiers:VerifiersTaskset",
}
"""Environments that come with the package: module of this room and class."""


def load_environment(given: str | Factory) -> Factory:
    """The class (or function) that makes environments, which a reference names.

    A reference is the name of a built-in one, "path/file.py:Class" or "package.module:Class".
    Raises `UserError`.
    """
    if not isinstance(given, str):
        return given
    module, _, name = given.rpartition(":")
    if not module and given.endswith(".py"):
        raise UserError(f"environment {given!r} names no class: write {given}:NAME")
    if not module and given not in ENVIRONMENTS:
        raise unknown("environment", given, ENVIRONMENTS)
    if module:
        found = function_of(import_module_of(module, given, "environment"), name, given)
    else:
        place, _, name = ENVIRONMENTS[given].partition(":")
        found = getattr(importlib.import_module(f"{__name__}.{place}"), name)
    if not callable(found):
        raise UserError(f"environment {given!r} is {type(found).__name__}, not a class")
    made: Factory = found
    return made
