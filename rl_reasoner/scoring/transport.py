"""How a reward travels to another process: by its name in a module, by its file, or as a copy.

A function of a script or a cell, or one that is made inside another, is copied (cloudpickle), with
what it names: the copy is made anew for each batch, and sent where it differs from the one before.
What the function changes in its copy would be lost here: `snapshot` shows that it has done so.
Functions of modules and files keep their state in whichever process they run in.
"""

import base64
import inspect
import io
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import cloudpickle

from rl_reasoner.scoring.beside import stay_beside, stay_beside_code
from rl_reasoner.scoring.registry import CODE, import_module_of
from rl_reasoner.scoring.reward import FILE_MODULE, Reward, name_of
from rl_reasoner.scoring.source import TEXT, reward_from_source
from rl_reasoner.trust import decided

MOST_BYTES = 1 << 20
"""What a copy may weigh: code, constants and small tables, not a model."""


class _TooLarge(ValueError):
    """What a function holds is no longer small."""


class _Bounded(io.BytesIO):
    """Ends the copying of a model at its beginning."""

    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > MOST_BYTES:
            raise _TooLarge(f"it holds more than {MOST_BYTES >> 20} MB")
        return super().write(data)


class Around:
    """A function of trl's form that calls the reward `fn`: `how(fn, completions=…, **columns)`.

    `how` is a function of an installed module. The reward travels as it does alone: a copy of both
    would name the module of a file, which no worker has.
    """

    def __init__(self, fn: Callable[..., Any], how: Callable[..., Any]) -> None:
        self.fn = fn
        self.how = how
        self.__name__ = name_of(fn)

    def __call__(self, completions: Any, **columns: Any) -> Any:
        return self.how(self.fn, completions=completions, **columns)


def pack_reward(fn: Callable[..., Any]) -> dict[str, Any] | str:
    """What a worker needs to have `fn`, as JSON values for `unpack_reward`; or why it cannot."""
    if isinstance(fn, Around):
        inner = pack_reward(fn.fn)
        if isinstance(inner, str):
            return inner
        return {"around": inner, "module": fn.how.__module__, "name": fn.how.__name__}
    target, many, options = (
        (fn.fn, fn.many, fn.options) if isinstance(fn, Reward) else (fn, None, {})
    )
    place = _place(target, many)
    try:
        if place is None:
            return {"copy": _text(_copy(fn))}
        return {
            **place,
            "decorated": isinstance(fn, Reward),
            "group": isinstance(fn, Reward) and fn.group,
            "options": _text(pickle.dumps(options)),
        }
    except _TooLarge as error:
        return str(error)
    except Exception as error:  # locks, sockets, anything that refuses
        return f"it cannot be sent to another process ({type(error).__name__}: {error})"


def unpack_reward(packed: Mapping[str, Any]) -> Callable[..., Any]:
    """The reward that `pack_reward` described, in this process."""
    with decided():  # where it was packed
        return _unpacked(packed)


def _unpacked(packed: Mapping[str, Any]) -> Callable[..., Any]:
    if "around" in packed:
        module = import_module_of(packed["module"], packed["module"])
        return Around(_unpacked(packed["around"]), getattr(module, packed["name"]))
    if "copy" in packed:
        return cast(Callable[..., Any], pickle.loads(_bytes(packed["copy"])))  # noqa: S301 (the parent's)
    fn: Any
    if "text" in packed:
        fn = reward_from_source(packed["name"], packed["text"])
    else:
        if "folder" in packed:
            stay_beside(Path(packed["folder"]))
        fn = import_module_of(packed["module"], packed["module"])
        for part in packed["name"].split("."):
            fn = getattr(fn, part)
    options = pickle.loads(_bytes(packed["options"]))  # noqa: S301 (the parent's)
    if packed["decorated"]:
        made = fn if isinstance(fn, Reward) else Reward(fn, group=packed["group"])
        for name in made.code_options:  # it is imported later, by the reward itself
            stay_beside_code(options.get(name))
        return made.with_options(**options)
    return cast(Callable[..., Any], fn)


def snapshot(packed: Mapping[str, Any], fn: Callable[..., Any]) -> bytes:
    """What `fn` holds, where it is a copy: other bytes after a call than before show its state."""
    if isinstance(fn, Around):
        return snapshot(packed["around"], fn.fn)
    if "copy" not in packed:
        return b""
    try:
        return _copy(fn)
    except Exception:  # it has come to hold what cannot be copied
        return b"not to be copied"


def _copy(fn: Callable[..., Any]) -> bytes:
    file = _Bounded()
    cloudpickle.dump(fn, file)
    return file.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


def _place_of_object(target: Any) -> dict[str, str] | None:
    """The same for an object or a partial of a file that rewards were loaded from.

    Elsewhere it is copied, with what the script has set on it.
    """
    made: Any = getattr(target, "func", None) or type(target).__call__
    around = getattr(made, "__globals__", {})  # a later load may have taken its module's place
    spaces = [around, *(getattr(m, "__dict__", {}) for m in [*sys.modules.values()])]
    for space in [one for one in spaces if str(one.get("__name__")).startswith(FILE_MODULE)]:
        own = [n for n, v in space.items() if (v.fn if isinstance(v, Reward) else v) is target]
        if own:
            return _in_file(space, own[0])
    return None


def _in_file(space: Mapping[str, Any], name: str) -> dict[str, str]:
    """The same for `name` in the file whose globals are `space`, and the file's hash."""
    file = str(space.get("__file__"))
    code = {"code": space[CODE]} if CODE in space else {}
    return {"module": file, "name": name, "folder": str(Path(file).parent), **code}


def is_edited(packed: Mapping[str, Any]) -> bool:
    """Whether the file of a reward that was unpacked here was another when it was packed."""
    if "around" in packed:
        return is_edited(packed["around"])
    if "code" not in packed:
        return False
    stem = Path(packed["module"]).stem
    return bool(getattr(sys.modules.get(f"{FILE_MODULE}{stem}"), CODE, None) != packed["code"])


def _place(target: Any, many: Any) -> dict[str, str] | None:
    """Module (or file) and name under which another interpreter finds the function `target`.

    None too where it would be found there without its batch form `many`.
    """
    name = str(getattr(target, "__qualname__", "<none>"))
    module = str(getattr(target, "__module__", None))
    if not hasattr(target, "__qualname__"):
        return _place_of_object(target)
    if "<" in name or module in ("__main__", "__mp_main__"):
        return None
    own = module.startswith(FILE_MODULE)
    space = vars(sys.modules.get(module, object))
    if own:  # another file may have taken its place in sys.modules
        space = getattr(inspect.unwrap(target), "__globals__", space)
    first, *rest = name.split(".")
    there: Any = space.get(first)
    for part in rest:
        there = getattr(there, part, None)
    if there is not target and getattr(there, "fn", None) is not target:
        return None
    if many is not None and getattr(there, "many", None) is not many:
        return None
    if TEXT in space:
        return {"text": space[TEXT], "name": name}
    file = space.get("__file__")
    if not own:
        spec = space.get("__spec__")
        if spec is not None and spec.origin == file:
            return {"module": module, "name": name, **_folder_of(module, Path(str(file)))}
    if not file or not file.endswith(".py"):
        return None
    return _in_file(space, name)


def _folder_of(module: str, file: Path) -> dict[str, str]:
    """The folder of a module that lies beside a user's file, and is not found without it."""
    inside = file.parent if file.name == "__init__.py" else file
    folder = inside.parents[module.count(".")]
    known = {Path(path).resolve() for path in sys.path}
    return {} if folder.resolve() in known else {"folder": str(folder)}
