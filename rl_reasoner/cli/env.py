"""The verb `env`: this machine as the programs see it, or a plan for other GPUs."""

import os
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import arg

from rl_reasoner.cli.arguments import Json
from rl_reasoner.errors import UserError
from rl_reasoner.report.console import emit, new_table


@dataclass
class EnvVerb:
    """Versions, device, precision, sandbox on this machine; with --plan, a run on other GPUs."""

    plan: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="")] = None
    """a recipe to plan instead: memory, time per step, and what does not fit"""
    gpus: int = 8
    """with --plan: how many GPUs"""
    gpu: str = "H100"
    """with --plan: which GPU"""
    json: Json = False

    def run(self) -> None:
        """Print what is here, or the plan."""
        if self.plan is not None:
            self._plan(self.plan)
            return
        import platform

        import torch

        from rl_reasoner import sandbox
        from rl_reasoner.policy.device import choose_device, choose_precision
        from rl_reasoner.provenance import versions
        from rl_reasoner.version import __version__

        device = choose_device()
        value = {
            "rl_reasoner": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "device": device,
            "card": torch.cuda.get_device_name() if device == "cuda" else None,
            "precision": choose_precision("auto", device),
            **_measured(device),
            "sandbox": str(sandbox.strength()),
            **versions(),
        }
        table = new_table("what", "value")
        for key, here in value.items():
            table.add_row(key, "none" if here is None else str(here))
        emit(self.json, value, table)

    def _plan(self, source: str) -> None:
        from rl_reasoner.pipeline import capacity_planner
        from rl_reasoner.recipe.load import load_recipe

        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: expected 1 or more")
        plans = capacity_planner.plan(load_recipe(source), self.gpus, self.gpu)
        table = new_table("part", *(f"{p.stage} on {p.gpus} {p.gpu}" for p in plans))
        for row in capacity_planner.table_rows(plans):
            table.add_row(*row)
        emit(self.json, {"plans": [p.to_json() for p in plans]}, table)


def _measured(device: str) -> dict[str, Any]:
    """What this machine multiplies with, by the time that it takes; on a GPU torch decides."""
    if device != "cpu":
        return {}
    from rl_reasoner.kernels import decoding, native, products
    from rl_reasoner.kernels.packed_linear import sampling_weights_timed
    from rl_reasoner.rollout.sampling_weights import LARGE

    chosen = products.chosen()
    measured = {}
    for kind in products.CLASSES:
        rates = chosen.get("rates", {}).get(kind, {})
        told = ", ".join(f"{way} {rate}" for way, rate in rates.items()) or "not measured"
        measured[f"products: {kind}"] = f"{chosen[kind]} (GFLOP/s: {told})"
    measured["compiled operations"] = native.described()
    compiled = decoding.operations() is not None
    measured["pass over new tokens"] = "compiled" if compiled else "by torch's operations"
    timed = sampling_weights_timed()
    told = ", ".join(f"{dtype} {ms}" for dtype, ms in timed.get("ms", {}).items())
    weights = f"{timed['dtype']} (128 MiB for 32 rows, ms: {told or 'not measured'})"
    measured[f"sampling weights from {LARGE >> 20} MiB"] = weights
    return measured
