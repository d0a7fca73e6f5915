"""Two processes on a CPU: 200 steps with everything left out that can be, and one that is killed.

    python benchmarks/processes.py [--steps 200]

DDP and FSDP over gloo, a mixture of experts; groups that are flat, groups that abstain wholly, rows
that abstain alone, refills, two iterations, and every fifth step one process whose rows have no
numbers. Prints, for each, seconds, steps, and the work of the process with most over the mean,
before and after groups change places. Then `rl-reasoner train --launch 2`, whose second process is
killed with SIGKILL in its fifth step: the seconds until the job has ended, and what it says. Ends
with 1 where a job does not end.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

PATIENCE_S = 3.0  # a step, on average
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
KILLED = """
name: killed
policy: scratch:moe-tiny
template: plain
data: {task: modular, count: 500}
rewards: {length: 1}
stages: [{kind: grpo, steps: 200, group: {size: 4, prompts: 4}, sampling: {max_tokens: 32}}]
evals: {sets: []}
"""


def uneven(completions: list[str], prompts: list[str], **columns: Any) -> list[float | None]:
    """Groups of prompts that end in 0 are flat, of those in 1 they abstain; others vary."""
    found: list[float | None] = []
    for completion, prompt in zip(completions, prompts, strict=True):
        kind = int(prompt[2])
        value = None if kind == 1 or len(completion) % 3 == 0 else len(set(completion)) / 8
        found.append(1.0 if kind == 0 else value)
    return found


def worker(folder: Path, steps: int, parallel: str) -> None:
    """One of the two processes."""
    import torch
    from datasets import Dataset

    from rl_reasoner import GRPOConfig, GRPOTrainer, open_policy
    from rl_reasoner.distributed import processes, strategy

    processes.join("cpu")
    policy = open_policy("scratch:moe-tiny", seed=5, device="cpu")
    rows = [{"prompt": f"{a}+{b}="} for a in range(8) for b in range(4)]
    trainer = GRPOTrainer(
        policy.model,
        reward_funcs=uneven,
        args=GRPOConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=24,
            learning_rate=1e-4,
            num_iterations=2,
            dynamic_sampling=1,
            router_replay=True,
            router_aux_loss_coef=0.0,
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            isolate_rewards=False,
            report_to="none",
            disable_tqdm=True,
            **strategy.trainer_arguments(parallel, processes.world_size()),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )

    def broken(module: Any, inputs: Any, output: Any) -> Any:
        lost = processes.rank() == 1 and trainer.state.global_step % 5 == 4
        return output * torch.nan if lost else output

    trainer.model.get_input_embeddings().register_forward_hook(broken)
    trainer.train()
    if processes.is_main():
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))
    processes.exit_process(0)


def measured(parallel: str, steps: int) -> dict[str, Any]:
    """The figures of one job."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node=2", __file__, "--worker", folder]
        command += ["--steps", str(steps), "--parallel", parallel]
        started = time.monotonic()
        limit = 120 + PATIENCE_S * steps
        done = subprocess.run(
            command, timeout=limit, env=ENV, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.stderr.write(done.stderr)
            raise SystemExit(f"{parallel}: the job ended with {done.returncode}")
        rows = json.loads((Path(folder) / "log.json").read_text())
        logged = [row for row in rows if "step_time" in row]
        spreads = {
            name: fmean(row[name] for row in logged if name in row)
            for name in ("processes/tokens_spread_sampled", "processes/tokens_spread")
        }
        skipped = sum(row.get("steps/skipped", 0) for row in logged)
        seconds = time.monotonic() - started
    return {"steps": len(logged), "seconds": seconds, "steps_left_out": skipped, **spreads}


def _process(folder: str, rank: int) -> int:
    """The process that is the `rank` of the job with `folder` on its command line."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            named = folder.encode() in (path / "cmdline").read_bytes()
            if named and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        except OSError:
            continue
    raise SystemExit(f"no process {rank}")


def killed(parallel: str) -> dict[str, Any]:
    """How a job ends whose second process is killed, and after how many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        (file := Path(folder) / "killed.yaml").write_text(KILLED)
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "rl_reasoner.cli", "train", str(file), "--launch", "2"]
        command += ["--quiet", "--run.folder", str(run), "--run.parallel", parallel]
        command += ["--run.device", "cpu"]
        job = subprocess.Popen(
            command, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        metrics, begun = run / "stages/1-grpo/metrics.jsonl", time.monotonic()
        while not metrics.is_file() or metrics.read_bytes().count(b"\n") < 5:
            if job.poll() is not None or time.monotonic() - begun > 300:
                job.kill()
                raise SystemExit(f"{parallel}: five steps were not made: {job.communicate()[1]}")
            time.sleep(0.05)
        os.kill(_process(folder, 1), signal.SIGKILL)
        struck = time.monotonic()
        said = job.communicate(timeout=300)[1]
        ended = time.monotonic() - struck
    shown = " ".join(re.sub(r"[╭╮╰╯│─]", " ", said).split())
    return {"ended_after_s": round(ended, 1), "exit": job.returncode, "said": shown}


def main() -> None:
    """The jobs, one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--worker", type=Path)
    parser.add_argument("--parallel", default="ddp")
    given = parser.parse_args()
    if given.worker is not None:
        worker(given.worker, given.steps, given.parallel)
    for parallel in ("ddp", "fsdp"):
        found = {k: round(v, 3) for k, v in measured(parallel, given.steps).items()}
        print(parallel, json.dumps(found), flush=True)
        print(parallel, "killed", json.dumps(killed(parallel), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
