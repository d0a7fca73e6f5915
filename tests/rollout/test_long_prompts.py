"""Prompts beyond a model's positions: named before the run, or left out, as the user says."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM

from rl_reasoner import open_policy, train
from rl_reasoner.errors import UserError
from rl_reasoner.pipeline.placement import choose_placement
from rl_reasoner.pipeline.preflight import inspect
from rl_reasoner.pipeline.prepare import prepare
from rl_reasoner.rollout.long_prompts import places_of
from rl_reasoner.rollout.sampler import sample
from support.processes import PROMPTS, build
from support.tiny import grpo, recipe

PLACES = 32
LONG = "a prompt that is longer than all the positions of this model"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A saved tiny GPT-2 with few positions."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.model = model_of("GPT2", len(policy.tokenizer))
    folder = tmp_path_factory.mktemp("gpt2")
    policy.save(folder)
    return str(folder)


def model_of(family: str, vocabulary: int = 64) -> Any:
    small: dict[str, Any] = {
        "GPT2": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": PLACES},
        "OPT": {"ffn_dim": 32, "word_embed_proj_dim": 32, "max_position_embeddings": PLACES},
        "GPTJ": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": PLACES, "rotary_dim": 4},
    }.get(family, {"intermediate_size": 32, "max_position_embeddings": PLACES})
    if not family.startswith("GPT"):
        small |= {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    small |= dropout if family.startswith("GPT") else {}
    config = getattr(transformers, f"{family}Config")(vocab_size=vocabulary, **small)
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "places"), [("GPT2", PLACES), ("OPT", PLACES), ("GPTJ", PLACES), ("Llama", None)]
)
def test_which_models_have_a_table_of_positions(family: str, places: int | None) -> None:
    model = model_of(family)
    assert places_of(model) == places
    if places is not None:
        with pytest.raises(IndexError):
            model(torch.arange(PLACES + 1)[None])


def trainer_of(policy: str, folder: Path, **changes: Any) -> Any:
    trainer = build(policy, folder, **{"max_steps": 2, "save_strategy": "no", **changes})
    trainer.train_dataset = Dataset.from_dict({"prompt": [*PROMPTS[:3], LONG, *PROMPTS[3:]]})
    return trainer


def test_a_row_that_does_not_fit_is_named_before_training(gpt2: str, tmp_path: Path) -> None:
    trainer = trainer_of(gpt2, tmp_path)
    with pytest.raises(UserError) as caught:
        trainer.train()
    [said] = caught.value.messages
    assert "train_dataset: the prompt of row 4 ('a prompt that is longer" in said
    assert "has 60 tokens" in said and "32 positions" in said and "long_prompts='skip'" in said
    assert trainer.state.global_step == 0


def test_rows_that_do_not_fit_are_left_out_where_the_user_says_so(
    gpt2: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(gpt2, tmp_path, long_prompts="skip", max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5 and len(trainer.train_dataset) == len(PROMPTS)
    assert "train_dataset: 1 rows are skipped" in caplog.text


@pytest.mark.parametrize("choice", ["stop", "skip"])
def test_rows_of_a_stream_are_looked_at_when_they_come(
    choice: str, gpt2: str, tmp_path: Path
) -> None:
    trainer = trainer_of(gpt2, tmp_path, long_prompts=choice, max_steps=3, stream=True)
    rows = [*PROMPTS, *PROMPTS[:2], LONG, *PROMPTS]
    trainer.train_dataset = Dataset.from_dict({"prompt": rows}).to_iterable_dataset()
    if choice == "skip":
        trainer.train()
        assert trainer.state.global_step == 3
        return
    with pytest.raises(UserError, match="row 11"):
        trainer.train()


def test_a_model_without_a_table_trains_beyond_its_config(tmp_path: Path) -> None:
    """As in trl: its positions are computed."""
    policy = open_policy("scratch:dense-tiny", device="cpu")
    policy.model.config.max_position_embeddings = PLACES
    policy.save(tmp_path / "policy")
    trainer = trainer_of(str(tmp_path / "policy"), tmp_path, max_steps=1)
    trainer.train()
    assert trainer.state.global_step == 1


def test_an_unknown_choice_is_told_with_the_nearest(gpt2: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'skip'"):
        trainer_of(gpt2, tmp_path, long_prompts="skipp")


def test_prompts_that_are_sampled_for_are_named_too(gpt2: str) -> None:
    policy = open_policy(gpt2, device="cpu")
    with pytest.raises(UserError, match=r"prompt 2 \('a prompt that .* has 60 tokens"):
        sample(policy, ["1+1=", LONG], max_tokens=4)


def lines(folder: Path) -> Path:
    """301 rows, the last of which is too long."""
    path = folder / "rows.jsonl"
    text = "".join(f'{{"problem": "{n}+1=", "answer": "{n}"}}\n' for n in range(300))
    path.write_text(text + f'{{"problem": "{LONG}", "answer": "7"}}\n')
    return path


def test_a_recipe_names_the_row_or_leaves_it_out(gpt2: str, tmp_path: Path) -> None:
    for choice, status in (("stop", "failed"), ("skip", "warned")):
        stage = grpo(data=str(lines(tmp_path)), long_prompts=choice, steps=1)
        wanted = recipe(tmp_path, stage, policy=gpt2, evals={"sets": ()})
        policy = open_policy(gpt2, device="cpu")
        placement = choose_placement(wanted)
        prepared = prepare(wanted, placement)
        found = {n.check: n for n in inspect(wanted, placement, prepared, policy, tmp_path)}
        assert found["prompts"].status == status
        assert "row 301 ('a prompt that" in found["prompts"].message
    run = train(wanted, quiet=True)
    assert (run.folder / "policy").is_dir()
