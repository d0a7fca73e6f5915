"""Several turns in samples for evaluation and chat: kept by who answers, cut where none fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_turns import Script, Threads

from rl_reasoner import open_policy
from rl_reasoner.errors import UserError
from rl_reasoner.rollout.cache import SampleCache
from rl_reasoner.rollout.sampler import sample


@dataclass
class Takers:
    """Answers for `sample`: by one script, as `name`."""

    script: Script
    name: str
    calls: int = 0

    def taker(self, samples: Sequence[tuple[int, int]]) -> Threads:
        self.calls += 1
        self.samples = [*samples]
        return Threads(self.script)


def test_samples_have_turns_and_are_kept_with_them(tmp_path: Path) -> None:
    policy = open_policy("scratch:dense-tiny", seed=2, device="cpu")
    every = tuple(range(0, policy.model.config.vocab_size, 2))
    how: dict[str, Any] = {"samples": 3, "temperature": 1.0, "max_tokens": 12}
    how["cache"] = SampleCache(tmp_path, "one")
    plain = sample(policy, ["1+1=", "so"], **how)
    takers = Takers(Script(lengths=(4,), stops=every), "fours")
    found = sample(policy, ["1+1=", "so"], turns=takers, **how)
    assert sorted(takers.samples) == [(i, n) for i in (0, 1) for n in range(3)]
    assert found != plain and sample(policy, ["1+1=", "so"], turns=takers, **how) == found
    assert takers.calls == 1, "all of them were kept"
    for lengths, cut in (((12,), True), ((-1,), False)):
        other = Takers(Script(lengths, every), f"{lengths}")
        short = [
            one for group in sample(policy, ["1+1=", "so"], turns=other, **how) for one in group
        ]
        assert any((one.tokens or 0) < 12 for one in short)
        for one in short:
            assert one.truncated == cut or one.tokens == 12


def test_turns_of_a_model_that_the_engine_does_not_run_are_an_error() -> None:
    policy = open_policy("scratch:dense-tiny", seed=2, device="cpu")
    forward = policy.model.model.layers[0].self_attn.forward
    policy.model.model.layers[0].self_attn.forward = lambda *a, **k: tuple(
        None if t is None else t + t.mean(1, keepdim=True) for t in forward(*a, **k)
    )
    with pytest.raises(UserError, match="cannot have several turns: the sampling engine"):
        sample(policy, ["so"], turns=Takers(Script(), "none"))
