"""The verb `export`: a policy for transformers, llama.cpp, Ollama; a recipe for verl."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Count, Flag, Json, RunsItsCode, StageName, check_writable
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import whole_folder
from rl_reasoner.report.console import emit, err


@dataclass
class ExportVerb:
    """Write a policy to a folder that opens anywhere in transformers.

    With --to verl, write a RECIPE as verl reads it: data, configuration and a reward file through
    which its rewards run there.
    """

    policy: Positional[Annotated[str, arg(metavar="POLICY")]]
    """a run or policy folder (adapters are merged), a .gguf file, a hub id; with --to a recipe"""
    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]]
    """a new folder"""
    to: Annotated[str | None, arg(metavar="verl", help_behavior_hint="")] = None
    """hand a recipe over to this engine"""
    stage: StageName = None
    """with --to: the grpo stage (default: the last)"""
    dtype: Annotated[str, arg(metavar="fp32|bf16")] = "fp32"
    """type of the weights"""
    fp8: Flag = False
    """write linear layers and experts in FP8 blocks, as DeepSeek-V3 does; the rest as --dtype"""
    gguf: Flag = False
    """write one GGUF file, for llama.cpp and Ollama, and compare its logits"""
    upcycle: Count = None
    """turn a dense policy into a mixture of N experts that computes the same"""
    chosen: Count = None
    """with --upcycle: experts per token (default: 2)"""
    run_its_code: RunsItsCode = False
    json: Json = False

    @property
    def is_program(self) -> bool:
        """Whether the recipe is a script: whoever names it has it run, with all that it names."""
        from rl_reasoner.recipe.load import is_program

        return self.to is not None and is_program(self.policy)

    def run(self) -> None:
        """Open, merge, convert, save; or hand a recipe over."""
        if os.path.lexists(self.folder):
            raise UserError(f"{self.folder} exists already; give a new folder")
        if self.chosen is not None and self.upcycle is None:
            raise UserError("--chosen is of a mixture that is made: it goes with --upcycle N")
        if self.to is not None:
            if self.to != "verl":
                raise unknown("engine", self.to, ["verl"])
            self._hand_over()
            return
        if self.stage is not None:
            raise UserError("--stage is of a recipe that is handed over: it goes with --to verl")
        if self.dtype not in ("fp32", "bf16"):
            raise unknown("dtype", self.dtype, ["fp32", "bf16"])
        if self.gguf and self.fp8:
            raise UserError("--gguf and --fp8 are two forms: give one of them")
        check_writable(self.folder)
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

            chosen = 2 if self.chosen is None else self.chosen
            policy.model = upcycle(policy.model, self.upcycle, chosen)
        if self.gguf:
            self._gguf(policy)
            return
        policy.model.to(torch.bfloat16 if self.dtype == "bf16" else torch.float32)
        if self.fp8:
            check_fp8(policy.model)
        err.print(f"writing {self.folder}", style="dim", soft_wrap=True)
        with whole_folder(self.folder) as partial:
            policy.save(partial)
            if self.fp8:
                write_fp8(policy.model, partial)
        emit(self.json, {"policy": str(self.folder)}, str(self.folder))

    def _hand_over(self) -> None:
        """Write the recipe in the form of verl, and say what that does otherwise."""
        if self.gguf or self.fp8 or self.upcycle is not None:
            raise UserError("--gguf, --fp8 and --upcycle are forms of a policy: leave out --to")
        check_writable(self.folder)
        from rl_reasoner.handover.folder import hand_over
        from rl_reasoner.recipe.load import load_recipe

        made = hand_over(load_recipe(self.policy), self.folder, self.stage)
        summary = {
            "folder": str(made.folder),
            "engine": self.to,
            "stage": made.subject.stage.name,
            "rows": len(made.subject.tasks),
            "otherwise": list(made.warnings),
            "no_counterpart": made.without,
            "start": list(made.start),
        }
        rows, stage = len(made.subject.tasks), made.subject.stage.name
        lines = [f"{made.folder}: stage {stage}, {rows:,} rows, for verl"]
        lines += [f"otherwise there: {warning}" for warning in made.warnings]
        lines += [f"no counterpart there: {', '.join(made.without)}", "to start it:"]
        lines += [f"  {command}" for command in made.start]
        emit(self.json, summary, Text("\n".join(lines)))

    def _gguf(self, policy: Any) -> None:
        """Write the policy as a GGUF file, opened again and compared."""
        from rl_reasoner.publishing.gguf_export import export_gguf

        file, apart = export_gguf(policy, self.folder, self.dtype)
        said = f"{file}\nopened again: logits within {apart:.1e} of the policy's (relative)"
        emit(self.json, {"policy": str(file), "logits_apart": apart}, said)
