"""The verb `copy`: a shipped recipe or reward as a file to change."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import Json, check_writable
from rl_reasoner.errors import UserError, unknown
from rl_reasoner.paths import room
from rl_reasoner.report.console import emit


@dataclass
class CopyVerb:
    """Copy a shipped recipe or reward into this folder, to change it."""

    name: Positional[Annotated[str, arg(metavar="NAME")]]
    """quickstart, quickstart.yaml, rewards/length …"""
    to: Positional[Annotated[Path, arg(metavar="TO")]] = Path()
    """a folder or a file name"""
    json: Json = False

    def run(self) -> None:
        """Copy one file; never overwrites."""
        from rl_reasoner.recipe.json_schema import with_schema
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
        check_writable(target).parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text(encoding="utf-8")
        target.write_text(with_schema(text) if source.suffix == ".yaml" else text, encoding="utf-8")
        recipe = not self.name.startswith("rewards/")
        use = f"; run it with: rl-reasoner train {target}" if recipe else ""
        emit(self.json, {"copied": str(target)}, f"copied to {target}{use}")
