"""The door of a run: `train(recipe)` makes or reopens its folder and takes it to its end.

Of several processes (`launch`) the main one holds the folder and decides; the others train the
stages that it names (`session`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.distributed import launcher, processes
from rl_reasoner.distributed.threads import Threads
from rl_reasoner.errors import RunStopped, UserError
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.machine import choices
from rl_reasoner.pipeline.controls import follow_controls, train_controls
from rl_reasoner.pipeline.inputs import Inputs, read_inputs
from rl_reasoner.pipeline.lineage import edited_since, window_of
from rl_reasoner.pipeline.placement import Placement, choose_placement
from rl_reasoner.pipeline.prepare import Prepared, prepare
from rl_reasoner.pipeline.run_folder import FolderGone, Interrupted, RunFolder
from rl_reasoner.pipeline.session import Session
from rl_reasoner.policy.opening import quiet_libraries
from rl_reasoner.policy.policy import Policy
from rl_reasoner.recipe.load import Locate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.report.notebook import run_html
from rl_reasoner.report.terminal import LiveView
from rl_reasoner.scoring.runner import give_up_all
from rl_reasoner.training.checkpointing.faults import DiskFull, disk_is_full
from rl_reasoner.training.checkpointing.signals import Stop


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its folder, its policy, its evaluations by name, its report.

    In a notebook it shows what the gain is, the curves, and groups of completions.
    """

    folder: Path
    policy: Policy
    evals: Mapping[str, EvalResult]
    report: Path

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, evals={[*self.evals]}, report={str(self.report)!r})"

    def _repr_html_(self) -> str:
        return run_html(self.folder)


def train(
    recipe: Recipe,
    *,
    resume: Path | str | None = None,
    quiet: bool = False,
    command: str | None = None,
    locate: Locate | None = None,
    inputs: Inputs | None = None,
    first: str | None = None,
    last: str | None = None,
) -> Run:
    """Run `recipe` to its end, or continue the run in the folder `resume`.

    What a run has finished stays. Where `recipe` differs from the one that the run began with, the
    stages that it makes from something else run again; earlier results are moved to `old/N/` in it.
    `first` and `last` name the stages to begin and to end with; `first` runs again if finished.
    `command` is what the user typed, `locate` gives the place of a field of the recipe, for
    messages, and `inputs` is what it names, if that is read already.
    Raises `UserError` for what the user can fix (if possible before anything is loaded); leaving a
    checkpoint, `Interrupted` when asked to stop, `RunStopped` where it cannot go on by itself.
    """
    quiet_libraries()
    placement = choose_placement(recipe, locate)
    processes.join(placement.device)
    window = window_of(recipe, first, last)
    read = inputs or read_inputs(recipe, locate, starts=resume is None)
    prepared = prepare(recipe, placement, locate, read)
    if not processes.is_main():
        return _follow(placement, prepared)
    if resume is None:
        run, saved = RunFolder.create(recipe), recipe
    else:
        run, saved = RunFolder.reopen(Path(resume))
        recipe = recipe.in_folder(saved.run.folder)
    with _ended_well(run, fresh=resume is None), _there(run):
        if saved.name != recipe.name:
            raise UserError(f"{resume} is a run of the recipe {saved.name!r}, not {recipe.name!r}")
        launcher.tell_launcher(run.path)
        chosen = run.choices()
        processes.broadcast((run.path, recipe, chosen))
        with choices.during(chosen, run.keep_choices), _begun(quiet) as tools:
            session = Session(recipe, run, placement, prepared, *tools)
            if changed := saved != recipe:
                run.change(recipe)
            ref = session.go(window, changed=changed, again=first is not None, command=command)
            train_controls(session)
            policy = session.end(ref)
            _tell_edited(session)
            return Run(run.path, policy, session.evals, run.path / "report.html")


def _tell_edited(session: Session) -> None:
    """Say which files were edited or removed meanwhile: the run's record has them as they were."""
    if edited := edited_since(session.recipe, session.prepared.read):
        session.view.note(
            f"edited or removed while the run went on: {', '.join(edited)}. It is recorded with "
            "what was read at its start; --resume runs again what depends on them"
        )


@contextmanager
def _there(run: RunFolder) -> Iterator[None]:
    """Whatever ends the work inside: a folder that was taken away meanwhile is what is told."""
    try:
        yield
    except RunStopped:
        raise
    except (Exception, KeyboardInterrupt):
        run.check_there()
        raise
    run.check_there()


@contextmanager
def _ended_well(run: RunFolder, *, fresh: bool) -> Iterator[None]:
    """Whatever ends the work inside, its error names the folder, which is let go of.

    Where the user's mistake ended it, a `fresh` one is taken away again, and one that was there is
    what it was before, if the mistake was found before anything was done.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        give_up_all()
        raise Interrupted(run.path) from error
    except FolderGone:
        raise
    except RunStopped as error:
        error.folder = str(run.path)
        raise
    except OSError as error:
        if not disk_is_full(error):
            raise
        stopped = DiskFull(f"{error.filename or run.path}: {error.strerror}")
        stopped.folder = str(run.path)
        raise stopped from error
    except UserError:
        run.discard() if fresh else run.take_back()
        raise
    finally:
        run.release()


@contextmanager
def _begun(quiet: bool) -> Iterator[tuple[LiveView, Stop, Threads]]:
    """What a session is shown with, stopped by and computed with."""
    with LiveView(quiet=quiet) as view, Stop(view.note) as stop, Threads() as threads:
        yield view, stop, threads


def _follow(placement: Placement, prepared: Prepared) -> Run:
    """The run in a process that is not the main one: it trains the stages that it is sent."""
    chosen: Mapping[str, Any] = {}
    path, recipe, chosen = processes.broadcast((Path(), None, chosen))
    assert recipe is not None
    launcher.tell_launcher(path)
    try:
        with choices.during(chosen), _begun(quiet=True) as tools:
            session = Session(recipe, RunFolder(path), placement, prepared, *tools)
            session.follow()
            follow_controls(session)
            policy = session.follow_to_end()
            return Run(path, policy, session.evals, path / "report.html")
    except KeyboardInterrupt as error:
        give_up_all()
        raise Interrupted(path) from error
