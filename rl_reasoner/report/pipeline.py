"""A pipeline on one section: what each stage started from, took, and came to.

For runs that were evaluated after every stage (`evals.stages`): accuracy with its interval by stage
and set, what each gain is, lengths over training, share of thinking, reflection words, languages
mixed in chains of thought, time and tokens. `text_table` is the same for a terminal. All from the
saved evaluations; knows nothing of torch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_reasoner.evaluation.formatting import duration, percent, short_number, span
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.evaluation.metrics import accuracy_interval
from rl_reasoner.foreign import json_value, mapping, number
from rl_reasoner.language.identification import language_share
from rl_reasoner.language.thinking import chain_of
from rl_reasoner.report import charts
from rl_reasoner.report.charts import Bar, Trace
from rl_reasoner.report.gain import THINKING_RISE, moved
from rl_reasoner.report.html import Child, Element, estimate, h, note, section, table
from rl_reasoner.report.run_data import Evaluation, RunData, SetResult, StageRecord
from rl_reasoner.report.stages import figures

# Words by which a chain of thought takes back or checks what it has said; R1's paper counts such
# words over training (arXiv 2501.12948, supplement).
_REFLECTION = re.compile(
    r"\b(?:wait|hmm|actually|however|verify|recheck|re-?check|double-?check|check again|"
    r"let me check|mistake|alternatively|reconsider)\b|等等|不对|检查|验证|重新|错了|再想",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Habits:
    """How completions of one evaluated set were written, and how that goes with being right.

    Shares are of 1; None where there is nothing to take them of.
    """

    thinking: float  # completions with a chain of thought
    with_chain: SetResult | None  # those alone
    mixed: float | None  # chains with words of more than one language
    reflection: float | None  # chains with a reflection word


@dataclass(frozen=True)
class Reached:
    """What a stage came to: its figures by set, sampled where it was sampled."""

    name: str
    start: str | None
    sets: Mapping[str, SetResult]
    habits: Mapping[str, Habits]


def habits_of(rows: Sequence[Mapping[str, Any]]) -> Habits:
    """The habits in the saved rows of one set."""
    count = thinking = chains_with_words = mixed = reflecting = 0
    shares = []
    for row in rows:
        right = []
        for text, score in zip(row.get("completions", []), row.get("scores", []), strict=False):
            count += 1
            chain = chain_of(str(text))
            if not chain:
                continue
            thinking += 1
            right.append(score == 1.0)
            words = language_share(chain, "en").words
            chains_with_words += bool(words)
            mixed += len(words) > 1
            reflecting += bool(_REFLECTION.search(chain))
        if right:
            shares.append(sum(right) / len(right))
    with_chain = None
    if shares:
        mean = sum(shares) / len(shares)
        with_chain = SetResult(mean, accuracy_interval(shares), len(shares))
    return Habits(
        thinking=thinking / count if count else 0.0,
        with_chain=with_chain,
        mixed=mixed / chains_with_words if chains_with_words else None,
        reflection=reflecting / thinking if thinking else None,
    )


def reached(run: RunData) -> list[Reached]:
    """What each evaluated stage came to, in the recipe's order; empty where none was evaluated."""
    evals = {e.name: e for e in run.evals}
    stages = [_reached("base", None, evals["base"])] if "base" in evals else []
    for name, start in _starts(run).items():
        if name in evals:
            known = start if start in evals else None
            stages.append(_reached(name, known, evals[name]))
    return stages


def _starts(run: RunData) -> dict[str, str | None]:
    """The stage (or "base") whose policy each stage starts from; None for a policy of its own."""
    starts: dict[str, str | None] = {}
    before = "base"
    for stage in run.stage_settings:
        name = str(stage.get("name"))
        starts[name] = None if stage.get("policy") else str(stage.get("start") or before)
        if stage.get("kind") not in ("sample", "filter"):
            before = name
    return starts


def _reached(name: str, start: str | None, evaluation: Evaluation) -> Reached:
    sampled = {split_label(n)[0] for n in evaluation.sets if split_label(n)[1] == "sampled"}
    chosen = {
        base: n
        for n in evaluation.sets
        for base, mode in [split_label(n)]
        if mode == ("sampled" if base in sampled else "")
    }
    sets = {base: evaluation.sets[n] for base, n in chosen.items()}
    habits = {base: habits_of(evaluation.rows.get(n, [])) for base, n in chosen.items()}
    return Reached(name, start, sets, habits)


# ------------------------------------------------------------------------------------- gains


def gain(before: Reached, after: Reached, name: str) -> str:
    """What the change on the set `name` is, in a sentence that its figures support."""
    a, b = before.sets[name], after.sets[name]
    way = f"{name}: {percent(a.accuracy)} to {percent(b.accuracy)}"
    move = moved(a, b)
    if move not in ("rose", "fell"):
        return f"{way}: intervals overlap"
    rose = move == "rose"
    plainly = _possible(a) if rose else "fell, with intervals apart"
    first, last = before.habits[name], after.habits[name]
    if first.with_chain is None or last.with_chain is None:
        return f"{way}: {plainly}"
    chains = f"with a chain {percent(first.with_chain.accuracy)} to "
    chains += percent(last.with_chain.accuracy)
    thinking = f"thinks first {percent(first.thinking)} to {percent(last.thinking)}"
    changed = last.thinking - first.thinking
    oftener = (changed if rose else -changed) >= THINKING_RISE
    more, better = ("more often", "better") if rose else ("less often", "worse")
    if moved(first.with_chain, last.with_chain) == move:
        if oftener:
            return f"{way}: thinks {more} and {better} ({thinking}; {chains})"
        return f"{way}: its chains are right {more} ({chains}); {plainly}"
    if not oftener:  # a task that is answered without chains, but for stray ones
        return f"{way}: {plainly}"
    if rose:
        return f"{way}: a behaviour was selected ({thinking}), no skill added ({chains})"
    return f"{way}: a behaviour is used less ({thinking}), no skill lost ({chains})"


def _possible(before: SetResult) -> str:
    """Say whether what is likely now was possible before."""
    if len(before.pass_at) < 2:
        return "rose, with intervals apart"
    k = max(before.pass_at)
    most = percent(before.pass_at[k])
    return f"rose, with intervals apart; pass@{k} was {most} before: the possible became likely"


# ----------------------------------------------------------------------------------- the page


def pipeline_section(run: RunData) -> Element | None:
    """The section; None for a run that was not evaluated after its stages."""
    stages = reached(run)
    if len(stages) < 2:
        return None
    names = list(dict.fromkeys(name for each in stages for name in each.sets))
    groups = [
        (n, [Bar(e.name, e.sets[n].accuracy, e.sets[n].interval) for e in stages if n in e.sets])
        for n in names
    ]
    drawings = [charts.bars("Accuracy after each stage", groups, note="lines are 95% intervals")]
    if lengths := list(_lengths(run)):
        measured = "mean tokens of a completion, stages one after the other"
        drawings.append(charts.curve("Length over training", lengths, note=measured))
    by_name = {each.name: each for each in stages}
    gains = [
        h("li", h("b", f"{each.name} (from {each.start}) "), "; ".join(words))
        for each in stages
        if each.start in by_name
        and (first := by_name[str(each.start)])
        and (words := [gain(first, each, n) for n in names if n in each.sets and n in first.sets])
    ]
    return section(
        "pipeline",
        "The pipeline",
        figures(drawings, "pipeline"),
        _table(run, stages, names),
        h("h3", "What each gain is"),
        h("ul", gains),
        *_samples(run),
    )


def _lengths(run: RunData) -> Iterator[Trace]:
    """The length of completions in each stage that samples, over the steps of all of them."""
    before = 0
    for stage in run.stages:
        steps, values = stage.series("completions/mean_length")
        if values:
            yield Trace(stage.name, [before + step for step in steps], values)
            before += steps[-1]


def _table(run: RunData, stages: Sequence[Reached], names: Sequence[str]) -> Element:
    head = ["Stage", "From", "Kind", "Steps", "Time", "Tokens", *names]
    head += ["Thinks first", "Languages mixed", "Reflection words"]
    by_name = {each.name: each for each in stages}
    kinds = {str(stage.get("name")): str(stage.get("kind")) for stage in run.stage_settings}
    starts = _starts(run)
    rows: list[list[Child]] = []
    for stage in run.stages:
        each = by_name.get(stage.name)
        facts = _cost(run.folder, stage)
        start = starts.get(stage.name)
        known = start in by_name or start in starts
        cells: list[Child] = [stage.name, start if known else "–"]
        cells += [kinds.get(stage.name, "–"), *facts]
        for name in names:
            result = each.sets.get(name) if each else None
            cells.append(estimate(result.accuracy, result.interval) if result else "–")
        cells += _habits(each)
        rows.append(cells)
    return table(head, rows, numeric_from=3)


def _cost(folder: Path, stage: StageRecord) -> list[Child]:
    """Steps, time and tokens of a stage, as far as they are known."""
    done = _json(folder / "stages" / stage.folder / "done.json")
    seconds = number(done.get("seconds")) or stage.seconds()
    steps = f"{stage.metrics[-1]['step']:,}" if stage.metrics else "–"
    _, tokens = stage.series("num_tokens")
    took = duration(seconds) if seconds else "–"
    return [steps, took, short_number(tokens[-1] if tokens else None)]


def _habits(each: Reached | None) -> list[Child]:
    """Shares over the sets in which completions think."""
    with_chains = [habit for habit in each.habits.values() if habit.thinking] if each else []
    if not with_chains:
        return ["–", "–", "–"]
    first = with_chains[0]
    return [percent(first.thinking), percent(first.mixed), percent(first.reflection)]


def _samples(run: RunData) -> Iterator[Element]:
    """What rejection sampling kept and left out."""
    for stage in run.stages:
        card = stage.card
        if "left_out" not in card:
            continue
        left = ", ".join(f"{why}: {n:,}" for why, n in mapping(card.get("left_out")).items())
        yield h("h3", f"Samples: {stage.name}")
        rows, sampled = (number(card.get(name)) or 0 for name in ("rows", "sampled"))
        counts = f"{rows:,.0f} rows of {sampled:,.0f} sampled completions"
        yield note(f"{counts}. Left out: {left or 'none'}.")


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return mapping(json_value(file.read_bytes()))
    except (OSError, ValueError):
        return {}


# -------------------------------------------------------------------------------- the terminal


def text_table(run: RunData) -> str:
    """The table of accuracies and what each gain is, as text."""
    stages = reached(run)
    names = list(dict.fromkeys(name for each in stages for name in each.sets))
    cells = [["stage", "from", *names, "thinks", "mixed"]]
    for each in stages:
        row = [each.name, each.start or "–"]
        for name in names:
            result = each.sets.get(name)
            row.append(f"{percent(result.accuracy)} {span(result.interval)}" if result else "–")
        cells.append([*row, *map(str, _habits(each)[:2])])
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    by_name = {each.name: each for each in stages}
    for each in stages:
        if each.start in by_name:
            before = by_name[str(each.start)]
            words = [gain(before, each, n) for n in names if n in each.sets and n in before.sets]
            lines.append(f"\n{each.name}, from {each.start}:")
            lines += [f"  {sentence}" for sentence in words]
    return "\n".join(lines)
