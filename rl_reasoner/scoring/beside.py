"""What lies beside a user's file: `import helper` in it finds the `helper.py` of its folder.

Such a helper goes before one of the working folder or of another file's folder, but never before
what is installed: a `random.py` or `datasets.py` there is not what numpy or trl is given. It is
found only while the file is imported, since other files have helpers of the same names. A worker
has one file: there it is found at any time (`stay_beside`), for imports inside functions.
`helpers_of` names such helpers without running any: they are part of what a file is, and so of what
is kept under its name (`hash_of_code`, `text_of_code`).
"""

import ast
import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from rl_reasoner.files import sha256_of
from rl_reasoner.scoring.fault_places import of_library


class _Beside(MetaPathFinder):
    """Finds modules of `folder` whose names no installed module has; leaves others to Python."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if path is not None else _spec(name, self.folder)


def _spec(name: str, folder: str) -> ModuleSpec | None:
    """What `import name` finds for a file in `folder`, where that may be something beside it."""
    if name in sys.stdlib_module_names or PathFinder.find_spec(name, [folder]) is None:
        return None
    installed = [one for one in sys.path if one != folder and of_library(one)]
    if PathFinder.find_spec(name, installed) is not None:
        return None
    return PathFinder.find_spec(name, [folder, *sys.path])  # a module before a bare folder


@contextmanager
def beside(folder: Path) -> Iterator[None]:
    """Inside, imports find what lies in `folder`.

    Modules of another folder that are called like a file of this one are out of the way meanwhile.
    A file that changes the working folder does so for its own process alone: the trainer's paths
    are those of the folder that it began in.
    """
    finder, working = _Beside(str(folder)), None
    if not any(isinstance(one, _Beside) for one in sys.meta_path):  # not a process of the file's
        with suppress(OSError):
            working = Path.cwd()
    hidden = _hide_namesakes(folder)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have changed it
            sys.meta_path.remove(finder)
        for name in [one for one in sys.modules if one.partition(".")[0] in hidden]:
            del sys.modules[name]
        sys.modules.update(hidden)
        if working is not None:
            with suppress(OSError):
                os.chdir(working)


def stay_beside(folder: Path) -> None:
    """Let imports of this process find what lies in `folder`, from now on."""
    there = [one.folder for one in sys.meta_path if isinstance(one, _Beside)]
    if str(folder) not in there:
        sys.meta_path.insert(0, _Beside(str(folder)))


def stay_beside_code(reference: object) -> None:
    """The same of the folder of `reference`, where that is FILE.py:NAME."""
    file = Path(str(reference).rpartition(":")[0]).expanduser()
    if file.suffix == ".py":
        stay_beside(file.resolve().parent)


def helpers_of(file: Path) -> list[Path]:
    """The files in the folder of `file` that it imports, and that those import, sorted.

    They are read, not run: a name that is put together at run time is not seen.
    """
    file = file.resolve()
    found, left = {file}, [file]
    while left:
        one = left.pop()
        stat = one.stat()
        new = set(_imported(one, file.parent, stat.st_size, stat.st_mtime_ns)) - found
        found |= new
        left += new
    return sorted(found - {file})


def hash_of_code(file: Path) -> str:
    """SHA-256 of a file of Python; with helpers beside it, of all of them by their names."""
    helpers = _by_name(file)
    if not helpers:
        return sha256_of(file)
    digest = hashlib.sha256(sha256_of(file).encode())
    for name, helper in helpers.items():
        digest.update(f"\n{name}\0{sha256_of(helper)}".encode())
    return digest.hexdigest()


def text_of_code(file: Path) -> str:
    """The text of a file of Python; with helpers beside it, their names and hashes behind it."""
    text = file.read_bytes().decode("utf-8", "replace")
    return text + "".join(f"\n{name} {sha256_of(one)}" for name, one in _by_name(file).items())


def _by_name(file: Path) -> dict[str, Path]:
    """The helpers of `file` by their names in its folder."""
    root = file.resolve().parent
    return {one.relative_to(root).as_posix(): one for one in helpers_of(file)}


@lru_cache(maxsize=1024)
def _imported(file: Path, root: Path, size: int, time: int) -> list[Path]:
    """The files under `root` that the import statements of `file` lead to.

    It is read again only when its size or time has changed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its escapes
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # whoever imports it is told
    return [*_led_to(tree, file, root)]


def _led_to(tree: ast.Module, file: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(root, alias.name.split("."), root)
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[min(node.level, len(file.parents)) - 1] if node.level else root
            parts = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files_of(base, [*parts, alias.name], root)


def _files_of(base: Path, parts: Sequence[str], root: Path) -> Iterator[Path]:
    """The files that importing `parts` from the folder `base` runs: packages and modules."""
    places = [base.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]
    if base == root:  # the folder itself is no package
        places = places[1:] if parts and _spec(parts[0], str(root)) else []
    for at in places:
        if at.is_relative_to(root):
            files = (at / "__init__.py", at.with_suffix(".py"))
            there = [one for one in files if one.is_file()][:1]
            yield from (one for one in there if not of_library(str(one)))


def _hide_namesakes(folder: Path) -> dict[str, ModuleType]:
    """Take modules of other folders whose names `folder` has too off `sys.modules`."""
    there = {path.stem for path in folder.glob("*.py")}
    there |= {path.parent.name for path in folder.glob("*/__init__.py")}
    roots = {name for name in there if _of_other_folder(sys.modules.get(name), folder)}
    names = [name for name in sys.modules if name.partition(".")[0] in roots]
    return {name: sys.modules.pop(name) for name in names}


def _of_other_folder(module: ModuleType | None, folder: Path) -> bool:
    """Whether a module is a user's file that does not lie in `folder`."""
    file = getattr(module, "__file__", None)
    if file is None or of_library(file):
        return False
    return not Path(file).resolve().is_relative_to(folder)
