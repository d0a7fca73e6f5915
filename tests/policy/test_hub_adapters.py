"""A LoRA adapter that is named by its id on the hub."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = '''
import shutil
from pathlib import Path

import torch

from rl_reasoner import open_policy
from rl_reasoner.policy.lora import add_lora, merge_adapter
from rl_reasoner.recipe.adapter import Lora


def place(name: str, folder: Path) -> None:
    """Put what lies in `folder` into the hub's cache."""
    repository = Path("hf/hub") / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots/abc")


base = open_policy("scratch:dense-tiny", device="cpu")
base.save(Path("base"))
place("me/base", Path("base"))
policy = open_policy("me/base", device="cpu")
add_lora(policy, Lora(rank=2), 0)
policy.model.peft_config["default"].base_model_name_or_path = "me/base"
for name, weights in policy.model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(weights)
policy.model.save_pretrained("lora")
policy.tokenizer.save_pretrained("lora")
place("me/lora", Path("lora"))
ids = torch.arange(5, 15)[None]
logits = []
for name in ("lora", "me/lora"):
    opened = open_policy(name, device="cpu")
    assert merge_adapter(opened)
    logits.append(opened.model(input_ids=ids).logits)
assert torch.equal(*logits)
'''


def test_it_opens_as_its_folder_does(tmp_path: Path) -> None:
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
