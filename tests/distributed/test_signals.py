"""Signals to a job of several processes: what its launcher passes on, waits for, and says."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.places import ROOT
from support.processes import state_of
from support.tiny import REWARD, grpo, recipe

# torch's launcher gives processes two seconds to end instead of thirty.
IMPATIENT = """
import sys
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

patient = SubprocessContext._close
SubprocessContext._close = lambda self, death_sig, timeout=30: patient(self, death_sig, 2)
from rl_reasoner import cli
sys.exit(cli.main(sys.argv[1:]))
"""
# While the file "slow" is there each step but the first takes twelve seconds; it says "begun", and
# in which process.
SLOW = REWARD.replace(
    "from rl_reasoner", "import os\nimport time\nfrom pathlib import Path\n\nfrom rl_reasoner", 1
)
SLOW = SLOW.replace(
    "    if answer",
    """    here = Path(__file__).parent
    rows = here / "run/stages/1-grpo/metrics.jsonl"
    if (here / "slow").exists() and rows.exists() and rows.stat().st_size:
        (here / f"begun-{os.environ['RANK']}-{os.getppid()}").touch()
        time.sleep(3)
    if answer""",
)


def hears_hang_ups() -> None:
    """In a child: the tests themselves may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Job:
    """`train --launch 2` in the middle of a long step, its second or third."""

    def __init__(self, folder: Path, *before: str) -> None:
        self.folder, self.run = folder, folder / "run"
        made = recipe(folder, grpo(steps=9), source=SLOW, evals={"sets": []})
        (folder / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
        (folder / "slow").touch()
        given = ["train", str(folder / "recipe.yaml"), "--launch", "2"]
        self.launcher = subprocess.Popen(
            [*before, sys.executable, "-c", IMPATIENT, *given],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=(folder / "stderr").open("w"),
            preexec_fn=hears_hang_ups,
        )
        self.wait(lambda: len([*folder.glob("begun-*")]) == 2)

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait until something has happened; a job that ends before is a failure."""
        while not until():
            assert self.launcher.poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        """What it has written to standard error, in one line."""
        return " ".join((self.folder / "stderr").read_text(encoding="utf-8").split())

    def checkpoints(self) -> list[Path]:
        """The whole checkpoints of the stage."""
        return [*self.run.glob("stages/1-grpo/checkpoints/*/checksums.json")]

    def process(self, rank: int) -> int:
        """The id of one of the training processes."""
        (begun,) = self.folder.glob(f"begun-{rank}-*")
        return int(begun.name.rpartition("-")[2])


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    """A job; a parameter is what stands before its command."""
    started = Job(tmp_path, *getattr(request, "param", ()))
    yield started
    started.launcher.kill()
    for process in (started.process(0), started.process(1)):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    started.launcher.wait()


@pytest.mark.matrix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_step_longer_than_torch_waits_is_waited_for(job: Job, number: signal.Signals) -> None:
    job.launcher.send_signal(number)
    assert job.launcher.wait(120) == 130
    assert len(job.checkpoints()) == 1
    assert (
        f"interrupted; continue with: rl-reasoner train --resume {job.run} --launch 2" in job.said()
    )
    assert job.said().count("interrupted;") == 1 and "death signal" not in job.said()


@pytest.mark.matrix
@pytest.mark.parametrize("job", [("nohup",)], indirect=True)
def test_under_nohup_a_terminal_that_closes_stops_nothing(job: Job) -> None:
    job.launcher.send_signal(signal.SIGHUP)
    (job.folder / "slow").unlink()
    assert job.launcher.wait(120) == 0
    assert (job.run / "report.html").is_file()


@pytest.mark.matrix
def test_ctrl_c_twice_stops_at_once(job: Job) -> None:
    job.launcher.send_signal(signal.SIGINT)
    job.wait(lambda: "interrupt again to stop at once" in job.said())
    job.launcher.send_signal(signal.SIGINT)
    assert job.launcher.wait(120) == 130
    assert not job.checkpoints(), "the step was not finished"
    assert (
        f"interrupted; continue with: rl-reasoner train --resume {job.run} --launch 2" in job.said()
    )


@pytest.mark.matrix
def test_what_does_not_even_then_stop_is_killed_and_it_is_said(job: Job) -> None:
    os.kill(job.process(1), signal.SIGSTOP)
    for _ in range(3):
        job.launcher.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert job.launcher.wait(120) == 1
    assert "the job ended: process" in job.said() and "was killed by SIGKILL" in job.said()
    assert f"continue with: rl-reasoner train --resume {job.run} --launch 2" in job.said()


@pytest.mark.slow
def test_of_a_process_that_is_killed_only_the_cause_is_said(job: Job) -> None:
    """torch's launcher ends the other one by SIGTERM, which nobody has asked for."""
    os.kill(job.process(1), signal.SIGKILL)
    assert job.launcher.wait(120) == 1
    assert "the job ended: process 1 was killed by SIGKILL" in job.said()
    assert f"continue with: rl-reasoner train --resume {job.run} --launch 2" in job.said()
    assert "stopping after this step" not in job.said()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
def test_processes_whose_launcher_is_killed_stop_with_a_checkpoint(job: Job) -> None:
    trained = [job.process(rank) for rank in (0, 1)]
    job.launcher.kill()
    while any(map(state_of, trained)):  # they train on, and nobody waits for them
        time.sleep(0.05)
    assert len(job.checkpoints()) == 1
    assert (
        f"interrupted; continue with: rl-reasoner train --resume {job.run} --launch 2" in job.said()
    )
