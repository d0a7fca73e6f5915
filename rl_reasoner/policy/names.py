"""What the name of a policy means: a scratch model, a folder, a run, a file or a hub id.

Light on purpose: a verb asks here before it loads torch, so that a name that leads nowhere is told
at once. `opening` opens what is found.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_reasoner import hub
from rl_reasoner.errors import UserError, did_you_mean, unknown
from rl_reasoner.paths import is_run, policy_folder, runs_beside

SCRATCH_NAMES = {
    "deepseek-tiny": "like DeepSeek-V3: 8 experts, 2 and a shared one a token",
    "dense-tiny": "like Qwen3: dense, 0.3M parameters",
    "moe-tiny": "like Qwen3-MoE: 8 experts, 2 a token, 0.5M parameters",
}
"""Scratch policies, all of random weights, with what each is like."""


def check_policy(source: str) -> None:
    """Raise `UserError` where there is no policy `source`; loads nothing and opens nothing."""
    if source.startswith("scratch:"):
        check_scratch(source.removeprefix("scratch:"))
    elif source.endswith(".gguf"):
        if not Path(source).expanduser().is_file():
            raise UserError(f"there is no policy file {source}")
    else:
        with locate(source):
            pass


def check_scratch(name: str) -> None:
    """Raise `UserError` where no scratch policy has this name."""
    if name not in SCRATCH_NAMES:
        raise unknown("scratch policy", f"scratch:{name}", [f"scratch:{n}" for n in SCRATCH_NAMES])


@contextmanager
def locate(source: str) -> Iterator[str]:
    """Yield the folder that `source` names, else its hub id, which can be opened inside.

    Raises `UserError` for what is neither, before transformers asks the hub again and again.
    """
    path = Path(source).expanduser()
    if (folder := policy_folder(path)) is not None:
        yield str(folder)
        return
    if path.is_file():
        raise UserError(f"policy {source!r} is a file: give a folder, a .gguf file or a hub id")
    around = path.parent.iterdir() if path.parent.is_dir() else ()
    scratch = [f"scratch:{name}" for name in SCRATCH_NAMES]
    near = did_you_mean(str(path), [*map(str, filter(Path.is_dir, around)), *scratch])
    runs = runs_beside(path)
    beside = any(map(is_run, path.parent.glob("*")))
    local = "/" in source and (near or beside or source.startswith("runs/"))
    if not hub.is_name(source) or local:  # beside it lies what was meant
        raise UserError(f"there is no policy {source!r}: no such folder.{near or runs}")
    try:
        with hub.access("model", source):
            yield source
    except hub.NotThereError as error:
        raise UserError(
            f"policy {source!r} is neither a folder nor available on the hub ({error}).{near}"
        ) from error
