"""benchmarks/real: run.py with a tiny policy, killed, continued, written down; beside_trl.py."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner.policy.scratch import scratch_policy
from support.places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks" / "real"))
from killed import differences

CHAT = "{% for m in messages %}<think>{{ m['content'] }}</think>{% endfor %}"
TINY = [
    *("--form.steps", "2", "--form.batch", "4", "--steps", "6", "--save_every", "1"),
    *("--sampling.max_tokens", "8"),
    *("--group.size", "4", "--group.prompts", "2", "--group.micro_batch", "4"),
    *("--evals.limit", "4", "--evals.max_tokens", "8", "--run.device", "cpu"),
]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """The script with rows and a policy that are there already, so that nothing is fetched."""
    policy = scratch_policy("dense-tiny", 0)
    policy.tokenizer.chat_template = CHAT
    policy.save(tmp_path / "tiny")
    rows = tmp_path / "cache" / "splits"
    rows.mkdir(parents=True)
    (rows / "splits.json").write_text("{}")
    for part in ("train", "test", "form"):
        sums: list[dict[str, Any]] = [
            {"problem": f"Ann has {n} and gets 1.", "answer": str(n + 1), "completion": "1"}
            for n in range(8)
        ]
        text = "".join(json.dumps(row) + "\n" for row in sums)
        (rows / f"word_problems_{part}.jsonl").write_text(text)
    places = {"model": "tiny", "cache": "cache", "runs": "runs", "results": "out", "data": "data"}
    script = str(ROOT / "benchmarks" / "real" / "run.py")
    flags = [text for name, at in places.items() for text in (f"--{name}", str(tmp_path / at))]
    return [sys.executable, script, "word_problems_moe", "--seed", "3", *flags]


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_and_its_results_are_written(
    command: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "word_problems_moe-3"
    metrics = run / "stages" / "2-grpo" / "metrics.jsonl"
    with (tmp_path / "said").open("w") as said:
        first = subprocess.Popen([*command, *TINY], start_new_session=True, stderr=said)
    try:
        while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
            assert first.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.05)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    assert not (tmp_path / "out").exists() and (run / "recipe.yaml").is_file()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "word_problems_moe-3.json"
    assert done.stdout.strip() == str(out)
    told = json.loads(out.read_text())
    steps = [json.loads(line)["step"] for line in metrics.open()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert told["pieces"] == 2 and told["killed_pieces"] == 1
    assert told["seconds"] > 0 and 0.05 < told["peak_memory_gb"] < 50
    for name in ("before", "after"):
        found = told["evals"][name]["word_problems_test"]
        assert found["of"] == found["problems"] == 4
        assert found["right"] == found["accuracy"] * 4
        numbers = told["right_per_problem"][name]["word_problems_test"].split()
        assert len(numbers) == 4 and sum(map(int, numbers)) == found["right"]
        leniently = told["lenient_per_problem"][name]["word_problems_test"].split()
        assert all(int(a) <= int(b) for a, b in zip(numbers, leniently, strict=True))
    paired = told["paired_with_before"]["after"]["word_problems_test"]
    assert {"difference", "interval", "p", "p_holm"} <= paired.keys() and "flips" not in paired
    assert told["policy"]["parameters"] > told["policy"]["active_parameters"], "it was upcycled"
    beside = [sys.executable, str(ROOT / "benchmarks" / "real" / "beside_trl.py"), str(run)]
    done = subprocess.run(
        [*beside, "--json", str(tmp_path / "sides.json")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert run.name in done.stdout.splitlines()[-1]
    sides = json.loads((tmp_path / "sides.json").read_text())[run.name]
    for side in ("trl", "ours"):
        (step,) = sides[side]["steps"]
        assert 8 <= step["tokens"] <= 64, "completions of a step: 2 prompts, 4 each, 1 to 8 tokens"
        assert 0 < step["generation"] < step["step"]
    assert "cores" in told["machine"]["system"]
    began = out.stat().st_mtime_ns
    assert subprocess.run(command, capture_output=True).returncode == 0
    again = json.loads(out.read_text())
    assert again == told and out.stat().st_mtime_ns > began, "a finished run is only read"


@pytest.mark.matrix
@pytest.mark.timeout(900)
def test_a_run_killed_in_a_step_is_held_against_the_unbroken_one(
    command: list[str], tmp_path: Path
) -> None:
    places = [*command[command.index("--model") :]]
    at = places.index("--runs")
    del places[at : at + 4]  # where its runs and results go is said below
    out = tmp_path / "killed.json"
    script = str(ROOT / "benchmarks" / "real" / "killed.py")
    killed = [sys.executable, script, "word_problems_moe", "--at", "4"]
    killed += ["--runs", str(tmp_path / "runs"), "--out", str(out), *places, *TINY]
    killed[killed.index("--save_every") + 1] = "2"
    killed[killed.index("--sampling.max_tokens") + 1] = "200"  # a step lasts, so it can be cut
    done = subprocess.run(killed, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no difference" in done.stdout
    told = json.loads(out.read_text())
    assert told["steps"] == 6 and told["killed_in_step"] == 4 and told["differences"] == []
    assert told["continued_from_step"] == 2 and told["weights"]
    assert all(file["unbroken"] == file["broken"] for file in told["weights"].values())
    name = "word_problems_moe-0"
    pieces = {
        kind: json.loads((tmp_path / "runs" / kind / f"{name}.json").read_text())["killed_pieces"]
        for kind in ("unbroken", "broken")
    }
    assert pieces == {"unbroken": 0, "broken": 1}
    whole, broken = (tmp_path / "runs" / kind / name for kind in pieces)
    spoiled = [
        "policy/model.safetensors",
        "stages/2-grpo/checkpoints/checkpoint-6/optimizer.pt",
        "stages/2-grpo/rollouts.jsonl",
        "evals/after.rows.jsonl",
        "stages/2-grpo/metrics.jsonl",
    ]
    for file in spoiled:
        body = bytearray((broken / file).read_bytes())
        body[-3] ^= 1
        (broken / file).write_bytes(body)
    found = [line.split(":")[0] for line in differences(whole, broken)]
    assert sorted(found) == sorted(spoiled)


@pytest.mark.slow
def test_a_step_that_fails_ends_it_with_its_code(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--stepz", "2"], capture_output=True, text=True)
    assert done.returncode == 2 and "stepz" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# A command of run.py that saves its state for a while when it is interrupted.
SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    open(sys.argv[1], "w").close()
"""


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_let_the_command_save_its_state(
    end: signal.Signals, code: int, tmp_path: Path
) -> None:
    parent = "import signal, sys; from run import call, terminated;"
    parent += "signal.signal(signal.SIGTERM, terminated); call(sys.executable, '-c', *sys.argv[1:])"
    running = subprocess.Popen(
        [sys.executable, "-c", parent, SAVES, str(tmp_path / "saved")],
        cwd=ROOT / "benchmarks" / "real",
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stderr is not None and running.stderr.readline() == "ready\n"
    # Ctrl-C in a terminal is for the whole group, `kill PID` for one process
    (os.killpg if end == signal.SIGINT else os.kill)(running.pid, end)
    running.communicate()
    assert (tmp_path / "saved").is_file() and running.returncode == code


def test_a_run_is_taken_to_its_end(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*command, "--until", "form"], capture_output=True, text=True)
    assert done.returncode == 2 and "--until: a run is taken to its end" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_sets_are_named_by_their_files() -> None:
    asked = ["/home/me@there/gsm8k_test.jsonl@sampled", "a/b.jsonl", "humaneval@clean"]
    code = f"from run import short; print([*map(short, {asked})])"
    where = ROOT / "benchmarks" / "real"
    told = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)
    assert told.stdout.strip() == "['gsm8k_test@sampled', 'b', 'humaneval@clean']", told.stderr
