"""Recipes by path or by shipped name: Python scripts and YAML files, with flags applied.

A recipe script has a function `recipe() -> Recipe`; a YAML file holds the same fields. Mistakes are
reported all at once, each with the place where it was made (`locations`).
"""

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from traceback import extract_tb

from pydantic import ValidationError

from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.paths import file_meant, room
from rl_reasoner.recipe.flags import apply_flags, flag_places
from rl_reasoner.recipe.locations import FieldPath, python_places, read_yaml, user_error, validate
from rl_reasoner.recipe.recipe import Recipe
from rl_reasoner.trust import check_typed

_ENDINGS = (".py", ".yaml", ".yml")
Locate = Callable[[FieldPath], str]
"""Gives the place of a field: file and line, or a flag."""


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package, in alphabetical order."""
    return sorted(p.stem for p in room("recipes").glob("[a-z]*.py"))


def find_recipe(reference: str) -> Path:
    """The file of a recipe given as a path, or as the name of a shipped one (with `.yaml` or not).

    Raises `UserError` when there is none.
    """
    path = Path(reference).expanduser()
    if path.is_file():
        return path
    for name in (reference, f"{reference}.py"):
        shipped = room("recipes") / name
        if shipped.is_file() and Path(name).name == name and shipped.stem in shipped_recipes():
            return shipped
    if path.is_dir():
        raise UserError(f"{reference} is a folder: a recipe is a name, a .py or a .yaml file")
    meant = file_meant(reference, _ENDINGS) if path.suffix else ""
    if meant or path.suffix in _ENDINGS or len(path.parts) > 1:
        near = meant or did_you_mean(path.stem, shipped_recipes())
        raise UserError(f"there is no recipe file {reference}.{near}")
    raise unknown("recipe", reference, shipped_recipes())


def is_program(reference: str) -> bool:
    """Whether `reference` is a script: whoever names it has it run, with all that it names."""
    try:
        return find_recipe(reference).suffix == ".py"
    except (UserError, OSError, RuntimeError):  # told where the recipe is read
        return False


def load_recipe(reference: str, flags: Sequence[str] = ()) -> Recipe:
    """Read the recipe that `reference` names, with `flags` applied.

    Raises `UserError` with every mistake: its place, what was expected, the nearest spelling.
    """
    return read_recipe(reference, flags)[0]


def read_recipe(reference: str, flags: Sequence[str] = ()) -> tuple[Recipe, Locate]:
    """Read a recipe as `load_recipe` does; also where its fields are set: flag, or file and line.

    The places are for mistakes that show only when the recipe is put to work. A field that is not
    written down itself has the place of what it is part of; flags of its parts stand beside it.
    """
    path = find_recipe(reference)
    if path.suffix == ".py":
        if path.parent != room("recipes"):
            check_typed(reference, "recipe")
        plain = run_script(path)
        places = dict(python_places(path))
    else:
        data, read = read_yaml(path)
        plain, places = validate(data, read, str(path)), dict(read)
    recipe = apply_flags(plain, flags)
    by_flags = flag_places(plain, flags)
    given = set(by_flags)
    inside = {field for field in places if any(field[:n] in given for n in range(1, len(field)))}
    places = {field: at for field, at in places.items() if field not in inside} | by_flags

    def locate(field: FieldPath) -> str:
        above = [places[field[:n]] for n in range(len(field), 0, -1) if field[:n] in places]
        place = above[0] if above else str(path)
        whole = field[:-1] if field[-1] in ("path", "task") else field  # these stand for their data
        parts = [flag for at, flag in by_flags.items() if at[: len(whole)] == whole != at]
        return f"{place} with {' '.join(parts)}" if parts and place not in parts else place

    return recipe, locate


def run_script(path: Path) -> Recipe:
    """Run the script `path` and return what its function `recipe()` makes.

    Raises `UserError` with file and line, for what the script itself raises too.
    """
    sys.path.insert(0, str(path.parent))
    try:
        script = runpy.run_path(str(path), run_name="rl_reasoner_recipe")
        if not callable(script.get("recipe")):
            rewards = b"@reward" in path.read_bytes()
            hint = f"; a reward in it is named {path}:NAME" if rewards else ""
            raise UserError(f"{path} has no function `recipe()` that returns a Recipe{hint}")
        recipe = script["recipe"]()
    except UserError:
        raise
    except ValidationError as error:
        raise user_error(error, python_places(path), str(path)) from None
    except SyntaxError as error:
        place = f"{error.filename}:{error.lineno}"
        raise UserError(f"{place}: syntax error: {error.msg}") from error
    except (Exception, SystemExit) as error:
        lines = [f":{f.lineno}" for f in extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"{path}{lines[-1] if lines else ''}"
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    if not isinstance(recipe, Recipe):
        raise UserError(f"{path}: recipe() returned {type(recipe).__name__}, not a Recipe")
    return recipe
