"""A vLLM server that gets its weights by files: are they the policy's, after every sync?

    VLLM_SERVER_DEV_MODE=1 PYTHONPATH=rl_reasoner/rollout/vllm_server/worker \
        python -m vllm.entrypoints.openai.api_server --model FOLDER --dtype float32 --port 8072 \
        --worker-extension-cls rl_reasoner_weights.PolicyWeights \
        --logprobs-mode processed_logprobs --max-model-len 512
    python benchmarks/vllm_rollouts.py FOLDER http://127.0.0.1:8072 --syncs 5 --prompts 50

FOLDER is a policy, of which `--make` writes a tiny one that vLLM can serve on a CPU (heads of 32).
After each change of all weights the server's greedy tokens are held against the engine's; a line
a sync says how many completions are equal, how far log-probabilities are apart, and the seconds.
"""

import argparse
import time
from pathlib import Path

import torch
import transformers

from rl_reasoner import open_policy
from rl_reasoner.policy.policy import Policy
from rl_reasoner.policy.scratch import SCRATCH, byte_tokenizer
from rl_reasoner.rollout.engine import generate
from rl_reasoner.rollout.sampling_params import SamplingParams
from rl_reasoner.rollout.vllm_server.agreement import ASKED_PROMPTS, check_server, server_agreement
from rl_reasoner.rollout.vllm_server.rollouts import VllmRollouts
from rl_reasoner.rollout.vllm_server.weights import own_folder

_TOKENS = 24


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
    """Move every weight, as a long training would."""
    draws = torch.Generator().manual_seed(sync)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.add_(0.2 * parameter.std().nan_to_num(0.0) * noise)


def main() -> None:
    """Print a line a sync."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--make", choices=[*SCRATCH])
    parser.add_argument("--syncs", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=50)
    asked = parser.parse_args()
    if asked.make:
        make(asked.folder, asked.make)
        return
    policy = open_policy(str(asked.folder), device="cpu")
    rollouts = VllmRollouts(asked.url, asked.folder.parent / "vllm_weights")
    prompts = [policy.tokenizer(f"{n} + {n * n} = ").input_ids for n in range(asked.prompts)]
    keys = [(row,) for row in range(len(prompts))]
    greedy = SamplingParams(_TOKENS, (policy.tokenizer.eos_token_id,), temperature=0.0)
    with own_folder(rollouts.folder):
        found = check_server(rollouts, policy.model, prompts[:ASKED_PROMPTS], greedy.ends, _TOKENS)
        print(f"before: {found}", flush=True)
        for sync in range(1, asked.syncs + 1):
            changed(policy.model, sync)
            started = time.perf_counter()
            rollouts.load(policy.model, None)
            loaded = time.perf_counter()
            served = rollouts.generate(prompts, keys, greedy)
            done = time.perf_counter()
            own = generate(policy.model, prompts, keys, greedy)
            same = sum(a.ids == b.ids for a, b in zip(served, own, strict=True))
            print(
                f"sync {sync}: {same} of {len(prompts)} completions are the engine's; "
                f"{server_agreement(policy.model, prompts, served)}; "
                f"load {loaded - started:.2f} s, sampling {done - loaded:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
