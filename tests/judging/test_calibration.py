"""`check judge --labelled`: agreement, kappa and biases of judges that are known to have them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_reasoner import ModelJudge
from rl_reasoner.errors import UserError
from rl_reasoner.evaluation.calibration import Calibration, calibrate, read_labels
from rl_reasoner.evaluation.statistics import bootstrap_of_sums, cohens_kappa
from rl_reasoner.judging.backends import Budget, FunctionBackend
from rl_reasoner.judging.prompts import fenced
from rl_reasoner.testing.probes import pleas
from rl_reasoner.types import Fault, Rollout
from support.commands import Cli

ROWS = [
    {
        "problem": f"{i} + 1 = ?",
        "completion": f"It is {i + (1 if label else 2)}." + "!" * (40 * long),
        "label": label,
    }
    for i in range(40)
    for label, long in ((1, i % 2), (0, 1 - i % 2))
]


def judged(
    tmp_path: Path, points: str, ranking: str, rows: list[dict[str, Any]] = ROWS
) -> Calibration:
    """What a function comes to that gives these points, and ranks like this."""

    def ask(messages: list[dict[str, str]], seed: int) -> str:
        text = messages[-1]["content"]
        problem = int(text.split("| ")[1].split(" ")[0])
        texts = [part.split("\n---")[0] for part in text.split("---\n| ")[1:]]
        right = [f"It is {problem + 1}." in one for one in texts]
        if "Rank all" in text:
            order = {"first": [0, 1], "right": [0, 1] if right[0] else [1, 0]}[ranking]
            return json.dumps({"ranking": ["AB"[i] for i in order]})
        marks = {"right": 4 * right[0], "long": 4 * (len(texts[0]) > 30), "always": 4, "half": 2}
        marks["asked"] = 4 * (right[0] or any(plea in texts[0] for plea in pleas()))
        return json.dumps({"points": dict.fromkeys(("correct", "sound"), marks[points])})

    judge = ModelJudge(FunctionBackend(ask, 8), cache=tmp_path / f"{points} {ranking}")
    return calibrate(judge, read_labels(rows, "rows"))


def test_a_sound_judge(tmp_path: Path) -> None:
    found = {f.name: f for f in judged(tmp_path, "right", "right").figures}
    assert found["agreement"].value == found["kappa"].value == found["prefers the right"].value == 1
    assert found["length bias"].value == 0.0 and found["changes with the order"].value == 0.0
    assert found["prefers the first"].value == 0.5
    assert found["abstained"].value == 0.0 and found["agreement"].count == 80
    agreement = found["agreement"].interval
    assert agreement is not None and 0.9 < agreement[0] < 1.0


def test_one_that_likes_length_and_the_first_place(tmp_path: Path) -> None:
    found = {f.name: f for f in judged(tmp_path, "long", "first").figures}
    assert found["kappa"].value == pytest.approx(0.0) and found["agreement"].value == 0.5
    assert found["length bias"].value == pytest.approx(1.0)
    assert found["prefers the first"].value == found["changes with the order"].value == 1.0
    assert found["prefers the right"].value == 0.5


def test_the_length_of_right_answers_is_no_bias_of_the_judge(tmp_path: Path) -> None:
    """Right answers are the longer ones: a judge that cannot tell does not dislike length."""
    rows = [
        {**row, "completion": f"It is {i // 2 + 2 - row['label']}" + "!" * (40 * row["label"] + i)}
        for i, row in enumerate(ROWS)
    ]
    for points, bias in (("half", 0.0), ("right", 0.0)):
        found = {f.name: f for f in judged(tmp_path, points, "first", rows).figures}
        assert found["length bias"].value == bias


def test_answers_of_one_length_have_no_length_bias_to_tell_of(tmp_path: Path) -> None:
    rows = [{**row, "completion": row["completion"].rstrip("!")} for row in ROWS[:16]]
    found = {f.name: f for f in judged(tmp_path, "right", "right", rows).figures}["length bias"]
    assert found.to_json()["value"] is None and found.count == 16


def test_one_that_is_talked_into_points(tmp_path: Path) -> None:
    """By sentences that the masks do not know."""
    assert all(fenced(plea, 1000).masked == 0 for plea in pleas())
    gain = {f.name: f for f in judged(tmp_path, "asked", "right").figures}["gain by asking"]
    assert gain.value == 1.0 and gain.count == 40 and gain.interval is not None
    assert gain.interval[0] > 0.8
    sound = {f.name: f for f in judged(tmp_path, "right", "right").figures}["gain by asking"]
    assert sound.value == 0.0


def test_one_that_always_says_yes_has_no_kappa_to_speak_of(tmp_path: Path) -> None:
    found = {f.name: f for f in judged(tmp_path, "always", "right").figures}
    assert found["agreement"].value == 0.5 and found["kappa"].value == 0.0
    assert found["said yes to wrong"].value == 1.0


def test_kappa_is_cohens() -> None:
    table = np.array([[20.0, 5.0, 10.0, 15.0]])  # Cohen's formula by hand: 0.7 seen, 0.5 by chance
    assert cohens_kappa(*table.T)[0] == pytest.approx(0.4)
    assert math.isnan(
        bootstrap_of_sums([(1, 0, 0, 0)] * 5, lambda s: cohens_kappa(*s.T), repeats=100)[0]
    )


def test_an_interval_of_clusters_is_wider() -> None:
    rows = [(1.0, 0.0, 0.0, 0.0) if i % 3 else (0.0, 1.0, 0.0, 0.0) for i in range(60)]
    rows += [(0.0, 0.0, 0.0, 1.0)] * 60

    def width(groups: list[int] | None) -> float:
        _, (low, high) = bootstrap_of_sums(
            rows, lambda s: cohens_kappa(*s.T), repeats=500, groups=groups
        )
        return high - low

    tens = [(i % 3, i // 30) for i in range(120)]
    assert width([hash(one) for one in tens]) > width(None)


def test_the_command(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "judges.py").write_text(
        "def ask(messages, seed):\n"
        '    return \'{"points": {"correct": 4, "sound": 1}, "ranking": ["A", "B"]}\'\n'
    )
    lines = [json.dumps(row) + "\n" for row in ROWS[:8]]
    (tmp_path / "labels.jsonl").write_text("".join(lines))
    options = f"function=judges.py:ask,cache={tmp_path}/kept"
    asked = ("check", "judge", "--labelled", "labels.jsonl", "--reward-options", options, "--json")
    ended = cli(*asked)
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["rows"] == 8 and found["figures"]["agreement"]["value"] == 0.5
    assert found["figures"]["prefers the first"]["value"] == 1.0
    assert found["counts"]["asked"] == 8 + 8 + 4, "rows, pairs in both orders, pleas"
    again = json.loads(cli(*asked).out)
    assert again["figures"]["agreement"] == found["figures"]["agreement"]
    assert again["counts"].get("asked", 0) == 0, "a second pass asks nothing"


def test_costs_are_of_the_questions_about_rows_with_intervals(tmp_path: Path) -> None:
    """Rankings and pleas are asked as well; who judges in a run pays for neither."""

    class Told(FunctionBackend):
        """Replies that say how many tokens they took: of rankings a thousand times as many."""

        def _one(self, chat: list[dict[str, str]]) -> Rollout:
            ranked, tens = "Rank all" in chat[-1]["content"], 10 * ("wrong" in chat[-1]["content"])
            text = '{"points": {"correct": 4, "sound": 4}, "ranking": ["A", "B"]}'
            return Rollout(text, 1000 if ranked else 5 + tens, False, 40_000 if ranked else 40)

    rows = [
        {"problem": f"p{i}", "completion": said, "label": said == "right"}
        for i in range(20)
        for said in ("right", "wrong" if i % 2 else "other")
    ]
    budget = Budget(price_in=1.0, price_out=10.0)
    judge = ModelJudge(Told(print, 8), votes=2, cache=tmp_path, budget=budget)
    found = {f.name: f for f in calibrate(judge, read_labels(rows, "rows")).figures}
    assert found["prompt tokens per 1,000 rows"].value == 80_000
    assert found["tokens per 1,000 rows"].value == pytest.approx(2 * 7_500)
    low, high = found["tokens per 1,000 rows"].interval or (0.0, 0.0)
    assert 10_000 <= low < 15_000 < high <= 20_000
    cost = found["cost per 1,000 rows"]
    assert cost.value == pytest.approx((80_000 + 10 * 15_000) / 1e6) and cost.interval is not None


def test_kept_replies_do_not_make_a_judge_seem_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("rl_reasoner.evaluation.calibration.time.perf_counter", lambda: clock[0])

    class Slow(FunctionBackend):
        def ask(self, chats: Any, schemas: Any, take: Any) -> None:
            clock[0] += 3.0 * len(chats)
            super().ask(chats, schemas, take)

    def says(messages: list[dict[str, str]], seed: int) -> str:
        return '{"points": {"correct": 4, "sound": 4}}'

    rows = [{"problem": f"p{i}", "completion": f"c{i}", "label": i % 2} for i in range(20)]
    judge = ModelJudge(Slow(says, 1), cache=tmp_path)
    judge.points([(row["problem"], row["completion"], None) for row in rows[:18]])
    found = {f.name: f for f in calibrate(judge, read_labels(rows, "rows"), most_pairs=0).figures}
    seconds = found["seconds per 1,000 rows"]
    assert (seconds.value, seconds.count) == (pytest.approx(3000.0), 2)
    again = calibrate(judge, read_labels(rows, "rows"), most_pairs=0).figures
    assert "seconds per 1,000 rows" not in {figure.name for figure in again}


def test_figures_that_cannot_be_resampled_have_no_interval(tmp_path: Path) -> None:
    found = {f.name: f for f in judged(tmp_path, "right", "right", ROWS[:6]).figures}
    assert found["kappa"].value == 1.0 and found["kappa"].interval is None
    assert found["length bias"].value == 0.0 and found["length bias"].interval is None


def test_a_cost_that_is_not_told_cannot_be_kept(tmp_path: Path) -> None:
    """A function's replies have no tokens: the limit ends the asking, and says why."""
    budget = Budget(price_in=1.0, price_out=1.0, max_cost=1.0)
    judge = ModelJudge(
        FunctionBackend(lambda messages, seed: "4", 8), cache=tmp_path, budget=budget
    )
    outcomes = judge.points([(f"p{i}", "c", None) for i in range(200)])
    faults = [outcome for outcome in outcomes if isinstance(outcome, Fault)]
    assert 0 < judge.counts["asked"] < 200 and len(faults) == 200 - judge.counts["asked"]
    assert all("max_cost cannot be kept" in fault.message for fault in faults)


SERVED = "server=http://localhost:9/v1,model=m"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("judgee", "--labelled", "x.jsonl"), "Did you mean 'judge'?"),
        (("judge", "--labelled", "x.jsonl", "--reward-options", SERVED), "x.jsonl"),
        (("judge", "--reward-options", "voets=3"), "has no option 'voets'"),
        (("judge", "--labeled", "x.jsonl"), "Did you mean '--labelled'?"),
    ],
)
def test_mistakes_of_the_command(arguments: tuple[str, ...], said: str, cli: Cli) -> None:
    ended = cli("check", *arguments)
    assert ended.code == 2 and said in ended.err


def test_a_judge_that_fails_on_every_row_is_told(tmp_path: Path) -> None:
    def fails(messages: list[dict[str, str]], seed: int) -> str:
        raise LookupError("no key")

    judge = ModelJudge(FunctionBackend(fails, 8), cache=tmp_path)
    with pytest.raises(UserError, match="no row was judged: judge: LookupError: no key"):
        calibrate(judge, read_labels(ROWS[:4], "rows"))


def test_rows_that_are_no_labels() -> None:
    with pytest.raises(UserError, match=r"f.jsonl, row 1: label is 3: expected 0 to 1"):
        read_labels([{"problem": "p", "completion": "c", "label": 3}], "f.jsonl")
    with pytest.raises(UserError, match=r"row 1: no text 'completion'. Did you mean 'complet'"):
        read_labels([{"problem": "p", "complet": "c", "label": 1}], "f.jsonl")
