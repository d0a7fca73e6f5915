"""benchmarks/forecasts.py: how many directions were right, beside what a constant would have."""

import re
import sys

import pytest

from support.documents import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import forecasts

PAGE = (ROOT / "docs" / "forecasts.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| [^|]+, \d+ \| ([^|:]+): [^|]* \| [^|]* \| (right|wrong) \|.*\| ([\d.]+) \|$")


def test_the_base_rate_stands_beside_the_directions_that_were_right() -> None:
    always = [(True, True)] * 9
    assert forecasts.conclusion(always, [1.2, 1.45]) == (
        'direction right in 9 of 9 (always "likely": 9); minutes within a factor of 1.5 in 2 of 2, '
        "worst 1.45"
    )
    assert forecasts.conclusion([(False, False), (True, False)], []) == (
        'direction right in 1 of 2 (always "likely": 0); minutes within a factor of 1.5 in 0 of 0'
    )


@pytest.mark.parametrize("nth", [0, 1])
def test_the_page_concludes_what_its_tables_say(nth: int) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    table = [one for one in tables if one.startswith("| run, seed |")][nth]
    rows = [found.groups() for line in table.splitlines() if (found := ROW.match(line))]
    assert len(rows) == len(table.splitlines()) - 2
    judged = [(said == "likely to learn", (said == "likely to learn") == (how == "right"))
              for said, how, _ in rows]  # fmt: skip
    ratios = [max(float(ratio), 1 / float(ratio)) for *_, ratio in rows]
    concluded = forecasts.conclusion(judged, ratios).partition(", worst")[0]
    assert concluded[0].upper() + concluded[1:] in PAGE
