"""The verbs of `rl-reasoner`, each a dataclass of its arguments with a `run`.

Nothing heavy is imported before a verb needs it. Results go to standard output, all else to
standard error. `cli.py` parses the command line into these and turns errors into exit codes.
"""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional, arg

from rl_reasoner.cli.arguments import Json, Quiet, quiet, writable
from rl_reasoner.distributed import launcher, processes
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.foreign import check_run
from rl_reasoner.paths import room
from rl_reasoner.report.console import emit, err, new_table


@dataclass
class Train:
    """Run a recipe. Each of its fields is a flag: --group.size 16, --run.seed 1 …"""

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE")]] = None
    """a recipe's name, script or YAML file"""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """continue the run in this folder; with RECIPE or flags: do again what they change"""
    first: Annotated[str | None, arg(name="from", metavar="STAGE")] = None
    """begin with this stage, and do it again if it is finished"""
    until: Annotated[str | None, arg(metavar="STAGE")] = None
    """end after this stage"""
    launch: Annotated[str | None, arg(metavar="N|FILE")] = None
    """run in N processes on this machine, or as a file of `accelerate config` says"""
    quiet: Quiet = False
    json: Json = False
    flags: tyro.conf.Suppress[list[str]] = field(default_factory=list)

    def run(self) -> None:
        """Train; prints what came of it."""
        from rl_reasoner.recipe.load import load_recipe, place_of

        if self.resume is not None:
            source, flags = self._resumed(self.resume)
        elif self.recipe is not None:
            source, flags = self.recipe, self.flags
        else:
            raise UserError("train what? Give a recipe, or --resume RUN. See: rl-reasoner list")
        recipe, where = load_recipe(source, flags), place_of(source, flags)
        if self.launch is not None and processes.world_size() == 1:
            if code := launcher.launch(self.launch, self._arguments()):
                raise SystemExit(code)
            return
        if not self.quiet and processes.is_main():
            err.print("loading torch and transformers", style="dim")
        from rl_reasoner.pipeline.train import train

        done = train(
            recipe,
            resume=self.resume,
            quiet=self.quiet,
            command=shlex.join(["rl-reasoner", "train", source, *flags]),
            where=where,
            first=self.first,
            last=self.until,
        )
        if not processes.is_main():
            return
        value = {
            "run": str(done.folder),
            "policy": done.policy.source,
            "report": str(done.report),
            "evals": {name: result.sets for name, result in done.evals.items()},
        }
        tables = [f"\n{name}\n{result.table()}\n" for name, result in done.evals.items()]
        if recipe.evals.stages:
            from rl_reasoner.report.pipeline import text_table
            from rl_reasoner.report.run_data import read_run

            tables = [f"\n{text_table(read_run(done.folder))}\n"]
        ends = f"\npolicy  {done.policy.source}\nreport  {done.report}"
        emit(self.json, value, "".join([*tables, ends]))

    def _arguments(self) -> list[str]:
        """The command line of one of several processes."""
        given = {"--resume": self.resume, "--from": self.first, "--until": self.until}
        valued = [text for flag, value in given.items() if value for text in (flag, str(value))]
        bare = [f for f, on in (("--quiet", self.quiet), ("--json", self.json)) if on]
        return ["train", *filter(None, [self.recipe]), *valued, *bare, *self.flags]

    def _resumed(self, folder: Path) -> tuple[str, list[str]]:
        """The recipe that the run in `folder` goes on with, and its flags.

        Its own; or the one given, of the same name, with the flags that the run began with.
        """
        from rl_reasoner.pipeline.run_folder import begun_with
        from rl_reasoner.recipe.load import load_recipe

        own = str(folder / "recipe.yaml")
        check_run(folder)
        begun = load_recipe(own)
        if self.recipe is None:
            return own, self.flags
        flags = [*begun_with(folder), *self.flags]
        if (asked := load_recipe(self.recipe, flags).name) != begun.name:
            raise UserError(
                f"{folder} is a run of the recipe {begun.name!r}, not of {asked!r}: "
                "to continue it, give --resume alone"
            )
        return self.recipe, flags


@dataclass
class List:
    """What there is: recipes, rewards, sets, policies, tasks; or the schema of recipe files."""

    kind: Positional[Annotated[str | None, arg(metavar="KIND")]] = None
    """one of these kinds only, or `schema`: the JSON schema of YAML recipes, for editors"""
    json: Json = False

    def run(self) -> None:
        """Print the names, by kind."""
        if self.kind == "schema":
            from rl_reasoner.recipe.json_schema import recipe_schema, schema_text

            emit(self.json, recipe_schema(), schema_text().rstrip())
            return
        from rl_reasoner.dataset.sets import card_of, set_names
        from rl_reasoner.dataset.tasks.generate import TASKS
        from rl_reasoner.recipe.load import shipped_recipes
        from rl_reasoner.scoring.reward import shipped_rewards

        found = {
            "recipes": shipped_recipes(),
            "rewards": shipped_rewards(),
            "sets": set_names(),
            "policies": ["scratch:deepseek-tiny", "scratch:dense-tiny", "scratch:moe-tiny"],
            "tasks": sorted(TASKS),
        }
        if self.kind is not None and self.kind not in found:
            raise unknown("kind", self.kind, [*found, "schema"])
        chosen: dict[str, Any] = {self.kind: found[self.kind]} if self.kind else found
        if self.kind == "sets":
            cards = {name: card for name in found["sets"] if (card := card_of(name))}
            told = {n: {**asdict(c), "hub": c.hub and c.hub.path} for n, c in cards.items()}
            emit(self.json, {**chosen, "cards": told}, _card_table(found["sets"], cards))
            return
        if self.kind == "policies":
            from rl_reasoner.policy.opening import open_policy

            sizes = {
                name: open_policy(name, device="cpu").parameter_counts for name in found["policies"]
            }
            told = {n: {"parameters": a, "active_parameters": b} for n, (a, b) in sizes.items()}
            emit(self.json, {**chosen, "sizes": told}, _size_table(sizes))
            return
        table = new_table("kind", "names")
        for kind, names in chosen.items():
            table.add_row(kind, ", ".join(names))
        emit(self.json, chosen, table)


def _size_table(sizes: Mapping[str, tuple[int, int]]) -> Table:
    table = new_table("policy", "parameters", "active for a token")
    for name, (total, active) in sizes.items():
        table.add_row(name, f"{total:,}", f"{active:,}")
    return table


def _card_table(names: Sequence[str], cards: Mapping[str, Any]) -> Table:
    from rl_reasoner.dataset.sets import find_set

    table = new_table("set", "problems", "what", "licence", "from", "defects")
    for name in names:
        card = cards.get(name)
        place = "here" if find_set(name) else "hub" if card and card.hub else "not here"
        facts = (str(card.size), card.about, card.licence) if card else ("", "", "")
        table.add_row(name, *facts, place, card.defects if card else "")
    return table


@dataclass
class Copy:
    """Copy a shipped recipe or reward here, to change it."""

    name: Positional[str]
    """quickstart, quickstart.yaml, rewards/length …"""
    to: Positional[Path] = Path()
    """a folder or a file name"""
    json: Json = False

    def run(self) -> None:
        """Copy one file; never overwrites."""
        from rl_reasoner.recipe.json_schema import with_schema
        from rl_reasoner.recipe.load import find_recipe

        if self.name.startswith("rewards/"):
            stem = self.name.removeprefix("rewards/").removesuffix(".py")
            source = room("rewards") / f"{stem}.py"
            if not source.is_file() or stem == "__init__":
                from rl_reasoner.scoring.reward import shipped_rewards

                raise unknown("reward", stem, shipped_rewards())
        else:
            source = find_recipe(self.name)
        target = self.to / source.name if self.to.is_dir() else self.to
        if os.path.lexists(target):
            raise UserError(f"{target} exists already; give another name")
        writable(target).parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(with_schema(text) if source.suffix == ".yaml" else text, encoding="utf-8")
        recipe = not self.name.startswith("rewards/")
        use = f"; run it with: rl-reasoner train {target}" if recipe else ""
        emit(self.json, {"copied": str(target)}, f"copied to {target}{use}")


@dataclass
class Report:
    """Write report.html of a run again, or the page of a saved evaluation.

    With --live the page is served while the run trains, and shows what comes.
    """

    source: Positional[Annotated[Path, arg(metavar="RUN")]]
    """the run's folder, or the JSON file of an evaluation"""
    live: FlagCreatePairsOff[bool] = False
    """serve the page on 127.0.0.1, at an address with a token, until Ctrl-C"""
    port: int = 0
    """with --live: the port (0: any that is free)"""
    json: Json = False

    def run(self) -> None:
        """Write the page and print its path, or serve it and print its address."""
        from rl_reasoner.report import serve_report, write_evaluation, write_report

        if self.live:
            check_run(self.source)
            serve_report(self.source, self.port, lambda url: emit(self.json, {"live": url}, url))
            return
        if self.source.suffix == ".json":
            target = writable(self.source.with_suffix(".html"))
            path = write_evaluation([self.source], target)
        else:
            check_run(self.source)
            writable(self.source / "report.html")
            path = write_report(self.source)
        emit(self.json, {"report": str(path)}, str(path))


@dataclass
class Export:
    """Write a policy to a folder that opens anywhere in transformers."""

    policy: Positional[str]
    """a run or policy folder (adapters are merged), a .gguf file, a hub id"""
    to: Positional[Path]
    """a new folder"""
    dtype: str = "fp32"
    """fp32 or bf16"""
    fp8: FlagCreatePairsOff[bool] = False
    """linear layers and experts in FP8 blocks, as DeepSeek-V3's; the rest as --dtype"""
    upcycle: Annotated[int | None, arg(metavar="N")] = None
    """make a mixture of N experts of a dense policy, which computes the same"""
    chosen: int = 2
    """how many of them a token goes to"""
    json: Json = False

    def run(self) -> None:
        """Open, merge, convert, save."""
        if os.path.lexists(self.to):
            raise UserError(f"{self.to} exists already; give a new folder")
        if self.dtype not in ("fp32", "bf16"):
            raise unknown("dtype", self.dtype, ["fp32", "bf16"])
        writable(self.to)
        import torch

        from rl_reasoner.policy.fp8_weights import check_fp8, write_fp8
        from rl_reasoner.policy.opening import merge_adapter, open_policy

        quiet()
        policy = open_policy(self.policy, device="cpu")
        merge_adapter(policy)
        if self.upcycle is not None:
            from rl_reasoner.moe.upcycling import upcycled

            policy.model = upcycled(policy.model, self.upcycle, self.chosen)
        policy.model.to(torch.bfloat16 if self.dtype == "bf16" else torch.float32)
        if self.fp8:
            check_fp8(policy.model)
        policy.save(self.to)
        if self.fp8:
            write_fp8(policy.model, self.to)
        emit(self.json, {"policy": str(self.to)}, str(self.to))


@dataclass
class Env:
    """Versions, device, precision, sandbox on this machine; with --plan, a run on other GPUs."""

    plan: Annotated[str | None, arg(metavar="RECIPE")] = None
    """a recipe to plan instead: memory, time of a step, where it breaks"""
    gpus: int = 8
    """of the plan: how many GPUs"""
    gpu: str = "H100"
    """of the plan: which GPU"""
    json: Json = False

    def run(self) -> None:
        """Print what is here, or the plan."""
        if self.plan is not None:
            self._plan(self.plan)
            return
        import importlib.metadata
        import platform

        import torch

        from rl_reasoner import sandbox
        from rl_reasoner.policy.opening import choose_device, choose_precision
        from rl_reasoner.version import __version__

        device = choose_device()
        names = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "sympy")
        value = {
            "rl_reasoner": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "device": device,
            "card": torch.cuda.get_device_name() if device == "cuda" else None,
            "precision": choose_precision("auto", device),
            "sandbox": str(sandbox.strength()),
            **{name: importlib.metadata.version(name) for name in names},
        }
        table = new_table("what", "here")
        for key, here in value.items():
            table.add_row(key, "none" if here is None else str(here))
        emit(self.json, value, table)

    def _plan(self, source: str) -> None:
        from rl_reasoner.pipeline import capacity_planner
        from rl_reasoner.recipe.load import load_recipe

        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: at least one")
        plans = capacity_planner.plan(load_recipe(source), self.gpus, self.gpu)
        table = new_table("part", *(f"{p.stage} on {p.gpus} {p.gpu}" for p in plans))
        for row in capacity_planner.rows_of(plans):
            table.add_row(*row)
        emit(self.json, {"plans": [p.to_json() for p in plans]}, table)


@dataclass
class ShellCompletion:
    """Print a shell's completion script.

    bash and zsh: source <(rl-reasoner completion bash). fish: rl-reasoner completion fish | source
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """the shell"""

    def run(self) -> None:
        """Print it."""
        from rl_reasoner.cli.dispatch import completion_of

        completion_of(self.shell)
