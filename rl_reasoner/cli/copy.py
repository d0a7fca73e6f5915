"""The verb `copy`: a shipped recipe or reward as a file to change."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json, check_writable
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.files import write_text
from rl_reasoner.paths import room
from rl_reasoner.report.console import emit


@dataclass
class CopyVerb:
    """Copy a shipped recipe or reward into this folder, to change it."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """quickstart, quickstart.yaml, rewards/length …"""
    to: Positional[Annotated[Path, arg(metavar="[TO]")]] = Path()
    """a folder or a file name"""
    json: Json = False

    def run(self) -> None:
        """Copy one file; never overwrites."""
        from rl_reasoner.recipe.load import find_recipe
        from rl_reasoner.scoring.registry import shipped_rewards

        stem = self.name.removeprefix("rewards/").removesuffix(".py")
        if self.name.startswith("rewards/"):
            if stem not in shipped_rewards():
                raise unknown("reward", stem, shipped_rewards())
            source = room("rewards") / f"{stem}.py"
        else:
            try:
                source = find_recipe(self.name)
            except UserError:
                if stem not in shipped_rewards():
                    raise
                raise UserError(f"{stem} is a reward: rl-reasoner copy rewards/{stem}") from None
        target = self.to / source.name if self.to.is_dir() else self.to
        if os.path.lexists(target):
            raise UserError(f"{target} exists already; give another name")
        if _kind(target) != _kind(source):
            raise UserError(f"{self.name} is a {source.suffix} file: {target} should end like it")
        check_writable(target)
        text = source.read_text(encoding="utf-8")
        write_text(target, text)
        recipe = not self.name.startswith("rewards/")
        command = shlex.join(["rl-reasoner", "train", str(target)])
        use = f"; run it with: {command}" if recipe else ""
        if schema := _schema_beside(target):
            use += f"\n{schema} is beside it: editors check and complete the recipe by it"
        emit(self.json, {"copied": str(target)}, f"copied to {target}{use}")


def _kind(file: Path) -> str:
    """The ending of a file, which says how it is read."""
    return ".yaml" if file.suffix in (".yaml", ".yml") else file.suffix


def _schema_beside(target: Path) -> Path | None:
    """Write the schema that a YAML recipe names in its first line; None where that is there.

    The line names it without a folder: a path would be this machine's.
    """
    from rl_reasoner.recipe.json_schema import SCHEMA_FILE, schema_text

    schema = target.with_name(SCHEMA_FILE)
    if target.suffix not in (".yaml", ".yml") or os.path.lexists(schema):
        return None
    write_text(schema, schema_text())
    return schema
