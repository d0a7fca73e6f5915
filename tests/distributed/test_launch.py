"""Whole runs of several processes: started, killed, told to stop, continued to the same policy."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner import cli
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.trl_configs import check_configs
from support.jobs import STEPS, ran, written
from support.places import ROOT, free_port
from support.tiny import grpo, recipe, same, sft

ADAPTED = {"source": "scratch:moe-tiny", "lora": {"rank": 2}}


@pytest.mark.parametrize(
    ("parallel", "stages", "policy"),
    [
        ("ddp", (STEPS,), "scratch:moe-tiny"),
        pytest.param("ddp", (STEPS,), "scratch:dense-tiny", marks=pytest.mark.matrix, id="tied"),
        pytest.param("fsdp", (STEPS,), "scratch:moe-tiny", marks=pytest.mark.matrix),
        pytest.param("fsdp", (sft(), STEPS), "scratch:moe-tiny", marks=pytest.mark.matrix),
        pytest.param("fsdp", (STEPS,), ADAPTED, marks=pytest.mark.matrix, id="adapter"),
    ],
)
def test_a_process_that_is_killed_ends_the_job_with_one_message_and_it_goes_on_exactly(
    parallel: str, stages: tuple[dict[str, Any], ...], policy: Any, tmp_path: Path
) -> None:
    whole = written(tmp_path / "whole", *stages, policy=policy, parallel=parallel)
    done = ran(whole, "--launch", 2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "whole/run/report.html").is_file()
    killed = written(tmp_path / "killed", *stages, policy=policy, parallel=parallel)
    ended = ran(killed, "--launch", 2, trap="13", sends=signal.SIGKILL)  # of 4 a step: the fourth
    run = tmp_path / "killed/run"
    assert ended.returncode == 1
    assert ended.stderr.count("process 1 was killed by SIGKILL") == 1
    assert f"continue with: rl-reasoner train --resume {run} --launch 2" in ended.stderr
    assert "Traceback" not in ended.stderr
    continued = ran("--resume", run, "--launch", 2)
    assert continued.returncode == 0, continued.stderr
    assert "missing keys" not in continued.stderr, "of a head that is tied"
    assert same(run / "policy", tmp_path / "whole/run/policy")


@pytest.mark.parametrize(
    ("how", "said"), [("0", "at least one process"), ("nowhere.yaml", "a file of accelerate's")]
)
def test_what_cannot_be_launched_is_said(
    how: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a", STEPS)
    assert cli.main(["train", str(file), "--launch", how]) == 2
    assert said in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_second_host_that_never_comes_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher of the first of two hosts waits for the other one, here for two seconds."""
    from torch.distributed.elastic.rendezvous import static_tcp_rendezvous

    patient = static_tcp_rendezvous.create_rdzv_handler

    def impatient(params: Any) -> Any:
        params.config["timeout"] = 2
        return patient(params)

    monkeypatch.setattr(static_tcp_rendezvous, "create_rdzv_handler", impatient)
    settings = yaml.safe_load((ROOT / "recipes/launch/ddp.yaml").read_text(encoding="utf-8"))
    address = {"main_process_ip": "127.0.0.1", "main_process_port": free_port()}
    (hosts := tmp_path / "hosts.yaml").write_text(
        yaml.safe_dump({**settings, **address, "num_machines": 2, "num_processes": 2})
    )
    file = written(tmp_path / "a", STEPS)
    assert cli.main(["train", str(file), "--launch", str(hosts)]) == 1
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert "its hosts do not reach each other" in said and "Traceback" not in said


def test_a_step_that_the_processes_cannot_share_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    made = recipe(tmp_path, grpo(group={"size": 4, "prompts": 6}))
    with pytest.raises(UserError, match=r"prompts 6 is not a multiple of the 4 .* never split"):
        check_configs(made, choose_placement(made))
    made = recipe(tmp_path, sft(batch=10))
    with pytest.raises(UserError, match="batch 10 is not a multiple of the 4 processes"):
        check_configs(made, choose_placement(made))
