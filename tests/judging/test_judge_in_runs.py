"""A judge in a run: verdicts that were drawn once are taken again, after a kill as well."""

import signal
from pathlib import Path

import pytest

from support.jobs import ran
from support.tiny import grpo, recipe, rows, same

# A judge that draws its verdicts, and at its TRAP_AT-th question kills the trainer.
DRAWN = """
import json, os, signal
from pathlib import Path

CALLS = Path(__file__).with_name("calls")

def ask(messages, seed):
    with CALLS.open("a") as file:
        file.write("x")
    if str(CALLS.stat().st_size) == os.environ.get("TRAP_AT"):
        os.kill(os.getppid(), int(os.environ["TRAP_SIGNAL"]))
    return json.dumps({"points": {name: os.urandom(1)[0] % 5 for name in ("correct", "sound")}})
"""


@pytest.mark.matrix
def test_a_run_that_is_killed_keeps_the_verdicts_it_had(tmp_path: Path) -> None:
    (tmp_path / "judges.py").write_text(DRAWN, encoding="utf-8")
    options = {
        "function": f"{tmp_path}/judges.py:ask",
        "cache": str(tmp_path / "replies"),
        "concurrency": 1,
    }
    files = {}
    for name in ("killed", "whole"):
        made = recipe(
            tmp_path,
            grpo(steps=3, save_every=1, group={"size": 4, "prompts": 1}),
            policy="scratch:dense-tiny",
            rewards={"judge": {"weight": 1.0, "options": options}},
            run={"folder": str(tmp_path / name), "device": "cpu"},
            evals={"sets": []},
        )
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(made.to_yaml(), encoding="utf-8")
    assert ran(files["killed"], trap="11", sends=signal.SIGKILL).returncode == -signal.SIGKILL
    ended = ran("--resume", tmp_path / "killed")
    assert ended.returncode == 0, ended.stderr
    calls = (tmp_path / "calls").stat().st_size
    assert calls > 11
    assert ran(files["whole"]).returncode == 0
    assert (tmp_path / "calls").stat().st_size == calls, "all verdicts were there"
    assert same(tmp_path / "killed/policy", tmp_path / "whole/policy")
    both = [rows(tmp_path / name / "stages/1-grpo/rollouts.jsonl") for name in ("killed", "whole")]
    assert both[0] == both[1] and len({row["scores"]["judge"]["value"] for row in both[0]}) > 1
