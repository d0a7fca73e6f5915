"""The verb `env`: this machine as the programs see it, or a plan for other GPUs."""

import os
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro
from tyro.conf import arg

from rl_reasoner.cli.arguments import Count, Json, Name, check_numbers
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.errors import UserError
from rl_reasoner.report.console import emit, new_table


@dataclass
class EnvVerb:
    """Versions, device, precision, sandbox on this machine; with --plan, a run on other GPUs.

    With --plan each field of the recipe is a flag, as for train: --vllm.mode server …
    """

    plan: Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="")] = None
    """a recipe to plan instead: memory, time per step, and what does not fit"""
    gpus: Count = None
    """with --plan: how many GPUs train (default: 8; on a CPU 1)"""
    gpu: Name = None
    """with --plan: which GPU (default: H100), or cpu: this machine, its constants measured"""
    server_gpus: Count = None
    """with --plan and vllm.mode server: GPUs of the server, beside --gpus (left out: as many)"""
    json: Json = False
    flags: tyro.conf.Suppress[list[str]] = field(default_factory=list)

    def run(self) -> None:
        """Print what is here, or the plan."""
        if self.plan is not None:
            self._plan(self.plan)
            return
        of_plan = ("gpus", "gpu", "server_gpus")
        if given := [f"--{n.replace('_', '-')}" for n in of_plan if getattr(self, n) is not None]:
            raise UserError(
                f"{', '.join(given)}: only with --plan RECIPE; env alone shows this machine"
            )
        with told_if_long("loading torch and measuring the machine"):
            value = self._machine()
        table = new_table("what", "value")
        for key, here in value.items():
            table.add_row(key, "none" if here is None else str(here))
        emit(self.json, value, table)

    def _machine(self) -> dict[str, Any]:
        """What is here, by its name."""
        import platform

        import torch

        from rl_reasoner import sandbox
        from rl_reasoner.policy.device import choose_device, choose_precision
        from rl_reasoner.provenance import untested, versions
        from rl_reasoner.version import __version__, out_of_range

        device = choose_device()
        return {
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
            "packages": "; ".join(filter(None, [untested(), *out_of_range()])) or "as tested",
            "faster ways": _faster_ways(),
        }

    def _plan(self, source: str) -> None:
        from rl_reasoner.planning.plan import CPU, plan, table_rows
        from rl_reasoner.recipe.load import load_recipe

        check_numbers(None, gpus=self.gpus, server_gpus=self.server_gpus)
        recipe = load_recipe(source, self.flags)
        gpu = self.gpu or "H100"
        with told_if_long("measuring this machine" if gpu == CPU else "counting parameters"):
            plans = plan(recipe, self.gpus or (1 if gpu == CPU else 8), gpu, self.server_gpus or 0)
        table = new_table("part", *(f"{p.stage} on {p.gpus} {p.gpu}" for p in plans))
        for row in table_rows(plans):
            table.add_row(*row)
        emit(self.json, {"plans": [p.to_json() for p in plans]}, table)


def _faster_ways() -> str:
    """Whether a small dense model and a mixture still compute as our layouts and passes take it.

    The same proofs run on a user's own model when training starts; see `rollout.agreement`.
    """
    from rl_reasoner.policy.opening import open_policy
    from rl_reasoner.rollout import agreement, decode_pass

    lost: dict[str, None] = {}
    for source in ("scratch:dense-tiny", "scratch:moe-tiny"):
        model: Any = open_policy(source, seed=0, device="cpu").model
        sampling = agreement.sampling_obstacle(model.eval())
        unproved = None if decode_pass.is_proved(model) else decode_pass.decode_obstacle(model)
        for way, reason in {
            "packed pass (training takes 4 to 7 times as long)": agreement.packing_obstacle(
                model.train()
            ),
            "fused modules": agreement.fusing_obstacle(model),
            "engine (sampling takes 5 to 7 times as long)": sampling,
            "compiled pass over new tokens": unproved,
        }.items():
            if reason is not None:
                lost[f"without: {way} ({source}: {reason})"] = None
    return "; ".join(lost) or "all agree: packed pass, fused modules, engine, pass over new tokens"


def _measured(device: str) -> dict[str, Any]:
    """What this machine multiplies with, by the time that it takes; on a GPU torch decides."""
    if device != "cpu":
        return {}
    from rl_reasoner.kernels import decoding, native, products
    from rl_reasoner.kernels.packed_linear import (
        PACKED_TYPES,
        few_rows_timed,
        sampling_weights_timed,
    )
    from rl_reasoner.rollout.sampling_weights import LARGE

    chosen = products.chosen()
    measured = {}
    for kind in products.CLASSES:
        rates = chosen.get("rates", {}).get(kind, {})
        told = ", ".join(f"{way} {rate}" for way, rate in rates.items()) or "not measured"
        measured[f"products: {kind}"] = f"{chosen[kind]} (GFLOP/s: {told})"
    bf16 = products.bf16_rates()
    measured["products: bf16"] = f"GFLOP/s: {bf16['bf16']}, beside {bf16['fp32']} in fp32"
    for dtype, name in PACKED_TYPES.items():
        few = few_rows_timed(dtype)
        told = ", ".join(f"{way} {ms}" for way, ms in few.get("ms", {}).items())
        measured[f"products of few rows: {name}"] = f"{few['way']} (ms: {told or 'not measured'})"
    measured["compiled operations"] = native.described()
    compiled = decoding.operations() is not None
    measured["pass over new tokens"] = "compiled" if compiled else "by torch's operations"
    timed = sampling_weights_timed()
    told = ", ".join(f"{dtype} {ms}" for dtype, ms in timed.get("ms", {}).items())
    weights = f"{timed['dtype']} (128 MiB for 32 rows, ms: {told or 'not measured'})"
    measured[f"sampling weights from {LARGE >> 20} MiB"] = weights
    return measured
