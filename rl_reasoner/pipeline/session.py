"""A run's way through its stages: what is to do, from which policy, and what is finished.

Stages are supervised fine-tuning, GRPO, rejection sampling and distillation. Each starts from the
policy of the stage before it or of the one that it names, and has a folder of its own with what it
was made from (`lineage`). What is finished never runs again, unless the recipe now makes it from
something else; inside a stage, training continues from the last checkpoint. The run is evaluated
before its first GRPO stage and at the end, or after every stage. This module knows recipes;
trainers do not.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rl_reasoner.dataset.rows import copy_as_jsonl
from rl_reasoner.dataset.templates import render
from rl_reasoner.distributed import processes
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.evaluate import evaluate_recipe
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import write_json, write_text
from rl_reasoner.foreign import json_object
from rl_reasoner.pipeline.completion_lengths import facts_of_evals, find_max_tokens, measured
from rl_reasoner.pipeline.difficulty_filter import (
    FilterFiles,
    dropped_words,
    filter_rows,
    reuse_completions,
)
from rl_reasoner.pipeline.inputs import check_filled, check_starts, read_stage_rows, unfiltered
from rl_reasoner.pipeline.lineage import (
    data_in,
    differences,
    evaluations_of,
    facts_in,
    facts_of,
    files_of_evaluation,
    hash_of,
    hash_of_source,
    key_of_evaluation,
    reused_path,
    with_new_fields,
)
from rl_reasoner.pipeline.lock import find_overlaps, lengths_once, lock
from rl_reasoner.pipeline.placement import Placement
from rl_reasoner.pipeline.preflight import inspect
from rl_reasoner.pipeline.prepare import Prepared
from rl_reasoner.pipeline.recorder import step_seconds
from rl_reasoner.pipeline.rejection_sampling import make_samples, reuse_samples
from rl_reasoner.pipeline.run_folder import Interrupted, RunFolder
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.pipeline.stage_training import train_stage
from rl_reasoner.policy.lora import merge_adapter
from rl_reasoner.policy.opening import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.provenance import made_with
from rl_reasoner.recipe.data import StageData, data_sources
from rl_reasoner.recipe.recipe import Evals, Recipe
from rl_reasoner.recipe.stages import (
    DistillStage,
    FilterStage,
    RowStage,
    SampledStage,
    SampleStage,
    Stage,
    with_max_tokens,
)
from rl_reasoner.report import write_report
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.rollout.sampler import help_to_sample, prompt_ids
from rl_reasoner.training.checkpointing.signals import Stop
from rl_reasoner.types import Row


@dataclass(frozen=True)
class PolicyRef:
    """Where a policy comes from: a stage of the run, or (None) a source outside of it."""

    stage: str | None
    source: str | None = None


@dataclass(frozen=True)
class StageOrder:
    """What the main process has the others do: train a stage, or (None) end with the policy.

    `samples`: help to sample from the policy, and wait for what is next.
    """

    stage: str | None
    policy: PolicyRef
    source: str = ""
    max_tokens: int | None = None  # what auto came to
    samples: bool = False


@dataclass
class Session:
    """One process's way through the stages of a run; `evals` are its evaluations by name."""

    recipe: Recipe
    run: RunFolder
    placement: Placement
    prepared: Prepared
    view: LiveView
    stop: Stop
    threads: Threads
    is_control: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.evals: dict[str, EvalResult] = {}
        self.stages = {stage.name: stage for stage in self.recipe.stages}
        self.result_hashes: dict[str, str] = {}  # of what finished stages have made, by stage
        self.settled: set[str] = set()  # finished here, of what was there then: it may be edited
        self.answer_s: float | None = None  # seconds of a completion in the last evaluation
        self.opened: tuple[PolicyRef, Policy] | None = None  # one at a time: policies are large

    def go(self, window: range, *, changed: bool, again: bool, command: str | None) -> PolicyRef:
        """Run the unfinished stages of `window` and evaluate; where the last policy comes from.

        `changed` says that the run began with another recipe; with `again` the window's first stage
        runs although it is finished.
        """
        recipe, stages = self.recipe, self.recipe.stages
        self.run.arrange([*self.stages])
        if changed:
            self._note_changes()
        until = stages[: window.stop]
        wanted = [s for i, s in enumerate(until) if i in window or s.reuse is not None]
        self._check_needed(wanted)
        self._inspect_and_lock(command, again)
        self.run.settle()
        last = next((s.name for s in reversed(stages) if not isinstance(s, RowStage)), None)
        if last is not None and not self._is_finished(last):
            self.run.set_end_aside()
        if recipe.evals.stages and not recipe.policy.source.startswith("scratch:"):
            self._evaluate("base", PolicyRef(None, recipe.policy.source))
        first_grpo = next((s for s in stages if s.kind == "grpo"), stages[0])
        for stage in wanted:
            if stage is first_grpo:
                self._evaluate("before", self._start_of(stage))
            self._run_stage(stage, again=again and stage is stages[window.start])
            self.settled.add(stage.name)
            if recipe.evals.stages and not isinstance(stage, RowStage):
                self._evaluate(stage.name, PolicyRef(stage.name))
        made = stages if self.is_over else until  # of a finished run, `until` ends nothing
        trained = [s.name for s in made if not isinstance(s, RowStage)]
        ref = PolicyRef(trained[-1]) if trained else PolicyRef(None, recipe.policy.source)
        if self.is_over:
            self._evaluate("after", ref)
            self.run.keep_policy(self._policy(ref).save)
        processes.broadcast(StageOrder(None, ref))
        return ref

    @property
    def is_over(self) -> bool:
        """Whether all stages are finished."""
        return all(map(self._is_finished, self.stages))

    def end(self, ref: PolicyRef) -> Policy:
        """The policy that the run ends with, in all processes; the report is written."""
        policy = self._policy(ref)
        if self.is_over:
            policy.source = str(self.run.path / "policy")
        elif ref.stage:
            policy.source = str(self._folder(ref.stage) / "policy")
        write_report(self.run.path)
        if self.is_over:
            self.run.seal()
        processes.broadcast(StageOrder(None, ref, policy.source))
        return policy

    def follow(self) -> StageOrder:
        """Do what the main process says, until it has come to the end: its last order."""
        while (order := processes.broadcast(StageOrder(None, PolicyRef(None)))).stage is not None:
            if order.samples:
                help_to_sample(self._policy(order.policy))
                continue
            stage = self.stages[order.stage]
            if isinstance(stage, SampledStage) and order.max_tokens is not None:
                stage = with_max_tokens(stage, order.max_tokens)
            self._train(stage, order.policy, self._folder(order.stage))
        return order

    def follow_to_end(self) -> Policy:
        """As `end`, in a process that is not the main one."""
        order = self.follow()
        policy = self._policy(order.policy)
        policy.source = order.source
        files = sorted((self.run.path / "evals").glob("*.json"))
        self.evals = {file.stem: EvalResult.load(file) for file in files}
        return policy

    def _note_changes(self) -> None:
        """Tell the user which stages run again because the recipe has changed."""
        begun = [name for name in self.stages if facts_in(self._folder(name)) is not None]
        again = [name for name in begun if not self._is_current(name)]
        what = f"stages to run again: {', '.join(again)}" if again else "no stage has to run again"
        self.view.note(f"recipe changed; {what}")

    # -------------------------------------------------------------------------- before stages

    def _check_needed(self, wanted: Sequence[Stage]) -> None:
        """Raise `UserError` where a stage is missing that one of the `wanted` needs."""
        for stage in wanted:
            for name in self.recipe.needs(stage):
                if self.stages[name] not in wanted and not self._is_finished(name):
                    raise UserError(
                        f"stage {stage.name} needs stage {name}, which is not finished in "
                        f"{self.run.path}: begin with --from {name}, or give a folder with "
                        f"--{name}.reuse"
                    )

    def _inspect_and_lock(self, command: str | None, again: bool) -> None:
        """Inspect the policy that comes next and the machine; write what the run is made with.

        Warns of what is doubtful; raises `UserError` for what cannot work.
        """
        todo = [stage for name, stage in self.stages.items() if not self._is_finished(name)]
        check_starts(self.recipe, todo)
        policy = self._policy(self._start_of(todo[0]) if todo else PolicyRef([*self.stages][-1]))
        # can a prompt be rendered?
        prompt = render("", self.recipe.template, policy.tokenizer, self.recipe.system)
        prompt_ids(policy, prompt)
        run = (self.recipe, self.placement, self.prepared, policy, self.run.path)
        notices = inspect(*run, len(self.stages) if again else len(todo))
        if failed := [str(notice) for notice in notices if notice.status == "failed"]:
            raise UserError(*failed)
        for notice in notices:
            if notice.status == "warned":
                self.view.note(str(notice))
        note, threads = self.view.note, self.threads.suit(policy.model)
        lock(self.run, self.recipe, self.placement, policy, threads, command, note)
        rows = [row for rows in self.prepared.rows.values() for row in rows]
        find_overlaps(self.run, self.recipe, rows, note)

    # ---------------------------------------------------------------------------- policies

    def _start_of(self, stage: Stage) -> PolicyRef:
        """The policy that `stage` starts from."""
        name = self.recipe.start_of(stage)
        source = getattr(stage, "policy", None) or self.recipe.policy.source
        return PolicyRef(name, None if name else source)

    def _policy(self, ref: PolicyRef) -> Policy:
        """The policy that `ref` names, opened unless it is open already."""
        if self.opened is None or self.opened[0] != ref:
            self.opened = None  # freed before the other one takes its memory
            self.opened = ref, self._open(ref)
            self.threads.suit(self.opened[1].model)
        return self.opened[1]

    @contextmanager
    def _shared(self, ref: PolicyRef) -> Iterator[Policy]:
        """The policy that `ref` names, from which the other processes sample, too, inside."""
        processes.broadcast(StageOrder("", ref, samples=True))
        policy = self._policy(ref)
        with processes.shared(policy):
            yield policy

    def _open(self, ref: PolicyRef) -> Policy:
        source = str(self._folder(ref.stage) / "policy") if ref.stage else str(ref.source)
        policy = open_policy(source, seed=self.recipe.run.seed, device=self.placement.device)
        if merge_adapter(policy) and processes.is_main():
            self.view.note(
                f"the adapter {source} is merged into its base: a stage trains all weights, or a "
                "new adapter where policy.lora is set"
            )
        return policy

    def _folder(self, name: str) -> Path:
        return self.run.path / "stages" / f"{self._number(name)}-{name}"

    def _number(self, name: str) -> int:
        """The number of a stage, from 1."""
        return [*self.stages].index(name) + 1

    # --------------------------------------------------------------------------- evaluations

    def _evaluate(self, name: str, ref: PolicyRef, *, alone: bool = False) -> None:
        """Evaluate a policy as `name`; an existing evaluation of the same policy is reused.

        With `alone`, the other processes do not wait for orders.
        """
        file, recipe = self.run.path / "evals" / f"{name}.json", self.recipe
        seed = recipe.run.seed
        drawn = file.with_name(f".{name}.drawn")
        if not recipe.evals.sets:
            return
        evals = self._fitted_evals(ref)
        made = self._made(ref.stage) if ref.stage else hash_of_source(str(ref.source), seed)
        key, files = key_of_evaluation(recipe, evals, made), files_of_evaluation(recipe, evals)
        if same := evaluations_of(file, key, files):
            result = EvalResult.load(same[0])
        else:
            self.view.note(f"evaluating ({name})")
            started, goes_on = time.monotonic(), drawn.exists()  # behind a kill
            with nullcontext(self._policy(ref)) if alone else self._shared(ref) as policy:
                result = evaluate_recipe(policy, evals, recipe, self.view.progress, drawn)
            answers = sum(of["problems"] * of["samples"] for of in result.sets.values())
            if not goes_on:
                self.answer_s = (time.monotonic() - started) / max(1, answers)
            result.manifest |= {"key": key, "files": files}
        self.evals[name] = result
        if file not in same:
            for old in (file, file.with_suffix(".rows.jsonl")) if file.is_file() else ():
                self.run.set_aside(old)
            result.name, result.policy = name, str(self.run.path)
            result.save(file)
        shutil.rmtree(drawn, ignore_errors=True)  # there, too, where a kill came behind the save

    # --------------------------------------------------------------- lengths of completions

    def _fitted(self, stage: Stage) -> Stage:
        """`stage` with what max_tokens auto comes to; a note of what a given number cuts off."""
        if not isinstance(stage, SampledStage) or stage.reuse is not None or self.is_control:
            return stage
        auto = stage.sampling.max_tokens == "auto"
        if not auto and (stage.kind != "grpo" or stage.vllm is not None):
            return stage

        def find() -> Mapping[str, Any]:
            rows, policy = self._rows(stage), self._policy(self._start_of(stage))
            return measured(self.recipe, stage, rows, policy, self.view.note)

        found = lengths_once(self.run, stage.name, self._facts(stage), find)
        return with_max_tokens(stage, found["max_tokens"]) if auto else stage

    def _fitted_evals(self, ref: PolicyRef) -> Evals:
        """The evaluations with what max_tokens auto comes to, once a run: the first grpo stage's.

        Where that cannot be looked at yet, it is what the completions of `ref` need.
        """

        def find() -> Mapping[str, Any]:
            stage: Stage = next(stage for stage in self.stages.values() if stage.kind == "grpo")
            if stage.reuse is None and all(map(self._is_finished, self.recipe.needs(stage))):
                stage = self._fitted(stage)
            assert isinstance(stage, SampledStage)
            if stage.sampling.max_tokens != "auto":
                return {"max_tokens": stage.sampling.max_tokens}
            rows = unfiltered(self.recipe, stage, self.prepared.rows)
            found = find_max_tokens(self.recipe, stage, rows, self._policy(ref))
            return {"max_tokens": found.fitting()}

        if (evals := self.recipe.evals).max_tokens != "auto":
            return evals
        found = lengths_once(self.run, "(evals)", facts_of_evals(self.recipe), find)
        return evals.model_copy(update={"max_tokens": found["max_tokens"]})

    # -------------------------------------------------------------------------------- stages

    def _made(self, name: str) -> str:
        """The hash of what a finished stage has made."""
        if name not in self.result_hashes:
            done = json_object(self._folder(name) / "done.json")
            self.result_hashes[name] = str(done.get("made"))
        return self.result_hashes[name]

    def _facts(self, stage: Stage) -> dict[str, Any]:
        made = {name: self._made(name) for name in self.recipe.needs(stage)}
        return facts_of(self.recipe, stage, made, self.prepared.read)

    def _facts_before(self, stage: Stage, now: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the stage was begun with, to compare with `now`; None where it was not."""
        before = facts_in(self._folder(stage.name))
        return None if before is None else with_new_fields(self.recipe, stage, before, now)

    def _is_current(self, name: str) -> bool:
        """Whether a stage was begun with what the recipe now makes it from."""
        stage = self.stages[name]
        if not all(map(self._is_finished, self.recipe.needs(stage))):
            return False
        facts = self._facts(stage)
        return self._facts_before(stage, facts) == facts

    def _is_finished(self, name: str) -> bool:
        """Whether a stage is done, from what the recipe now says it is made from."""
        done = (self._folder(name) / "done.json").is_file()
        return done and (name in self.settled or self._is_current(name))

    def _run_stage(self, stage: Stage, again: bool) -> None:
        """Run a stage, or what is left of it."""
        self.run.check_there()
        facts, folder = self._facts(stage), self._folder(stage.name)
        before, done = self._facts_before(stage, facts), (folder / "done.json").is_file()
        old: Path | None = None
        if done and before == facts and not again:
            self.view.note(f"stage {stage.name}: already finished")
            return
        if before is not None and (done or before != facts):
            why = "as requested" if before == facts else differences(before, facts)
            old = self.run.set_aside(folder)
            self.view.note(f"stage {stage.name}: run again ({why}); earlier results are in {old}")
        folder.mkdir(parents=True, exist_ok=True)
        if before != facts or done:
            self.result_hashes.pop(stage.name, None)
            if isinstance(stage, SampleStage) and old:
                reuse_samples(old, folder, before or {}, facts)
            if isinstance(stage, FilterStage) and old:
                reuse_completions(old, folder)
            begun = {"made_from": facts, **made_with(), "started": time.strftime("%FT%T%z")}
            write_json(folder / "lock.json", begun)
        started, earlier = time.monotonic(), step_seconds(folder)
        result = self._make(stage, folder)
        kept = dict(step_seconds(folder).items() & earlier.items())  # of processes before this one
        seconds = round(time.monotonic() - started + sum(kept.values()), 1)
        facts = {"steps": getattr(stage, "steps", 0), "seconds": seconds, "made": hash_of(result)}
        write_text(folder / "done.json", json.dumps(facts))

    def _make(self, stage: Stage, folder: Path) -> Path:
        """Run a stage of any kind; the file or folder with its result."""
        place = self._number(stage.name), len(self.stages)
        if stage.reuse is not None:
            self.view.note(f"stage {stage.name}: taken from {stage.reuse}")
            return self._copy_reused(stage, folder)
        stage = self._fitted(stage)
        if isinstance(stage, SampleStage):
            rows = self._rows(stage)
            self.view.start_stage(stage.name, *place, len(rows))
            with self._shared(self._start_of(stage)) as policy:
                make_samples(stage, rows, policy, folder, **self._sampling)
            self.view.finish_stage()
            return folder / "data.jsonl"
        if isinstance(stage, FilterStage):
            return self._filter(stage, folder, place)
        self.view.start_stage(stage.name, *place, stage.steps)
        ref = self._start_of(stage)
        longest = stage.sampling.longest if isinstance(stage, SampledStage) else None
        processes.broadcast(StageOrder(stage.name, ref, max_tokens=longest))
        self._train(stage, ref, folder)
        self.view.finish_stage()
        return folder / "policy"

    @property
    def _sampling(self) -> dict[str, Any]:
        """How rows are sampled for, by the recipe, and who hears how far it is."""
        recipe = self.recipe
        told = {"template": recipe.template, "seed": recipe.run.seed, "tools": recipe.tools}
        return {**told, "progress": lambda done: self.view.update({}, done)}

    def _filter(self, stage: FilterStage, folder: Path, place: tuple[int, int]) -> Path:
        """Write the rows that `stage` keeps, and its card; the file of the rows."""
        rows, data = self._rows(stage), folder / "data.jsonl"
        self.view.start_stage(stage.name, *place, len(rows) * stage.samples)
        files = FilterFiles(data, folder / "rates.jsonl", folder / "samples")
        with self._shared(self._start_of(stage)) as policy:
            card = filter_rows(stage, rows, policy, files, **self._sampling)
        write_json(folder / "card.json", card)
        self.view.finish_stage()
        self.view.note(f"stage {stage.name}: {dropped_words(card)}")
        return data

    def _train(self, stage: Stage, ref: PolicyRef, folder: Path) -> None:
        """Train a stage's policy, together with the other processes of the job."""
        assert not isinstance(stage, RowStage)
        recipe, policy = self.recipe, self._policy(ref)
        if recipe.evals.validation and processes.is_main():
            recipe = recipe.model_copy(update={"evals": self._fitted_evals(ref)})
        self.opened = None  # it is trained in place
        rows, rewards = self._rows(stage), self.prepared.rewards
        job = Job(recipe, stage, self.placement, rows, rewards, policy, folder)
        job.answer_s, job.is_control = self.answer_s, self.is_control
        self.on_job(job)
        if isinstance(stage, DistillStage):
            inside = stage.teacher in self.stages
            teacher = PolicyRef(stage.teacher) if inside else PolicyRef(None, stage.teacher)
            job.teacher = self._open(teacher)
            self.threads.suit(policy.model, job.teacher.model)
        train_stage(job, self.view, self.stop)
        if self.stop.asked:
            raise Interrupted(self.run.path)
        self.opened = PolicyRef(stage.name), policy

    def on_job(self, job: Job) -> None:
        """Called with each stage's job before it trains: nothing here."""

    def _copy_reused(self, stage: Stage, folder: Path) -> Path:
        """Copy what a stage reuses into its folder."""
        if isinstance(stage, RowStage):
            copy_as_jsonl(reused_path(stage), folder / "data.jsonl")
            return folder / "data.jsonl"
        self._policy(PolicyRef(None, str(reused_path(stage)))).save(folder / "policy")
        return folder / "policy"

    def _rows(self, stage: Stage) -> list[Row]:
        """The rows of a stage; those that come from other stages are read now."""
        data = self.recipe.data_of(stage)
        if not any(isinstance(source, StageData) for source in data_sources(data)):
            return self.prepared.rows[stage.name]
        data = data_in(self.run.path, self.recipe, stage)
        rows = read_stage_rows(self.recipe, stage, data, self.prepared.rewards)
        check_filled(stage, len(rows), self.prepared.step_prompts.get(stage.name, 0))
        return rows
