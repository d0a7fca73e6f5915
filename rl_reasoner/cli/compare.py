"""The verb `compare`: two saved evaluations, paired by problem."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from rl_reasoner.cli.arguments import File, Json, Quiet, check_writable
from rl_reasoner.errors import UserError
from rl_reasoner.report.console import emit, err, new_table

if TYPE_CHECKING:
    from rl_reasoner.evaluation.result import EvalResult

_FLIPS_SHOWN = 10


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
        from rl_reasoner.evaluation.comparison import unlike
        from rl_reasoner.evaluation.result import EvalResult, compare

        target = check_writable(self.out) if self.out is not None else None
        if target is not None and target.resolve() in (self.a.resolve(), self.b.resolve()):
            raise UserError(
                f"--out {target} is one of the results: give another name for the page (HTML)"
            )
        results = {path: EvalResult.load(path) for path in (self.a, self.b)}
        comparison = compare(results[self.a], results[self.b])
        if target is not None:
            from rl_reasoner.report import write_evaluation

            write_evaluation([self.a, self.b], target)
        emit(self.json, comparison, _comparison_table(comparison))
        if not self.json:
            for warning in unlike(comparison):
                err.print(warning, style="yellow", soft_wrap=True)
            for path in _without_lenient(results):
                err.print(
                    f"{path} was saved before there were lenient figures; they are added, without "
                    f"a model, by: rl-reasoner eval --replay {path} --out NEW.json",
                    soft_wrap=True,
                )
            for name, entry in comparison.items():
                if "form" in entry:
                    err.print(f"{name}: {entry['form']['words']}", soft_wrap=True)
                _print_flips(name, entry["flips"], entry["better"] + entry["worse"])


def _without_lenient(results: Mapping[Path, "EvalResult"]) -> list[Path]:
    """The results of which a set lacks lenient figures that another result has."""
    having = {name for r in results.values() for name, s in r.sets.items() if "lenient" in s}
    return [
        path
        for path, result in results.items()
        if any(name in having and "lenient" not in s for name, s in result.sets.items())
    ]


def _comparison_table(comparison: Mapping[str, Mapping[str, Any]]) -> Any:
    heads = ["set", "problems", "difference", "95% interval", "p", "p (Holm)", "detectable", "test"]
    table = new_table(*heads)
    for name, entry in comparison.items():
        table.add_row(name, str(entry["problems"]), *_tested(entry))
        if "lenient" in entry:
            table.add_row("  lenient", "", *_tested(entry["lenient"]))
    return table


def _tested(entry: Mapping[str, Any]) -> list[str]:
    """The cells of a difference with its test."""
    low, high = entry["interval"]
    counts = f" ({entry['only_a']} only a, {entry['only_b']} only b)" if "only_a" in entry else ""
    return [
        f"{entry['difference']:+.1%}",
        f"[{low:+.1%}, {high:+.1%}]",
        f"{entry['p']:.2g}",
        f"{entry['p_holm']:.2g}",
        f"±{entry['detectable']:.1%}",
        entry["test"] + counts,
    ]


def _print_flips(name: str, flips: Sequence[Mapping[str, Any]], of: int) -> None:
    """The first of the rows that flipped, `of` so many; `flips` may not be all of them."""
    if not flips:
        return
    table = new_table("row", "problem", "a", "b", "reason of a", "reason of b")
    table.title = f"{name}: rows that flipped"
    for flip in flips[:_FLIPS_SHOWN]:
        reasons = [str(flip[side].get("reason", ""))[:100] for side in ("a", "b")]
        shares = [f"{flip[side]['share']:.0%}" for side in ("a", "b")]
        table.add_row(str(flip["id"] or flip["row"]), flip["problem"][:80], *shares, *reasons)
    if of > _FLIPS_SHOWN:
        more = f"the first {len(flips)} of all {of:,} are in" if len(flips) < of else "see"
        table.caption = f"{of - _FLIPS_SHOWN:,} more: {more} --json and --out"
    err.print(table)
