"""How often the pass that calls no modules runs."""

from typing import Any

import pytest
import torch

from rl_reasoner.rollout import decode_pass


def counted_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every pass that calls no modules, from now on."""
    seen: list[int] = []
    step = decode_pass.DecodePass.step

    def counted(self: Any, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        seen.append(len(tokens))
        return step(self, tokens, cache)

    monkeypatch.setattr(decode_pass.DecodePass, "step", counted)
    return seen
