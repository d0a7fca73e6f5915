"""Evaluations with environments that ask all rows the same: each row is a problem of its own."""

from pathlib import Path

from rl_reasoner import EvalResult, compare, evaluate, open_policy
from rl_reasoner.evaluation.evaluate import replay
from rl_reasoner.evaluation.metrics import compute_figures
from rl_reasoner.recipe.environment import EnvironmentSettings
from rl_reasoner.report.page import build_page
from rl_reasoner.report.paired import add_paired_tests
from rl_reasoner.report.run_data import read_run


def plain(scores: list[float]) -> EvalResult:
    """A result on a set of as many different problems."""
    rows = [
        {
            "problem": str(i),
            "answer": "",
            "completions": ["text"],
            "scores": [score],
            "reasons": [""],
            "outcomes": ["score"],
            "tokens": [3],
            "truncated": [False],
        }
        for i, score in enumerate(scores)
    ]
    return EvalResult("p", sets={"s0": compute_figures(rows)}, rows={"s0": rows})


def episodes(scores: list[float], asked: str = "Guess my number.") -> EvalResult:
    """Rows of which an environment asked the same, each opened from a row of its own."""
    result = plain(scores)
    for row in result.rows["s0"]:
        row["opened_from"], row["problem"] = row["problem"], asked
    result.sets["s0"] = {**result.sets["s0"], **compute_figures(result.rows["s0"])}
    return result


def test_episodes_that_begin_alike_are_problems_of_their_own() -> None:
    a, b = episodes([1.0] * 4 + [0.0] * 16), episodes([1.0] * 16 + [0.0] * 4)
    apart = plain([1.0] * 4 + [0.0] * 16)
    assert a.sets["s0"]["interval"] == apart.sets["s0"]["interval"]
    found = compare(a, b)["s0"]
    assert found["test"].startswith("McNemar") and (found["better"], found["worse"]) == (12, 0)
    assert found["p"] < 0.001
    b.rows["s0"].reverse()
    assert compare(a, b)["s0"]["better"] == 12  # paired by what they were opened from
    for row in a.rows["s0"]:
        del row["opened_from"]  # saved by an older version
    assert compare(a, b)["s0"]["problems"] == 20


def test_a_report_pairs_them_as_a_comparison_does(tmp_path: Path) -> None:
    a, b = episodes([1.0] * 4 + [0.0] * 16), episodes([1.0] * 4 + [0.0, 1.0] * 8)
    for tag, result in (("before", a), ("after", b)):
        for row in result.rows["s0"]:
            row["completions"] = [f"{tag} {row['opened_from']}"]
        result.save(tmp_path / "evals" / f"{tag}.json")
    run, found = read_run(tmp_path), compare(a, b)["s0"]
    tested = add_paired_tests(run).evals[-1].sets["s0"].paired
    assert tested is not None and tested.test == found["test"] and tested.p == found["p"] < 0.01
    assert [*tested.interval] == found["interval"]
    page = build_page(run)  # the first that was wrong and is right, with what it was before
    assert '<pre class="example">before 5</pre>' in page
    assert '<pre class="example">after 5</pre>' in page


def _asks_all_the_same(folder: Path) -> Path:
    file = folder / "own.py"
    file.write_text(
        "class Same:\n"
        "    def reset(self, row):\n"
        "        return 'Guess my number.'\n"
        "    def step(self, completion):\n"
        "        return 'no', 0.0, True\n"
    )
    return file


def test_an_environment_s_rows_say_what_they_were_opened_from(tmp_path: Path) -> None:
    file = tmp_path / "games.jsonl"
    file.write_text("".join(f'{{"problem": "game {n}", "start": "1"}}\n' for n in range(3)))
    environment = EnvironmentSettings(use=f"{_asks_all_the_same(tmp_path)}:Same", processes=1)
    policy = open_policy("scratch:dense-tiny", device="cpu")
    result = evaluate(policy, [str(file)], max_tokens=2, environment=environment, template="plain")
    [rows] = result.rows.values()
    assert {row["problem"] for row in rows} == {"Guess my number."}
    assert len({row["opened_from"] for row in rows}) == 3
    again = replay(result)
    assert again.sets == result.sets and [*again.rows.values()] == [rows]


def test_episodes_that_begin_alike_are_sampled_apart(tmp_path: Path) -> None:
    """Else all rows of such an environment had the same first turn: one problem, counted often."""
    environment = EnvironmentSettings(use=f"{_asks_all_the_same(tmp_path)}:Same", processes=1)
    policy = open_policy("scratch:dense-tiny", device="cpu")
    files = [tmp_path / f"{name}.jsonl" for name in ("games", "turned")]
    lines = [f'{{"problem": "game {n}", "start": "1"}}\n' for n in range(4)]
    for file, own in zip(files, (lines, lines[::-1]), strict=True):
        file.write_text("".join(own))
    found = evaluate(
        policy, files, samples=2, max_tokens=6, environment=environment, template="plain"
    )
    first, turned = ({r["opened_from"]: r["completions"] for r in s} for s in found.rows.values())
    assert len({text for texts in first.values() for text in texts}) == 8
    assert first == turned, "a row's own, wherever it stands"
