"""Documents as programs: their fenced blocks, and what running one means.

A document holds four kinds of blocks. `sh` and `python` are run, in the order in which a reader
meets them, in a folder of their own; `yaml` is a recipe, or a part of one, and is read as such;
`text` is output. A block whose first line is a comment with a file's name is that file. A
`console` block shows a command on machines that tests do not have, and is not run.

Training commands are run with sizes that make them tiny, unless RL_REASONER_DOCS=full.
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_reasoner.cli import main
from rl_reasoner.recipe.load import load_recipe
from rl_reasoner.recipe.locations import validate
from rl_reasoner.recipe.recipe import Recipe, RecipeLoader
from rl_reasoner.recipe.stages import GrpoStage
from support.places import ROOT
from support.shown import (
    brought_up_to_date,
    is_shown,
    keep_measured,
    processor_seconds,
    rewrite,
)

LANGUAGES = {"sh", "python", "yaml", "text", "console"}
FULL = os.environ.get("RL_REASONER_DOCS") == "full"
_FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w/-]+\.(?:py|yaml))\n")
_HERE = re.compile(r"cat > (\S+) <<'(\w+)'\n(.*?)^\2\n", re.DOTALL | re.MULTILINE)
_PLAIN = ("ls", "cat", "head", "cd", "git", "python3", "source")  # nothing of ours to try out
_FIELDS: dict[str, Any] = {
    "steps": 1,
    "batch": 4,
    "group.size": 2,
    "group.prompts": 2,
    "group.micro_batch": "none",
    "sampling.max_tokens": 8,
    "data.count": 16,
    "loss.dynamic_sampling": 0,
    "min_score": 0.0,  # of what is sampled, keep all: such a policy has nothing right
    "keep.readable": False,
}
_BASE: Mapping[str, Any] = {
    "policy": "scratch:dense-tiny",
    "data": "problems.jsonl",
    "rewards": {"math_answer": 1.0},
    "stages": [{"kind": "grpo"}],
}


@dataclass(frozen=True)
class Block:
    """A fenced block: `place` is file and line of its first line of code."""

    place: str
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The name in the first line's comment."""
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(document: str) -> list[Block]:
    """The fenced blocks of a document, named by its path in the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        Block(f"{document}:{text.count(chr(10), 0, found.start()) + 2}", found[1], found[2])
        for found in _FENCE.finditer(text)
    ]


def run_document(document: str, place: Path, typed: str = "") -> None:
    """Run every block of `document` in the folder `place`; `typed` is standard input.

    What is shown of output has to be what is printed; at full size it is written anew, with the
    time and the figures of the whole document (`support.shown`).
    """
    found, began = blocks(document), processor_seconds()
    outputs: list[str] = []
    renewed: list[tuple[str, str]] = []
    for block in found:
        if block.file:
            (place / block.file).parent.mkdir(parents=True, exist_ok=True)
            (place / block.file).write_text(block.text, encoding="utf-8")
    after = [*found[1:], Block("", "", "")]
    for block, following in zip(found, after, strict=True):
        shown = following.text if following.language == "text" else None
        with contextlib.chdir(place):
            if block.language == "sh":
                outputs.append(run_commands(block, typed))
                if shown and FULL:
                    renewed.append((shown, brought_up_to_date(outputs[-1], shown)))
                elif shown:
                    assert is_shown(outputs[-1], shown), f"{block.place} prints:\n{outputs[-1]}"
            elif block.language == "python" and not block.file:
                outputs.append(run_python(block))
                if shown:
                    assert like(outputs[-1], shown), f"{block.place} prints:\n{outputs[-1]}"
            elif block.language == "yaml":
                read_yaml(block)
    if FULL and document.startswith("docs/tutorials/"):
        rewrite(ROOT / document, renewed)
        if (spent := processor_seconds() - began) >= 1:  # else its commands are not run here
            keep_measured(document, spent, outputs)


def like(printed: str, shown: str) -> bool:
    """Whether output is what a document shows; … stands for anything."""
    pattern = re.escape(shown.rstrip()).replace("…", ".*")
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


def run_python(block: Block) -> str:
    """Run a block of Python as a script; gives what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})  # noqa: S102
    return out.getvalue()


def read_yaml(block: Block) -> None:
    """A recipe, or fields of one: of its top, else of its last stage."""
    if block.file:
        load_recipe(block.file)
        return
    fields = yaml.load(block.text, Loader=RecipeLoader)  # noqa: S506 (it is a SafeLoader)
    if set(fields) <= set(Recipe.model_fields):
        whole = {**_BASE, **fields}
    else:
        assert set(fields) <= set(GrpoStage.model_fields), f"{block.place}: no fields of a recipe"
        whole = {**_BASE, "stages": [{"kind": "grpo", **fields}]}
    validate(whole, {}, block.place)


def run_commands(block: Block, typed: str = "") -> str:
    """Run the commands of a shell block; gives what they print, on either stream."""
    for name, _, text in _HERE.findall(block.text):
        Path(name).write_text(text, encoding="utf-8")
    whole = io.StringIO()
    for line in _lines(_HERE.sub("", block.text)):
        line, _, target = line.partition(" > ")
        words = shlex.split(line)
        program = words[0].removeprefix(".venv/bin/")
        if program == "rl-reasoner":
            out = io.StringIO() if target else whole
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(whole):
                try:
                    run_command([*_globbed(words[1:])], block.place, typed)
                except AssertionError as error:
                    raise AssertionError(f"{error}:\n{whole.getvalue()[-3000:]}") from None
            if target:
                Path(target.strip()).write_text(out.getvalue(), encoding="utf-8")
        elif program == "make":
            for made in _target(words[1], block.place):
                run_command(made, block.place)
        elif program == "pip":
            _check_extras(words, block.place)
        elif program == "python":
            assert (ROOT / words[1]).is_file(), f"{block.place}: there is no {words[1]}"
        else:
            assert program in _PLAIN, f"{block.place}: what is {program}?"
    return whole.getvalue()


def run_command(words: list[str], place: str, typed: str = "") -> None:
    """Run one command of ours, in this process."""
    before = sys.stdin
    sys.stdin = io.StringIO(typed)
    try:
        code = main(words if FULL else [*words, *smaller(words)])
    except SystemExit as end:  # --help
        code = int(end.code or 0)
    finally:
        sys.stdin = before
    assert code == 0, f"{place}: rl-reasoner {' '.join(words)} ends with {code}"


def smaller(words: list[str]) -> Iterator[str]:
    """The flags that make a command quick."""
    if words[0] == "eval" and "--replay" not in words:
        yield from ("--limit", "2", "--max-tokens", "8", "--samples")
        yield "2" if "--samples" in words else "1"
    if words[0] != "train" or "--resume" in words or "--help" in words:
        return
    flags = re.sub(r"--quiet|--(?:from|until) \S+", "", " ".join(words[2:]))
    recipe = load_recipe(words[1], flags.split())
    for stage in recipe.stages:
        for field, value in _FIELDS.items():
            if _has(stage, field):
                yield from (f"--{stage.name}.{field}", str(value))
    if _has(recipe, "data.count"):
        yield from ("--data.count", "16")
    yield from ("--evals.limit", "2", "--evals.max_tokens", "8")
    yield from ("--evals.samples", str(min(recipe.evals.samples, 1)))


def _has(part: Any, field: str) -> bool:
    for name in field.split("."):
        if not hasattr(part, name):
            return False
        part = getattr(part, name)
    return True


def _globbed(words: list[str]) -> Iterator[str]:
    """Arguments as a shell gives them: a pattern becomes the paths that it matches."""
    for word in words:
        is_pattern = word.endswith("*") and "/" in word
        yield from (sorted(map(str, Path().glob(word))) or [word]) if is_pattern else [word]


def _lines(text: str) -> Iterator[str]:
    """Commands without their comments, continued lines joined."""
    for line in text.replace("\\\n", " ").splitlines():
        command = re.split(r"(?:^|\s)#\s", line, maxsplit=1)[0].strip()
        if command:
            yield command


def _target(name: str, place: str) -> Iterator[list[str]]:
    """The commands of ours that `make NAME` trains with; those of other targets are not tried."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(name)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    assert found, f"{place}: there is no make target {name}"
    for command in re.findall(r"^\t\$\(RUN\) (train [^$;|]+)$", found[1], re.MULTILINE):
        yield shlex.split(command)


def _check_extras(words: list[str], place: str) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in re.findall(r"\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{name} = \[", project, re.MULTILINE), f"{place}: no extra {name}"


def run_shell(command: list[str], place: Path) -> str:
    """A command in a process of its own; gives its output, fails with its error."""
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stderr[-2000:])
    return done.stdout
