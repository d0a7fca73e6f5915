"""The verb `compare`: two saved evaluations, paired by problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.text import Text
from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import File, Json, Quiet, check_writable
from rl_reasoner.cli.progress import told_if_long
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.formatting import (
    NAME_WIDTH,
    p_value,
    percent,
    points,
    points_span,
    with_name,
)
from rl_reasoner.report.console import emit, err, wrapped

if TYPE_CHECKING:
    from rl_reasoner.evaluation.result import EvalResult

_FLIPS_SHOWN = 3
_LONGEST = 160  # characters of a problem or a reason
_LEGEND = (
    "differences in points, paired by problem; p: McNemar's exact test, or sign flips",
    "for several completions; (Holm): corrected for the number of sets",
)


@dataclass
class CompareVerb:
    """Compare two saved evaluations, paired by problem."""

    a: Positional[Annotated[Path, arg(metavar="A")]]
    """the first result (JSON of eval --out, or of a run's evals/)"""
    b: Positional[Annotated[Path, arg(metavar="B")]]
    """the second one"""
    out: File = None
    """write a page (HTML) with both results and the rows that flipped here"""
    quiet: Quiet = False
    json: Json = False

    def run(self) -> None:
        """Print the differences b - a."""
        from rl_reasoner.evaluation.comparison import sentence_of, unlike
        from rl_reasoner.evaluation.result import EvalResult, compare

        target = check_writable(self.out) if self.out is not None else None
        if target is not None and target.resolve() in (self.a.resolve(), self.b.resolve()):
            raise UserError(
                f"--out {target} is one of the results: give another name for the page (HTML)"
            )
        if target is not None and target.suffix in (".json", ".jsonl"):  # rows of a result, say
            raise UserError(f"--out {target}: the page is HTML: give a name that ends in .html")
        with told_if_long("comparing problem by problem"):
            results = {path: EvalResult.load(path) for path in (self.a, self.b)}
            comparison = compare(results[self.a], results[self.b])
        if target is not None:
            from rl_reasoner.report import write_evaluation

            write_evaluation([self.a, self.b], target)
        if self.json:
            emit(True, comparison, None)
            return
        emit(False, comparison, comparison_table(comparison))
        for warning in unlike(comparison):
            err.print(warning, style="yellow", soft_wrap=True)
        for path in _without_lenient(results):
            err.print(
                f"{path} was saved before there were lenient figures; they are added, without "
                f"a model, by: rl-reasoner eval --replay {path} --out NEW.json",
                soft_wrap=True,
            )
        for name, entry in comparison.items():
            _print_flips(name, entry["flips"], entry["better"], entry["worse"])
        sentences = map(sentence_of, comparison, comparison.values())
        emit(False, comparison, "\n" + "\n".join(map(wrapped, sentences)))


def _without_lenient(results: Mapping[Path, "EvalResult"]) -> list[Path]:
    """The results of which a set lacks lenient figures that another result has."""
    having = {name for r in results.values() for name, s in r.sets.items() if "lenient" in s}
    return [
        path
        for path, result in results.items()
        if any(name in having and "lenient" not in s for name, s in result.sets.items())
    ]


def comparison_table(comparison: Mapping[str, Mapping[str, Any]]) -> str:
    """The differences as a text table of at most 80 columns, with its legend."""
    lines = [_line("set", "problems", "b - a", "95% interval", "p", "p (Holm)")]
    for name, entry in comparison.items():
        lines += with_name(name, _line("", f"{entry['problems']:,}", *_tested(entry)))
        if "lenient" in entry:
            lines.append(_line("  lenient", "", *_tested(entry["lenient"])))
        if "pass_at_k" in entry:
            passes = entry["pass_at_k"]
            lines.append(_line(f"  pass@{passes['k']}", "", *_tested(passes)))
    return "\n".join([*lines, *_LEGEND])


def _line(name: str, problems: str, *cells: str) -> str:
    difference, span, p, holm = cells
    return f"{name:{NAME_WIDTH}} {problems:>8} {difference:>7}  {span:16} {p:>8} {holm:>8}"


def _tested(entry: Mapping[str, Any]) -> list[str]:
    """The cells of a difference with its test."""
    low, high = entry["interval"]
    p_values = [p_value(entry[key]) for key in ("p", "p_holm")]
    return [points(entry["difference"]), points_span((low, high)), *p_values]


def _print_flips(name: str, flips: Sequence[Mapping[str, Any]], better: int, worse: int) -> None:
    """The first of the rows that flipped, with both reasons; `flips` may not be all of them."""
    if not flips:
        return
    shown = flips[:_FLIPS_SHOWN]
    what = f"{better:,} problems are answered better in b, {worse:,} worse"
    err.print(Text(f"\n{name}\n{what}", style="bold"), soft_wrap=True)
    for flip in shown:
        a, b = (f"{percent(flip[side]['share'], 0)} right" for side in ("a", "b"))
        label = flip["id"] or f"row {flip['row']}"
        problem = f"{label}, {a} in a, {b} in b: {_one_line(flip['problem'])}"
        err.print(Text(wrapped(problem, "    ", "  ")), soft_wrap=True)
        for side in ("a", "b"):
            if reason := str(flip[side].get("reason", "")):
                words = wrapped(f"{side}: {_one_line(reason)}", "       ", "    ")
                err.print(Text(words, style="dim"), soft_wrap=True)
    if len(shown) < better + worse:
        more = f"the first {len(flips)} of all" if len(flips) < better + worse else "all"
        rest = better + worse - len(shown)
        err.print(f"  {rest:,} more; --json and --out FILE.html have {more}", style="dim")


def _one_line(text: str) -> str:
    """A text of a problem or a reason in a line, its end left out where it is long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _LONGEST else f"{flat[: _LONGEST - 1]}…"
