"""The tutorials: each says its time and what one will see, and shows what was really printed.

`make tutorials` runs them at full size and writes output, figures and processor time
(`support.shown`); here documents are held against that, without running anything.
"""

import re

import pytest

from support.documents import ROOT, blocks
from support.shown import brought_up_to_date, figures, is_shown, measured

TUTORIALS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs/tutorials").glob("*.md"))
MEASURED = sorted(measured())


def promised_minutes(document: str) -> int:
    first = (ROOT / document).read_text(encoding="utf-8").split("\n\n")[1]
    found = re.match(r"\*About (\d+|a|one) minutes?\b", first)
    assert found and "ou will see" in first, f"{document}: say the time, and what one will see"
    return int(found[1]) if found[1].isdigit() else 1


@pytest.mark.parametrize("document", TUTORIALS)
def test_it_says_its_time_and_what_one_will_see(document: str) -> None:
    assert promised_minutes(document) <= 60


@pytest.mark.parametrize("document", MEASURED)
def test_the_time_is_about_what_was_measured(document: str) -> None:
    minutes = measured()[document]["processor_seconds"] / 60
    assert minutes / 2 - 1 < promised_minutes(document) < 2 * minutes + 1


@pytest.mark.parametrize("document", MEASURED)
def test_every_figure_was_printed(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```\n", "", text, flags=re.DOTALL | re.MULTILINE)
    shown = {f.rstrip("%") for f in re.findall(r"\d+\.\d%", prose)}
    pairs = zip(blocks(document), blocks(document)[1:], strict=False)
    for before, output in pairs:
        if (before.language, output.language) == ("sh", "text"):
            shown |= figures(output.text)
    assert shown <= set(measured()[document]["figures"])


PRINTED = """\
noise 1
set      problems  strict
one           300   48.3% [42.7, 54.0]
  pass@2             50.0%
  pass@8             70.0%
policy  runs/a-20261127-052252/policy
end
"""


def test_output_is_brought_up_to_date_with_the_same_lines_left_out() -> None:
    shown = "set    problems strict\none 20 1.0% [0.1, 2.0]\n…\n pass@8 1.0%\npolicy  runs/a-…\n"
    new = brought_up_to_date(PRINTED, shown)
    lines = PRINTED.splitlines()
    assert new.splitlines() == [*lines[1:3], "…", lines[4], "policy  runs/a-…"]
    assert is_shown(PRINTED, shown)
    with pytest.raises(LookupError, match="three"):
        brought_up_to_date(PRINTED, "three 3\n")
    assert not is_shown(PRINTED, "three 3\n")


def test_a_beginning_is_replaced_as_a_whole() -> None:
    assert brought_up_to_date(PRINTED, "set of old\nold line\n…\n") == (
        "set      problems  strict\none           300   48.3% [42.7, 54.0]\n…\n"
    )
