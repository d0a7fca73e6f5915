"""The day of the card: what one GPU has to say, in at most 40 minutes, as one table.

    make gpu                                      # or: python benchmarks/gpu.py OUT
    python benchmarks/gpu.py OUT --vllm ~/vllm/bin/python --policy FOLDER --data gsm8k_train.jsonl
    python benchmarks/gpu.py OUT --dry-run        # every part at a tiny size on a CPU

Parts: sampling by this engine, transformers and vLLM (generation.py, the shape of Qwen2.5-1.5B with
random weights); a training pass by this trainer and by trl in bf16, by this one in fp16 and FP8
(trainer.py); router replay (router_replay.py); 30 steps of GRPO on GSM8K with
Qwen2.5-1.5B-Instruct, by this project and by trl with vLLM on the same card, memory beside the
planner's figure. `--policy` and `--data` are what needs the hub otherwise.

A part is a process with a time of its own. One that cannot run (no card, no vLLM, no hub, out of
memory, an exception, killed, over its time) is a row that says why, and the rest goes on. OUT gets
`parts.jsonl` as parts end, then `report.md` and `report.json`; `logs/` has what a part printed.
Ctrl-C keeps what is done. Given again, with the same card, driver and torch, it goes on with the
parts that have no figures yet.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rl_reasoner.files import append_rows, read_jsonl, write_json, write_text
from rl_reasoner.sandbox.linux import die_with_parent

Figures = dict[str, float]
Row = dict[str, Any]


class NotHereError(Exception):
    """What a part needs is not on this machine; the message says what."""


@dataclass(frozen=True)
class Part:
    """A row of the table: what measures it, with which arguments, and the seconds it may take.

    `beside`: the part whose figures its own are divided by.
    """

    name: str
    seconds: float
    work: Callable[..., Figures]
    given: Mapping[str, Any]
    beside: str = ""


# ------------------------------------------------------------------------------------ the parts


def sampling(side: str, vllm: str | None, **given: Any) -> Figures:
    """Sampled tokens a second, with prefill, for each number of rows; by one side."""
    import generation

    if side == "continuous" and given["device"] == "cpu":
        raise NotHereError("generate_batch takes most of a machine's memory for its cache")
    folder = str(generation.random_folder(given["case"]))
    args = argparse.Namespace(**given, side=side, vllm=vllm, folder=folder, under="", eager=False)
    args.differences = False
    if side != "vllm":
        found = generation.measure(args)
    elif vllm is None:
        raise NotHereError("vLLM is not installed here (or name an interpreter: --vllm PYTHON)")
    else:
        found = generation.run(side, folder, args.dtype, args)
    return {f"tokens/s, {rows} rows": rate["whole"] for rows, rate in found["rates"].items()}


def training(**given: Any) -> Figures:
    """Seconds of a training pass over the same rows, its memory, the first gradient's norm.

    Of this trainer also how far log-probabilities in sampling are from those in training.
    """
    import trainer

    args = argparse.Namespace(**given, mode="replay", flat=0.0)
    found = trainer.measure(args)
    steps = found["steps"]
    figures = {
        "training, s": statistics.median(step["training"] for step in steps),
        "memory, MB": found["peak_mb"],
        "gradient norm": steps[0]["grad_norm"],
    }
    return figures | (log_prob_gap(args) if args.side == "ours" else {})


def log_prob_gap(args: argparse.Namespace) -> Figures:
    """The mean and the largest |log-prob in training - in sampling|, nats, in this precision."""
    import trainer

    from rl_reasoner.policy.device import autocast_dtype
    from rl_reasoner.policy.fp8.layers import in_fp8
    from rl_reasoner.rollout.mismatch import measure

    model = trainer.model_of(args.case, args.device).eval()
    prompts = [[10 + row + at for at in range(12)] for row in range(args.prompts)]
    with in_fp8(args.precision, "block", args.device, model):
        gap = measure(
            model,
            [prompt for prompt in prompts for _ in range(4)],
            ends=(trainer.END,),
            max_tokens=args.longest,
            autocast=autocast_dtype(args.precision),
        ).plain
    return {"log-prob gap, mean": gap.mean, "log-prob gap, largest": gap.largest}


def replay(families: Sequence[str], rows: int, tokens: int, device: str) -> Figures:
    """Tokens that change experts, and the largest gap, without and with replay; bf16."""
    import router_replay
    import torch

    figures: Figures = {}
    for family in families:
        found = router_replay.measured(family, torch.bfloat16, 0, rows, tokens, device)
        assert found.replayed is not None and found.plain.flips is not None
        figures[f"{family}: tokens that change experts"] = found.plain.flips
        figures[f"{family}: largest gap"] = found.plain.largest
        figures[f"{family}: largest gap, replayed"] = found.replayed.largest
    return figures


def recipe_of(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe of the real run: no evaluation, for only steps are measured."""
    group = {"size": given["size"], "prompts": given["prompts"], "micro_batch": given["micro"]}
    return {
        "name": "gpu",
        "policy": given["policy"],
        "data": given["data"],
        "template": given["template"],
        "rewards": {"math_answer": 1.0},
        "stages": [
            {
                "kind": "grpo",
                "steps": given["steps"],
                "group": group,
                "sampling": {"max_tokens": given["longest"]},
                "optim": {"lr": given["lr"]},
                "save_every": 10_000,
            }
        ],
        "run": {"folder": str(folder), "device": given["device"], "precision": given["precision"]},
    }


def run_of_ours(folder: str, card: str, **given: Any) -> Figures:
    """The run by this project: seconds of a step, tokens, reward, memory; the plan's beside it."""
    import trainer

    from rl_reasoner import Recipe, train

    shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped
    recipe = Recipe.model_validate(recipe_of(given, Path(folder)))
    run = train(recipe, quiet=True)
    rows = [*read_jsonl(run.folder / "stages" / "1-grpo" / "metrics.jsonl")]
    memory = {"memory, MB": trainer.peak_mb(given["device"])}
    return figures_of_run(rows, given) | memory | planned(recipe, card)


def planned(recipe: Any, card: str) -> Figures:
    """What the planner says of this card, where it has its data sheet."""
    from rl_reasoner.planning.gpus import GPUS
    from rl_reasoner.planning.plan import plan
    from rl_reasoner.planning.step_memory import phases

    if not (known := [name for name in GPUS if name in re.split(r"[\s-]", card)]):
        return {}
    [found] = plan(recipe, 1, known[0])
    memory = max(phases(found.memory, found.load).values())
    return {"planned step, s": found.step, "planned memory, MB": memory / 2**20}


def prompt_text(row: Mapping[str, Any], template: str, tokenizer: Any) -> str:
    """The prompt of a row as a text, a chat by the tokenizer's template."""
    from rl_reasoner.dataset.templates import prompt_of

    prompt = prompt_of(row, template, tokenizer)
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))


def run_of_trl(folder: str, vllm: bool, **given: Any) -> Figures:
    """The same run by trl, sampling with vLLM on the card (`vllm`) or with `generate`."""
    if vllm and importlib.util.find_spec("vllm") is None:
        raise NotHereError("vLLM is not installed beside trl: pip install 'trl[vllm]'")
    import trainer
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from rl_reasoner import Recipe, open_policy
    from rl_reasoner.answers import verify
    from rl_reasoner.dataset.rows import load_rows

    recipe = Recipe.model_validate(recipe_of(given, Path(folder)))
    assert recipe.data is not None
    policy = open_policy(given["policy"], device=given["device"])

    def right(completions: list[str], answer: list[str], **columns: Any) -> list[float | None]:
        return [verify(c, a).value for c, a in zip(completions, answer, strict=True)]

    text = partial(prompt_text, template=given["template"], tokenizer=policy.tokenizer)
    rows = [{"prompt": text(row), "answer": row["answer"]} for row in load_rows(recipe.data)]
    beside = {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.3}
    card = given["device"] == "cuda"
    trainer_of_trl = GRPOTrainer(
        policy.model,
        reward_funcs=right,
        args=GRPOConfig(
            folder,
            max_steps=given["steps"],
            learning_rate=given["lr"],
            lr_scheduler_type="constant",
            per_device_train_batch_size=given["micro"],
            gradient_accumulation_steps=given["size"] * given["prompts"] // given["micro"],
            num_generations=given["size"],
            max_completion_length=given["longest"],
            bf16=given["precision"] == "bf16",
            use_cpu=not card,
            gradient_checkpointing=card,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **(beside if vllm else {}),
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.tokenizer,
    )
    begun = [time.perf_counter()]  # of each step, and the end of the last
    trainer_of_trl.add_callback(clock(begun))
    trainer_of_trl.train()
    logs = [log for log in trainer_of_trl.state.log_history if "reward" in log]
    spent = [after - before for before, after in itertools.pairwise(begun)]
    logs = [log | {"step_time": s} for log, s in zip(logs, spent, strict=True)]
    return figures_of_run(logs, given) | {"memory, MB": trainer.peak_mb(given["device"])}


def clock(times: list[float]) -> Any:
    """A callback that adds the end of every step to `times`."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *others: Any, **columns: Any) -> None:
            times.append(time.perf_counter())

    return Clock()


def figures_of_run(rows: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> Figures:
    """Of the logged steps after the first two; rewards of the first and the last five."""
    warm = rows[2:] or rows
    step = statistics.median(row["step_time"] for row in warm)
    sampled = statistics.mean(row["completions/mean_length"] for row in warm)
    rewards = [row["reward"] for row in rows]
    return {
        "step, s": step,
        "sampled tokens/s": sampled * given["size"] * given["prompts"] / step,
        "tokens a completion": sampled,
        "reward, first 5": statistics.mean(rewards[:5]),
        "reward, last 5": statistics.mean(rewards[-5:]),
    }


def parts_of(args: argparse.Namespace, card: str) -> list[Part]:
    """All parts, at the card's size or the tiny one of a dry run."""
    dry = args.dry_run
    where = {"device": "cpu" if dry else "cuda"}
    case = {"case": "moe" if dry else "qwen1.5b", "threads": 1, **where}
    drawn = {"rows": [2], "prompt": 8, "mean": 3, "dtype": "float32"}
    if not dry:
        drawn = {"rows": [64, 256], "prompt": 128, "mean": 256, "dtype": "bfloat16"}
    drawn |= case | {"vllm": args.vllm}
    size = {"prompts": 2, "steps": 1, "warm": 0, "group": 2, "micro": 4, "longest": 6, "prompt": 8}
    if not dry:
        size = {"prompts": 8, "steps": 3, "warm": 2, "group": 8, "micro": 16, "longest": 254}
        size |= {"prompt": 128}
    size |= case
    some = {"families": ["Qwen3Moe"], "rows": 4, "tokens": 3, **where}
    if not dry:
        some = {"families": ["Qwen3Moe", "DeepseekV3"], "rows": 64, "tokens": 40, **where}
    run = {"policy": "scratch:moe-tiny", "data": {"task": "modular", "count": 8}, "steps": 1}
    run |= {"size": 2, "prompts": 2, "micro": 4, "longest": 8, "template": "plain", **where}
    run |= {"precision": "fp32", "lr": 1e-6}
    if not dry:
        run |= {"policy": args.policy, "data": gsm8k(args.data), "steps": 30, "size": 8}
        run |= {"prompts": 16, "micro": 32, "longest": 512, "template": "boxed"}
        run |= {"precision": "bf16"}
    ours, theirs = str(args.folder / "run" / "ours"), str(args.folder / "run" / "trl")
    first, passed, whole = (f"{what}: this project" for what in ("sampling", "training", "GSM8K"))
    beside = {"given": {**run, "folder": theirs, "vllm": not dry}, "beside": whole}
    half, eighth = ({**size, "side": "ours", "precision": name} for name in ("fp16", "fp8"))
    parts = [
        Part(first, 210, sampling, {**drawn, "side": "ours"}),
        Part("sampling: generate", 180, sampling, {**drawn, "side": "static"}, first),
        Part("sampling: generate_batch", 120, sampling, {**drawn, "side": "continuous"}, first),
        Part("sampling: vLLM", 270, sampling, {**drawn, "side": "vllm"}, first),
        Part(passed, 140, training, {**size, "side": "ours", "precision": "bf16"}),
        Part("training: trl", 140, training, {**size, "side": "trl", "precision": "bf16"}, passed),
        Part("training in fp16", 140, training, half, passed),
        Part("training in FP8", 140, training, eighth, passed),
        Part("router replay", 90, replay, some),
        Part(whole, 500, run_of_ours, {**run, "folder": ours, "card": card}),
        Part("GSM8K: trl" if dry else "GSM8K: trl and vLLM", 460, run_of_trl, **beside),
    ]
    # a dry run is there to see each part run, on whatever machine
    return [replace(part, seconds=60 * args.minutes) for part in parts] if dry else parts


def gsm8k(file: Path | None) -> dict[str, Any]:
    """The recipe's data: a file with the columns problem and answer, or the hub's."""
    if file is not None:
        return {"path": str(file)}
    columns = {"problem": "question"}
    return {"path": "openai/gsm8k", "config": "main", "columns": columns, "on_bad_row": "skip"}


# ----------------------------------------------------------------------------------- a process


def life(part: Part, folder: Path) -> None:
    """The process of a part: what it prints goes to its log, what it found to `found.json`."""
    os.setsid()  # all that it starts can be ended with it
    die_with_parent(signal.SIGKILL)
    name = part.name.replace(": ", "_").replace(" ", "_")
    with (folder / "logs" / f"{name}.txt").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            found: Row = {"figures": part.work(**part.given)}
        except NotHereError as error:
            found = {"why": str(error)}
        except BaseException as error:
            traceback.print_exc()
            said = str(error).strip().splitlines()
            found = {"why": f"{type(error).__name__}: {said[-1] if said else ''}"[:300]}
        write_json(folder / "found.json", found)


def measured(part: Part, folder: Path, limit: float, fork: bool) -> Row:
    """The part's row, made by a process that is ended, with all it started, after `limit` s."""
    result = folder / "found.json"
    result.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork" if fork else "spawn").Process(
        target=life, args=(part, folder)
    )
    begun = time.monotonic()
    process.start()
    assert process.pid is not None
    try:
        process.join(limit)
        over = process.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):  # also what it left running
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    row: Row = {"part": part.name, "seconds": round(time.monotonic() - begun, 1)}
    if over:
        return row | {"why": f"not done in {limit:.0f} s"}
    if not result.is_file():
        code = process.exitcode or 0
        return row | {"why": f"ended by signal {-code}" if code < 0 else f"ended with code {code}"}
    return row | json.loads(result.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------ the table


def machine(dry: bool) -> dict[str, str]:
    """What figures belong to: the card, its driver, torch; `missing` where there is no card."""
    import torch

    made = {"torch": torch.__version__, "transformers": version("transformers")}
    made |= {"trl": version("trl")}
    if dry:
        return {"card": "no card (a dry run on a CPU)", "driver": "none", **made}
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
        name, driver, memory = (field.strip() for field in told.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {"card": "none", "driver": "none", "missing": "nvidia-smi finds no card", **made}
    found = {"card": name, "driver": driver, "memory": memory, **made}
    if torch.version.cuda is None:
        found["missing"] = f"torch {torch.__version__} is built without CUDA"
    return found


def table(about: Mapping[str, str], parts: Sequence[Part], rows: Mapping[str, Row]) -> str:
    """The report in Markdown: a row a part, its figures with their ratio to the part beside."""
    lines = ["# " + about["card"], "", ", ".join(f"{k} {v}" for k, v in about.items()), ""]
    lines += ["| part | figures | took |", "|---|---|---|"]
    for part in parts:
        row = rows.get(part.name, {"why": "not done", "seconds": 0.0})
        other = rows.get(part.beside, {}).get("figures", {})
        said = [
            f"{name} {value:.4g}"
            + (f" ({value / other[name]:.2f}x)" if other.get(name) and value else "")
            for name, value in row.get("figures", {}).items()
        ]
        text = "; ".join(said) or f"not measured: {row['why']}".replace("|", "/")
        lines.append(f"| {part.name} | {text} | {row['seconds']:.0f} s |")
    return "\n".join([*lines, "", "In brackets: over this project's figure.", ""])


def run_all(args: argparse.Namespace, about: Mapping[str, str], parts: Sequence[Part]) -> bool:
    """Measure what has no figures yet; False where Ctrl-C ended it. The report is written."""
    kept = args.folder / "parts.jsonl"
    same = {"machine": dict(about), "asked": [args.policy, str(args.data)]}
    here = [row for row in read_jsonl(kept) if {k: row.get(k) for k in same} == same]
    rows = {row["part"]: row for row in here if "figures" in row}
    end, whole = time.monotonic() + 60 * args.minutes, True
    try:
        for part in parts:
            if part.name in rows:
                print(f"{part.name}: there already", flush=True)
                continue
            left = end - time.monotonic()
            row = {"part": part.name, "seconds": 0.0, "why": about.get("missing", "")}
            if not row["why"] and left < 1:
                row["why"] = f"not begun: the {args.minutes:g} minutes are over"
            if not row["why"]:
                row = measured(part, args.folder, min(part.seconds, left), args.dry_run)
            append_rows(kept, [{**row, **same}])
            rows[part.name] = row
            print(f"{part.name}: {row.get('figures') or row['why']}", flush=True)
    except KeyboardInterrupt:
        whole = False
    write_text(args.folder / "report.md", table(about, parts, rows))
    shown = [rows[part.name] for part in parts if part.name in rows]
    write_json(args.folder / "report.json", {"machine": dict(about), "parts": shown})
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/gpu"))
    parser.add_argument("--dry-run", action="store_true", help="every part, tiny, on a CPU")
    parser.add_argument("--policy", default="Qwen/Qwen2.5-1.5B-Instruct", help="of the GSM8K runs")
    parser.add_argument("--data", type=Path, help="rows of GSM8K: a file instead of the hub's")
    parser.add_argument(
        "--vllm", help="an interpreter that has vLLM (default: this one, if it has)"
    )
    parser.add_argument("--minutes", type=float, default=40.0, help="for everything")
    args = parser.parse_args(argv)
    if args.vllm is None and importlib.util.find_spec("vllm") is not None:
        args.vllm = sys.executable
    args.folder = args.folder.resolve()
    (args.folder / "logs").mkdir(parents=True, exist_ok=True)
    if args.dry_run:  # parts are forked from here, with all of this loaded
        for module in (
            "trl",
            "generation",
            "trainer",
            "router_replay",
            "rl_reasoner.pipeline.train",
        ):
            importlib.import_module(module)
    about = machine(args.dry_run)
    whole = run_all(args, about, parts_of(args, about["card"]))
    print(f"\n{(args.folder / 'report.md').read_text(encoding='utf-8')}")
    return 0 if whole else 130


if __name__ == "__main__":
    sys.exit(main())
