"""What a figure was measured with: the manifest that goes into every evaluation's result.

It holds no clock time, so that the same evaluation writes the same file. With it another machine
can draw the same completions, and anyone can judge the saved ones again.
"""

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_reasoner.dataset.sets import card_of, find_set
from rl_reasoner.provenance import made_with
from rl_reasoner.recipe.data import FileData
from rl_reasoner.recipe.tools import ToolSettings
from rl_reasoner.scoring.registry import code_of_own
from rl_reasoner.types import Prompt, Row

if TYPE_CHECKING:
    from rl_reasoner.policy.policy import Policy


def digest_of(value: Any) -> str:
    """SHA-256 of JSON values."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def verifier_version() -> str:
    """A hash over the sources of the maths verifier: it changes when a verdict might."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in (
        *sorted((package / "answers").rglob("*.py")),
        package / "language" / "thinking.py",
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def of_policy(
    policy: "Policy",
    weights: str | None,
    template: str,
    example: Prompt,
    tools: ToolSettings | None = None,
) -> Row:
    """The facts of a policy: weights (their hash, where it was made), template, device.

    And an `example` of a prompt, as it is with `tools`.
    """
    import torch

    from rl_reasoner.rollout.sampler import prompt_ids
    from rl_reasoner.rollout.tool_turns import ToolUse

    schemas = ToolUse.told(tools, policy.tokenizer)
    chat = getattr(policy.tokenizer, "chat_template", None)
    card = torch.cuda.get_device_name() if policy.device.type == "cuda" else None
    return {
        "weights_sha256": weights,
        "dtype": str(policy.model.dtype).removeprefix("torch."),
        "parameters": policy.parameter_counts[0],
        "device": card or str(policy.device.type),
        "threads": torch.get_num_threads(),
        "template": template,
        "chat_template_sha256": digest_of(chat) if chat else None,
        "prompt_example": {
            "prompt": example,
            "token_ids": prompt_ids(policy, example, schemas=schemas),
        },
    }


def of_set(data: FileData, rows: Sequence[Row], judge: str, longest: int) -> Row:
    """The facts of a set: where it came from, its licence, a hash of the rows that were used.

    And what `data` says of its own of how it is asked; `longest`: its completions' limit.
    """
    file = find_set(data.path)
    card = card_of(data.path)
    facts: dict[str, Any] = {
        "source": str(file) if file else f"hub: {data.path} {data.config or ''} {data.split}",
        "problems": len(rows),
        "rows_sha256": digest_of(rows),
        **judged_by(judge),
    }
    facts |= {"template": data.template} if data.template else {}
    facts |= {"max_tokens": longest} if data.max_tokens else {}
    if card is not None:
        facts |= {"licence": card.licence, "defects": card.defects}
    if "code_tests" in judge.split(", "):
        from rl_reasoner import sandbox

        facts["sandbox"] = sandbox.strength().level
    return facts


def judged_by(reward: str) -> Row:
    """The fact of what judges a set, with a hash of its code where that is the user's."""
    code = code_of_own(reward)
    return {"reward": reward} | ({"reward_sha256": code} if code else {})


def manifest(policy: Mapping[str, Any], sets: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The whole manifest: what was measured, on what, with which versions, where."""
    return {
        **made_with(),
        "verifier": verifier_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "seed": seed,
        "policy": dict(policy),
        "sets": dict(sets),
    }
