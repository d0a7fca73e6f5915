"""Greedy answers of a server beside the engine's: how many are equal, and how unequal ones part.

    rl-reasoner eval POLICY --sets gsm8k --limit 200 --no-cache --out own.json
    rl-reasoner eval NAME --server http://127.0.0.1:8011 --sets gsm8k --limit 200 --out served.json
    python benchmarks/server_answers.py POLICY own.json served.json

NAME is what the server calls the model, which it serves from the same weights. For each problem
with two texts, the policy is passed over the prompt and what both have in common, and the figure is
how much likelier, in nats, its own next token is than the server's: near 0 they are a tie that
another order of sums decides. bf16 alone makes more: its logits between 16 and 32 are 0.125 apart.
`--json FILE` keeps what is printed, with the row of each unequal text.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from rl_reasoner import open_policy
from rl_reasoner.answers import verify
from rl_reasoner.answers.extraction.extract import answer_of
from rl_reasoner.dataset.templates import prompt_of
from rl_reasoner.evaluation.result import EvalResult
from rl_reasoner.policy.policy import Policy
from rl_reasoner.rollout.sampler import prompt_ids


def first_apart(policy: Policy, own: str, served: str) -> tuple[int, int, int] | None:
    """Where the tokens of two texts first differ, and the two tokens there; None for equal ones.

    A text that ends where the other goes on differs by the end of sequence.
    """
    end = [policy.tokenizer.eos_token_id]
    both = [policy.tokenizer(text, add_special_tokens=False).input_ids for text in (own, served)]
    pairs = zip(both[0] + end, both[1] + end, strict=False)
    return next(((i, one, other) for i, (one, other) in enumerate(pairs) if one != other), None)


def gap_of(policy: Policy, prompt: list[int], own: str, served: str) -> dict[str, Any] | None:
    """The first token in which two texts differ: its place, and the policy's log-prob gap."""
    apart = first_apart(policy, own, served)
    if apart is None:
        return None
    at, one, other = apart
    common = policy.tokenizer(own, add_special_tokens=False).input_ids[:at]
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *common]], device=policy.device)
        logps = policy.model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
    return {"at": at, "gap": float(logps[one] - logps[other])}


def same_answer(own: str, served: str) -> bool:
    """Whether two completions give one answer, by the verifier; or are the same text."""
    answers = answer_of(own).texts
    return own == served or bool(answers and verify(served, answers[0]).value == 1.0)


def main() -> None:
    """Print a line a set, and a line for all gaps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("policy")
    parser.add_argument("own", type=Path)
    parser.add_argument("served", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    policy = open_policy(given.policy, device="cpu")
    own, served = EvalResult.load(given.own), EvalResult.load(given.served)
    template, told = own.settings["template"], {}
    for name, rows in own.rows.items():
        unequal, equal_texts, equal_answers, verdicts = [], 0, 0, 0
        pairs = list(zip(rows, served.rows[name], strict=True))
        for one, other in pairs:
            assert one["id"] == other["id"], "two orders of rows"
            texts = one["completions"][0], other["completions"][0]
            equal_texts += texts[0] == texts[1]
            equal_answers += same_answer(*texts)
            verdicts += one["scores"] == other["scores"]
            prompt = prompt_ids(policy, prompt_of(one, template, policy.tokenizer))
            if texts[0] != texts[1] and (found := gap_of(policy, prompt, *texts)):
                unequal.append({"id": one["id"], **found, "texts": texts})
        gaps = sorted(abs(row["gap"]) for row in unequal)
        told[name] = {
            "problems": len(pairs),
            "equal_texts": equal_texts,
            "equal_answers": equal_answers,
            "equal_verdicts": verdicts,
            "accuracy": [result.sets[name]["accuracy"] for result in (own, served)],
            "unequal": unequal,
        }
        print(
            f"{name}: {len(pairs)} problems, texts equal in {equal_texts}, answers in "
            f"{equal_answers}, verdicts in {verdicts}; of {len(gaps)} first unequal tokens "
            f"{sum(gap < 0.05 for gap in gaps)} are less than 0.05 nats apart"
            + (f", median {gaps[len(gaps) // 2]:.3f}, largest {gaps[-1]:.3f}" if gaps else "")
        )
    if given.json:
        given.json.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
