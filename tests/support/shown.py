"""What documents show of commands' output: held against what was printed, and brought up to date.

A `text` block behind a block of `sh` shows output. … stands for lines, or parts of one, that are
left out; a block whose only … is its last line shows the beginning. In a run at full size the
block is written anew, with the same lines left out, and `measured.json` keeps the processor time
and every figure that was printed; tiny runs have other figures, so there only the block's first
line is looked for, without them.
"""

import json
import platform
import re
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from support.places import ROOT

MEASURED = ROOT / "docs/tutorials/measured.json"
MORE = "…"
_FIGURE = re.compile(r"(?:(?<!\w)[+−-])?(?<![\w@.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
_PROGRESS = re.compile(r"\[\d+/\d+ ")  # of a stage: figures of single steps


def shape(line: str) -> str:
    """A line without its figures and its spacing; the k of pass@k is part of a name."""
    return " ".join(_FIGURE.sub("#", line).split()).replace("< #", "#")


def is_beginning(shown: str) -> bool:
    """Whether a block shows the beginning of an output, and … for the rest."""
    return MORE not in shown.rstrip()[:-1] and shown.rstrip().endswith(MORE)


def is_shown(printed: str, shown: str) -> bool:
    """Whether something of the kind of the block's first line was printed."""
    lines, first = printed.splitlines(), shown.splitlines()[0]
    if is_beginning(shown):
        return any(line.split()[:1] == first.split()[:1] for line in lines if line.strip())
    return any(_like(line, first) for line in lines)


def brought_up_to_date(printed: str, shown: str) -> str:
    """The block with the figures that were printed. Raises `LookupError` for a line that was not.

    Each line is looked for behind the one before; where it is not there, in all of the output.
    """
    lines = printed.splitlines()
    if is_beginning(shown):
        wanted = shown.splitlines()[0].split()[0]
        at = next(n for n, line in enumerate(lines) if line.split()[:1] == [wanted])
        kept = lines[at : at + len(shown.splitlines()) - 1]
        return "\n".join([*(line.rstrip() for line in kept), MORE]) + "\n"
    new, at = [], 0
    for line in shown.splitlines():
        if line.strip() in ("", MORE):
            new.append(line)
            continue
        found = [n for n, other in enumerate(lines) if _like(other, line)]
        if not found:
            raise LookupError(f"not printed: {line}")
        at = next((n for n in found if n >= at), found[0])
        new.append(_filled(lines[at], line))
        at += 1
    return "\n".join(new) + "\n"


def _like(printed: str, shown: str) -> bool:
    pattern = re.escape(shape(shown)).replace(re.escape(MORE), ".*")
    return re.fullmatch(pattern, shape(printed)) is not None


def _filled(printed: str, shown: str) -> str:
    """The printed line, cut where the shown one is."""
    if MORE not in shown:
        return printed.rstrip()
    figures = iter(_FIGURE.findall(printed))
    return _FIGURE.sub(lambda _: next(figures), shown)


def figures(text: str) -> set[str]:
    """The figures of a text: percentages, decimals and p-values, without sign."""
    found = re.findall(r"\d[\d,]*(?:\.\d+)?%|\d+\.\d+(?:e-\d+)?|\d+e-\d+", text)
    return {figure.rstrip("%") for figure in found}


def processor_seconds() -> float:
    """Seconds of processor time that this process and its finished children have used."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measured() -> dict[str, Any]:
    """What the last runs at full size gave, by document; empty where there was none."""
    return dict(json.loads(MEASURED.read_text(encoding="utf-8"))) if MEASURED.is_file() else {}


def keep_measured(document: str, seconds: float, printed: Iterable[str]) -> None:
    """Put one document's run at full size into `measured.json`."""
    lines = [line for text in printed for line in text.splitlines() if not _PROGRESS.match(line)]
    found = sorted(set().union(*map(figures, lines)))
    entry = {"processor_seconds": round(seconds), "machine": platform.machine(), "figures": found}
    text = json.dumps({**measured(), document: entry}, ensure_ascii=False, sort_keys=True)
    text = text.replace('}, "', '},\n"').replace('"figures"', '\n  "figures"')
    MEASURED.write_text(text + "\n", encoding="utf-8")


def rewrite(document: Path, blocks: Iterable[tuple[str, str]]) -> None:
    """Put new texts in the place of shown ones."""
    text = document.read_text(encoding="utf-8")
    for old, new in blocks:
        text = text.replace(f"```text\n{old}```", f"```text\n{new}```", 1)
    document.write_text(text, encoding="utf-8")
