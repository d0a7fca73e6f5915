"""What `export --to verl` writes, loaded by verl's own package; skips where it is not installed.

The recipe has three outcomes: a shipped reward, and one of the user's that scores, abstains or
fails. verl's own code reads configuration and rows, and calls the reward 100 times.
"""

import asyncio
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rl_reasoner import Recipe
from rl_reasoner.handover.folder import Handover, hand_over
from rl_reasoner.scoring.batch import score_batch
from rl_reasoner.scoring.outcome import usable
from rl_reasoner.scoring.registry import load_reward
from rl_reasoner.types import Fault

OWN = """
from rl_reasoner import reward


@reward
def brief(completion: str, answer: str) -> float | None:
    if "hm" in completion:
        return None
    if "!" in completion:
        raise ValueError("no exclamations")
    return 1.0 if len(completion) < 24 else 0.25
"""
ROWS = 100


def recipe(policy: str, own: str, **more: Any) -> Recipe:
    stage = {
        "kind": "grpo",
        "steps": 6,
        "group": {"size": 4, "prompts": 10},
        "sampling": {"max_tokens": 48},
        "loss": {"beta": 0.01, "overlong_share": 0.25, "dynamic_sampling": 2},
        **more,
    }
    return Recipe(
        name="handed over",
        policy=policy,
        data={"task": "modular", "count": ROWS},
        rewards={"math_answer": 1.0, own: 0.5},
        stages=[stage],
    )


def completion_of(number: int, answer: str) -> str:
    """Right, wrong, long, abstained on, failed on, empty: in turn."""
    kinds = (
        f"<answer>{answer}</answer>",
        "<answer>no</answer>",
        f"{'so ' * 12}<answer>{answer}</answer>",
        f"hm <answer>{answer}</answer>",
        f"<answer>{answer}</answer>!",
        "",
    )
    return kinds[number % len(kinds)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer, which is all that is opened of it here."""
    from rl_reasoner.policy.scratch import byte_tokenizer

    folder = tmp_path_factory.mktemp("policy")
    byte_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return f"{tmp_path / 'own.py'}:brief"


def expected(made: Handover, own: str) -> tuple[list[str], list[float | None]]:
    """100 completions, and their scores by the rewards themselves; None where one has none."""
    rows = [task.row for task in made.subject.tasks]
    texts = [completion_of(n, str(row["answer"])) for n, row in enumerate(rows)]
    columns = {"answer": [row["answer"] for row in rows], "prompts": [""] * ROWS}
    right = score_batch(load_reward("math_answer"), texts, columns)
    brief = score_batch(load_reward(own), texts, columns)
    values = [
        None
        if isinstance(b, Fault) or b.value is None or isinstance(a, Fault) or a.value is None
        else usable(a) + 0.5 * usable(b)
        for a, b in zip(right, brief, strict=True)
    ]
    assert None in values and len(set(values)) >= 4
    return texts, values


@pytest.mark.slow
@pytest.mark.skipif(find_spec("verl") is None, reason="verl is not installed")
def test_verl_reads_it_and_scores_alike(tmp_path: Path, policy: str, own: str) -> None:
    import numpy as np
    import torch
    from hydra import compose, initialize_config_dir
    from transformers import AutoTokenizer
    from verl import DataProto
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config
    from verl.utils.dataset.rl_dataset import RLHFDataset

    made = hand_over(recipe(policy, own), tmp_path / "out")
    with initialize_config_dir(str(made.folder), version_base=None):
        paths = "hydra.searchpath=[pkg://verl.trainer.config]"
        config = compose("config", [paths, "trainer.n_gpus_per_node=1"])
    assert need_reference_policy(config) and not need_critic(config)
    validate_config(config, use_reference_policy=True, use_critic=False)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert (actor.ppo_mini_batch_size, actor.rollout_n, actor.kl_loss_coef) == (10, 4, 0.01)
    for part in (config.actor_rollout_ref.rollout, config.algorithm):
        omega_conf_to_dataclass(part)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.chat_template = config.actor_rollout_ref.model.custom_chat_template
    rows = RLHFDataset(config.data.train_files, tokenizer, config.data)
    assert len(rows) == ROWS
    shown = tokenizer.apply_chat_template(
        rows[3]["raw_prompt"], add_generation_prompt=True, tokenize=False
    )
    assert shown == made.subject.tasks[3].prompt
    manager = load_reward_manager(config, tokenizer)
    assert type(manager).__name__ == "DAPORewardManager"
    manager.overlong_buffer_cfg = None  # it is verl's own, and counts tokens
    texts, values = expected(made, own)

    async def all_rows() -> list[dict[str, Any]]:
        manager.loop = asyncio.get_running_loop()
        told = []
        for number, text in enumerate(texts):
            row = rows[number]
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"] or [0]])
            others = {name: row[name] for name in ("data_source", "reward_model", "extra_info")}
            batch = DataProto.from_dict(
                {"responses": ids, "attention_mask": torch.full_like(ids, bool(text))},
                {name: np.array([value], dtype=object) for name, value in others.items()},
            )
            told.append(await manager.run_single(batch))
        return told

    told = asyncio.run(all_rows())
    assert [one["reward_score"] for one in told] == [value or 0.0 for value in values]
    extra = [one["reward_extra_info"] for one in told]
    assert [one["unjudged"] == 1.0 for one in extra] == [value is None for value in values]
    assert sum(one["fault"] for one in extra) == sum("!" in text for text in texts)
