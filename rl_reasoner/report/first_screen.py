"""The first screen of a run's page: four questions, each answered in a card.

Did it get better (the paired test of the same problems, for accuracy and pass@k alike)? What was
the task (a problem, what was said before and after)? Was it skill, a habit or form? What did it
cost, and which policy is kept? What is not there (no evaluation, no rows) has no card. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence

from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.comparison import counterparts
from rl_reasoner.evaluation.formatting import (
    duration,
    p_value,
    percent,
    points,
    points_span,
    short_number,
    span,
)
from rl_reasoner.evaluation.labels import split_label
from rl_reasoner.evaluation.learning_alarms import Metrics
from rl_reasoner.foreign import mapping, number, printable
from rl_reasoner.recipe.locations import validate
from rl_reasoner.recipe.origin import two_models
from rl_reasoner.report.controls import headline_of, read_controls
from rl_reasoner.report.gain import (
    Figures,
    at,
    at_both,
    explain_cause,
    explain_gain,
    moved,
)
from rl_reasoner.report.hacking import hacking_alarms_of
from rl_reasoner.report.html import Child, Element, h, note
from rl_reasoner.report.rollouts import cut
from rl_reasoner.report.run_data import Evaluation, RunData, SetResult, StageRecord, title_in
from rl_reasoner.report.stages import learning_alarms_of

_MODES = ("", "chain-forced", "direct-forced", "sampled")
_STAGES_NAMED = 3
_PACE = 10  # steps whose time tells how long the next ones take
_EXAMPLE = 320  # characters of a problem or a completion
_MEANINGS = {
    "leniently": "Lenient: the answer counts wherever a person reads it.",
    "chain forced": "Chain forced: every completion is made to think before it answers.",
}
_MOVED = {
    "rose": ("better", "chip good"),
    "fell": ("worse", "chip bad"),
    "within": ("no change shown", "chip"),
    "unsettled": ("not settled", "chip"),
}


def first_screen(run: RunData) -> Element:
    """The head of the page: name, policy, the four cards, warnings."""
    warnings = [
        f"Stage {stage.name}: {text}" for stage in run.stages for text in learning_alarms_of(stage)
    ]
    warnings += [f"Stage {s.name}: {text}" for s in run.stages for text in hacking_alarms_of(s)]
    if run.unreadable:
        warnings.append(f"Could not be read in full: {', '.join(run.unreadable)}.")
    cards = [_better(run), _task(run), _cause_card(run), _cost(run)]
    return h(
        "header",
        h("p", "Run report", class_="eyebrow"),
        h("h1", run.name),
        h("p", _policy_line(run), class_="lead"),
        h("div", [card for card in cards if card is not None], class_="hero"),
        [h("p", text, class_="warning") for text in warnings],
    )


def ends_of(run: RunData) -> tuple[Mapping[str, SetResult], Mapping[str, SetResult]]:
    """The figures before and after, empty where there are none."""
    sets = {e.name: e.sets for e in run.evals}
    return sets.get("before", {}), sets.get("after", {})


def other_models(run: RunData) -> str:
    """What is to be said where the ends are two models, whose difference is no gain; else ""."""
    if not all(ends_of(run)):
        return ""
    try:
        return two_models(validate(run.recipe, {}, str(run.folder / "recipe.yaml")))
    except UserError:  # of another version, or damaged: see `RunData.unreadable`
        return ""


def by_mode(sets: Mapping[str, SetResult], base: str) -> Figures:
    """The figures of the set `base` by mode, "" first."""
    modes = {split_label(n)[1]: result for n, result in sets.items() if split_label(n)[0] == base}
    order = [m for m in _MODES if m in modes] + [m for m in modes if m not in _MODES]
    return {mode: modes[mode] for mode in order}


def cause_of(run: RunData) -> str:
    """What lies between the two evaluations: a run evaluates before its first GRPO stage."""
    kinds = [settings.get("kind") for settings in run.stage_settings]
    between = kinds[kinds.index("grpo") :] if "grpo" in kinds else []
    return "GRPO" if set(between) == {"grpo"} else "Training"


def gains(run: RunData) -> Iterator[tuple[str, str]]:
    """(set, in words what became of its accuracy) of each set that was evaluated at both ends."""
    before, after = ends_of(run)
    others = other_models(run)
    for base in dict.fromkeys(split_label(name)[0] for name in after):
        sides = by_mode(before, base), by_mode(after, base)
        if sentences := explain_gain(*sides, by=cause_of(run)):
            yield base, others or " ".join(sentences)


def move_chip(before: SetResult | None, after: SetResult | None) -> Element | None:
    """Whether a figure moved, in a word or two; None where that cannot be said."""
    if before is None or after is None or (move := moved(before, after)) == "unknown":
        return None
    words, look = _MOVED[move]
    return h("span", words, class_=look)


def _main_set(run: RunData) -> str | None:
    """The first set evaluated as it is (no mode), of those after training when there are any."""
    before, after = ends_of(run)
    return next((name for name in (*after, *before) if not split_label(name)[1]), None)


def _policy_line(run: RunData) -> str:
    facts = mapping(run.lock.get("policy"))
    parts = [_policy_name(run)]
    total, active = number(facts.get("parameters")), number(facts.get("active_parameters"))
    if total is not None:
        parts.append(f"{short_number(total)} parameters")
    if active is not None and active != total:
        parts.append(f"{short_number(active)} active per token")
    return " · ".join(part for part in parts if part)


def _policy_name(run: RunData) -> str:
    source = run.recipe.get("policy")
    if isinstance(source, dict):
        source = source.get("source")
    name = str(source or next((e.policy for e in run.evals), ""))
    return name.rpartition("/")[2] if name.endswith((".gguf", "/policy")) else name


def _card(question: str, *children: Child, look: str = "card") -> Element:
    return h("div", h("h2", question, class_="question"), *children, class_=look)


# --- did it get better


def _better(run: RunData) -> Element | None:
    name = _main_set(run)
    if name is None:
        return None
    before, after = (sets.get(name) for sets in ends_of(run))
    shown = [(label, r) for label, r in (("before", before), ("after", after)) if r is not None]
    numbers: list[Child] = []
    for label, result in shown:
        if numbers:
            numbers.append(h("span", "→", class_="arrow", aria_label="to"))
        figure = h("span", percent(result.accuracy), class_="big")
        under = h("span", f"{label} · {span(result.interval)}".rstrip(" ·"), class_="under")
        numbers.append(h("span", figure, under, class_=f"value {label}"))
    last, others = shown[-1][1], other_models(run)
    question = "Did it get better?" if len(shown) == 2 else "How good is it?"
    greedy = "greedy " if last.temperature == 0 else ""
    measures = list(_measures(*(by_mode(sets, name) for sets in ends_of(run))))
    return _card(
        "How do two models compare?" if others else question,
        h("p", others, class_="warning") if others else None,
        h("p", f"{title_in(run, name)} · {greedy}accuracy", class_="label"),
        h("p", *numbers, class_="numbers"),
        h("ul", [_measure(*each) for each in measures], class_="measures") if measures else None,
        [*_losses(run, name)],
        [h("p", line, class_="under") for line in headline_of(read_controls(run.folder), name)],
        note(_how(last, after)),
        look="card headline",
    )


def _losses(run: RunData, shown: str) -> Iterator[Element]:
    """A line for each figure of the sets but `shown` that fell: a loss is not left to be found."""
    before, after = ends_of(run)
    for base in dict.fromkeys(split_label(name)[0] for name in after):
        sides = by_mode(before, base), by_mode(after, base)
        for name, a, b in _measures(*sides) if base != shown else ():
            if moved(a, b) == "fell":
                way = f"{percent(a.accuracy)} → {percent(b.accuracy)}, {_change(a, b)} "
                yield h(
                    "p", f"{title_in(run, base)}, {name}: {way}", move_chip(a, b), class_="under"
                )


def _measures(before: Figures, after: Figures) -> Iterator[tuple[str, SetResult, SetResult]]:
    """Each figure that both ends have: as (name, before, after), those of one set."""
    for mode, name in (("", "greedy"), ("sampled", "sampled")):
        if mode not in before or mode not in after:
            continue
        a, b = before[mode], after[mode]
        yield name if mode or b.temperature == 0 else "accuracy", a, b
        if not mode and a.lenient is not None and b.lenient is not None:
            yield "lenient", a.lenient, b.lenient
        if len(ks := at_both(a, b)) > 1:
            yield f"pass@{ks[-1]}", at(a, ks[-1]), at(b, ks[-1])


def _measure(name: str, before: SetResult, after: SetResult) -> Element:
    """One line: the ends, the change in points with its interval, p after Holm's correction."""
    way = f"{percent(before.accuracy)} → {percent(after.accuracy)}"
    words = _change(before, after)
    if after.paired is not None:
        words += f", p {p_value(after.paired.adjusted)}"
    parts = [h("b", name), h("span", way), h("span", words, class_="under")]
    return h("li", parts, move_chip(before, after))


def _change(before: SetResult, after: SetResult) -> str:
    """The change in points, with its interval where there is a paired test."""
    if (test := after.paired) is None:
        return points(after.accuracy - before.accuracy)
    return f"{points(test.difference)} {points_span(test.interval)}"


def _how(last: SetResult, after: SetResult | None) -> str:
    """What the intervals and tests of the card are."""
    kind = "Wilson 95% intervals" if last.samples == 1 else "95% intervals"
    problems = "" if last.problems is None else f"{last.problems:,} problems"
    words = ", ".join(part for part in (problems, kind if last.interval else "") if part)
    if after is None or after.paired is None:
        return words
    tests = after.paired.tests
    holm = f", after Holm's correction for {tests} tests" if tests > 1 else ""
    return f"{words}. Changes: in points, paired on the same problems; p{holm}."


# --- what was the task


def _task(run: RunData) -> Element | None:
    name = _main_set(run)
    ends = {e.name: e for e in run.evals if e.name in ("before", "after")}
    if name is None or not ends:
        return None
    last = ends.get("after") or ends["before"]
    pairs = _pairs(ends.get("before") if last.name == "after" else None, last, name)
    if not pairs:
        return None
    wanted = _telling(last.sets.get(name))
    first, row = next((pair for pair in pairs if _flip(*pair) == wanted), pairs[0])
    answer = printable(str(row.get("answer") or ""))
    said = [_said("before", first)] if first else []
    question = "What was the task?" if "after" in ends else "What is the task?"
    return _card(
        question,
        h("p", "A problem of the test set" + _flipped_words(_flip(first, row)), class_="label"),
        h("pre", _short(row.get("problem")), class_="example"),
        h("p", "Right answer: ", h("b", _short(answer)), class_="answer") if answer else None,
        *said,
        _said("after" if last.name == "after" else "before", row),
        _counts(last.sets.get(name)),
    )


def _pairs(
    before: Evaluation | None, after: Evaluation, name: str
) -> Sequence[tuple[Metrics | None, Metrics]]:
    """The rows of a set before and after, of the same problem; None where there is none before."""
    rows = [row for row in after.rows.get(name, []) if _completion(row)]
    old = before.rows.get(name, []) if before else []
    found = counterparts(rows, old)
    return [(None if j is None else old[j], row) for j, row in zip(found, rows, strict=True)]


def _completion(row: Metrics | None) -> str:
    texts = row.get("completions") if row else None
    return str(texts[0]) if isinstance(texts, list) and texts else ""


def _right(row: Metrics | None) -> bool | None:
    scores = row.get("scores") if row else None
    return scores[0] == 1 if isinstance(scores, list) and scores else None


def _flip(before: Metrics | None, after: Metrics) -> tuple[bool | None, bool | None]:
    return _right(before), _right(after)


def _telling(result: SetResult | None) -> tuple[bool, bool]:
    """Which example shows what happened on the whole: wrong before and right after, or back."""
    worse = result is not None and result.paired is not None and result.paired.difference < 0
    return (True, False) if worse else (False, True)


def _flipped_words(flip: tuple[bool | None, bool | None]) -> str:
    words = {(False, True): ", wrong before and right after", (True, False): ", right before only"}
    return words.get((bool(flip[0]), bool(flip[1])), "") if None not in flip else ""


def _said(label: str, row: Metrics) -> Element:
    """What a policy said to the problem, and whether that is right."""
    right = _right(row)
    mark = {True: ("right", "chip good"), False: ("wrong", "chip bad")}
    chip = h("span", mark[right][0], class_=mark[right][1]) if right is not None else None
    head = h("p", h("span", label, class_="who"), " ", *([chip] if chip is not None else []))
    return h("div", head, h("pre", _short(_completion(row)), class_="example"), class_="said")


def _short(text: object) -> str:
    """A text of some `_EXAMPLE` characters, its middle left out: answers stand at the end."""
    whole = cut(text).strip()
    if len(whole) <= _EXAMPLE:
        return whole
    start, end = whole[: 2 * _EXAMPLE // 3].rstrip(), whole[-_EXAMPLE // 3 :].lstrip()
    return f"{start} […] {end}"


def _counts(result: SetResult | None) -> Element | None:
    """How many problems moved which way: an example shows one."""
    test = result.paired if result is not None else None
    if test is None or test.better is None or test.worse is None:
        return None
    return note(
        f"Of {test.problems:,} problems {test.better:,} came to be answered better and "
        f"{test.worse:,} worse; all are under Completions."
    )


# --- was it skill, a habit or form


def _cause_card(run: RunData) -> Element | None:
    name = _main_set(run)
    if name is None:
        return None
    before, after = (by_mode(sets, name) for sets in ends_of(run))
    if "" not in before or "" not in after or other_models(run):
        return None
    sentences = explain_cause(before, after, by=cause_of(run))
    if not sentences:
        sentences = ["Accuracy did not measurably change: there is nothing to explain."]
    meanings = [meaning for word, meaning in _MEANINGS.items() if word in " ".join(sentences)]
    return _card("Skill or form?", [h("p", s) for s in sentences], [note(m) for m in meanings])


# --- what did it cost


def _cost(run: RunData) -> Element | None:
    facts = [h("div", h("dt", name), h("dd", value)) for name, value in run_facts(run)]
    if not facts:
        return None
    over = any(e.name == "after" for e in run.evals)
    question = "What did it cost?" if over else "What does it cost?"
    return _card(question, h("dl", facts, id="facts"), *map(note, _which_policy(run)))


def run_facts(run: RunData) -> list[tuple[str, str]]:
    """The facts of the overview as (name, value)."""
    return [(name, value) for name, value in _facts(run) if value]


def _facts(run: RunData) -> Iterator[tuple[str, str]]:
    seconds = sum(stage.seconds() for stage in run.stages)
    yield "Training time", duration(seconds) if seconds else ""
    yield "Device", _device(run)
    steps = {s.name: s.metrics[-1]["step"] for s in run.stages if s.metrics}
    few = ", ".join(f"{_of_total(s)} {s.name}" for s in run.stages if s.metrics)
    many = f"{sum(steps.values()):,} in {len(steps)} stages"
    yield "Steps", few if len(steps) <= _STAGES_NAMED else many
    yield "To go", _to_go(run)
    rollouts = [stage.rollouts for stage in run.stages if stage.rollouts]
    if rollouts:
        yield "Completions", f"{sum(r.completions for r in rollouts):,}"
        counts = [
            sum(c[outcome] for r in rollouts for c in r.outcomes.values())
            for outcome in ("abstain", "fault")
        ]
        yield "Abstentions, faults", " and ".join(f"{count:,}" for count in counts)
    yield "Seed", printable(str(run.lock.get("seed") if run.lock.get("seed") is not None else ""))


def _left(stage: StageRecord) -> int:
    """The steps that a stage has still to take, as far as its recipe tells."""
    total = number(stage.settings.get("steps"))
    return 0 if total is None else max(0, int(total) - int(stage.metrics[-1]["step"]))


def _of_total(stage: StageRecord) -> str:
    """ "54", or "54 of 60" of a stage that has not come to its end."""
    done, left = int(stage.metrics[-1]["step"]), _left(stage)
    return f"{done:,} of {done + left:,}" if left else f"{done:,}"


def _to_go(run: RunData) -> str:
    """What is left of the newest stage, at the pace of its last steps."""
    begun = [stage for stage in run.stages if stage.metrics]
    if not begun or not (left := _left(begun[-1])):
        return ""
    _, times = begun[-1].series("step_time")
    newest = times[-_PACE:]
    pace = f", about {duration(left * sum(newest) / len(newest))}" if newest else ""
    return f"{left:,} steps of {begun[-1].name}{pace}"


def _device(run: RunData) -> str:
    """The device, with the number of threads where it is a CPU."""
    device, threads = printable(str(run.lock.get("device") or "")), run.lock.get("threads")
    if not (isinstance(threads, int) and device == "cpu"):
        return device
    return f"{device}, {threads} thread{'s' if threads != 1 else ''}"


def _which_policy(run: RunData) -> Iterator[str]:
    """What policy/ holds, and where the best one measured while training is."""
    if not any(e.name == "after" for e in run.evals):
        return
    yield "The figures after training are of policy/: the last step of the last stage."
    for stage in run.stages:
        if stage.best:
            accuracy = percent(number(stage.best.get("accuracy")))
            yield (
                f"The best that was measured while training is stages/{stage.folder}/best: step "
                f"{stage.best.get('step')}, {accuracy} on {stage.best.get('set')}."
            )
