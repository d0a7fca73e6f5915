"""What answers a policy turn by turn: environments, and finding them by name.

`environment` says what an environment is and what a turn of it gives, `guess` and `grid` are
small games, `runner` plays many episodes at once, `apart` is the process that a user's environment
runs in. The bridges run what was written for others: trl's `environment_factory`, `verifiers`,
`reasoning_gym`.
May import the tools (whose processes it shares), the scoring of rewards and the ground; torch-free.
Knows nothing of tokens, trainers and engines.
"""

import importlib

from rl_reasoner.environments.environment import Factory
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.scoring.registry import function_of, import_module_of

__all__ = ["ENVIRONMENTS", "load_environment"]

ENVIRONMENTS = {
    "grid": "Grid",
    "guess": "Guess",
    "reasoning_gym": "ReasoningGym",
    "trl": "TrlEnvironment",
    "verifiers": "VerifiersTaskset",
}
"""Environments that come with the package: each is the class in the module of its name."""


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
        place = importlib.import_module(f"rl_reasoner.environments.{given}")
        found = getattr(place, ENVIRONMENTS[given])
    if not callable(found):
        raise UserError(f"environment {given!r} is {type(found).__name__}, not a class")
    made: Factory = found
    return made
