"""The verb `train`: a recipe, run or continued."""

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json, Quiet, RunOption, StageName
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.distributed import launcher, processes
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.errors import UserError
from rl_reasoner.paths import check_goes_on, check_run
from rl_reasoner.report.console import emit, err, wrapped

if TYPE_CHECKING:
    from rl_reasoner.pipeline.train import Run
    from rl_reasoner.recipe.recipe import Recipe


@dataclass
class TrainVerb:
    """Run a recipe. Each of its fields is a flag: --group.size 16, --run.seed 1 …"""

    recipe: Positional[Annotated[str | None, arg(metavar="RECIPE", help_behavior_hint="")]] = None
    """a recipe's name, script or YAML file"""
    resume: RunOption = None
    """continue the run in this folder; with RECIPE or flags, run changed stages again"""
    first: Annotated[str | None, arg(name="from", metavar="STAGE", help_behavior_hint="")] = None
    """start with this stage, and run it again if it is finished"""
    until: StageName = None
    """stop after this stage"""
    launch: Annotated[str | None, arg(metavar="N|FILE", help_behavior_hint="")] = None
    """run in N processes on this machine, or as in a file of `accelerate config`"""
    quiet: Quiet = False
    json: Json = False
    flags: tyro.conf.Suppress[list[str]] = field(default_factory=list)

    def run(self) -> None:
        """Train, and print the result."""
        from rl_reasoner.recipe.load import read_recipe

        source, flags = self._source()
        recipe, locate = read_recipe(source, flags)
        self._check_name(recipe.name)
        self._check_places(recipe)
        if self.launch is not None and processes.world_size() == 1:
            if code := launcher.launch(self.launch, self._arguments()):
                raise SystemExit(code)
            return
        from rl_reasoner.pipeline.inputs import read_inputs

        with told_if_long("reading the data, and calling each reward once"):
            inputs = read_inputs(recipe, locate, starts=self.resume is None)
        if not self.quiet and processes.is_main():
            err.print("loading torch and transformers", style="dim")
        load_for_good("rl_reasoner.pipeline.train")
        from rl_reasoner.pipeline.train import train

        done = train(
            recipe,
            resume=self.resume,
            quiet=self.quiet,
            command=shlex.join(["rl-reasoner", "train", source, *flags]),
            locate=locate,
            inputs=inputs,
            first=self.first,
            last=self.until,
        )
        if not processes.is_main():
            return
        with told_if_long("comparing before and after problem by problem"):
            value, text = self._result(recipe, done)
        emit(self.json, value, text)

    def _result(self, recipe: "Recipe", done: "Run") -> tuple[dict[str, Any], str]:
        """What came of a run: for programs, and as text."""
        from rl_reasoner.report.controls import controls_table, read_controls
        from rl_reasoner.report.first_screen import gains
        from rl_reasoner.report.paired import add_paired_tests
        from rl_reasoner.report.pipeline import text_table
        from rl_reasoner.report.run_data import read_run

        value: dict[str, Any] = {
            "run": str(done.folder),
            "policy": done.policy.source,
            "report": str(done.report),
            "evals": {name: result.sets for name, result in done.evals.items()},
        }
        tables = [f"\n{name}\n{result.table()}\n" for name, result in done.evals.items()]
        if recipe.evals.stages:
            tables = [f"\n{text_table(read_run(done.folder))}\n"]
        elif not self.json:
            paired = add_paired_tests(read_run(done.folder))
            tables += [f"\n{wrapped(f'{name}: {words}')}\n" for name, words in gains(paired)]
        if recipe.controls and (controls := read_controls(done.folder)):
            value["controls"] = controls
            tables.append(f"\n{controls_table(controls)}\n")
        ends = f"\npolicy  {done.policy.source}\nreport  {done.report}"
        return value, "".join([*tables, ends])

    def _arguments(self) -> list[str]:
        """The command line of one of several processes."""
        options = {"--resume": self.resume, "--from": self.first, "--until": self.until}
        valued = [text for flag, value in options.items() if value for text in (flag, str(value))]
        bare = [f for f, on in (("--quiet", self.quiet), ("--json", self.json)) if on]
        return ["train", *filter(None, [self.recipe]), *valued, *bare, *self.flags]

    def _source(self) -> tuple[str, list[str]]:
        """The recipe to run, and its flags.

        A resumed run's own; or the one given, with the flags that the run was given so far.
        """
        if self.resume is None:
            if self.recipe is None:
                raise UserError("train what? Give a recipe, or --resume RUN. See: rl-reasoner list")
            return self.recipe, self.flags
        from rl_reasoner.pipeline.run_folder import given_flags

        check_run(self.resume)
        check_goes_on(self.resume)
        if self.recipe is None:
            return str(self.resume / "recipe.yaml"), self.flags
        return self.recipe, [*given_flags(self.resume), *self.flags]

    def _check_places(self, recipe: "Recipe") -> None:
        """Raise `UserError` where a stage to begin or end with, or the run folder, cannot be."""
        from rl_reasoner.pipeline.lineage import window_of
        from rl_reasoner.pipeline.run_folder import RunFolder

        window_of(recipe, self.first, self.until)
        moved = any(flag.partition("=")[0] == "--run.folder" for flag in self.flags)
        other = Path(recipe.run.folder or ".").resolve()
        if self.resume is not None and moved and other != self.resume.resolve():
            raise UserError(
                f"--run.folder {recipe.run.folder}: a run stays in its own folder, "
                f"{self.resume}. For another beside it, copy that folder, and resume the copy"
            )
        if self.resume is None and processes.is_main():
            RunFolder.new_path(recipe)

    def _check_name(self, name: str) -> None:
        """Raise `UserError` where another recipe is given than the one of the run to resume."""
        if self.resume is None or self.recipe is None:
            return
        from rl_reasoner.recipe.load import load_recipe

        begun = load_recipe(str(self.resume / "recipe.yaml")).name
        if name != begun:
            raise UserError(
                f"{self.resume} is a run of the recipe {begun!r}, not of {name!r}: "
                "to resume it, give --resume alone"
            )
