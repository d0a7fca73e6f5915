"""Argument types, and checks of arguments, that several verbs of the command line share.

Every check comes before any work and raises `UserError`.
"""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import FlagCreatePairsOff, arg

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.foreign import json_value
from rl_reasoner.report.console import err
from rl_reasoner.scoring.option_types import read_option

if TYPE_CHECKING:
    from rl_reasoner.recipe.data import FileData
    from rl_reasoner.recipe.environment import EnvironmentSettings
    from rl_reasoner.recipe.tools import ToolSettings

_REWARD_OPTIONS = "--reward-options"
# what is left out has no default to show: its help says what then holds
Flag = FlagCreatePairsOff[Annotated[bool, arg(help_behavior_hint="")]]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Name = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
Names = Annotated[str | None, arg(metavar="NAME,...", help_behavior_hint="")]
ToolNames = Annotated[str, arg(metavar="NAME,...", help_behavior_hint="")]  # a text: None, too
Options = Annotated[str, arg(metavar="NAME=VALUE,...", help_behavior_hint="")]
StageName = Annotated[str | None, arg(metavar="STAGE", help_behavior_hint="")]
Count = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Decimal = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Whole = Annotated[int, arg(metavar="N")]  # these have a default, which the help shows
Number = Annotated[float, arg(metavar="X")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
RunOption = Annotated[Path | None, arg(metavar="RUN", help_behavior_hint="")]
Json = FlagCreatePairsOff[
    Annotated[
        bool,
        arg(
            help="print one JSON object and nothing else on standard output", help_behavior_hint=""
        ),
    ]
]
Quiet = FlagCreatePairsOff[
    Annotated[bool, arg(help="print nothing on standard error but errors", help_behavior_hint="")]
]
RunsItsCode = FlagCreatePairsOff[
    Annotated[
        bool,
        arg(
            help="run code that the run, recipe or result names: if you trust who made it",
            help_behavior_hint="",
        ),
    ]
]


def prompt_settings(
    policy: str, template: str | None, system: str | None
) -> tuple[str, str | None]:
    """The prompt template and the system prompt: as given, else as the run's policy was trained.

    A policy that is not a run's gets "auto" and no system prompt. An empty `system` means none; a
    run's own system prompt is used only with the run's own template.
    """
    from rl_reasoner.paths import run_of

    folder = run_of(Path(policy).absolute())
    if folder is None:
        return template or "auto", system or None
    from rl_reasoner.recipe.load import load_recipe

    run = load_recipe(str(folder / "recipe.yaml"))
    own = run.system if system is None and template in (None, run.template) else system
    return template or run.template, own or None


def note_template(template: str | None) -> None:
    """Say so where the template of the command line looks like a format string."""
    from rl_reasoner.recipe.data import BRACES_FIX, doubled_braces

    if told := doubled_braces(template or ""):
        note = f"note: {told} ({BRACES_FIX})"
        err.print(note, style="yellow", markup=False, highlight=False, soft_wrap=True)


def tool_settings(
    policy: str, tools: str = "own", call_format: str | None = None
) -> "ToolSettings | None":
    """What the policy may call: as given, or "own", as it was trained; "none" is nothing.

    Raises `UserError`.
    """
    from rl_reasoner.paths import run_of
    from rl_reasoner.recipe.load import load_recipe
    from rl_reasoner.recipe.tools import ToolSettings
    from rl_reasoner.tools import load_tools
    from rl_reasoner.tools.formats import FORMATS

    if call_format is not None and call_format not in (forms := ("auto", *FORMATS)):
        raise unknown("--tool-format", call_format, forms)
    folder = run_of(Path(policy).absolute())
    own = load_recipe(str(folder / "recipe.yaml")).tools if folder else None
    settings = own.model_dump() if own else {}
    asked = tools.strip(" ,").lower()
    if asked in ("none", "null", ""):
        if call_format:
            raise UserError("--tool-format: --tools is none, so nothing is called")
        return None
    names = [name.strip() for name in tools.split(",") if name.strip()]
    settings |= {"use": names} if asked != "own" else {}
    settings |= {"format": call_format} if call_format else {}
    if not settings:
        return None
    if "use" not in settings:
        raise UserError("--tool-format: which tools? Give --tools python")
    made = ToolSettings(**settings)
    load_tools(made.use)
    return made


def environment_of(policy: str) -> "EnvironmentSettings | None":
    """What answered a run's policy when it was trained."""
    from rl_reasoner.paths import run_of
    from rl_reasoner.recipe.load import load_recipe

    folder = run_of(Path(policy).absolute())
    return load_recipe(str(folder / "recipe.yaml")).environment if folder else None


def refuse_environment(policy: str, why: str) -> None:
    """Raise `UserError` for a policy that an environment answered when it was trained."""
    if (environment := environment_of(policy)) is not None:
        raise UserError(f"{policy} was trained with the environment {environment.use}, {why}")


def check_numbers(temperature: float | None, seed: int = 0, **counts: int | None) -> None:
    """Raise `UserError` for a count (by its flag's name) below 1, or what else is negative."""
    if seed < 0:
        raise UserError(f"--seed {seed}: expected 0 or more")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"--{name.replace('_', '-')} {count}: expected 1 or more")
    if temperature is not None and not 0 <= temperature < float("inf"):
        raise UserError(f"--temperature {temperature}: expected 0 or more")


def use_data_dir(folder: Path | None) -> None:
    """Find sets by name in `folder` (of --data-dir). Raises `UserError` where there is none."""
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--data-dir: there is no folder {folder}")
        os.environ["RL_REASONER_DATA"] = str(folder)


def data_of(name: str, given: Mapping[str, Any]) -> "FileData":
    """The rows of the set `name`, with what flags say of its columns, configuration and split."""
    from rl_reasoner.dataset.sets import set_data
    from rl_reasoner.recipe.data import FileData

    if "columns" in given:
        named = {ours: str(theirs) for ours, theirs in given["columns"].items()}
        given = {**given, "columns": named}
    return FileData.model_validate({**set_data(name).model_dump(), **given})


def check_writable(path: Path) -> Path:
    """Return `path`; raise `UserError` where no file or folder can be made at it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a name for the file")
    if path.exists() and not path.is_file():  # /dev/null, which would be replaced
        raise UserError(f"{path} is a device or a pipe: give a name for the file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}: {folder} is not a folder that can be written to")
    try:
        with tempfile.TemporaryFile(dir=folder):  # some folders only look as if they could
            return path
    except OSError as error:
        raise UserError(f"cannot write {path}: {folder}: {error.strerror}") from error


def parse_options(flag: str, text: str) -> dict[str, Any]:
    """Options given as a JSON object or as NAME=VALUE,NAME=VALUE (values as JSON, else texts)."""
    if not text.strip():
        return {}
    if not text.lstrip().startswith("{"):
        return {name: read_option(value, None) for name, value in _pairs(flag, text).items()}
    try:
        options: Any = json_value(text)
    except ValueError as error:
        raise UserError(f"{flag}: not JSON: {error}") from error
    if not isinstance(options, Mapping):
        raise UserError(f"{flag}: expected a JSON object, got {text!r:.60}")
    return dict(options)


def reward_options_of(text: str, reference: str | None, run: Path | None = None) -> dict[str, Any]:
    """The values of --reward-options, as they are meant for the reward that is named.

    That of a run may lie in its recipe.
    """
    options = parse_options(_REWARD_OPTIONS, text)
    if reference is None or text.lstrip().startswith("{") or not options:
        return options
    from rl_reasoner.recipe.load import load_recipe
    from rl_reasoner.scoring.registry import options_read

    source = None
    with suppress(UserError):  # told where the run is read
        spec = load_recipe(str(run / "recipe.yaml")).rewards.get(reference) if run else None
        source = spec.source if spec is not None else None
    return options_read(reference, _pairs(_REWARD_OPTIONS, text), source)


def cell(value: object) -> str:
    """`value` for a table's cell: a float with three digits, anything else in full."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {cell(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _pairs(flag: str, text: str) -> dict[str, str]:
    """The texts of NAME=VALUE,NAME=VALUE."""
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not equals for _, equals, _ in pairs):
        raise UserError(f"{flag} {text!r}: expected a JSON object or NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}
