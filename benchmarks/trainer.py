"""GRPO steps of stock trl and of this project on the same model, data and seeds.

    python benchmarks/trainer.py                       # the three cases, both modes
    python benchmarks/trainer.py --cases dense --modes replay --repeats 3 --threads 1
    python benchmarks/trainer.py --scaling             # group size, completion and prompt length

Cases: `dense` (3.4M parameters, Llama), `moe` (4.1M, Qwen3-MoE, 8 experts), `smollm` (the shape
of SmolLM2-135M, random weights; GSM8K questions where ../shared/data has them); where it is named,
`qwen1.5b` (the shape of Qwen2.5-1.5B, for a card: see gpu.py). Modes: `replay`
trains on the same ready-made completions (40 to 254 tokens, 115 on average), so that only the
training pass differs; `full` also samples, both sides ending each row where the ready-made one
ends.
`--flat` is the share of groups whose rewards are all equal. Both sides: fp32 (or `--precision`),
no gradient checkpointing, same micro-batches. Each measurement is a process of its own (peak
memory), sides in turn; times are process CPU time, of the steps after the first (smollm: of all);
tokens are completion tokens.
"""

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES: dict[str, dict[str, Any]] = {
    "dense": {"prompts": 8, "steps": 2, "warm": 1},
    "moe": {"prompts": 8, "steps": 2, "warm": 1},
    "smollm": {"prompts": 2, "steps": 1, "warm": 0},
    "qwen1.5b": {"prompts": 8, "steps": 3, "warm": 2},
}
GROUP, MICRO, LONGEST, PROMPT = 8, 16, 254, 128
END = 1  # the byte tokenizer's end of text
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_train.jsonl"


# --------------------------------------------------------------------------------- one process


def model_of(case: str, device: str = "cpu") -> Any:
    """The case's model with random weights, the same each time on one kind of device."""
    import torch
    import transformers

    tiny = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8}
    tiny |= {"num_key_value_heads": 4, "vocab_size": 264, "max_position_embeddings": 4096}
    if case == "dense":
        config = transformers.LlamaConfig(**tiny, intermediate_size=704, tie_word_embeddings=True)
    elif case == "moe":
        experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
        config = transformers.Qwen3MoeConfig(
            **tiny, **experts, head_dim=32, norm_topk_prob=True, tie_word_embeddings=True
        )
    elif case == "qwen1.5b":
        from generation import config_of as published

        config = published(case)
    else:
        config = transformers.LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            rope_theta=100000,
            tie_word_embeddings=True,
        )
    torch.manual_seed(0)
    with torch.device(device):  # a card draws 1.5B numbers at once
        return transformers.AutoModelForCausalLM.from_config(config)


def prompts_of(case: str, count: int, length: int) -> list[str]:
    """Prompts of about `length` bytes, a token each."""
    import numpy as np

    if case == "smollm" and GSM8K.is_file():
        lines = GSM8K.read_text(encoding="utf-8").rstrip("\n").split("\n")
        rows = (json.loads(line) for line in lines)
        questions = [str(row.get("question") or row.get("problem")) for row in rows]
        near = [q for q in questions if 0.75 * length < len(q.encode()) < 1.25 * length]
        if len(near) >= count:
            return near[:count]
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghij 0123456789+-="))
    lengths = random.integers(length * 3 // 4, length * 5 // 4, count)
    return ["".join(random.choice(letters, size)) for size in lengths]


def config_of(args: argparse.Namespace, configured: Any) -> Any:
    """The same settings for both sides."""
    rows = args.prompts * args.group
    return configured(
        tempfile.mkdtemp(),
        max_steps=args.steps + args.warm,
        per_device_train_batch_size=min(args.micro, rows),
        gradient_accumulation_steps=max(1, rows // args.micro),
        num_generations=args.group,
        max_completion_length=args.longest,
        learning_rate=1e-6,
        temperature=1.0,
        router_aux_loss_coef=0.0 if args.case == "moe" else None,
        shuffle_dataset=False,
        seed=3,
        use_cpu=args.device == "cpu",
        bf16=args.precision in ("bf16", "fp8"),
        fp16=args.precision == "fp16",
        gradient_checkpointing=False,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def trainer_of(args: argparse.Namespace) -> Any:
    """The side's trainer on the case; completions come from a table in the mode `replay`."""
    import numpy as np
    import trl
    from datasets import Dataset

    from rl_reasoner import GRPOConfig, GRPOTrainer
    from rl_reasoner.policy.scratch import byte_tokenizer

    kind, configured = (
        (trl.GRPOTrainer, trl.GRPOConfig) if args.side == "trl" else (GRPOTrainer, GRPOConfig)
    )

    class Replay(kind):  # type: ignore[misc,valid-type]
        def _generate_single_turn(self, prompt_ids: Any, *others: Any) -> Any:
            lengths = lengths_of(self._step, len(prompt_ids), args.longest)
            random = np.random.default_rng(self._step)
            return [[*random.integers(8, 250, n - 1).tolist(), END] for n in lengths], None

    names = prompts_of(args.case, 64, args.prompt)
    share = round(args.prompts * args.flat)  # of each step's prompts, the first ones
    flat = {name for i, name in enumerate(names) if i % args.prompts < share}

    def reward(completions: list[str], prompts: list[str], **columns: Any) -> list[float]:
        return [
            0.5 if p in flat else sum(c.encode()) % 97 / 97
            for c, p in zip(completions, prompts, strict=True)
        ]

    chosen = Replay if args.mode == "replay" else kind
    chosen.__name__ = "GRPOTrainer"
    trainer = chosen(
        model_of(args.case, args.device),
        reward_funcs=reward,
        args=config_of(args, configured),
        train_dataset=Dataset.from_dict({"prompt": names}),
        processing_class=byte_tokenizer(),
    )
    if args.mode == "full":
        end_as_planned(trainer, args)
    return trainer


def lengths_of(step: int, count: int, longest: int) -> list[int]:
    """Tokens of each of `count` completions: the same for both sides."""
    import numpy as np

    random = np.random.default_rng(step)
    spread = random.lognormal(np.log(0.4), 0.45, count) * longest
    lengths: list[int] = np.clip(spread, longest * 0.16, longest).astype(int).tolist()
    return lengths


def end_as_planned(trainer: Any, args: argparse.Namespace) -> None:
    """Make each sampled row end at its length, and not before."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    from rl_reasoner.rollout import engine

    planned: dict[str, Any] = {}
    single_turn = trainer._generate_single_turn

    def plan(prompt_ids: Any, *others: Any, **named: Any) -> Any:
        lengths = lengths_of(trainer._step, len(prompt_ids), args.longest)
        planned.update(lengths=lengths, width=0)
        found = single_turn(prompt_ids, *others, **named)
        assert [*map(len, found[0])] == lengths, "completions are not as long as they should be"
        return found

    class Ends(LogitsProcessor):  # type: ignore[misc]
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            planned["width"] = planned["width"] or input_ids.shape[1]
            drawn = input_ids.shape[1] - planned["width"]
            due = torch.tensor(planned["lengths"]) == drawn + 1
            scores[:, trainer.eos_token_ids] = -torch.inf
            scores[due] = -torch.inf
            scores[due, END] = 0.0
            return scores

    trainer._generate_single_turn = plan
    if args.side == "trl":
        trainer.model.generate = functools.partial(
            trainer.model.generate, logits_processor=LogitsProcessorList([Ends()])
        )
        return
    sample = engine._Batch._sample

    def without_end(batch: Any, logits: Any, *others: Any) -> Any:
        logits[:, trainer.eos_token_ids] = -torch.inf
        return sample(batch, logits, *others)

    engine._Batch._sample = without_end  # type: ignore[method-assign,assignment]
    trainer.engine_sampling.budgets = lambda rows, count: planned["lengths"]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds a step, by part, and the process's peak memory (a card's: what torch held of it).

    Of processor time with one thread; with more, waiting threads spin: of wall time, which needs a
    quiet machine. Of wall time on a card, too, which is waited for.
    """
    import torch
    from transformers import TrainerCallback

    from rl_reasoner.policy.fp8.layers import in_fp8

    torch.set_num_threads(args.threads)
    card = args.device == "cuda"

    def clock() -> float:
        if card:
            torch.cuda.synchronize()
        return time.process_time() if args.threads == 1 and not card else time.perf_counter()

    trainer = trainer_of(args)
    steps: list[dict[str, float]] = []
    spent = {"generation": 0.0}
    generate = trainer._generate_single_turn

    def timed(*arguments: Any) -> Any:
        started = clock()
        found = generate(*arguments)
        spent["generation"] = clock() - started
        spent["tokens"] = sum(map(len, found[0]))
        return found

    trainer._generate_single_turn = timed

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *others: Any, **kwargs: Any) -> None:
            self.started = clock()

        def on_step_end(self, *others: Any, **kwargs: Any) -> None:
            whole = clock() - self.started
            steps.append({**spent, "step": whole, "training": whole - spent["generation"]})

        def on_log(self, *others: Any, logs: Any = None, **kwargs: Any) -> None:
            if "grad_norm" in logs:
                steps[-1]["grad_norm"] = logs["grad_norm"]

    before = peak_mb(args.device)
    trainer.add_callback(Clock())
    with in_fp8(args.precision, "block", args.device, trainer.model):
        trainer.train()
    return {"steps": steps[args.warm :], "peak_mb": peak_mb(args.device), "before_mb": before}


def peak_mb(device: str) -> float:
    """The most memory that this process has held so far, in MB."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---------------------------------------------------------------------------------- the tables


def run(side: str, case: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    settings = {
        "side": side,
        "case": case,
        "mode": mode,
        "prompts": args.prompts or CASES[case]["prompts"],
        "steps": args.steps or CASES[case]["steps"],
        "warm": CASES[case]["warm"],
        **{k: getattr(args, k) for k in ("group", "micro", "longest", "prompt", "flat", "threads")},
        **{k: getattr(args, k) for k in ("device", "precision")},
    }
    given = [f"--{key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, __file__, "--worker", *given],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
    )
    if done.returncode < 0:
        number = -done.returncode  # 9 without a word of its own: the system was out of memory
        raise SystemExit(f"{done.stderr}{case}, {side}: its process was ended by signal {number}")
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(case: str, mode: str, args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turn, `--repeats` times: medians, and the ratio of each repeat."""
    pairs = [{s: run(s, case, mode, args) for s in ("trl", "ours")} for _ in range(args.repeats)]

    def part(result: dict[str, Any], name: str) -> float:
        return float(statistics.median(step[name] for step in result["steps"]))

    def rate(result: dict[str, Any]) -> float:
        return float(statistics.median(step["step"] / step["tokens"] for step in result["steps"]))

    ratios = {
        "training": [part(p["trl"], "training") / part(p["ours"], "training") for p in pairs],
        "memory": [p["ours"]["peak_mb"] / p["trl"]["peak_mb"] for p in pairs],
    }
    if mode == "full":
        ratios["step, per token"] = [rate(p["trl"]) / rate(p["ours"]) for p in pairs]
        ratios["generation, per token"] = [
            statistics.median(s["generation"] / s["tokens"] for s in p["trl"]["steps"])
            / statistics.median(s["generation"] / s["tokens"] for s in p["ours"]["steps"])
            for p in pairs
        ]
    return {"case": case, "mode": mode, "flat": args.flat, "pairs": pairs, "ratios": ratios}


def show(result: dict[str, Any]) -> None:
    """One comparison as lines of a table."""
    what = f"{result['case']:7}{result['mode']:7} flat {result['flat']:.1f}"
    for name, values in result["ratios"].items():
        low, high = min(values), max(values)
        sides = ""
        if name in ("training",):
            first = [
                statistics.median(s["training"] for s in result["pairs"][0][side]["steps"])
                for side in ("trl", "ours")
            ]
            sides = f"  ({first[0]:.2f} s -> {first[1]:.2f} s)"
        if name == "memory":
            first = [result["pairs"][0][side]["peak_mb"] for side in ("trl", "ours")]
            sides = f"  ({first[0]:.0f} MB -> {first[1]:.0f} MB)"
        median = statistics.median(values)
        print(f"{what}  {name:24}{median:6.2f}x  [{low:.2f}, {high:.2f}]{sides}", flush=True)


def scaling(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The dense case along group size, completion length and prompt length, one at a time."""
    found = []
    args.prompts, args.steps = 4, 1
    for name, values in {
        "group": (4, 16, 64),
        "longest": (64, 256, 1024),
        "prompt": (64, 256, 1024),
    }.items():
        for value in values:
            before = getattr(args, name)
            setattr(args, name, value)
            result = compare("dense", "replay", args)
            setattr(args, name, before)
            found.append({"along": name, "value": value, **result})
            print(f"{name} = {value}: ", end="")
            show(result)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["dense", "moe", "smollm"])
    parser.add_argument(
        "--modes", nargs="+", choices=("replay", "full"), default=["replay", "full"]
    )
    parser.add_argument("--flat", type=float, default=0.5, help="share of groups without advantage")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16", "fp8"))
    parser.add_argument("--prompts", type=int, help="prompts per step")
    parser.add_argument("--steps", type=int, help="measured steps")
    parser.add_argument("--group", type=int, default=GROUP)
    parser.add_argument("--micro", type=int, default=MICRO)
    parser.add_argument("--longest", type=int, default=LONGEST, help="longest completion, tokens")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="mean prompt, tokens")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    for name in ("side", "case", "mode"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--warm", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args)))
        return
    if args.scaling:
        results = scaling(args)
    else:
        results = []
        for case in args.cases:
            for mode in args.modes:
                results.append(compare(case, mode, args))
                show(results[-1])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
