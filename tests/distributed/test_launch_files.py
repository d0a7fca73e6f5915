"""The files in recipes/launch: read by those who read them, and their commands run."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from support.jobs import STEPS, ran, written
from support.places import ROOT, free_port
from support.tiny import same

LAUNCH = ROOT / "recipes/launch"


@pytest.mark.parametrize(
    ("name", "kind", "processes"),
    [
        ("single", "NO", 1),
        ("ddp", "MULTI_GPU", 8),
        ("fsdp2", "FSDP", 8),
        ("zero2", "DEEPSPEED", 8),
        ("zero3", "DEEPSPEED", 8),
    ],
)
def test_accelerate_reads_its_settings(name: str, kind: str, processes: int) -> None:
    found = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert str(getattr(found.distributed_type, "value", found.distributed_type)) == kind
    assert found.num_processes == processes
    if name == "fsdp2":
        assert found.fsdp_config["fsdp_version"] == 2
    if name.startswith("zero"):
        assert found.deepspeed_config["zero_stage"] == int(name[-1])


def test_the_batch_file_is_one() -> None:
    text = (LAUNCH / "slurm.sh").read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")]).returncode == 0
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert options["signal"] == "B:TERM@120" and "requeue" in options
    assert options["ntasks-per-node"] == "1" and text.startswith("#!/bin/bash\n")


def container() -> dict[str, Any]:
    """The container of the Kubernetes job."""
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    assert spec["completions"] == spec["parallelism"] == 2 and spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] > 100
    assert pod["subdomain"] == service["metadata"]["name"]
    found: dict[str, Any] = pod["containers"][0]
    return found


def test_the_job_says_where_its_run_is() -> None:
    environment = {one["name"]: one["value"] for one in container()["env"]}
    assert environment["HEAD"].startswith("rl-reasoner-0.rl-reasoner:")
    assert environment["RUN"].startswith(container()["volumeMounts"][0]["mountPath"])


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """With our torchrun, and with `srun` and `scontrol` of a cluster of this machine alone."""
    tools = folder / "tools"
    tools.mkdir()
    stubs = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done\nexec "$@"',
        "scontrol": f'[ "$1" = show ] && echo localhost || echo "$@" >> {folder}/queued',
        "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, text in stubs.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TRAP_AT": "", **changes}


@pytest.mark.matrix
def test_a_job_of_slurm_that_is_told_to_stop_is_queued_again_and_goes_on_exactly(
    tmp_path: Path,
) -> None:
    steps = {**STEPS, "steps": 20}  # it is told to stop before the last of them
    assert ran(written(tmp_path / "whole", steps), "--launch", 2).returncode == 0
    recipe, run = written(tmp_path / "told", steps), tmp_path / "told/run"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1"}
    given = environment(tmp_path, SLURM_GPUS_ON_NODE="2", PORT=str(free_port()), **slurm)
    command = ["bash", str(LAUNCH / "slurm.sh"), str(recipe), str(run)]
    job = subprocess.Popen(command, env=given)
    rows = run / "stages/1-grpo/metrics.jsonl"
    while job.poll() is None and not (rows.is_file() and rows.stat().st_size):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(300) != 0
    assert (tmp_path / "queued").read_text() == "requeue 7\n"
    assert [*run.glob("stages/1-grpo/checkpoints/*/checksums.json")]
    assert subprocess.run(command, env=given, timeout=400).returncode == 0
    assert same(run / "policy", tmp_path / "whole/run/policy")


@pytest.mark.matrix
def test_the_container_of_the_job_trains(tmp_path: Path) -> None:
    recipe = written(tmp_path / "pod", STEPS)
    found = container()
    changes = {one["name"]: one["value"] for one in found["env"]}
    changes |= {"RECIPE": str(recipe), "RUN": str(tmp_path / "pod/run"), "NODES": "1", "GPUS": "2"}
    given = environment(tmp_path, **{**changes, "HEAD": f"localhost:{free_port()}"})
    done = subprocess.run([*found["command"], *found["args"]], env=given, timeout=400)
    assert done.returncode == 0 and (tmp_path / "pod/run/report.html").is_file()
