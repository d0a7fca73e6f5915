"""The result of an evaluation: its figures as a table, saved and loaded again, and two compared.

`RESULT.json` has the figures and the first rows of each set, `RESULT.rows.jsonl` next to it every
row. Knows nothing of policies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_reasoner.dataset.sets import read_rows
from rl_reasoner.errors import UserError, first_line
from rl_reasoner.evaluation.comparison import Comparison, compare_rows, unlike_columns
from rl_reasoner.evaluation.formatting import NAME_WIDTH, bracketed, percent, with_name
from rl_reasoner.evaluation.judging import malformed
from rl_reasoner.evaluation.labels import CLEAN, split_label
from rl_reasoner.evaluation.notebook import result_html
from rl_reasoner.files import as_json, as_jsonl, write_together
from rl_reasoner.foreign import json_value, mapping, number

_CODE = "code of the reward"  # as `compare` tells it
_SHOWN = 8  # rows of each set kept in the result's JSON, to look at


@dataclass(repr=False)
class EvalResult:
    """Figures of one policy on several sets.

    `sets`: set (with mode suffix) -> problems, samples, accuracy, interval, truncated, …; `rows`:
    set -> every row with its completions, scores and reasons; `manifest`: what it was measured
    with.
    """

    policy: str
    name: str = "eval"
    settings: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        accuracies = {name: round(figures["accuracy"], 4) for name, figures in self.sets.items()}
        return f"EvalResult({self.name!r}, policy={self.policy!r}, accuracy={accuracies})"

    def _repr_html_(self) -> str:
        return result_html(self.name, self.policy, self.sets)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON values, with the first few rows of each set."""
        shown = {name: rows[:_SHOWN] for name, rows in self.rows.items()}
        return {**self.__dict__, "rows": shown}

    def save(self, path: Path | str) -> Path:
        """Write the result to `path`, and every row to the file of the same name `.rows.jsonl`."""
        path = Path(path)
        rows = [{**row, "set": name} for name, rows in self.rows.items() for row in rows]
        every = sibling_file(path, ".rows.jsonl")
        write_together({every: as_jsonl(rows), path: as_json(self.to_json())})
        return path

    @classmethod
    def load(cls, path: Path | str) -> "EvalResult":
        """Read a saved result, with every row. Raises `UserError` if it is not one."""
        path = Path(path)
        if path.is_dir():
            evals = path / "evals" if (path / "evals").is_dir() else path
            raise UserError(f"{path} is a folder: give a file of {evals}/")
        if not path.is_file():
            raise UserError(f"there is no file {path}: give one that rl-reasoner eval has written")
        try:
            data = json_value(path.read_bytes())
            result = cls(**{**data, "rows": {}})
            result.table()
            for name in ("settings", "manifest"):
                if not isinstance(getattr(result, name), dict):
                    raise ValueError(f"its {name} are not a mapping")
            for name in ("policy", "name"):
                if not isinstance(getattr(result, name), str):
                    raise ValueError(f"its {name} is not a text")
            for name, figures in result.sets.items():
                _check_figures(name, figures)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            why = f" ({first_line(error)})" if isinstance(error, (OSError, ValueError)) else ""
            raise UserError(
                f"{path} is not an evaluation result: give a JSON file that rl-reasoner eval --out "
                f"has written, or one of a run's evals/{why}"
            ) from error
        every = sibling_file(path, ".rows.jsonl")
        if every.is_file():
            result._read(every)
        return result

    def _read(self, every: Path) -> None:
        """Read the saved rows; raises `UserError` if they do not belong to the figures."""
        for line, row in enumerate(read_rows(str(every)), 1):
            name = row.pop("set", None)
            if not isinstance(name, str) or name not in self.sets:
                raise UserError(f"{every}, line {line}: the result has no set {name!r}")
            if wrong := malformed(row):
                raise UserError(f"{every}, line {line}: not a row of a result: {wrong}")
            self.rows.setdefault(name, []).append(row)
        for name, figures in self.sets.items():
            rows, count = self.rows.get(name, ()), figures["problems"]
            if len(rows) != count and not name.endswith(CLEAN):  # a part of another set
                raise UserError(f"{every} has {len(rows)} rows of {name}, the result {count}")

    def settings_of(self, name: str) -> dict[str, Any]:
        """The settings that the set with the label `name` has of its own, in each of its modes."""
        own = mapping(mapping(self.settings.get("asked")).get(split_label(name)[0]))
        return {key: value for key, value in own.items() if value is not None}

    def table(self) -> str:
        """The figures as a text table of at most 80 columns; a long name has a line to itself.

        One line a set with strict and lenient accuracy side by side (for sets of which answer and
        form are not two things, strict alone), one of what became of its completions where there is
        something to tell, one for each estimate at several k.
        """
        lines = [_line("set", "problems", "strict", "95% interval", "lenient", "95% interval")]
        notes = []
        for name, s in self.sets.items():
            notes += _notes(name, s)
            many = f"{s['problems']}x{s['samples']}" if s["samples"] > 1 else str(s["problems"])
            lines += with_name(name, _line("", many, *_estimate(s), *_estimate(s.get("lenient"))))
            lines += _became(s)
            for kind, title in (("pass_at", "pass"), ("maj_at", "maj")):
                spans = s.get(f"{kind}_interval", {})
                lines += [
                    _line(f"  {title}@{k}", "", percent(value), bracketed(spans.get(k)))
                    for k, value in s.get(kind, {}).items()
                    if k != "1"
                ]
        return "\n".join([*lines, *notes])


def _check_figures(name: str, s: Mapping[str, Any]) -> None:
    """Raise what `load` makes a mistake of, where figures of a set are not what a page shows."""
    groups = [group for values in s.get("by", {}).values() for group in values.values()]
    bins, lenient = s.get("by_length", []), s.get("lenient")
    estimates = [s, *groups, *bins, *([] if lenient is None else [lenient])]
    given = [value for each in estimates for value in (each["accuracy"], *_ends(each["interval"]))]
    given += [s["samples"], *(each["problems"] for each in (s, *groups))]
    given += [length for each in bins for length in _ends(each["tokens"])]
    for kind in ("pass_at", "maj_at"):
        curve, spans = s.get(kind, {}), s.get(f"{kind}_interval", {})
        given += [*map(int, curve), *curve.values()]
        given += [end for span in spans.values() for end in _ends(span)]
    given += s.get("contamination", {}).values()
    given += [value for key in _WHERE_KNOWN if (value := s.get(key)) is not None]
    if any(number(value) is None for value in given):
        raise ValueError(f"a figure of {name} is not a number")


_WHERE_KNOWN = ("truncated", "no_answer", "abstained", "faults", "thinking", "mean_length")


def _ends(span: Any) -> tuple[Any, Any]:
    """The two ends of an interval, or of a range; raises `ValueError` or `TypeError` for others."""
    low, high = span
    return low, high


def sibling_file(path: Path, suffix: str) -> Path:
    """The file that belongs to the result `path`: its name without `.json`, and `suffix`."""
    return path.with_name(path.name.removesuffix(".json") + suffix)


def _line(name: str, many: str, *cells: str) -> str:
    """A line of the table: strict accuracy and its interval, then the lenient ones."""
    strict, span, lenient, lenient_span = [*cells, "", ""][:4]
    start = f"{name:{NAME_WIDTH}} {many:>8} {strict:>6} {span:13}"
    return f"{start}  {lenient:>7} {lenient_span}".rstrip()


def _estimate(figures: Mapping[str, Any] | None) -> tuple[str, str]:
    """An accuracy and its interval; a dash for none."""
    return (
        ("–", "")
        if figures is None
        else (percent(figures["accuracy"]), bracketed(figures["interval"]))
    )


def _became(s: Mapping[str, Any]) -> list[str]:
    """The shares of completions that were cut off, had no answer or were not judged, if any."""
    shares = {"cut off": "truncated", "without an answer": "no_answer", "abstained": "abstained"}
    there = [f"{percent(s[key])} {title}" for title, key in shares.items() if s.get(key)]
    return [f"  {', '.join(there)}"] if there else []


def _notes(name: str, s: Mapping[str, Any]) -> list[str]:
    """What a reader must know of a set's figures before believing them."""
    notes = []
    if s.get("faults"):
        notes.append(
            f"{name}: the reward failed on {percent(s['faults'])} of the completions, which count "
            "as wrong; the reasons are in the rows (--out)"
        )
    if counts := s.get("contamination"):
        bad, of = counts["contaminated"], counts["rows"]
        rest = "none is left for @clean" if bad == of else f"{name}@clean has the rest"
        notes.append(
            f"{name}: {bad:,} of {of:,} problems are in the training data"
            + (f"; {rest}" if bad else "")
        )
    return notes


def compare(a: EvalResult, b: EvalResult) -> Comparison:
    """b against a, paired by problem, for every set that both have.

    A set's entry: `problems`, `difference` (b - a), its 95% `interval`, `test` (McNemar's exact one
    for one completion a problem, else sign flips), `p`, `p_holm` (adjusted for the number of sets),
    `detectable` (the least true difference that this many problems would show 4 times in 5; None
    for fewer than 6, which can show none), `flips` (rows whose verdict changed, with reasons),
    `unlike` (what else the two differ in: name -> their values); where both have lenient marks,
    `lenient` (the same test of these, its `p_holm` among the lenient ones) and `form`: the
    `difference` strict less lenient, its `interval`, the `share` of the strict difference that it
    is (None where the strict one is not clear of 0) and `words`; of several completions
    `pass_at_k`: the same test of pass@k at the largest `k` of both, its `p_holm` among those of
    pass@k. Rows that were found in the training data of either are left out under `SET@clean`.
    Raises `UserError` when no set is in both, or a common set has other problems or answers in the
    one than in the other.
    """
    for result in (a, b):
        if result.sets and not result.rows:
            raise UserError(f"{result.policy}: the result has no rows: is .rows.jsonl next to it?")
    entries = Comparison(compare_rows(a.rows, b.rows))
    for name, entry in entries.items():
        own = name.removesuffix(CLEAN)
        rows = [result.rows[name if name in result.rows else own] for result in (a, b)]
        entry["unlike"] = _unlike(own, a, b) | unlike_columns(*rows)
    return entries


def _unlike(name: str, a: EvalResult, b: EvalResult) -> dict[str, list[Any]]:
    """What two results on a set differ in, apart from the policy: a difference may be due to it."""
    x, y = _conditions(name, a), _conditions(name, b)
    if None in (x[_CODE], y[_CODE]):  # shipped, or of an earlier version, which did not keep it
        del x[_CODE], y[_CODE]
    return {key: [x.get(key), y.get(key)] for key in x | y if x.get(key) != y.get(key)}


def _conditions(name: str, result: EvalResult) -> dict[str, Any]:
    """What a set was measured with."""
    settings, figures, manifest = result.settings, result.sets.get(name, {}), result.manifest
    of_run = mapping(manifest.get("files"))  # hashes, also in results of earlier versions
    facts = mapping(mapping(manifest.get("sets")).get(split_label(name)[0]))  # the file's own
    code = facts.get("reward_sha256") or of_run.get(str(facts.get("reward")))
    asked = {
        **{key: settings.get(key) for key in ("max_tokens", "template", "system")},
        **result.settings_of(name),
        **{key: facts[key] for key in ("max_tokens", "template") if key in facts},
    }
    if asked["template"] == "auto" and (policy := mapping(manifest.get("policy"))):
        chats = "server" in policy or policy.get("chat_template_sha256")
        asked["template"] = "chat" if chats else "plain"
    return {
        **asked,
        **{key: figures.get(key) for key in ("temperature", "samples", "reward")},
        **{key: settings.get(key) for key in ("reward_options", "tools", "environment")},
        _CODE: str(code)[:8] if code else None,
        "weights": settings.get("weights", "own"),
        "verifier": manifest.get("replayed_with_verifier") or manifest.get("verifier"),
    }
