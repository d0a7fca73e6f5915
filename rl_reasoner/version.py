"""The one place of the version number, and of how this package and its extras are installed.

The name is on no index, where anybody could take it: nothing may tell a user to `pip install` it.
"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

__version__ = "0.1.0"

INSTALL = "pip install RL_REASONER  # a clone of rl-reasoner, or a wheel of it: it is on no index"
"""The command for another machine; RL_REASONER is the path there."""


def install_extra(extra: str) -> str:
    """The command that installs what the extra of that name adds, such as `pip install 'ray>=2'`.

    Beside this package, wherever it came from: a clone, a wheel, a URL.
    """
    if not (asked := _needs()):
        return f"pip install -e 'RL_REASONER[{extra}]'  # in a clone"
    parts = [one.partition(";") for one in asked]
    names = [
        need.strip() for need, _, mark in parts if f"extra == '{extra}'" in mark.replace('"', "'")
    ]
    return "pip install " + " ".join(f"'{name}'" for name in names)


def out_of_range() -> list[str]:
    """What to say of each package that is here in another version than this one needs."""
    from packaging.requirements import Requirement

    found = []
    for need in map(Requirement, _needs()):
        if need.marker is not None:  # of an extra
            continue
        asked, here = f"{need.name}{need.specifier}", None
        with suppress(PackageNotFoundError):
            here = version(need.name)
        if here is None or not need.specifier.contains(here, prereleases=True):
            told = f"{need.name} {here} is here" if here else f"{need.name} is not here"
            found.append(f"{told}, needed is {asked}: pip install '{asked}'")
    return found


def _needs() -> list[str]:
    """What this package asks for; nothing in a source tree on sys.path."""
    try:
        return requires("rl-reasoner") or []
    except PackageNotFoundError:
        return []
