"""Sampling: this project's engine, transformers' `generate` and vLLM on the same rows.

    python benchmarks/generation.py                                     # without vLLM
    python benchmarks/generation.py --vllm ~/vllm/bin/python --threads 2
    python benchmarks/generation.py --cases qwen --dtypes bfloat16 --rows 64 \\
        --folder qwen=/models/Qwen2.5-Coder-0.5B-Instruct

Cases: `moe` (4.1M parameters, Qwen3-MoE, 8 experts), `smollm` (SmolLM2-135M), `qwen`
(Qwen2.5-Coder-0.5B) and, where it is named, `qwen1.5b` (Qwen2.5-1.5B); random weights of that shape
where no `--folder` is named. `--device cuda` is for gpu.py, which runs it on a card. Sides: `ours`,
`int8` (ours, from copies in int8), `static` (`generate`, one padded batch), `continuous`
(`generate_batch`) and `vllm`, which has an interpreter of its own. All get the same prompts (groups
of 8 rows share one), end each row at the same ready-made length, sample at temperature 1 and, but
for transformers, give each token's log-probability. vLLM runs in the one process, with its own
defaults and prefix cache.

Each measurement is a process of its own, sides in turn: after a warm-up of some rows it times all
rows, and again one token of each. The first is the rate with prefill, the difference of the two
the rate of decoding alone. `--differences` holds the log-probabilities against a full pass in fp32.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("ours", "int8", "static", "continuous", "vllm")
GROUP, SCORED = 8, 16
SHAPES: dict[str, dict[str, Any]] = {
    "moe": {
        "model_type": "qwen3_moe",
        "vocab_size": 264,
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
    },
    "smollm": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000,
    },
    "qwen": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "rope_theta": 1000000,
    },
    "qwen1.5b": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rope_theta": 1000000,
    },
}
Draw = Callable[[list[list[int]], list[int]], list[tuple[list[int], list[float]]]]
"""Prompts and lengths to completions and log-probs, which may be empty."""


def config_of(case: str) -> Any:
    """The case's configuration."""
    import transformers

    shape = {"max_position_embeddings": 4096, "tie_word_embeddings": True, **SHAPES[case]}
    return transformers.AutoConfig.for_model(shape.pop("model_type"), **shape)


def random_folder(case: str) -> Path:
    """The case's shape with random weights, as a folder; made once."""
    import torch
    import transformers

    folder = Path(tempfile.gettempdir()) / f"rl-reasoner-generation-{case}"
    if not (folder / "model.safetensors").is_file():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config_of(case))
        (model.bfloat16() if case == "qwen1.5b" else model).save_pretrained(folder)
    return folder


def rows_of(count: int, prompt: int, mean: int) -> tuple[list[list[int]], list[int]]:
    """`count` prompts (in groups) of about `prompt` tokens, and the rows' lengths."""
    import random

    source = random.Random(0)
    prompts = []
    for first in range(0, count, GROUP):
        size = source.randint(prompt * 3 // 4, prompt * 5 // 4)
        ids = [source.randrange(8, 250) for _ in range(size)]
        prompts += [ids] * min(GROUP, count - first)
    spread = [source.lognormvariate(0, 0.45) for _ in range(count)]
    scale = mean * count / sum(spread)
    return prompts, [max(2, min(round(s * scale), 3 * mean)) for s in spread]


# ---------------------------------------------------------------------------------- the sides


def opened(args: argparse.Namespace) -> Any:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=dtype)
    return model.to(args.device).eval()


def int8(args: argparse.Namespace) -> Draw:
    import torch

    from rl_reasoner.kernels import integer_weights

    if args.dtype != "float32" or not integer_weights.work():
        raise SystemExit("int8 is for policies in float32, on a processor with exact products")
    return ours(args, torch.int8)


def ours(args: argparse.Namespace, weights: Any = None) -> Draw:
    from rl_reasoner.rollout.agreement import engine_runs
    from rl_reasoner.rollout.engine import generate
    from rl_reasoner.rollout.sampling_params import SamplingParams

    model = opened(args)
    if not engine_runs(model):  # which also proves the pass for one token, as a trainer does
        raise SystemExit("the engine does not run this model")

    def draw(prompts: list[list[int]], lengths: list[int]) -> list[tuple[list[int], list[float]]]:
        sampling = SamplingParams(max_tokens=max(lengths), ends=(-1,), weights=weights)
        keys = [(row,) for row in range(len(prompts))]
        done = generate(model, prompts, keys, sampling, budgets=lengths)
        return [(row.ids, row.logps) for row in done]

    return draw


def static(args: argparse.Namespace) -> Draw:
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    model = opened(args)

    class Ends(StoppingCriteria):  # type: ignore[misc]
        def __init__(self, width: int, lengths: list[int]) -> None:
            self.last = torch.tensor(lengths, device=args.device) + width

        def __call__(self, input_ids: Any, scores: Any, **others: Any) -> Any:
            return self.last <= input_ids.shape[1]

    def draw(prompts: list[list[int]], lengths: list[int]) -> list[tuple[list[int], list[float]]]:
        width = max(map(len, prompts))
        padded = [[0] * (width - len(p)) + p for p in prompts]
        shown = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        model.generation_config.eos_token_id = None
        settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
        ends = StoppingCriteriaList([Ends(width, lengths)])
        out = model.generate(
            input_ids=torch.tensor(padded, device=args.device),
            attention_mask=torch.tensor(shown, device=args.device),
            max_new_tokens=max(lengths),
            pad_token_id=0,
            stopping_criteria=ends,
            **settings,
        )
        return [(row[width : width + n].tolist(), []) for row, n in zip(out, lengths, strict=True)]

    return draw


def continuous(args: argparse.Namespace) -> Draw:
    from transformers import GenerationConfig

    model = opened(args)
    settings = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, temperature=1.0, eos_token_id=-1, pad_token_id=0
    )

    def draw(prompts: list[list[int]], lengths: list[int]) -> list[tuple[list[int], list[float]]]:
        manager = model.init_continuous_batching(generation_config=settings)
        manager.start()
        try:
            names = [
                manager.add_request(ids, max_new_tokens=n)
                for ids, n in zip(prompts, lengths, strict=True)
            ]
            done: dict[str, list[int]] = {}
            while len(done) < len(names):
                found = manager.get_result(timeout=1)
                if found is not None and found.is_finished():
                    done[found.request_id] = list(found.generated_tokens)
                elif not manager.is_running():
                    raise SystemExit("generate_batch stopped before the rows were done")
        finally:
            manager.stop(block=True)
        return [(done[name], []) for name in names]

    return draw


def vllm(args: argparse.Namespace) -> Draw:
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    llm = LLM(
        model=args.folder,
        skip_tokenizer_init=True,
        dtype=args.dtype,
        max_model_len=1024,
        max_num_seqs=256,
        enforce_eager=args.eager,
        seed=0,
    )

    def draw(prompts: list[list[int]], lengths: list[int]) -> list[tuple[list[int], list[float]]]:
        how = [
            SamplingParams(
                max_tokens=n, temperature=1.0, logprobs=0, ignore_eos=True, detokenize=False
            )
            for n in lengths
        ]
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        done = [out.outputs[0] for out in llm.generate(inputs, how, use_tqdm=False)]
        return [
            (
                list(row.token_ids),
                [at[token].logprob for token, at in zip(row.token_ids, row.logprobs, strict=True)],
            )
            for row in done
        ]

    return draw


# --------------------------------------------------------------------------------- one process


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second for each number of rows; of some rows, what was drawn."""
    sides = {"ours": ours, "int8": int8, "static": static, "continuous": continuous, "vllm": vllm}
    draw: Draw = sides[args.side](args)
    warm, _ = rows_of(GROUP, 24, 8)
    draw(warm, [3] * len(warm))
    found: dict[str, Any] = {"rates": {}}
    for count in args.rows:
        prompts, lengths = rows_of(count, args.prompt, args.mean)
        # other first tokens than in the timed call: nothing of its prompts is in a cache
        others = [[7, *ids[1:]] for ids in prompts]
        started = time.perf_counter()
        draw(others, [1] * count)
        first = time.perf_counter() - started
        started = time.perf_counter()
        done = draw(prompts, lengths)
        whole = time.perf_counter() - started
        tokens = sum(len(ids) for ids, _ in done)
        assert tokens == sum(lengths), (tokens, sum(lengths))
        found["rates"][count] = {
            "tokens": tokens,
            "seconds": whole,
            "whole": tokens / whole,
            "decode": (tokens - count) / (whole - first),
        }
        if args.differences and done[0][1]:
            found["drawn"] = [
                (prompt, *row) for prompt, row in zip(prompts[:SCORED], done, strict=False)
            ]
    return found


def differences(folder: str, drawn: list[Any]) -> dict[str, float]:
    """|log-prob given - log-prob in a full pass in fp32| over the tokens: mean, p99, max."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    apart = []
    for prompt, ids, logps in drawn:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids[:-1]]), use_cache=False).logits[0]
        own = logits[len(prompt) - 1 :].log_softmax(-1)
        own = own.gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        apart.append((own - torch.tensor(logps)).abs())
    values = torch.cat(apart)
    return {
        "tokens": len(values),
        "mean": float(values.mean()),
        "p99": float(values.quantile(0.99)),
        "max": float(values.max()),
    }


# ---------------------------------------------------------------------------------- the tables


def run(side: str, folder: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    python = args.vllm if side == "vllm" else sys.executable
    given = [f"--{name}={getattr(args, name)}" for name in ("threads", "prompt", "mean", "device")]
    given += [f"--side={side}", f"--folder={folder}", f"--dtype={dtype}", "--rows"]
    given += [*map(str, args.rows)]
    given += ["--differences"] * args.differences + ["--eager"] * args.eager
    settings = {"OMP_NUM_THREADS": str(args.threads), "HF_HUB_OFFLINE": "1"}
    if side == "vllm":
        settings |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        settings |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [*shlex.split(args.under), python, __file__, "--worker", *given],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(case: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """All sides in turn, `--repeats` times."""
    folder = args.folder.get(case) or str(random_folder(case))
    repeats = [{s: run(s, folder, dtype, args) for s in args.sides} for _ in range(args.repeats)]
    apart = {
        side: differences(folder, repeats[0][side].pop("drawn"))
        for side in args.sides
        if "drawn" in repeats[0][side]
    }
    return {"case": case, "dtype": dtype, "repeats": repeats, "differences": apart}


def show(result: dict[str, Any]) -> None:
    """One comparison as lines of a table."""

    def spread(values: list[float], form: str) -> str:
        low, high = min(values), max(values)
        return f"{statistics.median(values):{form}} [{low:{form}}, {high:{form}}]"

    repeats = result["repeats"]
    for count in repeats[0]["ours" if "ours" in repeats[0] else next(iter(repeats[0]))]["rates"]:
        for side in repeats[0]:
            rates = [r[side]["rates"][count] for r in repeats]
            line = f"{result['case']:7}{result['dtype']:9}{count:>4} rows  {side:11}"
            for what in ("whole", "decode"):
                line += f" {what} {spread([rate[what] for rate in rates], '.0f'):>22}"
            if side != "ours" and "ours" in repeats[0]:
                ratios = [
                    r["ours"]["rates"][count]["whole"] / r[side]["rates"][count]["whole"]
                    for r in repeats
                ]
                line += f"  ours: {spread(ratios, '.2f')}x"
            print(line, flush=True)
    for side, gap in result["differences"].items():
        figures = ", ".join(f"{name} {gap[name]:.2g}" for name in ("mean", "p99", "max"))
        print(f"{result['case']:7}{result['dtype']:9} {side:11} log-probs from fp32: {figures}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=SHAPES, default=["moe", "smollm", "qwen"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="default: all that there are")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--prompt", type=int, default=128, help="mean prompt, tokens")
    parser.add_argument("--mean", type=int, default=64, help="mean completion, tokens")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--vllm", help="the interpreter of an environment with vLLM")
    parser.add_argument("--eager", action="store_true", help="vLLM without torch.compile")
    parser.add_argument("--folder", action="append", default=[], help="CASE=FOLDER with weights")
    parser.add_argument("--differences", action="store_true", help="measure log-probs too")
    parser.add_argument("--under", default="", help="run each measurement by this command")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        args.folder = args.folder[0]
        print("\n" + json.dumps(measure(args)))
        return
    args.folder = dict(named.split("=", 1) for named in args.folder)
    args.sides = args.sides or ["ours", "static", "continuous", *(["vllm"] if args.vllm else [])]
    results = []
    for case in args.cases:
        for dtype in args.dtypes:
            results.append(compare(case, dtype, args))
            show(results[-1])
    if args.json:
        args.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
