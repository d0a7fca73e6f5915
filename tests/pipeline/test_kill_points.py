"""Killed (-9) right before each of its writes, a run ends as if it had not been: every point."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_reasoner import Recipe, train
from support.tiny import grpo, recipe, same, sft, untimed

CHANGES = ("open", "os.rename", "os.mkdir")  # of files; os.replace is told of as a rename
# Written once, and not again: what is left of it where it was cut off is of no use, nor harm.
MAY_BE_LEFT = (".forecast.json.part",)
# A checkpoint without a seal is looked at more closely, and taken if it is whole.
MAY_LACK = ("checksums.json",)


def wanted(folder: Path) -> Recipe:
    """Supervised steps, samples, GRPO and its control arm, with evaluations of all of them."""
    folder.mkdir()
    samples = {
        "kind": "sample",
        "name": "samples",
        "data": {"task": "modular", "count": 4, "seed": 3},
        "samples": 2,
        "reward": f"{folder / 'near.py'}:near",
        "min_score": 0.01,
        "sampling": {"max_tokens": 8},
        "keep": {"readable": False, "per_prompt": 2},
    }
    stages = [
        sft(name="pre", steps=2, save_every=1),
        samples,
        grpo(start="pre", steps=2, save_every=1),
    ]
    evals = {"limit": 2, "stages": True}
    return recipe(folder, *stages, evals=evals, controls=["random_reward"])


def run(asked: Recipe, resume: Path | None, last: int | None) -> tuple[int, str]:
    """Run in a process of its own, killed right before the change of files number `last`.

    The exit status, and what was to change; or, of a run that ended, how many changes there were.
    """
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        own, count, place = os.getpid(), 0, str(asked.run.folder)

        def watch(event: str, given: Any) -> None:
            nonlocal count
            if event not in CHANGES or os.getpid() != own or place not in str(given):
                return
            if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
                return
            count += 1
            if count == last:
                os.write(tell, f"{event} {given}".encode())
                os.kill(own, signal.SIGKILL)

        try:
            torch.set_num_threads(1)
            sys.addaudithook(watch)
            train(asked, resume=resume, quiet=True)
            os.write(tell, str(count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(tell)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(told) as pipe:
        return status, pipe.read()


def unlike(found: Path, whole: Path) -> Iterator[str]:
    """In what a run's folder differs from that of the run that was not killed."""
    if not same(found / "policy", whole / "policy"):
        yield "weights"
    names, own = (
        {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
        for folder in (found, whole)
    )
    yield from (f"more: {n}" for n in names - own if not n.endswith(MAY_BE_LEFT))
    yield from (f"less: {n}" for n in own - names if not n.endswith(MAY_LACK))
    for name in sorted(n for n in names & own if n.endswith("metrics.jsonl")):
        if untimed(found / name) != untimed(whole / name):
            yield name


@pytest.mark.matrix
@pytest.mark.timeout(3600)
def test_killed_right_before_any_write_a_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    status, count = run(wanted(tmp_path / "whole"), None, None)
    assert status == 0 and int(count) > 100
    wrong = []
    for point in range(1, int(count) + 1):
        asked, folder = wanted(tmp_path / str(point)), tmp_path / str(point) / "run"
        status, what = run(asked, None, point)
        assert status == signal.SIGKILL
        begun = (folder / "recipe.yaml").is_file()
        status, _ = run(asked, folder if begun else None, None)
        found = [*unlike(folder, tmp_path / "whole" / "run")] if status == 0 else ["did not end"]
        wrong += [f"{what}: {', '.join(found)}"] if found else []
    assert not wrong
