"""The terminal closes under a run, or what reads its log goes away (`2>&1 | tee` at Ctrl-C).

A reward that prints goes on judging.
"""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_reasoner import train
from rl_reasoner.pipeline.run_folder import RunFolder
from support.tiny import REWARD, grpo, recipe, rows, same

# Has the terminal at its standard input as its own, as a shell's commands have, and no nohup.
OWN_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "rl_reasoner.cli", "train", sys.argv[1]])
"""
SLOW = REWARD.replace("from rl_reasoner", "import time\n\nfrom rl_reasoner", 1).replace(
    "    if answer", "    time.sleep(0.05)\n    if answer"
)


@pytest.mark.slow
@pytest.mark.parametrize("of", [pytest.param("terminal", marks=pytest.mark.matrix), "pipe"])
def test_a_run_whose_log_has_no_reader_stops_with_a_checkpoint(of: str, tmp_path: Path) -> None:
    source = SLOW.replace("    time.sleep", "    print('judging', flush=True)\n    time.sleep")
    made = recipe(tmp_path, grpo(steps=6), source=source, evals={"sets": ()})
    (tmp_path / "recipe.yaml").write_text(made.to_yaml(), encoding="utf-8")
    outer, inner = os.openpty() if of == "terminal" else os.pipe()
    start = ["-c", OWN_TERMINAL] if of == "terminal" else ["-m", "rl_reasoner.cli", "train"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), inner)
    process = subprocess.Popen(
        [sys.executable, *start, str(tmp_path / "recipe.yaml")], **streams, start_new_session=True
    )
    os.close(inner)
    stage = tmp_path / "run/stages/1-grpo"
    while process.poll() is None and not (stage / "metrics.jsonl").is_file():
        if select.select([outer], [], [], 0.05)[0]:
            os.read(outer, 65536)
    os.close(outer)
    while of == "pipe" and process.poll() is None and len(rows(stage / "metrics.jsonl")) < 3:
        time.sleep(0.05)
    if of == "pipe":
        process.send_signal(signal.SIGINT)
    assert process.wait(120) == 130
    done = len(rows(stage / "metrics.jsonl"))
    assert 0 < done < 6
    assert (stage / f"checkpoints/checkpoint-{done}/checksums.json").is_file()
    run, saved = RunFolder.reopen(tmp_path / "run")
    run.release()
    resumed = train(saved, resume=tmp_path / "run", quiet=True)
    (tmp_path / "whole").mkdir()
    whole = train(recipe(tmp_path / "whole", grpo(steps=6), evals={"sets": ()}), quiet=True)
    assert same(resumed.folder / "policy", whole.folder / "policy")
