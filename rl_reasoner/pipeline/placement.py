"""Where a run computes, and how: decided once, at the door of a run, and handed on as a value."""

from dataclasses import dataclass

from rl_reasoner.distributed.processes import world_size
from rl_reasoner.errors import UserError
from rl_reasoner.policy.device import choose_device, choose_precision
from rl_reasoner.recipe.load import Locate
from rl_reasoner.recipe.recipe import Recipe


@dataclass(frozen=True)
class Placement:
    """The device, the precision and the number of processes of a run."""

    device: str
    """ "cpu", "cuda" or "mps" """
    precision: str
    """ "fp32", "bf16", "fp16" or "fp8" (see `choose_precision`)"""
    processes: int = 1


def choose_placement(recipe: Recipe, locate: Locate | None = None) -> Placement:
    """Decide where `recipe` computes on this machine, in this process's job.

    Raises `UserError` where its device is not there, with the place that `locate` gives.
    """
    try:
        device = choose_device(recipe.run.device)
    except UserError as error:
        at = f"{locate(('run', 'device'))}: " if locate else ""
        raise UserError(*(f"{at}{message}" for message in error.messages)) from error
    return Placement(device, choose_precision(recipe.run.precision, device), world_size())
