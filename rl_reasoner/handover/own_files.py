"""The files of a recipe's own rewards, copied into the folder of a handover and named from there.

That is the file of a reward with what it imports from beside it, and what the options of a judge
name: its function and its rubric.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_reasoner.errors import UserError
from rl_reasoner.handover.rewards import with_files
from rl_reasoner.recipe.data import AnyData, MixData, RowSource
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.scoring.beside import helpers_of
from rl_reasoner.scoring.registry import load_reward

_OWN = "own_rewards"


def with_own_files(recipe: Recipe, folder: Path) -> tuple[Recipe, Mapping[str, str]]:
    """The recipe with its own rewards' files in `folder`; and what each of its rewards is called.

    The recipe has the new names wherever it names a reward. Raises `UserError` for a file that is
    not there.
    """
    specs, names = {}, {}
    for number, (name, spec) in enumerate(recipe.rewards.items()):
        place = f"{_OWN}/{number}"
        file, _, function = name.rpartition(":")
        own = _copied(file, place, folder, f"reward {name!r}") if file.endswith(".py") else ""
        options = dict(spec.options)
        reward = load_reward(name, source=spec.source)  # refused by the name that the recipe has
        if options:

            def moved(file: str, option: str, place: str = place, name: str = name) -> str:
                what = f"reward {name!r}: option {option}"
                if option == "policy":  # large, and any engine's machine may have its own
                    there = Path(file).expanduser()
                    return str(there.absolute()) if there.exists() else file
                return _copied(file, f"{place}/{option}", folder, what)

            options = with_files(reward, options, moved)
        names[name] = f"{own}:{function}" if own else name
        specs[names[name]] = spec.model_copy(update={"options": options})
    stages = tuple(
        stage.model_copy(update={"data": _data(stage.data, names)}) for stage in recipe.stages
    )
    meter = recipe.hacking_meter
    watched = tuple(names[name] for name in meter.rewards)
    changed: dict[str, Any] = {
        "rewards": specs,
        "data": _data(recipe.data, names),
        "stages": stages,
        "hacking_meter": meter.model_copy(update={"rewards": watched}),
    }
    return recipe.model_copy(update=changed), names


def _copied(file: str, place: str, folder: Path, what: str) -> str:
    """`file` from `folder`, copied to `place` in it with what it imports from beside it."""
    source = Path(file).expanduser()
    if not source.is_file():
        raise UserError(f"{what}: there is no file {source}")
    files = {source: Path(source.name)}
    if source.suffix == ".py":
        beside = source.resolve().parent
        files |= {one: one.relative_to(beside) for one in helpers_of(source)}
    for one, own in files.items():
        copy = folder / place / own
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one, copy)
    return f"{place}/{source.name}"


def _data(data: AnyData | None, names: Mapping[str, str]) -> AnyData | None:
    """The data with the new names of the rewards that its sources name."""

    def named(source: Any) -> Any:
        assert isinstance(source, RowSource)
        if source.rewards is None:
            return source
        rewards = tuple(names.get(name, name) for name in source.rewards)
        return source.model_copy(update={"rewards": rewards})

    if isinstance(data, MixData):
        return data.model_copy(update={"mix": tuple(map(named, data.mix))})
    return None if data is None else named(data)
