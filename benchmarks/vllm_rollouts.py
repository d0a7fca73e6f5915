"""A vLLM server that gets its weights by files: are they the policy's, after every sync?

    VLLM_SERVER_DEV_MODE=1 PYTHONPATH=rl_reasoner/rollout/vllm_server/worker \
        python -m vllm.entrypoints.openai.api_server --model FOLDER --dtype float32 --port 8072 \
        --worker-extension-cls rl_reasoner_weights.PolicyWeights \
        --logprobs-mode processed_logprobs --max-model-len 512
    python benchmarks/vllm_rollouts.py FOLDER http://127.0.0.1:8072 --syncs 5 --prompts 50

FOLDER is a policy, of which `--make` writes a tiny one that vLLM can serve on a CPU (heads of 32).
After each change of all weights the server's greedy tokens are held against the engine's; a line
a sync says how many completions are equal, how far log-probabilities are apart, the bytes written
for the sync, and the seconds. Prompts share a beginning that is longer than a block of vLLM's
prefix cache on a CPU (128 tokens), so keys and values of earlier weights would be met; how many
tokens were read from it is said, too.

`--lora RANK` trains an adapter in place of all weights. To get it by itself the server is started
with `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1` and `--enable-lora --max-lora-rank 16`; a higher RANK is
merged at the same server, and shows what that costs.
"""

import argparse
import logging
import re
import time
from pathlib import Path

import httpx
import torch
import transformers

from rl_reasoner import open_policy
from rl_reasoner.kernels.causal_lm import base_of
from rl_reasoner.policy.lora import add_lora
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import SCRATCH, byte_tokenizer
from rl_reasoner.recipe.adapter import Lora
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.vllm_server.adapters import is_adapted, stir
from rl_reasoner.rollout.vllm_server.agreement import ASKED_PROMPTS, check_server, server_agreement
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts

_TOKENS = 24
_SHARED = "One number and its square are added. " * 4  # bytes are tokens of the tiny policies


def make(folder: Path, name: str) -> None:
    """Write a new policy like `scratch:NAME`, with heads as wide as vLLM's CPU kernels take."""
    kind, settings = SCRATCH[name]
    tokenizer = byte_tokenizer()
    own = {**settings, "head_dim": 32}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    pad = tokenizer.pad_token_id
    config = getattr(transformers, kind)(**own, vocab_size=len(tokenizer), pad_token_id=pad, **ends)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    Policy(model, tokenizer, name).save(folder)


def changed(model: torch.nn.Module, sync: int) -> None:
    """Move every weight that is trained, as a long training would."""
    if is_adapted(model):
        stir(model, sync)
        return
    draws = torch.Generator().manual_seed(sync)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.add_(0.2 * parameter.std().nan_to_num(0.0) * noise)


def in_files(folder: Path) -> dict[str, int]:
    """The bytes of each version that is written in a folder."""
    return {
        part.name: sum(file.stat().st_size for file in part.rglob("*") if file.is_file())
        for part in folder.glob("*-*")
    }


def from_cache(url: str) -> float:
    """How many tokens of prompts the server has read from its prefix cache so far."""
    said = httpx.get(f"{url}/metrics", timeout=60).text
    return sum(map(float, re.findall(r"^vllm:prefix_cache_hits_total\S* (\S+)", said, re.M)))


def main() -> None:
    """Print a line a sync."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--make", choices=[*SCRATCH])
    parser.add_argument("--lora", type=int, metavar="RANK")
    parser.add_argument("--syncs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=50)
    asked = parser.parse_args()
    if asked.make:
        make(asked.folder, asked.make)
        return
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rl_reasoner").setLevel(logging.INFO)
    policy = open_policy(str(asked.folder), device="cpu")
    if asked.lora:
        add_lora(policy, Lora(rank=asked.lora, alpha=2 * asked.lora), 0)
    rollouts = VllmRollouts(asked.url, asked.folder.parent / "vllm_weights")
    prompts = [
        policy.tokenizer(f"{_SHARED}{n} + {n * n} = ").input_ids for n in range(asked.prompts)
    ]
    greedy = SamplingParams(_TOKENS, (policy.tokenizer.eos_token_id,), temperature=0.0)
    with rollouts.own():
        found = check_server(rollouts, policy.model, prompts[:ASKED_PROMPTS], greedy.ends, _TOKENS)
        print(f"before: {found}; {in_files(rollouts.folder)}", flush=True)
        for sync in range(1, asked.syncs + 1):
            changed(policy.model, sync)
            compared(policy, rollouts, prompts, greedy, sync)


def compared(
    policy: Policy,
    rollouts: VllmRollouts,
    prompts: list[list[int]],
    greedy: SamplingParams,
    sync: int,
) -> None:
    """Sync, have the server sample, and print how it does beside the engine."""
    before, cached = in_files(rollouts.folder), from_cache(rollouts.url)
    keys = [(row,) for row in range(len(prompts))]
    started = time.perf_counter()
    rollouts.load(policy.model, None)
    loaded = time.perf_counter()
    served = rollouts.generate(prompts, keys, greedy)
    done = time.perf_counter()
    own = generate(base_of(policy.model), prompts, keys, greedy)
    same = sum(a.ids == b.ids for a, b in zip(served, own, strict=True))
    written = sum(n for name, n in in_files(rollouts.folder).items() if name not in before)
    print(
        f"sync {sync}: {same} of {len(prompts)} completions are the engine's; "
        f"{server_agreement(policy.model, prompts, served)}; {written:,} bytes written, "
        f"load {loaded - started:.2f} s, sampling {done - loaded:.2f} s, "
        f"{from_cache(rollouts.url) - cached:.0f} tokens of prompts from the cache",
        flush=True,
    )


if __name__ == "__main__":
    main()
