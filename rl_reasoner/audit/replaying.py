"""Steps of a run made again on this machine: from their checkpoint, and compared bit by bit.

A scratch folder gets what the stage starts from (policies and rows of other stages, the newest
whole checkpoint before the step), and the stage is trained on in it by the code of every run. The
run's own folder is read, never written to. What was chosen by measurement is taken from the run
(rl_reasoner.machine), so on the machine of the run the replay is bit-equal.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rl_reasoner.audit.findings import AuditFinding, differs, held, unchecked
from rl_reasoner.audit.hashes import stage_folders
from rl_reasoner.audit.likeness import Steps, compare_steps, verdict_of
from rl_reasoner.audit.records import result_files
from rl_reasoner.distributed import processes
from rl_reasoner.distributed.threads import Threads, user_sets_threads
from rl_reasoner.errors import RunStopped, UserError, unknown
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.files import copy_folder, read_jsonl, write_text
from rl_reasoner.foreign import json_object, mapping
from rl_reasoner.machine import choices, processor
from rl_reasoner.pipeline.placement import Placement, choose_placement
from rl_reasoner.pipeline.prepare import Prepared
from rl_reasoner.pipeline.run_folder import Interrupted, RunFolder
from rl_reasoner.pipeline.session import Session
from rl_reasoner.pipeline.stage_trainers import Job
from rl_reasoner.pipeline.train import train
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.provenance import code_hash, versions
from rl_reasoner.recipe.hacking_meter import HackingMeterSettings
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.recipe.stages import RowStage, TrainedStage
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.training.checkpointing.checkpoints import broken_seal, steps_in
from rl_reasoner.training.checkpointing.signals import Stop

_HERE = {"report_to": "none", "rewards_on": "here"}
"""Settings of the run in a replay: nobody is told of it, and no cluster asked."""


@dataclass
class ReplaySession(Session):
    """A session in a scratch folder, whose stage stops after the step `until`.

    `on_trainer` gets the trainer before it trains.
    """

    until: int | None = None
    on_trainer: Callable[[Any], None] | None = None
    threads_used: int = field(default=0, init=False)

    def on_job(self, job: Job) -> None:
        """The job ends where it is told to; nobody asks whether it will learn."""
        job.until = self.until if self.until and self.until < job.stage.steps else None
        job.on_trainer, job.is_control = self.on_trainer, True
        self.threads_used = torch.get_num_threads()

    def make(self, name: str) -> None:
        """Train the stage `name` on from its checkpoint here, or its start."""
        stage = self._fitted(self.stages[name])
        assert not isinstance(stage, RowStage)
        self.view.start_stage(name, self._number(name), len(self.stages), stage.steps)
        try:
            self._train(stage, self._start_of(stage), self._folder(name))
        except KeyboardInterrupt:
            there = steps_in(self._folder(name) / "checkpoints")
            if self.until is None or self.until not in there:  # the user's
                raise
        self.view.finish_stage()


@dataclass(frozen=True)
class Scratch:
    """A stage made ready to be trained on in another folder: from which step, by which session."""

    session: ReplaySession
    folder: Path
    start: int


def step_to_replay(
    run: Path, recipe: Recipe, name: str | None, step: int | None
) -> tuple[TrainedStage, int]:
    """The stage `name`, or the last one that was trained, and its `step`, or the last one.

    Raises `UserError` where the run has no such step.
    """
    folders = stage_folders(run, recipe)
    trained = {s.name: s for s in recipe.stages if isinstance(s, TrainedStage)}
    begun = [s for key, s in trained.items() if (folders[key] / "metrics.jsonl").is_file()]
    if name is not None and name not in trained:
        raise unknown("stage", name, trained)
    if name is not None and trained[name] not in begun:
        raise UserError(f"stage {name} has not been trained yet")
    if not begun:
        raise UserError(f"{run}: no stage of this run has been trained yet")
    stage = trained[name] if name else begun[-1]
    last = last_step(folders[stage.name])
    if step is not None and not 1 <= step <= last:
        raise UserError(f"--step {step}: stage {stage.name} has the steps 1 to {last}")
    return stage, step or last


def last_step(folder: Path) -> int:
    """The last step of a stage that is in its metrics; 0 for none."""
    rows = read_jsonl(folder / "metrics.jsonl")
    return max((step for row in rows if isinstance(step := row.get("step"), int)), default=0)


@contextmanager
def scratch_of(
    run: Path, recipe: Recipe, stage: TrainedStage, step: int, prepared: Prepared, *, quiet: bool
) -> Iterator[Scratch]:
    """A scratch folder in which `stage` can be trained on to `step`; removed afterwards.

    Raises `UserError` where what it starts from is not in the run.
    """
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-audit-") as place:
        folder = Path(place) / "run"
        recipe = _recipe_in(folder, recipe)
        _copy_needed(run, folder, recipe, stage)
        own, new = (stage_folders(at, recipe)[stage.name] for at in (run, folder))
        start = _copy_checkpoint(own, new, step - 1)
        placement = choose_placement(recipe)
        processes.join(placement.device)
        reopened, _ = RunFolder.reopen(folder)
        try:
            with (
                choices.during(reopened.choices(), reopened.keep_choices),
                LiveView(quiet=quiet) as view,
                Stop(view.note) as stop,
                Threads() as threads,
            ):
                tools = view, stop, threads
                session = ReplaySession(recipe, reopened, placement, prepared, *tools, until=step)
                yield Scratch(session, new, start)
        finally:
            reopened.release()


def _recipe_in(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe for a replay: in another folder, no dashboard, nothing evaluated or metered."""
    quiet = recipe.run.model_copy(update={"folder": str(folder), **_HERE})
    evals = recipe.evals.model_copy(update={"validation": None})
    off = HackingMeterSettings(every=0)  # its judges may cost, and a replay reads none of them
    return recipe.model_copy(update={"run": quiet, "evals": evals, "hacking_meter": off})


def _copy_needed(run: Path, folder: Path, recipe: Recipe, stage: TrainedStage) -> None:
    """Copy what `stage` takes from other stages, and the lock."""
    folder.mkdir()
    write_text(folder / "recipe.yaml", recipe.to_yaml())
    shutil.copy(run / "lock.json", folder)
    there, here = stage_folders(run, recipe), stage_folders(folder, recipe)
    for name in recipe.needs(stage):
        here[name].mkdir(parents=True)
        for part in ("lock.json", "done.json", "data.jsonl"):
            if (there[name] / part).is_file():
                shutil.copy(there[name] / part, here[name])
        if (there[name] / "policy").is_dir():
            copy_folder(there[name] / "policy", here[name] / "policy")
        elif not (here[name] / "data.jsonl").is_file():
            raise UserError(f"stage {stage.name} starts from stage {name}, which is not in {run}")
    here[stage.name].mkdir(parents=True)
    for part in ("lock.json", "metrics.jsonl"):
        if (there[stage.name] / part).is_file():
            shutil.copy(there[stage.name] / part, here[stage.name])


def _copy_checkpoint(own: Path, new: Path, most: int) -> int:
    """Copy the newest whole checkpoint up to the step `most`; its step, 0 for the stage's start."""
    for step, path in sorted(steps_in(own / "checkpoints").items(), reverse=True):
        if step <= most and broken_seal(path) is None and (path / "checksums.json").is_file():
            copy_folder(path, new / "checkpoints" / path.name)
            return step
    return 0


def replay_step(
    run: Path, recipe: Recipe, stage: TrainedStage, step: int, prepared: Prepared, *, quiet: bool
) -> AuditFinding:
    """Make the steps up to `step` again, from the checkpoint before it, and compare them all.

    Raises `UserError` where it cannot be done.
    """
    own = stage_folders(run, recipe)[stage.name]
    lock = json_object(run / "lock.json")
    if (many := lock.get("processes", 1)) != 1:
        return unchecked("replay", f"the run was trained by {many} processes, and this is one")
    with scratch_of(run, recipe, stage, step, prepared, quiet=quiet) as scratch:
        session = scratch.session
        session.make(stage.name)
        steps = Steps(own, scratch.folder, scratch.start + 1, step, stage.steps)
        because = unlike_here(lock, session.placement, session.threads_used)
        return verdict_of(compare_steps(steps), steps, because, stage.name)


@contextmanager
def _none_to_go_on_with() -> Iterator[None]:
    """What stops a run inside names no folder to resume: it is removed."""
    try:
        yield
    except Interrupted:
        raise KeyboardInterrupt from None
    except RunStopped as error:
        error.folder = None
        raise


def replay_all(run: Path, recipe: Recipe, *, quiet: bool) -> Iterator[AuditFinding]:
    """Make the whole run again in a scratch folder: every stage, arm and evaluation, and compare.

    Raises `UserError` where it cannot be done.
    """
    lock = json_object(run / "lock.json")
    if (many := lock.get("processes", 1)) != 1:
        yield unchecked("replay", f"the run was trained by {many} processes, and this is one")
        return
    with tempfile.TemporaryDirectory(prefix="rl-reasoner-audit-") as place:
        folder = Path(place) / "run"
        settings = recipe.run.model_copy(update={"folder": str(folder), **_HERE})
        again = recipe.model_copy(update={"run": settings})
        folder.mkdir()
        write_text(folder / "recipe.yaml", again.to_yaml())
        shutil.copy(run / "lock.json", folder)
        with choices.during(), _none_to_go_on_with():
            train(again, resume=folder, quiet=quiet, command="rl-reasoner audit --all")
            # as many as the run's, which is resumed, unless the user has said how many
            threads = torch.get_num_threads() if user_sets_threads() else lock.get("threads", 0)
            because = unlike_here(lock, choose_placement(again), threads)
        for stage in recipe.stages:
            then, now = (stage_folders(at, recipe)[stage.name] for at in (run, folder))
            if isinstance(stage, RowStage):
                yield _same_rows(stage.name, then, now, because)
            else:
                steps = Steps(then, now, 1, last_step(then), stage.steps)
                yield verdict_of(compare_steps(steps), steps, because, stage.name)
        for file in result_files(folder):
            yield _same_result(run, file, str(file.relative_to(folder)), because)


def _same_rows(name: str, then: Path, now: Path, because: list[str]) -> AuditFinding:
    """Whether a stage of rows made the same file."""
    files = [side / "data.jsonl" for side in (then, now)]
    if files[0].is_file() and files[0].read_bytes() == files[1].read_bytes():
        return held("replay", f"stage {name}: the same rows, byte by byte")
    if because:
        return unchecked("replay", f"stage {name}: other rows, because {'; '.join(because)}")
    return differs("replay", f"stage {name}: other rows")


def _same_result(run: Path, file: Path, name: str, because: list[str]) -> AuditFinding:
    """Whether an evaluation came to the same figures and completions."""
    if not (run / name).is_file():
        return differs("replay", f"{name} is not in the run")
    then, now = EvalResult.load(run / name), EvalResult.load(file)
    if then.sets == now.sets and then.rows == now.rows:
        return held("replay", f"{name}: the same completions and figures")
    what = "figures" if then.sets != now.sets else "completions"
    if because:
        return unchecked("replay", f"{name}: other {what}, because {'; '.join(because)}")
    return differs("replay", f"{name}: other {what} when it is made again")


def unlike_here(lock: Mapping[str, Any], placement: Placement, threads: int) -> list[str]:
    """What this process differs in from the run's, of what changes how numbers are rounded."""
    here = {
        "device": placement.device,
        "precision": placement.precision,
        "threads": threads,
        "processor": processor(),
    }
    found = []
    for key, value in here.items():
        if key in lock and lock[key] != value:
            name = {"threads": "thread count", "processor": "machine"}.get(key, key)
            found.append(f"another {name} ({lock[key]} in the run, {value} here)")
    then = mapping(lock.get("versions"))
    for name, version in versions().items():
        if name in then and then[name] != version:
            found.append(f"another {name} ({then[name]} in the run, {version} here)")
    if lock.get("code") not in (None, code_hash()):
        found.append("other code of rl-reasoner")
    taken, recorded = choices.taken(), mapping(lock.get("choices"))
    other = [name for name in recorded if name in taken and taken[name] != recorded[name]]
    if other and not found:
        found.append(f"other choices by measurement ({', '.join(other)})")
    return found
