"""The stages of a run: what is to do, from which policy, and what is finished.

`train(recipe)` makes the run folder and takes policies through the stages: supervised fine-tuning,
GRPO, rejection sampling, distillation. Each goes on from the stage before it or from the one that
it names, and has a folder of its own with what it was made from (`lineage`). What is finished is
never done again, unless the recipe now makes it from something else; inside a stage, `resume` goes
on from its last checkpoint. The run is evaluated before its first GRPO stage and at the end, or
after every stage. Of several processes (`launch`) the first one does all this, and tells the others
which stage to train with it. This module knows recipes; trainers do not.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.templates import render
from rl_reasoner.distributed import launcher, processes
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.evaluation.evaluate import evaluate_recipe
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import write_json, write_text
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.pipeline.lineage import (
    brought,
    data_in,
    differences,
    facts_of,
    hash_of,
    hash_of_source,
    window_of,
)
from rl_reasoner.pipeline.lock import find_overlaps, lock
from rl_reasoner.pipeline.preflight import Where, Work, inspected, prepared, read_stage_rows
from rl_reasoner.pipeline.rejection_sampling import make_samples, take_over
from rl_reasoner.pipeline.run_folder import RunFolder
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.pipeline.stage_training import train_stage
from rl_reasoner.pipeline.trl_configs import check_filled
from rl_reasoner.policy.device import choose_device, choose_precision
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.policy.opening import open_policy, quiet_libraries
from rl_reasoner.policy.policy import Policy
from rl_reasoner.provenance import made_with
from rl_reasoner.recipe.old_names import current_stage
from rl_reasoner.recipe.recipe import (
    DistillStage,
    Recipe,
    SampleStage,
    Stage,
    StageData,
    data_sources,
)
from rl_reasoner.report import write_report
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.rollout.sampler import prompt_ids
from rl_reasoner.scoring.runner import give_up_all
from rl_reasoner.training.checkpointing.signals import Stop
from rl_reasoner.types import Row


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its policy, its evaluations by name, its report."""

    folder: Path
    policy: Policy
    evals: Mapping[str, EvalResult]
    report: Path


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    quiet: bool = False,
    command: str | None = None,
    where: Where | None = None,
    first: str | None = None,
    last: str | None = None,
) -> Run:
    """Run `recipe` to its end, or go on with the run in the folder `resume`.

    What a run has finished stays; where `recipe` is not the one that it began with, the stages that
    came of something else are done again, and what was there is moved to `old/N/` in the folder.
    `first` and `last` name the stages to begin and to end with; `first` is done again if it is
    finished. Raises `UserError` for what the user can mend (before anything is loaded where
    possible), `Interrupted` when it was asked to stop, `RunStopped` when it cannot go on by itself
    (a reward broke down, the training diverged, the disk is full); each leaves a checkpoint to
    resume from.
    """
    quiet_libraries()
    processes.join(choose_device(recipe.run.device))
    window = window_of(recipe, first, last)
    work = prepared(recipe, where)
    if not processes.is_main():
        return _followed(work)
    if resume is None:
        run, saved = RunFolder.create(recipe), recipe
    else:
        run, saved = RunFolder.reopen(resume)
        recipe = recipe.in_folder(saved.run.folder)
    try:
        if saved.name != recipe.name:
            raise UserError(f"{resume} is a run of the recipe {saved.name!r}, not {recipe.name!r}")
        launcher.tell_launcher(run.path)
        processes.broadcast((run.path, recipe))
        with LiveView(quiet=quiet) as view, Stop(view.note) as stop:
            if saved != recipe:
                _changed(saved, recipe, run, view)
            with Threads() as threads:
                session = _Session(recipe, run, view, stop, work, threads)
                return session.go(window, first is not None, command)
    except KeyboardInterrupt as error:
        give_up_all()
        raise Interrupted(run.path) from error
    except RunStopped as error:
        error.folder = str(run.path)
        raise
    except UserError:
        if resume is None:
            run.discard()
        raise
    finally:
        run.release()


def _followed(work: Work) -> Run:
    """The run in a process that is not the first one: it trains what that one says."""
    path, recipe = processes.broadcast((Path(), None))
    assert recipe is not None
    try:
        with LiveView(quiet=True) as view, Stop(view.note) as stop, Threads() as threads:
            return _Session(recipe, RunFolder(path), view, stop, work, threads).follow()
    except KeyboardInterrupt as error:
        give_up_all()
        raise Interrupted(path) from error


def _changed(saved: Recipe, recipe: Recipe, run: RunFolder, view: LiveView) -> None:
    """Make the run one of another recipe; say which stages it concerns."""
    run.change(recipe)
    before = {stage.name: stage for stage in saved.stages}
    concerned: list[str] = []
    for stage in recipe.stages:
        if before.get(stage.name) != stage or {*recipe.needs(stage)} & {*concerned}:
            concerned.append(stage.name)
    told = f"changed, or after what has changed: {', '.join(concerned)}" if concerned else ""
    view.note(f"the recipe is another than before; {told or 'its stages are the same'}")


# ---------------------------------------------------------------------------------- session


class _Session:
    """One process's way through the stages of a run."""

    def __init__(
        self,
        recipe: Recipe,
        run: RunFolder,
        view: LiveView,
        stop: Stop,
        work: Work,
        threads: Threads,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.view = view
        self.stop = stop
        self.work = work
        self.threads = threads
        self.device = choose_device(recipe.run.device)
        self.precision = choose_precision(recipe.run.precision, self.device)
        self.evals: dict[str, EvalResult] = {}
        self.made: dict[str, str] = {}  # stage -> hash of what it has made
        self.at_hand: tuple[_From, Policy] | None = None  # the policy that is open

    def go(self, window: range, again: bool, command: str | None) -> Run:
        """The stages of `window` that are not finished, the evaluations, the report.

        With `again` the window's first stage is done again though it is finished.
        """
        recipe = self.recipe
        self.run.arrange([stage.name for stage in recipe.stages])
        wanted = [i for i, s in enumerate(recipe.stages) if i in window or s.reuse is not None]
        wanted = [i for i in wanted if i < window.stop]
        self._needed(wanted)
        self._look_over(command)
        if recipe.evals.stages and not recipe.policy.source.startswith("scratch:"):
            self._evaluate("base", _From(None, recipe.policy.source))
        first = next((i for i, s in enumerate(recipe.stages) if s.kind == "grpo"), 0)
        for index in wanted:
            stage = recipe.stages[index]
            if index == first:
                self._evaluate("before", self._start(stage))
            self._stage(index, stage, again=again and index == window[0])
            if recipe.evals.stages and stage.kind != "sample":
                self._evaluate(stage.name, _From(stage.name))
        trained = [s.name for s in recipe.stages[: window.stop] if s.kind != "sample"]
        place = _From(trained[-1]) if trained else _From(None, recipe.policy.source)
        policy = self._policy(place)
        if trained:
            policy.source = str(self._folder(trained[-1]) / "policy")
        if all(self._finished(i) for i in range(len(recipe.stages))):
            self._evaluate("after", place)
            policy.save(self.run.path / "policy")
            policy.source = str(self.run.path / "policy")
        report = write_report(self.run.path)
        processes.broadcast(_Order(None, place, policy.source))
        return Run(self.run.path, policy, self.evals, report)

    def follow(self) -> Run:
        """Train the stages that the first process names, until it has come to the end."""
        while (order := processes.broadcast(_Order(None, _From(None)))).index is not None:
            stage = self.recipe.stages[order.index]
            self._train(order.index, stage, order.place, self._folder(stage.name))
        policy = self._policy(order.place)
        policy.source = order.source
        files = sorted((self.run.path / "evals").glob("*.json"))
        evals = {file.stem: EvalResult.load(file) for file in files}
        return Run(self.run.path, policy, evals, self.run.path / "report.html")

    # ----------------------------------------------------------------------------- before it

    def _needed(self, wanted: Sequence[int]) -> None:
        """Raise `UserError` where a stage is lacking that one of the `wanted` needs."""
        names = [stage.name for stage in self.recipe.stages]
        for index in wanted:
            for name in self.recipe.needs(self.recipe.stages[index]):
                at = names.index(name)
                if at not in wanted and not self._finished(at):
                    raise UserError(
                        f"stage {names[index]} needs stage {name}, which is not finished in "
                        f"{self.run.path}: begin with --from {name}, or give a folder with "
                        f"--{name}.reuse"
                    )

    def _look_over(self, command: str | None) -> None:
        """Inspect the policy that comes next and the machine; write what the run is made with."""
        todo = [s for i, s in enumerate(self.recipe.stages) if not self._finished(i)]
        stage = todo[0] if todo else self.recipe.stages[-1]
        start = self._start(stage) if todo else _From(stage.name)
        policy = self._policy(start)
        # can a prompt be rendered?
        prompt = render("", self.recipe.template, policy.tokenizer, self.recipe.system)
        prompt_ids(policy, prompt)
        self._inspect(policy)
        note = self.view.note
        lock(self.run, self.recipe, policy, self.threads.suit(policy.model), command, note)
        find_overlaps(self.run, self.recipe, [r for rows in self.work.rows for r in rows], note)

    def _inspect(self, policy: Policy) -> None:
        """Say what is doubtful about the run; raises `UserError` for what cannot work."""
        notices = inspected(self.recipe, self.work, policy, self.run.path)
        if failed := [str(notice) for notice in notices if notice.status == "failed"]:
            raise UserError(*failed)
        for notice in notices:
            if notice.status == "warned":
                self.view.note(str(notice))

    # ---------------------------------------------------------------------------- policies

    def _start(self, stage: Stage) -> "_From":
        """Where the policy comes from that `stage` begins with."""
        name = self.recipe.start_of(stage)
        source = getattr(stage, "policy", None) or self.recipe.policy.source
        return _From(name, None if name else source)

    def _policy(self, place: "_From") -> Policy:
        """The policy from there, the one at hand where it is that one."""
        if self.at_hand is None or self.at_hand[0] != place:
            self.at_hand = None  # gone before the other one takes its room
            self.at_hand = place, self._opened(place)
            self.threads.suit(self.at_hand[1].model)
        return self.at_hand[1]

    def _opened(self, place: "_From") -> Policy:
        source = str(self._folder(place.stage) / "policy") if place.stage else str(place.source)
        policy = open_policy(source, seed=self.recipe.run.seed, device=self.device)
        if merge_adapter(policy) and processes.is_main():
            self.view.note(
                f"the adapter {source} is merged into its base: a stage trains all weights, or a "
                "fresh adapter where policy.lora is set"
            )
        return policy

    def _folder(self, name: str) -> Path:
        names = [stage.name for stage in self.recipe.stages]
        return self.run.path / "stages" / f"{names.index(name) + 1}-{name}"

    # --------------------------------------------------------------------------- evaluations

    def _evaluate(self, name: str, place: "_From") -> None:
        """The evaluation `name` of a policy; one that is there of the same policy is taken."""
        file, evals = self.run.eval_file(name), self.recipe.evals
        if not evals.sets:
            return
        key = self._eval_key(place)
        same = [path for path in (file, *file.parent.glob("*.json")) if _key_of(path) == key]
        if same:
            result = EvalResult.load(same[0])
        else:
            policy = self._policy(place)
            self.view.note(f"evaluating ({name})")
            result = evaluate_recipe(
                policy,
                evals,
                self.recipe.template,
                self.recipe.run.seed,
                self.view.progress,
                self.recipe.system,
            )
            result.manifest["key"] = key
        self.evals[name] = result
        if file in same:
            return
        if file.is_file():
            for old in (file, file.with_suffix(".rows.jsonl")):
                self.run.set_aside(old)
        result.name, result.policy = name, str(self.run.path)
        result.save(file)

    def _eval_key(self, place: "_From") -> str:
        """What decides an evaluation's result, hashed."""
        evals = self.recipe.evals.model_dump(mode="json", exclude={"stages", "validation", "every"})
        source = str(place.source)
        made = self._made(place.stage) if place.stage else hash_of_source(source, self._seed)
        facts = [made, evals, self.recipe.template, self._seed]
        facts += [self.recipe.system] if self.recipe.system else []
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def _seed(self) -> int:
        return self.recipe.run.seed

    # -------------------------------------------------------------------------------- stages

    def _made(self, name: str) -> str:
        """The hash of what a finished stage has made."""
        if name not in self.made:
            self.made[name] = str(json_object(self._folder(name) / "done.json").get("made"))
        return self.made[name]

    def _facts(self, stage: Stage) -> dict[str, Any]:
        made = {name: self._made(name) for name in self.recipe.needs(stage)}
        return facts_of(self.recipe, stage, made)

    def _finished(self, index: int) -> bool:
        """Whether a stage is done, from what the recipe now says it is made from."""
        stage = self.recipe.stages[index]
        names = [s.name for s in self.recipe.stages]
        if not all(self._finished(names.index(name)) for name in self.recipe.needs(stage)):
            return False
        folder = self._folder(stage.name)
        return (folder / "done.json").is_file() and _facts_in(folder) == self._facts(stage)

    def _stage(self, index: int, stage: Stage, again: bool) -> None:
        """Do a stage, or what is left of it."""
        facts, folder = self._facts(stage), self._folder(stage.name)
        before, done = _facts_in(folder), (folder / "done.json").is_file()
        old: Path | None = None
        if done and before == facts and not again:
            self.view.note(f"stage {stage.name}: finished before")
            return
        if before is not None and (done or before != facts):
            why = "as asked" if before == facts else differences(before, facts)
            old = self.run.set_aside(folder)
            self.view.note(f"stage {stage.name}: done again ({why}); what it had made is in {old}")
        folder = self.run.stage(index + 1, stage.name)
        if before != facts or done:
            self.made.pop(stage.name, None)
            if isinstance(stage, SampleStage) and old:
                take_over(old, folder, before or {}, facts)
            begun = {"made_from": facts, **made_with(), "started": time.strftime("%FT%T%z")}
            write_json(folder / "lock.json", begun)
        started = time.monotonic()
        result = self._do(index, stage, folder)
        seconds = round(time.monotonic() - started, 1)
        facts_of_it = {"steps": getattr(stage, "steps", 0), "seconds": seconds}
        write_text(folder / "done.json", json.dumps({**facts_of_it, "made": hash_of(result)}))

    def _do(self, index: int, stage: Stage, folder: Path) -> Path:
        """Do a stage of any kind; the file or folder with what it has made."""
        of, steps = len(self.recipe.stages), getattr(stage, "steps", 0)
        if stage.reuse is not None:
            self.view.note(f"stage {stage.name}: taken from {stage.reuse}")
            return self._taken(stage, folder)
        if isinstance(stage, SampleStage):
            rows = self._rows(index, stage)
            self.view.start_stage(stage.name, index + 1, of, len(rows))
            make_samples(
                stage,
                rows,
                self._policy(self._start(stage)),
                folder,
                template=self.recipe.template,
                seed=self._seed,
                progress=lambda done: self.view.update({}, done),
            )
            self.view.finish_stage()
            return folder / "data.jsonl"
        self.view.start_stage(stage.name, index + 1, of, steps)
        place = self._start(stage)
        processes.broadcast(_Order(index, place))
        self._train(index, stage, place, folder)
        self.view.finish_stage()
        return folder / "policy"

    def _train(self, index: int, stage: Stage, place: "_From", folder: Path) -> None:
        """Train a stage's policy, together with the other processes of the job."""
        assert not isinstance(stage, SampleStage)
        policy = self._policy(place)
        self.at_hand = None  # it is trained in place
        rows = self._rows(index, stage)
        job = Job(self.recipe, stage, rows, self.work.rewards, policy, folder)
        if isinstance(stage, DistillStage):
            job.teacher = self._opened(self._teacher(stage))
            self.threads.suit(policy.model, job.teacher.model)
        train_stage(job, self.view, self.stop, self.device, self.precision)
        if self.stop.asked:
            raise Interrupted(self.run.path)
        self.at_hand = _From(stage.name), policy

    def _teacher(self, stage: DistillStage) -> "_From":
        inside = stage.teacher in [s.name for s in self.recipe.stages]
        return _From(stage.teacher) if inside else _From(None, stage.teacher)

    def _taken(self, stage: Stage, folder: Path) -> Path:
        """What the user brings for a stage, copied into its folder."""
        if isinstance(stage, SampleStage):
            shutil.copyfile(brought(stage), folder / "data.jsonl")
            return folder / "data.jsonl"
        self._policy(_From(None, str(brought(stage)))).save(folder / "policy")
        return folder / "policy"

    def _rows(self, index: int, stage: Stage) -> list[Row]:
        """The rows of a stage; those that come of other stages are read now."""
        data = self.recipe.data_of(stage)
        if not any(isinstance(source, StageData) for source in data_sources(data)):
            return self.work.rows[index]
        rewards = dict(zip(self.recipe.rewards, self.work.rewards, strict=True))
        data = data_in(self.run.path, self.recipe, stage)
        rows = read_stage_rows(self.recipe, stage, data, rewards)
        check_filled(self.recipe, stage, len(rows))
        return rows


@dataclass(frozen=True)
class _From:
    """Where a policy comes from: a stage of the run, or a source outside of it."""

    stage: str | None
    source: str | None = None


@dataclass(frozen=True)
class _Order:
    """What the first process has the others do: train a stage, or (None) end with the policy."""

    index: int | None
    place: _From
    source: str = ""


def _facts_in(folder: Path) -> dict[str, Any] | None:
    """What a stage that is there was begun with; empty for one of an older version."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    file = folder / "lock.json"
    if not file.is_file():
        return {}
    return dict(current_stage(mapping(json_object(file).get("made_from"))))


def _key_of(file: Path) -> str | None:
    """The key of the evaluation in a file."""
    if not file.is_file():
        return None
    return mapping(json_object(file).get("manifest")).get("key")
