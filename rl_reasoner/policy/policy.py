"""`Policy`: a causal language model of transformers with its tokenizer.

A policy that is saved opens with `AutoModelForCausalLM.from_pretrained` anywhere.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rl_reasoner.distributed.shards import gathered_state_dict
from rl_reasoner.moe.experts import parameter_counts, without_router_logits


@dataclass
class Policy:
    """A causal language model with its tokenizer; `source` says where it came from."""

    model: Any
    tokenizer: Any
    source: str

    @property
    def parameter_counts(self) -> tuple[int, int]:
        """(total, active for one token) number of parameters."""
        return parameter_counts(self.model)

    @property
    def device(self) -> torch.device:
        """The device that the model is on."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    def save(self, folder: Path) -> None:
        """Write model and tokenizer to `folder`, in safetensors.

        A sharded model is saved inside `sharding.gathered_params`.
        """
        without_router_logits(self.model)
        for stale in folder.glob(".tmp??????"):  # of a save that was killed: safetensors' file
            stale.unlink(missing_ok=True)
        try:
            self.model.save_pretrained(
                folder, state_dict=gathered_state_dict(self.model), **_adapter_in_use(self.model)
            )
        except SafetensorError as error:  # it tells a full disk in words only
            if "os error 28" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        self.tokenizer.save_pretrained(folder)
        mode = next(folder.glob("*config.json")).stat().st_mode
        for file in folder.glob("*.safetensors"):  # safetensors writes them for their owner alone
            file.chmod(mode)


def _adapter_in_use(model: Any) -> dict[str, Any]:
    """Which of an adapted model's adapters are saved: not that of a reference.

    Its targets are put in order: peft writes sets, which come in another order in each process.
    """
    active = getattr(model, "active_adapter", None) if hasattr(model, "peft_config") else None
    if not isinstance(active, str):
        return {}
    config = model.peft_config[active]
    for name in ("target_modules", "target_parameters"):
        if isinstance(targets := getattr(config, name, None), set | list):
            setattr(config, name, sorted(targets))
    return {"selected_adapters": [active]}
