"""Whole runs over two hosts: a link cut in mid-step, a host killed, stopped, lost while it saves.

The hosts are network namespaces (support.hosts). Their processes are forked, with what torchrun
tells its own: loading torch anew for each would take longer than the runs. The last tests type
the launchers' commands.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import cli
from rl_reasoner.distributed.loading import load_for_good
from rl_reasoner.distributed.processes import LOST, SILENCE_S
from support.hosts import ADDRESSES, Hosts, two_hosts
from support.jobs import STEPS, written
from support.places import free_port
from support.processes import state_of
from support.tiny import same

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]
POLICY = "scratch:dense-tiny"
_CLONE_NEWNET = 0x40000000
ROOT = Path(__file__).resolve().parents[2]
IN_MID_STEP = {"TRAP_AT": "10", "TRAP_SIGNAL": str(int(signal.SIGSTOP))}
"""The second process stops in its third step of four, after the checkpoint of the second."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    load_for_good("rl_reasoner.pipeline.train")  # once, for all that are forked
    with two_hosts() as made:
        yield made


class Job:
    """`rl-reasoner train ARGUMENTS` in two processes, each on a host of its own where given."""

    def __init__(self, hosts: Hosts | None, logs: Path, *arguments: Any, **env: str) -> None:
        torch.set_num_threads(1)  # a process with more of them cannot be forked safely
        port = free_port()
        self.logs = [logs.with_suffix(f".{rank}") for rank in (0, 1)]
        self.pids = []
        for rank in (0, 1):
            pid = os.fork()
            if pid == 0:
                env |= {"RANK": str(rank), "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
                _run(hosts, rank, self.logs[rank], [*map(str, arguments)], env)
            self.pids.append(pid)

    def wait_until_stopped(self) -> None:
        """Wait until the second process is stopped, in mid-step."""
        while (state := state_of(self.pids[1])) != "T":
            assert state, self.logs[1].read_text()
            time.sleep(0.05)

    def ended(self, rank: int) -> tuple[int, str]:
        """How a process ends, and what it says."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pids[rank], 0)[1])
        return code, self.logs[rank].read_text()

    def succeeds(self) -> None:
        """Wait for both, which come to the end of the run."""
        found = [self.ended(rank) for rank in (0, 1)]
        assert [code for code, _ in found] == [0, 0], found


def _run(hosts: Hosts | None, rank: int, log: Path, given: list[str], env: dict[str, str]) -> None:
    """The life of a process of a job: it never returns."""
    code = 1
    try:
        if hosts is not None:
            with Path("/run/netns", hosts.names[rank]).open() as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        here = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        there = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": ADDRESSES[0]}
        there |= {"GROUP_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "net"}
        os.environ |= {**env, **(here if hosts is None else there)}
        code = cli.main(["train", "--quiet", *given])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of the run that nothing happens to, in two processes of one host."""
    folder = tmp_path_factory.mktemp("whole")
    Job(None, folder / "log", written(folder / "a", STEPS, policy=POLICY)).succeeds()
    return folder / "a/run/policy"


def say(found: tuple[int, str], code: int, why: str, run: Path) -> None:
    """Hold how a process ended against its exit code and the one message that it is to say."""
    message = f"the job ended: {why}\ncontinue with: rl-reasoner train --resume {run}\n"
    assert found[0] == code and found[1].endswith(message), found
    assert found[1].count("the job ended") == 1 and "Traceback" not in found[1]


def test_a_link_cut_in_mid_step_is_one_message_on_each_host_and_the_run_goes_on_exactly(
    hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    file, run = written(tmp_path / "a", STEPS, policy=POLICY), tmp_path / "a/run"
    job = Job(hosts, tmp_path / "log", file, **IN_MID_STEP)
    job.wait_until_stopped()
    hosts.cut()
    os.kill(job.pids[1], signal.SIGCONT)
    for rank in (0, 1):
        why = f"host {ADDRESSES[1 - rank]} has not answered for {SILENCE_S} s"
        say(job.ended(rank), 1, why, run)
    hosts.mend()
    Job(hosts, tmp_path / "log", "--resume", run).succeeds()
    assert same(run / "policy", whole)


def test_a_host_that_is_killed_is_one_message_on_the_other_and_one_process_goes_on(
    hosts: Hosts, tmp_path: Path
) -> None:
    file, run = written(tmp_path / "a", STEPS, policy=POLICY), tmp_path / "a/run"
    job = Job(hosts, tmp_path / "log", file, **IN_MID_STEP)
    job.wait_until_stopped()
    hosts.signal(1, signal.SIGKILL)
    assert job.ended(1)[0] == -signal.SIGKILL
    say(job.ended(0), LOST, "another of its processes ended early", run)
    assert cli.main(["train", "--quiet", "--resume", str(run)]) == 0
    assert (run / "policy/model.safetensors").is_file()


def test_a_host_that_is_stopped_for_a_while_is_waited_for(
    hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    """Longer than a host that does not answer is."""
    job = Job(hosts, tmp_path / "log", written(tmp_path / "a", STEPS, policy=POLICY), **IN_MID_STEP)
    job.wait_until_stopped()
    time.sleep(1.5 * SILENCE_S)
    os.kill(job.pids[1], signal.SIGCONT)
    job.succeeds()
    assert same(tmp_path / "a/run/policy", whole)


def test_the_first_host_is_lost_while_it_saves_and_the_run_goes_on_exactly(
    hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    file, run = written(tmp_path / "a", STEPS, policy=POLICY), tmp_path / "a/run"
    job = Job(hosts, tmp_path / "log", file)
    saved = run / "stages/1-grpo/checkpoints/checkpoint-4"
    while not saved.is_dir():
        time.sleep(0.001)
    hosts.signal(0, signal.SIGKILL)
    assert job.ended(0)[0] == -signal.SIGKILL
    assert not (saved / "checksums.json").is_file(), "it was quicker than the test"
    say(job.ended(1), LOST, "another of its processes ended early", run)
    Job(hosts, tmp_path / "log", "--resume", run).succeeds()
    assert same(run / "policy", whole)


def typed(how: str, host: int, port: int, folder: Path) -> list[str]:
    """What is typed on a host of two, in front of `train`, for a launcher to start the job."""
    ours, there = ["--module", "rl_reasoner.cli"], str(ADDRESSES[0])
    meet = [f"--main_process_ip={there}", f"--main_process_port={port}", f"--machine_rank={host}"]
    if how == "torchrun":
        torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={there}:{port}"]
        # these two have one name, which is not that of their addresses
        rendezvous += [f"--rdzv-conf=is_host={host == 0}", f"--local-addr={ADDRESSES[host]}"]
        return [*torchrun, *rendezvous, *ours]
    settings = (ROOT / "recipes/launch/ddp.yaml").read_text(encoding="utf-8")
    if how == "accelerate launch":
        file = ROOT / "recipes/launch/ddp.yaml"
        sizes = ["--num_machines=2", "--num_processes=2"]
        return ["accelerate.commands.launch", f"--config_file={file}", *sizes, *meet, *ours]
    for old, new in (
        ("num_machines: 1", "num_machines: 2"),
        ("num_processes: 8", "num_processes: 2"),
    ):
        settings = settings.replace(old, new)
    settings = settings.replace("machine_rank: 0", f"machine_rank: {host}")
    file = folder / f"host{host}.yaml"
    file.write_text(f"{settings}main_process_ip: {there}\nmain_process_port: {port}\n")
    return ["rl_reasoner.cli"]


class Typed:
    """`rl-reasoner train ARGUMENTS` as a launcher's command on each of two hosts."""

    def __init__(self, hosts: Hosts, how: str, folder: Path, *arguments: Any, **env: str) -> None:
        port = free_port()
        self.commands = []
        for host in (0, 1):
            words = [*typed(how, host, port, folder), "train", "--quiet", *map(str, arguments)]
            if how == "--launch":
                words += ["--launch", str(folder / f"host{host}.yaml")]
            told = {"OMP_NUM_THREADS": "1", **env}
            pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": ROOT}
            self.commands.append(hosts.start(host, [sys.executable, "-m", *words], told, **pipes))

    def ended(self) -> list[tuple[int, str]]:
        """How the command on each host ends, and what it says."""
        said = [command.communicate(timeout=900)[0] for command in self.commands]
        return [
            (command.returncode, text) for command, text in zip(self.commands, said, strict=True)
        ]


@pytest.mark.parametrize("how", ["torchrun", "accelerate launch", "--launch"])
def test_a_launchers_command_on_each_host_trains_as_on_one(
    how: str, hosts: Hosts, whole: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "a", STEPS, policy=POLICY)
    found = Typed(hosts, how, tmp_path, file).ended()
    assert [code for code, _ in found] == [0, 0], found
    assert same(tmp_path / "a/run/policy", whole)


def test_shards_on_two_hosts_train_as_on_one(hosts: Hosts, tmp_path: Path) -> None:
    """FSDP2 under torchrun, from the first step to the policy that is put together."""
    one, two = (
        written(tmp_path / name, STEPS, policy=POLICY, parallel="fsdp") for name in ("one", "two")
    )
    Job(None, tmp_path / "log", one).succeeds()
    found = Typed(hosts, "torchrun", tmp_path, two).ended()
    assert [code for code, _ in found] == [0, 0], found
    assert same(tmp_path / "two/run/policy", tmp_path / "one/run/policy")


def stopped_on(hosts: Hosts, host: int) -> None:
    """Wait until a process of a host is stopped, in mid-step."""
    while "T" not in map(state_of, hosts.processes(host)):
        time.sleep(0.1)


def test_a_host_that_is_killed_under_torchrun_ends_the_command_on_the_other(
    hosts: Hosts, tmp_path: Path
) -> None:
    file, run = written(tmp_path / "a", STEPS, policy=POLICY), tmp_path / "a/run"
    job = Typed(hosts, "torchrun", tmp_path, file, **IN_MID_STEP)
    stopped_on(hosts, 1)
    hosts.signal(1, signal.SIGKILL)
    [(code, said), _] = job.ended()
    message = "the job ended: another of its processes ended early\n"
    message += f"continue with: rl-reasoner train --resume {run}\n"
    assert code == 1 and said.count(message) == 1, said
    assert cli.main(["train", "--quiet", "--resume", str(run)]) == 0
