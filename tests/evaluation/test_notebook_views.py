"""What a notebook shows of results, comparisons and runs: the figures, short, and nothing run."""

from pathlib import Path
from xml.etree import ElementTree

from rl_reasoner import Comparison, EvalResult, Run, compare
from rl_reasoner.policy.opening import open_policy
from support.report_runs import lines, make_run, rollout

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"


def result(name: str, rights: str, completion: str = "4") -> EvalResult:
    """A result with one set, `rights` such as "1101" saying which of its problems are right."""
    scores = [float(right) for right in rights]
    figures = {
        "problems": len(scores),
        "samples": 1,
        "accuracy": sum(scores) / len(scores),
        "interval": [0.25, 0.75],
    }
    rows = [
        {"problem": f"{n}+1", "answer": str(n + 1), "completions": [completion], "scores": [score]}
        for n, score in enumerate(scores)
    ]
    return EvalResult(policy="p", name=name, sets={"sums": figures}, rows={"sums": rows})


def parsed(html: str) -> ElementTree.Element:
    """The HTML as elements; a script or a picture in it is found."""
    root = ElementTree.fromstring(f"<div>{html}</div>")
    assert not [e for e in root.iter() if e.tag in ("script", "img", "style", "a")]
    return root


def words(html: str) -> str:
    return " ".join("".join(parsed(html).itertext()).split())


def test_a_result_shows_its_figures_and_not_its_rows() -> None:
    shown = result("after <b>", "1101", HOSTILE)
    assert "75.0% [25.0, 75.0]" in words(shown._repr_html_())
    assert "after <b>" in words(shown._repr_html_())
    assert repr(shown) == "EvalResult('after <b>', policy='p', accuracy={'sums': 0.75})"


def test_a_comparison_is_a_mapping_that_shows_its_tests_and_flips() -> None:
    found = compare(result("a", "0001", HOSTILE), result("b", "1111"))
    assert isinstance(found, Comparison)
    assert found["sums"]["difference"] == 0.75
    shown = words(found._repr_html_())
    assert "+75.0 [" in shown and "p 0.25" in shown
    assert "alert(1)" in shown  # as text
    assert repr(found).startswith("Comparison(sums: +75.0 [")
    assert len(repr(found)) < 100


def test_a_run_shows_what_the_gain_is_curves_and_groups_of_completions(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    stage = next((folder / "stages").glob("*-grpo"))
    group = [{**rollout(1, 0, n, bool(n % 2)), "completion": HOSTILE} for n in range(4)]
    lines(stage / "rollouts.jsonl", group)
    run = Run(folder, open_policy("scratch:dense-tiny"), {}, folder / "report.html")
    root = parsed(run._repr_html_())
    assert root.findall(".//polyline")
    shown = words(run._repr_html_())
    assert "mean reward" in shown and "before" in shown and "alert(1)" in shown
    assert len(run._repr_html_()) < 40_000
    assert len(repr(run)) < 300 and "Linear" not in repr(run)
