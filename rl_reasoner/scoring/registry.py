"""Finds a reward: by its name, a module or file and a function, an entry point, or a URL."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rl_reasoner.errors import UserError, unknown
from rl_reasoner.paths import room
from rl_reasoner.scoring.beside import beside, hash_of_code
from rl_reasoner.scoring.fault_places import location_of, of_library
from rl_reasoner.scoring.option_types import option_parameters, read_option, wrong_options
from rl_reasoner.scoring.reward import FILE_MODULE, Reward, name_of
from rl_reasoner.scoring.source import reward_from_source
from rl_reasoner.scoring.trl_form import form_mistake
from rl_reasoner.trust import check_typed

ENTRY_POINTS = "rl_reasoner.rewards"
"""The group of entry points by which packages make their rewards known."""
CODE = "__code_hash__"
"""The global of a module made of a file that holds the file's hash, as it was imported."""


def shipped_rewards() -> list[str]:
    """Names of the rewards that come with the package, in alphabetical order."""
    return sorted(path.stem for path in room("rewards").glob("[a-z]*.py"))


def named_rewards() -> list[str]:
    """Names that need no file or module: of shipped rewards, and of entry points."""
    return [*shipped_rewards(), *(point.name for point in entry_points(group=ENTRY_POINTS))]


def is_url(reference: str) -> bool:
    """Whether `reference` names a reward over HTTP."""
    return reference.startswith(("http://", "https://"))


def load_reward(
    reference: str, options: Mapping[str, Any] | None = None, source: str | None = None
) -> Callable[..., Any]:
    """The reward that `reference` names, with `options` set; out of the text `source`, if given.

    Forms: the name of a shipped reward or of an entry point of the group `rl_reasoner.rewards`;
    "package.module:function"; "path/file.py:function"; "https://…" (`http_reward`). Raises
    `UserError` where nothing is found, the file has an error, options are given to a function that
    takes none, or their values make no sense. Without `options` (None) none are checked yet: they
    may come later (`with_options`). An empty mapping says that none will.
    """
    if is_url(reference):
        return _over_http(reference, options or {})
    fn = _named(reference) if source is None else reward_from_source(reference, source)
    if not callable(fn):
        raise UserError(f"reward {reference!r} is {type(fn).__name__}, not a function")
    if isinstance(fn, Reward):
        chosen = fn.with_options(**options) if options else fn
        if options is not None:
            chosen.check_options()
        return chosen
    if mistake := form_mistake(fn, reference.rpartition(":")[2]):
        raise UserError(mistake)
    if options:
        raise UserError(f"reward {reference!r} takes no options: only @reward functions do")
    return cast(Callable[..., Any], fn)


def check_name(
    reference: str, fn: Callable[..., Any], others: Mapping[str, Callable[..., Any]]
) -> None:
    """Raise `UserError` where the reward `fn` has the name of one of `others` (by reference).

    Scores are kept by functions' names: those of one of them would be lost.
    """
    for other, function in others.items():
        if name_of(function) == name_of(fn):
            raise UserError(
                f"rewards {other} and {reference} are both functions called {name_of(fn)}, and "
                "scores are kept by that name: rename one of the functions"
            )


def _named(reference: str) -> Any:
    """What `reference` names; raises `UserError`."""
    module, _, attribute = reference.rpartition(":")
    if module:
        return function_of(import_module_of(module, reference), attribute, reference)
    if reference in shipped_rewards():
        shipped = import_module_of(f"rl_reasoner.rewards.{reference}", reference)
        return function_of(shipped, reference, "")
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if reference in points:
        check_typed(reference)
    else:
        if reference.endswith(".py"):
            raise UserError(f"reward {reference!r} names no function: write {reference}:NAME")
        raise unknown("reward", reference, named_rewards())
    try:
        return points[reference].load()
    except (ImportError, AttributeError) as error:
        target = points[reference].value
        raise UserError(f"reward {reference!r}: cannot load {target}: {_cause(error)}") from error


def source_file(reference: str) -> Path | None:
    """The file of the reward that `reference` names; None where there is none to be read.

    Nothing of it is imported, nor are the packages that it lies in.
    """
    if is_url(reference):
        return None
    module, _, _ = reference.rpartition(":")
    if module.endswith(".py"):
        file: Path | None = Path(module).expanduser()
    elif not module and reference in shipped_rewards():
        file = room("rewards") / f"{reference}.py"
    else:
        points = {point.name: point.module for point in entry_points(group=ENTRY_POINTS)}
        spec = _spec_of(module or points.get(reference, reference))
        file = Path(spec.origin) if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


def _spec_of(module: str) -> ModuleSpec | None:
    """Where a module lies; `importlib.util.find_spec` would import its packages."""
    found: ModuleSpec | None = None
    above: Sequence[str] | None = None
    parts = module.split(".")
    if not all(parts):
        return None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        specs = (finder.find_spec(name, above) for finder in sys.meta_path)
        found = next((spec for spec in specs if spec is not None), None)
        above = found.submodule_search_locations if found is not None else None
        if found is None or (above is None and count < len(parts)):
            return None
    return found


def function_name(reference: str) -> str:
    """What the function that `reference` names is called, as far as that shows without its code."""
    if is_url(reference):
        from rl_reasoner.scoring.http_reward import name_of_url  # it brings httpx along

        return name_of_url(reference)
    points = {point.name: point.attr for point in entry_points(group=ENTRY_POINTS)}
    return points.get(reference) or reference.rpartition(":")[2]


def code_of_own(reference: str) -> str | None:
    """The hash of the code of a reward or a tool of the user's, helpers beside it included.

    What is installed or shipped has none: its version stands for it.
    """
    file = source_file(reference) if ":" in reference else None
    return None if file is None or of_library(str(file)) else hash_of_code(file)


def options_read(
    reference: str, texts: Mapping[str, str], source: str | None = None
) -> dict[str, Any]:
    """The values that a command line's texts mean for options of the reward that is named.

    Where there is no such reward they are read as JSON or texts: that is told when it is loaded.
    """
    parameters: Mapping[str, Parameter] = {}
    with suppress(UserError):
        if is_url(reference):
            parameters = _http_parameters()
        else:
            fn = load_reward(reference, source=source)
            parameters = option_parameters(fn.fn) if isinstance(fn, Reward) else {}
    return {name: read_option(text, parameters.get(name)) for name, text in texts.items()}


def _http_parameters() -> dict[str, Parameter]:
    """The options of a reward over HTTP."""
    from rl_reasoner.scoring.http_reward import http_reward  # it brings httpx along

    found = option_parameters(http_reward)
    del found["url"]
    return found


def _over_http(url: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    from rl_reasoner.scoring.http_reward import http_reward  # it brings httpx along

    known = _http_parameters()
    for option in options:
        if option not in known:
            raise unknown("option", option, known, owner=f"reward {url}")
    if wrong := wrong_options(url, known, options):
        raise UserError(*wrong)
    return http_reward(url, **options)


def import_module_of(name: str, reference: str, kind: str = "reward") -> ModuleType:
    """The module `name`, or the one in the file of that name, imported; raises `UserError`.

    A file finds what lies in its folder (`beside`). The messages say that it is for the `kind`
    called `reference`. What a file names is not imported unasked (`trust`).
    """
    if name != f"rl_reasoner.rewards.{reference}":  # shipped
        check_typed(reference, kind)
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        path = Path(name).expanduser().resolve()
        if not path.is_file():
            raise UserError(f"{kind} {reference!r}: there is no file {path}")
        spec = importlib.util.spec_from_file_location(f"{FILE_MODULE}{path.stem}", path)
        if spec is None or spec.loader is None:
            raise UserError(f"{kind} {reference!r}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        vars(module)[CODE] = hash_of_code(path)
        with beside(path.parent):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        line = f"{error.filename}:{error.lineno}"
        raise UserError(f"{kind} {reference!r}: syntax error at {line}: {error.msg}") from error
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        what = _cause(error, location_of(error))
        file = Path(f"{name.replace('.', '/')}.py")  # its folder may not be one of Python's
        itself = isinstance(error, ModuleNotFoundError) and name.startswith(error.name or name)
        if itself and file.is_file():
            what += f". There is {file} here: write {file}:{reference.rpartition(':')[2]}"
        raise UserError(f"{kind} {reference!r}: cannot import {name}: {what}") from error
    return module


def _cause(error: BaseException, where: str = "") -> str:
    """What went wrong; of an import that a copy of an earlier shipped reward has, the way out."""
    name = getattr(error, "name", None) or ""
    if isinstance(error, ModuleNotFoundError) and name.startswith("rl_reasoner."):
        return f"there is no {name} any more{where}: copy the reward again (rl-reasoner copy)"
    return f"{type(error).__name__}: {error}{where}"


def function_of(module: ModuleType, name: str, reference: str) -> Any:
    """What `module`, which `reference` names, calls `name`; raises `UserError`."""
    if hasattr(module, name):
        return getattr(module, name)
    known = [
        key
        for key, value in vars(module).items()
        if callable(value) and key[0] != "_"
        if getattr(value, "__module__", None) == module.__name__  # not what it imports
    ]
    raise unknown("function", name, known, owner=reference.rpartition(":")[0])
