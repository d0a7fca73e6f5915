"""The stages of a run, one after the other: supervised fine-tuning and GRPO, each resumable.

`train(recipe)` makes the run folder, opens the policy, takes it through the stages, evaluates it
before the first GRPO stage and at the end, and writes the report. What is finished is never done
again: `resume` continues after the last finished stage, inside a stage from its last checkpoint.
The trainers are trl's SFTTrainer and our GRPOTrainer; this module knows recipes, they do not.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers import PrinterCallback

from rl_reasoner import sandbox
from rl_reasoner.checkpoints import last_checkpoint
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.evaluate import EvalResult, evaluate_recipe
from rl_reasoner.faults import LastStep, disk_is_full, stopped_by_full_disk
from rl_reasoner.isolation import give_up_all
from rl_reasoner.ledger import Ledger
from rl_reasoner.live import LiveView
from rl_reasoner.moe import freeze_routers
from rl_reasoner.policy import (
    Policy,
    add_lora,
    choose_device,
    choose_precision,
    open_policy,
    quiet_libraries,
)
from rl_reasoner.precision import fp8_facts, in_fp8
from rl_reasoner.preflight import Where, Work, inspected, prepared
from rl_reasoner.prompts import render
from rl_reasoner.recipe import GrpoStage, Recipe, SftStage
from rl_reasoner.recorder import Recorder
from rl_reasoner.report import write_report
from rl_reasoner.rollouts import prompt_ids
from rl_reasoner.runs import RunFolder, keep_rows_until, write_text
from rl_reasoner.stage_trainers import Job, load_weights, trainer_of, unmarked
from rl_reasoner.stopping import StepGivenUp, Stop
from rl_reasoner.validation import overlap_notes, overlaps


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
) -> Run:
    """Run `recipe` to its end, or continue the run in the folder `resume` (its own recipe holds).

    Raises `UserError` for what the user can mend (before anything is loaded where possible),
    `Interrupted` when it was asked to stop, `RunStopped` when it cannot go on by itself (a reward
    broke down, the training diverged, the disk is full); each leaves a checkpoint to resume from.
    """
    quiet_libraries()
    work = prepared(recipe, where)
    if resume is None:
        run, saved = RunFolder.create(recipe), recipe
    else:
        run, saved = RunFolder.reopen(resume)
    try:
        if saved != recipe:
            raise UserError(f"the recipe is not the one that the run {resume} began with")
        with LiveView(quiet=quiet) as view, Stop(view.note) as stop:
            session = _Session(recipe, run, view, stop, work)
            return session.go(command)
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


# ---------------------------------------------------------------------------------- session


class _Session:
    """One process's way through the stages of a run."""

    def __init__(
        self, recipe: Recipe, run: RunFolder, view: LiveView, stop: Stop, work: Work
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.view = view
        self.stop = stop
        self.work = work
        self.device = choose_device(recipe.run.device)
        self.precision = choose_precision(recipe.run.precision, self.device)
        self.evals: dict[str, EvalResult] = {}

    def go(self, command: str | None) -> Run:
        """All stages and evaluations that are not finished yet, then the report."""
        recipe, run = self.recipe, self.run
        seed = recipe.run.seed
        finished = [i for i in range(len(recipe.stages)) if self._done(i).is_file()]
        start = self._done(finished[-1]).parent / "policy" if finished else recipe.policy.source
        policy = open_policy(str(start), seed=seed, device=self.device)
        prompt_ids(policy, render("", recipe.template, policy.tokenizer))  # can it be rendered?
        self._inspect(policy)
        self._lock(policy, command)
        self._overlaps()
        first = next((i for i, s in enumerate(recipe.stages) if s.kind == "grpo"), 0)
        for index, stage in enumerate(recipe.stages):
            if index == first:
                self._evaluate("before", policy, skip=index < len(finished))
            if index < len(finished):
                self.view.note(f"stage {stage.name}: finished before")
                continue
            self._stage(index, stage, policy)
        self._evaluate("after", policy)
        policy.source = recipe.policy.source
        policy.save(run.path / "policy")
        report = write_report(run.path)
        return Run(run.path, policy, self.evals, report)

    def _inspect(self, policy: Policy) -> None:
        """Say what is doubtful about the run; raises `UserError` for what cannot work."""
        notices = inspected(self.recipe, self.work, policy, self.run.path)
        if failed := [str(notice) for notice in notices if notice.status == "failed"]:
            raise UserError(*failed)
        for notice in notices:
            if notice.status == "warned":
                self.view.note(str(notice))

    def _done(self, index: int) -> Path:
        folder = self.run.path / "stages" / f"{index + 1}-{self.recipe.stages[index].name}"
        return folder / "done.json"

    def _lock(self, policy: Policy, command: str | None) -> None:
        if (self.run.path / "lock.json").is_file():
            return
        total, active = policy.parameters
        facts = {
            "device": self.device,
            "precision": self.precision,
            "sandbox": str(sandbox.strength()),
            "policy": {
                "source": self.recipe.policy.source,
                "parameters": total,
                "active_parameters": active,
            },
        }
        if self.precision == "fp8":
            facts["fp8"] = fp8_facts(policy.model, self.recipe.run.fp8, self.device)
        self.run.write_lock(self.recipe, facts | ({"command": command} if command else {}))
        size = f"{total / 1e6:.2f}M parameters"
        size += f", {active / 1e6:.2f}M active" if active != total else ""
        self.view.note(f"{policy.source}: {size}; {self.device}, {self.precision}")

    def _overlaps(self) -> None:
        """Warn, once a run, of evaluated problems that are trained on; say which they are."""
        file, evals = self.run.path / "contamination.json", self.recipe.evals
        names = list(dict.fromkeys([*evals.sets, *filter(None, [evals.validation])]))
        if not names or file.is_file():
            return
        found = overlaps([row for rows in self.work.rows for row in rows], names)
        write_text(file, json.dumps(found, indent=1, ensure_ascii=False))
        for note in overlap_notes(found):
            self.view.note(note)

    def _evaluate(self, name: str, policy: Policy, skip: bool = False) -> None:
        file, evals = self.run.eval_file(name), self.recipe.evals
        if not evals.sets or (skip and not file.is_file()):
            return
        if file.is_file():
            self.evals[name] = EvalResult.load(file)
            return
        self.view.note(f"evaluating ({name})")
        result = evaluate_recipe(
            policy, evals, self.recipe.template, self.recipe.run.seed, self.view.progress
        )
        result.name, result.policy = name, str(self.run.path)
        result.save(file)
        self.evals[name] = result

    def _stage(self, index: int, stage: SftStage | GrpoStage, policy: Policy) -> None:
        folder = self.run.stage(index + 1, stage.name)
        started = time.monotonic()
        checkpoints = folder / "checkpoints"
        at = last_checkpoint(checkpoints, self.view.note)
        for name in ("metrics.jsonl", "rollouts.jsonl"):
            keep_rows_until(folder / name, at[1] if at else 0)
        ledger = Ledger.open(folder, at[1] if at else 0)
        if self.recipe.policy.lora:
            add_lora(policy, self.recipe.policy.lora, self.recipe.run.seed)
        rows, rewards = self.work.rows[index], self.work.rewards
        job = Job(self.recipe, stage, rows, rewards, policy, folder, ledger)
        trainer = trainer_of(job)
        self.view.start_stage(stage.name, index + 1, len(self.recipe.stages), stage.steps)
        last_step = LastStep(trainer)
        trainer.add_callback(last_step)
        trainer.add_callback(Recorder(job, trainer, self.view, self.stop))
        trainer.remove_callback(PrinterCallback)  # metrics go to the recorder alone
        models = [policy.model, getattr(trainer, "ref_model", None)]
        with (
            self._training(last_step, checkpoints),
            unmarked(policy.model),
            in_fp8(self.precision, self.recipe.run.fp8, self.device, *models),
        ):
            if at:
                load_weights(policy, at[0])
            if not at or at[1] < stage.steps:  # from its last step, trl would take one more
                trainer.train(resume_from_checkpoint=str(at[0]) if at else None)
        if self.stop.asked:
            raise Interrupted(self.run.path)
        if stage.freeze_router:
            freeze_routers(policy.model, frozen=False)
        if self.recipe.policy.lora:
            policy.model.save_pretrained(folder / "adapter")
            policy.model = policy.model.merge_and_unload()
        policy.save(folder / "policy")
        seconds = time.monotonic() - started
        done = {"steps": stage.steps, "seconds": round(seconds, 1)}
        write_text(folder / "done.json", json.dumps(done))
        self.view.finish_stage()

    @contextmanager
    def _training(self, last_step: LastStep, checkpoints: Path) -> Iterator[None]:
        """Signals and faults while a trainer trains: what ends a step early leaves a checkpoint."""
        self.stop.last_step = last_step
        try:
            try:
                yield
            except (RunStopped, StepGivenUp):
                self.stop.last_step = None  # from here on a signal stops at once
                give_up_all()  # a thread may be waiting for a reward
                last_step.save()
                raise
            finally:
                self.stop.last_step = None
        except Exception as error:
            if not disk_is_full(error):
                raise
            raise stopped_by_full_disk(checkpoints, error) from error
