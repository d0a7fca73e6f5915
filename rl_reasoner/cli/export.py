"""The verb `export`: a policy as a folder that transformers opens."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Flag, Json, check_writable
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.report.console import emit, err


@dataclass
class ExportVerb:
    """Write a policy to a folder that opens anywhere in transformers."""

    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """a run or policy folder (adapters are merged), a .gguf file, a hub id"""
    to: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """a new folder"""
    dtype: str = "fp32"
    """fp32 or bf16"""
    fp8: Flag = False
    """write linear layers and experts in FP8 blocks, as DeepSeek-V3 does; the rest as --dtype"""
    gguf: Flag = False
    """write one GGUF file, for llama.cpp and Ollama, and compare its logits"""
    upcycle: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None
    """turn a dense policy into a mixture of N experts that computes the same"""
    chosen: int = 2
    """with --upcycle: experts per token"""
    json: Json = False

    def run(self) -> None:
        """Open, merge, convert, save."""
        if os.path.lexists(self.to):
            raise UserError(f"{self.to} exists already; give a new folder")
        if self.dtype not in ("fp32", "bf16"):
            raise unknown("dtype", self.dtype, ["fp32", "bf16"])
        if self.gguf and self.fp8:
            raise UserError("--gguf and --fp8 are two forms: give one of them")
        check_writable(self.to)
        from rl_reasoner.policy.names import check_policy

        check_policy(self.policy)
        import torch

        from rl_reasoner.policy.fp8.weights import check_fp8, write_fp8
        from rl_reasoner.policy.lora import merge_adapter
        from rl_reasoner.policy.opening import open_policy, quiet_libraries

        quiet_libraries()
        err.print(f"opening {self.policy}", style="dim", soft_wrap=True)
        policy = open_policy(self.policy, device="cpu")
        merge_adapter(policy)
        if self.upcycle is not None:
            from rl_reasoner.moe.upcycling import upcycle

            policy.model = upcycle(policy.model, self.upcycle, self.chosen)
        if self.gguf:
            self._gguf(policy)
            return
        policy.model.to(torch.bfloat16 if self.dtype == "bf16" else torch.float32)
        if self.fp8:
            check_fp8(policy.model)
        err.print(f"writing {self.to}", style="dim", soft_wrap=True)
        policy.save(self.to)
        if self.fp8:
            write_fp8(policy.model, self.to)
        emit(self.json, {"policy": str(self.to)}, str(self.to))

    def _gguf(self, policy: Any) -> None:
        """Write the policy as a GGUF file, opened again and compared."""
        from rl_reasoner.publishing.gguf_export import export_gguf

        file, apart = export_gguf(policy, self.to, self.dtype)
        said = f"{file}\nopened again: logits within {apart:.1e} of the policy's (relative)"
        emit(self.json, {"policy": str(file), "logits_apart": apart}, said)
