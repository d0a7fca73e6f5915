"""How the report writes texts and figures: escaped, short, and without what prompts share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_reasoner.evaluation.formatting import duration, fixed, percent, points, short_number, signed
from rl_reasoner.evaluation.labels import set_title
from rl_reasoner.foreign import printable
from rl_reasoner.report.browse import shared_ends, titled
from rl_reasoner.report.html import document, h
from support.report_runs import Parsed


@given(st.lists(st.text("ab \n", max_size=12), min_size=2, max_size=5))
def test_titles_leave_out_only_what_all_prompts_share(prompts: list[str]) -> None:
    start, end = shared_ends(prompts)
    assert len({prompt[:start] for prompt in prompts}) == 1
    assert len({prompt[len(prompt) - end :] for prompt in prompts}) == 1
    for prompt in prompts:
        assert start + end <= len(prompt)
        middle = prompt[start : len(prompt) - end]
        assert titled(prompt, (start, end)) == " ".join((middle.strip() or prompt).split())


def test_a_script_that_would_end_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="what would end it"):
        document(h("html", h("script", "let a = '</script>'")))


@given(st.text(st.characters(), max_size=40), st.text(st.characters(), max_size=40))
def test_any_text_comes_back_from_the_page_as_text(text: str, value: str) -> None:
    page = document(h("html", h("p", text, h("i"), text, title=value)))
    page.encode()
    parsed = Parsed(page)
    assert parsed.tags == ["html", "p", "i"]
    assert "".join(parsed.texts).strip("\n") == (printable(text) * 2).strip("\n")
    assert parsed.values("title") == [printable(value)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0, "0"),
        (0.01234, "0.0123"),
        (-0.5, "−0.5"),
        (99.96, "100"),
        (3141.6, "3,142"),
        (12_345, "12.3k"),
        (999_999, "1,000k"),
        (3_145_728, "3.15M"),
        (7.2e9, "7.2B"),
        (1e300, "1e288T"),
        (6.08e-5, "6.08e-5"),
        (-2e-7, "−2e-7"),
        (0.0625, "0.0625"),
    ],
)
def test_short_figures(value: float | None, shown: str) -> None:
    assert short_number(value) == shown


def test_of_two_equally_near_figures_the_even_is_written() -> None:
    assert [percent(1 / 16), percent(3 / 16), fixed(-0.25), fixed(1234.25)] == [
        "6.2%",
        "18.8%",
        "−0.2",
        "1,234.2",
    ]
    assert [signed(0.04), signed(-0.04), points(-0.056), points(0.2)] == [
        "0.0",
        "0.0",
        "−5.6",
        "+20.0",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 59.96, 60, 187, 7500)] == [
        "0.0 s",
        "1 min 00 s",
        "1 min 00 s",
        "3 min 07 s",
        "2 h 05 min",
    ]


def test_a_set_in_a_heading_is_called_by_its_file() -> None:
    names = ("gsm8k", "data/splits/val.jsonl", "data/val.jsonl@sampled")
    assert [set_title(name) for name in names] == ["gsm8k", "val", "val@sampled"]


def test_sets_of_one_name_are_told_apart_by_their_folders() -> None:
    names = ["easy/test.jsonl", "hard/test.jsonl", "hard/test.jsonl@sampled", "x/a.csv", "test"]
    titles = ["easy/test", "hard/test", "hard/test@sampled", "a", "test"]
    assert [set_title(name, names) for name in names] == titles
    assert [set_title(name, ["a.csv", "a.json"]) for name in ("a.csv", "a.json")] == [
        "a.csv",
        "a.json",
    ]
    assert set_title("gsm8k.jsonl", ["gsm8k.jsonl", "gsm8k"]) == "gsm8k.jsonl"
